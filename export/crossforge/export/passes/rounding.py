"""Rounding weights so that the layer's output, not each weight, changes least.

Rounding to nearest treats every weight alike. The output error of a layer is ``|X (W - Q)|``, and through the correlations
in ``X`` the error made in one row of ``W`` can be made up for in rows that are not rounded yet. This is the scheme of
Optimal Brain Quantization with the fixed order and the Cholesky form of GPTQ (Frantar et al., 2022, arXiv:2210.17323),
written for one scale a column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 127
"""Steps on each side of zero."""
REDUCED_LEVELS = 63
"""Half as many: the sum of two u8 x s8 products then fits 16 bits, and no processor saturates."""
_SMALLEST_SCALE = 1e-12
_DAMPING = 0.01
"""Share of the mean diagonal that is added to it: keeps the inverse tame where channels hardly vary."""
_BLOCK_ROWS = 128
"""Rows whose corrections are gathered before they are applied to the rest in one product."""


def column_scales(weight: NDArray[np.floating], levels: int = LEVELS) -> NDArray[np.float32]:
    """Symmetric int8 scales, float [in, out] -> float32 [out]."""
    scales: NDArray[np.float32] = np.maximum(np.abs(weight).max(axis=0) / levels, _SMALLEST_SCALE).astype(np.float32)
    return scales


def round_to_nearest(weight: NDArray[np.floating], scales: NDArray[np.float32], levels: int = LEVELS) -> NDArray[np.int8]:
    """Float [in, out] and float32 [out] -> int8 [in, out]."""
    rounded: NDArray[np.int8] = np.clip(np.rint(weight / scales), -levels, levels).astype(np.int8)
    return rounded


def quantize_columns(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale a column, to nearest: float [in, out] -> int8 [in, out], float32 [out]."""
    scales = column_scales(weight)
    return round_to_nearest(weight, scales), scales


def round_by_output(
    weight: NDArray[np.floating], scales: NDArray[np.float32], gram: NDArray[np.float64], levels: int = LEVELS
) -> NDArray[np.int8]:
    """Round a weight so that its layer's output changes least on calibration pairs.

    Args:
        weight: float [in, out].
        scales: float32 [out].
        gram: Mean outer product of the layer's inputs, [in, in]; see :class:`ActivationStatistics`.
        levels: Steps on each side of zero that ``scales`` were made for.

    Returns:
        int8 [in, out].
    """
    # Rows that matter most go first, while there are still many rows left to make up for their error.
    order = np.argsort(-np.diag(gram), kind="stable")
    rest = weight[order].astype(np.float64)
    damped = gram[np.ix_(order, order)].copy()
    damped[np.diag_indices_from(damped)] += _DAMPING * max(float(np.mean(np.diag(gram))), _SMALLEST_SCALE)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rounded = np.empty_like(rest)
    for start in range(0, len(rest), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(rest))
        errors = np.empty((stop - start, rest.shape[1]))
        for row in range(start, stop):
            rounded[row] = np.clip(np.rint(rest[row] / scales), -levels, levels)
            error = (rest[row] - rounded[row] * scales) / upper[row, row]
            rest[row + 1 : stop] -= np.outer(upper[row, row + 1 : stop], error)
            errors[row - start] = error
        rest[stop:] -= upper[start:stop, stop:].T @ errors
    result = np.empty(weight.shape, dtype=np.int8)
    result[order] = rounded
    return result
