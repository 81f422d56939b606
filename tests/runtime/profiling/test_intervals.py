from __future__ import annotations

import random
import statistics

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from crossforge.runtime.profiling.intervals import CONFIDENCE, MIN_SAMPLES, median_interval
from support.strategies import no_deadline

samples = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=60)


@given(samples)
@no_deadline
def test_the_interval_holds_the_median(values: list[float]) -> None:
    interval = median_interval(values)

    assert interval.low <= interval.median <= interval.high
    assert interval.median == statistics.median(values)
    assert {interval.low, interval.high} <= set(values)
    assert interval.known is (len(values) >= MIN_SAMPLES)


@pytest.mark.parametrize("count", [6, 7, 10, 25, 100, 301])
def test_its_ranks_are_the_narrowest_that_the_binomial_allows(count: int) -> None:
    low = int(median_interval(range(1, count + 1)).low)  # samples that equal their ranks

    below = scipy.stats.binom(count, 0.5).cdf
    assert 2 * below(low - 1) <= 1 - CONFIDENCE < 2 * below(low)


def test_it_covers_the_median_as_often_as_it_says_whatever_the_distribution() -> None:
    source = random.Random(7)
    hits = 0
    for _ in range(1000):
        interval = median_interval([source.expovariate(1.0) for _ in range(15)])
        hits += interval.low <= 0.6931 <= interval.high
    assert hits / 1000 >= CONFIDENCE - 0.02


def test_the_median_of_few_samples_is_not_known() -> None:
    interval = median_interval([2.0, 3.0, 1.0])

    assert (interval.low, interval.median, interval.high) == (1.0, 2.0, 3.0)
    assert interval.relative_width == float("inf")
