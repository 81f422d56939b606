"""What a reranker is asked: how long its pairs are, and how many come with a query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from crossforge.profiles.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Two histograms. Their counts are weights: only the proportions matter."""

    pair_lengths: Mapping[int, int]
    """Tokens of a pair, special tokens included -> how many pairs."""
    candidates: Mapping[int, int]
    """Pairs of a query -> how many queries."""

    def __post_init__(self) -> None:
        for name in ("pair_lengths", "candidates"):
            histogram: Mapping[int, int] = getattr(self, name)
            if not histogram:
                raise InputError(f"{name} is empty", allowed="one entry or more")
            for value, count in histogram.items():
                if value < 1 or count < 1:
                    raise InputError(f"{name} holds a bad entry", got=f"{value}: {count}", allowed="both 1 or more")

    @property
    def mean_length(self) -> float:
        """Tokens of a pair without any padding, on average."""
        pairs = sum(self.pair_lengths.values())
        return sum(length * count for length, count in self.pair_lengths.items()) / pairs


DEFAULT_WORKLOAD = Workload(
    pair_lengths={48: 2, 64: 14, 80: 26, 96: 18, 112: 10, 128: 10, 144: 8, 160: 6, 192: 3, 256: 1, 384: 1, 512: 1},
    candidates={20: 1, 50: 2, 100: 1},
)
"""For those who have no queries yet: web passages and short questions, in pairs per hundred.

Up to 256 it is the shape, rounded by hand, of what BM25 finds for the TREC Deep Learning 2019 queries in MS MARCO's passages
under a WordPiece vocabulary of 30,000. The two longest entries are a guess at the long chunks that other collections have
and MS MARCO has not, and so are the candidates.
"""


def quantile(histogram: Mapping[int, int], share: float) -> int:
    """The smallest value that is not below ``share`` (0.0 to 1.0) of a histogram's weight."""
    values = sorted(histogram)
    reached = list(accumulate(histogram[value] for value in values))
    wanted = share * reached[-1]
    return next((value for value, weight in zip(values, reached, strict=True) if weight >= wanted), values[-1])
