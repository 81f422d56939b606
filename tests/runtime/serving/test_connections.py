"""Open connections are bounded: those without a request give way, and the others are refused in their dialect's words."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from crossforge.runtime.serving import connections as bound
from crossforge.runtime.serving.connections import Connections
from support.serving import RunningService, gated_service
from support.sessions import WAIT_S

BODY = {"query": "where is the city", "texts": ["berlin"]}


class FakeConnection:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.001)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_connection_that_waits_longest_for_a_request_gives_way() -> None:
    clock = Clock()
    connections = Connections(3, clock=clock)
    busy, answered, fresh, new = (FakeConnection() for _ in range(4))
    for connection in (busy, answered, fresh):
        clock.now += 1
        assert connections.enter(connection)
    connections.note(busy, idle=False)
    connections.note(answered, idle=False)
    clock.now += 10
    connections.note(answered, idle=True)
    clock.now += 1
    connections.note(fresh, idle=True)  # a part of its headers has come: no new wait

    assert connections.enter(new)
    assert [connection.closed for connection in (busy, answered, fresh, new)] == [False, False, True, False]
    assert len(connections) == 3
    assert connections.closed == {"idle": 1, "crowded": 0}


def test_a_connection_that_has_just_come_does_not_give_way() -> None:
    """Its request may be in the socket's buffer already."""
    clock = Clock()
    connections = Connections(1, clock=clock)
    first, second = FakeConnection(), FakeConnection()
    connections.enter(first)
    connections.enter(second)

    assert not first.closed
    assert (connections.may_ask(first), connections.may_ask(second)) == (True, False)
    clock.now += bound.MIN_IDLE_S
    assert connections.may_ask(second)
    assert first.closed


def test_who_stands_gets_the_seat_of_one_that_leaves() -> None:
    connections = Connections(1)
    seated, standing = FakeConnection(), FakeConnection()
    connections.enter(seated)
    connections.enter(standing)
    connections.leave(seated)

    assert connections.may_ask(standing)


def test_a_connection_that_is_gone_takes_no_seat() -> None:
    """Its request may still be on the way through the layers."""
    connections = Connections(1)
    gone = FakeConnection()
    connections.enter(gone)
    connections.leave(gone)
    connections.may_ask(gone)
    connections.note(gone, idle=True)

    assert len(connections) == 0
    connections.enter(FakeConnection())
    assert connections.closed["idle"] == 0


@pytest.fixture
def idle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "MIN_IDLE_S", 0.0)


@contextmanager
def crowded(seats: int = 2) -> Iterator[tuple[RunningService, httpx.Client]]:
    """A service of whose seats each has a request, and a client that comes too late."""
    with (
        gated_service(max_connections=seats) as (service, session),
        ThreadPoolExecutor(seats) as callers,
        ExitStack() as stack,
    ):
        clients = [service.client, *(stack.enter_context(httpx.Client(base_url=service.url)) for _ in range(seats - 1))]
        taken = [callers.submit(client.post, "/rerank", json=BODY, timeout=WAIT_S) for client in clients]
        state = service.server.config.app.state.service  # type: ignore[union-attr]
        wait_until(lambda: state.in_flight == seats)
        with httpx.Client(base_url=service.url, timeout=WAIT_S) as late:
            yield service, late
            session.let_through()
            assert [future.result(WAIT_S).status_code for future in taken] == [200] * seats
            assert late.post("/rerank", json=BODY).status_code == 200


@pytest.mark.usefixtures("idle_at_once")
def test_one_connection_too_many_is_refused_in_its_dialects_words_and_still_told_how_the_service_is() -> None:
    with crowded() as (_, late):
        tei = late.post("/rerank", json={**BODY, "texts": ["city " * 19_000] * 20})
        cohere = late.post("/v2/rerank", json={"model": "tiny", "query": "city", "documents": ["berlin"]})
        health = late.get("/health")
        wait_until(lambda: 'crossforge_rejected_total{reason="crowded"} 2.0' in late.get("/metrics").text)

    assert (tei.status_code, cohere.status_code, health.status_code) == (503, 503, 200)
    assert tei.json() == {"error": "too many connections are open; try again soon", "error_type": "Overloaded"}
    assert cohere.json()["message"] == "too many connections are open; try again soon"
    assert (tei.headers["retry-after"], tei.headers["connection"]) == ("1", "close")


@pytest.mark.usefixtures("idle_at_once")
def test_beyond_those_that_are_refused_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "STANDING", 1)
    with crowded() as (service, late):
        assert late.get("/health").status_code == 200
        url = httpx.URL(service.url)
        with socket.create_connection((url.host, url.port), timeout=WAIT_S) as connection:
            closed = connection.recv(1) == b""
        metrics = late.get("/metrics").text

    assert closed
    assert 'crossforge_connections_closed_total{reason="crowded"} 1.0' in metrics


@pytest.mark.usefixtures("idle_at_once")
def test_a_kept_connection_is_closed_for_a_new_one() -> None:
    with gated_service(max_connections=1) as (service, session), httpx.Client(base_url=service.url) as other:
        session.let_through()
        for client in (service.client, other, service.client):
            assert client.post("/rerank", json=BODY, timeout=WAIT_S).status_code == 200
        metrics = other.get("/metrics").text

    assert 'crossforge_connections_closed_total{reason="idle"} 3.0' in metrics
    assert "crossforge_connections 1.0" in metrics
