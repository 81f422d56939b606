"""Counts what is under way, and takes nothing more once the service is told to stop."""

from __future__ import annotations

import asyncio

from crossforge.runtime.serving.replies import STARTING, STOPPING, App, Receive, Scope, Send, refuse
from crossforge.runtime.serving.service import Service

_ALWAYS = ("/health", "/ready", "/metrics")


class Gate:
    """Refuses requests while the service starts or stops, save for those that ask how it is.

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
        if service.draining or not service.ready:
            until = asyncio.get_running_loop().time() + service.settings.body_timeout_s
            await refuse(STOPPING if service.draining else STARTING, scope, receive, send, until=until)
            return
        service.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            service.in_flight -= 1
