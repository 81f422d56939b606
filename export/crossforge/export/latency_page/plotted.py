"""What the figures of a latency report show, as plain records: chosen and computed here, drawn elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from crossforge.profiles import InputError
from crossforge.runtime.profiling.load_report import LoadCurve, Outcome
from crossforge.runtime.profiling.report import STAGES, ContenderKey, LatencyReport, LatencyRow, VariantFacts

BETWEEN_STAGES = "between stages"
LOAD_PERCENTILES = (50, 90, 99)
WHOLE, CUT_SHORT = "to its end", "cut short, too slow"
"""What is said of a run under load."""
T = TypeVar("T")
Record = dict[str, Any]
"""One data point; its keys are the fields that a chart encodes."""
_MOST_LENGTHS = 6
"""Lengths past which the rows are no grid but a workload's queries."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Every variant's quality against its speed on one cell of the grid."""

    measure: str
    """The quality's name."""
    candidates: int
    sequence_length: int
    points: tuple[Record, ...]
    unknown: tuple[str, ...]
    """Variants that cannot be placed, for want of a quality or of that cell."""


class Names:
    """What a report's contenders are called: the precision, the provider where there are several, the deployment profile."""

    def __init__(self, report: LatencyReport) -> None:
        providers = {row.provider for row in report.rows} | {variant.provider for variant in report.variants}
        self._several = len(providers) > 1
        self.all: tuple[str, ...] = tuple(dict.fromkeys(self.of(row) for row in report.rows))
        """In the order of the report."""

    def of(self, variant: LatencyRow | VariantFacts) -> str:
        """The name of a row's or a variant's variant."""
        parts = (variant.precision, variant.provider if self._several else None, variant.deployment)
        return " · ".join(part for part in parts if part)


def latency_records(report: LatencyReport) -> list[Record]:
    """One record a row: percentiles by variant, candidates and length."""
    names = Names(report)
    return [
        {
            "variant": names.of(row),
            "candidates": row.candidates,
            "length": row.sequence_length,
            "tokens": row.tokens,
            **{f"p{percent}_ms": _figures(row.percentile_ms(percent)) for percent in (50, 90, 95, 99)},
            "pairs_per_s": _figures(row.pairs_per_s),
            "samples": len(row.samples_ms),
        }
        for row in report.rows
    ]


def is_grid(report: LatencyReport) -> bool:
    """Whether the rows are of a few lengths, so that each can have a plot of its own."""
    return len({row.sequence_length for row in report.rows}) <= _MOST_LENGTHS


def chosen_cells(report: LatencyReport) -> list[tuple[int, int]]:
    """At most 15 cells (candidates, length) that stand for all: a grid's ends and middles, or a workload's by tokens."""
    cells = {(row.candidates, row.sequence_length) for row in report.rows}
    if not is_grid(report):
        return spread(sorted(cells, key=lambda cell: cell[0] * cell[1]), 15)
    candidates = spread(sorted({candidates for candidates, _ in cells}), 5)
    lengths = spread(sorted({length for _, length in cells}), 3)
    return [(count, length) for length in lengths for count in candidates if (count, length) in cells]


def stage_records(report: LatencyReport) -> list[Record]:
    """One record a row and stage: its median time, and its share of the call.

    What the stages leave of the call's median is a part of its own, so that the bars hide nothing.
    """
    names = Names(report)
    records = []
    for row in report.rows:
        parts = {stage: row.stage_ms(stage) for stage in STAGES if stage in row.stage_samples_ms}
        parts[BETWEEN_STAGES] = max(0.0, row.percentile_ms(50) - sum(parts.values()))
        whole = sum(parts.values())
        records += [
            {
                "variant": names.of(row),
                "candidates": row.candidates,
                "length": row.sequence_length,
                "call": call_name(row.candidates, row.sequence_length),
                "stage": stage,
                "order": order,
                "ms": _figures(time_ms),
                "share": time_ms / whole if whole else 0.0,
            }
            for order, (stage, time_ms) in enumerate(parts.items())
        ]
    return records


def load_records(curve: LoadCurve) -> list[Record]:
    """One record a run and percentile, of the runs that had an answer, by rate."""
    return [
        {
            "rate": _figures(run.rate_per_s),
            "percentile": f"p{percent}",
            "ms": _figures(latency_ms),
            "run": CUT_SHORT if run.stopped_early else WHOLE,
            "sent": len(run.outcomes),
            "unanswered": len(run.outcomes) - run.count(Outcome.ANSWERED),
        }
        for run in sorted(curve.runs, key=lambda run: run.rate_per_s)
        for percent in LOAD_PERCENTILES
        if (latency_ms := run.percentile_ms(percent)) is not None
    ]


def call_name(candidates: int, length: int) -> str:
    """What a cell of the grid is called on an axis."""
    return f"{candidates} × {length}"


def quality_records(report: LatencyReport) -> Quality | None:
    """Speed and quality of every variant on the same cell; None where no variant's quality is known.

    Of the cells that the most variants share, it is the one with the most candidates, and of those the one of middle length.
    The measure is nDCG@10 where every variant with a known quality has it, else Kendall's tau.
    """
    names = Names(report)
    facts = {names.of(variant): variant for variant in report.variants}
    known = [v for v in report.variants if v.ndcg_at_10 is not None or v.kendall_tau is not None]
    if not known or not report.rows:
        return None
    judged = all(variant.ndcg_at_10 is not None for variant in known)
    candidates, length = _shared_cell(report)
    points: list[Record] = []
    for row in report.rows:
        if (row.candidates, row.sequence_length) != (candidates, length) or (name := names.of(row)) not in facts:
            continue
        quality = facts[name].ndcg_at_10 if judged else facts[name].kendall_tau
        if quality is not None:
            points.append({"variant": name, "pairs_per_s": _figures(row.pairs_per_s), "quality": quality})
    front = pareto_front([(point["pairs_per_s"], point["quality"]) for point in points])
    for index, point in enumerate(points):
        point["on_front"] = index in front
    placed = {point["variant"] for point in points}
    return Quality(
        measure="nDCG@10" if judged else "Kendall's tau",
        candidates=candidates,
        sequence_length=length,
        points=tuple(points),
        unknown=tuple(name for name in names.all if name not in placed),
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the points that no other one beats in one coordinate without losing in the other; larger is better."""
    return {
        index
        for index, (x, y) in enumerate(points)
        if not any(other_x >= x and other_y >= y and (other_x, other_y) != (x, y) for other_x, other_y in points)
    }


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of the items, the first and the last among them, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def log_ticks(values: Sequence[float]) -> list[float]:
    """Where to label a logarithmic axis: at 1 and 3 of every decade, or at 1, 2 and 5 where the values span little."""
    low, high = min(values), max(values)
    steps = (1, 2, 5) if high < 30 * low else (1, 3)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high] or [low]


def _shared_cell(report: LatencyReport) -> tuple[int, int]:
    variants: dict[tuple[int, int], set[ContenderKey]] = {}
    for row in report.rows:
        variants.setdefault((row.candidates, row.sequence_length), set()).add(row.contender)
    most = max(len(those) for those in variants.values())
    shared = [cell for cell, those in variants.items() if len(those) == most]
    candidates = max(candidates for candidates, _ in shared)
    lengths = sorted(length for count, length in shared if count == candidates)
    return candidates, lengths[len(lengths) // 2]


def _figures(value: float) -> float:
    """Five significant figures: more than a clock gives, less than a page wants to carry."""
    if not math.isfinite(value):
        raise InputError("a latency report holds a figure that is not finite", got=value)
    return float(f"{value:.5g}")
