"""A small HTTP service that answers as a reranker does, and fails as told."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from threading import Lock, Thread
from typing import Any


class HttpReranker(ThreadingHTTPServer):
    """Answers ``POST /rerank``, one request after another, each in the same time.

    Args:
        service_s: Seconds that a request takes.
        statuses: HTTP statuses of the answers in turn.
        answer: Sent instead of a ranking.
        closes: Answer, and then close the connection without having said so.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, *, service_s: float = 0.0, statuses: Sequence[int] = (200,), answer: bytes | None = None, closes: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.service_s = service_s
        self.answer = answer
        self.closes = closes
        self.busy = Lock()
        self.requests: list[dict[str, Any]] = []
        self.connections: set[tuple[str, int]] = set()
        self._statuses = cycle(statuses)
        self._sockets: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._sockets.append(connection)
        return connection, address

    def hang_up(self) -> None:
        """End what connections there are, idle ones too."""
        for connection in self._sockets:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    def next_status(self) -> int:
        return next(self._statuses)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpReranker

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.busy:
            server.requests.append({"path": self.path, **request})
            server.connections.add(self.client_address)
            time.sleep(server.service_s)
            status = server.next_status()
        scores = [{"index": i, "score": float(-i)} for i in range(len(request["texts"]))]
        if status == 200:
            body = json.dumps(scores[::-1]).encode() if server.answer is None else server.answer
        else:
            body = json.dumps({"error": "told to", "error_type": "Test"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = server.closes

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has there
        pass


@contextmanager
def http_reranker(**options: Any) -> Iterator[HttpReranker]:
    """A running one."""
    server = HttpReranker(**options)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        server.hang_up()
        thread.join()
