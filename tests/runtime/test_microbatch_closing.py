"""The end of a micro-batcher."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

import pytest

from crossforge.profiles import (
    EngineError,
)
from crossforge.runtime import Reranker
from crossforge.runtime.microbatch import MicroBatcher
from support.batchers import QUERY, TOKENS, busy, computed_pairs
from support.builders import fake_reranker
from support.families import different_passages
from support.sessions import WAIT_S, GatedSession


def close_in_background(batcher: MicroBatcher, **options: Any) -> Callable[[], None]:
    closing = Thread(target=batcher.close, kwargs=options)
    closing.start()

    def join() -> None:
        closing.join(WAIT_S)
        assert not closing.is_alive()

    return join


def refuses(batcher: MicroBatcher) -> bool:
    """Whether requests are refused for good; the queue must be too full for this one."""
    try:
        batcher.submit(QUERY, ["berlin"]).cancel()
    except EngineError:
        return True
    return False


def test_closing_answers_what_was_taken_and_takes_no_more() -> None:
    session = GatedSession()
    with fake_reranker(session, budget_tokens=2 * TOKENS) as reranker:
        batcher = MicroBatcher(reranker)
        futures = [busy(batcher, session), *(batcher.submit(QUERY, different_passages(5)) for _ in range(3))]
        join = close_in_background(batcher)
        while not refuses(batcher):
            pass
        with pytest.raises(EngineError, match="the micro-batcher is closed"):
            batcher.schedule(QUERY, ["berlin"]).result(WAIT_S)
        session.let_through()
        join()
        batcher.close()

        assert [len(future.result(0).logits) for future in futures] == [1, 5, 5, 5]


def test_closing_without_draining_fails_what_waits() -> None:
    session = GatedSession()
    with fake_reranker(session) as reranker:
        batcher = MicroBatcher(reranker)
        running, waiting = busy(batcher, session), batcher.submit(QUERY, ["berlin"])
        join = close_in_background(batcher, drain=False)
        for future in (running, waiting):
            with pytest.raises(EngineError, match="the micro-batcher is closed"):
                future.result(WAIT_S)
        session.let_through()
        join()

    assert computed_pairs(session) == 1


def test_closing_gives_up_when_its_time_is_over() -> None:
    session = GatedSession()
    with fake_reranker(session) as reranker:
        batcher = MicroBatcher(reranker)
        stuck = busy(batcher, session)
        batcher.close(timeout_s=0.01)
        with pytest.raises(EngineError, match="the micro-batcher is closed"):
            stuck.result(0)
        session.let_through()
        batcher.close()


def test_leaving_with_an_error_does_not_wait_for_the_rest() -> None:
    session = GatedSession()

    def leave(reranker: Reranker, futures: list[Future[Any]]) -> None:
        with MicroBatcher(reranker) as batcher:
            futures += [busy(batcher, session), batcher.submit(QUERY, ["berlin"])]
            session.let_through(1)
            futures[0].result(WAIT_S)
            session.wait_for_a_batch()
            session.let_through()
            raise ValueError("a mistake")

    futures: list[Future[Any]] = []
    with fake_reranker(session) as reranker, pytest.raises(ValueError, match="a mistake"):
        leave(reranker, futures)
    assert all(future.done() for future in futures)
