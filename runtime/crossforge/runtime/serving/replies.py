"""Problems as responses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse

from crossforge.runtime.serving.errors import Kind, Problem
from crossforge.runtime.serving.facts import facts_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def problem_response(problem: Problem, scope: Mapping[str, Any]) -> JSONResponse:
    """Tell a problem as the request's dialect does, and note it."""
    facts = facts_of(scope)
    facts.problem, facts.detail = problem.kind, problem.message
    return JSONResponse(
        problem.body(facts.dialect, facts.request_id),
        status_code=problem.status(facts.dialect),
        headers=problem.all_headers(),
    )


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send, *, until: float) -> None:
    """Answer before the body was read, and then read what the client still sends, so that it gets to see the answer.

    A connection that is closed with unread data is reset, and the client's system throws the answer away with it. What
    is read here is dropped at once.

    Args:
        problem: What to answer.
        scope: Of the request; and so are ``receive`` and ``send``.
        receive: Gives the rest of the body.
        send: Takes the answer.
        until: When to stop reading, by the loop's clock.
    """
    response = problem_response(problem, scope)
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


STARTING = Problem(kind=Kind.UNAVAILABLE, message="the service is starting", retry_after_s=1)
CROWDED = Problem(kind=Kind.CROWDED, message="too many connections are open; try again soon", retry_after_s=1)
STOPPING = Problem(kind=Kind.UNAVAILABLE, message="the service is stopping", retry_after_s=1)
