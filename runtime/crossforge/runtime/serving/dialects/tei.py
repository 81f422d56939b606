"""Hugging Face's text-embeddings-inference: ``/rerank`` and ``/info``.

Shapes, statuses and error types as in its OpenAPI document and ``router/src/http``. Unknown fields are ignored, as by TEI.
"""

from __future__ import annotations

import importlib.metadata
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from crossforge.runtime.serving.body import Shape, read_shape
from crossforge.runtime.serving.dialects import vllm
from crossforge.runtime.serving.dialects.chunks import Chunk, WindowRead, chunking_of, window_of
from crossforge.runtime.serving.errors import Dialect, Kind, ProblemError
from crossforge.runtime.serving.openapi import takes
from crossforge.runtime.serving.routes import BareRoute
from crossforge.runtime.serving.service import Scores, service_of

router = APIRouter(tags=["Text Embeddings Inference"], route_class=BareRoute)


class TeiRerankRequest(BaseModel):
    """What TEI's ``/rerank`` takes."""

    model_config = ConfigDict(extra="ignore", strict=True)

    query: str
    texts: list[str]
    truncate: bool | None = False
    truncation_direction: Literal["right", "left", "Right", "Left"] = "right"
    raw_scores: bool = False
    return_text: bool = False
    chunk: Chunk = None


class TeiRank(BaseModel):
    """One row of TEI's answer; ``text`` is there only if it was asked for, ``window`` where ``chunk`` split the text."""

    index: int
    score: float
    text: str | None = None
    window: WindowRead | None = None


_SHAPES: tuple[Shape[TeiRerankRequest | vllm.VllmRerankRequest], ...] = (
    Shape(field="texts", model=TeiRerankRequest, dialect=Dialect.TEI),
    Shape(field="documents", model=vllm.VllmRerankRequest, dialect=Dialect.VLLM),
)


@router.post(
    "/rerank",
    openapi_extra=takes(TeiRerankRequest, vllm.VllmRerankRequest),
    responses={200: {"model": list[TeiRank] | vllm.VllmRerankResponse}},
)
async def rerank(request: Request) -> JSONResponse:
    """Rank texts, best first. A body with ``documents`` instead of ``texts`` is vLLM's, and is answered as vLLM does."""
    body = await read_shape(request, *_SHAPES)
    if isinstance(body, vllm.VllmRerankRequest):
        return await vllm.rerank(request, body)
    return await _rerank(request, body)


async def _rerank(request: Request, body: TeiRerankRequest) -> JSONResponse:
    service = service_of(request)
    _, model = service.find_model(None)
    side = model.reranker.tokenizer.truncation.side
    if body.truncate and body.truncation_direction.lower() != side:
        raise ProblemError(
            Kind.OPTION, f"truncation_direction is {body.truncation_direction}; this model is cut on the {side}"
        )
    scores = await service.score(
        request, None, body.query, body.texts, cut=bool(body.truncate), chunking=chunking_of(body.chunk)
    )
    values = scores.raw() if body.raw_scores else scores.bounded()
    rows = [
        {"index": i, **({"text": body.texts[i]} if body.return_text else {}), "score": values[i], **window_of(scores, i)}
        for i in scores.best_first()
    ]
    return JSONResponse(rows, headers=_times(scores, body))


@router.get("/info")
async def info(request: Request) -> JSONResponse:
    """The first model, as TEI describes one."""
    service = service_of(request)
    name, model = service.find_model(None)
    manifest, settings = model.reranker.manifest, service.settings
    return JSONResponse(
        {
            "model_id": name,
            "model_sha": manifest.source.revision,
            "model_dtype": str(model.reranker.precision),
            "model_type": {
                "reranker": {
                    "id2label": {str(i): label for i, label in enumerate(manifest.scoring.labels)},
                    "label2id": {label: i for i, label in enumerate(manifest.scoring.labels)},
                }
            },
            "max_concurrent_requests": settings.max_connections,
            "max_input_length": manifest.truncation.max_length,
            "max_batch_tokens": model.reranker.budget_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_passages,
            "auto_truncate": False,
            "tokenization_workers": 2,
            "version": importlib.metadata.version("crossforge"),
            "sha": None,
            "docker_label": None,
        }
    )


def _times(scores: Scores, body: TeiRerankRequest) -> dict[str, str]:
    """TEI's headers: whole milliseconds, tokens and characters."""
    headers = {
        "x-compute-type": "cpu" if scores.model.session.provider.is_cpu else "gpu",
        "x-compute-characters": str(len(body.query) * len(body.texts) + sum(map(len, body.texts))),
        "x-compute-tokens": str(scores.tokens),
    }
    times = scores.scored.times
    if times is not None:
        total_s = times.queue_s + times.tokenize_s + times.compute_s
        for name, seconds in (
            ("total", total_s),
            ("tokenization", times.tokenize_s),
            ("queue", times.queue_s),
            ("inference", times.compute_s),
        ):
            headers[f"x-{name}-time"] = str(round(seconds * 1e3))
    return headers
