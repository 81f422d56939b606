from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crossforge.profiles import CostModel, OptimizationProfile, batch_limits
from crossforge.runtime.batching import BatchPlan, plan_batches
from crossforge.runtime.makespan import least_total, makespan_ms, predicted_ms
from support.strategies import lengths, no_deadline, profile_sets

terms = st.sampled_from([0.0, 0.01, 0.3, 5.0])
budgets = st.sampled_from([1, 64, 384, 4096])
worker_counts = st.integers(min_value=1, max_value=5)


@st.composite
def _costs(draw: st.DrawFn) -> CostModel:
    fixed, linear, squared = draw(st.sampled_from([0.0, 1.0, 100.0])), draw(terms), draw(terms)
    assume(linear + squared > 0)
    return CostModel(fixed_ms=fixed, per_token_ms=linear, per_token_squared_ms=squared / 100)


costs = _costs()


def time_ms(plans: list[BatchPlan], cost: CostModel, workers: int) -> float:
    return makespan_ms([cost.predict_ms(len(plan.indices), plan.sequence_length) for plan in plans], workers)


def every_cut(count: int) -> list[list[int]]:
    return [[0, *cuts] for size in range(count) for cuts in combinations(range(1, count), size)]


def test_one_worker_takes_the_sum_of_the_times() -> None:
    assert makespan_ms([3.0, 1.0, 2.0], 1) == 6.0


def test_a_free_worker_takes_the_next_batch() -> None:
    assert makespan_ms([3.0, 1.0, 1.0, 2.0], 2) == 4.0
    assert makespan_ms([3.0], 4) == 3.0
    assert makespan_ms([], 2) == 0.0


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts, profiles=profile_sets, cost=costs)
@no_deadline
def test_batches_of_least_time_partition_the_pairs_and_keep_the_budget_and_the_profiles(
    lengths: list[int], budget_tokens: int, workers: int, profiles: tuple[OptimizationProfile, ...], cost: CostModel
) -> None:
    lengths = [min(length, max(batch_limits(profiles))) for length in lengths]
    plans = plan_batches(lengths, budget_tokens=budget_tokens, workers=workers, profiles=profiles, cost=cost)

    assert sorted(int(i) for plan in plans for i in plan.indices) == list(range(len(lengths)))
    assert [lengths[i] for plan in plans for i in plan.indices] == sorted(lengths, reverse=True)
    for plan in plans:
        assert plan.sequence_length == max(lengths[i] for i in plan.indices)
        assert plan.padded_tokens <= budget_tokens or len(plan.indices) == 1
        assert any(profile.fits(len(plan.indices), plan.sequence_length) for profile in profiles)


@given(lengths=lengths, budget_tokens=budgets, workers=worker_counts, cost=costs)
@no_deadline
def test_no_plan_is_predicted_to_be_slower_than_the_one_without_a_cost_model(
    lengths: list[int], budget_tokens: int, workers: int, cost: CostModel
) -> None:
    default = plan_batches(lengths, budget_tokens=budget_tokens, workers=workers)
    fast = plan_batches(lengths, budget_tokens=budget_tokens, workers=workers, cost=cost)

    assert time_ms(fast, cost, workers) <= time_ms(default, cost, workers) * (1 + 1e-9)


@given(lengths=lengths.filter(bool), budget_tokens=budgets, cost=costs)
@no_deadline
def test_one_worker_gets_the_least_total_time(lengths: list[int], budget_tokens: int, cost: CostModel) -> None:
    descending = sorted(lengths, reverse=True)
    ends = [min(len(lengths), i + max(1, budget_tokens // length)) for i, length in enumerate(descending)]
    least = [0.0] * (len(lengths) + 1)
    for i in reversed(range(len(lengths))):
        least[i] = min(least[j] + cost.predict_ms(j - i, descending[i]) for j in range(i + 1, ends[i] + 1))
    starts = least_total([cost.row_ms(length) for length in descending], ends, cost.fixed_ms)

    assert predicted_ms(starts, descending, cost, 1) == pytest.approx(least[0])


def test_no_other_sharing_out_of_the_pairs_beats_a_cut_of_the_sorted_ones() -> None:
    cost = CostModel(fixed_ms=3.0, per_token_ms=0.1, per_token_squared_ms=0.01)
    lengths = [9, 30, 8, 31, 10, 2]

    def partitions(items: list[int]) -> list[list[list[int]]]:
        if not items:
            return [[]]
        first, rest = items[0], items[1:]
        grown = [[*p[:k], [first, *p[k]], *p[k + 1 :]] for p in partitions(rest) for k in range(len(p))]
        return grown + [[[first], *p] for p in partitions(rest)]

    best = min(sum(cost.predict_ms(len(group), max(group)) for group in groups) for groups in partitions(lengths))
    assert time_ms(plan_batches(lengths, budget_tokens=10**6, cost=cost), cost, 1) == pytest.approx(best)


def test_several_workers_come_near_the_least_makespan() -> None:
    draw = random.Random(7)
    ratios = []
    for _ in range(150):
        count, workers, budget = draw.randint(1, 8), draw.randint(2, 4), draw.choice([128, 384, 2048])
        lengths = sorted((draw.choice([draw.randint(1, 512), draw.randint(1, 40), 8]) for _ in range(count)), reverse=True)
        cost = CostModel(
            fixed_ms=draw.choice([0, 0.1, 1, 10]),
            per_token_ms=draw.choice([0.001, 0.03, 0.1]),
            per_token_squared_ms=draw.choice([0, 1e-5, 1e-3]),
        )
        allowed = [
            starts
            for starts in every_cut(count)
            if all(
                stop - start == 1 or (stop - start) * lengths[start] <= budget
                for start, stop in zip(starts, [*starts[1:], count], strict=True)
            )
        ]
        best = min(predicted_ms(starts, lengths, cost, workers) for starts in allowed)
        found = time_ms(plan_batches(lengths, budget_tokens=budget, workers=workers, cost=cost), cost, workers)
        ratios.append(found / best)

    assert min(ratios) > 1 - 1e-9
    assert sum(ratios) / len(ratios) < 1.01
    assert max(ratios) < 1.25


def test_a_fixed_cost_joins_batches_and_padding_splits_them() -> None:
    lengths = [100] * 2 + [10] * 8

    def sizes(fixed_ms: float) -> list[int]:
        cost = CostModel(fixed_ms=fixed_ms, per_token_ms=1.0, per_token_squared_ms=0.0)
        return [len(plan.indices) for plan in plan_batches(lengths, budget_tokens=10_000, cost=cost)]

    assert sizes(1.0) == [2, 8]
    assert sizes(1000.0) == [10]
