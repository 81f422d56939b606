"""Counts what is under way, and takes nothing more once the service is told to stop, or has too many connections."""

from __future__ import annotations

import asyncio

from crossforge.runtime.serving.replies import CROWDED, STARTING, STOPPING, App, Receive, Scope, Send, refuse
from crossforge.runtime.serving.service import Service

_ALWAYS = ("/health", "/ready", "/metrics")
MAY_ASK = "crossforge_may_ask"
"""In a request's ``state``, where the server bounds its connections: says whether this one's requests are answered."""
_CROWDED_S = 2.0
"""For what a refused client still sends. It holds one of few places meanwhile."""


class Gate:
    """Refuses requests while the service starts, stops or is crowded, save for those that ask how it is.

    Args:
        app: Gets the others.
        service: Says whether requests are taken.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS:
            await self._app(scope, receive, send)
            return
        service = self._service
        now, body_timeout_s = asyncio.get_running_loop().time(), service.settings.body_timeout_s
        if service.draining or not service.ready:
            problem = STOPPING if service.draining else STARTING
            await refuse(problem, scope, receive, send, until=now + body_timeout_s)
            return
        if not scope.get("state", {}).get(MAY_ASK, _always)():
            await refuse(CROWDED, scope, receive, send, until=now + min(_CROWDED_S, body_timeout_s))
            return
        service.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            service.in_flight -= 1


def _always() -> bool:
    return True
