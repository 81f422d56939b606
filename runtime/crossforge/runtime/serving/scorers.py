"""Who computes a model's requests: the micro-batcher, or one request after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import Protocol

from crossforge.profiles import ClosedError, DeadlineError, EngineError, OverloadedError
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.scored import ScoredPairs
from crossforge.runtime.timing import RequestTimes
from crossforge.runtime.tokenization import EncodedPairs

MAX_PENDING_REQUESTS = 512
_KEPT = 0.8
"""Share of the past that each request leaves in the measured time of one."""


class Scorer(Protocol):
    """Takes requests at once and answers them later; :class:`MicroBatcher` is one."""

    def schedule_encoding(
        self, encode: Callable[[], EncodedPairs], *, count: int, deadline_s: float | None = None
    ) -> Future[ScoredPairs]:
        """Tokenize and score on other threads; see :meth:`MicroBatcher.schedule_encoding`."""
        ...

    def estimate_wait_s(self) -> float | None:
        """Seconds in which all pending work will be done; None before anything was measured."""
        ...

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take no more requests; answer what was taken before, if ``drain``."""
        ...


class PlainScorer:
    """Scores each request by itself, one after another, in the batches that :meth:`Reranker.score_pairs` would run.

    What a service without micro-batching does: the baseline to compare with.
    """

    def __init__(self, reranker: Reranker, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._reranker = reranker
        self._clock = clock
        self._lock = Lock()
        self._pending = 0
        self._request_s: float | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="crossforge-plain")

    def schedule_encoding(
        self,
        encode: Callable[[], EncodedPairs],
        *,
        count: int,  # noqa: ARG002 - requests are counted here, not pairs
        deadline_s: float | None = None,
    ) -> Future[ScoredPairs]:
        """Queue a request; see :meth:`Scorer.schedule_encoding`."""
        submitted_at = self._clock()

        def work() -> ScoredPairs:
            try:
                return score()
            except Exception:
                raise
            except BaseException as error:  # SystemExit, if it reached the event loop, would end the service
                raise EngineError(f"a request died ({type(error).__name__}: {error})", fix="Report it.") from error

        def score() -> ScoredPairs:
            encoding_at = self._clock()
            if deadline_s is not None and encoding_at >= submitted_at + deadline_s:
                raise DeadlineError("the deadline passed before the request was computed", fix="Allow more time.")
            pairs = encode()
            encoded_at = self._clock()
            scored = self._reranker.score_encoded(pairs)
            done_at = self._clock()
            self._note(done_at - encoding_at)
            times = RequestTimes(
                queue_s=encoding_at - submitted_at,
                tokenize_s=encoded_at - encoding_at,
                compute_s=done_at - encoded_at,
            )
            return replace(scored, times=times)

        with self._lock:
            error: Exception | None = None
            if self._closed:
                error = ClosedError("the queue is closed")
            elif self._pending >= MAX_PENDING_REQUESTS:
                error = OverloadedError(
                    "the queue is full", wait_s=self._wait_s(), allowed=f"{MAX_PENDING_REQUESTS} requests"
                )
            if error is not None:
                refused: Future[ScoredPairs] = Future()
                refused.set_exception(error)
                return refused
            self._pending += 1
            future = self._thread.submit(work)
        future.add_done_callback(self._leave)
        return future

    def estimate_wait_s(self) -> float | None:
        """Pending requests times the time of one."""
        with self._lock:
            return self._wait_s()

    @property
    def pending_requests(self) -> int:
        """Requests that were taken and not answered."""
        return self._pending

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:  # noqa: ARG002 - a thread cannot be left
        """Take no more requests, and wait for the rest if ``drain``."""
        with self._lock:
            self._closed = True
        self._thread.shutdown(cancel_futures=not drain)

    def _wait_s(self) -> float | None:
        return None if self._request_s is None else self._request_s * self._pending

    def _note(self, seconds: float) -> None:
        with self._lock:
            self._request_s = seconds if self._request_s is None else _KEPT * self._request_s + (1 - _KEPT) * seconds

    def _leave(self, _: Future[ScoredPairs]) -> None:
        with self._lock:
            self._pending -= 1
