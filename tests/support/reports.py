"""Latency reports to alter."""

from __future__ import annotations

from typing import Any

from crossforge.profiles import Precision
from crossforge.runtime.profiling.report import STAGES, LatencyReport, LatencyRow, VariantFacts
from support.builders import make_machine


def make_row(samples_ms: tuple[float, ...] = (10.0,) * 6, **overrides: Any) -> LatencyRow:
    fields: dict[str, Any] = {
        "provider": "cpu",
        "precision": Precision.FP32,
        "candidates": 10,
        "sequence_length": 64,
        "tokens": 640,
        "padded_tokens": 640,
        "samples_ms": samples_ms,
        "stage_samples_ms": {stage: tuple(sample / 10 for sample in samples_ms) for stage in STAGES},
    }
    return LatencyRow(**fields | overrides)


def make_facts(**overrides: Any) -> VariantFacts:
    fields: dict[str, Any] = {
        "provider": "cpu",
        "precision": Precision.FP32,
        "workers": 2,
        "budget_tokens": 384,
        "size_bytes": 91_000_000,
        "load_ms": 250.0,
        "first_call_ms": 10.0,
        "resident_bytes": 200_000_000,
        "kendall_tau": 1.0,
        "ndcg_at_10": None,
        "gemm_share": 0.9,
    }
    return VariantFacts(**fields | overrides)


def make_report(*rows: LatencyRow, **overrides: Any) -> LatencyReport:
    fields: dict[str, Any] = {
        "created": "2026-01-01T00:00:00+00:00",
        "source": "tiny",
        "weights_sha256": "2" * 64,
        "machine": make_machine(),
        "versions": {"onnxruntime": "1.23.0"},
        "peak_resident_bytes": 300_000_000,
        "import_ms": 160.0,
        "variants": (make_facts(),),
        "rows": rows or (make_row(),),
        "skipped": (),
    }
    return LatencyReport(**fields | overrides)
