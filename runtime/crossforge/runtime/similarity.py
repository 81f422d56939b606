"""How close embeddings are, always in float32; larger is closer."""

from __future__ import annotations

import numpy as np

from crossforge.profiles import Similarity
from crossforge.runtime.activation import Floats

_SHORTEST = 1e-12
"""A vector shorter than this is not scaled to length 1; torch's constant."""
_ROWS_AT_ONCE = 16
"""Rows of a Manhattan distance that are computed together: each takes ``m x dimension`` numbers of scratch."""


def compare_all(a: Floats, b: Floats, similarity: Similarity) -> Floats:
    """Compare every vector with every other: float32 [n, dim] and float32 [m, dim] -> float32 [n, m]."""
    if similarity is Similarity.COSINE:
        a, b, similarity = _unit(a), _unit(b), Similarity.DOT
    result: Floats = np.empty((len(a), len(b)), dtype=np.float32)
    if similarity is Similarity.DOT:
        np.matmul(a, b.T, out=result)
        return result
    if similarity is Similarity.MANHATTAN:
        for start in range(0, len(a), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            result[rows] = -np.abs(a[rows, None] - b[None]).sum(axis=2)
        return result
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)  # squares cancel where vectors are close
    squared = (wide_a**2).sum(axis=1)[:, None] + (wide_b**2).sum(axis=1)[None] - 2 * (wide_a @ wide_b.T)
    result[:] = -np.sqrt(np.maximum(squared, 0))
    return result


def compare_pairwise(a: Floats, b: Floats, similarity: Similarity) -> Floats:
    """Compare vectors row by row: float32 [n, dim] and float32 [n, dim] -> float32 [n]."""
    result: Floats
    if similarity is Similarity.COSINE:
        result = (_unit(a) * _unit(b)).sum(axis=1)
    elif similarity is Similarity.DOT:
        result = (a * b).sum(axis=1)
    elif similarity is Similarity.MANHATTAN:
        result = -np.abs(a - b).sum(axis=1)
    else:
        result = -np.sqrt(((a - b) ** 2).sum(axis=1))
    return result


def _unit(vectors: Floats) -> Floats:
    lengths = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    unit: Floats = vectors / np.maximum(lengths, np.float32(_SHORTEST))
    return unit
