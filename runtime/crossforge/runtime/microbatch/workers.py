"""The workers of a micro-batcher: threads that plan rounds and compute batches until the ledger is closed."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from threading import Thread, current_thread

from crossforge.profiles import CrossforgeError, EngineError
from crossforge.runtime.microbatch.ledger import Ledger
from crossforge.runtime.microbatch.request import Part, Request, join_pairs, plan_round
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.scored import check_finite

_LOG = logging.getLogger(__name__)


class Workers:
    """Threads that compute what a ledger holds. They start at once, and end when it is closed.

    Args:
        ledger: Hands out work and takes the answers.
        reranker: Computes them.
        count: Batches that run at the same time.
        round_tokens: Tokens that are planned together.
    """

    def __init__(self, ledger: Ledger, reranker: Reranker, *, count: int, round_tokens: int) -> None:
        self._ledger = ledger
        self._reranker = reranker
        self._count = count
        self._round_tokens = round_tokens
        self._threads = [Thread(target=self._work, name=f"crossforge-batch-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float | None) -> None:
        """Wait for the threads, each at most so long."""
        for thread in self._threads:
            if thread is not current_thread():
                thread.join(timeout_s)

    def _work(self) -> None:
        """A worker's life. Whatever kills it fails the requests that it had in hand, and it starts again."""
        finished = False
        while not finished:
            in_hand: list[Request] = []
            try:
                while (batch := self._next_batch(in_hand)) is not None:
                    self._run(batch)
                finished = True
            except BaseException as error:  # noqa: BLE001 - answered below, for every request that it concerns
                _LOG.error("a worker of the micro-batcher died; it is started again", exc_info=error)
                unanswered = self._ledger.count_restart()
                for request in in_hand or unanswered:
                    failure = EngineError(
                        f"a worker of the micro-batcher died ({type(error).__name__}: {error})",
                        fix="It was started again; if it dies of the same request once more, report it.",
                    )
                    failure.__cause__ = error
                    self._ledger.fail(request, failure)

    def _next_batch(self, in_hand: list[Request]) -> Sequence[Part] | None:
        """The next planned batch, planning a round if there is none; None when it is time to end."""
        work = self._ledger.next_work(self._round_tokens, in_hand)
        if work is None:
            return None
        if work.batch:
            return work.batch
        # Planned without a lock: a round of a GPU holds a thousand pairs, and callers need not wait for it.
        batches = plan_round(
            work.slices,
            budget_tokens=self._reranker.budget_tokens,
            workers=self._count,
            profiles=self._reranker.profiles,
            cost=self._reranker.cost,
        )
        self._ledger.add_planned(batches[1:])
        in_hand[:] = [part.request for part in batches[0]]
        return batches[0]

    def _run(self, batch: Sequence[Part]) -> None:
        """Compute what is still wanted of a batch."""
        self._ledger.expire()
        wanted = [part for part in batch if not part.request.settled]
        if not wanted:
            return
        reranker = self._reranker
        self._ledger.begin(wanted)
        pairs = join_pairs(wanted)
        start_s = time.perf_counter()
        try:
            logits, plans = reranker.compute_logits(pairs)
        except CrossforgeError as error:
            for part in wanted:
                self._ledger.fail(part.request, error)
            return
        for request in self._ledger.receive(wanted, logits, plans, seconds=time.perf_counter() - start_s):
            try:
                check_finite(request.logits, reranker.precision)
            except CrossforgeError as error:
                self._ledger.fail(request, error)
            else:
                self._ledger.answer(request)
