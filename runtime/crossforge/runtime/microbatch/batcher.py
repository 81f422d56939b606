"""The micro-batcher: takes requests from any thread or event loop, and computes them together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from crossforge.profiles import Activation, CrossforgeError, EngineError, InputError
from crossforge.runtime.activation import Floats
from crossforge.runtime.batching import plan_batches
from crossforge.runtime.microbatch.config import BATCHES_AHEAD, BatcherStats, MicroBatchConfig
from crossforge.runtime.microbatch.ledger import Ledger, closed_error
from crossforge.runtime.microbatch.request import Request
from crossforge.runtime.microbatch.workers import Workers
from crossforge.runtime.ranking import RankedPassage, check_top_k, rank_passages
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.scored import ScoredPairs, warn_of_losses
from crossforge.runtime.tokenization import EncodedPairs
from crossforge.runtime.windows import Chunking


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
        self._ledger = Ledger(
            max_queue_tokens=self.config.max_queue_tokens,
            slice_tokens=self.config.slice_tokens or reranker.budget_tokens,
            workers=self.workers,
            clock=clock,
        )
        self._tokenizers = ThreadPoolExecutor(self.config.tokenizer_threads, thread_name_prefix="crossforge-tokenize")
        self._workers = Workers(
            self._ledger,
            reranker,
            count=self.workers,
            round_tokens=self.config.round_tokens or BATCHES_AHEAD * self.workers * reranker.budget_tokens,
        )

    def submit(
        self,
        query: str,
        passages: Sequence[str],
        *,
        deadline_s: float | None = None,
        chunk: Chunking | str | None = None,
    ) -> Future[ScoredPairs]:
        """Queue the passages of one query. Tokenizes on the calling thread, and does not wait for the scores.

        Args:
            query: A text that is not blank.
            passages: Any number of texts.
            deadline_s: Seconds from now. What is not computed by then is dropped; a batch that runs is not stopped.
            chunk: As for :meth:`Reranker.score`. Windows are queued like passages.

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
        return self._submit(passages, lambda: tokenizer.encode(query, passages, chunk=chunk), deadline_s)

    def submit_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        deadline_s: float | None = None,
        chunk: Chunking | str | None = None,
    ) -> Future[ScoredPairs]:
        """Queue (query, passage) pairs of any queries as one request; see :meth:`submit`."""
        tokenizer = self.reranker.tokenizer
        return self._submit(pairs, lambda: tokenizer.encode_pairs(pairs, chunk=chunk), deadline_s)

    def schedule(
        self,
        query: str,
        passages: Sequence[str],
        *,
        deadline_s: float | None = None,
        chunk: Chunking | str | None = None,
    ) -> Future[ScoredPairs]:
        """As :meth:`submit`, but tokenizes on a thread of its own and returns at once; all errors come in the future."""
        tokenizer = self.reranker.tokenizer
        return self.schedule_encoding(
            lambda: tokenizer.encode(query, passages, chunk=chunk), count=_count(passages), deadline_s=deadline_s
        )

    def schedule_encoding(
        self, encode: Callable[[], EncodedPairs], *, count: int, deadline_s: float | None = None
    ) -> Future[ScoredPairs]:
        """As :meth:`schedule`, with a function of the caller's that tokenizes, and may refuse.

        Args:
            encode: Runs on a thread of the micro-batcher's; whatever it raises comes in the future.
            count: Pairs that it will return, about: room is held for them meanwhile.
            deadline_s: Seconds from now.
        """
        future: Future[ScoredPairs] = Future()
        submitted_at = self._clock()
        try:
            expires_at = self._expiry(deadline_s)
            reserved = self._reserve(count)
        except CrossforgeError as error:
            future.set_exception(error)
            return future

        def admit() -> None:
            if future.cancelled():
                self._ledger.release(reserved)
                future.set_running_or_notify_cancel()
                return
            try:
                self._admit(future, encode, reserved, expires_at, submitted_at)
            except BaseException as error:  # noqa: BLE001 - handed to whoever holds the future
                # A panic in the tokenizer is no Exception; unanswered, its request would wait for ever.
                failure = error if isinstance(error, Exception) else _panic(error)
                if future.set_running_or_notify_cancel():
                    future.set_exception(failure)

        try:
            self._tokenizers.submit(admit)
        except RuntimeError:  # closed since
            self._ledger.release(reserved)
            future.set_exception(closed_error())
        return future

    async def score(
        self,
        query: str,
        passages: Sequence[str],
        *,
        deadline_s: float | None = None,
        activation: Activation | str | None = None,
        chunk: Chunking | str | None = None,
    ) -> Floats:
        """Score passages as :meth:`Reranker.score` does; raises as :meth:`submit` and its future do.

        Cancelling the task drops what is not computed.

        Warns:
            TruncationWarning: Text was cut; the result of :meth:`submit` says which.
            UnknownTokensWarning: Most of a text is nothing that the model has a token for.
        """
        scored = await asyncio.wrap_future(self.schedule(query, passages, deadline_s=deadline_s, chunk=chunk))
        warn_of_losses(scored)
        return self.reranker.relevance(scored.logits, activation=activation)

    async def rank(
        self,
        query: str,
        passages: Sequence[str],
        top_k: int | None = None,
        *,
        deadline_s: float | None = None,
        chunk: Chunking | str | None = None,
    ) -> list[RankedPassage]:
        """Rank passages as :meth:`Reranker.rank` does; raises as :meth:`submit` and its future do."""
        check_top_k(top_k)
        scored = await asyncio.wrap_future(self.schedule(query, passages, deadline_s=deadline_s, chunk=chunk))
        warn_of_losses(scored, truncation=False)
        scores = self.reranker.relevance(scored.logits)
        return rank_passages(passages, scores, scored.truncated, windows=scored.windows, top_k=top_k)

    def estimate_wait_s(self) -> float | None:
        """Seconds in which all pending work will be done, at the speed of late; None before the first batch."""
        return self._ledger.estimate_wait_s()

    def stats(self) -> BatcherStats:
        """What is pending, and what was done so far."""
        return self._ledger.stats()

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take no more requests, and end the workers. May be called twice, but not from a future's callback.

        Args:
            drain: Answer what was taken before. Otherwise it fails at once, save for requests that are being answered.
            timeout_s: Longest time to wait for that and for the workers; then the rest fails. None waits without limit.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        self._ledger.close(drain=drain, timeout_s=timeout_s)
        self._tokenizers.shutdown()
        self._workers.join(None if until is None else max(0.0, until - time.monotonic()))

    def __enter__(self) -> MicroBatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=error is None)

    def _submit(
        self, items: Sequence[object], encode: Callable[[], EncodedPairs], deadline_s: float | None
    ) -> Future[ScoredPairs]:
        future: Future[ScoredPairs] = Future()
        submitted_at = self._clock()
        expires_at = self._expiry(deadline_s)
        self._admit(future, encode, self._reserve(_count(items)), expires_at, submitted_at)
        return future

    def _expiry(self, deadline_s: float | None) -> float | None:
        if deadline_s is not None and not deadline_s > 0:
            raise InputError("deadline_s is not positive", got=deadline_s, allowed="seconds from now")
        return None if deadline_s is None else self._clock() + deadline_s

    def _reserve(self, count: int) -> int:
        """Hold room for the fewest tokens that a request can have, so that a full queue refuses before it tokenizes."""
        tokens = count * self.reranker.tokenizer.template.special_token_count
        self._ledger.reserve(tokens)
        return tokens

    def _admit(
        self,
        future: Future[ScoredPairs],
        encode: Callable[[], EncodedPairs],
        reserved: int,
        expires_at: float | None,
        submitted_at: float,
    ) -> None:
        """Tokenize a request and queue it, in place of what was reserved for it."""
        try:
            encoding_at = self._clock()
            pairs = encode()
            if len(pairs):  # a pair that no engine takes is its caller's error, and never reaches a worker
                plan_batches([int(pairs.lengths.max())], budget_tokens=1, profiles=self.reranker.profiles)
            labels = len(self.reranker.manifest.scoring.labels)
            request = Request(
                asked=pairs,
                labels=labels,
                ranking_label=None if pairs.windows is None else self.reranker.ranking_label,
                future=future,
                expires_at=expires_at,
                submitted_at=submitted_at,
                encoding_at=encoding_at,
                encoded_at=self._clock(),
            )
        except BaseException:
            self._ledger.release(reserved)
            raise
        self._ledger.admit(request, reserved)
        if not len(pairs):
            self._ledger.answer(request)


def _panic(cause: BaseException) -> EngineError:
    error = EngineError(f"the tokenizer died ({type(cause).__name__}: {cause})", fix="Report it, with the text.")
    error.__cause__ = cause
    return error


def _count(items: object) -> int:
    """How many texts or pairs there are; none if it is not a list, which the tokenizer will say."""
    return len(items) if isinstance(items, Sequence) and not isinstance(items, str | bytes) else 0
