"""vLLM's ``/score`` and ``/v1/score``, and its ``/rerank`` for bodies with ``documents``; the names of the models.

Shapes as in ``vllm/entrypoints/pooling/score/protocol.py``. Unknown fields are ignored, as vLLM ignores them. A pair that is
too long is refused, as vLLM refuses it, unless ``truncate_prompt_tokens`` is given.
"""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from crossforge.runtime.serving.body import read_body
from crossforge.runtime.serving.errors import Kind, ProblemError
from crossforge.runtime.serving.facts import facts_of
from crossforge.runtime.serving.openapi import takes
from crossforge.runtime.serving.routes import BareRoute
from crossforge.runtime.serving.service import Scores, Service, service_of

router = APIRouter(tags=["vLLM"], route_class=BareRoute)


class _Options(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    user: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: int = 0
    use_activation: bool | None = Field(
        default=None, validation_alias=AliasChoices("use_activation", "activation", "softmax")
    )
    mm_processor_kwargs: dict[str, object] | None = None


class VllmScoreRequest(_Options):
    """What vLLM's ``/score`` takes: one text or several on either side, by any of the names that vLLM knows."""

    text_1: str | list[str] = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    text_2: str | list[str] = Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))


class VllmRerankRequest(_Options):
    """What vLLM's ``/rerank`` takes."""

    query: str
    documents: list[str]
    top_n: Annotated[int, Field(ge=0)] = 0
    """0 is all."""


class VllmScore(BaseModel):
    """The score of one pair."""

    index: int
    object: str
    score: float


class VllmScoreResponse(BaseModel):
    """What vLLM's ``/score`` answers."""

    id: str
    object: str
    created: int
    model: str
    data: list[VllmScore]
    usage: dict[str, int]


class VllmRerankResponse(BaseModel):
    """What vLLM's ``/rerank`` answers."""

    id: str
    model: str
    usage: dict[str, int]
    results: list[dict[str, object]]


@router.post("/score", openapi_extra=takes(VllmScoreRequest), responses={200: {"model": VllmScoreResponse}})
@router.post("/v1/score", openapi_extra=takes(VllmScoreRequest), responses={200: {"model": VllmScoreResponse}})
async def score(request: Request) -> JSONResponse:
    """Score pairs, in their order: one text with one, one with many, or many with as many."""
    body = await read_body(request, VllmScoreRequest)
    service = service_of(request)
    cut = _may_cut(service, body)
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) not in (1, len(second)):
        got = f"{len(first)} and {len(second)}"
        raise ProblemError(Kind.SCHEMA, f"the texts do not pair; got {got}; allowed: 1 and 1, 1 and N, or N and N")
    if len(first) == 1:
        scores = await service.score(request, body.model, first[0], second, cut=cut)
    else:
        scores = await service.score_pairs(request, body.model, list(zip(first, second, strict=True)), cut=cut)
    return JSONResponse(
        {
            "id": f"score-{facts_of(request.scope).request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": scores.name,
            "data": [{"index": i, "object": "score", "score": s} for i, s in enumerate(_values(body, scores))],
            "usage": {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens, "completion_tokens": 0},
        }
    )


async def rerank(request: Request, body: VllmRerankRequest) -> JSONResponse:
    """Rank documents, best first; the path is TEI's too, whose module calls this for bodies of vLLM's shape."""
    service = service_of(request)
    scores = await service.score(request, body.model, body.query, body.documents, cut=_may_cut(service, body))
    values = _values(body, scores)
    return JSONResponse(
        {
            "id": f"rerank-{facts_of(request.scope).request_id}",
            "model": scores.name,
            "usage": {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens},
            "results": [
                {"index": i, "document": {"text": body.documents[i]}, "relevance_score": values[i]}
                for i in scores.best_first(body.top_n or None)
            ],
        }
    )


@router.get("/v1/models")
async def models(request: Request) -> JSONResponse:
    """The names of the models; NIM's clients ask for them too."""
    names = service_of(request).models
    rows = [{"id": name, "object": "model", "created": 0, "owned_by": "crossforge", "root": name} for name in names]
    return JSONResponse({"object": "list", "data": rows})


def _may_cut(service: Service, body: _Options) -> bool:
    """Whether pairs may be cut; refuses what is not done as asked."""
    truncation = service.find_model(body.model)[1].reranker.tokenizer.truncation
    if body.priority:
        raise ProblemError(Kind.OPTION, "priority is not supported; requests have their turns in order")
    if body.mm_processor_kwargs:
        raise ProblemError(Kind.OPTION, "mm_processor_kwargs is not supported; the model reads text alone")
    if body.truncate_prompt_tokens is None:
        return False
    if body.truncate_prompt_tokens not in (-1, truncation.max_length):
        allowed = f"-1 or {truncation.max_length}, what the model reads"
        raise ProblemError(Kind.OPTION, f"truncate_prompt_tokens is {body.truncate_prompt_tokens}; allowed: {allowed}")
    if body.truncation_side not in (None, truncation.side):
        raise ProblemError(
            Kind.OPTION, f"truncation_side is {body.truncation_side}; this model is cut on the {truncation.side}"
        )
    return True


def _values(body: _Options, scores: Scores) -> list[float]:
    return scores.raw() if body.use_activation is False else scores.predicted()
