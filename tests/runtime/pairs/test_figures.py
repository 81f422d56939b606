"""Figures of binary and graded labels, against scikit-learn, scipy and every threshold there is."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import InputError
from crossforge.runtime.pairs.figures import (
    average_precision,
    best_threshold,
    measure_at,
    measure_binary,
    measure_graded,
    shortest_between,
)
from crossforge.runtime.pairs.options import Criterion
from support.strategies import no_deadline

metrics = pytest.importorskip("sklearn.metrics")

scored = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)
"""Scores of which many are equal."""


def arrays(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray([score for score, _ in rows], dtype=np.float32) / np.float32(7)
    return scores.astype(np.float64), np.asarray([label for _, label in rows], dtype=np.float64)


@given(rows=scored)
@no_deadline
def test_average_precision_is_scikit_learns(rows: list[tuple[int, bool]]) -> None:
    scores, labels = arrays(rows)
    assert average_precision(scores, labels) == pytest.approx(metrics.average_precision_score(labels, scores))


@given(rows=scored, threshold=st.floats(-0.2, 1.2))
@no_deadline
def test_figures_at_a_threshold_are_scikit_learns(rows: list[tuple[int, bool]], threshold: float) -> None:
    scores, labels = arrays(rows)
    called = scores >= threshold
    figures = measure_at(scores, labels, threshold)
    assert figures.precision == pytest.approx(metrics.precision_score(labels, called, zero_division=0))
    assert figures.recall == pytest.approx(metrics.recall_score(labels, called))
    assert figures.f1 == pytest.approx(metrics.f1_score(labels, called))
    assert figures.accuracy == pytest.approx(metrics.accuracy_score(labels, called))


@given(rows=scored)
@no_deadline
def test_no_threshold_is_better_than_the_best(rows: list[tuple[int, bool]]) -> None:
    scores, labels = arrays(rows)
    everywhere = [-1.0, *np.unique(scores).tolist(), 2.0]
    for criterion in Criterion:
        best = best_threshold(scores, labels, criterion)
        figures = [getattr(measure_at(scores, labels, threshold), criterion) for threshold in everywhere]
        assert getattr(best, criterion) == pytest.approx(max(figures))
        assert measure_at(scores, labels, float(repr(best.threshold))) == best
        higher = [t for t, figure in zip(everywhere, figures, strict=True) if figure == pytest.approx(max(figures))]
        assert (scores >= best.threshold).sum() == min((scores >= t).sum() for t in higher)


def test_equal_scores_are_called_together() -> None:
    scores, labels = np.asarray([0.9, 0.5, 0.5, 0.5, 0.1]), np.asarray([1.0, 1, 0, 1, 0])
    best = best_threshold(scores, labels, Criterion.F1)
    assert (best.threshold, best.precision, best.recall) == (0.3, 0.75, 1.0)


def test_to_call_none_a_duplicate_may_be_the_most_accurate() -> None:
    scores, labels = np.asarray([0.9, 0.8, 0.7, 0.6]), np.asarray([0.0, 0, 0, 1])
    best = best_threshold(scores, labels, Criterion.ACCURACY)
    assert best.threshold > 0.9
    assert (best.accuracy, best.recall) == (0.75, 0.0)
    assert best_threshold(scores, labels, Criterion.F1).f1 == pytest.approx(0.4)


@given(low=st.floats(-1e6, 1e6, width=32), high=st.floats(-1e6, 1e6, width=32))
@no_deadline
def test_a_threshold_between_two_scores_survives_being_printed(low: float, high: float) -> None:
    if low == high:
        return
    low, high = sorted((low, high))
    threshold = shortest_between(low, high)
    assert low < float(str(threshold)) <= high


def test_a_threshold_is_short_where_it_can_be() -> None:
    assert [shortest_between(0.1, 0.9), shortest_between(0.41, 0.49), shortest_between(-0.5, 3.0)] == [0.5, 0.45, 1.0]
    neighbours = np.float32([0.7]).astype(np.float64)[0], np.nextafter(np.float32(0.7), np.float32(1)).astype(np.float64)
    assert neighbours[0] < shortest_between(*neighbours) <= neighbours[1]


@pytest.mark.parametrize("labels", [[0.0, 0.0], [1.0, 1.0]])
def test_labels_that_are_all_alike_judge_nothing(labels: list[float]) -> None:
    with pytest.raises(InputError, match="cannot judge a threshold"):
        measure_binary(np.asarray([0.1, 0.2]), np.asarray(labels))


def test_correlations_are_scipys_and_ranks_are_shared() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores, labels = np.asarray([0.1, 0.4, 0.4, 0.9]), np.asarray([0.0, 2.5, 2.5, 3.0])
    figures = measure_graded(scores, labels)
    assert figures.spearman == pytest.approx(1.0)
    assert figures.pearson == pytest.approx(stats.pearsonr(scores, labels).statistic)


def test_scores_that_are_all_equal_correlate_with_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = measure_graded(np.ones(3), np.asarray([1.0, 2, 3]))
    assert (figures.spearman, figures.pearson) == (None, None)
