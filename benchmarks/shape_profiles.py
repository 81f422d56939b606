"""What optimization profiles chosen from real lengths save beside one profile for everything, without any GPU.

python benchmarks/shape_profiles.py [--profiles 4] [--max-tokens 16384] [--svg docs/img/shape-profiles.svg]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from common import demo_checkpoint, workload
from histogram_svg import draw
from numpy.typing import NDArray

from crossforge.profiles import (
    DEFAULT_WORKLOAD,
    OptimizationProfile,
    ShapeRange,
    Truncation,
    TruncationSide,
    expected_padded_length,
    explain_profiles,
    profiles_from_lengths,
)
from crossforge.runtime.batching import padding_waste, plan_batches
from crossforge.runtime.scoring import GPU_BUDGET_TOKENS
from crossforge.runtime.templates import derive_pair_template
from crossforge.runtime.tokenization import PairTokenizer, load_tokenizer
from crossforge.runtime.workload import workload_from_records

MAX_LENGTH = 512
MERGED = 10
"""Requests that a busy server runs together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", type=int, default=4, help="how many the picture shows")
    parser.add_argument("--max-tokens", type=int, default=GPU_BUDGET_TOKENS)
    parser.add_argument("--svg", type=Path, default=None)
    arguments = parser.parse_args()
    work, tokenizer = workload(), make_tokenizer()
    lengths = workload_from_records(work.records, tokenizer)
    halves = [workload_from_records(work.records[start::2], tokenizer) for start in (0, 1)]
    requests = [tokenizer.encode(record.query, [p.text for p in record.passages]).lengths for record in work.records]
    groups = range(0, len(requests) - MERGED + 1, MERGED)
    merged = [np.concatenate(requests[start : start + MERGED]) for start in groups]
    limits = {"max_length": MAX_LENGTH, "max_tokens": arguments.max_tokens}

    print(
        f"\n{work.name}: {len(requests)} requests, {sum(map(len, requests))} pairs, {lengths.mean_length:.1f} tokens a pair"
    )
    print(f"\n| profiles | upper edges{' ' * 24} | padded work | saved | other half | default's | even edges |")
    print(f"|----------|{'-' * 37}|-------------|-------|------------|-----------|------------|")
    for count in range(1, 7):
        chosen = profiles_from_lengths(lengths, **limits, max_profiles=count)
        foreign = profiles_from_lengths(halves[0], **limits, max_profiles=count)
        default = profiles_from_lengths(DEFAULT_WORKLOAD, **limits, max_profiles=count)
        padded = expected_padded_length(lengths, chosen)
        print(
            f"| {count:<8} | {', '.join(str(p.sequence_length.max) for p in chosen):<35} | {padded:<11.1f} "
            f"| {1 - padded / MAX_LENGTH:<5.1%} | {expected_padded_length(halves[1], foreign):<10.1f} "
            f"| {expected_padded_length(lengths, default):<9.1f} | {expected_padded_length(lengths, even(count)):<10.1f} |"
        )
    print(f"\n| profiles | batches a request | padding | batches for {MERGED} requests | padding |")
    print("|----------|-------------------|---------|-------------------------|---------|")
    for count in range(1, 7):
        profiles = profiles_from_lengths(lengths, **limits, max_profiles=count)
        alone, alone_waste = plan(requests, profiles, arguments.max_tokens)
        together, together_waste = plan(merged, profiles, arguments.max_tokens)
        print(
            f"| {count:<8} | {alone / len(requests):<17.1f} | {alone_waste:<7.1%} "
            f"| {together / len(merged):<23.1f} | {together_waste:<7.1%} |"
        )
    profiles = profiles_from_lengths(lengths, **limits, max_profiles=arguments.profiles)
    print("\n" + "\n".join(explain_profiles(lengths, profiles)))
    if arguments.svg is not None:
        padded = expected_padded_length(lengths, profiles)
        subtitle = (
            f"{work.name}: a pair of {lengths.mean_length:.0f} tokens on average takes the room of {padded:.0f}, "
            f"and of {MAX_LENGTH} in one profile for all"
        )
        picture = draw(
            lengths.pair_lengths,
            profiles,
            title=f"{len(profiles)} profiles, chosen from the lengths of {sum(map(len, requests)):,} pairs",
            subtitle=subtitle,
            max_length=MAX_LENGTH,
        )
        arguments.svg.parent.mkdir(parents=True, exist_ok=True)
        arguments.svg.write_text(picture, encoding="utf-8")


def make_tokenizer() -> PairTokenizer:
    tokenizer = load_tokenizer(demo_checkpoint() / "tokenizer.json")
    contract = Truncation(max_length=MAX_LENGTH, query_max_length=64, side=TruncationSide.RIGHT)
    return PairTokenizer(tokenizer, derive_pair_template(tokenizer), contract)


def even(count: int) -> list[OptimizationProfile]:
    """Buckets of equal width: what one writes down without looking."""
    one = ShapeRange(min=1, opt=1, max=1)
    edges = [0, *(round(MAX_LENGTH * (i + 1) / count) for i in range(count))]
    return [
        OptimizationProfile(batch_size=one, sequence_length=ShapeRange(min=low + 1, opt=high, max=high))
        for low, high in pairwise(edges)
    ]


def plan(
    requests: Sequence[NDArray[np.int32]], profiles: Sequence[OptimizationProfile], max_tokens: int
) -> tuple[int, float]:
    """Batches that requests take in all, and the share of their tokens that is padding."""
    plans = [plan_batches(lengths, budget_tokens=max_tokens, profiles=profiles) for lengths in requests]
    return sum(map(len, plans)), padding_waste([batch for batches in plans for batch in batches], np.concatenate(requests))


if __name__ == "__main__":
    main()
