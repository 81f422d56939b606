"""Encoded pairs through a session: plan, collate, run, and put every logit back in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

import numpy as np

from crossforge.profiles import CostModel, EngineError, ExecutionProvider, OptimizationProfile, PairTemplate
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import BatchPlan, collate, plan_batches
from crossforge.runtime.sessions import Session
from crossforge.runtime.timing import StageTimer, untimed
from crossforge.runtime.tokenization import EncodedPairs

CPU_BUDGET_TOKENS = 384
"""A batch whose widest activations (384 x 1,536 floats for MiniLM) stay in a core's caches; docs/cpu.md has the figures."""
GPU_BUDGET_TOKENS = 16_384
"""Enough to fill a GPU; not measured yet."""


def default_budget_tokens(provider: ExecutionProvider) -> int:
    """Largest ``batch x sequence`` that suits a provider."""
    return CPU_BUDGET_TOKENS if provider.is_cpu else GPU_BUDGET_TOKENS


def compute_logits(
    session: Session,
    pairs: EncodedPairs,
    *,
    template: PairTemplate,
    pad_token_id: int,
    labels: int,
    budget_tokens: int = CPU_BUDGET_TOKENS,
    profiles: Sequence[OptimizationProfile] = (),
    workers: int = 1,
    cost: CostModel | None = None,
    executor: Executor | None = None,
    on_batch: Callable[[int], None] | None = None,
    timed: StageTimer = untimed,
) -> tuple[Floats, list[BatchPlan]]:
    """Compute the logits of pairs.

    Args:
        session: Runs the batches.
        pairs: What to score.
        template: How the model joins a pair.
        pad_token_id: Fills rows up to the batch's length.
        labels: Columns that the model answers with.
        budget_tokens: Largest ``batch x sequence`` of a batch.
        profiles: The shapes that the engine takes; none if it takes any.
        workers: Batches that run at the same time, in ``executor``.
        cost: Predicted times of batches, for cuts of the least time.
        executor: Runs batches; None runs them one after another on the calling thread.
        on_batch: Told the number of pairs after each batch.
        timed: Told when planning, collating and computing begin and end.

    Returns:
        float32 [n, labels] in the order of ``pairs``, and the batches that it took.

    Raises:
        EngineError: The engine failed, or answered in another shape.
    """

    def run(plan: BatchPlan) -> Floats:
        with timed("collate"):
            batch = collate(pairs, plan, template=template, pad_token_id=pad_token_id, input_names=session.input_names)
        with timed("compute"):
            answer = session.run(batch)
        expected = (len(plan.indices), labels)
        if answer.shape != expected:
            raise EngineError("the model answered in an unexpected shape", got=list(answer.shape), allowed=list(expected))
        return answer

    with timed("plan"):
        plans = plan_batches(pairs.lengths, budget_tokens=budget_tokens, workers=workers, profiles=profiles, cost=cost)
    answers: Iterable[Floats] = map(run, plans) if executor is None or len(plans) < 2 else executor.map(run, plans)
    logits = np.empty((len(pairs), labels), dtype=np.float32)
    for plan, answer in zip(plans, answers, strict=True):
        logits[plan.indices] = answer
        if on_batch is not None:
            on_batch(len(plan.indices))
    return logits, plans
