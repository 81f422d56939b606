"""The lists of ``examples/deploy/edge``: the few packages that a small machine needs. See also ``export/test_native.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossforge.runtime import Reranker
from support.builders import write_bundle
from support.deploy import ROOT
from support.few_packages import edge_requirements, rank_with


@pytest.mark.parametrize("name", ["int8.txt", "int8_native.txt"])
def test_the_versions_are_those_that_the_tests_run_with(name: str) -> None:
    tested = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    listed = edge_requirements(name)
    assert listed == {package: tested[package] for package in listed}
    assert ("onnxruntime" in listed) == (name == "int8.txt")


def test_nothing_else_is_needed_to_rank(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    provider, precision, scores = rank_with([*edge_requirements("int8.txt")], bundle)
    with Reranker.load(bundle) as reranker:
        assert (provider, precision) == (reranker.session.provider, reranker.precision) == ("cpu", "fp32")
        assert scores == [passage.score for passage in reranker.rank("where is the city", ["berlin", "a passage"])]
