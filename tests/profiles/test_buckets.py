from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import (
    DEFAULT_WORKLOAD,
    InputError,
    OptimizationProfile,
    Workload,
    check_profiles,
    expected_padded_length,
    explain_profiles,
    profiles_from_lengths,
    smallest_profile,
)
from crossforge.profiles.buckets import ALIGNMENT
from support.strategies import histograms, no_deadline

workloads = st.builds(
    lambda pair_lengths, candidates: Workload(pair_lengths=pair_lengths, candidates=candidates),
    histograms,
    st.dictionaries(st.integers(1, 1000), st.integers(1, 9), min_size=1, max_size=4),
)
max_lengths = st.integers(1, 600)
max_tokens = st.integers(1, 20_000)
profile_counts = st.integers(1, 6)


def padded_work(lengths: dict[int, int], edges: tuple[int, ...]) -> int:
    """Tokens of all pairs, each with the first edge that is not below it; pairs beyond the last edge with that."""
    return sum(count * next((edge for edge in edges if edge >= length), edges[-1]) for length, count in lengths.items())


def least_padded_work(lengths: dict[int, int], max_length: int, most: int) -> tuple[int, int]:
    """Of every way to place edges at aligned lengths: the least padded work, and the fewest buckets that reach it."""
    places = range(ALIGNMENT, max_length, ALIGNMENT)
    choices = ((*inner, max_length) for count in range(most) for inner in combinations(places, count))
    return min((padded_work(lengths, edges), len(edges)) for edges in choices)


@given(
    lengths=st.dictionaries(st.integers(1, 90), st.integers(1, 20), min_size=1, max_size=8),
    max_length=st.integers(1, 80),
    max_profiles=st.integers(1, 4),
)
@no_deadline
def test_no_choice_of_edges_has_less_padded_work_or_as_much_with_fewer_buckets(
    lengths: dict[int, int], max_length: int, max_profiles: int
) -> None:
    workload = Workload(pair_lengths=lengths, candidates={10: 1})
    profiles = profiles_from_lengths(workload, max_length=max_length, max_tokens=1000, max_profiles=max_profiles)
    edges = tuple(profile.sequence_length.max for profile in profiles)

    assert (padded_work(lengths, edges), len(edges)) == least_padded_work(lengths, max_length, max_profiles)
    assert expected_padded_length(workload, profiles) == pytest.approx(padded_work(lengths, edges) / sum(lengths.values()))


@given(workload=workloads, max_length=max_lengths, max_tokens=max_tokens, max_profiles=profile_counts)
@no_deadline
def test_buckets_partition_the_lengths(workload: Workload, max_length: int, max_tokens: int, max_profiles: int) -> None:
    profiles = profiles_from_lengths(workload, max_length=max_length, max_tokens=max_tokens, max_profiles=max_profiles)
    ranges = [profile.sequence_length for profile in profiles]

    check_profiles(profiles, max_length=max_length)
    assert len(profiles) <= max_profiles
    assert (ranges[0].min, ranges[-1].max) == (1, max_length)
    assert all(after.min == before.max + 1 for before, after in pairwise(ranges))
    assert all(range_.max % ALIGNMENT == 0 for range_ in ranges[:-1])


