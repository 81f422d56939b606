"""A bundle's variants judged by what a pair's score is used for: similarities, or telling duplicates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossforge.export.evaluation import choose_variants
from crossforge.export.requirements import require_extras
from crossforge.profiles import Activation, DeploymentProfile, InputError, Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.pairs.figures import (
    AtThreshold,
    BinaryFigures,
    GradedFigures,
    Numbers,
    average_precision,
    measure_at,
    measure_binary,
    measure_graded,
)
from crossforge.runtime.pairs.labels import survey_labels
from crossforge.runtime.pairs.options import Criterion, LabelKind, PairFormat
from crossforge.runtime.pairs.records import open_pairs
from crossforge.runtime.pairs.streaming import score_all
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.reranker import Reranker

_RESAMPLES = 1_000
_SEED = 0
_VALUES = 2**24
"""Pairs that all resamples draw together, at most: a million pairs get sixteen resamples, which is time enough."""


@dataclass(frozen=True, kw_only=True)
class PairDifference:
    """A variant's Spearman (graded labels) or average precision (binary ones) minus the reference's, on the same pairs."""

    mean: float
    interval_95: tuple[float, float]
    """Bootstrap interval over pairs, by percentiles."""


@dataclass(frozen=True, kw_only=True)
class VariantOnPairs:
    """One variant's scores against the labels."""

    binary: BinaryFigures | None
    graded: GradedFigures | None
    as_deployed: AtThreshold | None
    """At the threshold that maximises F1 of the reference: what a threshold that was chosen with it is worth here."""
    difference: PairDifference | None
    """None for the reference itself, and where a figure cannot be had."""
    largest_difference: float
    """Of a score to the reference's."""
    pairs_per_s: float
    """Scoring rate of this one pass, tokenization included; a rough figure, not a benchmark."""


@dataclass(frozen=True, kw_only=True)
class PairEvaluation:
    """All variants on the same pairs."""

    pairs: int
    """Those with a label."""
    labels: str
    """What they were taken for."""
    kind: LabelKind
    reference: Precision
    variants: dict[Precision, VariantOnPairs]


def evaluate_pairs(
    bundle: str | Path,
    file: str | Path,
    *,
    precisions: Sequence[Precision] | None = None,
    kind: LabelKind | None = None,
    pair_format: PairFormat | None = None,
    activation: Activation | None = None,
    provider: str = "auto",
    deployment: DeploymentProfile | None = None,
    progress: Progress | None = None,
) -> PairEvaluation:
    """Score labelled pairs with a bundle's variants, and measure how the scores agree with the labels.

    Graded labels give Spearman's and Pearson's correlation, binary ones average precision, F1 and accuracy.

    Args:
        bundle: The bundle's folder.
        file: Labelled pairs, as ``crossforge pairs`` reads them.
        precisions: The variants; None takes all, or the one that ``deployment`` names and fp32 to compare it with.
        kind: What the labels are; None finds out.
        pair_format: How to read the file.
        activation: Instead of the bundle's.
        provider: As in :meth:`Reranker.load`.
        deployment: How to run them. A variant that it does not name runs by the defaults where it names another.
        progress: Told of each stage.

    Raises:
        InputError: The file cannot be used, or has no labels.
        MissingPackageError: scipy is not installed.
        BundleError: The bundle cannot be used.
    """
    require_extras("evaluate", purpose="Evaluating")
    progress = progress or Silent()
    opened = Bundle.open(bundle)
    chosen = tuple(precisions or choose_variants(opened.manifest, deployment))
    reference = Precision.FP32 if Precision.FP32 in chosen else chosen[0]
    scores: dict[Precision, Numbers] = {}
    rates: dict[Precision, float] = {}
    with open_pairs(file, pair_format) as pairs:
        labels = survey_labels(pairs, kind, where=pairs.name)
        if labels.kind is None:
            raise InputError(f"{pairs.name} has no labels to judge by", fix="Name their column with --label-column.")
        for precision in (reference, *(other for other in chosen if other is not reference)):
            with progress.stage(f"score with {precision}") as stage:
                own = deployment if deployment is not None and deployment.precision in (None, precision) else None
                with Reranker.load(opened, precision=precision, provider=provider, deployment=own) as reranker:
                    start = time.perf_counter()
                    judged = (pair for pair in pairs if pair.label is not None)
                    scores[precision] = score_all(reranker, judged, activation=activation)
                    rates[precision] = len(scores[precision]) / (time.perf_counter() - start)
                stage.note = f"{len(scores[precision])} pairs"
    known = labels.values[labels.judged]
    is_binary = labels.kind is LabelKind.BINARY
    of_reference = measure_binary(scores[reference], known) if is_binary else None
    threshold = None if of_reference is None else of_reference.best[Criterion.F1].threshold
    return PairEvaluation(
        pairs=len(known),
        labels=labels.describe(),
        kind=labels.kind,
        reference=reference,
        variants={
            precision: VariantOnPairs(
                binary=measure_binary(scores[precision], known) if is_binary else None,
                graded=None if is_binary else measure_graded(scores[precision], known),
                as_deployed=None if threshold is None else measure_at(scores[precision], known, threshold),
                difference=None
                if precision is reference
                else compare_scores(scores[precision], scores[reference], known, is_binary=is_binary),
                largest_difference=float(np.abs(scores[precision] - scores[reference]).max()),
                pairs_per_s=rates[precision],
            )
            for precision in chosen
        },
    )


def compare_scores(variant: Numbers, reference: Numbers, labels: Numbers, *, is_binary: bool) -> PairDifference | None:
    """The difference of average precision (binary labels) or Spearman's correlation, with a bootstrap over pairs.

    A repeated call gives the same figures. Resamples in which the figure is not defined (labels all alike) are left out.

    Returns:
        None where the figure is not defined on the pairs themselves.
    """
    figure: Callable[[Numbers, Numbers], float | None] = _average_precision if is_binary else _spearman
    whole = _difference(figure, variant, reference, labels)
    if whole is None:
        return None
    generator = np.random.default_rng(_SEED)
    resamples = min(_RESAMPLES, max(1, _VALUES // len(labels)))
    drawn = (generator.integers(0, len(labels), size=len(labels)) for _ in range(resamples))
    found = [_difference(figure, variant[rows], reference[rows], labels[rows]) for rows in drawn]
    low, high = np.percentile([value for value in found if value is not None] or [whole], (2.5, 97.5))
    return PairDifference(mean=whole, interval_95=(float(low), float(high)))


def _difference(
    figure: Callable[[Numbers, Numbers], float | None], variant: Numbers, reference: Numbers, labels: Numbers
) -> float | None:
    ours, theirs = figure(variant, labels), figure(reference, labels)
    return None if ours is None or theirs is None else ours - theirs


def _average_precision(scores: Numbers, labels: Numbers) -> float | None:
    return average_precision(scores, labels) if 0 < labels.sum() < len(labels) else None


def _spearman(scores: Numbers, labels: Numbers) -> float | None:
    """Pearson's correlation of mean ranks: scipy's own tests for constant input cost most of a bootstrap."""
    from scipy.stats import rankdata

    if np.ptp(scores) == 0 or np.ptp(labels) == 0:
        return None
    return float(np.corrcoef(rankdata(scores), rankdata(labels))[0, 1])
