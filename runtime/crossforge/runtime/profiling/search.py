"""Finding the fastest of many by measuring them in turns, and proving that one is faster than another.

The measuring function and the clock are given, so that the search can be shown a machine whose speeds are known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from crossforge.profiles import InputError
from crossforge.runtime.profiling.cost import Clock

T = TypeVar("T")
Measure = Callable[[T], float]
"""Runs a setting once and tells how many milliseconds it took."""
_FIRST_ROUNDS = 3
_MOST_ROUNDS = 48
_STANDARD_ERRORS = 2.0
_SPREAD_OF_DEVIATION = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
_ERROR_OF_MEDIAN = 1.2533
"""The standard error of a median over that of a mean."""


@dataclass(frozen=True, kw_only=True)
class Trial(Generic[T]):
    """A setting that was measured."""

    setting: T
    samples_ms: tuple[float, ...]
    """One a round, in order; a setting that was dropped has fewer."""

    @property
    def median_ms(self) -> float:
        """The middle sample."""
        return median(self.samples_ms)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two settings, measured in turns."""

    baseline_ms: float
    """Median of the one."""
    contender_ms: float
    """Median of the other."""
    ratio: float
    """Median over rounds of baseline over contender: above 1, the contender is faster."""
    low: float
    """Lower end of the ratio's 95 % interval."""
    high: float
    rounds: int

    @property
    def is_faster(self) -> bool:
        """Whether the contender is faster beyond doubt."""
        return self.low > 1


def search(
    settings: Sequence[T], measure: Measure[T], *, budget_s: float, clock: Clock = time.perf_counter
) -> tuple[Trial[T], ...]:
    """Successive halving: measure all in turns, drop the slow half, measure the rest for twice as long, and so on.

    What is within the noise of the best survives, whatever its place. The noise is that of the ratio to the best in the same
    round, which drift does not touch, pooled over all settings.

    Args:
        settings: What to choose from.
        measure: Runs one of them.
        budget_s: Seconds after which no further round starts. A setting that was not measured even once is left out, from
            the end of the list.
        clock: Counts seconds.

    Returns:
        The settings, best first: survivors by their medians, then the others, those that were dropped last first.

    Raises:
        InputError: There is nothing to measure, or the budget is spent before one setting is.
    """
    if not settings:
        raise InputError("there is no setting to measure", allowed="one or more")
    end = clock() + budget_s
    samples: dict[T, list[float]] = {}
    for setting in settings:
        if clock() >= end:
            break
        measure(setting)  # the first run of a setting warms its caches and does not count
        if clock() < end:
            samples[setting] = [measure(setting)]
    if not samples:
        raise InputError("the budget is too short to measure one setting", got=f"{budget_s:g} s", fix="Allow more time.")
    alive, wanted = list(samples), _FIRST_ROUNDS
    dropped: list[T] = []
    while wanted <= _MOST_ROUNDS and len(alive) > 1:
        done = len(samples[alive[0]])
        while done < wanted and clock() + sum(median(samples[setting]) for setting in alive) / 1e3 <= end:
            for i in range(len(alive)):  # no setting always follows the same one
                setting = alive[(i + done) % len(alive)]
                samples[setting].append(measure(setting))
            done += 1
        if done < 2:
            break
        kept = survivors({setting: samples[setting] for setting in alive})
        dropped = [setting for setting in _by_median(alive, samples) if setting not in kept] + dropped
        alive = kept
        if done < wanted:
            break
        wanted *= 2
    ranking = _by_median(alive, samples) + dropped
    return tuple(Trial(setting=setting, samples_ms=tuple(samples[setting])) for setting in ranking)


def survivors(samples: Mapping[T, Sequence[float]]) -> list[T]:
    """The faster half, and whatever is within noise of the fastest.

    Args:
        samples: Milliseconds of each setting in the same two rounds or more.
    """
    ranked = _by_median(list(samples), samples)
    rounds = len(samples[ranked[0]])
    ratios = {
        setting: [own / best for own, best in zip(samples[setting], samples[ranked[0]], strict=True)]
        for setting in ranked[1:]
    }
    deviations = [abs(ratio / median(all_) - 1) for all_ in ratios.values() for ratio in all_]
    spread = _SPREAD_OF_DEVIATION * median(deviations or [0.0]) * math.sqrt(rounds / (rounds - 1))
    limit = 1 + _STANDARD_ERRORS * _ERROR_OF_MEDIAN * spread / math.sqrt(rounds)
    half = -(-len(ranked) // 2)
    return [setting for i, setting in enumerate(ranked) if i < half or median(ratios[setting]) <= limit]


def compare(
    baseline: T, contender: T, measure: Measure[T], *, rounds: int, budget_s: float, clock: Clock = time.perf_counter
) -> Comparison:
    """Measure two settings in turns, in alternating order, after one run of each that does not count.

    Args:
        baseline: The one to beat.
        contender: The one that should.
        measure: Runs one of them.
        rounds: Samples of each: six or more, or nothing can be shown.
        budget_s: Seconds after which no further round starts; six rounds are always run.
        clock: Counts seconds.
    """
    pair = (baseline, contender)
    end = clock() + budget_s
    samples: tuple[list[float], list[float]] = ([], [])
    for setting in pair:
        measure(setting)
    for done in range(rounds):
        if done >= _FEWEST_ROUNDS and clock() >= end:
            break
        for i in (0, 1) if done % 2 == 0 else (1, 0):
            samples[i].append(measure(pair[i]))
    ratios = sorted(first / second for first, second in zip(*samples, strict=True))
    outside = _outside(len(ratios))
    return Comparison(
        baseline_ms=median(samples[0]),
        contender_ms=median(samples[1]),
        ratio=median(ratios),
        low=ratios[outside],
        high=ratios[-1 - outside],
        rounds=len(ratios),
    )


_FEWEST_ROUNDS = 6
"""Fewer have no 95 % interval: all on one side happens once in 2^(n-1) by chance."""


def _outside(count: int) -> int:
    """How many values at either end are outside the median's 95 % interval, by the sign test."""
    left, below = 0, 0.0
    while (below := below + math.comb(count, left) / 2**count) <= 0.025:
        left += 1
    return max(0, left - 1)


def _by_median(settings: Sequence[T], samples: Mapping[T, Sequence[float]]) -> list[T]:
    return sorted(settings, key=lambda setting: median(samples[setting]))
