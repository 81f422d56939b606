"""The application: routers in, layers around them, warm-up before and draining after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from crossforge.runtime.serving import health, openapi, playground
from crossforge.runtime.serving.auth import ApiKeys
from crossforge.runtime.serving.connections import Connections
from crossforge.runtime.serving.dialects import ROUTERS
from crossforge.runtime.serving.errors import Kind, Problem, ProblemError
from crossforge.runtime.serving.gate import Gate
from crossforge.runtime.serving.limits import BodyLimit
from crossforge.runtime.serving.logs import CLIENT_CLOSED, LOG, RequestLog
from crossforge.runtime.serving.metrics import Metrics
from crossforge.runtime.serving.models import ServedModel
from crossforge.runtime.serving.replies import problem_response
from crossforge.runtime.serving.service import ClientGoneError, Service
from crossforge.runtime.serving.settings import ServiceSettings

_CLOSE_S = 3.0
"""For a model's workers to end: by now nobody waits for their answers."""
_KIND_OF_STATUS = {404: Kind.NOT_FOUND, 405: Kind.METHOD}


def create_app(
    models: Mapping[str, ServedModel],
    settings: ServiceSettings | None = None,
    *,
    routers: Sequence[APIRouter] = (*ROUTERS, health.router),
) -> FastAPI:
    """Make the ASGI application. Its lifespan warms the models up, and closes them when their work is done.

    Args:
        models: Each by its name; the first answers requests that name none.
        settings: Keys and limits, and whether there is a playground.
        routers: What else it answers.
    """
    settings = settings or ServiceSettings()
    connections = Connections(settings.max_connections)
    metrics = Metrics(models, connections)
    service = Service(models, settings, metrics, connections)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        owned = list(dict.fromkeys(models.values()))
        for model in owned:
            await health.warm_up(model)
        service.ready = True
        LOG.info("ready", extra={"fields": {"models": {name: model.explain() for name, model in models.items()}}})
        try:
            yield
        finally:
            service.draining = True
            for model in owned:
                await asyncio.to_thread(model.close, timeout_s=_CLOSE_S)
            service.ready = False
            LOG.info("stopped")

    # No pages of documentation: FastAPI's load their scripts from another host.
    app = FastAPI(title="crossforge", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    for router in routers:
        app.include_router(router)
    if settings.playground:
        app.include_router(playground.make_router(service))
    app.add_exception_handler(ProblemError, _tell_problem)
    app.add_exception_handler(ClientGoneError, _tell_nobody)
    app.add_exception_handler(HTTPException, _tell_http)
    openapi.describe(app)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(ApiKeys, settings=settings)
    app.add_middleware(Gate, service=service)
    app.add_middleware(RequestLog, metrics=metrics)
    return app


async def _tell_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - registered for nothing else
    return problem_response(error.problem, request.scope)


async def _tell_nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    kind = _KIND_OF_STATUS.get(error.status_code, Kind.INTERNAL)
    what = "there is nothing at this path" if kind is Kind.NOT_FOUND else "this path takes another method"
    return problem_response(Problem(kind=kind, message=what, headers=dict(error.headers or {})), request.scope)
