"""What goes wrong around a micro-batcher, caused."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from random import Random
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossforge.profiles import (
    CrossforgeError,
    DeadlineError,
    EngineError,
    InputError,
    NonFiniteLogitsError,
    OverloadedError,
)
from crossforge.runtime import EncodedPairs, FakeSession, Reranker
from crossforge.runtime.microbatch import MicroBatchConfig, MicroBatcher
from support.builders import fake_reranker
from support.families import different_passages
from support.sessions import WAIT_S, GatedSession

QUERY = "where is the city"
TOKENS = 8
"""Of the query with "berlin"."""


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def busy(batcher: MicroBatcher, session: GatedSession) -> Future[Any]:
    """A request that the only worker is computing."""
    future = batcher.submit(QUERY, ["berlin"])
    session.wait_for_a_batch()
    return future


def computed_pairs(session: FakeSession) -> int:
    return sum(len(batch["input_ids"]) for batch in session.batches)


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


def test_an_engine_that_fails_fails_the_requests_of_its_batch_alone() -> None:
    session = GatedSession()
    session.failures = [EngineError("out of order")]
    with fake_reranker(session) as reranker, MicroBatcher(reranker) as batcher:
        broken = busy(batcher, session)
        waiting = batcher.submit(QUERY, ["berlin"])
        session.let_through()
        with pytest.raises(EngineError, match="out of order"):
            broken.result(WAIT_S)
        assert len(waiting.result(WAIT_S).logits) == 1
        stats = batcher.stats()

    assert (stats.failed, stats.answered, stats.worker_restarts, stats.pending_tokens) == (1, 1, 0, 0)


def test_the_rest_of_a_request_that_failed_is_not_computed() -> None:
    session = GatedSession()
    session.failures = [EngineError("out of order")]
    with fake_reranker(session, budget_tokens=2 * TOKENS) as reranker, MicroBatcher(reranker) as batcher:
        request = batcher.submit(QUERY, different_passages(40))
        session.let_through()
        with pytest.raises(EngineError, match="out of order"):
            request.result(WAIT_S)
        batcher.submit(QUERY, ["city"]).result(WAIT_S)

    assert computed_pairs(session) == 1


def test_a_logit_that_is_not_finite_fails_its_request_and_not_its_neighbours() -> None:
    session = FakeSession(lambda ids: float("nan") if len(ids) == TOKENS else 0.0)
    with fake_reranker(session) as reranker, MicroBatcher(reranker) as batcher:
        bad, good = batcher.submit(QUERY, ["city", "berlin"]), batcher.submit(QUERY, [""])
        with pytest.raises(NonFiniteLogitsError, match="for 2 of 2 pairs"):
            bad.result(WAIT_S)
        assert good.result(WAIT_S).logits.tolist() == [[0.0]]


@pytest.mark.parametrize("death", [RuntimeError("a bug"), SystemExit(1), MemoryError("no more")])
def test_a_worker_that_dies_fails_what_it_held_and_starts_again(
    death: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    session = GatedSession()
    session.failures = [death]
    with fake_reranker(session) as reranker, MicroBatcher(reranker) as batcher, caplog.at_level(logging.ERROR):
        held = busy(batcher, session)
        waiting = batcher.submit(QUERY, ["berlin"])
        session.let_through()
        with pytest.raises(EngineError, match=f"a worker of the micro-batcher died .{type(death).__name__}") as failure:
            held.result(WAIT_S)
        assert len(waiting.result(WAIT_S).logits) == 1
        stats = batcher.stats()

    assert failure.value.__cause__ is death
    assert (stats.worker_restarts, stats.failed, stats.answered, stats.pending_tokens) == (1, 1, 1, 0)
    assert "a worker of the micro-batcher died" in caplog.text


def test_a_worker_that_dies_while_it_plans_fails_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    with fake_reranker() as reranker, MicroBatcher(reranker) as batcher:
        with monkeypatch.context() as patch:
            patch.setattr("crossforge.runtime.microbatch.workers.plan_round", fail)
            with pytest.raises(EngineError, match="RuntimeError: a bug"):
                batcher.submit(QUERY, ["berlin"]).result(WAIT_S)
        assert len(batcher.submit(QUERY, ["berlin"]).result(WAIT_S).logits) == 1


def test_what_is_cancelled_in_the_queue_is_not_computed_and_makes_room_at_once() -> None:
    session = GatedSession()
    config = MicroBatchConfig(max_queue_tokens=4 * TOKENS)
    with fake_reranker(session) as reranker, MicroBatcher(reranker, config) as batcher:
        running = busy(batcher, session)
        cancelled = batcher.submit(QUERY, different_passages(3))
        assert cancelled.cancel()
        wait([cancelled], timeout=WAIT_S)
        instead = batcher.submit(QUERY, different_passages(3))
        session.let_through()
        for future in (running, instead):
            future.result(WAIT_S)
        stats = batcher.stats()

    assert computed_pairs(session) == 4
    assert (stats.cancelled, stats.answered) == (1, 2)


def test_what_is_cancelled_takes_no_turn_from_the_others() -> None:
    session = GatedSession()
    config = MicroBatchConfig(slice_tokens=TOKENS, round_tokens=2 * TOKENS)
    with fake_reranker(session, budget_tokens=2 * TOKENS) as reranker, MicroBatcher(reranker, config) as batcher:
        running = busy(batcher, session)
        cancelled = batcher.submit(QUERY, different_passages(40))
        others = [batcher.submit(QUERY, ["berlin"]) for _ in range(2)]
        cancelled.cancel()
        session.let_through()
        for future in (running, *others):
            future.result(WAIT_S)

    assert [len(batch["input_ids"]) for batch in session.batches] == [1, 2]


def test_cancelling_a_request_half_done_drops_the_other_half() -> None:
    session = GatedSession()
    with fake_reranker(session, budget_tokens=2 * TOKENS) as reranker, MicroBatcher(reranker) as batcher:
        request = batcher.submit(QUERY, different_passages(40))
        session.wait_for_a_batch()
        session.let_through(1)
        session.wait_for_a_batch()
        assert request.cancel()
        session.let_through()
        batcher.submit(QUERY, ["berlin"]).result(WAIT_S)

    assert computed_pairs(session) == 2 + 2 + 1
    with pytest.raises(CancelledError):
        request.result(0)


def test_cancelling_a_task_drops_its_request() -> None:
    session = GatedSession()
    with fake_reranker(session) as reranker, MicroBatcher(reranker) as batcher:
        running = busy(batcher, session)

        async def ask_and_leave() -> None:
            task = asyncio.create_task(batcher.score(QUERY, different_passages(5)))
            while batcher.stats().pending_requests < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(asyncio.wait_for(ask_and_leave(), WAIT_S))
        assert batcher.stats().pending_tokens == TOKENS
        session.let_through()
        running.result(WAIT_S)

    assert computed_pairs(session) == 1


def test_a_scheduled_request_that_is_cancelled_before_it_is_tokenized_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    session, begun, go_on = FakeSession(), Event(), Event()
    with (
        fake_reranker(session) as reranker,
        MicroBatcher(reranker, MicroBatchConfig(tokenizer_threads=1)) as batcher,
    ):
        encode = reranker.tokenizer.encode

        def encode_slowly(query: str, passages: list[str]) -> EncodedPairs:
            begun.set()
            assert go_on.wait(WAIT_S)
            return encode(query, passages)

        monkeypatch.setattr(reranker.tokenizer, "encode", encode_slowly)
        slow = batcher.schedule(QUERY, ["berlin"])
        assert begun.wait(WAIT_S)
        waiting = batcher.schedule(QUERY, different_passages(5))
        assert waiting.cancel()
        go_on.set()
        assert len(slow.result(WAIT_S).logits) == 1
        wait([waiting], timeout=WAIT_S)
        assert len(batcher.submit(QUERY, ["city"]).result(WAIT_S).logits) == 1
        assert batcher.stats().pending_tokens == 0

    assert computed_pairs(session) == 2


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


class MoodySession(FakeSession):
    """Fails now and then, in every way."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = Random(seed)

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        mood = self._random.random()
        if mood < 0.05:
            raise EngineError("out of order")
        if mood < 0.1:
            raise SystemExit(1)
        return super().run(batch)


