from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import (
    InputError,
    OptimizationProfile,
    ShapeRange,
    Truncation,
    TruncationSide,
    batch_limits,
    smallest_profile,
)
from crossforge.runtime.batching import BatchPlan, collate, padding_waste, plan_batches
from crossforge.runtime.templates import derive_pair_template
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer
from support.families import BERT_TEMPLATE, make_tokenizer, word_tokenizer
from support.strategies import lengths, no_deadline, profile_sets, words

ALL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PAD = 10_000
CONTRACT = Truncation(max_length=1000, query_max_length=100, side=TruncationSide.RIGHT)
budgets = st.integers(min_value=1, max_value=4096)
worker_counts = st.integers(min_value=1, max_value=9)


def greedy_count(lengths: list[int], budget_tokens: int) -> int:
    """Batches that filling one after another takes, longest pairs first."""
    batches, rows, longest = 0, 0, 0
    for length in sorted(lengths, reverse=True):
        if rows and (rows + 1) * longest <= budget_tokens:
            rows += 1
        else:
            batches, rows, longest = batches + 1, 1, length
    return batches


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts)
@no_deadline
def test_batches_partition_the_pairs(lengths: list[int], budget_tokens: int, workers: int) -> None:
    plans = plan_batches(lengths, budget_tokens=budget_tokens, workers=workers)

    assert sorted(int(i) for plan in plans for i in plan.indices) == list(range(len(lengths)))


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts)
@no_deadline
def test_no_batch_exceeds_the_budget_unless_it_is_a_single_pair(
    lengths: list[int], budget_tokens: int, workers: int
) -> None:
    for plan in plan_batches(lengths, budget_tokens=budget_tokens, workers=workers):
        assert plan.padded_tokens == len(plan.indices) * plan.sequence_length
        assert plan.padded_tokens <= budget_tokens or len(plan.indices) == 1


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts)
@no_deadline
def test_the_longest_pairs_come_first(lengths: list[int], budget_tokens: int, workers: int) -> None:
    plans = plan_batches(lengths, budget_tokens=budget_tokens, workers=workers)
    planned = [lengths[i] for plan in plans for i in plan.indices]

    assert planned == sorted(lengths, reverse=True)
    assert [plan.sequence_length for plan in plans] == [max(lengths[i] for i in plan.indices) for plan in plans]


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts)
@no_deadline
def test_there_are_no_more_batches_than_the_budget_and_the_workers_ask_for(
    lengths: list[int], budget_tokens: int, workers: int
) -> None:
    fewest = greedy_count(lengths, budget_tokens)
    count = len(plan_batches(lengths, budget_tokens=budget_tokens, workers=workers))

    assert count <= math.ceil(fewest / workers) * workers
    assert count >= fewest


@given(lengths=lengths.filter(bool), budget_tokens=budgets, workers=worker_counts)
@no_deadline
def test_the_cuts_make_the_largest_batch_no_larger_than_filling_would(
    lengths: list[int], budget_tokens: int, workers: int
) -> None:
    balanced = plan_batches(lengths, budget_tokens=budget_tokens, workers=workers)
    smaller = max(plan.padded_tokens for plan in balanced) - 1
    allowed = math.ceil(greedy_count(lengths, budget_tokens) / workers) * workers

    assert smaller < max(lengths) or greedy_count(lengths, smaller) > allowed


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts)
@no_deadline
def test_padding_waste_is_the_share_of_computed_tokens_that_are_padding(
    lengths: list[int], budget_tokens: int, workers: int
) -> None:
    plans = plan_batches(lengths, budget_tokens=budget_tokens, workers=workers)
    waste = padding_waste(plans, np.asarray(lengths, dtype=np.int32))

    assert 0.0 <= waste < 1.0
    assert waste * sum(plan.padded_tokens for plan in plans) == pytest.approx(
        sum(plan.sequence_length - lengths[i] for plan in plans for i in plan.indices), abs=1e-6
    )


def test_pairs_of_one_length_waste_nothing() -> None:
    lengths = np.full(10, 7, dtype=np.int32)

    assert padding_waste(plan_batches(lengths, budget_tokens=21), lengths) == 0.0


