"""How an activation's values are spread, and where to cut them off before they are quantized.

A cut trades two errors: values beyond it are clipped, and the wider it is, the coarser every step becomes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 2048
"""Bins on each side of zero."""
_LEVELS = 128
"""Steps of a symmetric int8 code on each side of zero."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of values in ``2 * BINS`` equal bins over [-largest, largest]; zero is the edge in the middle."""

    largest: float
    """Largest magnitude that has a bin, above zero."""
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, largest: float) -> Histogram:
        """No values yet, with room for magnitudes up to ``largest``."""
        return cls(largest=largest, counts=np.zeros(2 * BINS, dtype=np.int64))

    def with_values(self, values: NDArray[np.floating]) -> Histogram:
        """This histogram and further values of any shape; those beyond ``largest`` count in the outermost bins."""
        inside = np.clip(values.astype(np.float64), -self.largest, self.largest)
        counts, _ = np.histogram(inside, bins=2 * BINS, range=(-self.largest, self.largest))
        return Histogram(largest=self.largest, counts=self.counts + counts)

    @property
    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of the values' magnitudes in ``BINS`` bins over [0, largest]."""
        folded: NDArray[np.int64] = self.counts[BINS:] + self.counts[:BINS][::-1]
        return folded

    @property
    def step(self) -> float:
        """Width of a bin."""
        return self.largest / BINS


def find_percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The narrowest range, in whole bins, that leaves out at most half of the rest on each side.

    Args:
        histogram: Of at least one value.
        percentile: Share of the values that stay inside, above 0 to 100.

    Returns:
        The lower and the upper end.
    """
    outside = histogram.counts.sum() * (1 - percentile / 100) / 2
    below = int(np.searchsorted(np.cumsum(histogram.counts), outside, side="right"))
    above = int(np.searchsorted(np.cumsum(histogram.counts[::-1]), outside, side="right"))
    return (below - BINS) * histogram.step, (BINS - above) * histogram.step


def find_entropy_threshold(histogram: Histogram) -> float:
    """The magnitude to clip at so that a symmetric code of 128 levels a side loses the least information.

    For every candidate, the distribution clipped there is compared with what 128 levels can tell of it, by their
    Kullback-Leibler divergence (S. Migacz, 8-bit Inference with TensorRT, GTC 2017, "Entropy Calibration - pseudocode").
    The bin at zero counts as much as its neighbour, as in NVIDIA's pytorch-quantization: a spike there, which every GELU
    makes, would drown all the rest, though it is the one value that any code has exactly.

    Args:
        histogram: Of at least one value.
    """
    counts = histogram.magnitudes.astype(np.float64)
    counts[0] = counts[1]
    candidates = range(BINS, _LEVELS - 1, -1)  # widest first: of equals, clip least
    best = candidates[int(np.argmin([_divergence(counts, kept) for kept in candidates]))]
    return best * histogram.step


def _divergence(counts: NDArray[np.float64], kept: int) -> float:
    """From the first bins, all others clipped into the last of them, to what 128 levels can tell of the first bins."""
    inside = counts[:kept]
    present = inside > 0
    if not present[-1]:
        return np.inf  # what is clipped would land where the levels know of nothing; a narrower cut clips as much
    clipped = inside.copy()
    clipped[-1] += counts[kept:].sum()
    # A level spreads what its bins hold evenly over those of them that hold anything.
    edges = np.arange(_LEVELS) * kept // _LEVELS
    filled = np.maximum(np.add.reduceat(present, edges, dtype=np.int64), 1)
    level = np.add.reduceat(inside, edges) / filled
    coarse = np.repeat(level, np.diff([*edges, kept]))[present]
    fine = clipped[present]
    ratio = (fine / fine.sum()) / (coarse / coarse.sum())
    return float((fine * np.log(ratio)).sum() / fine.sum())
