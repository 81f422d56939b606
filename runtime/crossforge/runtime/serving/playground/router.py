"""The playground: its page at ``/``, and what the page asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from crossforge.runtime.serving.body import read_body
from crossforge.runtime.serving.errors import Kind, ProblemError
from crossforge.runtime.serving.facts import facts_of
from crossforge.runtime.serving.models import ServedModel
from crossforge.runtime.serving.openapi import takes
from crossforge.runtime.serving.playground.agreement import kendall_tau
from crossforge.runtime.serving.playground.variants import Variants
from crossforge.runtime.serving.service import Scores, Service

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/playground/page.css": ("page.css", "text/css; charset=utf-8"),
    "/playground/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    # The browser itself refuses every other host, every inline script, and markup made of text.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class PlaygroundRequest(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str
    passages: list[str]
    model: str | None = None
    variants: list[str] = Field(default=[], max_length=2)
    """One, or two to compare; none is the one that is served."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One variant's turn."""

    scores: Scores
    seconds: float


def make_router(service: Service) -> APIRouter:
    """The playground of one service. Variants that it loads are closed when the application ends."""
    variants = Variants(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await variants.close()

    router = APIRouter(tags=["playground"], lifespan=lifespan)
    for path, (name, media_type) in _FILES.items():
        _add_file(router, path, name, media_type)

    @router.get("/playground/models")
    async def models() -> JSONResponse:
        """The served models, and the variants of each."""
        served = [_describe(name, model, variants) for name, model in service.models.items()]
        return JSONResponse({"models": served, "max_passages": service.settings.max_passages})

    @router.post("/playground/rank", openapi_extra=takes(PlaygroundRequest))
    async def rank(request: Request) -> JSONResponse:
        """Rank passages with one variant, or with two, one after the other; tells everything about it."""
        body = await read_body(request, PlaygroundRequest)
        if len(set(body.variants)) < len(body.variants):
            raise ProblemError(Kind.OPTION, "a variant cannot be compared with itself; name two")
        name, model = service.find_model(body.model)
        # All are loaded before the first one runs: loading would take the cores from it.
        chosen = [await variants.get(model, variant) for variant in body.variants] or [model]
        runs = [await _run(service, request, variant, body) for variant in chosen]
        _note(request, name, runs)
        return JSONResponse(await asyncio.to_thread(_answer, name, body, runs))

    return router


def _add_file(router: APIRouter, path: str, name: str, media_type: str) -> None:
    content = resources.files(__package__).joinpath(name).read_bytes()

    @router.get(path, include_in_schema=False, response_class=Response)
    async def file() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)


def _describe(name: str, model: ServedModel, variants: Variants) -> dict[str, object]:
    manifest = model.reranker.manifest
    return {
        "name": name,
        "source": manifest.source.id,
        "max_length": manifest.truncation.max_length,
        "query_max_length": manifest.truncation.query_max_length,
        "variants": [
            {
                "name": str(precision),
                "loaded": variants.is_loaded(model, precision),
                "size_bytes": sum(manifest.files[file].size_bytes for file in manifest.variants[precision].files),
                "passed": manifest.variants[precision].parity.passed,
            }
            for precision in variants.offered(model)
        ],
    }


async def _run(service: Service, request: Request, variant: ServedModel, body: PlaygroundRequest) -> _Run:
    start_s = time.perf_counter()
    scores = await service.score_with(request, variant.name, variant, body.query, body.passages)
    return _Run(scores=scores, seconds=time.perf_counter() - start_s)


def _note(request: Request, name: str, runs: Sequence[_Run]) -> None:
    """Of two runs, log and metrics get the sum, under the model's own name, and no times: they are not one request's."""
    if len(runs) > 1:
        facts = facts_of(request.scope)
        facts.model, facts.times = name, None
        facts.tokens = sum(run.scores.tokens for run in runs)
        facts.truncated = sum(int(run.scores.scored.truncated.sum()) for run in runs)


def _answer(name: str, body: PlaygroundRequest, runs: Sequence[_Run]) -> dict[str, object]:
    tokenizer = runs[0].scores.model.reranker.tokenizer
    cut = np.flatnonzero(runs[0].scores.scored.truncated).tolist()
    query_span, *spans = tokenizer.read_spans(body.query, [body.passages[i] for i in cut])
    span_of = dict(zip(cut, spans, strict=True))
    return {
        "model": name,
        "query_read": query_span,
        "runs": [_tell(run, body.passages, span_of) for run in runs],
        "kendall_tau": kendall_tau(*(run.scores.relevance for run in runs)) if len(runs) == 2 else None,
    }


def _tell(run: _Run, passages: Sequence[str], span_of: dict[int, tuple[int, int]]) -> dict[str, object]:
    scores, scored = run.scores, run.scores.scored
    reranker = scores.model.reranker
    return {
        "variant": str(reranker.precision),
        "provider": str(reranker.session.provider),
        "precision": str(reranker.precision),
        "results": [
            {
                "index": i,
                "score": float(scores.relevance[i]),
                "tokens": int(scored.token_counts[i]),
                "truncated": bool(scored.truncated[i]),
                "query_truncated": bool(scored.query_truncated[i]),
                "unknown_tokens": int(scored.unknown_tokens[i]),
                "read": span_of.get(i, (0, len(passages[i]))),
                "text": passages[i],
            }
            for i in scores.best_first()
        ],
        "stages_ms": _stages_ms(run),
        "total_ms": run.seconds * 1e3,
        "tokens": scores.tokens,
        "batches": scored.batches,
        "padding_waste": scored.padding_waste,
    }


def _stages_ms(run: _Run) -> dict[str, float]:
    """Where the time went; the stages add up to the total. ``other`` is handing over between threads, and the activation."""
    times = run.scores.scored.times
    assert times is not None  # noqa: S101 - both scorers tell
    told = {"tokenize": times.tokenize_s, "queue": times.queue_s, "compute": times.compute_s}
    other = max(0.0, run.seconds - sum(told.values()))
    return {stage: seconds * 1e3 for stage, seconds in {**told, "other": other}.items()}
