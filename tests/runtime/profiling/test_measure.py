from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from crossforge.profiles import InputError, Precision
from crossforge.runtime.profiling import measure
from crossforge.runtime.profiling.intervals import MIN_SAMPLES
from crossforge.runtime.profiling.measure import WARM_UP_TOKENS, measure_cells
from crossforge.runtime.profiling.report import LatencyRow, Skipped
from crossforge.runtime.profiling.workload import Call, Cell
from support.builders import fake_reranker, make_manifest, make_scoring
from support.families import different_passages
from support.slow_sessions import FakeClock, SlowSession, slow_contender

TWO = (Precision.FP32, Precision.INT8)


def make_cell(candidates: int, words: int = 5, calls: int = 1) -> Cell:
    length = words + 4  # [CLS] where [SEP] ... [SEP]
    call = Call(query="where", passages=tuple(different_passages(candidates, words=words)), lengths=(length,) * candidates)
    return Cell(candidates=candidates, sequence_length=length, calls=(call,) * calls)


def run(
    cells: Sequence[Cell], *, seconds: float = 1.0, width: float = 0.05, diary: list[str] | None = None, **slow: Any
) -> tuple[list[LatencyRow], list[Skipped], FakeClock]:
    clock = FakeClock()
    contenders = [slow_contender(clock, diary if diary is not None else [], precision, **slow) for precision in TWO]
    rows, skipped = measure_cells(cells, contenders, deadline_ns=int(seconds * 1e9), interval_width=width, clock=clock)
    return rows, skipped, clock


def test_contenders_take_turns() -> None:
    diary: list[str] = []
    rows, _, _ = run([make_cell(2), make_cell(4)], diary=diary)

    assert len(diary) >= 2 * MIN_SAMPLES * len(rows) / 2
    assert diary == list(TWO) * (len(diary) // 2)


def test_samples_are_the_time_of_the_call_and_warm_up_is_none_of_them() -> None:
    cell = make_cell(3)
    rows, _, _ = run([cell], token_ns=1000)

    expected_ms = cell.tokens * 1000 / 1e6
    assert len(rows) == len(TWO)
    for row in rows:
        assert set(row.samples_ms) == {expected_ms}
        assert set(row.stage_samples_ms["compute"]) == {expected_ms}
        assert row.tokens == row.padded_tokens == cell.tokens


def test_a_steady_cell_ends_as_soon_as_its_median_is_known() -> None:
    rows, _, clock = run([make_cell(2)])

    assert [len(row.samples_ms) for row in rows] == [MIN_SAMPLES, MIN_SAMPLES]
    assert clock.now < 0.1e9


def test_a_noisy_cell_is_measured_for_longer_and_no_longer_than_the_budget() -> None:
    rows, _, clock = run([make_cell(2, 50)], seconds=2.0, token_ns=200_000, factors=(1.0, 1.4, 0.7, 1.2, 0.9, 2.0))

    assert len(rows[0].samples_ms) > 3 * MIN_SAMPLES
    assert 1.0e9 < clock.now <= 2.0e9 + 0.2e9


def test_samples_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_SAMPLES", 50)
    rows, _, _ = run([make_cell(1)], seconds=1e4, factors=(1.0, 2.0))
    assert len(rows[0].samples_ms) == 50


def test_what_a_steady_cell_leaves_goes_to_the_dear_ones() -> None:
    cells = [make_cell(1), make_cell(2), make_cell(1000)]  # 9 ms a sample of the last
    rows, _, _ = run(cells, seconds=0.2)

    assert [len(row.samples_ms) for row in rows] == [MIN_SAMPLES] * 6


def test_cells_that_do_not_fit_are_skipped_and_named() -> None:
    rows, skipped, clock = run([make_cell(10), make_cell(100_000)], seconds=0.5)

    assert {row.candidates for row in rows} == {10}
    assert [item.what for item in skipped] == ["100000 candidates of 9 tokens"]
    assert skipped[0].why.startswith("one sample of each variant takes about 1.8 s")
    assert clock.now < 0.5e9


def test_a_budget_below_one_sample_says_how_much_is_needed() -> None:
    with pytest.raises(InputError, match="too short for one sample") as caught:
        run([make_cell(10_000)], seconds=0.05)

    tokens = 10_000 * 9
    spent_on_warm_up = 2 * (WARM_UP_TOKENS // 9 * 9) * 1000 / 1e9
    lacking = 2 * tokens * 1000 / 1e9 - (0.05 - spent_on_warm_up)
    assert f"at least {lacking:.1f} s more" in str(caught.value)


def test_first_samples_leave_half_of_the_time_for_more() -> None:
    cells = [make_cell(count) for count in (1, 500, 600, 700, 800)]  # 18 us a pair and round
    rows, skipped, clock = run(cells, seconds=0.05)

    assert {row.candidates for row in rows} == {1, 500}
    assert len(skipped) == 3
    assert len(rows[-1].samples_ms) > 1
    assert clock.now <= 0.05e9


def test_every_query_of_a_run_has_its_turn() -> None:
    rows, _, _ = run([make_cell(2, calls=MIN_SAMPLES + 5)])
    assert len(rows[0].samples_ms) == MIN_SAMPLES + 5

    rows, skipped, _ = run([make_cell(1000, calls=50)], seconds=0.1)
    assert 1 < len(rows[0].samples_ms) < 50
    assert skipped[0].why == f"only {len(rows[0].samples_ms)} of its 50 queries had their turn"


def test_padding_is_what_the_session_really_computed() -> None:
    clock = FakeClock()
    contender = slow_contender(clock, [], budget_tokens=40)
    texts = tuple(" ".join(["city"] * words) for words in (1, 3, 8, 2, 9, 5))
    lengths = tuple(len(text.split()) + 4 for text in texts)
    cell = Cell(candidates=6, sequence_length=9, calls=(Call(query="where", passages=texts, lengths=lengths),))
    (row,), _ = measure_cells([cell], [contender], deadline_ns=10**9, interval_width=0.05, clock=clock)

    session = contender.reranker.session
    assert isinstance(session, SlowSession)
    calls = 1 + len(row.samples_ms)  # the warm-up took them all
    assert row.padded_tokens * calls == sum(int(np.size(batch["input_ids"])) for batch in session.batches)
    assert row.tokens == sum(lengths) < row.padded_tokens


def test_a_classifier_that_ranks_nothing_is_measured_too() -> None:
    clock = FakeClock()
    contender = slow_contender(clock, [])
    contender.reranker.manifest = make_manifest(scoring=make_scoring(1, ranking_label=None))
    rows, _ = measure_cells([make_cell(2)], [contender], deadline_ns=10**9, interval_width=0.05, clock=clock)
    assert rows


def test_watching_changes_no_score() -> None:
    contender = slow_contender(FakeClock(), [])
    with fake_reranker(budget_tokens=10_000) as unwatched:
        np.testing.assert_array_equal(
            contender.reranker.score("where", ["city", "berlin"]), unwatched.score("where", ["city", "berlin"])
        )
