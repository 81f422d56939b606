"""The measuring itself: every contender in turn on every cell, until the medians are known or the time is up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crossforge.profiles import InputError, Precision
from crossforge.runtime.batching import plan_batches
from crossforge.runtime.profiling.intervals import median_interval
from crossforge.runtime.profiling.report import STAGES, LatencyRow, Skipped
from crossforge.runtime.profiling.stages import Clock, StageRecorder
from crossforge.runtime.profiling.workload import Call, Cell
from crossforge.runtime.progress import Stage
from crossforge.runtime.reranker import Reranker

WARM_UP_TOKENS = 2048
"""A warm-up call takes as many of a cell's pairs as fit: enough for every batch shape that the cell has."""
MOST_SAMPLES = 1000
BREADTH = 0.5
"""The share of the time that first samples may take. One sample of everything and a second of nothing would tell little."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A variant that is loaded, and what watches it."""

    provider: str
    precision: Precision
    deployment: Path | None = None
    """The deployment profile that set it; None for the defaults."""
    reranker: Reranker
    recorder: StageRecorder

    @property
    def deployment_name(self) -> str | None:
        """What a report calls the deployment profile."""
        return None if self.deployment is None else self.deployment.name

    def __str__(self) -> str:
        return f"{self.precision} on {self.provider}" + (f" by {self.deployment.name}" if self.deployment else "")


@dataclass(kw_only=True)
class _Series:
    """What one contender took for one cell."""

    contender: Contender
    samples_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})


