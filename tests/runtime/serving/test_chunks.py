"""``chunk`` over HTTP: long passages are split where the shape can say which window won, and refused elsewhere."""

from __future__ import annotations

from typing import Any

import cohere
import httpx
import pytest
from cohere.core.request_options import RequestOptions

from crossforge.runtime.microbatch import MicroBatcher
from crossforge.runtime.windows import Chunking
from support.builders import fake_reranker
from support.serving import RunningService, fake_service, gated_service

QUERY = "where is the city"
LONG = "berlin people live a b c the city " * 15
TEXTS = ["a passage", LONG, "people"]
OPTIONS: dict[str, Any] = {"window_tokens": 20, "overlap": 0.5}
TEI = {"query": QUERY, "texts": TEXTS}
COHERE = {"model": "tiny", "query": QUERY, "documents": TEXTS}


@pytest.mark.parametrize(("chunk", "meant"), [("max", "max"), (OPTIONS, Chunking(**OPTIONS)), ({"pooling": "max"}, "max")])
def test_tei_scores_are_the_rerankers_and_tell_the_window_that_won(
    service: RunningService, chunk: object, meant: Chunking | str
) -> None:
    rows = service.post("/rerank", {**TEI, "raw_scores": True, "chunk": chunk}).json()
    with fake_reranker() as reranker:
        expected = reranker.rank(QUERY, TEXTS, chunk=meant)

    assert [(row["index"], row["score"]) for row in rows] == [(row.corpus_id, row.score) for row in expected]
    assert [row.get("window") for row in rows] == [row.window and vars(row.window) for row in expected]
    (split,) = [row for row in rows if "window" in row]
    assert split["index"] == 1
    assert split["window"]["count"] > 1


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_coheres_rows_tell_the_window_and_nothing_counts_as_cut(service: RunningService, path: str) -> None:
    whole = service.post(path, {**COHERE, "chunk": "max"}).json()
    cut = service.post(path, COHERE).json()

    assert [row["index"] for row in whole["results"] if "window" in row] == [1]
    assert "warnings" not in whole["meta"]
    assert "warnings" in cut["meta"]
    assert whole["usage"]["total_tokens"] > cut["usage"]["total_tokens"]


def test_coheres_client_passes_chunk_on_and_shows_the_window(service: RunningService) -> None:
    with httpx.Client(timeout=30) as transport:
        client = cohere.ClientV2(api_key="any", base_url=service.url, httpx_client=transport)
        options = RequestOptions(additional_body_parameters={"chunk": "max"})
        answer = client.rerank(model="tiny", query=QUERY, documents=TEXTS, request_options=options)

    assert {row.index: hasattr(row, "window") for row in answer.results} == {0: False, 1: True, 2: False}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/rerank", {"query": QUERY, "documents": TEXTS, "truncate_prompt_tokens": -1}, "not offered in this shape"),
        ("/score", {"text_1": QUERY, "text_2": TEXTS}, "not offered in this shape"),
        ("/jina/v1/rerank", COHERE, "not offered in this shape"),
        ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": LONG}]}, "not offered in this shape"),
        ("/playground/rank", {"query": QUERY, "passages": TEXTS}, "not offered in this shape"),
        ("/v1/rerank", {**COHERE, "max_chunks_per_doc": 3}, "does not bound the windows"),
        ("/v2/rerank", {**COHERE, "max_tokens_per_doc": 3}, "both cut and split"),
        ("/rerank", {**TEI, "query": "city " * 40}, "3 of 3 pairs"),
    ],
)
def test_where_it_cannot_be_done_it_is_refused_in_words(
    service: RunningService, path: str, body: dict[str, Any], message: str
) -> None:
    answer = service.post(path, {**body, "chunk": "max"})

    assert answer.status_code in (413, 422)
    assert message in answer.text


@pytest.mark.parametrize("chunk", ["mean", {"overlap": 0.95}, {"window_tokens": 0}, {"windows": 3}, 1])
def test_options_that_are_wrong_are_refused(service: RunningService, chunk: object) -> None:
    assert service.post("/rerank", {**TEI, "chunk": chunk}).status_code == 422


@pytest.mark.parametrize("micro_batching", [True, False])
def test_windows_of_more_tokens_than_may_wait_are_refused_before_they_are_cut(micro_batching: bool) -> None:
    with fake_service(max_queue_tokens=300, micro_batching=micro_batching) as service:
        cut = service.post("/rerank", {**TEI, "truncate": True})
        split = service.post("/rerank", {**TEI, "chunk": OPTIONS})

    assert (cut.status_code, split.status_code) == (200, 413)
    assert "the windows of the passages are too many" in split.json()["error"]


def test_windows_wait_in_the_queue_with_all_their_tokens() -> None:
    with gated_service() as (service, session):
        model = service.models["tiny"]
        assert isinstance(model.scorer, MicroBatcher)
        pairs = model.reranker.tokenizer.encode(QUERY, TEXTS, chunk="max")
        future = model.scorer.schedule(QUERY, TEXTS, chunk="max")
        session.wait_for_a_batch()
        pending = model.scorer.stats().pending_tokens
        session.let_through()
        scored = future.result(20)

    assert len(pairs) > len(TEXTS)
    assert pending == pairs.lengths.sum() == scored.token_counts.sum()


def test_the_openapi_document_tells_of_it(service: RunningService) -> None:
    schemas = service.get("/openapi.json").json()["components"]["schemas"]

    for taken in ("TeiRerankRequest", "CohereRerankRequest", "CohereV2RerankRequest"):
        assert "windows" in schemas[taken]["properties"]["chunk"]["description"]
    for row in ("TeiRank", "CohereRankedDocument"):
        assert "window" in schemas[row]["properties"]
    assert not any("chunk" in schemas[other]["properties"] for other in ("JinaRerankRequest", "NimRankingRequest"))
