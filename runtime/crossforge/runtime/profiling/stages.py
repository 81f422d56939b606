"""What a call's time was spent on, from what its threads say."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crossforge.runtime.profiling.report import STAGES
from crossforge.runtime.timing import StageName

Clock = Callable[[], int]
"""Nanoseconds since some moment."""


@dataclass(frozen=True)
class Span:
    """A stage that one thread was in; in nanoseconds."""

    stage: str
    start: int
    end: int


class StageRecorder:
    """A :class:`~crossforge.runtime.timing.StageTimer` that remembers. For one call at a time."""

    def __init__(self, clock: Clock = time.perf_counter_ns) -> None:
        self._clock = clock
        self._spans: list[Span] = []

    @contextmanager
    def __call__(self, stage: StageName, /) -> Iterator[None]:
        """Time a stage."""
        start = self._clock()
        yield
        self._spans.append(Span(stage, start, self._clock()))  # append is atomic: worker threads need no lock

    def take_ms(self) -> dict[str, float]:
        """Milliseconds of wall time by stage since the last asking; every stage is named."""
        spans, self._spans = self._spans, []
        shares = share_time(spans)
        return {stage: shares[stage] / 1e6 for stage in STAGES}


def share_time(spans: Iterable[Span]) -> dict[str, float]:
    """Wall time of each stage, in nanoseconds.

    Where several batches run at once, each moment is shared equally among the stages that threads are in at that moment.
    So the stages add up to the time in which anything was going on: never more than the call took.
    """
    edges = sorted(edge for span in spans for edge in ((span.start, 1, span.stage), (span.end, -1, span.stage)))
    running: Counter[str] = Counter()
    shares = dict.fromkeys(STAGES, 0.0)
    before = 0
    for moment, change, stage in edges:
        if threads := running.total():
            for name, count in running.items():
                shares[name] += (moment - before) * count / threads
        running[stage] += change
        before = moment
    return shares