@pytest.mark.parametrize("seed", range(5))
def test_in_a_storm_of_faults_every_request_ends_and_nothing_is_left_behind(seed: int) -> None:
    config = MicroBatchConfig(max_queue_tokens=600, slice_tokens=20, round_tokens=60, workers=3)
    with fake_reranker(MoodySession(seed), budget_tokens=30) as reranker, MicroBatcher(reranker, config) as batcher:

        def ask(i: int) -> str:
            random = Random(seed * 1000 + i)
            passages = different_passages(random.randrange(20))
            deadline_s = random.choice([None, 0.001, 5.0])
            try:
                future = random.choice([batcher.submit, batcher.schedule])(QUERY, passages, deadline_s=deadline_s)
                if random.random() < 0.2:
                    future.cancel()
                assert len(future.result(WAIT_S).logits) == len(passages)
            except (CancelledError, CrossforgeError) as error:
                return type(error).__name__
            return "answered"

        with ThreadPoolExecutor(16) as callers:
            ends = Counter(callers.map(ask, range(300)))
        stats = batcher.stats()

    assert sum(ends.values()) == 300
    assert set(ends) <= {"answered", "CancelledError", "DeadlineError", "OverloadedError", "EngineError"}
    assert ends["answered"] > 0
    assert stats.worker_restarts > 0
    assert (stats.pending_requests, stats.pending_tokens) == (0, 0)
    assert stats.answered + stats.cancelled + stats.expired + stats.failed <= 300
