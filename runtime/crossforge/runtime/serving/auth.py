"""API keys: compared in constant time, and never logged."""

from __future__ import annotations

import asyncio
import hashlib
import hmac

from crossforge.runtime.serving.errors import Kind, Problem
from crossforge.runtime.serving.replies import App, Receive, Scope, Send, refuse
from crossforge.runtime.serving.settings import ServiceSettings

OPEN_PATHS = ("/health", "/ready", "/", "/playground/page.css", "/playground/page.js")
"""Answered without a key: what probes ask, and the playground's page, which holds no data."""


class ApiKeys:
    """Refuses requests without a key, if the service has any. A key comes as ``Authorization: Bearer`` or ``X-Api-Key``.

    Args:
        app: Gets the requests that may pass.
        settings: ``api_keys``.
    """

    def __init__(self, app: App, settings: ServiceSettings) -> None:
        self._app = app
        self._settings = settings
        self._digests = [_digest(key.encode()) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not self._digests or scope["path"] in OPEN_PATHS or self._is_known(_sent_key(scope)):
            await self._app(scope, receive, send)
            return
        problem = Problem(
            kind=Kind.UNAUTHORIZED,
            message="no valid API key; send one as Authorization: Bearer KEY or as X-Api-Key",
            headers={"www-authenticate": "Bearer"},
        )
        until = asyncio.get_running_loop().time() + self._settings.body_timeout_s
        await refuse(problem, scope, receive, send, until=until)

    def _is_known(self, key: bytes) -> bool:
        # Digests have one length and every one is compared: the time tells neither a key's length nor which came near.
        sent = _digest(key)
        return sum(hmac.compare_digest(sent, digest) for digest in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _sent_key(scope: Scope) -> bytes:
    headers = dict(scope["headers"])
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return bytes(token.strip()) if scheme.lower() == b"bearer" else bytes(headers.get(b"x-api-key", b""))
