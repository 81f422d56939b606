"""The bundle that GPUs run, and what its answers should be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from crossforge.export.quantize import quantize_bundle
from crossforge.profiles import Precision
from crossforge.runtime import Reranker
from crossforge.runtime.activation import Floats
from support.gpu import PAIRS


@pytest.fixture(scope="session")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's bundle with the variants that GPUs run."""
    path = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("gpu") / "bundle"))
    quantize_bundle(path, [Precision.FP16, Precision.INT8_QDQ, Precision.FP16_CUDA])
    return path


@pytest.fixture(scope="session")
def reference(bundle: Path) -> Floats:
    """float32 logits of ``PAIRS`` on the CPU."""
    with Reranker.load(bundle, provider="cpu", precision="fp32") as reranker:
        return reranker.score_pairs(PAIRS).logits
