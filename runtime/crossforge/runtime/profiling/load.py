"""Open-loop load: requests arrive when they arrive, whether or not the earlier ones were answered.

A closed loop, in which each client waits for its answer before it asks again, slows down with the service and so leaves out
the very requests that would have waited longest (*coordinated omission*, as Gil Tene named it). Here arrivals are a Poisson
process that was drawn beforehand, and a request's latency counts from the moment it was due, not from when it was sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import DeadlineError, InputError, OverloadedError
from crossforge.runtime.microbatch import MicroBatchConfig, MicroBatcher
from crossforge.runtime.profiling.clock import Clock, RealClock
from crossforge.runtime.profiling.load_report import LoadReport, Outcome
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.reranker import Reranker

GRACE_S = 30.0
"""How long the answers to the last arrivals are waited for."""
_CALLS_TO_START_FROM = 5


class Target(Protocol):
    """What is put under load: a micro-batcher, or a service behind a URL."""

    def submit(self) -> Future[Any]:
        """Send one request, and do not wait for its answer.

        Returns:
            Done when the request is. Its exception, or one raised here, counts as the request's.
        """
        ...


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

    def is_met_by(self, report: LoadReport) -> bool:
        """Whether enough of all requests were answered in time."""
        requests = len(report.outcomes)
        within = round(report.share_within(self.latency_ms) * requests)
        return not report.stopped_early and requests - within <= self.misses_allowed(requests)


@dataclass(frozen=True, kw_only=True)
class MaxRate:
    """The answer to: how many requests a second, within an SLO?"""

    slo: Slo
    rate_per_s: float
    """The highest rate that met it; 0.0 if none did."""
    trials: tuple[LoadReport, ...]
    """Every run, in the order made."""

    def figures(self) -> dict[str, object]:
        """What a reader wants to know, ready for JSON."""
        return {
            "slo_ms": self.slo.latency_ms,
            "percentile": self.slo.percentile,
            "rate_per_s": self.rate_per_s,
            "trials": [{**trial.figures(), "met": self.slo.is_met_by(trial)} for trial in self.trials],
        }


class BatcherTarget:
    """A micro-batcher under load: the records' requests in their order, again and again. Tokenizes on its threads.

    Args:
        batcher: Takes the requests; the caller keeps it.
        records: One request each.
        deadline_s: Of each request, from when it is sent.
    """

    def __init__(self, batcher: MicroBatcher, records: Sequence[QueryRecord], *, deadline_s: float | None = None) -> None:
        if not records:
            raise InputError("there is no request to send", allowed="one record or more")
        self._batcher = batcher
        self._deadline_s = deadline_s
        self._requests = cycle([(record.query, [passage.text for passage in record.passages]) for record in records])

    def submit(self) -> Future[Any]:
        """Send the next request; see :meth:`Target.submit`."""
        query, passages = next(self._requests)
        return self._batcher.schedule(query, passages, deadline_s=self._deadline_s)


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
) -> LoadReport:
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
    return LoadReport(
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


def find_max_rate(
    make_target: Callable[[], AbstractContextManager[Target]],
    slo: Slo,
    *,
    duration_s: float,
    start_per_s: float = 8.0,
    tolerance: float = 0.05,
    most_trials: int = 20,
    least_requests: int = 200,
    seed: int = 0,
    clock: Clock | None = None,
) -> MaxRate:
    """Find the highest rate that meets an SLO: doubled or halved until it is enclosed, then bisected.

    A trial whose verdict is clear stops at once, so rates that are far too high cost little.

    Args:
        make_target: A fresh target for each trial, so that none inherits the queue of another.
        slo: What has to be met.
        duration_s: Of the arrivals of each trial.
        start_per_s: The first rate tried.
        tolerance: Stop when the rate is known to this share of itself.
        most_trials: Stop after so many in any case.
        least_requests: A trial goes on until it has about so many, because a percentile of a few requests is chance.
        seed: Decides the arrivals.
        clock: Real time if not given.

    Raises:
        InputError: A number is not positive.
    """
    if not (tolerance > 0 and most_trials > 0):
        raise InputError("cannot search", got=f"tolerance {tolerance}, {most_trials} trials", allowed="both above 0")
    met, missed = 0.0, float("inf")
    rate = start_per_s
    trials: list[LoadReport] = []
    while len(trials) < most_trials and missed - met > tolerance * met and (met > 0 or rate > start_per_s * 2**-10):
        with make_target() as target:
            trial = generate_load(
                target,
                rate_per_s=rate,
                duration_s=max(duration_s, least_requests / rate) if rate > 0 else duration_s,
                seed=seed,
                stop_at=slo,
                clock=clock,
            )
        trials.append(trial)
        if slo.is_met_by(trial):
            met = rate
        else:
            missed = rate
        rate = met * 2 if missed == float("inf") else (met + missed) / 2
    return MaxRate(slo=slo, rate_per_s=met, trials=tuple(trials))


def measure_load(
    reranker: Reranker,
    records: Sequence[QueryRecord],
    *,
    rate_per_s: float,
    duration_s: float,
    seed: int = 0,
    config: MicroBatchConfig | None = None,
    deadline_s: float | None = None,
) -> LoadReport:
    """Put a reranker behind a micro-batcher and measure its latency under a rate of requests.

    Args:
        reranker: What to measure; the caller keeps it.
        records: The requests, sent in their order, again and again.
        rate_per_s: Mean number of requests a second.
        duration_s: How long they go on.
        seed: Decides the arrivals.
        config: The micro-batcher's.
        deadline_s: Of each request.

    Raises:
        InputError: There are no records, a text cannot be used, or the rate or the duration is not positive.
    """
    with _batcher_target(reranker, records, config, deadline_s) as target:
        return generate_load(target, rate_per_s=rate_per_s, duration_s=duration_s, seed=seed)


def measure_max_rate(
    reranker: Reranker,
    records: Sequence[QueryRecord],
    slo: Slo,
    *,
    duration_s: float,
    seed: int = 0,
    config: MicroBatchConfig | None = None,
    most_trials: int = 20,
) -> MaxRate:
    """Find how many requests a second a reranker answers within an SLO; see :func:`find_max_rate`.

    Args:
        reranker: What to measure; the caller keeps it.
        records: The requests, sent in their order, again and again.
        slo: What has to be met.
        duration_s: Of the arrivals of each trial, which goes on until there were about 200.
        seed: Decides the arrivals.
        config: The micro-batcher's.
        most_trials: Stop after so many in any case.

    Raises:
        InputError: There are no records, a text cannot be used, or the duration is not positive.
    """
    with _batcher_target(reranker, records, config, None) as target:
        start_s = time.perf_counter()
        for _ in records[:_CALLS_TO_START_FROM]:
            target.submit().result()
        call_s = (time.perf_counter() - start_s) / len(records[:_CALLS_TO_START_FROM])
    return find_max_rate(
        lambda: _batcher_target(reranker, records, config, None),
        slo,
        duration_s=duration_s,
        start_per_s=1 / call_s,  # one after another: not far from what many at once reach
        most_trials=most_trials,
        seed=seed,
    )


@contextmanager
def _batcher_target(
    reranker: Reranker, records: Sequence[QueryRecord], config: MicroBatchConfig | None, deadline_s: float | None
) -> Iterator[Target]:
    batcher = MicroBatcher(reranker, config)
    try:
        target = BatcherTarget(batcher, records, deadline_s=deadline_s)
        target.submit().result()  # the first call of an engine is not like the others
        yield target
    finally:
        batcher.close(drain=False)


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
        self.errors[place] = None if error is None else type(error).__name__
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
