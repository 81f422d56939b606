"""A file of pairs, scored, marked at a threshold, and judged by its labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError
from crossforge.runtime.pairs.figures import (
    BinaryFigures,
    GradedFigures,
    best_threshold,
    measure_binary,
    measure_graded,
)
from crossforge.runtime.pairs.labels import Labels, survey_labels
from crossforge.runtime.pairs.options import JudgingOptions, LabelKind
from crossforge.runtime.pairs.records import PairFile, open_pairs
from crossforge.runtime.pairs.streaming import ScoredPair, score_all, score_stream
from crossforge.runtime.reranker import Reranker


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a file."""

    pairs: int
    marked: int | None
    """Pairs that reach the threshold; None without one."""
    threshold: float | None
    threshold_source: str | None
    """Where the threshold is from, in words."""
    labels: str
    """What the labels were taken for."""
    binary: BinaryFigures | None
    graded: GradedFigures | None
    truncated: int
    text1_truncated: int
    mostly_unknown: int


class PairJudge:
    """Judges one file with one reranker: prepare, iterate once, then ask for the summary.

    Args:
        file: The pairs; read twice, and three times if a part is held out. All of it is checked before anything is scored.
        options: How.

    Raises:
        InputError: A line cannot be used, or the labels do not suit the options.
    """

    def __init__(self, file: PairFile, options: JudgingOptions | None = None) -> None:
        self._file = file
        self._options = options = options or JudgingOptions()
        self.labels = survey_labels(file, options.labels, where=file.name)
        if options.held_out is not None and self.labels.kind is not LabelKind.BINARY:
            raise InputError(
                f"{file.name} has no binary labels to choose a threshold on", got=f"labels: {self.labels.describe()}"
            )
        column = options.format.label_column
        if column is not None and not self.labels.judged.any() and options.labels is not LabelKind.IGNORE:
            raise InputError(f"no pair of {file.name} has a label", got=f"--label-column {column}")
        self.threshold: float | None = options.threshold
        self.threshold_source: str | None = None if options.threshold is None else "as given"
        self._tuning = np.zeros(len(self.labels.values), dtype=bool)
        self._scores = np.full(len(self.labels.values), np.nan)
        self._marked = self._truncated = self._text1_truncated = self._mostly_unknown = 0

    def __len__(self) -> int:
        return len(self.labels.values)

    def run(self, reranker: Reranker) -> Iterator[tuple[ScoredPair, bool | None]]:
        """Score the file's pairs in their order; with each, whether it is marked, or None without a threshold.

        Raises:
            InputError: As :func:`score_stream`; or the file changed meanwhile.
        """
        options = self._options
        if options.threshold_from is not None:
            self._choose_elsewhere(reranker, options.threshold_from)
        elif options.held_out is not None:
            self._choose_on_part(reranker, options.held_out)
        for i, row in enumerate(score_stream(reranker, self._file, activation=options.activation)):
            if i >= len(self):
                raise InputError(f"{self._file.name} grew while it was read")
            self._scores[i] = row.score
            marked = None if self.threshold is None else row.score >= self.threshold
            self._marked += bool(marked)
            self._truncated += row.truncated
            self._text1_truncated += row.text1_truncated
            self._mostly_unknown += row.mostly_unknown
            yield row, marked
        if np.isnan(self._scores).any():
            raise InputError(f"{self._file.name} shrank while it was read")

    def summarize(self) -> Summary:
        """The figures, once all pairs have been scored."""
        judged = self.labels.judged & ~self._tuning
        scores, values = self._scores[judged], self.labels.values[judged]
        kind = self.labels.kind
        return Summary(
            pairs=len(self),
            marked=None if self.threshold is None else self._marked,
            threshold=self.threshold,
            threshold_source=self.threshold_source,
            labels=self.labels.describe(),
            binary=measure_binary(scores, values, self.threshold) if kind is LabelKind.BINARY else None,
            graded=measure_graded(scores, values) if kind is LabelKind.GRADED else None,
            truncated=self._truncated,
            text1_truncated=self._text1_truncated,
            mostly_unknown=self._mostly_unknown,
        )

    def _choose_elsewhere(self, reranker: Reranker, path: Path) -> None:
        options = self._options
        with open_pairs(path, options.format) as other:
            labels = survey_labels(other, where=other.name)
            scores = score_all(reranker, other, activation=options.activation)
        self._choose(scores, labels, f"{options.criterion.word} on {other.name}")

    def _choose_on_part(self, reranker: Reranker, held_out: float) -> None:
        options = self._options
        self._tuning = split(self.labels.values, 1 - held_out, options.seed)
        pairs = (pair for pair, chosen in zip(self._file, self._tuning, strict=False) if chosen)
        scores = score_all(reranker, pairs, activation=options.activation)
        count, rest = int(self._tuning.sum()), int((self.labels.judged & ~self._tuning).sum())
        part = Labels(kind=self.labels.kind, values=self.labels.values[self._tuning])
        self._choose(scores, part, f"{options.criterion.word} on {count} pairs, the figures are of the other {rest}")

    def _choose(self, scores: NDArray[np.float64], labels: Labels, where: str) -> None:
        if labels.kind is not LabelKind.BINARY:
            raise InputError(
                "a threshold is chosen on binary labels", got=f"{where}: labels {labels.describe()}", allowed="0 and 1"
            )
        judged = labels.judged
        self.threshold = best_threshold(scores[judged], labels.values[judged], self._options.criterion).threshold
        self.threshold_source = f"best {where}"


def split(labels: NDArray[np.float64], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose a share of the labelled pairs, duplicates and others alike: bool [pairs].

    Raises:
        InputError: There are not two of a kind, one for each part.
    """
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in (0.0, 1.0):
        places = np.flatnonzero(labels == label)
        if len(places) < 2:
            raise InputError(
                "too few labels to hold some out", got=f"{len(places)} of {label:g}", allowed="2 or more of each"
            )
        count = min(max(round(share * len(places)), 1), len(places) - 1)
        chosen[generator.permutation(places)[:count]] = True
    return chosen
