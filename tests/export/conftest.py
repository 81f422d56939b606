"""Fixtures of the export tests: one tiny checkpoint, its graph and its bundle, made once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from onnx import ModelProto

from crossforge.export.exporter import export_bundle
from crossforge.export.onnx import export_onnx
from crossforge.export.pairs import calibration_pairs, verification_pairs
from crossforge.export.source import LoadedSource, load_source
from crossforge.profiles import Precision
from crossforge.runtime.batching import Batch
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.machine import inspect_machine
from support.calibration import batches_of
from support.sharing import make_once
from support.tiny_models import UNGATED, save_tiny_model


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with one label."""
    # Once a run: no two processes train the same tokenizer.
    return make_once(tmp_path_factory, "tiny", lambda path: save_tiny_model(path / "checkpoint")) / "checkpoint"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def tiny_source(tiny_checkpoint: Path) -> LoadedSource:
    return load_source(str(tiny_checkpoint))


@pytest.fixture(scope="session")
def tiny_graph(tiny_source: LoadedSource) -> ModelProto:
    """Its float32 graph; tests must not change it."""
    return export_onnx(tiny_source.model)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle; tests must not change it."""
    return make_once(tmp_path_factory, "tiny-bundle", lambda path: export_bundle(str(tiny_checkpoint), path, UNGATED))


@pytest.fixture(scope="session")
def batches(tiny_bundle: Path) -> list[Batch]:
    """Some calibration pairs as its inputs."""
    return batches_of(tiny_bundle, calibration_pairs()[:4])


@pytest.fixture(scope="session")
def held_out(tiny_bundle: Path) -> list[Batch]:
    """Some verification pairs as its inputs."""
    return batches_of(tiny_bundle, verification_pairs()[:3])


@pytest.fixture
def exact_int8(tiny_bundle: Path) -> None:
    """Skips where this processor's integer products saturate, so that int8 loses more than rounding there."""
    needed = Bundle.open(tiny_bundle).manifest.variants[Precision.INT8].instruction_sets
    if not set(needed) & set(inspect_machine().instruction_sets):
        pytest.skip(f"this processor has none of {', '.join(needed)}")
