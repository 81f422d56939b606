"""Deadlines of requests, and a queue that is full."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from crossforge.profiles import (
    DeadlineError,
    InputError,
    OverloadedError,
)
from crossforge.runtime.microbatch import MicroBatchConfig, MicroBatcher
from crossforge.runtime.microbatch.ledger import Ledger
from crossforge.runtime.microbatch.request import Request
from crossforge.runtime.scored import ScoredPairs
from support.batchers import QUERY, TOKENS, ManualClock, busy, computed_pairs
from support.builders import fake_reranker
from support.families import different_passages
from support.sessions import WAIT_S, GatedSession


def test_what_is_past_its_deadline_is_not_computed() -> None:
    session, clock = GatedSession(), ManualClock()
    with fake_reranker(session) as reranker, MicroBatcher(reranker, clock=clock) as batcher:
        running = busy(batcher, session)
        late = batcher.submit(QUERY, different_passages(5), deadline_s=1.0)
        in_time = batcher.submit(QUERY, ["berlin"], deadline_s=3.0)
        clock.now_s += 2.0
        session.let_through()
        with pytest.raises(DeadlineError, match="the deadline passed before the request was computed"):
            late.result(WAIT_S)
        running.result(WAIT_S)
        in_time.result(WAIT_S)
        stats = batcher.stats()

    assert computed_pairs(session) == 2
    assert (stats.expired, stats.answered, stats.pending_tokens) == (1, 2, 0)


def test_a_deadline_that_passes_between_two_batches_drops_the_second() -> None:
    session, clock = GatedSession(), ManualClock()
    with fake_reranker(session, budget_tokens=2 * TOKENS) as reranker, MicroBatcher(reranker, clock=clock) as batcher:
        request = batcher.submit(QUERY, different_passages(8), deadline_s=1.0)
        session.wait_for_a_batch()
        clock.now_s += 2.0
        session.let_through()
        with pytest.raises(DeadlineError):
            request.result(WAIT_S)

    assert computed_pairs(session) == 2


def test_a_deadline_that_passes_while_the_last_batch_runs_does_not_throw_its_answer_away() -> None:
    session, clock = GatedSession(), ManualClock()
    with fake_reranker(session) as reranker, MicroBatcher(reranker, clock=clock) as batcher:
        request = batcher.submit(QUERY, ["berlin"], deadline_s=1.0)
        session.wait_for_a_batch()
        clock.now_s += 2.0
        session.let_through()
        assert len(request.result(WAIT_S).logits) == 1


def test_each_request_ends_at_its_own_deadline() -> None:
    clock = ManualClock()
    ledger = Ledger(max_queue_tokens=1_000, slice_tokens=100, workers=1, clock=clock)
    with fake_reranker() as reranker:
        pairs = reranker.tokenizer.encode(QUERY, ["berlin"])
    futures = {}
    for deadline_s in (3.0, 1.0, None, 2.0):
        futures[deadline_s] = Future[ScoredPairs]()
        ledger.reserve(0)
        ledger.admit(Request(asked=pairs, labels=1, future=futures[deadline_s], expires_at=deadline_s), 0)
    ended = []
    for now_s in (0.5, 1.0, 1.5, 2.5, 3.5):
        clock.now_s = now_s
        ledger.expire()
        ended.append(sum(future.done() for future in futures.values()))

    assert ended == [0, 1, 1, 2, 3]
    assert not futures[None].done()


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan")])
def test_a_deadline_that_is_no_time_from_now_is_refused(deadline_s: float) -> None:
    with fake_reranker() as reranker, MicroBatcher(reranker) as batcher:
        with pytest.raises(InputError, match="deadline_s is not positive"):
            batcher.submit(QUERY, ["berlin"], deadline_s=deadline_s)
        assert batcher.stats().pending_tokens == 0


def test_a_full_queue_refuses_at_once_and_has_room_again_later() -> None:
    session = GatedSession()
    config = MicroBatchConfig(max_queue_tokens=4 * TOKENS)
    with fake_reranker(session) as reranker, MicroBatcher(reranker, config) as batcher:
        running = busy(batcher, session)
        waiting = batcher.submit(QUERY, different_passages(2))
        with pytest.raises(OverloadedError, match=r"full; got 16 tokens beside 24 that wait; allowed: 32 in all") as unknown:
            batcher.submit(QUERY, different_passages(2))
        fits = batcher.submit(QUERY, ["berlin"])
        with pytest.raises(OverloadedError):
            batcher.schedule(QUERY, ["berlin"]).result(WAIT_S)
        session.let_through(1)
        running.result(WAIT_S)
        with pytest.raises(OverloadedError, match=r"Try again in about \d+\.\d s") as known:
            batcher.submit(QUERY, different_passages(2))
        session.let_through()
        waiting.result(WAIT_S)
        fits.result(WAIT_S)
        assert len(batcher.submit(QUERY, different_passages(4)).result(WAIT_S).logits) == 4
        assert batcher.stats().rejected == 3

    assert unknown.value.wait_s is None
    assert known.value.wait_s is not None
    assert known.value.wait_s > 0


def test_a_full_queue_refuses_before_it_tokenizes(monkeypatch: pytest.MonkeyPatch) -> None:
    session = GatedSession()
    with (
        fake_reranker(session) as reranker,
        MicroBatcher(reranker, MicroBatchConfig(max_queue_tokens=TOKENS)) as batcher,
    ):
        running = busy(batcher, session)
        monkeypatch.setattr(reranker.tokenizer, "encode", lambda *_: pytest.fail("tokenized"))
        with pytest.raises(OverloadedError):
            batcher.submit(QUERY, ["berlin"])
        session.let_through()
        running.result(WAIT_S)


@pytest.mark.parametrize("count", [5, 50])
def test_a_request_larger_than_the_queue_would_never_have_room(count: int) -> None:
    with (
        fake_reranker() as reranker,
        MicroBatcher(reranker, MicroBatchConfig(max_queue_tokens=4 * TOKENS)) as batcher,
    ):
        with pytest.raises(InputError, match=r"larger than the whole queue; .* allowed: up to 32\. Send fewer"):
            batcher.submit(QUERY, different_passages(count, words=1 + count // 40))
        assert batcher.stats().pending_tokens == 0
