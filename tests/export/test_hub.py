"""Published checkpoints against the scores that their owners published. Needs a model hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.profiles import Precision, SourceError
from crossforge.runtime import Reranker

pytestmark = [pytest.mark.hub, pytest.mark.slow]
TOLERANCE = 0.02
"""Published figures are rounded to two digits and were computed by other versions of the libraries."""


@pytest.mark.parametrize("checkpoint", ["cross-encoder/ms-marco-MiniLM-L6-v2", "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1"])
def test_published_scores_are_reproduced(checkpoint: str, shared_data: Path, tmp_path: Path) -> None:
    published = json.loads((shared_data / "golden_seed_scores.json").read_text())[checkpoint]
    rows = published.get("pairs") or [[published["query"], text, score] for text, score in published["scores"]]
    try:
        export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(precisions=(Precision.FP32,)))
    except SourceError as error:
        pytest.skip(f"no hub answers for {checkpoint}: {error}")
    with Reranker.load(tmp_path / "bundle", precision="fp32") as reranker:
        scores = reranker.predict([(query, passage) for query, passage, _ in rows])
    assert scores == pytest.approx([score for *_, score in rows], abs=TOLERANCE)
