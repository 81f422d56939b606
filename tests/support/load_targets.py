"""Targets under load whose answers are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from crossforge.runtime.profiling.clock import SimulatedClock

SERVICE_S = 0.01


class FixedTimeServer:
    """Answers one request after another, each in the same time: the D and the 1 of M/D/1."""

    def __init__(self, clock: SimulatedClock, service_s: float = SERVICE_S) -> None:
        self._clock = clock
        self._service_s = service_s
        self._free_at_s = 0.0

    def submit(self) -> Future[Any]:
        future: Future[Any] = Future()
        self._free_at_s = max(self._free_at_s, self._clock.now_s()) + self._service_s
        self._clock.call_at(self._free_at_s, lambda: future.set_result(None) if not future.cancelled() else None)
        return future


class FunctionTarget:
    """Does what a function does."""

    def __init__(self, function: Callable[[], Future[Any]]) -> None:
        self.submit = function


def answered() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
