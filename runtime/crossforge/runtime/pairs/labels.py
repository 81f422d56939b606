"""What a file's labels are: read through once, before anything is scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError
from crossforge.runtime.pairs.options import LabelKind
from crossforge.runtime.pairs.records import TextPair


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of all pairs of a file."""

    kind: LabelKind | None
    """None where no pair has one."""
    values: NDArray[np.float64]
    """NaN where a pair has none: float64 [pairs]."""

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Pairs with a label: bool [pairs]."""
        known: NDArray[np.bool_] = ~np.isnan(self.values)
        return known

    def describe(self) -> str:
        """What they were taken for, and why."""
        missing = len(self.values) - int(self.judged.sum())
        rest = f"; {missing} of {len(self.values)} pairs have none and are left out of the figures" if missing else ""
        if self.kind is LabelKind.BINARY:
            return f"binary, every one is 0 or 1{rest}"
        if self.kind is LabelKind.GRADED:
            return f"graded, {np.nanmin(self.values):g} to {np.nanmax(self.values):g}{rest}"
        return "none"


def survey_labels(pairs: Iterable[TextPair], kind: LabelKind | None = None, *, where: str = "the file") -> Labels:
    """Read all pairs, and decide what their labels are: binary if each is 0 or 1, otherwise graded.

    Args:
        pairs: All of them; a bad line ends it here, before anything is scored.
        kind: Decides instead.
        where: What an error calls the file.

    Raises:
        InputError: There is no pair, a label does not suit ``kind``, or all labels are alike.
    """
    values = np.fromiter((np.nan if pair.label is None else pair.label for pair in pairs), dtype=np.float64)
    if not len(values):
        raise InputError(f"{where} holds no pair")
    known = values[~np.isnan(values)]
    if kind is LabelKind.IGNORE or not len(known):
        return Labels(kind=None, values=np.full(len(values), np.nan))
    is_binary = bool(np.isin(known, (0.0, 1.0)).all())
    if kind is LabelKind.BINARY and not is_binary:
        raise InputError(
            f"{where} has labels that are not binary", got=f"{known[~np.isin(known, (0.0, 1.0))][0]:g}", allowed="0 and 1"
        )
    if known.min() == known.max():
        raise InputError(
            f"the labels of {where} tell nothing apart",
            got=f"{known[0]:g} for all of {len(known)}",
            fix="Say --labels ignore to score the pairs alone.",
        )
    return Labels(kind=kind or (LabelKind.BINARY if is_binary else LabelKind.GRADED), values=values)
