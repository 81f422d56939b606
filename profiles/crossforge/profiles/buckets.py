"""Optimization profiles chosen from a workload: sequence-length buckets that leave as little to padding as possible.

**Padded work** counts every pair with the upper edge of its bucket. That is

- what is computed where shapes are fixed, as in CUDA graphs, but for rows that only fill a batch up;
- what is reserved, always: a batch in a bucket holds ``max_tokens // edge`` pairs however short they are, so padded work
  divided by ``max_tokens`` is about the number of full batches that the pairs need;
- an upper bound of what is computed where shapes are dynamic: ``plan_batches`` pads a batch to its own longest pair only.

It is linear in tokens. It leaves out the part of attention that grows with the square of the length (counting it would speak
for more buckets) and the fixed cost of running a batch (for fewer: a request splits into a batch a bucket).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

from crossforge.profiles.errors import InputError
from crossforge.profiles.shapes import OptimizationProfile, ShapeRange, batch_limits
from crossforge.profiles.workload import Workload, quantile

ALIGNMENT = 8
"""Buckets end at multiples of it, as NVIDIA's guides ask of the dimensions of half-precision matrix products."""
DEFAULT_MAX_PROFILES = 4
"""Each profile costs build time and an execution context's memory; docs/shape-profiles.md shows what a fifth would save."""


def profiles_from_lengths(
    workload: Workload, *, max_length: int, max_tokens: int, max_profiles: int = DEFAULT_MAX_PROFILES
) -> tuple[OptimizationProfile, ...]:
    """Choose the profiles with the least expected padded work, exactly, by dynamic programming over bucket edges.

    Edges stand at the lengths that occur, rounded up to a multiple of :data:`ALIGNMENT`; an edge anywhere else could be
    lowered to one of these for nothing. The last is ``max_length`` itself, whatever it is a multiple of. Among equal
    choices the one with the fewest profiles wins.

    The opt shape is what a batch is likely to look like. Its pairs are the bucket's share of a request of the median number
    of candidates; its length is the median of what the longest of so many pairs has. A bucket that no pair of the workload
    falls in is tuned for a whole request at its edge.

    Args:
        workload: What is asked. Pairs beyond ``max_length`` count as that long, since the tokenizer cuts them.
        max_length: Tokens of the longest pair that the tokenizer lets through.
        max_tokens: Largest ``batch x sequence`` that memory is reserved for. A bucket whose edge is beyond it still
            takes a batch of one pair.
        max_profiles: The most profiles to choose.

    Returns:
        Profiles in ascending order, whose sequence lengths partition ``1..max_length`` and whose batches start at 1.

    Raises:
        InputError: A limit is below 1.
    """
    for name, value in (("max_length", max_length), ("max_tokens", max_tokens), ("max_profiles", max_profiles)):
        if value < 1:
            raise InputError(f"{name} is too small", got=value, allowed="1 or more")
    lengths = _clip(workload, max_length)
    edges = _choose_edges(lengths, max_length, max_profiles)
    candidates = quantile(workload.candidates, 0.5)
    return tuple(_profile(low + 1, high, lengths, candidates, max_tokens) for low, high in pairwise((0, *edges)))


def expected_padded_length(workload: Workload, profiles: Sequence[OptimizationProfile]) -> float:
    """Expected padded work of a pair, in tokens: the mean upper edge of the buckets that the pairs fall in.

    Args:
        workload: What is asked. Pairs beyond the last edge count with it.
        profiles: As :func:`profiles_from_lengths` returns them, or any that pass ``check_profiles``.
    """
    edges = list(batch_limits(profiles))
    lengths = _clip(workload, edges[-1])
    padded = sum(count * next(edge for edge in edges if edge >= length) for length, count in lengths.items())
    return padded / lengths.total()


def explain_profiles(workload: Workload, profiles: Sequence[OptimizationProfile]) -> list[str]:
    """One sentence a profile and one about their sum, for people."""
    edges = list(batch_limits(profiles))
    lengths = _clip(workload, edges[-1])
    lines = []
    for profile in profiles:
        sequence, batch = profile.sequence_length, profile.batch_size
        share = sum(count for length, count in lengths.items() if length in sequence) / lengths.total()
        lines.append(
            f"{sequence} tokens: {share:.1%} of pairs, up to {batch.max} a batch, tuned for {batch.opt} x {sequence.opt}"
        )
    expected, mean = expected_padded_length(workload, profiles), sum(k * n for k, n in lengths.items()) / lengths.total()
    saved = f", {1 - expected / edges[-1]:.0%} less than in one profile of up to {edges[-1]}" if len(edges) > 1 else ""
    lines.append(f"A pair of {mean:.0f} tokens on average takes the room of {expected:.0f}{saved}.")
    return lines


def _clip(workload: Workload, max_length: int) -> Counter[int]:
    lengths: Counter[int] = Counter()
    for length, count in workload.pair_lengths.items():
        lengths[min(length, max_length)] += count
    return lengths


def _align(length: int, max_length: int) -> int:
    return min(-(-length // ALIGNMENT) * ALIGNMENT, max_length)


def _choose_edges(lengths: Counter[int], max_length: int, max_profiles: int) -> tuple[int, ...]:
    """The upper edges of at most ``max_profiles`` buckets with the least padded work."""
    pairs_at = Counter({max_length: 0})
    for length, count in lengths.items():
        pairs_at[_align(length, max_length)] += count
    edges = sorted(pairs_at)
    pairs_up_to = list(accumulate(pairs_at[edge] for edge in edges))
    # best[j]: padded work of every pair up to edges[j], and the buckets, the last of which ends there.
    best: list[tuple[int, tuple[int, ...]]]
    best = [(edge * pairs, (edge,)) for edge, pairs in zip(edges, pairs_up_to, strict=True)]
    for _ in range(max_profiles - 1):
        longer = best[:1]
        for j in range(1, len(edges)):
            work, _, i = min(
                (best[i][0] + edges[j] * (pairs_up_to[j] - pairs_up_to[i]), len(best[i][1]), i) for i in range(j)
            )
            longer.append((work, (*best[i][1], edges[j])) if work < best[j][0] else best[j])
        best = longer
    return best[-1][1]


def _profile(low: int, high: int, lengths: Counter[int], candidates: int, max_tokens: int) -> OptimizationProfile:
    inside = {length: count for length, count in lengths.items() if low <= length <= high}
    most = max(1, max_tokens // high)
    share = sum(inside.values()) / lengths.total() if inside else 1.0
    likely = min(max(1, round(candidates * share)), most)
    # The longest of n pairs lies below the length at 2^(-1/n) of the bucket's pairs in half of all batches.
    longest = _align(quantile(inside, 0.5 ** (1 / likely)), high) if inside else high
    return OptimizationProfile(
        batch_size=ShapeRange(min=1, opt=likely, max=most),
        sequence_length=ShapeRange(min=low, opt=longest, max=high),
    )
