"""Open-loop load: requests arrive when they arrive, whether or not the earlier ones were answered.

A closed loop, in which each client waits for its answer before it asks again, slows down with the service and so leaves out
the very requests that would have waited longest (*coordinated omission*, as Gil Tene named it). Here arrivals are a Poisson
process that was drawn beforehand, and a request's latency counts from the moment it was due, not from when it was sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import DeadlineError, InputError, OverloadedError, ServiceError
from crossforge.runtime.profiling.clock import Clock, RealClock
from crossforge.runtime.profiling.load_report import LoadRun, Outcome, Slo

GRACE_S = 30.0
"""How long the answers to the last arrivals are waited for."""


class Target(Protocol):
    """What is put under load: a micro-batcher, or a service behind a URL."""

    def submit(self) -> Future[Any]:
        """Send one request, and do not wait for its answer.

        Returns:
            Done when the request is. Its exception, or one raised here, counts as the request's.
        """
        ...


MakeTarget = Callable[[], AbstractContextManager[Target]]
"""Makes a target that has no queue yet, and closes it."""


def poisson_arrivals(rate_per_s: float, duration_s: float, *, seed: int = 0) -> NDArray[np.float64]:
    """Draw when requests arrive: a Poisson number of them, each at any time alike.

    Returns:
        Seconds from the start, ascending: float64 [n].

    Raises:
        InputError: The rate or the duration is not positive.
    """
    if not (rate_per_s > 0 and duration_s > 0):
        raise InputError("no load to generate", got=f"{rate_per_s} requests/s for {duration_s} s", allowed="both above 0")
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0.0, duration_s, random.poisson(rate_per_s * duration_s)))


def generate_load(
    target: Target,
    *,
    rate_per_s: float,
    duration_s: float,
    seed: int = 0,
    stop_at: Slo | None = None,
    grace_s: float = GRACE_S,
    clock: Clock | None = None,
) -> LoadRun:
    """Send Poisson arrivals and record what becomes of each.

    Args:
        target: Takes the requests.
        rate_per_s: Mean number of arrivals a second.
        duration_s: How long arrivals go on.
        seed: Decides the arrivals.
        stop_at: Stop as soon as so many requests are late or failed that this cannot be met any more.
        grace_s: How long to wait for answers after the last arrival; what is unfinished then is cancelled.
        clock: Real time if not given.

    Raises:
        InputError: The rate or the duration is not positive.
    """
    clock = clock or RealClock()
    arrivals_s = poisson_arrivals(rate_per_s, duration_s, seed=seed).tolist()
    run = _Run(arrivals_s, clock)
    allowed = None if stop_at is None else stop_at.misses_allowed(len(arrivals_s))
    for arrival_s in arrivals_s:
        clock.sleep_until(run.start_s + arrival_s)
        if stop_at is not None and allowed is not None and run.misses(stop_at.latency_ms / 1e3) > allowed:
            break
        run.send(target)
    else:
        clock.wait_for(run.futures, grace_s)
    run.give_up()
    return LoadRun(
        rate_per_s=rate_per_s,
        duration_s=duration_s,
        seed=seed,
        stopped_early=len(run.sent_s) < len(arrivals_s),
        intended_s=tuple(arrivals_s[: len(run.sent_s)]),
        sent_s=tuple(run.sent_s),
        finished_s=tuple(run.finished_s),
        outcomes=tuple(run.outcomes),
        errors=dict(Counter(kind for kind in run.errors if kind)),
    )


def measure_load(make_target: MakeTarget, *, rate_per_s: float, duration_s: float, seed: int = 0) -> LoadRun:
    """Measure the latency of a fresh target under a rate of requests; see :func:`generate_load`."""
    with make_target() as target:
        return generate_load(target, rate_per_s=rate_per_s, duration_s=duration_s, seed=seed)


class _Run:
    """Records what becomes of requests. Their callbacks may come from any thread, each to its own place."""

    def __init__(self, arrivals_s: list[float], clock: Clock) -> None:
        self.start_s = clock.now_s()
        self.sent_s: list[float] = []
        self.finished_s = [float("inf")] * len(arrivals_s)
        self.outcomes = [Outcome.UNFINISHED] * len(arrivals_s)
        self.errors: list[str | None] = [None] * len(arrivals_s)
        self.futures: list[Future[Any]] = []
        self._arrivals_s = arrivals_s
        self._clock = clock
        self._judged = 0
        self._misses = 0

    def send(self, target: Target) -> None:
        """Send the next request."""
        place = len(self.sent_s)
        self.sent_s.append(self._now_s())
        try:
            future = target.submit()
        except Exception as error:  # noqa: BLE001 - counted by its kind
            self._finish(place, error)
            return
        self.futures.append(future)
        future.add_done_callback(partial(self._on_done, place))

    def misses(self, latency_s: float) -> int:
        """Requests whose time is up and that were not answered in it."""
        while self._judged < len(self.sent_s) and self._arrivals_s[self._judged] + latency_s < self._now_s():
            place = self._judged
            in_time = self.finished_s[place] - self._arrivals_s[place] <= latency_s
            self._misses += not (in_time and self.outcomes[place] is Outcome.ANSWERED)
            self._judged += 1
        return self._misses

    def give_up(self) -> None:
        """Cancel what is not finished, and take every request as it stands now."""
        for future in self.futures:
            future.cancel()
        now_s, count = self._now_s(), len(self.sent_s)
        # One that cannot be cancelled any more may still end; its callback then writes to the lists left behind.
        outcomes, finished_s, errors = self.outcomes[:count], self.finished_s[:count], self.errors[:count]
        unfinished = [outcome is Outcome.UNFINISHED for outcome in outcomes]
        self.finished_s = [now_s if late else at for at, late in zip(finished_s, unfinished, strict=True)]
        self.errors = [None if late else kind for kind, late in zip(errors, unfinished, strict=True)]
        self.outcomes = outcomes

    def _now_s(self) -> float:
        return self._clock.now_s() - self.start_s

    def _on_done(self, place: int, future: Future[Any]) -> None:
        if not future.cancelled():
            self._finish(place, future.exception())

    def _finish(self, place: int, error: BaseException | None) -> None:
        self.finished_s[place] = self._now_s()
        self.errors[place] = None if error is None else _kind(error)
        self.outcomes[place] = _outcome(error)  # last, so that whoever sees it sees the rest


def _outcome(error: BaseException | None) -> Outcome:
    match error:
        case None:
            return Outcome.ANSWERED
        case OverloadedError():
            return Outcome.REJECTED
        case DeadlineError():
            return Outcome.EXPIRED
        case _:
            return Outcome.FAILED


def _kind(error: BaseException) -> str:
    return error.kind if isinstance(error, ServiceError) else type(error).__name__
