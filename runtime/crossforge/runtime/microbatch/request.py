"""Requests on their way, and the batches that their pairs are merged into."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import CostModel, OptimizationProfile
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import plan_batches
from crossforge.runtime.distinct import find_distinct
from crossforge.runtime.microbatch.fair_queue import Slice
from crossforge.runtime.scored import ScoredPairs
from crossforge.runtime.timing import RequestTimes
from crossforge.runtime.tokenization import EncodedPairs


@dataclass(eq=False, kw_only=True)
class Request:
    """One request that was taken. Fields change under the batcher's lock alone."""

    asked: EncodedPairs
    labels: int
    """Columns that the model answers with."""
    future: Future[ScoredPairs]
    expires_at: float | None
    """On the batcher's clock, in seconds, as all times here."""
    ranking_label: int | None = None
    """The label that chooses among the windows of a passage, where there are any."""
    submitted_at: float = 0.0
    encoding_at: float = 0.0
    encoded_at: float = 0.0
    started_at: float | None = None
    """When its first batch began."""
    pairs: EncodedPairs = field(init=False)
    """Those that differ: what is computed."""
    logits: Floats = field(init=False)
    """float32 [len(pairs), labels], filled batch by batch."""
    pending_pairs: int = field(init=False)
    pending_tokens: int = field(init=False)
    batches: int = 0
    padded_tokens: int = 0
    settled: bool = False
    """Answered, failed or cancelled: what is left of it need not be computed."""

    def __post_init__(self) -> None:
        distinct = find_distinct(self.asked)
        self.pairs, self._position = distinct.pairs, distinct.position
        self.logits = np.empty((len(self.pairs), self.labels), dtype=np.float32)
        self.pending_pairs = len(self.pairs)
        self.pending_tokens = int(self.pairs.lengths.sum())

    def has_expired(self, now: float) -> bool:
        """Whether its deadline has passed."""
        return self.expires_at is not None and now >= self.expires_at

    def receive(self, indices: NDArray[np.intp], logits: Floats, padded_tokens: int) -> None:
        """Take the logits of some pairs, float32 [len(indices), labels]."""
        self.logits[indices] = logits
        self.pending_pairs -= len(indices)
        self.pending_tokens -= int(self.pairs.lengths[indices].sum())
        self.padded_tokens += padded_tokens
        self.batches += 1

    def times(self, now: float) -> RequestTimes:
        """Where its time went, if it is complete now."""
        started_at = now if self.started_at is None else self.started_at
        return RequestTimes(
            queue_s=self.encoding_at - self.submitted_at + started_at - self.encoded_at,
            tokenize_s=self.encoded_at - self.encoding_at,
            compute_s=now - started_at,
        )

    def result(self, now: float) -> ScoredPairs:
        """The answer, once no pair is pending."""
        return ScoredPairs.of(
            self.asked,
            self.logits[self._position],
            batches=self.batches,
            padding_waste=1.0 - float(self.pairs.lengths.sum()) / self.padded_tokens if self.padded_tokens else 0.0,
            ranking_label=self.ranking_label,
            times=self.times(now),
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pairs of one request in a batch."""

    request: Request
    indices: NDArray[np.intp]
    """Positions of the pairs in the request: [n]."""


def plan_round(
    slices: Sequence[Slice[Request]],
    *,
    budget_tokens: int,
    workers: int,
    profiles: Sequence[OptimizationProfile],
    cost: CostModel | None,
) -> list[list[Part]]:
    """Merge slices of any requests into batches, each a list of parts; see :func:`plan_batches`."""
    indices = np.concatenate([piece.indices for piece in slices])
    owners = np.repeat(np.arange(len(slices)), [len(piece.indices) for piece in slices])
    lengths = np.concatenate([piece.owner.pairs.lengths[piece.indices] for piece in slices])
    batches = []
    for plan in plan_batches(lengths, budget_tokens=budget_tokens, workers=workers, profiles=profiles, cost=cost):
        members: dict[Request, list[int]] = {}
        for position in plan.indices.tolist():
            members.setdefault(slices[owners[position]].owner, []).append(indices[position])
        batches.append([Part(request=request, indices=np.asarray(mine)) for request, mine in members.items()])
    return batches


def join_pairs(parts: Sequence[Part]) -> EncodedPairs:
    """The pairs of several requests as one set, in the order of the parts."""
    first_head = np.cumsum([0, *(len(part.request.pairs.heads) for part in parts)])

    def each(name: str) -> list[NDArray[np.generic]]:
        return [getattr(part.request.pairs, name)[part.indices] for part in parts]

    return EncodedPairs(
        heads=tuple(head for part in parts for head in part.request.pairs.heads),
        head_of_pair=np.concatenate(
            [start + heads for start, heads in zip(first_head[:-1], each("head_of_pair"), strict=True)]
        ),
        passages=tuple(part.request.pairs.passages[i] for part in parts for i in part.indices),
        lengths=np.concatenate(each("lengths")),
        truncated=np.concatenate(each("truncated")),
        query_truncated=np.concatenate(each("query_truncated")),
        unknown_tokens=np.concatenate(each("unknown_tokens")),
        mostly_unknown=np.concatenate(each("mostly_unknown")),
    )