@given(workload=workloads, max_length=max_lengths, max_tokens=max_tokens, max_profiles=profile_counts, data=st.data())
@no_deadline
def test_every_admissible_batch_falls_in_a_profile_and_no_profile_exceeds_the_limit(
    workload: Workload, max_length: int, max_tokens: int, max_profiles: int, data: st.DataObject
) -> None:
    profiles = profiles_from_lengths(workload, max_length=max_length, max_tokens=max_tokens, max_profiles=max_profiles)
    length = data.draw(st.integers(1, max_length))
    edge = next(profile.sequence_length.max for profile in profiles if length in profile.sequence_length)
    pairs = data.draw(st.integers(1, max(1, max_tokens // edge)))

    assert smallest_profile(profiles, batch_size=pairs, sequence_length=length).sequence_length.max == edge
    for profile in profiles:
        assert profile.batch_size.max == 1 or profile.batch_size.max * profile.sequence_length.max <= max_tokens


@given(workload=workloads, max_length=max_lengths, max_profiles=profile_counts)
@no_deadline
def test_another_profile_never_adds_padded_work(workload: Workload, max_length: int, max_profiles: int) -> None:
    few, more = (
        profiles_from_lengths(workload, max_length=max_length, max_tokens=4096, max_profiles=count)
        for count in (max_profiles, max_profiles + 1)
    )

    assert len(few) <= len(more)
    assert expected_padded_length(workload, more) <= expected_padded_length(workload, few) <= max_length


def boxes(profiles: tuple[OptimizationProfile, ...]) -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    return [
        (
            (p.batch_size.min, p.batch_size.opt, p.batch_size.max),
            (p.sequence_length.min, p.sequence_length.opt, p.sequence_length.max),
        )
        for p in profiles
    ]


def test_two_kinds_of_pairs_get_a_profile_each() -> None:
    workload = Workload(pair_lengths={30: 3, 60: 3, 250: 2}, candidates={5: 1, 40: 4})

    assert boxes(profiles_from_lengths(workload, max_length=250, max_tokens=4000, max_profiles=2)) == [
        ((1, 30, 62), (1, 64, 64)),  # three quarters of 40 pairs; the longest of 30 is among the 60s
        ((1, 10, 16), (65, 250, 250)),
    ]


def test_a_bucket_that_nothing_falls_in_is_tuned_for_a_whole_request() -> None:
    workload = Workload(pair_lengths={30: 1}, candidates={20: 1})

    assert boxes(profiles_from_lengths(workload, max_length=512, max_tokens=4096)) == [
        ((1, 20, 128), (1, 32, 32)),
        ((1, 8, 8), (33, 512, 512)),
    ]


def test_batches_of_one_pair_are_tuned_for_the_median_length() -> None:
    workload = Workload(pair_lengths={16: 2, 40: 2, 90: 1}, candidates={1: 1})

    (profile,) = profiles_from_lengths(workload, max_length=100, max_tokens=4096, max_profiles=1)
    assert profile.sequence_length.opt == 40


def test_pairs_beyond_the_longest_are_counted_where_they_are_cut() -> None:
    workload = Workload(pair_lengths={30: 1, 5000: 1}, candidates={1: 1})
    profiles = profiles_from_lengths(workload, max_length=100, max_tokens=4096)

    assert expected_padded_length(workload, profiles) == (32 + 100) / 2


def test_an_edge_beyond_the_limit_still_takes_one_pair() -> None:
    (profile,) = profiles_from_lengths(DEFAULT_WORKLOAD, max_length=512, max_tokens=100, max_profiles=1)

    assert profile.batch_size.max == 1


def test_the_default_workload_loses_most_of_its_padding() -> None:
    one, four = (
        profiles_from_lengths(DEFAULT_WORKLOAD, max_length=512, max_tokens=16_384, max_profiles=count) for count in (1, 4)
    )

    assert expected_padded_length(DEFAULT_WORKLOAD, four) < 0.3 * expected_padded_length(DEFAULT_WORKLOAD, one)


def test_the_choice_is_explained() -> None:
    workload = Workload(pair_lengths={32: 3, 128: 1}, candidates={8: 1})

    assert explain_profiles(workload, profiles_from_lengths(workload, max_length=128, max_tokens=1024)) == [
        "1-32 tokens: 75.0% of pairs, up to 32 a batch, tuned for 6 x 32",
        "33-128 tokens: 25.0% of pairs, up to 8 a batch, tuned for 2 x 128",
        "A pair of 56 tokens on average takes the room of 56, 56% less than in one profile of up to 128.",
    ]
    assert explain_profiles(workload, profiles_from_lengths(workload, max_length=128, max_tokens=1024, max_profiles=1)) == [
        "1-128 tokens: 100.0% of pairs, up to 8 a batch, tuned for 8 x 128",
        "A pair of 56 tokens on average takes the room of 128.",
    ]


@pytest.mark.parametrize("name", ["max_length", "max_tokens", "max_profiles"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    limits = {"max_length": 512, "max_tokens": 4096, "max_profiles": 4, name: 0}

    with pytest.raises(InputError, match=f"{name} is too small; got 0; allowed: 1 or more"):
        profiles_from_lengths(DEFAULT_WORKLOAD, **limits)
