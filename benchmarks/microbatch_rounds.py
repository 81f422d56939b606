"""How much padding merging saves, by how many batches are planned together. Plans only: no model runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import DEFAULT_WORKLOAD
from crossforge.runtime.batching import BatchPlan, plan_batches
from crossforge.runtime.microbatch.fair_queue import FairQueue
from crossforge.runtime.scoring import CPU_BUDGET_TOKENS, GPU_BUDGET_TOKENS

REQUESTS = 32
BATCHES_AHEAD = (1, 2, 4, 8, 16)


def draw_lengths(count: int, random: np.random.Generator) -> NDArray[np.int32]:
    """Tokens of pairs as in the built-in workload, spread within its steps of 16."""
    steps = np.asarray(list(DEFAULT_WORKLOAD.pair_lengths))
    weights = np.asarray(list(DEFAULT_WORKLOAD.pair_lengths.values()), dtype=float)
    drawn = random.choice(steps, count, p=weights / weights.sum()) - random.integers(0, 16, count)
    return drawn.astype(np.int32)


def describe(plans: list[BatchPlan], tokens: int) -> str:
    return f"{1 - tokens / sum(plan.padded_tokens for plan in plans):4.0%} in {len(plans):4}"


def main() -> None:
    random = np.random.default_rng(0)
    print(f"padding, and batches, of {REQUESTS} concurrent requests")
    print("passages  budget  workers     alone      ", "".join(f"{f'{n} ahead':<14}" for n in BATCHES_AHEAD))
    for passages in (5, 20, 100):
        requests = [draw_lengths(passages, random) for _ in range(REQUESTS)]
        tokens = sum(int(lengths.sum()) for lengths in requests)
        for budget_tokens, workers in ((CPU_BUDGET_TOKENS, 2), (GPU_BUDGET_TOKENS, 1)):

            def plan(lengths: NDArray[np.int32], budget: int = budget_tokens, at_once: int = workers) -> list[BatchPlan]:
                return plan_batches(lengths, budget_tokens=budget, workers=at_once)

            columns = [describe([batch for lengths in requests for batch in plan(lengths)], tokens)]
            for ahead in BATCHES_AHEAD:
                queue: FairQueue[int] = FairQueue(budget_tokens)
                for owner, lengths in enumerate(requests):
                    queue.add(owner, lengths)
                batches: list[BatchPlan] = []
                while len(queue):
                    taken = queue.take(ahead * workers * budget_tokens)
                    batches += plan(np.concatenate([requests[piece.owner][piece.indices] for piece in taken]))
                columns.append(describe(batches, tokens))
            print(f"{passages:8}  {budget_tokens:6}  {workers:7}  ", "  ".join(columns))


if __name__ == "__main__":
    main()
