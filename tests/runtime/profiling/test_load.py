from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from crossforge.profiles import DeadlineError, EngineError, InputError, OverloadedError, ServiceError
from crossforge.runtime.profiling.clock import SimulatedClock
from crossforge.runtime.profiling.load import generate_load, poisson_arrivals
from crossforge.runtime.profiling.load_report import LoadCurve, Outcome, Slo
from support.load_targets import SERVICE_S, FixedTimeServer, FunctionTarget, answered, failed


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
            lambda: failed(ServiceError("no ranking", kind="HTTP 500")),
            lambda: never,
        ]
    )
    target = FunctionTarget(lambda: next(ways, answered)())
    report = generate_load(target, rate_per_s=10.0, duration_s=2.0, grace_s=5.0, clock=clock)

    assert report.outcomes[:8] == (
        Outcome.ANSWERED,
        Outcome.REJECTED,
        Outcome.REJECTED,
        Outcome.EXPIRED,
        Outcome.FAILED,
        Outcome.FAILED,
        Outcome.FAILED,
        Outcome.UNFINISHED,
    )
    assert report.errors == {
        "OverloadedError": 2,
        "DeadlineError": 1,
        "EngineError": 1,
        "ConnectionError": 1,
        "HTTP 500": 1,
    }
    assert report.finished_s[7] >= report.sent_s[-1] + 5.0
    assert never.cancelled()
    assert report.share_within(1.0) == pytest.approx(1 - 7 / len(report.outcomes))


def test_a_report_without_answers_has_no_percentiles() -> None:
    target = FunctionTarget(lambda: failed(EngineError("broken")))
    report = generate_load(target, rate_per_s=10.0, duration_s=1.0, clock=SimulatedClock())

    assert report.percentile_ms(99) is None
    assert report.achieved_per_s == 0.0
    assert report.share_within(1e9) == 0.0


def test_the_figures_of_a_run_follow_from_its_samples() -> None:
    clock = SimulatedClock()
    run = generate_load(FixedTimeServer(clock), rate_per_s=60.0, duration_s=10.0, clock=clock)
    latencies = (np.asarray(run.finished_s) - np.asarray(run.intended_s)) * 1e3
    figures = run.figures()

    for percent in (50, 90, 95, 99):
        assert figures[f"p{percent}_ms"] == pytest.approx(np.percentile(latencies, percent))
    assert figures["requests"] == figures["answered"] == len(latencies)


def test_a_curve_knows_the_highest_rate_that_met_its_objective() -> None:
    clock = SimulatedClock()
    runs = tuple(
        generate_load(FixedTimeServer(clock), rate_per_s=rate, duration_s=20.0, clock=clock) for rate in (50.0, 20.0, 95.0)
    )
    curve = LoadCurve(service="a server", requests="requests", slo=Slo(latency_ms=50.0), runs=runs)
    strict = LoadCurve(service="a server", requests="requests", slo=Slo(latency_ms=1.0), runs=runs)
    free = LoadCurve(service="a server", requests="requests", slo=None, runs=runs)

    assert (curve.max_rate_per_s, strict.max_rate_per_s, free.max_rate_per_s) == (50.0, 0.0, None)
    assert (curve.passed, strict.passed, free.passed) == (True, False, True)


def test_a_curve_without_an_answer_did_not_pass() -> None:
    target = FunctionTarget(lambda: failed(EngineError("broken")))
    run = generate_load(target, rate_per_s=10.0, duration_s=1.0, clock=SimulatedClock())
    assert not LoadCurve(service="a server", requests="requests", slo=None, runs=(run,)).passed
