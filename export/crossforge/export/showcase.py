"""The whole way on the embedded model: export, quantize, verify, rank, measure."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from crossforge.export.demo import DEMO
from crossforge.export.exporter import DEFAULT_PRECISIONS, ExportOptions, export_bundle
from crossforge.export.pairs import berlin, builtin_pairs, flatten
from crossforge.profiles import Manifest, Precision
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.ranking import RankedPassage
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.sessions.native.library import NATIVE_INSTRUCTION_SETS, build_library, find_compiler, find_library

_ROUNDS = 3
_QUERIES = 8


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """What the demonstration did."""

    manifest: Manifest
    record: QueryRecord
    """The query and its passages."""
    results: tuple[RankedPassage, ...]
    """The ranking by the variant that ``auto`` takes here."""
    precision: Precision
    """That variant."""
    pairs_per_s: dict[Precision, float]
    """Median rate of each variant, measured in turns."""


def run_demo(target: str | Path, *, progress: Progress | None = None) -> Demonstration:
    """Export the embedded model to ``target`` and rank with it; by the native engine too, where it can be compiled.

    Raises:
        MissingPackageError: The ``demo``, ``export`` or ``cpu`` extra is not installed.
        GateError: A variant ranks differently from its reference.
    """
    progress = progress or Silent()
    precisions: tuple[Precision, ...] = DEFAULT_PRECISIONS
    if set(NATIVE_INSTRUCTION_SETS) & set(inspect_machine().instruction_sets) and (find_library() or find_compiler()):
        with progress.stage("compile the native engine") as stage:
            stage.note = str(find_library() or build_library())
        precisions = (*precisions, Precision.INT8_NATIVE)
    manifest = export_bundle(DEMO, target, ExportOptions(precisions=precisions), progress=progress)
    record = berlin()
    with Reranker.load(target) as reranker:
        results = reranker.rank(record.query, [passage.text for passage in record.passages])
        precision = reranker.precision
    with progress.stage("measure") as stage:
        pairs_per_s = measure_pairs_per_s(target, manifest)
        stage.note = f"{_ROUNDS} rounds, variants in turns"
    return Demonstration(
        manifest=manifest, record=record, results=tuple(results), precision=precision, pairs_per_s=pairs_per_s
    )


def measure_pairs_per_s(target: str | Path, manifest: Manifest) -> dict[Precision, float]:
    """Median rate of each variant on some of the built-in pairs, in turns so that drift hits all alike."""
    pairs = flatten(builtin_pairs()[:_QUERIES])
    seconds: dict[Precision, list[float]] = {precision: [] for precision in manifest.variants}
    with ExitStack() as stack:
        rerankers = {p: stack.enter_context(Reranker.load(target, precision=p)) for p in manifest.variants}
        for reranker in rerankers.values():
            reranker.score_pairs(pairs)
        for _ in range(_ROUNDS):
            for precision, reranker in rerankers.items():
                start = time.perf_counter()
                reranker.score_pairs(pairs)
                seconds[precision].append(time.perf_counter() - start)
    return {precision: len(pairs) / statistics.median(times) for precision, times in seconds.items()}
