"""Time, as a load generator needs it: real, or simulated so that hours of load pass in milliseconds."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from typing import Any, Protocol


class Clock(Protocol):
    """Seconds from any zero, and how to let them pass."""

    def now_s(self) -> float:
        """Seconds; never goes back."""
        ...

    def sleep_until(self, time_s: float) -> None:
        """Return at a time, or at once if it has passed."""
        ...

    def wait_for(self, futures: Collection[Future[Any]], timeout_s: float) -> None:
        """Return when all futures are done, or after the timeout."""
        ...


class RealClock:
    """The machine's."""

    def now_s(self) -> float:
        """See :meth:`Clock.now_s`."""
        return time.perf_counter()

    def sleep_until(self, time_s: float) -> None:
        """See :meth:`Clock.sleep_until`."""
        if (left_s := time_s - time.perf_counter()) > 0:
            time.sleep(left_s)

    def wait_for(self, futures: Collection[Future[Any]], timeout_s: float) -> None:
        """See :meth:`Clock.wait_for`."""
        wait(futures, timeout=timeout_s)


class SimulatedClock:
    """An event queue: time passes only when it is slept away, and what is due meanwhile happens at its own time.

    For one thread.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._scheduled = 0

    def now_s(self) -> float:
        """See :meth:`Clock.now_s`."""
        return self._now_s

    def call_at(self, time_s: float, event: Callable[[], None]) -> None:
        """Let something happen at a time; what is due at the same time happens in the order of these calls."""
        heapq.heappush(self._events, (time_s, self._scheduled, event))
        self._scheduled += 1

    def sleep_until(self, time_s: float) -> None:
        """See :meth:`Clock.sleep_until`."""
        while self._events and self._events[0][0] <= time_s:
            self._step()
        self._now_s = max(self._now_s, time_s)

    def wait_for(self, futures: Collection[Future[Any]], timeout_s: float) -> None:
        """See :meth:`Clock.wait_for`."""
        until_s = self._now_s + timeout_s
        for future in futures:
            while not future.done() and self._events and self._events[0][0] <= until_s:
                self._step()
            if not future.done():
                self._now_s = until_s
                return

    def _step(self) -> None:
        time_s, _, event = heapq.heappop(self._events)
        self._now_s = max(self._now_s, time_s)
        event()
