"""Requests that nobody wants any more."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError, wait
from threading import Event
from typing import Any

import pytest

from crossforge.runtime import EncodedPairs, FakeSession
from crossforge.runtime.microbatch import MicroBatchConfig, MicroBatcher
from support.batchers import QUERY, TOKENS, busy, computed_pairs
from support.builders import fake_reranker
from support.families import different_passages
from support.sessions import WAIT_S, GatedSession


def test_what_is_cancelled_in_the_queue_is_not_computed_and_makes_room_at_once() -> None:
    session = GatedSession()
    config = MicroBatchConfig(max_queue_tokens=4 * TOKENS)
    with fake_reranker(session) as reranker, MicroBatcher(reranker, config) as batcher:
        running = busy(batcher, session)
        cancelled = batcher.submit(QUERY, different_passages(3))
        assert cancelled.cancel()
        wait([cancelled], timeout=WAIT_S)
        instead = batcher.submit(QUERY, different_passages(3))
        session.let_through()
        for future in (running, instead):
            future.result(WAIT_S)
        stats = batcher.stats()

    assert computed_pairs(session) == 4
    assert (stats.cancelled, stats.answered) == (1, 2)


def test_what_is_cancelled_takes_no_turn_from_the_others() -> None:
    session = GatedSession()
    config = MicroBatchConfig(slice_tokens=TOKENS, round_tokens=2 * TOKENS)
    with fake_reranker(session, budget_tokens=2 * TOKENS) as reranker, MicroBatcher(reranker, config) as batcher:
        running = busy(batcher, session)
        cancelled = batcher.submit(QUERY, different_passages(40))
        others = [batcher.submit(QUERY, ["berlin"]) for _ in range(2)]
        cancelled.cancel()
        session.let_through()
        for future in (running, *others):
            future.result(WAIT_S)

    assert [len(batch["input_ids"]) for batch in session.batches] == [1, 2]


def test_cancelling_a_request_half_done_drops_the_other_half() -> None:
    session = GatedSession()
    with fake_reranker(session, budget_tokens=2 * TOKENS) as reranker, MicroBatcher(reranker) as batcher:
        request = batcher.submit(QUERY, different_passages(40))
        session.wait_for_a_batch()
        session.let_through(1)
        session.wait_for_a_batch()
        assert request.cancel()
        session.let_through()
        batcher.submit(QUERY, ["berlin"]).result(WAIT_S)

    assert computed_pairs(session) == 2 + 2 + 1
    with pytest.raises(CancelledError):
        request.result(0)


def test_cancelling_a_task_drops_its_request() -> None:
    session = GatedSession()
    with fake_reranker(session) as reranker, MicroBatcher(reranker) as batcher:
        running = busy(batcher, session)

        async def ask_and_leave() -> None:
            task = asyncio.create_task(batcher.score(QUERY, different_passages(5)))
            while batcher.stats().pending_requests < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(asyncio.wait_for(ask_and_leave(), WAIT_S))
        assert batcher.stats().pending_tokens == TOKENS
        session.let_through()
        running.result(WAIT_S)

    assert computed_pairs(session) == 1


def test_a_scheduled_request_that_is_cancelled_before_it_is_tokenized_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    session, begun, go_on = FakeSession(), Event(), Event()
    with (
        fake_reranker(session) as reranker,
        MicroBatcher(reranker, MicroBatchConfig(tokenizer_threads=1)) as batcher,
    ):
        encode = reranker.tokenizer.encode

        def encode_slowly(query: str, passages: list[str], **options: Any) -> EncodedPairs:
            begun.set()
            assert go_on.wait(WAIT_S)
            return encode(query, passages, **options)

        monkeypatch.setattr(reranker.tokenizer, "encode", encode_slowly)
        slow = batcher.schedule(QUERY, ["berlin"])
        assert begun.wait(WAIT_S)
        waiting = batcher.schedule(QUERY, different_passages(5))
        assert waiting.cancel()
        go_on.set()
        assert len(slow.result(WAIT_S).logits) == 1
        wait([waiting], timeout=WAIT_S)
        assert len(batcher.submit(QUERY, ["city"]).result(WAIT_S).logits) == 1
        assert batcher.stats().pending_tokens == 0

    assert computed_pairs(session) == 2
