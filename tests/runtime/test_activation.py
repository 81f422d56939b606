from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossforge.profiles import Activation
from crossforge.runtime.activation import Floats, activate, log_softmax, relevance
from support.strategies import no_deadline

values = st.floats(min_value=-1e4, max_value=1e4, width=32)


def rows_of(min_labels: int, max_labels: int = 4) -> st.SearchStrategy[list[list[float]]]:
    return st.integers(min_labels, max_labels).flatmap(
        lambda labels: st.lists(st.lists(values, min_size=labels, max_size=labels), min_size=1, max_size=6)
    )


def floats(rows: list[list[float]]) -> Floats:
    return np.asarray(rows, dtype=np.float32)


def exact(logits: Floats) -> NDArray[np.float64]:
    return logits.astype(np.float64)


@given(rows=rows_of(1))
@no_deadline
def test_sigmoid_equals_expit(rows: list[list[float]]) -> None:
    logits = floats(rows)

    np.testing.assert_allclose(
        activate(logits, Activation.SIGMOID), scipy.special.expit(exact(logits)), rtol=2e-6, atol=1e-37
    )


@given(rows=rows_of(1))
@no_deadline
def test_softmax_equals_scipys(rows: list[list[float]]) -> None:
    logits = floats(rows)

    np.testing.assert_allclose(
        activate(logits, Activation.SOFTMAX), scipy.special.softmax(exact(logits), axis=1), rtol=1e-3, atol=1e-6
    )


@given(rows=rows_of(1))
@no_deadline
def test_log_softmax_equals_scipys(rows: list[list[float]]) -> None:
    logits = floats(rows)

    np.testing.assert_allclose(log_softmax(logits), scipy.special.log_softmax(exact(logits), axis=1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Activation.IDENTITY, [[-1e4, 0, 1e4], [0, 0, 0]]),
        (Activation.SIGMOID, [[0, 0.5, 1], [0.5, 0.5, 0.5]]),
        (Activation.SOFTMAX, [[0, 0, 1], [1 / 3, 1 / 3, 1 / 3]]),
    ],
)
def test_extreme_logits_neither_overflow_nor_warn(activation: Activation, expected: list[list[float]]) -> None:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        scores = activate(floats([[-1e4, 0, 1e4], [0, 0, 0]]), activation)

    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("shape", [(0, 1), (0, 3), (2, 1), (2, 3)])
def test_scores_have_the_shape_and_type_of_the_logits(activation: Activation, shape: tuple[int, int]) -> None:
    scores = activate(np.zeros(shape, dtype=np.float32), activation)

    assert (scores.shape, scores.dtype) == (shape, np.dtype(np.float32))


def test_one_label_ranks_by_its_logit() -> None:
    np.testing.assert_array_equal(relevance(floats([[3], [-2]]), 0), floats([[3, -2]])[0])


def test_several_labels_rank_by_log_probability_not_by_logit() -> None:
    logits = floats([[5, 4], [3, 0]])
    first, second = relevance(logits, 0)

    assert second > first
    np.testing.assert_allclose([first, second], [-np.log1p(np.exp(-1)), -np.log1p(np.exp(-3))], rtol=1e-6)


@given(rows=rows_of(2))
@no_deadline
def test_log_probabilities_are_never_above_zero(rows: list[list[float]]) -> None:
    assert (relevance(floats(rows), 1) <= 0).all()
