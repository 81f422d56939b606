"""What a micro-batcher has taken and not answered yet: the one place that threads share."""

from __future__ import annotations

import math
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Condition

import numpy as np

from crossforge.profiles import ClosedError, CrossforgeError, DeadlineError, OverloadedError, RequestTooLargeError
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import BatchPlan
from crossforge.runtime.microbatch.config import BatcherStats
from crossforge.runtime.microbatch.fair_queue import FairQueue, Slice
from crossforge.runtime.microbatch.request import Part, Request
from crossforge.runtime.microbatch.throughput import Throughput
from crossforge.runtime.scored import ScoredPairs

_COUNTED = tuple(name for name in BatcherStats.__dataclass_fields__ if not name.startswith("pending"))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker is to do next: compute a batch, or plan batches of slices first."""

    batch: Sequence[Part] = ()
    slices: Sequence[Slice[Request]] = ()


class Ledger:
    """Requests from the reservation of their room to their answer. Every method may be called from any thread.

    One lock guards everything; no future is resolved while it is held, because callbacks may call back.

    Args:
        max_queue_tokens: Most tokens of requests that were taken and are not computed.
        slice_tokens: Tokens of a request's turn.
        workers: Batches that run at the same time.
        clock: Seconds that never go back.
    """

    def __init__(self, *, max_queue_tokens: int, slice_tokens: int, workers: int, clock: Callable[[], float]) -> None:
        self._max_queue_tokens = max_queue_tokens
        self._workers = workers
        self._clock = clock
        self._changed = Condition()
        self._queue: FairQueue[Request] = FairQueue(slice_tokens)
        self._planned: deque[Sequence[Part]] = deque()
        self._requests: set[Request] = set()
        self._expires_at = math.inf
        self._admitting = 0
        self._pending_tokens = 0
        self._throughput = Throughput()
        self._count: Counter[str] = Counter()
        self._closing = False
        self._aborted = False

    def reserve(self, tokens: int) -> None:
        """Hold room for a request that is being tokenized; ``admit`` or ``release`` follows.

        Raises:
            InputError: It is larger than the whole queue.
            OverloadedError: There is no room.
            EngineError: Closed.
        """
        with self._changed:
            if self._closing:
                raise closed_error()
            self._check_room(tokens)
            self._admitting += 1
            self._pending_tokens += tokens

    def release(self, tokens: int) -> None:
        """Give back what was reserved."""
        with self._changed:
            self._admitting -= 1
            self._pending_tokens -= tokens
            self._changed.notify_all()

    def admit(self, request: Request, reserved: int) -> None:
        """Queue a request in place of what was reserved for it; raises as :meth:`reserve`."""
        with self._changed:
            self.release(reserved)
            if self._aborted:
                raise closed_error()
            self._check_room(request.pending_tokens)
            self._pending_tokens += request.pending_tokens
            self._requests.add(request)
            if request.expires_at is not None:
                self._expires_at = min(self._expires_at, request.expires_at)
            self._queue.add(request, request.pairs.lengths)
        # Weak, or request and future would hold each other, and their arrays, until the garbage collector comes by.
        request.future.add_done_callback(partial(self._drop_if_cancelled, weakref.ref(request)))

    def next_work(self, most_tokens: int, in_hand: list[Request]) -> Work | None:
        """Wait for work; None when it is time to end.

        Args:
            most_tokens: Of slices that are not planned.
            in_hand: Set to the requests concerned, before anyone can hear of them.
        """
        with self._changed:
            in_hand.clear()
            while not self._planned and not len(self._queue):
                if self._aborted or (self._closing and self._is_idle()):
                    return None
                self._changed.wait()
            work = Work(batch=self._planned.popleft()) if self._planned else Work(slices=self._queue.take(most_tokens))
            in_hand.extend({part.request: None for part in work.batch} | {piece.owner: None for piece in work.slices})
            return work

    def add_planned(self, batches: Sequence[Sequence[Part]]) -> None:
        """Leave planned batches for whichever worker is free."""
        with self._changed:
            self._planned.extend(batches)
            self._changed.notify_all()

    def begin(self, batch: Sequence[Part]) -> None:
        """Note that a batch is being computed, for the times of its requests."""
        with self._changed:
            now = self._clock()
            for part in batch:
                if part.request.started_at is None:
                    part.request.started_at = now

    def receive(self, batch: Sequence[Part], logits: Floats, plans: Sequence[BatchPlan], *, seconds: float) -> list[Request]:
        """Take the logits of a batch, float32 [pairs, labels] in the order of its parts.

        Returns:
            The requests that have all of theirs now.
        """
        row_tokens = np.empty(len(logits), dtype=np.int64)
        for plan in plans:
            row_tokens[plan.indices] = plan.sequence_length
        ends = np.cumsum([len(part.indices) for part in batch])
        tokens = sum(int(part.request.pairs.lengths[part.indices].sum()) for part in batch)
        with self._changed:
            self._throughput.add(tokens, seconds)
            self._count.update(batches=len(plans), pairs=len(logits), tokens=tokens, padded_tokens=int(row_tokens.sum()))
            for part, stop in zip(batch, ends.tolist(), strict=True):
                mine = slice(stop - len(part.indices), stop)
                before = part.request.pending_tokens
                part.request.receive(part.indices, logits[mine], int(row_tokens[mine].sum()))
                if not part.request.settled:
                    self._pending_tokens += part.request.pending_tokens - before
            return [part.request for part in batch if not part.request.pending_pairs]

    def answer(self, request: Request) -> None:
        """Resolve a request with its logits, unless it was settled otherwise."""
        if self._settle(request, "answered"):
            request.future.set_result(request.result(self._clock()))

    def fail(self, request: Request, error: CrossforgeError, *, counted_as: str = "failed") -> None:
        """Resolve a request with an error, unless it was settled before."""
        if self._settle(request, counted_as):
            request.future.set_exception(error)

    def expire(self) -> None:
        """Fail every request whose deadline has passed, wherever it stands: nobody waits for a turn to hear that."""
        now = self._clock()
        with self._changed:
            # Asked before each batch, of thousands of requests perhaps: the earliest deadline that there was says mostly no.
            if now < self._expires_at:
                return
            expired = [request for request in self._requests if request.has_expired(now)]
            deadlines = (request.expires_at for request in self._requests if request.expires_at is not None)
            self._expires_at = min((deadline for deadline in deadlines if deadline > now), default=math.inf)
        for request in expired:
            error = DeadlineError(
                "the deadline passed before the request was computed", fix="Send less, or allow more time."
            )
            self.fail(request, error, counted_as="expired")

    def count_restart(self) -> list[Request]:
        """Note that a worker died; everything that is not answered, in case it is not known what it held."""
        with self._changed:
            self._count["worker_restarts"] += 1
            return list(self._requests)

    def close(self, *, drain: bool, timeout_s: float | None) -> None:
        """Take no more requests; wait for the rest if ``drain``, and fail what is left."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if drain:
                self._changed.wait_for(self._is_idle, timeout_s)
            self._aborted = True
            abandoned = list(self._requests)
            self._changed.notify_all()
        for request in abandoned:
            self.fail(request, closed_error())

    def estimate_wait_s(self) -> float | None:
        """Pending tokens over the workers' speed of late; None before the first batch."""
        with self._changed:
            speed = self._throughput.tokens_per_s
            return None if speed is None else self._pending_tokens / (speed * self._workers)

    def stats(self) -> BatcherStats:
        """What is pending, and what was done so far."""
        with self._changed:
            pending = {"pending_requests": len(self._requests), "pending_tokens": self._pending_tokens}
            return BatcherStats(**pending, **{name: self._count[name] for name in _COUNTED})

    def _check_room(self, tokens: int) -> None:
        """Refuse what has no room; the lock is held."""
        most = self._max_queue_tokens
        if tokens > most:
            raise RequestTooLargeError(
                "the request is larger than the whole queue",
                got=f"{tokens:,} tokens or more",
                allowed=f"up to {most:,}",
                fix="Send fewer passages at a time, or raise max_queue_tokens.",
            )
        if self._pending_tokens + tokens > most:
            self._count["rejected"] += 1
            wait_s = self.estimate_wait_s()
            raise OverloadedError(
                "the queue is full",
                wait_s=wait_s,
                got=f"{tokens:,} tokens beside {self._pending_tokens:,} that wait",
                allowed=f"{most:,} in all",
                fix="Try again later." if wait_s is None else f"Try again in about {wait_s:.1f} s.",
            )

    def _settle(self, request: Request, counted_as: str) -> bool:
        """Let go of a request; whether its future is to be resolved, by the caller, now."""
        with self._changed:
            if request.settled:
                return False
            request.settled = True
            self._requests.discard(request)
            self._queue.discard(request)
            self._pending_tokens -= request.pending_tokens
            running = request.future.set_running_or_notify_cancel()
            self._count[counted_as if running else "cancelled"] += 1
            self._changed.notify_all()
        return running

    def _is_idle(self) -> bool:
        return not self._requests and not self._admitting

    def _drop_if_cancelled(self, reference: weakref.ref[Request], future: Future[ScoredPairs]) -> None:
        request = reference()
        if request is not None and future.cancelled():
            self._settle(request, "cancelled")


def closed_error() -> ClosedError:
    """For requests that come too late."""
    return ClosedError("the micro-batcher is closed")
