"""A run of the profiler, from a bundle to its report."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from crossforge.profiles import Precision, ProviderUnavailableError
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.machine import Machine, inspect_machine, installed_versions
from crossforge.runtime.profiling.ceiling import count_operations, gemm_share, measure_ceiling
from crossforge.runtime.profiling.cold_start import ColdStart, measure_cold_start
from crossforge.runtime.profiling.contenders import (
    Candidate,
    deployed_candidate,
    list_candidates,
    open_contenders,
    refuse_none,
    size_bytes,
)
from crossforge.runtime.profiling.measure import Contender, measure_cells
from crossforge.runtime.profiling.memory import read_memory
from crossforge.runtime.profiling.options import ProfileOptions
from crossforge.runtime.profiling.report import LatencyReport, LatencyRow, Skipped, VariantFacts
from crossforge.runtime.profiling.workload import plan_workload
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.prompts import open_tokenizer

_PACKAGES = (
    "crossforge", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "tensorrt",
    "tensorrt-rtx", "cuda-bindings",
)  # fmt: skip


def measure_latency(
    path: str | Path, options: ProfileOptions | None = None, *, progress: Progress | None = None
) -> LatencyReport:
    """Measure a bundle on this machine.

    Args:
        path: The bundle.
        options: What to measure, and how long.
        progress: Told of the stages.

    Raises:
        BundleError: The bundle is missing, damaged, or not understood.
        InputError: The workload holds no pair, a variant is not in the bundle, or the budget is too short.
        ProviderUnavailableError: None of the named providers runs here.
    """
    clock = time.perf_counter_ns
    options, progress = options or ProfileOptions(), progress or Silent()
    deadline_ns = clock() + int(options.budget_s * 1e9)
    bundle, machine = Bundle.open_whole(path), inspect_machine()
    bundle.refuse_bi_encoder("what is profiled")
    manifest = bundle.manifest
    candidates, skipped = list_candidates(manifest, machine, providers=options.providers, precisions=options.precisions)
    if options.deployment is not None:
        try:
            candidates.append(deployed_candidate(bundle, machine, options.deployment))
        except ProviderUnavailableError as error:
            skipped.append(Skipped(what=options.deployment.name, why=error.what))
    if not candidates:
        refuse_none(skipped)
    with progress.stage("plan the workload") as stage:
        tokenizer = open_tokenizer(bundle.path, manifest)
        cells, clipped = plan_workload(options, tokenizer)
        skipped += clipped
        stage.note = f"{len(cells)} rows a variant"
    with ExitStack() as stack:
        with progress.stage("load") as stage:
            contenders, failed = open_contenders(bundle, candidates, stack, clock)
            skipped += failed
            stage.note = ", ".join(str(contender) for contender in contenders)
        if not contenders:
            refuse_none(skipped)
        with progress.stage("start fresh processes") as stage:
            starts = []
            for position, contender in enumerate(contenders):
                starts.append(_cold_start(bundle, contender, options.cold_starts))
                stage.advance(position + 1, len(contenders))
            import_ms = statistics.median(start.import_ms for start in starts)
            stage.note = f"import {import_ms:.0f} ms; {options.cold_starts} a variant"
        with progress.stage("measure the machine's ceiling"):
            ceilings = _ceilings(contenders)
        with progress.stage("measure") as stage:
            rows, dropped = measure_cells(
                cells,
                contenders,
                deadline_ns=deadline_ns,
                interval_width=options.interval_width,
                clock=clock,
                stage=stage,
            )
            skipped += dropped
            stage.note = f"{sum(len(row.samples_ms) for row in rows)} calls in {len(rows)} rows"
        peak_bytes = read_memory().peak_bytes
        with progress.stage("measure the ceiling again"):  # whatever disturbed the first time may be gone
            again = _ceilings(contenders)
    ceilings = [max(filter(None, pair), default=None) for pair in zip(ceilings, again, strict=True)]
    operations = _count_operations(bundle, rows) if any(ceilings) else {}
    return LatencyReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=manifest.source.id,
        weights_sha256=manifest.source.weights_sha256,
        machine=machine,
        versions=package_versions(),
        peak_resident_bytes=peak_bytes,
        import_ms=import_ms,
        variants=tuple(
            _facts(bundle, machine, contender, start, rows, operations, ceiling)
            for contender, start, ceiling in zip(contenders, starts, ceilings, strict=True)
        ),
        rows=tuple(sorted(rows, key=lambda row: (row.candidates, row.sequence_length))),
        skipped=tuple(skipped),
    )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part in a call."""
    packages = dict(package.split(" ", 1) for package in installed_versions(_PACKAGES))
    return {"python": platform.python_version(), **packages}


def _cold_start(bundle: Bundle, contender: Contender, runs: int) -> ColdStart:
    return measure_cold_start(
        bundle.path,
        provider=contender.provider,
        precision=contender.precision,
        deployment=contender.deployment,
        runs=runs,
    )


def _ceilings(contenders: Sequence[Contender]) -> list[float | None]:
    return [
        measure_ceiling(contender.provider, contender.precision, workers=contender.reranker.workers)
        for contender in contenders
    ]


def _count_operations(bundle: Bundle, rows: Sequence[LatencyRow]) -> dict[int, int]:
    variant = bundle.manifest.variants.get(Precision.FP32)
    if variant is None:
        return {}
    return count_operations(bundle.path / variant.path, bundle.manifest, sorted({row.sequence_length for row in rows}))


def _facts(
    bundle: Bundle,
    machine: Machine,
    contender: Contender,
    start: ColdStart,
    rows: Sequence[LatencyRow],
    operations: dict[int, int],
    ceiling: float | None,
) -> VariantFacts:
    provider, precision = contender.provider, contender.precision
    parity = bundle.manifest.variants[precision].parity
    own = [row for row in rows if row.contender == (provider, precision, contender.deployment_name)]
    return VariantFacts(
        provider=provider,
        precision=precision,
        deployment=contender.deployment_name,
        workers=contender.reranker.workers,
        budget_tokens=contender.reranker.budget_tokens,
        size_bytes=size_bytes(bundle, machine, Candidate(provider=contender.reranker.session.provider, precision=precision)),
        load_ms=start.load_ms,
        first_call_ms=start.first_call_ms,
        resident_bytes=start.resident_bytes,
        kendall_tau=parity.kendall_tau,
        ndcg_at_10=None if parity.quality is None else parity.quality.ndcg_at_10,
        gemm_share=gemm_share(own, operations, ceiling),
    )
