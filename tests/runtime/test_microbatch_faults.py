"""Engines and workers that fail, and a storm of all that can go wrong."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from crossforge.profiles import (
    CrossforgeError,
    EngineError,
    NonFiniteLogitsError,
)
from crossforge.runtime import FakeSession
from crossforge.runtime.microbatch import MicroBatchConfig, MicroBatcher
from support.batchers import QUERY, TOKENS, busy, computed_pairs
from support.builders import fake_reranker
from support.families import different_passages
from support.sessions import WAIT_S, GatedSession


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
