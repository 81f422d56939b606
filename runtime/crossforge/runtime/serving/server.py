"""uvicorn, with what a service on an open port also needs: deadlines for headers, and a stop that loses no request."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from crossforge.profiles import InputError
from crossforge.runtime.serving.connections import Connections
from crossforge.runtime.serving.gate import MAY_ASK
from crossforge.runtime.serving.service import Service
from crossforge.runtime.serving.settings import ServiceSettings

_MOST_HEADER_BYTES = 64 * 1024
_LAST_S = 3
"""For connections to close, once requests have ended or were given up."""


def make_server(app: FastAPI, settings: ServiceSettings) -> Server:
    """A server for the application, not started."""
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_guarded(settings.header_timeout_s, settings.answer_timeout_s, service.connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=_LAST_S,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    return Server(config, service)


def bind(settings: ServiceSettings) -> socket.socket:
    """Listen at the service's address; port 0 takes a free one.

    Raises:
        InputError: It cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        # Of a socket that is not said to be TCP, asyncio does not turn off Nagle: 40 ms for each answer.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(2048)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise InputError(f"cannot listen there ({error})", got=f"{settings.host}:{settings.port}") from error
    return listening


def url_of(listening: socket.socket, settings: ServiceSettings) -> str:
    """The address at which the service answers."""
    host, port = listening.getsockname()[:2]
    return f"{'https' if settings.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """Drains before it stops: on SIGTERM or SIGINT, requests under way are answered and new ones get 503.

    It stops when none is under way or ``drain_timeout_s`` is over, and the process ends with status 0. A second signal
    stops it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain; at the second call, stop."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to stop."""
        if self._service.draining and not self.should_exit:
            now = asyncio.get_running_loop().time()
            if self._drain_until is None:
                self._drain_until = now + self._service.settings.drain_timeout_s
            self.should_exit = not self._service.in_flight or now >= self._drain_until
        return await super().on_tick(counter)


def _guarded(header_timeout_s: float, answer_timeout_s: float, connections: Connections) -> type[H11Protocol]:
    """HTTP/1.1 that bounds its connections, and closes one whose headers do not come, or whose answer is not taken, in time.

    uvicorn times a connection only between requests, and any byte stops that clock: a client that sends a byte now and
    then would hold a connection for ever. So would one that reads nothing, and its answer with it.
    """

    class GuardedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _answer_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.app_state = {**self.app_state, MAY_ASK: partial(connections.may_ask, transport)}
            if connections.enter(transport):
                self._arm()
            else:
                transport.close()

        def data_received(self, data: bytes) -> None:
            if self._is_between_requests() and self._header_timer is None:
                self._arm()
            super().data_received(data)
            if not self._is_between_requests():
                self._disarm()
                connections.note(self.transport, idle=False)

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            self._stop_answer_timer()
            connections.leave(self.transport)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._answer_timer = self.loop.call_later(answer_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop_answer_timer()
            super().resume_writing()

        def on_response_complete(self) -> None:
            self._disarm()
            super().on_response_complete()
            connections.note(self.transport, idle=self._is_between_requests())

        def _is_between_requests(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _arm(self) -> None:
            self._header_timer = self.loop.call_later(header_timeout_s, self._give_up)

        def _disarm(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _stop_answer_timer(self) -> None:
            if self._answer_timer is not None:
                self._answer_timer.cancel()
                self._answer_timer = None

        def _give_up(self) -> None:
            self._header_timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return GuardedProtocol
