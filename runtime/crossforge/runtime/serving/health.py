"""Whether the service lives (``/health``), takes requests (``/ready``), and what it has done (``/metrics``)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from crossforge.profiles import CrossforgeError
from crossforge.runtime.serving.errors import Kind, Problem
from crossforge.runtime.serving.models import ServedModel
from crossforge.runtime.serving.replies import STARTING, STOPPING, problem_response
from crossforge.runtime.serving.service import service_of

FRESH_S = 5.0
"""A batch that ended so lately shows that the model answers."""
PROBE_TIMEOUT_S = 5.0

router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health", responses={503: {"description": "A model does not answer."}})
async def health(request: Request) -> Response:
    """200 if every model answers: it computed a batch lately, or computes one now, within five seconds."""
    models = list(dict.fromkeys(service_of(request).models.values()))
    silent = [model.name for model in models if not await answers(model)]
    if silent:
        return problem_response(Problem(kind=Kind.UNAVAILABLE, message=f"no answer from {', '.join(silent)}"), request.scope)
    return JSONResponse({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses={503: {"description": "Starting, or stopping."}})
async def ready(request: Request) -> Response:
    """200 from the end of the warm-up until the service is told to stop."""
    service = service_of(request)
    if service.draining or not service.ready:
        return problem_response(STOPPING if service.draining else STARTING, request.scope)
    return JSONResponse({"status": "ready", "models": list(service.models)})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def answers(model: ServedModel) -> bool:
    """Whether a model computed a batch lately, or does now. Probes of one model wait for one and the same forward pass.

    One after another, they would stand in line before a model that hangs, each for the whole timeout, and no end to them.
    """
    if model.session.idle_s() < FRESH_S:
        return True
    if model.probe is None or model.probe.done():
        model.probe = asyncio.create_task(_probe(model))
    return await asyncio.shield(model.probe)


async def _probe(model: ServedModel) -> bool:
    try:
        await asyncio.wait_for(score_texts(model, "probe", ["probe"]), PROBE_TIMEOUT_S)
    except (CrossforgeError, TimeoutError):
        # Whatever the probe met with, a batch that ended meanwhile says more: the queue may be full of other work.
        return model.session.idle_s() < FRESH_S
    return True


async def warm_up(model: ServedModel) -> None:
    """Run the shortest pair and the longest, so that no request pays for what an engine does only once.

    Raises:
        CrossforgeError: The model does not answer.
    """
    await score_texts(model, "query", ["passage"])
    await score_texts(model, "query", ["passage " * model.reranker.tokenizer.truncation.max_length])


async def score_texts(model: ServedModel, query: str, passages: Sequence[str]) -> None:
    """Send passages through the model's queue, for nobody."""
    tokenizer = model.reranker.tokenizer
    future = model.scorer.schedule_encoding(lambda: tokenizer.encode(query, passages), count=len(passages))
    await asyncio.wrap_future(future)
