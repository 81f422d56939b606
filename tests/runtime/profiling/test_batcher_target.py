from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from crossforge.profiles import InputError
from crossforge.runtime import FakeSession
from crossforge.runtime.microbatch import MicroBatchConfig
from crossforge.runtime.profiling.batcher_target import batcher_target
from crossforge.runtime.profiling.load import measure_load, poisson_arrivals
from crossforge.runtime.profiling.load_report import Outcome, Slo
from crossforge.runtime.profiling.max_rate import measure_max_rate
from crossforge.runtime.records import Passage, QueryRecord
from support.builders import fake_reranker

RECORDS = [
    QueryRecord(qid=str(i), query="where is the city", passages=tuple(Passage(id=str(k), text="berlin") for k in range(i)))
    for i in (1, 3)
]


class PacedSession(FakeSession):
    """Takes about two milliseconds a batch of real time."""

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        time.sleep(0.002)
        return super().run(batch)


def test_a_reranker_under_real_load_answers_every_request() -> None:
    with fake_reranker(PacedSession()) as reranker:
        report = measure_load(partial(batcher_target, reranker, RECORDS), rate_per_s=100.0, duration_s=0.3, seed=5)

    assert set(report.outcomes) == {Outcome.ANSWERED}
    assert list(report.intended_s) == poisson_arrivals(100.0, 0.3, seed=5).tolist()
    assert all(
        due <= sent < done for due, sent, done in zip(report.intended_s, report.sent_s, report.finished_s, strict=True)
    )
    assert report.latencies_ms.min() >= 2.0


def test_overload_is_recorded_and_not_waited_for() -> None:
    with fake_reranker(PacedSession(), budget_tokens=1) as reranker:
        config = MicroBatchConfig(max_queue_tokens=32)
        report = measure_load(partial(batcher_target, reranker, RECORDS, config=config), rate_per_s=1500.0, duration_s=0.3)

    assert report.count(Outcome.REJECTED) > 0
    assert report.count(Outcome.ANSWERED) > 0
    assert report.count(Outcome.REJECTED) + report.count(Outcome.ANSWERED) == len(report.outcomes)


def test_a_reranker_that_is_always_too_slow_has_no_rate() -> None:
    with fake_reranker(PacedSession()) as reranker:
        found = measure_max_rate(
            partial(batcher_target, reranker, RECORDS), Slo(latency_ms=0.5), duration_s=0.1, most_trials=2
        )

    assert found.rate_per_s == 0.0
    assert all(trial.stopped_early for trial in found.trials)


def test_records_are_needed() -> None:
    with fake_reranker() as reranker, pytest.raises(InputError, match="there is no request to send"):
        measure_load(partial(batcher_target, reranker, []), rate_per_s=1.0, duration_s=1.0)
