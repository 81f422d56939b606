from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import DEFAULT_WORKLOAD, InputError, Workload
from crossforge.profiles.workload import quantile
from support.strategies import histograms, no_deadline


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pair_lengths": {}}, "pair_lengths is empty; allowed: one entry or more"),
        ({"candidates": {}}, "candidates is empty"),
        ({"pair_lengths": {0: 4}}, "pair_lengths holds a bad entry; got 0: 4; allowed: both 1 or more"),
        ({"candidates": {10: 0}}, "candidates holds a bad entry; got 10: 0"),
    ],
)
def test_a_histogram_without_weight_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Workload(**{"pair_lengths": {8: 1}, "candidates": {1: 1}, **values})
    assert message in str(caught.value)


def test_the_mean_length_is_weighted() -> None:
    assert Workload(pair_lengths={10: 3, 50: 1}, candidates={1: 1}).mean_length == 20.0


def test_the_default_is_in_pairs_per_hundred() -> None:
    assert sum(DEFAULT_WORKLOAD.pair_lengths.values()) == 100


@given(histogram=histograms, share=st.floats(min_value=0.0, max_value=1.0))
@no_deadline
def test_a_quantile_is_the_smallest_value_that_reaches_its_share(histogram: dict[int, int], share: float) -> None:
    value, total = quantile(histogram, share), sum(histogram.values())

    assert sum(count for key, count in histogram.items() if key <= value) >= share * total
    assert value == min(histogram) or sum(count for key, count in histogram.items() if key < value) < share * total
