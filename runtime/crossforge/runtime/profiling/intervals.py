"""How well a median is known: the order-statistics interval, which asks nothing of the distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np

CONFIDENCE = 0.95
MIN_SAMPLES = 6
"""The fewest samples whose extremes hold the median with 95 % confidence (96.9 %)."""


@dataclass(frozen=True, kw_only=True)
class MedianInterval:
    """Between two samples, the median; in the samples' unit."""

    low: float
    median: float
    high: float
    known: bool
    """Whether the samples suffice for 95 % confidence; if not, ``low`` and ``high`` are the extremes."""

    @property
    def relative_width(self) -> float:
        """From ``low`` to ``high``, as a share of the median; infinite where the interval is not known."""
        return (self.high - self.low) / self.median if self.known else float("inf")


def median_interval(samples: Sequence[float]) -> MedianInterval:
    """The narrowest pair of order statistics, symmetric in rank, that holds the median with 95 % confidence.

    A sample lies below the median with probability one half, so the number that do is binomial, whatever the
    distribution (Conover, Practical Nonparametric Statistics, 3.2). Samples are taken as independent.

    Args:
        samples: At least one.
    """
    ordered = sorted(samples)
    rank = _lower_rank(len(ordered))
    position = max(rank, 1) - 1
    return MedianInterval(
        low=ordered[position], median=float(np.median(ordered)), high=ordered[-1 - position], known=rank > 0
    )


@lru_cache(maxsize=4096)
def _lower_rank(count: int) -> int:
    """The largest rank (from 1) whose sample is above the median with a probability of 2.5 % at most; 0 if none is."""
    tail, rank = 0, 0
    while rank < count:
        tail += comb(count, rank)
        if 2 * tail > (1 - CONFIDENCE) * 2**count:
            break
        rank += 1
    return rank
