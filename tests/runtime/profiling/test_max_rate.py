from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crossforge.profiles import InputError
from crossforge.runtime.profiling.clock import SimulatedClock
from crossforge.runtime.profiling.load import Target, generate_load
from crossforge.runtime.profiling.load_report import Outcome, Slo
from crossforge.runtime.profiling.max_rate import find_max_rate
from support.load_targets import SERVICE_S, FixedTimeServer


def erlang_within(utilization: float, services: float) -> float:
    """Share of the requests of an M/D/1 queue that wait no longer than so many service times (Erlang, 1909)."""
    terms = (
        (-utilization * (services - k)) ** k / math.factorial(k) * math.exp(utilization * (services - k))
        for k in range(int(services) + 1)
    )
    return (1 - utilization) * sum(terms)


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
