"""Pairs that are the same to the model are computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossforge.runtime.tokenization import EncodedPairs


@dataclass(frozen=True, kw_only=True)
class DistinctPairs:
    """The pairs of a request that differ, and where each asked pair is found among them."""

    pairs: EncodedPairs
    """Each different pair once, in the order of its first appearance."""
    position: NDArray[np.intp]
    """The position in ``pairs`` of each pair that was asked for: [n]."""


def find_distinct(asked: EncodedPairs) -> DistinctPairs:
    """Leave out pairs whose query and passage tokens equal those of an earlier pair.

    What a model answers to equal tokens is equal, so this changes no score. Retrieved passages repeat more often than one
    thinks: overlapping chunks, mirrored pages, passages that are alike once they are cut.

    Args:
        asked: Encoded pairs; the result shares their arrays.
    """
    index_of_pair: dict[tuple[int, bytes], int] = {}
    keys = zip(asked.head_of_pair.tolist(), (ids.tobytes() for ids in asked.passages), strict=True)
    position = np.asarray([index_of_pair.setdefault(key, len(index_of_pair)) for key in keys], dtype=np.intp)
    if len(index_of_pair) == len(asked):
        return DistinctPairs(pairs=asked, position=position)
    first = np.unique(position, return_index=True)[1]
    return DistinctPairs(pairs=asked.take(first), position=position)
