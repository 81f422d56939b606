from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import CostModel, InputError, Truncation, TruncationSide, TruncationWarning, UnknownTokensWarning
from crossforge.runtime import EncodedPairs, FakeSession, Reranker, ScoredPairs
from crossforge.runtime.distinct import find_distinct
from crossforge.runtime.microbatch import MicroBatchConfig, MicroBatcher
from support.builders import fake_reranker, make_manifest, make_profile, write_bundle
from support.families import different_passages
from support.sessions import WAIT_S, GatedSession
from support.strategies import no_deadline, words

QUERY = "where is the city"
PASSAGES = ["berlin", "people live in berlin", "", "the city", "a passage", "where people live"]
ROOMY = make_manifest(truncation=Truncation(max_length=512, query_max_length=64, side=TruncationSide.RIGHT))


def rows_of(session: FakeSession) -> Counter[tuple[int, ...]]:
    """The token ids of every pair that a session computed."""
    rows: Counter[tuple[int, ...]] = Counter()
    for batch in session.batches:
        for ids, length in zip(batch["input_ids"], batch["attention_mask"].sum(axis=1), strict=True):
            rows[tuple(ids[:length].tolist())] += 1
    return rows


@given(
    requests=st.lists(st.tuples(words.filter(bool), st.lists(words, max_size=12)), max_size=8),
    budget_tokens=st.integers(min_value=1, max_value=600),
    slice_tokens=st.integers(min_value=1, max_value=600),
    round_tokens=st.integers(min_value=1, max_value=3000),
    workers=st.integers(min_value=1, max_value=3),
)
@no_deadline
def test_every_pair_is_scored_once_and_lands_in_its_request(
    requests: list[tuple[str, list[str]]], budget_tokens: int, slice_tokens: int, round_tokens: int, workers: int
) -> None:
    alone = FakeSession()
    with fake_reranker(alone, manifest=ROOMY) as reranker:
        expected = [reranker.score(query, passages) for query, passages in requests]
    together = FakeSession()
    config = MicroBatchConfig(slice_tokens=slice_tokens, round_tokens=round_tokens, workers=workers)
    with fake_reranker(together, manifest=ROOMY, budget_tokens=budget_tokens) as reranker:
        with MicroBatcher(reranker, config) as batcher, ThreadPoolExecutor(4) as callers:
            futures = list(callers.map(lambda request: batcher.submit(*request), requests))
            scored = [future.result(WAIT_S) for future in futures]
            stats = batcher.stats()
        scores = [reranker.relevance(item.logits) for item in scored]

    for mine, theirs in zip(scores, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert rows_of(together) == rows_of(alone)
    distinct = [find_distinct(reranker.tokenizer.encode(*request)).pairs for request in requests]
    assert stats.pairs == sum(len(pairs) for pairs in distinct)
    assert stats.tokens == sum(int(pairs.lengths.sum()) for pairs in distinct)
    assert stats.answered == len(requests)
    assert (stats.pending_requests, stats.pending_tokens) == (0, 0)
    for batch in together.batches:
        assert batch["input_ids"].size <= budget_tokens or len(batch["input_ids"]) == 1


def test_the_result_tells_what_the_reranker_tells() -> None:
    long = "city " * 100
    with fake_reranker(budget_tokens=16) as reranker, MicroBatcher(reranker) as batcher:
        expected = reranker.score_pairs([(QUERY, "the city"), (QUERY, long), ("query", "\N{CITYSCAPE} жж")])
        scored = batcher.submit_pairs([(QUERY, "the city"), (QUERY, long), ("query", "\N{CITYSCAPE} жж")]).result(WAIT_S)

    for name in ("logits", "truncated", "query_truncated", "unknown_tokens", "mostly_unknown", "token_counts"):
        np.testing.assert_array_equal(getattr(scored, name), getattr(expected, name))
    assert (scored.batches, scored.padding_waste) == (expected.batches, expected.padding_waste)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cost", [None, CostModel(fixed_ms=0.0, per_token_ms=0.01, per_token_squared_ms=0.0)])
def test_a_request_alone_runs_in_the_batches_that_the_reranker_would_run(workers: int, cost: CostModel | None) -> None:
    alone, behind = FakeSession(), FakeSession()
    options: dict[str, Any] = {"workers": workers, "budget_tokens": 40, "cost": cost}
    with fake_reranker(alone, **options) as reranker:
        reranker.score(QUERY, PASSAGES)
    with fake_reranker(behind, **options) as reranker, MicroBatcher(reranker) as batcher:
        batcher.submit(QUERY, PASSAGES).result(WAIT_S)

    def shapes(session: FakeSession) -> list[tuple[int, ...]]:
        return sorted(batch["input_ids"].shape for batch in session.batches)

    assert shapes(behind) == shapes(alone)


def test_requests_that_come_while_a_batch_runs_share_the_next() -> None:
    session = GatedSession()
    with fake_reranker(session, budget_tokens=1000) as reranker, MicroBatcher(reranker) as batcher:
        futures = [batcher.submit(QUERY, ["berlin"])]
        session.wait_for_a_batch()
        futures += [batcher.submit(query, ["the city", "a passage"]) for query in ("query", "people live", "the city")]
        session.let_through()
        results = [future.result(WAIT_S) for future in futures]

    assert [len(batch["input_ids"]) for batch in session.batches] == [1, 6]
    assert [result.batches for result in results] == [1, 1, 1, 1]


def test_small_requests_are_not_starved_by_a_large_one() -> None:
    session = GatedSession()
    answered: list[str] = []
    with (
        fake_reranker(session, budget_tokens=64) as reranker,
        MicroBatcher(reranker, MicroBatchConfig(round_tokens=128)) as batcher,
    ):
        batches_at_answer: dict[str, int] = {}

        def note(name: str, future: Future[ScoredPairs]) -> None:
            future.add_done_callback(lambda _: answered.append(name))
            future.add_done_callback(lambda _: batches_at_answer.update({name: len(session.batches)}))

        futures = [batcher.submit(QUERY, different_passages(1000, words=2))]
        note("large", futures[0])
        session.wait_for_a_batch()
        for i in range(10):
            futures.append(batcher.submit(QUERY, different_passages(5, words=2)))
            note(f"small {i}", futures[-1])
        session.let_through()
        for future in futures:
            future.result(WAIT_S)

    assert answered[-1] == "large"
    assert max(count for name, count in batches_at_answer.items() if name != "large") <= 20
    assert len(session.batches) > 100


def test_a_callback_may_send_the_next_request() -> None:
    done = Event()
    with fake_reranker() as reranker, MicroBatcher(reranker) as batcher:
        following: list[Future[ScoredPairs]] = []

        def again(_: object) -> None:
            following.append(batcher.submit(QUERY, ["the city"]))
            done.set()

        batcher.submit(QUERY, ["berlin"]).add_done_callback(again)
        assert done.wait(WAIT_S)
        assert len(following[0].result(WAIT_S).logits) == 1


def test_no_passages_are_answered_at_once() -> None:
    session = GatedSession()
    with fake_reranker(session) as reranker, MicroBatcher(reranker) as batcher:
        scored = batcher.submit(QUERY, []).result(0)

    assert scored.logits.shape == (0, 1)
    assert session.batches == []


def test_batches_fit_the_profiles_of_the_engine() -> None:
    session = FakeSession()
    profiles = (make_profile((1, 8)), make_profile((9, 12), batch=2))
    with fake_reranker(session, profiles=profiles) as reranker, MicroBatcher(reranker) as batcher:
        futures = [batcher.submit(QUERY, PASSAGES[:4]) for _ in range(3)]
        for future in futures:
            future.result(WAIT_S)
        with pytest.raises(InputError, match="a pair is longer than every profile"):
            batcher.submit(QUERY, ["people " * 20])
        assert batcher.stats().pending_tokens == 0

    for batch in session.batches:
        rows, length = batch["input_ids"].shape
        assert length <= 8 or (length <= 12 and rows <= 2)


@pytest.mark.parametrize("method", ["submit", "schedule"])
@pytest.mark.parametrize(
    ("query", "passages", "message"),
    [("", ["berlin"], "the query is empty"), (QUERY, "berlin", "must be a list"), (QUERY, [3], "is not a string")],
)
def test_a_bad_request_fails_alone_and_leaves_nothing_behind(method: str, query: Any, passages: Any, message: str) -> None:
    with fake_reranker() as reranker, MicroBatcher(reranker) as batcher:
        with pytest.raises(InputError, match=message):
            getattr(batcher, method)(query, passages).result(WAIT_S)
        assert len(batcher.submit(QUERY, PASSAGES).result(WAIT_S).logits) == 6
        assert batcher.stats().pending_tokens == 0


@pytest.mark.parametrize("field", ["max_queue_tokens", "slice_tokens", "round_tokens", "workers", "tokenizer_threads"])
def test_a_setting_below_one_is_refused(field: str) -> None:
    with pytest.raises(InputError, match=f"{field} is too small; got 0; allowed: 1 or more"):
        MicroBatchConfig(**{field: 0})


def test_coroutines_score_and_rank_as_the_reranker_does() -> None:
    with fake_reranker(budget_tokens=64) as reranker, MicroBatcher(reranker) as batcher:

        async def ask() -> tuple[list[Any], Any, Any]:
            scores = await asyncio.gather(*(batcher.score(QUERY, PASSAGES[i:]) for i in range(6)))
            return scores, await batcher.rank(QUERY, PASSAGES, 3), await batcher.score(QUERY, PASSAGES, activation="sigmoid")

        scores, ranking, activated = asyncio.run(ask())
        for i, mine in enumerate(scores):
            np.testing.assert_allclose(mine, reranker.score(QUERY, PASSAGES[i:]), atol=1e-6)
        assert ranking == reranker.rank(QUERY, PASSAGES, 3)
        np.testing.assert_allclose(activated, reranker.score(QUERY, PASSAGES, activation="sigmoid"), atol=1e-6)


def test_a_coroutine_warns_of_text_that_was_cut() -> None:
    with fake_reranker() as reranker, MicroBatcher(reranker) as batcher:

        async def ask() -> None:
            await batcher.score(QUERY, ["berlin", "city " * 100])

        with pytest.warns(TruncationWarning, match=r"^1 of 2 pairs were too long") as caught:
            asyncio.run(ask())

    assert [warning.filename for warning in caught] == [__file__]


def test_a_coroutine_warns_of_text_that_the_model_cannot_read() -> None:
    with fake_reranker() as reranker, MicroBatcher(reranker) as batcher:
        for ask in (batcher.score, batcher.rank):
            with pytest.warns(UnknownTokensWarning, match=r"^1 of 2 pairs are mostly text that the model has no token for"):
                asyncio.run(ask(QUERY, ["berlin", "ж жж"]))


def test_errors_reach_whoever_awaits() -> None:
    with fake_reranker() as reranker, MicroBatcher(reranker) as batcher:
        with pytest.raises(InputError, match="the query is empty"):
            asyncio.run(batcher.score("", PASSAGES))
        with pytest.raises(InputError, match="top_k is too small"):
            asyncio.run(batcher.rank(QUERY, PASSAGES, 0))


def test_the_expected_wait_is_pending_work_over_measured_speed() -> None:
    session = GatedSession()
    with fake_reranker(session) as reranker, MicroBatcher(reranker) as batcher:
        assert batcher.estimate_wait_s() is None
        first = batcher.submit(QUERY, ["berlin"])
        session.wait_for_a_batch()
        session.let_through(1)
        first.result(WAIT_S)
        assert batcher.estimate_wait_s() == 0.0
        waits = []
        futures = []
        for _ in range(3):
            futures.append(batcher.submit(QUERY, PASSAGES))
            waits.append(batcher.estimate_wait_s())
        session.let_through()
        for future in futures:
            future.result(WAIT_S)

    np.testing.assert_allclose(np.asarray(waits, dtype=float) / waits[0], [1, 2, 3])


def test_a_real_engine_gives_the_same_scores_to_concurrent_requests(tmp_path: Path) -> None:
    requests = [(query, PASSAGES[i:]) for query in (QUERY, "people live", "the city") for i in range(6)] * 3
    with (
        Reranker.load(write_bundle(tmp_path)) as reranker,
        MicroBatcher(reranker) as batcher,
        ThreadPoolExecutor(8) as callers,
    ):
        expected = [reranker.score(*request) for request in requests]
        together = list(callers.map(lambda request: batcher.submit(*request).result(WAIT_S), requests))

        for scored, scores in zip(together, expected, strict=True):
            np.testing.assert_allclose(reranker.relevance(scored.logits), scores, atol=1e-5)


def test_an_answered_request_is_freed_without_the_garbage_collector() -> None:
    with fake_reranker() as reranker, MicroBatcher(reranker) as batcher:
        future = batcher.submit(QUERY, PASSAGES)
        future.result(WAIT_S)
        released = weakref.ref(future)
        gc.disable()
        try:
            del future
            batcher.submit(QUERY, PASSAGES).result(WAIT_S)  # the worker has let go of the one before
            assert released() is None
        finally:
            gc.enable()


def wait_until_queued(batcher: MicroBatcher, requests: int) -> None:
    give_up = time.monotonic() + WAIT_S
    while batcher.stats().pending_requests < requests:
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_a_request_tells_where_its_time_went() -> None:
    session = GatedSession()
    now = [10.0]
    with fake_reranker(session) as reranker, MicroBatcher(reranker, clock=lambda: now[0]) as batcher:

        def encode() -> EncodedPairs:
            now[0] += 2.0
            return reranker.tokenizer.encode(QUERY, PASSAGES)

        held = batcher.submit(QUERY, ["held"])
        session.wait_for_a_batch()
        future = batcher.schedule_encoding(encode, count=len(PASSAGES))
        wait_until_queued(batcher, 2)
        now[0] += 3.0
        session.let_through(1)
        held.result(WAIT_S)
        session.wait_for_a_batch()
        now[0] += 5.0
        session.let_through()
        times = future.result(WAIT_S).times

    assert times is not None
    assert (times.tokenize_s, times.queue_s, times.compute_s) == (2.0, 3.0, 5.0)


def test_an_encoder_that_refuses_ends_its_request_alone() -> None:
    with fake_reranker() as reranker, MicroBatcher(reranker) as batcher:

        def refuse() -> EncodedPairs:
            raise KeyError("refused")

        refused = batcher.schedule_encoding(refuse, count=3)
        well = batcher.schedule_encoding(lambda: reranker.tokenizer.encode(QUERY, PASSAGES), count=len(PASSAGES))

        assert isinstance(refused.exception(WAIT_S), KeyError)
        np.testing.assert_array_equal(reranker.relevance(well.result(WAIT_S).logits), reranker.score(QUERY, PASSAGES))
        assert batcher.stats().pending_tokens == 0
