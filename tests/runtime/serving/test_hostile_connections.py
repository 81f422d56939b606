"""Clients that send too much, too slowly, nonsense, or nothing more: none holds a worker, memory or the service."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from crossforge.runtime.serving.errors import Dialect
from crossforge.runtime.serving.facts import RequestFacts, begin
from support.serving import RunningService, fake_service, gated_service
from support.sessions import WAIT_S

BODY = b'{"query": "city", "texts": ["berlin"]}'
HEADERS = b"POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
REQUEST = HEADERS + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
HUNDRED_MB = 100_000_000
MB = b" " * 1_000_000


@pytest.fixture(scope="module")
def served() -> Iterator[RunningService]:
    with fake_service(body_timeout_s=0.3, header_timeout_s=0.3) as service:
        yield service
        assert service.client.post("/rerank", content=BODY, headers={"content-type": "application/json"}).is_success
        assert service.get("/health").status_code == 200


def connect(service: RunningService) -> socket.socket:
    url = httpx.URL(service.url)
    assert url.port is not None
    return socket.create_connection((url.host, url.port), timeout=WAIT_S)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection, in whatever way."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read the memory from")
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_100_mb_are_refused_and_not_held(announced: bool) -> None:
    """Client and server share this process: neither may grow by more than a fraction of what goes over the wire."""
    most = 0

    def chunks() -> Iterator[bytes]:
        nonlocal most
        for _ in range(HUNDRED_MB // len(MB)):
            yield MB
            most = max(most, resident_bytes())

    with fake_service() as service:
        headers = {"content-type": "application/json"} | ({"content-length": str(HUNDRED_MB)} if announced else {})
        before = resident_bytes()
        answer = service.client.post("/rerank", content=chunks(), headers=headers)

    assert answer.status_code == 413
    assert most - before < HUNDRED_MB // 3


def test_a_length_that_is_not_sent_is_not_waited_for(served: RunningService) -> None:
    """The refusal of what is too large comes before any of it."""
    with connect(served) as connection:
        connection.sendall(HEADERS + b"content-length: 100000000\r\n\r\n")
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: -1\r\n",
        b"content-length: 1e3\r\n",
        b"content-length: " + b"9" * 30 + b"\r\n",
        b"content-length: 1\r\ncontent-length: 2\r\n",
        b"transfer-encoding: gzip\r\n",
        b"transfer-encoding: chunked, chunked\r\n",
        b"bad header\r\n",
        b"x: a\x00b\r\n",
        b"x : y\r\n",
        b"x-long: " + b"a" * 100_000 + b"\r\n",
        b"".join(b"x-%d: a\r\n" % i for i in range(10_000)),
    ],
    ids=lambda headers: headers[:30].decode("latin-1").strip().replace("\x00", "NUL"),
)
def test_headers_that_are_wrong_are_refused(served: RunningService, headers: bytes) -> None:
    with connect(served) as connection:
        try:
            connection.sendall(HEADERS + headers + b"\r\n")
            answer = connection.recv(65_536)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""

    assert answer[9:12] in (b"", b"400", b"413", b"501")


@pytest.mark.parametrize(
    "line", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 1_000, b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"]
)
def test_what_is_not_http_is_refused(served: RunningService, line: bytes) -> None:
    with connect(served) as connection:
        connection.sendall(line)
        answer = connection.recv(65_536)

    assert answer[9:12] in (b"", b"400", b"404")


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"ffffffffffffffffffff\r\n", b"5\r\nabc"])
def test_chunks_that_are_wrong_end_the_request(served: RunningService, chunk: bytes) -> None:
    with connect(served) as connection:
        connection.sendall(HEADERS + b"transfer-encoding: chunked\r\n\r\n" + chunk)
        answer = read_all(connection)

    assert answer[9:12] in (b"400", b"408", b"413")


def test_nonsense_after_a_refusal_is_nobodys_fault(served: RunningService) -> None:
    with connect(served) as connection:
        connection.sendall(HEADERS + b"transfer-encoding: chunked\r\n\r\n989680\r\n")
        for _ in range(10):
            connection.sendall(MB)
        connection.sendall(b"\r\nnonsense\r\n")
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_drips_in_has_no_longer_than_one_that_does_not(served: RunningService) -> None:
    give_up = time.monotonic() + WAIT_S
    with connect(served) as connection:
        connection.sendall(HEADERS + b"content-length: 100000\r\n\r\n")
        connection.settimeout(0.02)
        answer = b""
        while not answer and time.monotonic() < give_up:
            connection.sendall(b" ")
            try:
                answer = connection.recv(65_536)
            except TimeoutError:
                continue

    assert answer.startswith(b"HTTP/1.1 408 ")


def test_requests_in_a_row_on_one_connection_are_all_answered(served: RunningService) -> None:
    with connect(served) as connection:
        connection.sendall(REQUEST * 20 + REQUEST.replace(b"host: a", b"host: a\r\nconnection: close"))
        answer = read_all(connection)

    assert answer.count(b"HTTP/1.1 200 ") == 21


@pytest.mark.parametrize(
    "sent", [b"", b"POST", HEADERS, REQUEST[:-5], REQUEST], ids=["nothing", "word", "headers", "body", "all"]
)
def test_connections_that_are_dropped_leave_nothing_behind(sent: bytes) -> None:
    with gated_service() as (service, session):
        for _ in range(50):
            with connect(service) as connection:
                connection.sendall(sent)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
        with connect(service) as last:  # connections are taken in the order of their coming
            last.sendall(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            read_all(last)
        model = service.models["tiny"]
        wait_until(lambda: len(service.server.server_state.connections) <= 1)  # the test's own client
        wait_until(lambda: model.scorer.estimate_wait_s() == 0)
        session.let_through()
        answer = service.client.post("/rerank", content=BODY, headers={"content-type": "application/json"})
        metrics = service.get("/metrics").text

    assert answer.status_code == 200
    assert 'crossforge_queue_requests{model="tiny"} 0.0' in metrics
    assert 'crossforge_worker_restarts_total{model="tiny"} 0.0' in metrics
    # A worker holds what it has begun; whatever waited behind is not computed.
    assert len(session.batches) <= 2 + model.reranker.workers + 1


def test_a_client_that_does_not_read_its_answer_is_dropped() -> None:
    with fake_service(answer_timeout_s=0.3, max_body_bytes=8_000_000) as service, connect(service) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        body = json.dumps({"query": "city", "texts": [" " * 90_000] * 80, "return_text": True}).encode()
        connection.sendall(HEADERS + b"content-length: %d\r\n\r\n" % len(body) + body)
        begun = connection.recv(100)
        wait_until(lambda: len(service.server.server_state.connections) == 1)  # the test's own client

    assert begun.startswith(b"HTTP/1.1 200 ")


def test_small_answers_are_sent_at_once() -> None:
    """With Nagle's algorithm, the body of each answer waits for the client to acknowledge its headers: 40 ms."""
    with fake_service() as service:
        service.get("/ready")
        (connection,) = service.server.server_state.connections
        sending = connection.transport.get_extra_info("socket")

        assert sending.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_paths_are_logged_in_one_line_and_short(served: RunningService, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "crossforge.serving"):
        for path in ("/%0d%0a%7B%22forged%22:1%7D", "/%00", "/%ff", "/" + "a" * 30_000):
            assert served.get(path).status_code == 404
    paths = [record.fields["path"] for record in caplog.records]  # type: ignore[attr-defined]

    assert paths[0] == '/\r\n{"forged":1}'
    assert "\n" not in json.dumps(paths)
    assert max(map(len, paths)) <= 300


@pytest.mark.parametrize("sent", ["a b", "a\r\nforged", '"}{', "", "a" * 129, "ä", "\u2028", "\x1b[31m"])
def test_a_request_id_that_could_forge_a_log_is_replaced(sent: str) -> None:
    facts: RequestFacts = begin({"headers": [(b"x-request-id", sent.encode())], "path": "/rerank"})

    assert facts.request_id != sent
    assert len(facts.request_id) == 32
    assert facts.dialect is Dialect.TEI
