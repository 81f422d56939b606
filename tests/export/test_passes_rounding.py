from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossforge.export.passes.rounding import LEVELS, column_scales, round_by_output, round_to_nearest

Matrix = NDArray[np.float64]


def output_error(inputs: Matrix, weight: Matrix, integers: NDArray[np.int8], scales: NDArray[np.float32]) -> float:
    return float(np.square(inputs @ (weight - integers * scales)).mean())


def correlated_inputs(rng: np.random.Generator, tokens: int, width: int) -> Matrix:
    return rng.normal(size=(tokens, width // 4)) @ rng.normal(size=(width // 4, width)) + 0.1 * rng.normal(
        size=(tokens, width)
    )


@given(seed=st.integers(0, 10_000), width=st.integers(24, 64))
@settings(max_examples=40, deadline=None)
def test_correlated_inputs_lose_less_than_with_nearest_rounding(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = correlated_inputs(rng, 400, width)
    weight = rng.normal(size=(width, 40))
    scales = column_scales(weight)
    nearest = round_to_nearest(weight, scales)
    by_output = round_by_output(weight, scales, inputs.T @ inputs / len(inputs))
    assert output_error(inputs, weight, by_output, scales) < output_error(inputs, weight, nearest, scales)


def test_uncorrelated_inputs_leave_nothing_to_make_up_for() -> None:
    weight = np.random.default_rng(0).normal(size=(150, 7))
    scales = column_scales(weight)
    assert np.array_equal(round_by_output(weight, scales, np.eye(150)), round_to_nearest(weight, scales))


def test_integers_stay_in_range_and_blocks_agree_with_a_single_one() -> None:
    rng = np.random.default_rng(1)
    inputs = correlated_inputs(rng, 2_000, 300)  # three blocks of rows
    weight = rng.normal(size=(300, 5))
    scales = column_scales(weight)
    gram = inputs.T @ inputs / len(inputs)
    integers = round_by_output(weight, scales, gram)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= LEVELS
    alone = np.stack([round_by_output(weight[:, [k]], scales[[k]], gram)[:, 0] for k in range(5)], axis=1)
    assert np.array_equal(integers, alone), "a column's rounding must not depend on its neighbours"


@pytest.mark.parametrize("dead", [0, 3])
def test_a_channel_that_is_always_zero_does_no_harm(dead: int) -> None:
    rng = np.random.default_rng(2)
    inputs = correlated_inputs(rng, 200, 16)
    inputs[:, dead] = 0
    weight = rng.normal(size=(16, 4))
    scales = column_scales(weight)
    integers = round_by_output(weight, scales, inputs.T @ inputs / len(inputs))
    assert output_error(inputs, weight, integers, scales) <= output_error(
        inputs, weight, round_to_nearest(weight, scales), scales
    )
