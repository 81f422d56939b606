"""Which pairs run together: planned purely, then laid out as arrays.

Pairs are sorted by their true token length, so that a batch holds pairs of nearly the same length, and cut by a budget of
*padded* tokens, so that a batch's work is bounded whatever the lengths are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import CostModel, InputError, OptimizationProfile, PairTemplate, batch_limits, check_profiles
from crossforge.runtime.makespan import fastest_cut
from crossforge.runtime.tokenization import EncodedPairs

Batch = dict[str, NDArray[np.int64]]
"""A model's inputs by name, each int64 [batch, sequence]."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """One batch: which pairs, and the length that they are padded to."""

    indices: NDArray[np.intp]
    """Positions of the pairs in the request: [batch]."""
    sequence_length: int
    """Tokens of the longest pair."""

    @property
    def padded_tokens(self) -> int:
        """``batch x sequence``: what the engine computes."""
        return len(self.indices) * self.sequence_length


def plan_batches(
    lengths: Sequence[int] | NDArray[np.int32],
    *,
    budget_tokens: int,
    workers: int = 1,
    profiles: Sequence[OptimizationProfile] = (),
    cost: CostModel | None = None,
) -> list[BatchPlan]:
    """Cut pairs into batches.

    The number of batches is the least that the budget allows, rounded up to a multiple of ``workers``; the cuts are then
    placed so that the largest batch is as small as possible, so that workers finish together.

    With profiles, a pair runs in the bucket of the shortest sequences that takes it: no batch holds pairs of two buckets,
    so each sits near the upper edge of its own, and none has more pairs than the bucket takes. A batch is still padded to
    its own longest pair, not to the edge: the engine takes any shape inside a profile.

    With a cost model, the cuts are placed for the least predicted time instead (:func:`~.makespan.fastest_cut`), under the
    same budget and profiles, and are never predicted to be slower than the cuts without it.

    Args:
        lengths: Tokens of each pair: [n].
        budget_tokens: Largest ``batch x sequence`` of a batch. A single pair longer than that gets a batch of its own.
        workers: Batches that can run at the same time.
        profiles: The shapes that the engine takes; none if it takes any.
        cost: Predicted times of batches.

    Returns:
        Batches that partition ``0..n-1``, longest first; each has a ``smallest_profile`` where there are profiles.

    Raises:
        InputError: The budget or the number of workers is below 1; the profiles leave shapes out; or a pair is longer than
            every profile.
    """
    if budget_tokens < 1 or workers < 1:
        raise InputError("cannot plan batches", got=f"budget_tokens {budget_tokens}, workers {workers}", allowed="1 or more")
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order].tolist()
    ends = _ends(descending, profiles) if profiles else [len(descending)] * len(descending)
    cuts = _cut(descending, ends, budget_tokens)
    allowed = min(-(-len(cuts) // workers) * workers, len(descending))
    low, high = 1, budget_tokens
    while low < high:  # the smallest budget that needs no more batches than allowed
        middle = (low + high) // 2
        if len(_cut(descending, ends, middle)) <= allowed:
            high = middle
        else:
            low = middle + 1
    starts = _cut(descending, ends, high)
    if cost is not None:
        full = np.arange(len(lengths)) + np.maximum(1, budget_tokens // np.maximum(1, lengths[order]))
        latest = np.minimum(ends, full).tolist()
        starts = fastest_cut(descending, latest, cost=cost, workers=workers, otherwise=starts)
    return [
        BatchPlan(indices=order[start:stop], sequence_length=descending[start])
        for start, stop in zip(starts, [*starts[1:], len(descending)], strict=True)
    ]


def _ends(descending: list[int], profiles: Sequence[OptimizationProfile]) -> list[int]:
    """Where a batch that starts at each pair has to end: after its bucket, or as many pairs as the bucket takes."""
    check_profiles(profiles)
    limits = batch_limits(profiles)
    edges, most = np.asarray(list(limits)), np.asarray(list(limits.values()))
    if descending[0] > edges[-1]:
        raise InputError(
            "a pair is longer than every profile",
            got=f"{descending[0]} tokens",
            allowed=f"up to {edges[-1]}",
            fix="Build the engine for profiles that reach the model's max_length.",
        )
    bucket = np.searchsorted(edges, descending)
    bucket_end = np.searchsorted(-bucket, -bucket, side="right")
    ends: list[int] = np.minimum(bucket_end, np.arange(len(bucket)) + most[bucket]).tolist()
    return ends


def _cut(descending: list[int], ends: list[int], budget_tokens: int) -> list[int]:
    """Where each batch starts when every batch takes as many pairs as its end and the budget allow."""
    starts, position, count = [], 0, len(descending)
    while position < count:  # the search above runs this a dozen times: no calls of min and max
        starts.append(position)
        full, end = position + (budget_tokens // (descending[position] or 1) or 1), ends[position]
        position = full if full < end else end
    return starts


def padding_waste(plans: Sequence[BatchPlan], lengths: NDArray[np.int32]) -> float:
    """Share of the computed tokens that are padding, 0.0 to 1.0."""
    padded = sum(plan.padded_tokens for plan in plans)
    return 1.0 - float(lengths.sum()) / padded if padded else 0.0


def collate(
    pairs: EncodedPairs, plan: BatchPlan, *, template: PairTemplate, pad_token_id: int, input_names: Sequence[str]
) -> Batch:
    """Lay a batch's pairs out as the model's inputs, padded on the right.

    Returns:
        Fresh arrays, int64 [batch, sequence], for exactly the names in ``input_names``.
    """
    shape = (len(plan.indices), plan.sequence_length)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    suffix = np.asarray(template.suffix.ids, dtype=np.int64)
    for row, i in enumerate(plan.indices):
        head, passage = pairs.heads[pairs.head_of_pair[i]], pairs.passages[i]
        passage_end = len(head) + len(passage)
        input_ids[row, : len(head)] = head
        input_ids[row, len(head) : passage_end] = passage
        input_ids[row, passage_end : passage_end + len(suffix)] = suffix
    batch: Batch = {"input_ids": input_ids}
    lengths = pairs.lengths[plan.indices, None]
    positions = np.arange(plan.sequence_length)
    if "attention_mask" in input_names:
        batch["attention_mask"] = (positions < lengths).astype(np.int64)
    if "token_type_ids" in input_names:
        batch["token_type_ids"] = _token_type_ids(pairs, plan, template)
    return batch


def _token_type_ids(pairs: EncodedPairs, plan: BatchPlan, template: PairTemplate) -> NDArray[np.int64]:
    type_ids = np.zeros((len(plan.indices), plan.sequence_length), dtype=np.int64)
    before = len(template.prefix.ids)
    for row, i in enumerate(plan.indices):
        head = len(pairs.heads[pairs.head_of_pair[i]])
        query_end = head - len(template.separator.ids)
        passage_end = head + len(pairs.passages[i])
        type_ids[row, :before] = template.prefix.type_ids
        type_ids[row, before:query_end] = template.query_type_id
        type_ids[row, query_end:head] = template.separator.type_ids
        type_ids[row, head:passage_end] = template.passage_type_id
        type_ids[row, passage_end : passage_end + len(template.suffix.ids)] = template.suffix.type_ids
    return type_ids
