"""How well scores agree with labels. Equal scores are never told apart: a threshold takes all of them or none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError, MissingPackageError
from crossforge.runtime.pairs.options import Criterion

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """Pairs whose score reaches a threshold, called duplicates, against what the labels say."""

    threshold: float
    precision: float
    """Share of the pairs called duplicates that are; 0 where none is called so."""
    recall: float
    """Share of the duplicates that are called so."""
    f1: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class BinaryFigures:
    """What scores are worth for telling duplicates."""

    pairs: int
    duplicates: int
    """By the labels."""
    average_precision: float
    """Sum over the distinct scores of precision times the recall gained; needs no threshold."""
    at_threshold: AtThreshold | None
    """At the threshold that was asked for."""
    best: dict[Criterion, AtThreshold]
    """At the thresholds that are best on these very pairs, hence optimistic."""


@dataclass(frozen=True, kw_only=True)
class GradedFigures:
    """What scores are worth as similarities."""

    pairs: int
    spearman: float | None
    """Correlation of ranks, equal values sharing their mean rank; None where all scores are equal."""
    pearson: float | None


def measure_binary(scores: Numbers, labels: Numbers, threshold: float | None = None) -> BinaryFigures:
    """Measure scores, float64 [pairs], against labels of 0 and 1, float64 [pairs], which must both occur."""
    _check(scores, labels)
    return BinaryFigures(
        pairs=len(scores),
        duplicates=int((labels == 1).sum()),
        average_precision=average_precision(scores, labels),
        at_threshold=None if threshold is None else measure_at(scores, labels, threshold),
        best={criterion: best_threshold(scores, labels, criterion) for criterion in Criterion},
    )


def measure_graded(scores: Numbers, labels: Numbers) -> GradedFigures:
    """Measure scores, float64 [pairs], against graded similarities, float64 [pairs].

    Raises:
        MissingPackageError: scipy is not installed.
    """
    try:
        from scipy.stats import pearsonr, spearmanr
    except ImportError as error:
        raise MissingPackageError("scipy", extra="evaluate", purpose="Correlating scores with labels") from error
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(labels) == 0:
        return GradedFigures(pairs=len(scores), spearman=None, pearson=None)
    return GradedFigures(
        pairs=len(scores),
        spearman=float(spearmanr(scores, labels).statistic),
        pearson=float(pearsonr(scores, labels).statistic),
    )


def measure_at(scores: Numbers, labels: Numbers, threshold: float) -> AtThreshold:
    """Call every pair whose score is ``threshold`` or more a duplicate, and compare with the labels."""
    called, are = scores >= threshold, labels == 1
    hits = int((called & are).sum())
    return _figures(threshold, hits, int(called.sum()), int(are.sum()), len(scores))


def average_precision(scores: Numbers, labels: Numbers) -> float:
    """Average precision, as scikit-learn defines it: no interpolation, equal scores at once."""
    _, called, hits = _cuts(scores, labels)
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / called).sum())


def best_threshold(scores: Numbers, labels: Numbers, criterion: Criterion) -> AtThreshold:
    """The threshold that is best on these pairs; of several that are equally good, the highest.

    It lies between two scores, on the shortest decimal fraction that does, so that it survives being printed.
    """
    values, called, hits = _cuts(scores, labels)
    called, hits = np.append(0, called), np.append(0, hits)  # to call none a duplicate may be the most accurate
    duplicates, total = int(hits[-1]), len(scores)
    right = hits if criterion is Criterion.F1 else total - called - duplicates + 2 * hits
    merit = 2 * right / (called + duplicates) if criterion is Criterion.F1 else right / total
    best = int(np.argmax(merit))
    margin = 0.01 * (float(np.ptp(scores)) or 1.0)
    edges = [float(values[0]) + margin, *values.tolist(), float(values[-1]) - margin]
    threshold = shortest_between(edges[best + 1], edges[best])
    return _figures(threshold, int(hits[best]), int(called[best]), duplicates, total)


def shortest_between(lower: float, upper: float) -> float:
    """The number of fewest decimals above ``lower`` and up to ``upper``, near their middle."""
    middle = lower + (upper - lower) / 2
    for decimals in range(18):
        if lower < (rounded := round(middle, decimals)) <= upper:
            return rounded
    return upper


def _cuts(scores: Numbers, labels: Numbers) -> tuple[Numbers, NDArray[np.intp], NDArray[np.intp]]:
    """The distinct scores, highest first; how many pairs each one as a threshold calls duplicates; how many of them are."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    return ordered[last], last + 1, np.cumsum(labels[order] == 1)[last]


def _figures(threshold: float, hits: int, called: int, duplicates: int, total: int) -> AtThreshold:
    return AtThreshold(
        threshold=threshold,
        precision=hits / called if called else 0.0,
        recall=hits / duplicates if duplicates else 0.0,
        f1=2 * hits / (called + duplicates) if called + duplicates else 0.0,
        accuracy=(total - called - duplicates + 2 * hits) / total,
    )


def _check(scores: Numbers, labels: Numbers) -> None:
    if not 0 < (duplicates := int((labels == 1).sum())) < len(scores):
        raise InputError(
            "the labelled pairs cannot judge a threshold",
            got=f"{duplicates} duplicates among {len(scores)} pairs",
            allowed="some duplicates and some others",
        )
