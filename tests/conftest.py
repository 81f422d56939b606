"""Fixtures that every test may use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real ranking data, which is not part of the repository."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real ranking data; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no ranking data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the embedded model, exported once a session."""
    from crossforge.export.exporter import export_bundle

    path = tmp_path_factory.mktemp("demo") / "bundle"
    export_bundle("demo", path)
    return path


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a bi-encoder with random weights, fp32 alone, exported once a session."""
    from crossforge.export.exporter import ExportOptions, export_bundle
    from crossforge.export.gates import OPEN_GATE
    from crossforge.profiles import Precision
    from support.bi_encoders import save_bi_encoder

    folder = tmp_path_factory.mktemp("embedder")
    options = ExportOptions(precisions=(Precision.FP32,), gates={Precision.FP32: OPEN_GATE})
    export_bundle(str(save_bi_encoder(folder / "checkpoint")), folder / "tiny-embedder", options)
    return folder / "tiny-embedder"


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native engine, compiled once a session; skips where there is no compiler."""
    from crossforge.runtime.sessions.native.library import build_library

    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the native engine with")
    return build_library(tmp_path_factory.mktemp("cache") / "crossforge" / "native")
