"""How far two variants agree on an order."""

from __future__ import annotations

import math

import numpy as np

from crossforge.runtime.activation import Floats


def kendall_tau(a: Floats, b: Floats) -> float | None:
    """Kendall's tau-b between two score lists, each float32 [n].

    Pair by pair, a row at a time: nothing for millions, and no need of SciPy for the passages of one request.

    Returns:
        1 for the same order, -1 for the reverse; 0 where one of them ties everything and the other does not; None where
        there is no order at all: fewer than two passages, or all tied by both.
    """
    agreement, ordered_by_a, ordered_by_b = 0, 0, 0
    for i in range(len(a) - 1):
        signs_a, signs_b = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        agreement += int(signs_a @ signs_b)
        ordered_by_a += int(np.count_nonzero(signs_a))
        ordered_by_b += int(np.count_nonzero(signs_b))
    if not ordered_by_a and not ordered_by_b:
        return None
    return agreement / math.sqrt(ordered_by_a * ordered_by_b) if ordered_by_a and ordered_by_b else 0.0
