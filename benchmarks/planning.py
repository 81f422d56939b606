"""What cutting batches by a cost model costs, and how near it comes to the best cut. Plans only: no model runs.

python benchmarks/planning.py [--rounds 200] [--draws 150]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from itertools import combinations, pairwise

from crossforge.profiles import CostModel
from crossforge.runtime.batching import plan_batches
from crossforge.runtime.makespan import makespan_ms

PAIRS = 1000
BUDGETS = (384, 1024, 4096)
WORKERS = (1, 2, 8)


def planning_ms(lengths: list[int], *, budget_tokens: int, workers: int, cost: CostModel | None, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        plan_batches(lengths, budget_tokens=budget_tokens, workers=workers, cost=cost)
        times.append((time.process_time() - start) * 1e3)
    return statistics.median(times)


def over_the_best(draw: random.Random) -> float:
    """Predicted time of the plan for a small random request, over that of the best cut of the sorted pairs."""
    count, workers, budget = draw.randint(1, 8), draw.randint(2, 4), draw.choice([128, 384, 2048])
    lengths = sorted((draw.choice([draw.randint(1, 512), draw.randint(1, 40), 8]) for _ in range(count)), reverse=True)
    cost = CostModel(
        fixed_ms=draw.choice([0, 0.1, 1, 10]),
        per_token_ms=draw.choice([0.001, 0.03, 0.1]),
        per_token_squared_ms=draw.choice([0, 1e-5, 1e-3]),
    )
    cuts = [(0, *inner, count) for size in range(count) for inner in combinations(range(1, count), size)]
    allowed = [c for c in cuts if all(j - i == 1 or (j - i) * lengths[i] <= budget for i, j in pairwise(c))]
    best = min(makespan_ms([cost.predict_ms(j - i, lengths[i]) for i, j in pairwise(cut)], workers) for cut in allowed)
    plans = plan_batches(lengths, budget_tokens=budget, workers=workers, cost=cost)
    return makespan_ms([cost.predict_ms(len(plan.indices), plan.sequence_length) for plan in plans], workers) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--draws", type=int, default=150)
    arguments = parser.parse_args()
    draw = random.Random(7)
    lengths = [draw.randint(20, 256) for _ in range(PAIRS)]
    cost = CostModel(fixed_ms=0.3, per_token_ms=0.02, per_token_squared_ms=1e-5)
    print(f"\nPlanning {PAIRS} pairs, median ms of processor time\n")
    print("| budget | workers | without a cost model | with one |\n|---|---|---|---|")
    for budget in BUDGETS:
        for workers in WORKERS:
            plain, fast = (
                planning_ms(lengths, budget_tokens=budget, workers=workers, cost=model, rounds=arguments.rounds)
                for model in (None, cost)
            )
            print(f"| {budget} | {workers} | {plain:.2f} | {fast:.2f} |")
    ratios = [over_the_best(draw) for _ in range(arguments.draws)]
    optimal = sum(ratio < 1 + 1e-9 for ratio in ratios)
    print(
        f"\n{optimal} of {arguments.draws} small random requests are cut in the best way; "
        f"the mean is {statistics.fmean(ratios) - 1:.2%} above it, the worst {max(ratios) - 1:.0%}"
    )


if __name__ == "__main__":
    main()
