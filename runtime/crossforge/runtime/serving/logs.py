"""One JSON line for each request and each event. Texts that were sent and keys are never in it."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime

from crossforge.runtime.serving.errors import Kind, Problem
from crossforge.runtime.serving.facts import RequestFacts, begin
from crossforge.runtime.serving.metrics import Metrics
from crossforge.runtime.serving.replies import App, Message, Receive, Scope, Send, problem_response

LOG = logging.getLogger("crossforge.serving")
CLIENT_CLOSED = 499
"""Logged, as nginx does, for a client that went away; nobody receives it."""
_MOST_PATH_CHARS = 200


class JsonFormatter(logging.Formatter):
    """A record as one JSON line; ``extra={"fields": {...}}`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        # ASCII: of a path, U+2028 would end the line for some readers, and U+009B begin a terminal's commands.
        return json.dumps(document)


def configure_logging(level: int = logging.INFO) -> None:
    """Send the logs of the service and its server to stderr, a JSON line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, least in (("crossforge", level), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)


class RequestLog:
    """The outermost layer: gives each request its id, and logs and counts how it ended. No error gets past it.

    Args:
        app: Everything else.
        metrics: Counts requests.
    """

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = begin(scope)
        start_s = time.perf_counter()
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", facts.request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except Exception:
            LOG.exception(
                "a request failed in a way that nobody foresaw", extra={"fields": {"request_id": facts.request_id}}
            )
            if status:
                raise
            problem = Problem(kind=Kind.INTERNAL, message="the service failed; its log has the reason by the request's id")
            await problem_response(problem, scope)(scope, receive, tagged)
        finally:
            seconds = time.perf_counter() - start_s
            ended = status or CLIENT_CLOSED
            self._metrics.count_request(facts, status=ended, seconds=seconds)
            _log(scope, facts, status=ended, seconds=seconds)


def _log(scope: Scope, facts: RequestFacts, *, status: int, seconds: float) -> None:
    fields: dict[str, object] = {
        "request_id": facts.request_id,
        "method": scope["method"],
        "path": scope["path"][:_MOST_PATH_CHARS],
        "status": status,
        "duration_ms": round(seconds * 1e3, 2),
    }
    if facts.model is not None:
        fields |= {"model": facts.model, "dialect": facts.dialect, "passages": facts.passages, "tokens": facts.tokens}
        fields |= {"truncated": facts.truncated}
    if facts.times is not None:
        fields |= {f"{name.removesuffix('_s')}_ms": round(value * 1e3, 2) for name, value in vars(facts.times).items()}
    if facts.problem is not None:
        fields |= {"problem": facts.problem, "detail": facts.detail}
    level = logging.DEBUG if scope["path"] in ("/health", "/ready", "/metrics") and status < 400 else logging.INFO
    LOG.log(logging.WARNING if status >= 500 else level, "request", extra={"fields": fields})
