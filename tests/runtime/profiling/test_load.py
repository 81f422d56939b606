from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossforge.profiles import DeadlineError, EngineError, InputError, OverloadedError
from crossforge.runtime import FakeSession
from crossforge.runtime.microbatch import MicroBatchConfig
from crossforge.runtime.profiling.clock import SimulatedClock
from crossforge.runtime.profiling.load import (
    Slo,
    Target,
    find_max_rate,
    generate_load,
    measure_load,
    measure_max_rate,
    poisson_arrivals,
)
from crossforge.runtime.profiling.load_report import LoadReport, Outcome
from crossforge.runtime.records import Passage, QueryRecord
from support.builders import fake_reranker

SERVICE_S = 0.01
RECORDS = [
    QueryRecord(qid=str(i), query="where is the city", passages=tuple(Passage(id=str(k), text="berlin") for k in range(i)))
    for i in (1, 3)
]


class FixedTimeServer:
    """Answers one request after another, each in the same time: the D and the 1 of M/D/1."""

    def __init__(self, clock: SimulatedClock, service_s: float = SERVICE_S) -> None:
        self._clock = clock
        self._service_s = service_s
        self._free_at_s = 0.0

    def submit(self) -> Future[Any]:
        future: Future[Any] = Future()
        self._free_at_s = max(self._free_at_s, self._clock.now_s()) + self._service_s
        self._clock.call_at(self._free_at_s, lambda: future.set_result(None) if not future.cancelled() else None)
        return future


class FunctionTarget:
    """Does what a function does."""

    def __init__(self, function: Callable[[], Future[Any]]) -> None:
        self.submit = function


def erlang_within(utilization: float, services: float) -> float:
    """Share of the requests of an M/D/1 queue that wait no longer than so many service times (Erlang, 1909)."""
    terms = (
        (-utilization * (services - k)) ** k / math.factorial(k) * math.exp(utilization * (services - k))
        for k in range(int(services) + 1)
    )
    return (1 - utilization) * sum(terms)


def answered() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = poisson_arrivals(100.0, 500.0, seed=3)
    gaps = np.diff(arrivals)
    counts = np.bincount(arrivals.astype(int), minlength=500)

    assert arrivals.min() >= 0
    assert arrivals.max() < 500
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(0.01, rel=0.02)
    assert gaps.std() == pytest.approx(0.01, rel=0.02)
    assert counts.var() == pytest.approx(100, rel=0.2)
    np.testing.assert_array_equal(arrivals, poisson_arrivals(100.0, 500.0, seed=3))
    assert len(poisson_arrivals(100.0, 500.0, seed=4)) != len(arrivals)


