"""The micro-batcher: takes requests from any thread or event loop, and computes them together."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Condition, Thread, current_thread
from types import TracebackType

import numpy as np

from crossforge.profiles import Activation, CrossforgeError, DeadlineError, EngineError, InputError, OverloadedError
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import plan_batches
from crossforge.runtime.microbatch.config import BATCHES_AHEAD, BatcherStats, MicroBatchConfig
from crossforge.runtime.microbatch.fair_queue import FairQueue
from crossforge.runtime.microbatch.request import Part, Request, join_pairs, plan_round
from crossforge.runtime.microbatch.throughput import Throughput
from crossforge.runtime.reranker import (
    RankedPassage,
    Reranker,
    ScoredPairs,
    check_top_k,
    rank_passages,
    warn_of_truncation,
)
from crossforge.runtime.scoring import compute_logits
from crossforge.runtime.tokenization import EncodedPairs

_LOG = logging.getLogger(__name__)


class MicroBatcher:
    """Merges concurrent requests into batches for one reranker. Safe to call from several threads and event loops.

    Pairs are scored as :meth:`Reranker.score_pairs` scores them, one thread for each batch that may run at the same time.
    Nothing waits for company: a worker that is free takes what is queued, and what comes meanwhile is its next round.
    Whoever makes a micro-batcher closes it, and then the reranker.

    Args:
        reranker: Scores the pairs. The caller keeps it, and must not close it first.
        config: How much is queued and how it is cut.
        clock: Seconds that never go back; deadlines are kept by it.
    """

    def __init__(
        self, reranker: Reranker, config: MicroBatchConfig | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reranker = reranker
        self.config = config or MicroBatchConfig()
        self.workers = self.config.workers or reranker.workers
        self._clock = clock
        self._round_tokens = self.config.round_tokens or BATCHES_AHEAD * self.workers * reranker.budget_tokens
        # One lock for everything below; no future is resolved while it is held, because callbacks may call back.
        self._changed = Condition()
        self._queue: FairQueue[Request] = FairQueue(self.config.slice_tokens or reranker.budget_tokens)
        self._planned: deque[list[Part]] = deque()
        self._requests: set[Request] = set()
        self._admitting = 0
        self._pending_tokens = 0
        self._throughput = Throughput()
        self._count: Counter[str] = Counter()
        self._closing = False
        self._aborted = False
        self._tokenizers = ThreadPoolExecutor(self.config.tokenizer_threads, thread_name_prefix="crossforge-tokenize")
        self._threads = [Thread(target=self._work, name=f"crossforge-batch-{i}", daemon=True) for i in range(self.workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, query: str, passages: Sequence[str], *, deadline_s: float | None = None) -> Future[ScoredPairs]:
        """Queue the passages of one query. Tokenizes on the calling thread, and does not wait for the scores.

        Args:
            query: A text that is not blank.
            passages: Any number of texts.
            deadline_s: Seconds from now. What is not computed by then is dropped; a batch that runs is not stopped.

        Returns:
            The logits and all about them, later; ``Reranker.relevance`` makes scores of them. ``cancel()`` drops what is
            not computed. It may end with DeadlineError, NonFiniteLogitsError or another EngineError. Callbacks run on a
            worker and hold it up.

        Raises:
            InputError: A text cannot be used, or the request is larger than the whole queue.
            OverloadedError: The queue is full.
            EngineError: The micro-batcher is closed.
        """
        tokenizer = self.reranker.tokenizer
        return self._submit(passages, lambda: tokenizer.encode(query, passages), deadline_s)

    def submit_pairs(self, pairs: Sequence[tuple[str, str]], *, deadline_s: float | None = None) -> Future[ScoredPairs]:
        """Queue (query, passage) pairs of any queries as one request; see :meth:`submit`."""
        tokenizer = self.reranker.tokenizer
        return self._submit(pairs, lambda: tokenizer.encode_pairs(pairs), deadline_s)

    def schedule(self, query: str, passages: Sequence[str], *, deadline_s: float | None = None) -> Future[ScoredPairs]:
        """As :meth:`submit`, but tokenizes on a thread of its own and returns at once; all errors come in the future."""
        future: Future[ScoredPairs] = Future()
        try:
            expires_at = self._expiry(deadline_s)
            reserved = self._reserve(passages)
        except CrossforgeError as error:
            future.set_exception(error)
            return future
        tokenizer = self.reranker.tokenizer

        def admit() -> None:
            if future.cancelled():
                self._release(reserved)
                future.set_running_or_notify_cancel()
                return
            try:
                self._admit(future, lambda: tokenizer.encode(query, passages), reserved, expires_at)
            except Exception as error:  # noqa: BLE001 - handed to whoever holds the future
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)

        try:
            self._tokenizers.submit(admit)
        except RuntimeError:  # closed since
            self._release(reserved)
            future.set_exception(_closed())
        return future

    async def score(
        self,
        query: str,
        passages: Sequence[str],
        *,
        deadline_s: float | None = None,
        activation: Activation | str | None = None,
    ) -> Floats:
        """Score passages as :meth:`Reranker.score` does; raises as :meth:`submit` and its future do.

        Cancelling the task drops what is not computed.

        Warns:
            TruncationWarning: Text was cut; the result of :meth:`submit` says which.
        """
        scored = await asyncio.wrap_future(self.schedule(query, passages, deadline_s=deadline_s))
        warn_of_truncation(scored)
        return self.reranker.relevance(scored.logits, activation=activation)

    async def rank(
        self, query: str, passages: Sequence[str], top_k: int | None = None, *, deadline_s: float | None = None
    ) -> list[RankedPassage]:
        """Rank passages as :meth:`Reranker.rank` does; raises as :meth:`submit` and its future do."""
        check_top_k(top_k)
        scored = await asyncio.wrap_future(self.schedule(query, passages, deadline_s=deadline_s))
        return rank_passages(passages, self.reranker.relevance(scored.logits), scored.truncated, top_k=top_k)

    def estimate_wait_s(self) -> float | None:
        """Seconds in which all pending work will be done, at the speed of late; None before the first batch."""
        with self._changed:
            return self._estimate_wait_s()

    def stats(self) -> BatcherStats:
        """What is pending, and what was done so far."""
        with self._changed:
            pending = {"pending_requests": len(self._requests), "pending_tokens": self._pending_tokens}
            return BatcherStats(**pending, **{name: self._count[name] for name in _COUNTED})

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take no more requests, and end the workers. May be called twice, but not from a future's callback.

        Args:
            drain: Answer what was taken before. Otherwise it fails at once, save for requests that are being answered.
            timeout_s: Longest time to wait for that and for the workers; then the rest fails. None waits without limit.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if drain:
                self._changed.wait_for(self._is_idle, timeout_s)
            self._aborted = True
            abandoned = list(self._requests)
            self._changed.notify_all()
        for request in abandoned:
            self._fail(request, _closed(), "failed")
        self._tokenizers.shutdown()
        for thread in self._threads:
            if thread is not current_thread():
                thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def __enter__(self) -> MicroBatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=error is None)

    # Taking requests, on the callers' threads.

    def _submit(
        self, items: Sequence[object], encode: Callable[[], EncodedPairs], deadline_s: float | None
    ) -> Future[ScoredPairs]:
        future: Future[ScoredPairs] = Future()
        expires_at = self._expiry(deadline_s)
        self._admit(future, encode, self._reserve(items), expires_at)
        return future

    def _expiry(self, deadline_s: float | None) -> float | None:
        if deadline_s is not None and not deadline_s > 0:
            raise InputError("deadline_s is not positive", got=deadline_s, allowed="seconds from now")
        return None if deadline_s is None else self._clock() + deadline_s

    def _reserve(self, items: Sequence[object]) -> int:
        """Hold room for the fewest tokens that a request can have, so that a full queue refuses before it tokenizes."""
        count = len(items) if isinstance(items, Sequence) and not isinstance(items, str | bytes) else 0
        tokens = count * self.reranker.tokenizer.template.special_token_count
        with self._changed:
            if self._closing:
                raise _closed()
            self._check_room(tokens)
            self._admitting += 1
            self._pending_tokens += tokens
        return tokens

    def _release(self, reserved: int) -> None:
        with self._changed:
            self._admitting -= 1
            self._pending_tokens -= reserved
            self._changed.notify_all()

    def _check_room(self, tokens: int) -> None:
        """Refuse what has no room; the lock is held."""
        most = self.config.max_queue_tokens
        if tokens > most:
            raise InputError(
                "the request is larger than the whole queue",
                got=f"{tokens:,} tokens or more",
                allowed=f"up to {most:,}",
                fix="Send fewer passages at a time, or raise max_queue_tokens.",
            )
        if self._pending_tokens + tokens > most:
            self._count["rejected"] += 1
            wait_s = self._estimate_wait_s()
            raise OverloadedError(
                "the queue is full",
                wait_s=wait_s,
                got=f"{tokens:,} tokens beside {self._pending_tokens:,} that wait",
                allowed=f"{most:,} in all",
                fix="Try again later." if wait_s is None else f"Try again in about {wait_s:.1f} s.",
            )

    def _admit(
        self,
        future: Future[ScoredPairs],
        encode: Callable[[], EncodedPairs],
        reserved: int,
        expires_at: float | None,
    ) -> None:
        """Tokenize a request and queue it, in place of what was reserved for it."""
        try:
            pairs = encode()
            if len(pairs):  # a pair that no engine takes is its caller's error, and never reaches a worker
                plan_batches([int(pairs.lengths.max())], budget_tokens=1, profiles=self.reranker.profiles)
            logits = np.empty((len(pairs), len(self.reranker.manifest.scoring.labels)), dtype=np.float32)
            request = Request(pairs=pairs, future=future, logits=logits, expires_at=expires_at)
        except BaseException:
            self._release(reserved)
            raise
        with self._changed:
            self._admitting -= 1
            self._pending_tokens -= reserved
            self._changed.notify_all()
            if self._aborted:
                raise _closed()
            self._check_room(request.pending_tokens)
            self._pending_tokens += request.pending_tokens
            self._requests.add(request)
            self._queue.add(request, pairs.lengths)
        # Weak, or request and future would hold each other, and their arrays, until the garbage collector comes by.
        future.add_done_callback(partial(self._drop_if_cancelled, weakref.ref(request)))
        if not len(pairs):
            self._answer(request)

    # Computing them, on the workers.

    def _work(self) -> None:
        """A worker's life. Whatever kills it fails the requests that it had in hand, and it starts again."""
        finished = False
        while not finished:
            in_hand: list[Request] = []
            try:
                self._serve(in_hand)
                finished = True
            except BaseException as error:  # noqa: BLE001 - answered below, for every request that it concerns
                _LOG.error("a worker of the micro-batcher died; it is started again", exc_info=error)
                with self._changed:
                    self._count["worker_restarts"] += 1
                    concerned = in_hand or list(self._requests)
                for request in concerned:
                    failure = EngineError(
                        f"a worker of the micro-batcher died ({type(error).__name__}: {error})",
                        fix="It was started again; if it dies of the same request once more, report it.",
                    )
                    failure.__cause__ = error
                    self._fail(request, failure, "failed")

    def _serve(self, in_hand: list[Request]) -> None:
        while (batch := self._next_batch(in_hand)) is not None:
            self._run(batch)

    def _next_batch(self, in_hand: list[Request]) -> list[Part] | None:
        """The next planned batch, planning a round if there is none; None when it is time to end."""
        with self._changed:
            in_hand.clear()
            while not self._planned and not len(self._queue):
                if self._aborted or (self._closing and self._is_idle()):
                    return None
                self._changed.wait()
            if self._planned:
                batch = self._planned.popleft()
                in_hand.extend(part.request for part in batch)
                return batch
            slices = self._queue.take(self._round_tokens)
            in_hand.extend({piece.owner: None for piece in slices})
        # Planned without the lock: a round of a GPU holds a thousand pairs, and callers need not wait for it.
        batches = plan_round(
            slices,
            budget_tokens=self.reranker.budget_tokens,
            workers=self.workers,
            profiles=self.reranker.profiles,
            cost=self.reranker.cost,
        )
        with self._changed:
            self._planned.extend(batches[1:])
            in_hand[:] = [part.request for part in batches[0]]
            self._changed.notify_all()
        return batches[0]

    def _run(self, batch: list[Part]) -> None:
        """Compute what is still wanted of a batch."""
        self._expire()
        wanted = [part for part in batch if not part.request.settled]
        if not wanted:
            return
        reranker = self.reranker
        pairs = join_pairs(wanted)
        start_s = time.perf_counter()
        try:
            logits, plans = compute_logits(
                reranker.session,
                pairs,
                template=reranker.manifest.pair_template,
                pad_token_id=reranker.manifest.pad_token_id,
                labels=len(reranker.manifest.scoring.labels),
                budget_tokens=reranker.budget_tokens,
                profiles=reranker.profiles,
            )
        except CrossforgeError as error:
            for part in wanted:
                self._fail(part.request, error, "failed")
            return
        seconds = time.perf_counter() - start_s
        row_tokens = np.empty(len(pairs), dtype=np.int64)
        for plan in plans:
            row_tokens[plan.indices] = plan.sequence_length
        ends = np.cumsum([len(part.indices) for part in wanted])
        with self._changed:
            tokens = int(pairs.lengths.sum())
            self._throughput.add(tokens, seconds)
            self._count.update(batches=len(plans), pairs=len(pairs), tokens=tokens, padded_tokens=int(row_tokens.sum()))
            for part, stop in zip(wanted, ends.tolist(), strict=True):
                mine = slice(stop - len(part.indices), stop)
                before = part.request.pending_tokens
                part.request.receive(part.indices, logits[mine], int(row_tokens[mine].sum()))
                if not part.request.settled:
                    self._pending_tokens += part.request.pending_tokens - before
            complete = [part.request for part in wanted if not part.request.pending_pairs]
        for request in complete:
            self._answer(request)

    def _expire(self) -> None:
        """Fail every request whose deadline has passed, wherever it stands: nobody waits for a turn to hear that."""
        now = self._clock()
        with self._changed:
            expired = [request for request in self._requests if request.has_expired(now)]
        for request in expired:
            self._fail(request, _expired(), "expired")

    # Settling them, once each.

    def _answer(self, request: Request) -> None:
        try:
            self.reranker.check_finite(request.logits)
        except CrossforgeError as error:
            self._fail(request, error, "failed")
            return
        if self._settle(request, "answered"):
            request.future.set_result(request.result())

    def _fail(self, request: Request, error: CrossforgeError, counted_as: str) -> None:
        if self._settle(request, counted_as):
            request.future.set_exception(error)

    def _drop_if_cancelled(self, reference: weakref.ref[Request], future: Future[ScoredPairs]) -> None:
        request = reference()
        if request is not None and future.cancelled():
            self._settle(request, "cancelled")

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

    def _estimate_wait_s(self) -> float | None:
        speed = self._throughput.tokens_per_s
        return None if speed is None else self._pending_tokens / (speed * self.workers)


_COUNTED = tuple(name for name in BatcherStats.__dataclass_fields__ if not name.startswith("pending"))


def _closed() -> EngineError:
    return EngineError("the micro-batcher is closed")


def _expired() -> DeadlineError:
    return DeadlineError("the deadline passed before the request was computed", fix="Send less, or allow more time.")
