"""What to measure, and how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles import ExecutionProvider, InputError, Precision

DEFAULT_CANDIDATES = (1, 10, 50, 100, 200)
DEFAULT_LENGTHS = (32, 64, 128, 256, 512)
DEFAULT_QUERY_TOKENS = 8
DEFAULT_BUDGET_S = 160.0


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """A run of the profiler."""

    candidates: tuple[int, ...] = DEFAULT_CANDIDATES
    """Passages a query."""
    lengths: tuple[int, ...] = DEFAULT_LENGTHS
    """Tokens of a pair, query and special tokens included."""
    query_tokens: int = DEFAULT_QUERY_TOKENS
    """Tokens of the query, of those; the passage has the rest."""
    workload: Path | None = None
    """A run whose queries are measured instead of the grid."""
    providers: tuple[ExecutionProvider, ...] = ()
    """Those to measure; none named takes every one."""
    precisions: tuple[Precision, ...] = ()
    """Those to measure; none named takes every one that is meant for the provider."""
    deployment: Path | None = None
    """A deployment profile (TOML) that is measured beside them, as what it sets."""
    budget_s: float = DEFAULT_BUDGET_S
    """Wall time of the whole run."""
    interval_width: float = 0.05
    """A row is measured until the 95 % interval of its median is narrower than this share of it."""
    cold_starts: int = 3
    """Fresh processes a variant."""

    def __post_init__(self) -> None:
        for name in ("candidates", "lengths"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise InputError(f"{name} cannot be measured", got=list(values), allowed="whole numbers from 1")
        for name, least in (("query_tokens", 1), ("cold_starts", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is too small", got=getattr(self, name), allowed=f"{least} or more")
        if not self.budget_s > 0:
            raise InputError("the budget is too short", got=f"{self.budget_s} s", allowed="more than 0")
        if not 0 < self.interval_width < 1:
            raise InputError("interval_width is no share", got=self.interval_width, allowed="more than 0, less than 1")
