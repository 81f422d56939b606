"""How many candidates fit a time: answered from a cost model, without running anything."""

from __future__ import annotations

from dataclasses import dataclass

from crossforge.profiles import DeploymentProfile, ExecutionProvider, InputError, Precision
from crossforge.runtime.batching import plan_batches
from crossforge.runtime.makespan import makespan_ms
from crossforge.runtime.scoring import default_budget_tokens

MOST_CANDIDATES = 65_536
"""Where the search for the most candidates ends, however long they may take."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a deployment can do in a time. Tokenizing the pairs is not in it."""

    provider: ExecutionProvider
    precision: Precision
    workers: int
    budget_tokens: int
    candidates: int
    """Pairs of a query."""
    sequence_length: int
    """Tokens of each pair."""
    batches: int
    """Batches that the candidates are cut into."""
    predicted_ms: float
    """Time of the candidates' batches."""
    slo_ms: float | None
    most_candidates: int | None
    """The most that are predicted to be done in ``slo_ms``; None where there is no such limit."""
    fits: bool | None
    """Whether the candidates are done in ``slo_ms``; None where there is no such limit."""


def plan_capacity(
    deployment: DeploymentProfile, *, candidates: int, sequence_length: int, slo_ms: float | None = None
) -> Capacity:
    """Predict the latency of a query's candidates, and the most candidates that a time allows.

    Args:
        deployment: Carries a cost model.
        candidates: Pairs of a query.
        sequence_length: Tokens of each pair, special tokens included.
        slo_ms: The time that a query may take.

    Raises:
        InputError: The deployment profile has no cost model, or a number is too small.
    """
    cost, precision, workers = deployment.cost, deployment.precision, deployment.workers
    if cost is None or precision is None or workers is None:
        raise InputError(
            "the deployment profile carries no cost model",
            allowed="one that crossforge tune wrote",
            fix="Run: crossforge tune BUNDLE --out deployment.toml",
        )
    for name, value in (("candidates", candidates), ("the length", sequence_length)):
        if value < 1:
            raise InputError(f"{name} is too small", got=value, allowed="1 or more")
    if slo_ms is not None and not slo_ms > 0:
        raise InputError("the latency objective is too small", got=f"{slo_ms} ms", allowed="above 0")
    budget_tokens = deployment.budget_tokens or default_budget_tokens(deployment.providers[0])

    def predict(count: int) -> tuple[int, float]:
        lengths = [sequence_length] * count
        plans = plan_batches(lengths, budget_tokens=budget_tokens, workers=workers, cost=cost)
        times = [cost.predict_ms(len(plan.indices), plan.sequence_length) for plan in plans]
        return len(plans), makespan_ms(times, workers)

    batches, predicted_ms = predict(candidates)
    most = None
    if slo_ms is not None:
        # So many rows alone would take longer.
        too_many = int(min(workers * slo_ms / cost.row_ms(sequence_length), MOST_CANDIDATES)) + 1
        most = 0
        while too_many - most > 1:
            middle = (most + too_many) // 2
            if predict(middle)[1] <= slo_ms:
                most = middle
            else:
                too_many = middle
    return Capacity(
        provider=deployment.providers[0],
        precision=precision,
        workers=workers,
        budget_tokens=budget_tokens,
        candidates=candidates,
        sequence_length=sequence_length,
        batches=batches,
        predicted_ms=predicted_ms,
        slo_ms=slo_ms,
        most_candidates=most,
        fits=None if slo_ms is None else predicted_ms <= slo_ms,
    )
