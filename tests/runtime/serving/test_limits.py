"""What a client may send: how much, how slowly, and what becomes of the one that goes away."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import httpx
import pytest

from crossforge.profiles import EngineError
from crossforge.runtime import ScoredPairs
from crossforge.runtime.microbatch import MicroBatcher
from support.serving import WARM_UP_BATCHES, RunningService, fake_service, gated_service
from support.sessions import WAIT_S, GatedSession

BODY = {"query": "where is the city", "texts": ["berlin", "a passage"]}
HEADERS = "POST /rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def small() -> Iterator[RunningService]:
    with fake_service(
        max_body_bytes=2_000,
        max_passages=3,
        max_text_chars=100,
        header_timeout_s=0.3,
        body_timeout_s=0.3,
        max_queue_tokens=70,
    ) as service:
        yield service


def connect(service: RunningService) -> socket.socket:
    url = httpx.URL(service.url)
    assert url.port is not None
    return socket.create_connection((url.host, url.port), timeout=WAIT_S)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def hold(service: RunningService, session: GatedSession) -> Future[ScoredPairs]:
    """A request of 64 tokens that stands before the gate."""
    model = service.models["tiny"]
    future = model.scorer.schedule_encoding(lambda: model.reranker.tokenizer.encode("city", ["city " * 80]), count=1)
    session.wait_for_a_batch()
    return future


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does and tells nobody."""
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_a_body_that_says_it_is_too_large_is_refused_unread(small: RunningService) -> None:
    with connect(small) as connection:
        connection.sendall(f"{HEADERS}content-length: 100000000\r\nexpect: 100-continue\r\n\r\n".encode())
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_a_body_is_counted_as_it_comes(small: RunningService) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1_000

    answer = small.client.post("/rerank", content=chunks(), headers={"content-type": "application/json"})

    assert answer.status_code == 413
    assert answer.json() == {
        "error": "the body is too large; allowed: 2,000 bytes. Send fewer passages.",
        "error_type": "Validation",
    }


def test_a_client_that_sends_100_mb_gets_its_answer() -> None:
    with fake_service(max_body_bytes=2_000) as service:
        answer = service.client.post("/rerank", content=b" " * 100_000_000, headers={"content-type": "application/json"})

    assert answer.status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(small: RunningService) -> None:
    with connect(small) as connection:
        connection.sendall(f"{HEADERS}content-length: 100\r\n\r\n{{".encode())
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not come within 0.3 s" in answer


@pytest.mark.parametrize("before", [b"", b"GET /ready HTTP/1.1\r\nhost: a\r\n\r\n"], ids=["first", "second"])
def test_headers_that_drip_in_are_cut_off(small: RunningService, before: bytes) -> None:
    """On a connection's first request, and on one that is kept alive: uvicorn itself times neither."""
    with connect(small) as connection:
        if before:
            connection.sendall(before)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        give_up = time.monotonic() + WAIT_S
        closed = False
        while not closed and time.monotonic() < give_up:
            try:
                connection.sendall(b"G")
                connection.settimeout(0.02)
                closed = connection.recv(1) == b""
            except TimeoutError:
                pass
            except OSError:
                closed = True
    assert closed


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"] * 4, "too many passages; got 4; allowed: up to 3 a request"),
        (["a" * 101], "a text is too long; got 101 characters; allowed: up to 100. Split it into passages."),
        (["city " * 19 + name for name in ("a", "b", "c")], "the request is larger than the whole queue"),
    ],
)
def test_more_than_a_limit_allows_is_too_large(small: RunningService, texts: list[str], message: str) -> None:
    answer = small.post("/rerank", {"query": "city", "texts": texts, "truncate": True})

    assert answer.status_code == 413
    assert answer.json()["error"].startswith(message)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    with gated_service(max_queue_tokens=100) as (service, session):
        held = hold(service, session)
        tei = service.post("/rerank", {"query": "city", "texts": ["city " * 50]})
        cohere = service.post("/v2/rerank", {"model": "tiny", "query": "city", "documents": ["city " * 50]})
        metrics = service.get("/metrics").text
        session.let_through()
        held.result(WAIT_S)
        well = service.post("/rerank", {"query": "city", "texts": ["city " * 50]})

    for answer in (tei, cohere):
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
    assert tei.json()["error_type"] == "Overloaded"
    assert cohere.json()["message"].startswith("the queue is full")
    assert 'crossforge_rejected_total{reason="overloaded"} 2.0' in metrics
    assert 'crossforge_queue_tokens{model="tiny"} 64.0' in metrics
    assert well.status_code == 200


def test_what_takes_longer_than_the_timeout_is_given_up() -> None:
    with gated_service(timeout_s=0.2) as (service, session):
        answer = service.post("/rerank", BODY)
        session.let_through()

    assert answer.status_code == 504
    assert answer.json()["error_type"] == "Overloaded"


def test_what_a_client_leaves_behind_is_not_computed() -> None:
    with gated_service() as (service, session):
        held = hold(service, session)
        batcher = service.models["tiny"].scorer
        assert isinstance(batcher, MicroBatcher)
        with connect(service) as connection:
            body = b'{"query": "city", "texts": ["berlin"]}'
            connection.sendall(f"{HEADERS}content-length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: batcher.stats().pending_requests == 2)
        wait_until(lambda: batcher.stats().cancelled == 1)
        session.let_through()
        held.result(WAIT_S)

    assert len(session.batches) == WARM_UP_BATCHES + 1


def test_an_engines_failure_is_told_in_each_dialects_way() -> None:
    with gated_service() as (service, session):
        session.failures = [EngineError("the engine broke") for _ in range(3)]
        session.let_through()
        tei = service.post("/rerank", BODY)
        cohere = service.post("/v2/rerank", {"model": "tiny", "query": "city", "documents": ["berlin"]})
        vllm = service.post("/score", {"text_1": "city", "text_2": "berlin"})
        well = service.post("/rerank", BODY)

    assert (tei.status_code, tei.json()) == (424, {"error": "the engine broke", "error_type": "Backend"})
    assert (cohere.status_code, cohere.json()["message"]) == (500, "the engine broke")
    assert vllm.json()["error"] == {
        "message": "the engine broke",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
    assert well.status_code == 200
