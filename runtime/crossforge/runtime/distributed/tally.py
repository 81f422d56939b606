"""What a bulk job says while it runs, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from crossforge.runtime.distributed.scorer import Receipt

_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a job came to. Speed, padding and memory are this run's; what an earlier run did is in ``resumed_shards``."""

    output: str
    pairs: int
    shards: int
    resumed_shards: int
    """Finished by an earlier run."""
    scored_pairs: int
    truncated_pairs: int
    """Of those scored now."""
    seconds: float
    """From the first shard's start to the last one's end, the workers' start included."""
    pairs_per_s: float
    worker_seconds: float
    """Of all workers together, without their start."""
    padding_waste: float
    """Share of the computed tokens that were padding, 0.0 to 1.0."""
    workers: int
    driver_peak_mb: float
    worker_peak_mb: float
    """Of the largest worker."""
    provider: str
    precision: str


@dataclass(kw_only=True)
class Tally:
    """Adds receipts up, and says every few seconds how far the work is.

    Args:
        total: Pairs of the job.
        done: Pairs that an earlier run scored.
        say: Takes a line.
        clock: Seconds.
    """

    total: int
    done: int
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    scored: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    truncated: int = 0
    worker_seconds: float = 0.0
    worker_peak_mb: float = 0.0
    workers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._start = self._said = self.clock()

    def add(self, receipt: Receipt) -> None:
        """Take a receipt."""
        self.scored += receipt.pairs
        self.tokens += receipt.tokens
        self.padded_tokens += receipt.padded_tokens
        self.truncated += receipt.truncated
        self.worker_seconds += receipt.seconds
        self.worker_peak_mb = max(self.worker_peak_mb, receipt.peak_mb)
        self.workers.add(receipt.worker)
        if self.clock() - self._said >= _EVERY_S:
            self._said = self.clock()
            self.say(self.line())

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self.clock() - self._start

    @property
    def pairs_per_s(self) -> float:
        """Pairs scored a second, by all workers together."""
        return self.scored / self.seconds if self.seconds else 0.0

    @property
    def padding_waste(self) -> float:
        """Share of the computed tokens that were padding, 0.0 to 1.0."""
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    def line(self) -> str:
        """How far it is."""
        done = self.done + self.scored
        left = (self.total - done) / self.pairs_per_s if self.pairs_per_s else 0.0
        return (
            f"{done:,} of {self.total:,} pairs, {self.pairs_per_s:,.0f} pairs/s on {len(self.workers)} workers, "
            f"{self.padding_waste:.1%} padding, about {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"
