"""Scores to a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError
from crossforge.runtime.activation import Floats
from crossforge.runtime.windows import Window


@dataclass(frozen=True, kw_only=True)
class RankedPassage:
    """One row of a ranking."""

    corpus_id: int
    """The passage's position in the list that was ranked."""
    score: float
    text: str
    truncated: bool
    """Whether the model did not see all of the query or the passage."""
    window: Window | None = None
    """The part of the passage that has this score, if the passage was split."""


def rank_passages(
    passages: Sequence[str],
    scores: Floats,
    truncated: NDArray[np.bool_],
    *,
    windows: Sequence[Window | None] | None = None,
    top_k: int | None = None,
) -> list[RankedPassage]:
    """Passages by their scores, float32 [n], best first; ties go to the passage that came first."""
    best_first = np.argsort(-scores, kind="stable")[:top_k]
    return [
        RankedPassage(
            corpus_id=int(i),
            score=float(scores[i]),
            text=passages[i],
            truncated=bool(truncated[i]),
            window=None if windows is None else windows[i],
        )
        for i in best_first
    ]


def check_top_k(top_k: int | None) -> None:
    """Refuse to return fewer than one passage.

    Raises:
        InputError: ``top_k`` is below 1.
    """
    if top_k is not None and top_k < 1:
        raise InputError("top_k is too small", got=top_k, allowed="1 or more")
