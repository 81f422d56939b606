"""Every script in ``examples/`` runs, and ranks."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent / "../examples"
ELSEWHERE = {"ray_serve"}
"""Run by ``runtime/distributed/test_on_ray.py``, on its cluster."""
EXAMPLES = sorted(path.resolve() for path in FOLDER.glob("*.py") if path.stem not in ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_rank_the_answer_first(
    example: Path, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    monkeypatch.setattr("sys.argv", [str(example), str(demo_bundle)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[0].endswith("Berlin has about 3.8 million inhabitants.")
