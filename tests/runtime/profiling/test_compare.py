from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import InputError, Precision
from crossforge.runtime.profiling.compare import Verdict, compare_reports, explain
from crossforge.runtime.profiling.summary import comparison_document
from support.builders import make_machine
from support.reports import make_report, make_row
from support.strategies import no_deadline

STEADY = (10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.0)
rows = st.lists(
    st.builds(
        make_row,
        st.lists(st.floats(0.01, 1e4), min_size=1, max_size=20).map(tuple),
        candidates=st.integers(1, 200),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row.candidates,
)


def times(factor: float, samples: tuple[float, ...] = STEADY) -> tuple[float, ...]:
    return tuple(sample * factor for sample in samples)


@given(rows, st.floats(0, 1))
@no_deadline
def test_a_report_is_never_slower_than_itself(values: list[Any], tolerance: float) -> None:
    report = make_report(*values)
    comparison = compare_reports(report, report, tolerance=tolerance)

    assert comparison.passed
    assert len(comparison.rows) == len(values)
    assert {row.verdict for row in comparison.rows} <= {Verdict.SAME, Verdict.UNJUDGED}


@given(rows, rows)
@no_deadline
def test_what_got_slower_one_way_got_faster_the_other(old: list[Any], new: list[Any]) -> None:
    if not {row.candidates for row in old} & {row.candidates for row in new}:
        new = [*new, old[0]]
    there = compare_reports(make_report(*old), make_report(*new))
    back = compare_reports(make_report(*new), make_report(*old))
    mirrored = {Verdict.SLOWER: Verdict.FASTER, Verdict.FASTER: Verdict.SLOWER}

    assert {row.candidates: mirrored.get(row.verdict, row.verdict) for row in there.rows} == {
        row.candidates: row.verdict for row in back.rows
    }


@pytest.mark.parametrize(
    ("factor", "tolerance", "verdict"),
    [(1.2, 0.0, Verdict.SLOWER), (1.2, 0.3, Verdict.SAME), (0.8, 0.0, Verdict.FASTER), (1.01, 0.0, Verdict.SAME)],
)
def test_a_slowdown_counts_past_the_noise_and_the_tolerance(factor: float, tolerance: float, verdict: Verdict) -> None:
    comparison = compare_reports(make_report(make_row(STEADY)), make_report(make_row(times(factor))), tolerance=tolerance)
    (row,) = comparison.rows

    assert (row.verdict, comparison.passed) == (verdict, verdict is not Verdict.SLOWER)
    assert row.change == pytest.approx(factor - 1)


def test_few_samples_judge_nothing() -> None:
    comparison = compare_reports(make_report(make_row(STEADY)), make_report(make_row((90.0,) * 5)))

    assert comparison.passed
    assert explain(comparison) == "1 rows compared: 1 unjudged (fewer than 6 samples; raise --budget)"


def test_only_the_rows_of_both_are_compared() -> None:
    old = make_report(make_row(STEADY), make_row(STEADY, candidates=3))
    new = make_report(make_row(times(2)), make_row(STEADY, precision=Precision.INT8))
    comparison = compare_reports(old, new)

    assert [row.candidates for row in comparison.rows] == [10]
    assert comparison.unmatched == 2
    assert explain(comparison) == "1 rows compared: 1 slower; 2 rows in one report only"
    assert comparison_document(comparison)["passed"] is False


def test_other_packages_are_noted() -> None:
    comparison = compare_reports(make_report(), make_report(versions={"onnxruntime": "1.24.0", "numpy": "2.0"}))
    assert comparison.notes == ("numpy: none then, 2.0 now", "onnxruntime: 1.23.0 then, 1.24.0 now")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"machine": make_machine(cpu="Another CPU")}, "another machine: its cpu differ"),
        ({"machine": make_machine(usable_cores=1)}, "its usable cores differ"),
        ({"weights_sha256": "9" * 64}, "another model"),
        ({"rows": (make_row(candidates=77),)}, "share no row"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare_reports(make_report(**other), make_report())
