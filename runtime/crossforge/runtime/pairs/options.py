"""How pairs are read, marked and judged. Light: the command line reads it before anything else is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from crossforge.profiles import Activation, InputError


class Quoting(StrEnum):
    """Whether quotes around a field of a table belong to the format or to the text."""

    MINIMAL = "minimal"
    """To the format: a field that holds separators, quotes or line breaks stands in quotes, as RFC 4180 says."""
    NONE = "none"
    """To the text."""


@dataclass(frozen=True, kw_only=True)
class PairFormat:
    """What may be said about a file that it does not say itself."""

    label_column: str | None = None
    """The column that holds labels; None takes ``label``, ``score`` or ``is_duplicate``, if one of them is there."""
    quoting: Quoting | None = None
    """None takes ``minimal`` for ``.csv`` and ``none`` for ``.tsv``."""


class LabelKind(StrEnum):
    """What labels say of a pair."""

    BINARY = "binary"
    """Duplicates (1) or not (0)."""
    GRADED = "graded"
    """How similar, on any scale."""
    IGNORE = "ignore"
    """Nothing that is looked at."""


class Criterion(StrEnum):
    """What a threshold is chosen for."""

    F1 = "f1"
    ACCURACY = "accuracy"

    @property
    def word(self) -> str:
        """How it is written in a sentence."""
        return "F1" if self is Criterion.F1 else str(self)


@dataclass(frozen=True, kw_only=True)
class JudgingOptions:
    """How pairs are read, marked and judged."""

    threshold: float | None = None
    """Pairs that score as much or more are marked as duplicates; None marks none, unless one is chosen."""
    threshold_from: Path | None = None
    """Labelled pairs on which the threshold is chosen."""
    held_out: float | None = None
    """Share of the labelled pairs that figures are of; the threshold is chosen on the others."""
    seed: int = 0
    """Decides which pairs are held out."""
    criterion: Criterion = Criterion.F1
    """What a threshold is chosen for."""
    labels: LabelKind | None = None
    """What labels are; None finds out."""
    activation: Activation | None = None
    """Instead of the bundle's."""
    format: PairFormat = field(default_factory=PairFormat)

    def __post_init__(self) -> None:
        given = [n for n in ("threshold", "threshold_from", "held_out") if getattr(self, n) is not None]
        if len(given) > 1:
            raise InputError("the threshold has several sources", got=" and ".join(given), allowed="one of them")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise InputError("held_out is no share", got=self.held_out, allowed="more than 0, less than 1")
        if self.seed < 0:
            raise InputError("the seed is too small", got=self.seed, allowed="0 or more")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError("the threshold is not a number", got=self.threshold)
