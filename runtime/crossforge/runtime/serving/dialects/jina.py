"""Jina's reranker API at ``/jina/v1/rerank``. At ``/v1/rerank`` its clients are answered by Cohere's, of the same fields.

Unknown fields are refused: Jina does not say what it does with them.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from crossforge.runtime.serving.body import read_body
from crossforge.runtime.serving.dialects.documents import Document, RankedDocument, rank_documents, texts_of
from crossforge.runtime.serving.errors import Kind, ProblemError
from crossforge.runtime.serving.openapi import takes
from crossforge.runtime.serving.routes import BareRoute
from crossforge.runtime.serving.service import service_of

router = APIRouter(tags=["Jina"], route_class=BareRoute)


class JinaRerankRequest(BaseModel):
    """What Jina takes, of texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    query: str | Document
    documents: list[str | Document]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    truncation: bool | None = None
    return_embeddings: bool | None = None


class JinaRerankResponse(BaseModel):
    """What Jina answers."""

    model: str
    object: str
    usage: dict[str, int]
    results: list[RankedDocument]


@router.post("/jina/v1/rerank", openapi_extra=takes(JinaRerankRequest), responses={200: {"model": JinaRerankResponse}})
async def rerank(request: Request) -> JSONResponse:
    """Rank documents, best first."""
    body = await read_body(request, JinaRerankRequest)
    if body.return_embeddings:
        raise ProblemError(Kind.OPTION, "return_embeddings is not supported; a cross-encoder has none")
    scores = await service_of(request).score(
        request, body.model, texts_of([body.query])[0], texts_of(body.documents), cut=body.truncation is not False
    )
    rows = rank_documents(scores, body.documents, top_n=body.top_n, with_documents=bool(body.return_documents))
    usage = {"total_tokens": scores.tokens, "prompt_tokens": scores.tokens}
    return JSONResponse({"model": scores.name, "object": "list", "usage": usage, "results": rows})
