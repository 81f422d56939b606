"""What became of every request under load, run by run, and the figures that follow."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError


class Outcome(StrEnum):
    """What became of a request."""

    ANSWERED = "answered"
    REJECTED = "rejected"
    """The queue was full."""
    EXPIRED = "expired"
    """Its deadline passed before it was computed."""
    FAILED = "failed"
    UNFINISHED = "unfinished"
    """Given up by the generator, at the end of a run or because the run's verdict was clear."""


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    """One run at one rate: Poisson arrivals that wait for no answer. Columns are in order of arrival."""

    rate_per_s: float
    """Requests a second that were asked for."""
    duration_s: float
    """How long arrivals were to go on."""
    seed: int
    stopped_early: bool
    """The run was cut short, because no more could come of it."""
    intended_s: tuple[float, ...]
    """When each request was due, in seconds from the start. Latency counts from here."""
    sent_s: tuple[float, ...]
    """When the generator came to send it."""
    finished_s: tuple[float, ...]
    """When it was answered, refused or given up."""
    outcomes: tuple[Outcome, ...]
    errors: dict[str, int]
    """Kinds of error, and how often each came."""

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.intended_s, self.sent_s, self.finished_s, self.outcomes)}
        if len(lengths) != 1:
            raise InputError("the columns of a load run differ in length", got=sorted(lengths))

    @property
    def latencies_ms(self) -> NDArray[np.float64]:
        """From the intended arrival to the answer, of the requests that were answered: float64 [answered]."""
        answered = np.asarray([outcome is Outcome.ANSWERED for outcome in self.outcomes], dtype=bool)
        waited = np.asarray(self.finished_s, dtype=np.float64) - np.asarray(self.intended_s, dtype=np.float64)
        latencies: NDArray[np.float64] = waited[answered] * 1e3
        return latencies

    def percentile_ms(self, percent: float) -> float | None:
        """The latency that so many percent of the answers do not exceed; None if there are none."""
        latencies = self.latencies_ms
        return float(np.percentile(latencies, percent)) if len(latencies) else None

    def share_within(self, slo_ms: float) -> float:
        """Share of all requests that were answered within a latency. Whatever was not answered was not within it."""
        return float((self.latencies_ms <= slo_ms).sum()) / len(self.outcomes) if self.outcomes else 1.0

    def count(self, outcome: Outcome) -> int:
        """Requests that ended so."""
        return self.outcomes.count(outcome)

    @property
    def arrivals_s(self) -> float:
        """How long arrivals did go on."""
        return self.intended_s[-1] if self.stopped_early and self.intended_s else self.duration_s

    @property
    def offered_per_s(self) -> float:
        """Requests a second that did arrive; chance makes it differ a little from ``rate_per_s``."""
        return len(self.outcomes) / self.arrivals_s

    @property
    def achieved_per_s(self) -> float:
        """Answers a second, until arrivals ended and the last answer came."""
        answers = [at for at, outcome in zip(self.finished_s, self.outcomes, strict=True) if outcome is Outcome.ANSWERED]
        return len(answers) / max(self.arrivals_s, *answers) if answers else 0.0

    @property
    def max_lag_ms(self) -> float:
        """The latest that a request was sent. Latencies hold it; a large one says that the generator was the bottleneck."""
        return max((sent - due for sent, due in zip(self.sent_s, self.intended_s, strict=True)), default=0.0) * 1e3

    def figures(self) -> dict[str, object]:
        """What a reader wants to know, ready for JSON."""
        return {
            "rate_per_s": self.rate_per_s,
            "duration_s": self.duration_s,
            "requests": len(self.outcomes),
            **{outcome.value: self.count(outcome) for outcome in Outcome},
            "errors": self.errors,
            "offered_per_s": self.offered_per_s,
            "achieved_per_s": self.achieved_per_s,
            **{f"p{percent}_ms": self.percentile_ms(percent) for percent in (50, 90, 95, 99)},
            "max_lag_ms": self.max_lag_ms,
            "stopped_early": self.stopped_early,
        }


@dataclass(frozen=True, kw_only=True)
class Slo:
    """A service level objective: so many percent of all requests answered within a latency."""

    latency_ms: float
    percentile: float = 99.0

    def __post_init__(self) -> None:
        if not self.latency_ms > 0:
            raise InputError("the SLO's latency is not positive", got=self.latency_ms, allowed="milliseconds")
        if not 0 < self.percentile < 100:
            raise InputError("the SLO's percentile is out of range", got=self.percentile, allowed="above 0, below 100")

    def misses_allowed(self, requests: int) -> int:
        """Requests of so many that may come late or fail."""
        return int(requests * (1 - self.percentile / 100) + 1e-9)

    def is_met_by(self, run: LoadRun) -> bool:
        """Whether enough of all requests were answered in time."""
        requests = len(run.outcomes)
        within = round(run.share_within(self.latency_ms) * requests)
        return not run.stopped_early and requests - within <= self.misses_allowed(requests)


@dataclass(frozen=True, kw_only=True)
class LoadCurve:
    """Runs at several rates against one service."""

    service: str
    """What was under load: a variant on a provider, or a URL."""
    requests: str
    """What was sent."""
    slo: Slo | None
    """What was to be kept; None where nothing was."""
    runs: tuple[LoadRun, ...]
    """In the order made."""

    @property
    def max_rate_per_s(self) -> float | None:
        """The highest rate of those measured that met the objective, 0.0 if none did; None without an objective."""
        if self.slo is None:
            return None
        return max((run.rate_per_s for run in self.runs if self.slo.is_met_by(run)), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether a rate met the objective; without one, whether anything was answered."""
        if self.slo is None:
            return any(run.count(Outcome.ANSWERED) for run in self.runs)
        return any(self.slo.is_met_by(run) for run in self.runs)

    def figures(self) -> dict[str, object]:
        """What a reader wants to know, ready for JSON."""
        return {
            "service": self.service,
            "requests": self.requests,
            "slo_ms": None if self.slo is None else self.slo.latency_ms,
            "percentile": None if self.slo is None else self.slo.percentile,
            "max_rate_per_s": self.max_rate_per_s,
            "runs": [{**run.figures(), "met": None if self.slo is None else self.slo.is_met_by(run)} for run in self.runs],
        }
