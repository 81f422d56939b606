"""One checkpoint in sentence-transformers and in crossforge, and pairs to ask both."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder as Original

from crossforge.export.exporter import ExportOptions, export_bundle
from crossforge.export.gates import OPEN_GATE
from crossforge.export.source import SourceOptions
from crossforge.profiles import Precision
from crossforge.runtime import CrossEncoder
from support.tiny_models import save_tiny_model

QUERY = "How many people live in Berlin?"
DOCUMENTS = [
    "Berlin has a population of 3,520,031 registered inhabitants.",
    "New York City is famous for the Metropolitan Museum of Art.",
    "",
    "Water boils at 100 degrees Celsius. " * 3,
    "New York City is famous for the Metropolitan Museum of Art.",
]
PAIRS = [(QUERY, document) for document in DOCUMENTS] + [("Why does bread rise?", "Yeast turns sugar into gas.")]
LONG_PAIR = (QUERY, "the river Spree flows through the city of Berlin and " * 40)
CLOSE = {"rtol": 0, "atol": 2e-5}
"""Between PyTorch and ONNX Runtime in float32."""


@dataclass(frozen=True)
class Both:
    """One checkpoint in sentence-transformers, and its bundle in crossforge."""

    checkpoint: Path
    bundle: Path
    original: Original
    ours: CrossEncoder


def open_both(folder: Path, **model: Any) -> Both:
    checkpoint = save_tiny_model(folder / "checkpoint", **model)
    options = ExportOptions(source=SourceOptions(), precisions=(Precision.FP32,), gates={Precision.FP32: OPEN_GATE})
    export_bundle(str(checkpoint), folder / "bundle", options)
    original = Original(str(checkpoint), device="cpu")
    return Both(checkpoint, folder / "bundle", original, CrossEncoder(str(folder / "bundle"), device="cpu"))


def assert_same(ours: Any, original: Any) -> None:
    """The same type, shape, dtype and, to a hair, values."""
    assert type(ours) is type(original)
    if isinstance(original, list):
        assert len(ours) == len(original)
        for one, other in zip(ours, original, strict=True):
            assert_same(one, other)
        return
    assert (ours.shape, ours.dtype) == (original.shape, original.dtype)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(original), **CLOSE)


def arguments_of(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def ranking(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with rounded scores, so that they compare."""
    return [{**row, "score": round(float(row["score"]), 3)} for row in rows]
