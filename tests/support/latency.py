"""A latency report as a two-core CPU box would give it, made by rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from crossforge.profiles import Precision
from crossforge.runtime.profiling.load_report import LoadCurve, LoadRun, Outcome, Slo
from crossforge.runtime.profiling.report import LatencyReport, LatencyRow, Skipped, VariantFacts
from support.builders import make_machine

CANDIDATES = (1, 10, 50, 100, 200)
LENGTHS = (32, 64, 128, 256, 512)
SPEED = {Precision.FP32: 1.0, Precision.FP16: 0.8, Precision.INT8: 2.6}
QUALITY = {Precision.FP32: (None, 0.4213), Precision.FP16: (0.9991, 0.4212), Precision.INT8: (0.9842, 0.4196)}
SAMPLES = 20


def make_latency_row(precision: Precision, candidates: int, length: int, *, provider: str = "cpu") -> LatencyRow:
    """Time by a fixed cost, one a token and one a token squared; noise and a slow call now and then."""
    noise = np.random.default_rng([candidates, length, list(SPEED).index(precision)])
    tokens = candidates * length
    median_ms = {
        "tokenize": 0.15 + tokens * 4e-5,
        "plan": 0.01 + candidates * 1e-4,
        "collate": 0.02 + tokens * 4e-6,
        "compute": (0.6 + tokens * 6e-3 + tokens * length * 4e-6) / SPEED[precision],
        "postprocess": 0.02 + candidates * 2e-4,
    }
    stages = {stage: median * noise.lognormal(0.0, 0.04, SAMPLES) for stage, median in median_ms.items()}
    stages["compute"] *= np.where(noise.random(SAMPLES) < 0.1, noise.uniform(1.2, 1.6, SAMPLES), 1.0)
    return LatencyRow(
        provider=provider,
        precision=precision,
        candidates=candidates,
        sequence_length=length,
        tokens=tokens,
        padded_tokens=tokens + candidates,
        samples_ms=tuple((sum(stages.values()) + 0.03).tolist()),
        stage_samples_ms={stage: tuple(times.tolist()) for stage, times in stages.items()},
    )


def make_variant_facts(precision: Precision, *, provider: str = "cpu", **overrides: Any) -> VariantFacts:
    tau, ndcg = QUALITY[precision]
    size_bytes = {Precision.FP32: 90_900_000, Precision.FP16: 45_600_000, Precision.INT8: 23_400_000}[precision]
    facts: dict[str, Any] = {
        "provider": provider,
        "precision": precision,
        "workers": 2,
        "budget_tokens": 384,
        "size_bytes": size_bytes,
        "load_ms": size_bytes / 5e5,
        "first_call_ms": 7.4,
        "resident_bytes": 120_000_000 + size_bytes,
        "kendall_tau": tau,
        "ndcg_at_10": ndcg,
        "gemm_share": 0.61,
    }
    return VariantFacts(**facts | overrides)


def make_latency_report(**overrides: Any) -> LatencyReport:
    facts: dict[str, Any] = {
        "created": "2026-11-21T14:02:11Z",
        "source": "cross-encoder/ms-marco-MiniLM-L6-v2",
        "weights_sha256": "5f2c" * 16,
        "machine": make_machine(cpu="Test CPU @ 2.80GHz"),
        "versions": {"crossforge": "0.1.0", "onnxruntime": "1.23.0", "tokenizers": "0.22.2", "numpy": "2.4.6"},
        "peak_resident_bytes": 612_000_000,
        "import_ms": 214.0,
        "variants": tuple(make_variant_facts(precision) for precision in SPEED),
        "rows": tuple(
            make_latency_row(precision, candidates, length)
            for length in LENGTHS
            for candidates in CANDIDATES
            for precision in SPEED
            if candidates * length < 200 * 512
        ),
        "skipped": (
            Skipped(what="cuda", why="no NVIDIA driver (libcuda.so.1 cannot be loaded)"),
            Skipped(what="200 candidates of 512 tokens", why="the time budget was spent"),
        ),
    }
    return LatencyReport(**facts | overrides)


def make_load_run(rate_per_s: float, **overrides: Any) -> LoadRun:
    """Two seconds of requests whose latencies grow with the rate, up to 60 requests a second."""
    noise = np.random.default_rng(round(rate_per_s))
    intended = np.sort(noise.uniform(0.0, 2.0, round(2 * rate_per_s)))
    latencies = noise.lognormal(0.0, 0.5, len(intended)) * 0.009 / (1 - rate_per_s / 60)
    columns: dict[str, Any] = {
        "rate_per_s": rate_per_s,
        "duration_s": 2.0,
        "seed": 0,
        "stopped_early": False,
        "intended_s": tuple(intended.tolist()),
        "sent_s": tuple(intended.tolist()),
        "finished_s": tuple((intended + latencies).tolist()),
        "outcomes": (Outcome.ANSWERED,) * len(intended),
        "errors": {},
    }
    return LoadRun(**columns | overrides)


def make_load_curve(**overrides: Any) -> LoadCurve:
    facts: dict[str, Any] = {
        "service": "int8 on cpu",
        "requests": "20 candidates of 128 tokens",
        "slo": Slo(latency_ms=50),
        "runs": tuple(make_load_run(rate, stopped_early=rate == 50) for rate in (5, 10, 20, 50, 30, 40)),
    }
    return LoadCurve(**facts | overrides)


def on_another_provider(report: LatencyReport, provider: str) -> LatencyReport:
    """The same report with every variant on a second provider too, where all takes a seventh of the time."""
    faster = tuple(
        replace(
            row,
            provider=provider,
            samples_ms=tuple(time / 7 for time in row.samples_ms),
            stage_samples_ms={stage: tuple(time / 7 for time in times) for stage, times in row.stage_samples_ms.items()},
        )
        for row in report.rows
    )
    return replace(
        report,
        variants=report.variants + tuple(replace(variant, provider=provider) for variant in report.variants),
        rows=report.rows + faster,
    )
