from __future__ import annotations

from typing import Any

import pytest

from crossforge.profiles import CostModel, InputError

TERMS = {"fixed_ms": 2.0, "per_token_ms": 0.5, "per_token_squared_ms": 0.25}


def test_a_batch_costs_its_call_its_tokens_and_its_pairs_of_tokens() -> None:
    cost = CostModel(**TERMS)

    assert cost.row_ms(10) == 0.5 * 10 + 0.25 * 100
    assert cost.predict_ms(3, 10) == 2.0 + 3 * 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed_ms": -1.0}, "fixed_ms of a cost model is not a time; got -1.0; allowed: 0 or more"),
        ({"per_token_ms": float("nan")}, "per_token_ms of a cost model is not a time"),
        ({"per_token_squared_ms": float("inf")}, "per_token_squared_ms of a cost model is not a time"),
        ({"fixed_ms": True}, "fixed_ms of a cost model is not a time"),
        ({"fixed_ms": "1"}, "got '1'"),
        ({"per_token_ms": 0, "per_token_squared_ms": 0}, "a cost model needs a cost per token"),
    ],
)
def test_what_is_no_cost_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        CostModel(**{**TERMS, **change})
    assert message in str(caught.value)
