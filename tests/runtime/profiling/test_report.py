from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import InputError
from crossforge.profiles.jsonio import encode
from crossforge.runtime.profiling.report import LatencyReport
from crossforge.runtime.profiling.summary import report_document
from support.reports import make_report, make_row
from support.strategies import no_deadline

samples = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=40).map(tuple)


def percentile_by_hand(values: list[float], percent: int) -> float:
    """Linear between the two closest ranks."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@given(samples)
@no_deadline
def test_every_percentile_follows_from_the_samples_in_the_file(values: tuple[float, ...]) -> None:
    report = make_report(make_row(values))
    kept = json.loads(report.to_json())["rows"][0]
    (shown,) = json.loads(json.dumps(encode(report_document(report))))["rows"]

    for percent in (50, 90, 95, 99):
        assert shown[f"p{percent}_ms"] == pytest.approx(percentile_by_hand(kept["samples_ms"], percent))
    assert shown["pairs_per_s"] == pytest.approx(kept["candidates"] / percentile_by_hand(kept["samples_ms"], 50) * 1e3)
    assert shown["samples"] == len(values)
    for stage, median in shown["stages_ms"].items():
        assert median == pytest.approx(percentile_by_hand(kept["stage_samples_ms"][stage], 50))


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = make_report(make_row(), make_row(candidates=3))
    path = tmp_path / "latency.json"
    path.write_text(report.to_json())
    assert LatencyReport.read(path) == report


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 7}', '{"schema_version": 1}', "\xff"])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "latency.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError):
        LatencyReport.read(path)
