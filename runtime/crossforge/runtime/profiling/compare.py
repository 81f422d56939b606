"""Is it slower than it was? Two reports, row by row, with the noise that each of them measured."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from crossforge.profiles import InputError, Precision
from crossforge.runtime.machine import Machine
from crossforge.runtime.profiling.intervals import MIN_SAMPLES, median_interval
from crossforge.runtime.profiling.report import LatencyReport, LatencyRow

_FACTS = ("cpu", "instruction_sets", "usable_cores", "gpus")
"""What makes two machines the same for a comparison; packages may differ, they are what one compares."""

RowKey = tuple[str, Precision, str | None, int, int]


class Verdict(StrEnum):
    """What two medians say."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "same"
    """The difference is within the noise."""
    UNJUDGED = "unjudged"
    """One of the two has too few samples to know its noise."""


@dataclass(frozen=True, kw_only=True)
class RowComparison:
    """One row, then and now."""

    provider: str
    precision: Precision
    deployment: str | None
    candidates: int
    sequence_length: int
    old_ms: float
    """The median."""
    new_ms: float
    verdict: Verdict

    @property
    def change(self) -> float:
        """By how much it is slower, as a share of what it was."""
        return self.new_ms / self.old_ms - 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows that both reports have."""

    rows: tuple[RowComparison, ...]
    unmatched: int
    """Rows of one report only."""
    notes: tuple[str, ...]
    """What else differs."""

    @property
    def passed(self) -> bool:
        """Whether no row is slower."""
        return all(row.verdict is not Verdict.SLOWER for row in self.rows)


def refuse_incomparable(old: LatencyReport, machine: Machine, weights_sha256: str | None) -> None:
    """Check that a report can be compared with what is about to be measured.

    Raises:
        InputError: It is of another machine, or of other weights.
    """
    for name in _FACTS:
        then, now = getattr(old.machine, name), getattr(machine, name)
        if then != now:
            raise InputError(
                f"the old report was measured on another machine: its {name.replace('_', ' ')} differ",
                got=then,
                allowed=now,
                fix="Latencies of two machines say nothing about a change; measure the old state on this one.",
            )
    if old.weights_sha256 != weights_sha256:
        raise InputError(
            "the old report is of another model",
            got=f"{old.source} with weights {_short(old.weights_sha256)}",
            allowed=f"weights {_short(weights_sha256)}",
        )


def _short(weights_sha256: str | None) -> str:
    return "unknown" if weights_sha256 is None else weights_sha256[:12]


def compare_reports(old: LatencyReport, new: LatencyReport, *, tolerance: float = 0.0) -> Comparison:
    """Compare the rows that two reports share.

    A row is slower if the 95 % interval of its median now lies wholly above that of then, by more than ``tolerance``.

    Args:
        old: What it was.
        new: What it is.
        tolerance: A slowdown that is accepted, as a share: what a machine drifts between two runs, which no interval of one
            run can know.

    Raises:
        InputError: Another machine, other weights, or no row in common.
    """
    refuse_incomparable(old, new.machine, new.weights_sha256)
    before = {_key(row): row for row in old.rows}
    after = {_key(row): row for row in new.rows}
    shared = [key for key in after if key in before]
    if not shared:
        raise InputError(
            "the two reports share no row", fix="Measure the same providers, precisions, candidates and lengths."
        )
    changed = sorted(
        name for name in old.versions.keys() | new.versions.keys() if old.versions.get(name) != new.versions.get(name)
    )
    return Comparison(
        rows=tuple(_compare(before[key], after[key], tolerance) for key in shared),
        unmatched=len(before.keys() ^ after.keys()),
        notes=tuple(
            f"{name}: {old.versions.get(name, 'none')} then, {new.versions.get(name, 'none')} now" for name in changed
        ),
    )


def _compare(old: LatencyRow, new: LatencyRow, tolerance: float) -> RowComparison:
    then, now = median_interval(old.samples_ms), median_interval(new.samples_ms)
    if not (then.known and now.known):
        verdict = Verdict.UNJUDGED
    elif now.low > then.high * (1 + tolerance):
        verdict = Verdict.SLOWER
    elif then.low > now.high * (1 + tolerance):
        verdict = Verdict.FASTER
    else:
        verdict = Verdict.SAME
    return RowComparison(
        provider=new.provider,
        precision=new.precision,
        deployment=new.deployment,
        candidates=new.candidates,
        sequence_length=new.sequence_length,
        old_ms=then.median,
        new_ms=now.median,
        verdict=verdict,
    )


def _key(row: LatencyRow) -> RowKey:
    return *row.contender, row.candidates, row.sequence_length


def explain(comparison: Comparison) -> str:
    """One line: how many rows got slower, and by how much."""
    counts = {verdict: sum(row.verdict is verdict for row in comparison.rows) for verdict in Verdict}
    parts = [f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]]
    line = f"{len(comparison.rows)} rows compared: {', '.join(parts)}"
    if counts[Verdict.UNJUDGED]:
        line += f" (fewer than {MIN_SAMPLES} samples; raise --budget)"
    return line + (f"; {comparison.unmatched} rows in one report only" if comparison.unmatched else "")
