from __future__ import annotations

from typing import Any

import pytest

from crossforge.profiles import CostModel, DeploymentProfile, ExecutionProvider, InputError, Precision
from crossforge.runtime.profiling.capacity import MOST_CANDIDATES, plan_capacity

COST = CostModel(fixed_ms=1.0, per_token_ms=0.01, per_token_squared_ms=0.0)


def profile(**changes: Any) -> DeploymentProfile:
    fields: dict[str, Any] = {
        "precision": Precision.INT8,
        "providers": (ExecutionProvider.CPU,),
        "budget_tokens": 400,
        "workers": 2,
        "cost": COST,
    }
    return DeploymentProfile(**fields | changes)


def test_the_latency_of_candidates_is_that_of_their_batches() -> None:
    capacity = plan_capacity(profile(), candidates=8, sequence_length=100)

    # Two workers with four rows of one millisecond each, and a call.
    assert (capacity.batches, capacity.predicted_ms) == (2, 5.0)
    assert capacity.most_candidates is None
    assert capacity.fits is None


@pytest.mark.parametrize(("slo_ms", "most"), [(5.0, 8), (4.99, 6), (2.0, 2), (1.99, 0), (10.0, 16), (12.0, 18)])
def test_the_most_candidates_that_fit_are_found(slo_ms: float, most: int) -> None:
    capacity = plan_capacity(profile(), candidates=8, sequence_length=100, slo_ms=slo_ms)

    assert capacity.most_candidates == most
    assert capacity.fits == (most >= 8)
    if most:
        assert plan_capacity(profile(), candidates=most, sequence_length=100).predicted_ms <= slo_ms
    assert plan_capacity(profile(), candidates=most + 1, sequence_length=100).predicted_ms > slo_ms


def test_the_search_ends_somewhere() -> None:
    cheap = CostModel(fixed_ms=0.0, per_token_ms=1e-9, per_token_squared_ms=0.0)
    capacity = plan_capacity(profile(cost=cheap, budget_tokens=10**6), candidates=1, sequence_length=10, slo_ms=1e6)

    assert capacity.most_candidates == MOST_CANDIDATES


def test_a_profile_without_a_cost_model_is_refused_with_the_way_to_one() -> None:
    with pytest.raises(InputError) as caught:
        plan_capacity(profile(cost=None), candidates=8, sequence_length=100)
    assert "the deployment profile carries no cost model" in str(caught.value)
    assert "Run: crossforge tune BUNDLE" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"candidates": 0}, "candidates is too small; got 0"),
        ({"sequence_length": 0}, "the length is too small; got 0"),
        ({"slo_ms": 0.0}, "the latency objective is too small; got 0.0 ms"),
    ],
)
def test_numbers_that_are_too_small_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_capacity(profile(), **{"candidates": 8, "sequence_length": 100, **values})
