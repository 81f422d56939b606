from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest

from crossforge.profiles import ClosedError, DeadlineError, EngineError, OverloadedError
from crossforge.runtime import EncodedPairs, Reranker, ScoredPairs
from crossforge.runtime.serving import scorers
from crossforge.runtime.serving.scorers import PlainScorer
from support.builders import fake_reranker
from support.serving import fake_service
from support.sessions import WAIT_S, GatedSession

QUERY, PASSAGES = "where is the city", ["berlin", "a passage", "people live"]


def encoder(reranker: Reranker, passages: list[str]) -> Callable[[], EncodedPairs]:
    return lambda: reranker.tokenizer.encode(QUERY, passages)


def test_requests_are_scored_by_themselves_as_the_reranker_scores_them() -> None:
    with fake_reranker() as reranker:
        scorer = PlainScorer(reranker)
        futures = [scorer.schedule_encoding(encoder(reranker, PASSAGES[:n]), count=n) for n in (1, 2, 3)]
        scored = [future.result(WAIT_S) for future in futures]
        scorer.close()
        for n, item in zip((1, 2, 3), scored, strict=True):
            np.testing.assert_array_equal(reranker.relevance(item.logits), reranker.score(QUERY, PASSAGES[:n]))

    assert all(item.times is not None and item.times.compute_s >= 0 for item in scored)


def test_the_queue_is_bounded_and_tells_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "MAX_PENDING_REQUESTS", 2)
    session = GatedSession()
    with fake_reranker(session) as reranker:
        scorer = PlainScorer(reranker)
        session.let_through(1)
        scorer.schedule_encoding(encoder(reranker, ["first"]), count=1).result(WAIT_S)
        taken = [scorer.schedule_encoding(encoder(reranker, [text]), count=1) for text in PASSAGES[:2]]
        refused = scorer.schedule_encoding(encoder(reranker, PASSAGES), count=3).exception(WAIT_S)
        session.let_through()
        for future in taken:
            future.result(WAIT_S)
        scorer.close()

    assert isinstance(refused, OverloadedError)
    assert refused.wait_s is not None
    assert refused.wait_s > 0
    assert scorer.pending_requests == 0


def test_what_waits_past_its_deadline_is_not_computed() -> None:
    session = GatedSession()
    now = [0.0]
    with fake_reranker(session) as reranker:
        scorer = PlainScorer(reranker, clock=lambda: now[0])
        first = scorer.schedule_encoding(encoder(reranker, PASSAGES), count=3)
        session.wait_for_a_batch()
        late = scorer.schedule_encoding(encoder(reranker, PASSAGES), count=3, deadline_s=1.0)
        now[0] = 2.0
        session.let_through()
        first.result(WAIT_S)
        assert isinstance(late.exception(WAIT_S), DeadlineError)
        scorer.close()

    assert len(session.batches) == 1


def test_an_engines_error_is_its_requests_alone() -> None:
    session = GatedSession()
    session.failures = [EngineError("the engine broke")]
    session.let_through()
    with fake_reranker(session) as reranker:
        scorer = PlainScorer(reranker)
        broken, well = (scorer.schedule_encoding(encoder(reranker, PASSAGES), count=3) for _ in range(2))
        assert isinstance(broken.exception(WAIT_S), EngineError)
        assert len(well.result(WAIT_S).logits) == 3
        scorer.close()


@pytest.mark.parametrize("drain", [True, False])
def test_closing_answers_what_was_taken_only_when_told_to(drain: bool) -> None:
    session = GatedSession()
    with fake_reranker(session) as reranker:
        scorer = PlainScorer(reranker)
        running: Future[ScoredPairs] = scorer.schedule_encoding(encoder(reranker, PASSAGES), count=3)
        session.wait_for_a_batch()
        waiting = scorer.schedule_encoding(encoder(reranker, PASSAGES), count=3)
        session.let_through()
        scorer.close(drain=drain)
        late = scorer.schedule_encoding(encoder(reranker, PASSAGES), count=3)

        assert isinstance(late.exception(WAIT_S), ClosedError)
        assert running.result(WAIT_S)
        assert waiting.done()


def test_the_service_answers_alike_without_micro_batching() -> None:
    body = {"query": QUERY, "texts": PASSAGES, "raw_scores": True}
    with fake_service() as merged, fake_service(micro_batching=False) as plain:
        assert plain.post("/rerank", body).json() == merged.post("/rerank", body).json()
        assert isinstance(plain.models["tiny"].scorer, PlainScorer)
        assert 'crossforge_queue_requests{model="tiny"} 0.0' in plain.get("/metrics").text
