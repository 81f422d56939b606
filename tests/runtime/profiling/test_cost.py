from __future__ import annotations

import random

import numpy as np
import pytest

from crossforge.profiles import CostModel, InputError
from crossforge.runtime.profiling.cost import CostSample, Shape, batch_runner, fit_cost, measure_costs, shape_grid
from crossforge.runtime.sessions import FakeSession

TRUE = CostModel(fixed_ms=0.4, per_token_ms=0.05, per_token_squared_ms=2e-5)
GRID = shape_grid(budget_tokens=512, max_length=512)


def samples(cost: CostModel, *, noise: float = 0.0) -> list[CostSample]:
    draw = random.Random(3)
    return [
        CostSample(batch=batch, sequence=length, ms=cost.predict_ms(batch, length) * (1 + noise * draw.uniform(-1, 1)))
        for batch, length in GRID
    ]


def test_the_terms_are_found_again() -> None:
    fitted = fit_cost(samples(TRUE))

    assert fitted.model.fixed_ms == pytest.approx(TRUE.fixed_ms, rel=1e-6)
    assert fitted.model.per_token_ms == pytest.approx(TRUE.per_token_ms, rel=1e-6)
    assert fitted.model.per_token_squared_ms == pytest.approx(TRUE.per_token_squared_ms, rel=1e-6)
    assert fitted.held_out_median_error < 1e-6
    assert fitted.shapes == len(GRID)


def test_noise_shows_in_the_held_out_error_and_hardly_in_the_terms() -> None:
    fitted = fit_cost(samples(TRUE, noise=0.1))

    assert 0.01 < fitted.held_out_median_error < 0.1
    assert fitted.model.per_token_ms == pytest.approx(TRUE.per_token_ms, rel=0.1)


@pytest.mark.parametrize(
    "true",
    [
        CostModel(fixed_ms=0, per_token_ms=0.05, per_token_squared_ms=0),
        CostModel(fixed_ms=1, per_token_ms=0, per_token_squared_ms=1e-4),
    ],
)
def test_a_term_that_is_not_there_is_zero(true: CostModel) -> None:
    model = fit_cost(samples(true)).model

    assert model.predict_ms(3, 100) == pytest.approx(true.predict_ms(3, 100))
    assert model.fixed_ms == pytest.approx(true.fixed_ms, abs=1e-9)


def test_no_term_is_negative_where_times_fall_off() -> None:
    saturating = [CostSample(batch=b, sequence=s, ms=(b * s) ** 0.5) for b, s in GRID]
    model = fit_cost(saturating).model

    assert min(model.fixed_ms, model.per_token_ms, model.per_token_squared_ms) >= 0


def test_too_few_shapes_and_impossible_times_are_refused() -> None:
    with pytest.raises(InputError, match="too few shapes for a cost model; got 2; allowed: 8 or more"):
        fit_cost([CostSample(batch=1, sequence=s, ms=1.0) for s in (8, 16, 16)])
    with pytest.raises(InputError, match="a measured time is not above zero"):
        fit_cost([CostSample(batch=1, sequence=s, ms=s - 1.0) for s in range(1, 20)])


def test_the_grid_stays_in_the_budget_but_for_single_rows() -> None:
    grid = shape_grid(budget_tokens=300, max_length=400)

    assert len(set(grid)) == len(grid)
    assert {length for _, length in grid} == {16, 32, 64, 100, 128, 200, 256, 300, 400}
    assert all(batch * length <= 300 or batch == 1 for batch, length in grid)
    assert {(1, 16), (16, 16), (18, 16), (1, 400), (2, 128)} <= set(grid)


@pytest.mark.parametrize("max_length", [4, 16, 64])
def test_the_grid_of_a_short_model_is_enough_for_a_fit(max_length: int) -> None:
    grid = shape_grid(budget_tokens=128, max_length=max_length)

    assert (
        fit_cost([CostSample(batch=b, sequence=s, ms=TRUE.predict_ms(b, s)) for b, s in grid]).held_out_median_error < 1e-6
    )


def test_shapes_are_measured_in_turns_and_the_first_run_does_not_count() -> None:
    clock = [0.0]
    seen: list[Shape] = []

    def run(shape: Shape) -> None:
        seen.append(shape)
        clock[0] += (100.0 if len(seen) <= 2 else 1.0) * shape[0] / 1e3

    found = measure_costs(run, [(1, 8), (2, 8)], rounds=3, budget_s=1e9, clock=lambda: clock[0])

    assert seen == [(1, 8), (2, 8)] * 4
    assert [sample.ms for sample in found] == pytest.approx([1.0, 2.0])


def test_one_round_is_measured_however_short_the_budget() -> None:
    clock = [0.0]

    def run(shape: Shape) -> None:
        clock[0] += shape[0]

    found = measure_costs(run, [(1, 8), (2, 8)], rounds=9, budget_s=0, clock=lambda: clock[0])

    assert [sample.ms for sample in found] == [1000.0, 2000.0]


def test_a_batch_of_a_shape_runs_on_the_session() -> None:
    session = FakeSession()
    row = {name: np.ones((1, 32), dtype=np.int64) for name in session.input_names}
    batch_runner(session, row=row, workers=1, executor=None)((3, 8))

    assert [batch["input_ids"].shape for batch in session.batches] == [(3, 8)]
