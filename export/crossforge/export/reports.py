"""The parity report of a bundle: which queries each variant moves, as JSON for programs and as a page for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crossforge.export.parity import QueryParity, most_moved
from crossforge.profiles import ParityReport, Precision
from crossforge.profiles.jsonio import decode, encode

REPORT_NAME = "reports/parity.json"
PAGE_NAME = "reports/parity.md"
_QUERIES_SHOWN = 10
_COLUMNS = (
    "variant",
    "against",
    "pairs",
    "largest logit diff.",
    "mean",
    "Kendall tau",
    "same first",
    "top-10 overlap",
    "new ties",
    "verdict",
)


@dataclass(frozen=True, kw_only=True)
class VariantReport:
    """One variant's verdict, and what it rests on."""

    parity: ParityReport
    gate: str
    """The thresholds in words."""
    queries: tuple[QueryParity, ...]
    """Every verification query."""


def read_reports(folder: Path) -> dict[Precision, VariantReport]:
    """The reports of a bundle; none where the bundle has no such file."""
    path = folder / REPORT_NAME
    if not path.is_file():
        return {}
    return decode(dict[Precision, VariantReport], json.loads(path.read_text(encoding="utf-8"))["variants"])


def write_reports(folder: Path, reports: dict[Precision, VariantReport]) -> None:
    """Write ``reports/parity.json`` and ``reports/parity.md`` into a bundle."""
    (folder / REPORT_NAME).parent.mkdir(exist_ok=True)
    for name, text in ((REPORT_NAME, to_json(reports)), (PAGE_NAME, to_markdown(reports))):
        (folder / name).write_text(text, encoding="utf-8")


def to_json(reports: dict[Precision, VariantReport]) -> str:
    """The reports as JSON; a figure that is not finite, which only a refused variant has, becomes null."""
    document = _without_infinities({"variants": encode(reports)})
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(reports: dict[Precision, VariantReport]) -> str:
    """The reports as a page: the variants in one table, then the queries that each of them moves most."""
    return "\n".join(_page(reports)) + "\n"


def _page(reports: dict[Precision, VariantReport]) -> Iterator[str]:
    yield "# Parity\n"
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "|" + "---|" * len(_COLUMNS)
    for precision, report in reports.items():
        parity = report.parity
        yield (
            f"| {precision} | {parity.reference} | {parity.pairs} | {parity.max_abs_diff:.2g} | {parity.mean_abs_diff:.2g} "
            f"| {_figure(parity.kendall_tau)} | {_figure(parity.top1_agreement)} | {_figure(parity.top10_overlap)} "
            f"| {parity.ties_created} | {'passed' if parity.passed else 'FAILED'} |"
        )
    yield ""
    for precision, report in reports.items():
        yield f"## {precision}\n"
        yield f"Asked: {report.gate}.\n"
        if (quality := report.parity.quality) is not None:
            yield (
                f"nDCG@10 {quality.ndcg_at_10:.4f} ({report.parity.reference} {quality.reference_ndcg_at_10:.4f}), "
                f"MRR@10 {quality.mrr_at_10:.4f} ({quality.reference_mrr_at_10:.4f}).\n"
            )
        yield from _moved_queries(report)


def _moved_queries(report: VariantReport) -> Iterator[str]:
    moved = most_moved(report.queries)
    yield f"{len(moved)} of {len(report.queries)} queries are ordered differently.\n"
    if not moved:
        return
    yield "| query | Kendall tau | top-10 overlap | largest moves |"
    yield "|---|---|---|---|"
    for query in moved[:_QUERIES_SHOWN]:
        moves = ", ".join(f"{_cell(move.id)}: {move.reference_rank} → {move.variant_rank}" for move in query.moves)
        yield f"| {_cell(query.query)} | {_figure(query.kendall_tau)} | {_figure(query.top10_overlap)} | {moves} |"
    yield ""


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cell(text: str) -> str:
    short = text if len(text) <= 80 else text[:79] + "…"
    return " ".join(short.split()).replace("|", "\\|")


def _without_infinities(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
