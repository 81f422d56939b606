"""What a client may send, how much and how slowly: kept before anything is parsed."""

from __future__ import annotations

import asyncio

from crossforge.runtime.serving.errors import Kind, Problem
from crossforge.runtime.serving.replies import App, Receive, Scope, Send, refuse
from crossforge.runtime.serving.settings import ServiceSettings


class BodyLimit:
    """Reads a request's body up to a limit, within a time, and hands it on whole.

    Bytes are counted as they come, whatever the headers announce; what is refused is never held.

    Args:
        app: Gets the request with its body read.
        settings: ``max_body_bytes`` and ``body_timeout_s``.
    """

    def __init__(self, app: App, settings: ServiceSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._settings.max_body_bytes
        until = asyncio.get_running_loop().time() + self._settings.body_timeout_s
        if _declared_bytes(scope) > most:
            await refuse(self._too_large(), scope, receive, send, until=until)
            return
        body = bytearray()
        try:
            async with asyncio.timeout_at(until):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > most or not message.get("more_body"):
                        break
        except TimeoutError:
            problem = Problem(kind=Kind.SLOW, message=f"the body did not come within {self._settings.body_timeout_s:g} s")
            await refuse(problem, scope, receive, send, until=until)
            return
        if len(body) > most:
            body.clear()
            await refuse(self._too_large(), scope, receive, send, until=until)
            return
        handed_on = False

        async def read() -> dict[str, object]:
            nonlocal handed_on
            if handed_on:
                return dict(await receive())
            handed_on = True
            content = bytes(body)
            body.clear()  # held until the request ends otherwise, beside the texts that it was parsed into
            return {"type": "http.request", "body": content, "more_body": False}

        await self._app(scope, read, send)

    def _too_large(self) -> Problem:
        most = self._settings.max_body_bytes
        return Problem(kind=Kind.TOO_LARGE, message=f"the body is too large; allowed: {most:,} bytes. Send fewer passages.")


def _declared_bytes(scope: Scope) -> int:
    value = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(value) if value.isdigit() and len(value) < 19 else 0
