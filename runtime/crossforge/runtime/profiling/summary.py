"""A report as people and programs read it: tables, and the document that ``--json`` prints."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from crossforge.runtime.profiling.compare import Comparison, RowComparison, Verdict
from crossforge.runtime.profiling.intervals import median_interval
from crossforge.runtime.profiling.load_report import LoadCurve, Outcome
from crossforge.runtime.profiling.report import LatencyReport, LatencyRow, VariantFacts

_COLOURS = {Verdict.SLOWER: "red", Verdict.FASTER: "green", Verdict.SAME: "none", Verdict.UNJUDGED: "dim"}

_WIDEST = 400


def report_document(report: LatencyReport) -> dict[str, object]:
    """The figures of a report, without its samples."""
    return {
        "machine": report.machine,
        "source": report.source,
        "created": report.created,
        "versions": report.versions,
        "import_ms": report.import_ms,
        "peak_resident_bytes": report.peak_resident_bytes,
        "variants": report.variants,
        "rows": [_row_document(row) for row in report.rows],
        "skipped": report.skipped,
        "load": None if report.load is None else report.load.figures(),
    }


def comparison_document(comparison: Comparison) -> dict[str, object]:
    """The verdicts, row by row."""
    return {
        "passed": comparison.passed,
        "rows": [{**vars(row), "change": row.change} for row in comparison.rows],
        "unmatched": comparison.unmatched,
        "notes": comparison.notes,
    }


def _row_document(row: LatencyRow) -> dict[str, object]:
    interval = median_interval(row.samples_ms)
    return {
        "provider": row.provider,
        "precision": row.precision,
        "deployment": row.deployment,
        "candidates": row.candidates,
        "sequence_length": row.sequence_length,
        **{f"p{percent}_ms": row.percentile_ms(percent) for percent in (50, 90, 95, 99)},
        "pairs_per_s": row.pairs_per_s,
        "tokens_per_s": row.tokens_per_s,
        "padding_waste": row.padding_waste,
        "samples": len(row.samples_ms),
        "median_interval_ms": [interval.low, interval.high] if interval.known else None,
        "stages_ms": {stage: row.stage_ms(stage) for stage in row.stage_samples_ms},
    }


def latency_table(report: LatencyReport) -> Table:
    """Speed of every row, with the variant's quality beside it."""
    table = Table(box=None)
    for name in ("provider", "precision"):
        table.add_column(name, no_wrap=True)
    for name in ("candidates", "tokens", "p50 ms", "±", "p90", "p95", "p99", "calls", "pairs/s", "padding", "Kendall tau"):
        table.add_column(name, no_wrap=True, justify="right")
    quality = {facts.contender: facts.kendall_tau for facts in report.variants}
    for row in report.rows:
        interval = median_interval(row.samples_ms)
        table.add_row(
            row.provider,
            _variant(row),
            str(row.candidates),
            str(row.sequence_length),
            f"{row.percentile_ms(50):.1f}",
            f"{interval.relative_width / 2:.1%}" if interval.known else "-",
            *(f"{row.percentile_ms(percent):.1f}" for percent in (90, 95, 99)),
            str(len(row.samples_ms)),
            f"{row.pairs_per_s:.0f}",
            f"{row.padding_waste:.1%}",
            _figure(quality[row.contender], ".4f"),
        )
    return table


def variant_table(report: LatencyReport) -> Table:
    """What each variant is besides its latency."""
    table = Table(box=None)
    for name in ("provider", "precision"):
        table.add_column(name, no_wrap=True)
    for name in (
        "workers",
        "budget",
        "MB",
        "load ms",
        "first call ms",
        "resident MB",
        "of the ceiling",
        "Kendall tau",
        "nDCG@10",
    ):
        table.add_column(name, no_wrap=True, justify="right")
    for facts in report.variants:
        table.add_row(*_variant_cells(facts))
    return table


def _variant_cells(facts: VariantFacts) -> tuple[str, ...]:
    return (
        facts.provider,
        _variant(facts),
        str(facts.workers),
        f"{facts.budget_tokens:,}",
        f"{facts.size_bytes / 1e6:.1f}",
        f"{facts.load_ms:.0f}",
        f"{facts.first_call_ms:.0f}",
        f"{facts.resident_bytes / 1e6:.0f}",
        _figure(facts.gemm_share, ".0%"),
        _figure(facts.kendall_tau, ".4f"),
        _figure(facts.ndcg_at_10, ".4f"),
    )


def comparison_table(comparison: Comparison) -> Table:
    """Then and now, the worst first."""
    table = Table("verdict", "provider", "precision", box=None)
    for name in ("candidates", "tokens", "then ms", "now ms", "change"):
        table.add_column(name, no_wrap=True, justify="right")
    order = list(Verdict)
    for row in sorted(comparison.rows, key=lambda row: (order.index(row.verdict), -row.change)):
        table.add_row(
            f"[{_COLOURS[row.verdict]}]{row.verdict}[/]",
            escape(row.provider),
            _variant(row),
            str(row.candidates),
            str(row.sequence_length),
            f"{row.old_ms:.1f}",
            f"{row.new_ms:.1f}",
            f"{row.change:+.1%}",
        )
    return table


def load_table(curve: LoadCurve) -> Table:
    """What became of the requests of every run, by rate."""
    table = Table(box=None)
    for name in ("requests/s", "sent", "answered/s", "p50 ms", "p90", "p99", "refused", "failed", "late to be sent by ms"):
        table.add_column(name, no_wrap=True, justify="right")
    for run in sorted(curve.runs, key=lambda run: run.rate_per_s):
        refused = run.count(Outcome.REJECTED)
        table.add_row(
            f"{run.rate_per_s:.2f}",
            f"{len(run.outcomes)}{', cut short' if run.stopped_early else ''}",
            f"{run.achieved_per_s:.2f}",
            *(_figure(run.percentile_ms(percent), ".1f") for percent in (50, 90, 99)),
            str(refused),
            str(len(run.outcomes) - run.count(Outcome.ANSWERED) - refused),
            f"{run.max_lag_ms:.1f}",
        )
    return table


def explain_load(curve: LoadCurve) -> list[str]:
    """What was measured, what failed, and the highest rate within the objective."""
    lines = [f"{curve.service}, {curve.requests}; latency counts from when each request was due."]
    errors: Counter[str] = Counter()
    for run in curve.runs:
        errors.update(run.errors)
    if errors:
        lines.append("Errors: " + ", ".join(f"{count} {kind}" for kind, count in errors.most_common()))
    if curve.slo is not None:
        answer = f"{curve.max_rate_per_s:.2f} requests a second keep" if curve.max_rate_per_s else "No rate keeps"
        lines.append(f"{answer} {curve.slo.percentile:g} of 100 within {curve.slo.latency_ms:g} ms.")
    return lines


def print_whole(console: Console, table: Table) -> None:
    """Print a table uncut, however narrow the terminal: a figure that is cut is another figure."""
    table.width = Measurement.get(console, console.options.update_width(_WIDEST), table).maximum
    console.print(table)


def _variant(what: LatencyRow | VariantFacts | RowComparison) -> str:
    return what.precision if what.deployment is None else f"{what.precision} by {escape(what.deployment)}"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
