"""How many requests a second, within a latency? Searched for by trials."""

from __future__ import annotations

import time
from dataclasses import dataclass

from crossforge.profiles import InputError
from crossforge.runtime.profiling.clock import Clock
from crossforge.runtime.profiling.load import MakeTarget, generate_load
from crossforge.runtime.profiling.load_report import LoadRun, Slo

_CALLS_TO_START_FROM = 5


@dataclass(frozen=True, kw_only=True)
class MaxRate:
    """The answer to: how many requests a second, within an SLO?"""

    slo: Slo
    rate_per_s: float
    """The highest rate that met it; 0.0 if none did."""
    trials: tuple[LoadRun, ...]
    """Every run, in the order made."""


def find_max_rate(
    make_target: MakeTarget,
    slo: Slo,
    *,
    duration_s: float,
    start_per_s: float = 8.0,
    tolerance: float = 0.05,
    most_trials: int = 20,
    least_requests: int = 200,
    seed: int = 0,
    clock: Clock | None = None,
) -> MaxRate:
    """Find the highest rate that meets an SLO: doubled or halved until it is enclosed, then bisected.

    A trial whose verdict is clear stops at once, so rates that are far too high cost little.

    Args:
        make_target: A fresh target for each trial, so that none inherits the queue of another.
        slo: What has to be met.
        duration_s: Of the arrivals of each trial.
        start_per_s: The first rate tried.
        tolerance: Stop when the rate is known to this share of itself.
        most_trials: Stop after so many in any case.
        least_requests: A trial goes on until it has about so many, because a percentile of a few requests is chance.
        seed: Decides the arrivals.
        clock: Real time if not given.

    Raises:
        InputError: A number is not positive.
    """
    if not (tolerance > 0 and most_trials > 0):
        raise InputError("cannot search", got=f"tolerance {tolerance}, {most_trials} trials", allowed="both above 0")
    met, missed = 0.0, float("inf")
    rate = start_per_s
    trials: list[LoadRun] = []
    while len(trials) < most_trials and missed - met > tolerance * met and (met > 0 or rate > start_per_s * 2**-10):
        with make_target() as target:
            trial = generate_load(
                target,
                rate_per_s=rate,
                duration_s=max(duration_s, least_requests / rate) if rate > 0 else duration_s,
                seed=seed,
                stop_at=slo,
                clock=clock,
            )
        trials.append(trial)
        if slo.is_met_by(trial):
            met = rate
        else:
            missed = rate
        rate = met * 2 if missed == float("inf") else (met + missed) / 2
    return MaxRate(slo=slo, rate_per_s=met, trials=tuple(trials))


def measure_max_rate(
    make_target: MakeTarget, slo: Slo, *, duration_s: float, seed: int = 0, most_trials: int = 20
) -> MaxRate:
    """Find how many requests a second are answered within an SLO; see :func:`find_max_rate`.

    Args:
        make_target: A fresh target for each trial.
        slo: What has to be met.
        duration_s: Of the arrivals of each trial, which goes on until there were about 200.
        seed: Decides the arrivals.
        most_trials: Stop after so many in any case.

    Raises:
        InputError: The duration is not positive.
    """
    with make_target() as target:
        start_s = time.perf_counter()
        for _ in range(_CALLS_TO_START_FROM):
            target.submit().result()
        call_s = (time.perf_counter() - start_s) / _CALLS_TO_START_FROM
    return find_max_rate(
        make_target,
        slo,
        duration_s=duration_s,
        start_per_s=1 / call_s,  # one after another: not far from what many at once reach
        most_trials=most_trials,
        seed=seed,
    )
