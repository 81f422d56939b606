"""When int8 ranks differently: find the layers that it hurts, and leave the fewest of them in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan

from crossforge.runtime.progress import Stage

Loss = Callable[[frozenset[str]], float]
"""From the layers that are quantized (all others float32) to the mean difference of the logits."""
Verdict = Callable[[frozenset[str]], bool]
"""Whether the model passes its gate with these layers left in float32."""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What the search found."""

    keep_fp32: tuple[str, ...]
    """The layers that stay in float32, most sensitive first; all of them if nothing less passes."""
    sensitivity: dict[str, float]
    """The loss of each layer quantized alone."""


def find_repair(products: Sequence[str], loss: Loss, passes: Verdict, *, stage: Stage | None = None) -> Repair:
    """Find the fewest layers to leave in float32, most sensitive first, with which a variant passes its gate.

    Each layer is quantized alone to learn what it costs. The number of layers to leave is then found by bisection, which
    takes for granted that leaving one more never makes a passing variant fail.

    Args:
        products: The layers that can be quantized, by their weights.
        loss: Measures a choice of quantized layers, on calibration pairs.
        passes: Judges a choice of layers left in float32, on verification pairs.
        stage: Told how far the search is.
    """
    stage = stage or Stage()
    sensitivity: dict[str, float] = {}
    for done, weight in enumerate(products, start=1):
        sensitivity[weight] = loss(frozenset({weight}))
        stage.advance(done, len(products))
    # What is no number is worse than any: sorting by it as it is would leave the order to chance.
    order: Sequence[str] = sorted(sensitivity, key=lambda weight: (not isnan(sensitivity[weight]), -sensitivity[weight]))
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        if passes(frozenset(order[:middle])):
            high = middle
        else:
            low = middle + 1
    return Repair(keep_fp32=tuple(order[:high]), sensitivity=sensitivity)
