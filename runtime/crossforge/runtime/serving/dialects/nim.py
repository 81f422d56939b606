"""NVIDIA NIM's ``/v1/ranking`` for text. Unknown fields are refused, as its models refuse them."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from crossforge.runtime.serving.body import read_body
from crossforge.runtime.serving.errors import Kind, ProblemError
from crossforge.runtime.serving.openapi import takes
from crossforge.runtime.serving.routes import BareRoute
from crossforge.runtime.serving.service import service_of

router = APIRouter(tags=["NVIDIA NIM"], route_class=BareRoute)


class NimText(BaseModel):
    """A query or a passage."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str


class NimRankingRequest(BaseModel):
    """What NIM's ``/v1/ranking`` takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    query: NimText
    passages: list[NimText]
    truncate: Literal["NONE", "END"] = "NONE"


class NimRanking(BaseModel):
    """One row of NIM's answer."""

    index: int
    logit: float


class NimRankingResponse(BaseModel):
    """What NIM answers."""

    rankings: list[NimRanking]
    usage: dict[str, int]


@router.post("/v1/ranking", openapi_extra=takes(NimRankingRequest), responses={200: {"model": NimRankingResponse}})
async def ranking(request: Request) -> JSONResponse:
    """Rank passages, best first."""
    body = await read_body(request, NimRankingRequest)
    service = service_of(request)
    side = service.find_model(body.model)[1].reranker.tokenizer.truncation.side
    if body.truncate == "END" and side != "right":
        raise ProblemError(Kind.OPTION, f"truncate is END; this model is cut on the {side}; allowed: NONE")
    texts = [passage.text for passage in body.passages]
    scores = await service.score(request, body.model, body.query.text, texts, cut=body.truncate == "END")
    values = scores.raw()
    usage = {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens}
    return JSONResponse({"rankings": [{"index": i, "logit": values[i]} for i in scores.best_first()], "usage": usage})
