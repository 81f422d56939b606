"""What the benchmark scripts share: real pairs where there are some, and a bundle of the embedded model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossforge.export.demo import materialize_demo_model
from crossforge.export.exporter import export_bundle
from crossforge.export.pairs import builtin_pairs
from crossforge.export.quantize import quantize_bundle
from crossforge.profiles import MANIFEST_NAME, RUNS_ONLY, CrossforgeError, Precision
from crossforge.profiles.precision import BF16_INSTRUCTION_SETS
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.console import TerminalProgress
from crossforge.runtime.machine import inspect_machine
from crossforge.runtime.providers import why_not
from crossforge.runtime.records import QueryRecord, read_run

ROOT = Path(__file__).resolve().parent.parent
DL19 = ROOT.parent / "shared" / "data" / "trec-dl19"
BUNDLE = ROOT / "build" / "bench-bundle"


@dataclass(frozen=True)
class Workload:
    name: str
    records: list[QueryRecord]
    qrels: Path | None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(record.query, passage.text) for record in self.records for passage in record.passages]


def workload(queries: int | None = None) -> Workload:
    """TREC DL 2019 passages where they are at hand, else the built-in pairs."""
    if DL19.is_dir():
        return Workload("TREC DL19, BM25 top 100", read_run(DL19 / "bm25-top100.jsonl")[:queries], DL19 / "qrels.txt")
    return Workload("built-in pairs", builtin_pairs()[:queries], None)


def demo_bundle() -> Path:
    """A bundle of the embedded model, made by this tree's exporter; made again when a source file is newer."""
    manifest = BUNDLE / MANIFEST_NAME
    newest = max(path.stat().st_mtime for root in ("profiles", "runtime", "export") for path in (ROOT / root).rglob("*.py"))
    if not manifest.is_file() or manifest.stat().st_mtime < newest:
        export_bundle("demo", BUNDLE, progress=TerminalProgress())
    return BUNDLE


def demo_bundle_of_all() -> Path:
    """The same with every variant that this machine can make and measure, engines of their own included."""
    bundle, machine = demo_bundle(), inspect_machine()
    engines = [provider for provider in RUNS_ONLY if why_not(provider, machine) is None]
    wanted = {precision for provider in engines for precision in RUNS_ONLY[provider]}
    if not set(BF16_INSTRUCTION_SETS) & set(machine.instruction_sets):
        wanted.discard(Precision.BF16_OPENVINO)
    for precision in sorted(wanted - set(Bundle.open(bundle).manifest.variants)):
        try:
            quantize_bundle(bundle, [precision], progress=TerminalProgress())
        except CrossforgeError as error:  # such as nncf that is not installed: the others take part
            print(error, file=sys.stderr)
    return bundle


def demo_checkpoint() -> Path:
    return materialize_demo_model()


def scores_by_query(scores: np.ndarray, records: list[QueryRecord]) -> dict[str, dict[str, float]]:
    result, start = {}, 0
    for record in records:
        stop = start + len(record.passages)
        result[record.qid] = dict(zip((p.id for p in record.passages), scores[start:stop].tolist(), strict=True))
        start = stop
    return result