@pytest.mark.parametrize(("rate_per_s", "duration_s"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_no_load_is_refused(rate_per_s: float, duration_s: float) -> None:
    with pytest.raises(InputError, match="no load to generate"):
        poisson_arrivals(rate_per_s, duration_s)


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_the_mean_wait_is_that_of_an_m_d_1_queue(utilization: float) -> None:
    """Pollaczek and Khinchine: a mean wait of rho / (2 (1 - rho)) service times."""
    clock = SimulatedClock()
    rate_per_s = utilization / SERVICE_S
    report = generate_load(
        FixedTimeServer(clock), rate_per_s=rate_per_s, duration_s=30_000 / rate_per_s, seed=11, clock=clock
    )
    wait_ms = report.latencies_ms.mean() - SERVICE_S * 1e3

    assert report.count(Outcome.ANSWERED) == len(report.outcomes) > 29_000
    assert wait_ms == pytest.approx(utilization / (2 * (1 - utilization)) * SERVICE_S * 1e3, rel=0.1)
    assert report.latencies_ms.min() == pytest.approx(SERVICE_S * 1e3)
    assert report.offered_per_s == pytest.approx(rate_per_s, rel=0.02)
    assert report.achieved_per_s == pytest.approx(rate_per_s, rel=0.02)


def test_every_single_wait_is_the_one_that_the_arrivals_cause() -> None:
    """Lindley's recursion over the same arrivals, which leaves chance out."""
    clock = SimulatedClock()
    report = generate_load(FixedTimeServer(clock), rate_per_s=80.0, duration_s=25.0, clock=clock)
    waits, free_at_s = [], 0.0
    for due_s in report.intended_s:
        waits.append(max(0.0, free_at_s - due_s))
        free_at_s = due_s + waits[-1] + SERVICE_S

    np.testing.assert_allclose(report.latencies_ms, (np.asarray(waits) + SERVICE_S) * 1e3)


def test_latency_counts_from_when_a_request_was_due_even_if_the_target_held_up_the_generator() -> None:
    clock = SimulatedClock()
    stalled: list[float] = []

    def stall_once() -> Future[Any]:
        if not stalled:
            stalled.append(clock.now_s())
            clock.sleep_until(clock.now_s() + 1.0)
        return answered()

    report = generate_load(FunctionTarget(stall_once), rate_per_s=100.0, duration_s=10.0, clock=clock)
    behind = [due for due in report.intended_s if due < stalled[0] + 1.0]

    assert len(behind) > 50
    np.testing.assert_allclose(report.latencies_ms[: len(behind)], (stalled[0] + 1.0 - np.asarray(behind)) * 1e3)
    np.testing.assert_allclose(report.latencies_ms[len(behind) :], 0, atol=1e-9)
    assert report.max_lag_ms == pytest.approx(1e3, rel=0.1)


def test_what_became_of_every_request_is_told_apart() -> None:
    clock = SimulatedClock()
    never: Future[Any] = Future()

    def raises() -> Future[Any]:
        raise OverloadedError("the queue is full")

    ways = iter(
        [
            answered,
            raises,
            lambda: failed(OverloadedError("the queue is full")),
            lambda: failed(DeadlineError("late")),
            lambda: failed(EngineError("broken")),
            lambda: failed(ConnectionError()),
            lambda: never,
        ]
    )
    target = FunctionTarget(lambda: next(ways, answered)())
    report = generate_load(target, rate_per_s=10.0, duration_s=2.0, grace_s=5.0, clock=clock)

    assert report.outcomes[:7] == (
        Outcome.ANSWERED,
        Outcome.REJECTED,
        Outcome.REJECTED,
        Outcome.EXPIRED,
        Outcome.FAILED,
        Outcome.FAILED,
        Outcome.UNFINISHED,
    )
    assert report.errors == {"OverloadedError": 2, "DeadlineError": 1, "EngineError": 1, "ConnectionError": 1}
    assert report.finished_s[6] >= report.sent_s[-1] + 5.0
    assert never.cancelled()
    assert report.share_within(1.0) == pytest.approx(1 - 6 / len(report.outcomes))


def test_a_report_survives_its_json_and_its_figures_follow_from_its_samples(tmp_path: Path) -> None:
    clock = SimulatedClock()
    report = generate_load(FixedTimeServer(clock), rate_per_s=60.0, duration_s=10.0, clock=clock)
    (tmp_path / "load.json").write_text(report.to_json())
    again = LoadReport.read(tmp_path / "load.json")
    latencies = (np.asarray(again.finished_s) - np.asarray(again.intended_s)) * 1e3
    figures = again.figures()

    assert again == report
    for percent in (50, 90, 95, 99):
        assert figures[f"p{percent}_ms"] == pytest.approx(np.percentile(latencies, percent))
    assert figures["requests"] == figures["answered"] == len(latencies)


def test_a_report_without_answers_has_no_percentiles() -> None:
    target = FunctionTarget(lambda: failed(EngineError("broken")))
    report = generate_load(target, rate_per_s=10.0, duration_s=1.0, clock=SimulatedClock())

    assert report.percentile_ms(99) is None
    assert report.achieved_per_s == 0.0
    assert report.share_within(1e9) == 0.0


def test_the_highest_rate_meets_the_slo_and_a_little_more_does_not() -> None:
    clock = SimulatedClock()
    slo = Slo(latency_ms=50.0)

    @contextmanager
    def fresh() -> Iterator[Target]:
        yield FixedTimeServer(clock)

    found = find_max_rate(fresh, slo, duration_s=100.0, tolerance=0.02, clock=clock)
    verdicts = {trial.rate_per_s: slo.is_met_by(trial) for trial in found.trials}
    too_high = min(rate for rate, met in verdicts.items() if not met)

    # Where Erlang's distribution of the wait in an M/D/1 queue leaves 1 % above four service times.
    assert erlang_within(0.5607, 4.0) == pytest.approx(0.99, abs=1e-4)
    assert found.rate_per_s * SERVICE_S == pytest.approx(0.5607, rel=0.1)
    assert found.rate_per_s == max(rate for rate, met in verdicts.items() if met)
    assert too_high <= found.rate_per_s * 1.02
    assert found.figures()["rate_per_s"] == found.rate_per_s


def test_a_trial_that_can_no_more_meet_the_slo_stops() -> None:
    clock = SimulatedClock()
    slo = Slo(latency_ms=50.0)
    report = generate_load(FixedTimeServer(clock), rate_per_s=400.0, duration_s=60.0, stop_at=slo, clock=clock)

    assert report.stopped_early
    assert not slo.is_met_by(report)
    assert clock.now_s() < 6.0
    assert report.offered_per_s == pytest.approx(400.0, rel=0.1)
    assert report.achieved_per_s == pytest.approx(100.0, rel=0.05)
    assert report.count(Outcome.UNFINISHED) > 0


def test_an_slo_that_no_rate_meets_gives_zero() -> None:
    clock = SimulatedClock()

    @contextmanager
    def fresh() -> Iterator[Target]:
        yield FixedTimeServer(clock)

    found = find_max_rate(fresh, Slo(latency_ms=5.0), duration_s=1.0, clock=clock)

    assert found.rate_per_s == 0.0
    assert len(found.trials) > 5


@pytest.mark.parametrize(
    ("percentile", "requests", "misses"), [(99, 100, 1), (99, 99, 0), (99.9, 1000, 1), (50, 10, 5), (90, 1000, 100)]
)
def test_an_slo_allows_its_share_of_misses(percentile: float, requests: int, misses: int) -> None:
    assert Slo(latency_ms=1.0, percentile=percentile).misses_allowed(requests) == misses


@pytest.mark.parametrize(
    "slo", [{"latency_ms": 0.0}, {"latency_ms": 1.0, "percentile": 100.0}, {"latency_ms": 1.0, "percentile": 0.0}]
)
def test_an_slo_that_means_nothing_is_refused(slo: dict[str, float]) -> None:
    with pytest.raises(InputError, match="the SLO's"):
        Slo(**slo)


class PacedSession(FakeSession):
    """Takes about two milliseconds a batch of real time."""

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        time.sleep(0.002)
        return super().run(batch)


def test_a_reranker_under_real_load_answers_every_request() -> None:
    with fake_reranker(PacedSession()) as reranker:
        report = measure_load(reranker, RECORDS, rate_per_s=100.0, duration_s=0.3, seed=5)

    assert set(report.outcomes) == {Outcome.ANSWERED}
    assert list(report.intended_s) == poisson_arrivals(100.0, 0.3, seed=5).tolist()
    assert all(
        due <= sent < done for due, sent, done in zip(report.intended_s, report.sent_s, report.finished_s, strict=True)
    )
    assert report.latencies_ms.min() >= 2.0


def test_overload_is_recorded_and_not_waited_for() -> None:
    with fake_reranker(PacedSession(), budget_tokens=1) as reranker:
        config = MicroBatchConfig(max_queue_tokens=32)
        report = measure_load(reranker, RECORDS, rate_per_s=1500.0, duration_s=0.3, config=config)

    assert report.count(Outcome.REJECTED) > 0
    assert report.count(Outcome.ANSWERED) > 0
    assert report.count(Outcome.REJECTED) + report.count(Outcome.ANSWERED) == len(report.outcomes)


def test_a_reranker_that_is_always_too_slow_has_no_rate() -> None:
    with fake_reranker(PacedSession()) as reranker:
        found = measure_max_rate(reranker, RECORDS, Slo(latency_ms=0.5), duration_s=0.1, most_trials=2)

    assert found.rate_per_s == 0.0
    assert all(trial.stopped_early for trial in found.trials)


def test_records_are_needed() -> None:
    with fake_reranker() as reranker, pytest.raises(InputError, match="there is no request to send"):
        measure_load(reranker, [], rate_per_s=1.0, duration_s=1.0)
