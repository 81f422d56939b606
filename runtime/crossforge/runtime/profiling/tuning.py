"""The fastest setting of a deployment on this machine, under limits of quality and memory, proven against the default."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from crossforge.profiles import DEFAULT_WORKLOAD, CostModel, DeploymentProfile, GateError, InputError, Workload
from crossforge.runtime.profiling.bench import Bench
from crossforge.runtime.profiling.cost import Clock, FittedCost, fit_cost
from crossforge.runtime.profiling.report import Skipped
from crossforge.runtime.profiling.search import Comparison, Trial, compare, search
from crossforge.runtime.profiling.settings import QualityLimits, Setting
from crossforge.runtime.profiling.space import SearchSpace
from crossforge.runtime.progress import Progress, Silent

_SEARCH_SHARE, _COST_SHARE, _PROOF_SHARE = 0.6, 0.15, 0.25
_PROOF_ROUNDS = 25
_Contender = tuple[Setting, CostModel | None]


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """What a tuner is to reach, and how long it may take."""

    workload: Workload = DEFAULT_WORKLOAD
    limits: QualityLimits = field(default_factory=QualityLimits)
    max_memory_bytes: int | None = None
    """Most that a process may hold while it loads and runs; None sets no limit."""
    budget_s: float = 120.0
    """Seconds of measurement, about; loading models comes on top."""

    def __post_init__(self) -> None:
        if not self.budget_s > 0:
            raise InputError("the budget is too short", got=f"{self.budget_s} s", allowed="more than 0")


@dataclass(frozen=True, kw_only=True)
class TuningReport:
    """What was tried, what was chosen, and why."""

    setting: Setting
    """The one that was written."""
    default: Setting
    """What runs without a deployment profile."""
    cost: FittedCost
    """Of ``setting``."""
    trials: tuple[Trial[Setting], ...]
    """Every setting that was measured, best first."""
    fastest: Setting
    """The best of those within the limits."""
    comparison: Comparison
    """The default against ``fastest`` with its cost model, measured afresh."""
    resident_bytes: int | None
    """Memory of ``setting`` in a fresh process, where there was a limit on it."""
    skipped: tuple[Skipped, ...]
    """What could not be chosen."""

    @property
    def deployment(self) -> DeploymentProfile:
        """The deployment profile that was found. Cuts by the cost model that were shown to be slower are left out of it."""
        slower = self.setting == self.fastest and self.comparison.high < 1
        return self.setting.deployment(None if slower else self.cost.model)


def tune(
    space: SearchSpace,
    bench: Bench,
    options: TuningOptions,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> TuningReport:
    """Search, fit the winner's cost model, and measure it afresh against the default.

    What is not shown to be faster than the default is not chosen: then the default is.

    Args:
        space: What may be chosen.
        bench: Measures.
        options: Limits and time.
        clock: Counts seconds.
        progress: Told what is going on.

    Raises:
        InputError: The time is too short to measure anything.
        GateError: No setting is within the limit of memory.
    """
    progress = progress or Silent()
    with progress.stage("search") as stage:
        trials = search(space.settings, bench.latency_ms, budget_s=options.budget_s * _SEARCH_SHARE, clock=clock)
        stage.note = f"{len(trials)} settings; best: {trials[0].setting}"
    with progress.stage("memory") as stage:
        memory: dict[Setting, int] = {}
        fastest = _first_that_fits(trials, bench, options.max_memory_bytes, memory)
        stage.note = f"{memory[fastest] / 1e6:.0f} MB" if memory else "no limit"
    default_fits = space.allows_default and _fits(space.default, bench, options.max_memory_bytes, memory)
    cost = _measure_cost(fastest, bench, options, progress)
    with progress.stage("compare with the default") as stage:
        contenders: tuple[_Contender, _Contender] = ((space.default, None), (fastest, cost.model))
        comparison = compare(
            *contenders,
            lambda contender: bench.latency_ms(*contender),
            rounds=_PROOF_ROUNDS,
            budget_s=options.budget_s * _PROOF_SHARE,
            clock=clock,
        )
        stage.note = f"{comparison.ratio:.2f} times as fast ({comparison.low:.2f} to {comparison.high:.2f})"
    setting = fastest if comparison.is_faster or not default_fits else space.default
    if setting != fastest:
        cost = _measure_cost(setting, bench, options, progress)
    return TuningReport(
        setting=setting,
        default=space.default,
        cost=cost,
        trials=trials,
        fastest=fastest,
        comparison=comparison,
        resident_bytes=memory.get(setting),
        skipped=space.skipped,
    )


def explain(report: TuningReport) -> tuple[str, str, str]:
    """Three lines: what was chosen, why, and what it is worth."""
    chosen, comparison = report.setting, report.comparison
    best = report.trials[0].median_ms
    slowest = max(report.trials, key=lambda trial: trial.median_ms)
    memory = "" if report.resident_bytes is None else f", {report.resident_bytes / 1e6:.0f} MB at its peak"
    first = f"{chosen}{memory}{' (the default)' if chosen == report.default else ''}."
    second = (
        f"{_median_ms(report)} a request in the search; the best of {len(report.trials)} settings took {best:.1f} ms, "
        f"and the slowest, {slowest.setting}, {slowest.median_ms / best:.1f} times as long."
    )
    figures = (
        f"{comparison.ratio:.2f} times as fast as the default (95 %: {comparison.low:.2f} to {comparison.high:.2f}), "
        f"{comparison.contender_ms:.1f} against {comparison.baseline_ms:.1f} ms in {comparison.rounds} fresh rounds"
    )
    if report.fastest == report.default:
        verdict = "" if comparison.is_faster else ": no gain is shown" if comparison.high >= 1 else ": left out"
        return first, second, f"No other setting is better; with cuts by the cost model it is {figures}{verdict}."
    if chosen == report.default:
        why = "not shown to be faster, so the default stays"
        return first, second, f"{report.fastest} looked best, but was {figures}: {why}."
    doubt = "" if comparison.is_faster else "; the default is outside the limits"
    return first, second, f"Measured afresh: {figures}{doubt}."


def _measure_cost(setting: Setting, bench: Bench, options: TuningOptions, progress: Progress) -> FittedCost:
    with progress.stage("cost model") as stage:
        cost = fit_cost(bench.cost_samples(setting, options.budget_s * _COST_SHARE))
        stage.note = f"median error {cost.held_out_median_error:.1%} on shapes that were held out"
    return cost


def _median_ms(report: TuningReport) -> str:
    medians = {trial.setting: trial.median_ms for trial in report.trials}
    return f"{medians[report.setting]:.1f} ms" if report.setting in medians else "Not measured"


def _first_that_fits(
    trials: tuple[Trial[Setting], ...], bench: Bench, limit_bytes: int | None, memory: dict[Setting, int]
) -> Setting:
    for trial in trials:
        if _fits(trial.setting, bench, limit_bytes, memory):
            return trial.setting
    least = min(memory, key=lambda setting: memory[setting])
    raise GateError(
        "no setting is within the limit of memory",
        got=f"{memory[least] / 1e6:.0f} MB for {least}",
        allowed=f"up to {(limit_bytes or 0) / 1e6:.0f} MB",
    )


def _fits(setting: Setting, bench: Bench, limit_bytes: int | None, memory: dict[Setting, int]) -> bool:
    if limit_bytes is None:
        return True
    if setting not in memory:
        memory[setting] = bench.resident_bytes(setting)
    return memory[setting] <= limit_bytes
