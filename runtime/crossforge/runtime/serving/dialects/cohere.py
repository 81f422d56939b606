"""Cohere's rerank API, versions 1 and 2: ``/v1/rerank`` and ``/v2/rerank``.

Shapes as in its reference and its Python client. Unknown fields are refused, as Cohere refuses them. The answer also has the
``model`` and ``usage`` that Jina's and vLLM's clients look for, because they ask at ``/v1/rerank`` too.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from crossforge.runtime.serving.body import read_body
from crossforge.runtime.serving.dialects.chunks import Chunk, WindowRead, chunking_of
from crossforge.runtime.serving.dialects.documents import Document, RankedDocument, rank_documents, texts_of
from crossforge.runtime.serving.errors import Kind, ProblemError
from crossforge.runtime.serving.facts import facts_of
from crossforge.runtime.serving.openapi import takes
from crossforge.runtime.serving.routes import BareRoute
from crossforge.runtime.serving.service import Scores, service_of

router = APIRouter(tags=["Cohere"], route_class=BareRoute)

AtLeastOne = Annotated[int, Field(ge=1)]


class CohereRerankRequest(BaseModel):
    """What Cohere's version 1 takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    query: str
    documents: list[str | Document]
    top_n: AtLeastOne | None = None
    rank_fields: list[str] | None = None
    return_documents: bool | None = None
    max_chunks_per_doc: AtLeastOne | None = None
    chunk: Chunk = None


class CohereV2RerankRequest(BaseModel):
    """What Cohere's version 2 takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    query: str
    documents: list[str | Document]
    top_n: AtLeastOne | None = None
    max_tokens_per_doc: AtLeastOne | None = None
    return_documents: bool | None = None
    relevant_spans: dict[str, object] | None = None
    priority: int | None = None
    chunk: Chunk = None


class CohereRankedDocument(RankedDocument):
    """One row of Cohere's answer; ``window`` is there where ``chunk`` split the document."""

    window: WindowRead | None = None


class CohereRerankResponse(BaseModel):
    """What Cohere answers."""

    id: str
    results: list[CohereRankedDocument]
    meta: dict[str, object]
    model: str
    usage: dict[str, int]


@router.post("/v1/rerank", openapi_extra=takes(CohereRerankRequest), responses={200: {"model": CohereRerankResponse}})
async def rerank_v1(request: Request) -> JSONResponse:
    """Rank documents, best first."""
    body = await read_body(request, CohereRerankRequest)
    if body.rank_fields not in (None, ["text"]):
        raise ProblemError(Kind.OPTION, "rank_fields is not supported; documents are ranked by their text")
    # Chunks change nothing where every document fits: such a request is answered, and any other refused.
    chunked = (body.max_chunks_per_doc or 1) > 1
    if chunked and body.chunk is not None:
        raise ProblemError(Kind.OPTION, "max_chunks_per_doc does not bound the windows of chunk; send one of the two")
    scores = await service_of(request).score(
        request, body.model, body.query, texts_of(body.documents), cut=not chunked, chunking=chunking_of(body.chunk)
    )
    rows = rank_documents(scores, body.documents, top_n=body.top_n, with_documents=bool(body.return_documents))
    return _answer(request, scores, rows, version="1")


@router.post("/v2/rerank", openapi_extra=takes(CohereV2RerankRequest), responses={200: {"model": CohereRerankResponse}})
async def rerank_v2(request: Request) -> JSONResponse:
    """Rank documents, best first."""
    body = await read_body(request, CohereV2RerankRequest)
    if body.relevant_spans is not None:
        raise ProblemError(Kind.OPTION, "relevant_spans is not supported; leave it out")
    if body.priority:
        raise ProblemError(Kind.OPTION, "priority is not supported; requests have their turns in order")
    if body.max_tokens_per_doc is not None and body.chunk is not None:
        raise ProblemError(Kind.OPTION, "a document cannot be both cut and split; send max_tokens_per_doc or chunk")
    scores = await service_of(request).score(
        request,
        body.model,
        body.query,
        texts_of(body.documents),
        max_passage_tokens=body.max_tokens_per_doc,
        chunking=chunking_of(body.chunk),
    )
    rows = rank_documents(scores, body.documents, top_n=body.top_n, with_documents=bool(body.return_documents))
    return _answer(request, scores, rows, version="2")


def _answer(request: Request, scores: Scores, rows: list[dict[str, object]], *, version: str) -> JSONResponse:
    meta: dict[str, object] = {"api_version": {"version": version}, "tokens": {"input_tokens": scores.tokens}}
    cut = np.flatnonzero(scores.scored.truncated)
    if len(cut):
        first = ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else "")
        meta["warnings"] = [f"{len(cut)} documents were read in part, as they or the query were too long: {first}"]
    return JSONResponse(
        {
            "id": facts_of(request.scope).request_id,
            "results": rows,
            "meta": meta,
            "model": scores.name,
            "usage": {"total_tokens": scores.tokens},
        }
    )