class _CellRun:
    """One cell while it is measured."""

    def __init__(self, cell: Cell, contenders: Sequence[Contender], clock: Clock) -> None:
        self.cell = cell
        self.series = [_Series(contender=contender) for contender in contenders]
        self._clock = clock
        self.rounds = 0
        self.cost_ns = 0.0
        """What the next round is expected to take."""

    def warm_up(self) -> None:
        """Ask each contender a part of the cell, and learn what a round will cost."""
        call = self.cell.calls[0]
        count = max(1, min(len(call.passages), WARM_UP_TOKENS * len(call.passages) // call.tokens))
        part = Call(query=call.query, passages=call.passages[:count], lengths=call.lengths[:count])
        for series in self.series:
            start = self._clock()
            ask(series.contender.reranker, part)
            self.cost_ns += (self._clock() - start) * self.cell.tokens / part.tokens
            series.contender.recorder.take_ms()

    def take_round(self) -> None:
        """One sample of each contender, in turn, on the same call."""
        call = self.cell.calls[self.rounds % len(self.cell.calls)]
        begun = self._clock()
        for series in self.series:
            start = self._clock()
            ask(series.contender.reranker, call)
            series.samples_ms.append((self._clock() - start) / 1e6)
            for stage, spent_ms in series.contender.recorder.take_ms().items():
                series.stages_ms[stage].append(spent_ms)
        self.cost_ns = float(self._clock() - begun)
        self.rounds += 1

    def is_settled(self, interval_width: float) -> bool:
        """Whether every contender's median is known well enough; a run's every query must have had its turn."""
        if self.rounds < len(self.cell.calls):
            return False
        return self.rounds >= MOST_SAMPLES or all(
            median_interval(series.samples_ms).relative_width <= interval_width for series in self.series
        )

    def rows(self) -> list[LatencyRow]:
        """One row a contender."""
        return [self._row(series) for series in self.series]

    def _row(self, series: _Series) -> LatencyRow:
        reranker = series.contender.reranker
        plans = [
            plan_batches(
                call.lengths,
                budget_tokens=reranker.budget_tokens,
                workers=reranker.workers,
                profiles=reranker.profiles,
                cost=reranker.cost,
            )
            for call in self.cell.calls
        ]
        padded = sum(plan.padded_tokens for batches in plans for plan in batches)
        return LatencyRow(
            provider=series.contender.provider,
            precision=series.contender.precision,
            deployment=series.contender.deployment_name,
            candidates=self.cell.candidates,
            sequence_length=self.cell.sequence_length,
            tokens=self.cell.tokens,
            padded_tokens=round(padded / len(plans)),
            samples_ms=tuple(series.samples_ms),
            stage_samples_ms={stage: tuple(times) for stage, times in series.stages_ms.items()},
        )


def ask(reranker: Reranker, call: Call) -> None:
    """The call that is measured: what a service makes for a request."""
    if reranker.manifest.scoring.ranking_label is None:
        reranker.score_pairs([(call.query, passage) for passage in call.passages])
    else:
        reranker.rank(call.query, call.passages)


def measure_cells(
    cells: Sequence[Cell],
    contenders: Sequence[Contender],
    *,
    deadline_ns: int,
    interval_width: float,
    clock: Clock,
    stage: Stage | None = None,
) -> tuple[list[LatencyRow], list[Skipped]]:
    """Measure cells with contenders in turns (A B A B ...), so that drift hits all alike.

    Cells get one round each, the cheapest first, as far as half of the time allows; what time is left is then shared out
    among them, and what a cell does not need goes to the dearer ones.

    Args:
        cells: Cheapest first.
        contenders: What to measure.
        deadline_ns: When to end, by ``clock``. A round is begun only if it should end in time.
        interval_width: A cell is settled when each median's 95 % interval is narrower than this share of the median.
        clock: Nanoseconds.
        stage: Told of the time that has passed, in seconds.

    Returns:
        A row for each contender and cell, by cell as given; and the cells, or queries, for which there was no time.

    Raises:
        InputError: The time is too short for one round of the cheapest cell.
    """
    start_ns, stage = clock(), stage or Stage()

    def tell() -> None:
        stage.advance(round((clock() - start_ns) / 1e9), max(1, round((deadline_ns - start_ns) / 1e9)))

    breadth_ns = start_ns + int(BREADTH * (deadline_ns - start_ns))
    runs, skipped = _warm_up(cells, contenders, breadth_ns=breadth_ns, deadline_ns=deadline_ns, clock=clock)
    for run in runs:
        if run is runs[0] or clock() + run.cost_ns <= deadline_ns:
            run.take_round()
            tell()
        else:  # slower than its warm-up promised, or than the cells before it did
            skipped.append(_no_time(run.cell, run.cost_ns, deadline_ns - clock()))
    runs = [run for run in runs if run.rounds]
    went_on = True
    while went_on:
        went_on = False
        unsettled = [run for run in runs if not run.is_settled(interval_width)]
        for position, run in enumerate(unsettled):
            share_end = clock() + (deadline_ns - clock()) / (len(unsettled) - position)
            while clock() + run.cost_ns <= share_end and not run.is_settled(interval_width):
                run.take_round()
                tell()
                went_on = True
    skipped += [
        Skipped(what=str(run.cell), why=f"only {run.rounds} of its {len(run.cell.calls)} queries had their turn")
        for run in runs
        if run.rounds < len(run.cell.calls)
    ]
    return [row for run in runs for row in run.rows()], skipped


def _warm_up(
    cells: Sequence[Cell], contenders: Sequence[Contender], *, breadth_ns: int, deadline_ns: int, clock: Clock
) -> tuple[list[_CellRun], list[Skipped]]:
    """Warm up the cells of which a round should fit beside a round of all cheaper ones before ``breadth_ns``.

    The cheapest has all the time until ``deadline_ns``.
    """
    begun_ns = clock()
    runs: list[_CellRun] = []
    skipped: list[Skipped] = []
    promised_ns = token_ns = 0.0
    for cell in cells:
        expected_ns = token_ns * (cell.tokens + min(cell.tokens, WARM_UP_TOKENS))
        left_ns = breadth_ns - clock() - promised_ns
        if runs and expected_ns > left_ns:
            skipped.append(_no_time(cell, expected_ns, left_ns))
            continue
        run = _CellRun(cell, contenders, clock)
        run.warm_up()
        token_ns = run.cost_ns / cell.tokens
        left_ns = (breadth_ns if runs else deadline_ns) - clock() - promised_ns
        if run.cost_ns <= left_ns:
            promised_ns += run.cost_ns
            runs.append(run)
        elif runs:
            skipped.append(_no_time(cell, run.cost_ns, left_ns))
        else:
            raise InputError(
                f"the budget is too short for one sample of each variant on {cell}",
                got=f"{max(0.0, (deadline_ns - begun_ns) / 1e9):.1f} s after loading",
                allowed=f"at least {(run.cost_ns - left_ns) / 1e9:.1f} s more",
                fix="Raise --budget, or measure fewer variants.",
            )
    return runs, skipped


def _no_time(cell: Cell, cost_ns: float, left_ns: float) -> Skipped:
    why = f"one sample of each variant takes about {cost_ns / 1e9:.1f} s, {max(0.0, left_ns / 1e9):.1f} s were left for it"
    return Skipped(what=str(cell), why=why)
