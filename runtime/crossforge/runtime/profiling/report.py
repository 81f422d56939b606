"""A latency report: raw samples, what they were taken on, and every figure that follows from them.

Figures are computed from the samples when they are asked for, never stored beside them, so that they cannot disagree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crossforge.profiles import InputError, Precision
from crossforge.profiles.jsonio import DecodeError, decode, encode
from crossforge.runtime.machine import Machine
from crossforge.runtime.profiling.load_report import LoadCurve

REPORT_SCHEMA_VERSION = 2
REPORT_NAME = "reports/latency.json"
STAGES = ("tokenize", "plan", "collate", "compute", "postprocess")
"""The parts of a call, in order. On a GPU, ``compute`` holds the copies to and from it."""


ContenderKey = tuple[str, Precision, str | None]
"""Provider, variant, and the deployment profile's name if there is one."""


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """One variant on one provider, reranking one query's candidates of one length."""

    provider: str
    precision: Precision
    deployment: str | None = None
    """The deployment profile that set it; None for the defaults."""
    candidates: int
    """Passages of the query: pairs of a call."""
    sequence_length: int
    """Tokens of each pair, or their mean where a workload gave them."""
    tokens: int
    """Tokens of a call, padding left out."""
    padded_tokens: int
    """Tokens that the engine computes in a call."""
    samples_ms: tuple[float, ...]
    """Wall time of each call, in the order of measurement, warm-up left out."""
    stage_samples_ms: dict[str, tuple[float, ...]]
    """The same calls by stage: wall time, shared equally where batches run side by side. What is missing to ``samples_ms``
    is spent between the stages."""

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise InputError("a latency row needs a sample")
        if any(len(times) != len(self.samples_ms) for times in self.stage_samples_ms.values()):
            raise InputError("stages and calls differ in number")

    @property
    def contender(self) -> ContenderKey:
        """What was measured: rows of one contender differ in the call alone."""
        return self.provider, self.precision, self.deployment

    def percentile_ms(self, percent: float) -> float:
        """The latency that so many percent of the calls do not exceed."""
        return float(np.percentile(self.samples_ms, percent))

    def stage_ms(self, stage: str) -> float:
        """Median time of a stage."""
        return float(np.median(self.stage_samples_ms[stage]))

    @property
    def pairs_per_s(self) -> float:
        """Candidates over the median latency."""
        return self.candidates / self.percentile_ms(50) * 1e3

    @property
    def tokens_per_s(self) -> float:
        """Tokens over the median latency, padding left out."""
        return self.tokens / self.percentile_ms(50) * 1e3

    @property
    def padding_waste(self) -> float:
        """Share of the computed tokens that are padding."""
        return 1 - self.tokens / self.padded_tokens


@dataclass(frozen=True, kw_only=True)
class VariantFacts:
    """What a variant is besides its latency."""

    provider: str
    precision: Precision
    deployment: str | None = None
    """The deployment profile that set it; None for the defaults."""
    workers: int
    """Batches that ran at the same time."""
    budget_tokens: int
    """Largest ``batch x sequence`` of a batch."""
    size_bytes: int
    load_ms: float
    """Opening it in a fresh process, every file's digest compared; the median of a few."""
    first_call_ms: float
    """The first call after that, of two short pairs."""
    resident_bytes: int
    """Memory of that process after its first call: this variant alone."""
    kendall_tau: float | None
    """Agreement with the reference's ranking, from the manifest."""
    ndcg_at_10: float | None
    """From the manifest, where the variant was judged on judged pairs."""
    gemm_share: float | None
    """Share of the machine's measured ceiling for this arithmetic that the fastest row reaches; None where not measured."""

    @property
    def contender(self) -> ContenderKey:
        """As :attr:`LatencyRow.contender`."""
        return self.provider, self.precision, self.deployment


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Something that was asked for and not measured."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """One run of the profiler."""

    schema_version: int = field(default=REPORT_SCHEMA_VERSION)
    created: str
    """UTC, ISO 8601."""
    source: str
    """The bundle's source id; the URL where a service was measured without a bundle."""
    weights_sha256: str | None
    """None without a bundle."""
    machine: Machine
    """The one that measured. A service behind a URL may run on another."""
    versions: dict[str, str]
    """Packages that took part."""
    peak_resident_bytes: int | None
    """The most that the measuring process held, with every variant loaded; None where there are no rows."""
    import_ms: float | None
    """Importing the runtime in a fresh process; None where there are no rows."""
    variants: tuple[VariantFacts, ...]
    rows: tuple[LatencyRow, ...]
    skipped: tuple[Skipped, ...]
    load: LoadCurve | None = None
    """Latency by arrival rate, where it was measured."""

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(encode(self), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> LatencyReport:
        """Read a report.

        Raises:
            InputError: The file cannot be read or is no report of this version.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the latency report {path} ({error})") from error
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != REPORT_SCHEMA_VERSION:
            raise InputError(
                f"{path} is no latency report of this version",
                got=version,
                allowed=f"schema_version {REPORT_SCHEMA_VERSION}",
            )
        try:
            return decode(cls, document)
        except DecodeError as error:
            raise InputError(f"{path} is not a valid latency report ({error})") from error