def test_equal_lengths_keep_their_order() -> None:
    (plan,) = plan_batches([5, 9, 5, 9], budget_tokens=1000)

    assert plan.indices.tolist() == [1, 3, 0, 2]


def test_work_is_spread_over_the_workers() -> None:
    plans = plan_batches([10] * 8, budget_tokens=1000, workers=4)

    assert [len(plan.indices) for plan in plans] == [2, 2, 2, 2]


def test_a_pair_longer_than_the_budget_gets_a_batch_of_its_own() -> None:
    plans = plan_batches([3, 50, 4, 60], budget_tokens=8)

    assert [plan.indices.tolist() for plan in plans] == [[3], [1], [2, 0]]


@pytest.mark.parametrize("empty", [[], np.empty(0, dtype=np.int32)])
def test_no_pairs_need_no_batches(empty: list[int]) -> None:
    assert plan_batches(empty, budget_tokens=1) == []


@pytest.mark.parametrize(("budget_tokens", "workers"), [(0, 1), (-5, 1), (1, 0)])
def test_a_budget_or_workers_below_one_are_refused(budget_tokens: int, workers: int) -> None:
    with pytest.raises(InputError, match=rf"got budget_tokens {budget_tokens}, workers {workers}; allowed: 1 or more"):
        plan_batches([1], budget_tokens=budget_tokens, workers=workers)


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts, profiles=profile_sets)
@no_deadline
def test_batches_fit_profiles_and_the_budget_and_partition_the_pairs(
    lengths: list[int], budget_tokens: int, workers: int, profiles: tuple[OptimizationProfile, ...]
) -> None:
    lengths = [min(length, max(batch_limits(profiles))) for length in lengths]
    plans = plan_batches(lengths, budget_tokens=budget_tokens, workers=workers, profiles=profiles)

    assert sorted(int(i) for plan in plans for i in plan.indices) == list(range(len(lengths)))
    for plan in plans:
        own = [lengths[i] for i in plan.indices]
        profile = smallest_profile(profiles, batch_size=len(own), sequence_length=plan.sequence_length)
        below = max((edge for edge in batch_limits(profiles) if edge < profile.sequence_length.max), default=0)
        assert below < min(own)
        assert max(own) == plan.sequence_length
        assert plan.padded_tokens <= budget_tokens or len(own) == 1


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts, profiles=profile_sets)
@no_deadline
def test_buckets_cost_no_more_batches_than_each_needs_by_itself(
    lengths: list[int], budget_tokens: int, workers: int, profiles: tuple[OptimizationProfile, ...]
) -> None:
    lengths = [min(length, max(batch_limits(profiles))) for length in lengths]
    fewest, low = 0, 0
    for edge, most in batch_limits(profiles).items():
        inside, low = sorted((n for n in lengths if low < n <= edge), reverse=True), edge
        while inside:
            inside = inside[min(most, max(1, budget_tokens // inside[0])) :]
            fewest += 1
    count = len(plan_batches(lengths, budget_tokens=budget_tokens, workers=workers, profiles=profiles))

    assert fewest <= count <= math.ceil(fewest / workers) * workers


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts)
@no_deadline
def test_one_profile_that_takes_everything_changes_nothing(lengths: list[int], budget_tokens: int, workers: int) -> None:
    everything = ShapeRange(min=1, opt=1, max=10_000)
    profiles = [OptimizationProfile(batch_size=everything, sequence_length=everything)]
    free, held = (
        plan_batches(lengths, budget_tokens=budget_tokens, workers=workers, profiles=choice) for choice in ([], profiles)
    )

    assert [plan.indices.tolist() for plan in held] == [plan.indices.tolist() for plan in free]


def buckets(*sizes: tuple[int, int]) -> list[OptimizationProfile]:
    """Profiles of (largest batch, longest sequence)."""
    return [
        OptimizationProfile(
            batch_size=ShapeRange(min=1, opt=1, max=most), sequence_length=ShapeRange(min=1, opt=1, max=edge)
        )
        for most, edge in sizes
    ]


def test_a_batch_stays_in_one_bucket() -> None:
    plans = plan_batches([20, 3, 40, 60, 33], budget_tokens=1000, profiles=buckets((2, 64), (8, 32)))

    assert [(plan.indices.tolist(), plan.sequence_length) for plan in plans] == [([3], 60), ([2, 4], 40), ([0, 1], 20)]


def test_a_pair_longer_than_every_profile_is_refused() -> None:
    with pytest.raises(InputError, match="a pair is longer than every profile; got 65 tokens; allowed: up to 64"):
        plan_batches([3, 65], budget_tokens=1000, profiles=buckets((2, 64), (8, 32)))


def test_profiles_that_leave_shapes_out_are_refused() -> None:
    late = OptimizationProfile(batch_size=ShapeRange(min=1, opt=1, max=1), sequence_length=ShapeRange(min=2, opt=2, max=9))

    with pytest.raises(InputError, match="leaves out sequence lengths"):
        plan_batches([3], budget_tokens=1000, profiles=[late])


def encode(passages: list[str]) -> EncodedPairs:
    return PairTokenizer(make_tokenizer(), BERT_TEMPLATE, CONTRACT).encode("the query", passages)


@given(passages=st.lists(words, min_size=1, max_size=5))
@no_deadline
def test_rows_are_padded_on_the_right(passages: list[str]) -> None:
    pairs = encode(passages)
    (plan,) = plan_batches(pairs.lengths, budget_tokens=10**6)
    batch = collate(pairs, plan, template=BERT_TEMPLATE, pad_token_id=PAD, input_names=ALL_INPUTS)

    inside = np.arange(plan.sequence_length) < pairs.lengths[plan.indices, None]
    np.testing.assert_array_equal(batch["attention_mask"], inside)
    np.testing.assert_array_equal(batch["input_ids"] == PAD, ~inside)
    assert not batch["token_type_ids"][~inside].any()


@pytest.mark.parametrize(
    "names", [("input_ids",), ("input_ids", "attention_mask"), ("token_type_ids", "input_ids"), ALL_INPUTS]
)
def test_exactly_the_inputs_of_the_model_are_laid_out(names: tuple[str, ...]) -> None:
    pairs = encode(["the city", "people"])
    plan = BatchPlan(indices=np.asarray([1]), sequence_length=int(pairs.lengths[1]))
    batch = collate(pairs, plan, template=BERT_TEMPLATE, pad_token_id=PAD, input_names=names)

    assert set(batch) == set(names)
    assert {(array.shape, array.dtype) for array in batch.values()} == {((1, 6), np.dtype(np.int64))}


@pytest.mark.parametrize(
    "pair_template",
    ["[CLS]:1 $A:2 [SEP]:3 $B:4 [SEP]:5", "[CLS]:1 [SEP]:2 $A:0 [CLS]:3 [SEP]:4 $B:1", "$A:1 [SEP]:2 $B:3 [CLS]:4 [SEP]:5"],
)
def test_every_part_of_a_pair_has_its_own_segment_id(pair_template: str) -> None:
    tokenizer, passages = word_tokenizer(pair_template), ["a", "a b c", ""]
    template = derive_pair_template(tokenizer)
    encodings = [tokenizer.encode("d e", passage) for passage in passages]
    pairs = PairTokenizer(tokenizer, template, CONTRACT).encode("d e", passages)
    (plan,) = plan_batches(pairs.lengths, budget_tokens=100)
    batch = collate(pairs, plan, template=template, pad_token_id=PAD, input_names=ALL_INPUTS)

    for row, i in enumerate(plan.indices):
        padding = [0] * (plan.sequence_length - len(encodings[i].ids))
        assert batch["token_type_ids"][row].tolist() == encodings[i].type_ids + padding


def test_a_batch_is_written_to_fresh_arrays() -> None:
    pairs = encode(["the city"])
    (plan,) = plan_batches(pairs.lengths, budget_tokens=100)
    first, second = (
        collate(pairs, plan, template=BERT_TEMPLATE, pad_token_id=PAD, input_names=ALL_INPUTS) for _ in range(2)
    )
    expected = {name: array.copy() for name, array in second.items()}
    for array in first.values():
        array.fill(-1)

    assert {name: array.tolist() for name, array in second.items()} == {
        name: array.tolist() for name, array in expected.items()
    }
