"""A load report: what became of every request of an open-loop run, and the figures that follow."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError
from crossforge.profiles.jsonio import DecodeError, decode, encode

LOAD_SCHEMA_VERSION = 1


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
class LoadReport:
    """One run at one rate: Poisson arrivals that wait for no answer. Columns are in order of arrival."""

    schema_version: int = field(default=LOAD_SCHEMA_VERSION)
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
            raise InputError("the columns of a load report differ in length", got=sorted(lengths))

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

    def to_json(self) -> str:
        """The report as JSON text, raw samples included."""
        return json.dumps(encode(self), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> LoadReport:
        """Read a report.

        Raises:
            InputError: The file cannot be read or is no report of this version.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the load report {path} ({error})") from error
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != LOAD_SCHEMA_VERSION:
            raise InputError(
                f"{path} is no load report of this version", got=version, allowed=f"schema_version {LOAD_SCHEMA_VERSION}"
            )
        try:
            return decode(cls, document)
        except DecodeError as error:
            raise InputError(f"{path} is not a valid load report ({error})") from error
