"""The reranker in LlamaIndex."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode

from crossforge.profiles import BundleNotFoundError, InputError
from crossforge.runtime import FakeSession, Reranker
from crossforge.runtime.adapters.llama_index import CrossforgeReranker
from crossforge.runtime.microbatch import MicroBatcher

from .conftest import BEST_FIRST, QUERY, SCORES, TEXTS, run

NODES = [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.1 * i) for i, text in enumerate(TEXTS)]


class Events(BaseEventHandler):
    seen: list[Any] = []  # noqa: RUF012 - pydantic copies it

    def handle(self, event: Any, **_: Any) -> None:
        self.seen.append(event)


def ids(nodes: list[NodeWithScore]) -> list[int]:
    return [int(node.node.node_id) for node in nodes]


def test_the_best_nodes_come_first_with_their_scores(reranker: Reranker) -> None:
    postprocessor = CrossforgeReranker(reranker)
    assert isinstance(postprocessor, BaseNodePostprocessor)
    kept = postprocessor.postprocess_nodes(NODES, query_str=QUERY)
    assert ids(kept) == BEST_FIRST[:2]
    assert [node.score for node in kept] == SCORES[:2]


@pytest.mark.parametrize(("top_n", "kept"), [(1, 1), (99, 4), (None, 4)])
def test_top_n_limits_what_is_kept(reranker: Reranker, top_n: int | None, kept: int) -> None:
    assert ids(CrossforgeReranker(reranker, top_n=top_n).postprocess_nodes(NODES, query_str=QUERY)) == BEST_FIRST[:kept]


def test_the_score_of_the_retrieval_is_kept_on_request_and_nodes_stay_as_they_were(reranker: Reranker) -> None:
    kept = CrossforgeReranker(reranker, keep_retrieval_score=True).postprocess_nodes(NODES, query_str=QUERY)
    assert [node.metadata for node in kept] == [{"retrieval_score": pytest.approx(0.1 * i)} for i in BEST_FIRST[:2]]
    assert [node.score for node in NODES] == [pytest.approx(0.1 * i) for i in range(4)]
    assert all(node.metadata == {} for node in NODES)


def test_metadata_that_an_embedding_would_see_is_ranked_too(reranker: Reranker) -> None:
    seen = TextNode(text="berlin", metadata={"title": "the city the city"})
    hidden = TextNode(text="berlin", metadata={"title": "the city the city"}, excluded_embed_metadata_keys=["title"])
    nodes = [NodeWithScore(node=hidden), NodeWithScore(node=seen)]
    kept = CrossforgeReranker(reranker).postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node.node_id for node in kept] == [seen.node_id, hidden.node_id]
    assert kept[1].score == SCORES[2]


def test_the_coroutine_answers_the_same(reranker: Reranker) -> None:
    with MicroBatcher(reranker) as batcher:
        for model in (reranker, batcher):
            postprocessor = CrossforgeReranker(model)
            expected = postprocessor.postprocess_nodes(NODES, query_str=QUERY)
            assert run(postprocessor.apostprocess_nodes(NODES, query_str=QUERY)) == expected


def test_no_nodes_cost_nothing_and_no_query_is_an_error(session: FakeSession, reranker: Reranker) -> None:
    postprocessor = CrossforgeReranker(reranker)
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []
    assert run(postprocessor.apostprocess_nodes([], query_str=QUERY)) == []
    with pytest.raises(InputError, match=r"ranked against a query; got no query\. Give query_bundle="):
        postprocessor.postprocess_nodes(NODES)
    assert session.batches == []


def test_callbacks_and_events_are_told(reranker: Reranker) -> None:
    debug, events = LlamaDebugHandler(print_trace_on_end=False), Events()
    dispatcher = get_dispatcher("crossforge.runtime.adapters.llama_index")
    dispatcher.add_event_handler(events)
    try:
        postprocessor = CrossforgeReranker(reranker, callback_manager=CallbackManager([debug]))
        kept = postprocessor.postprocess_nodes(NODES, query_str=QUERY)
    finally:
        dispatcher.event_handlers.remove(events)
    [(start, end)] = debug.get_event_pairs(CBEventType.RERANKING)
    assert start.payload is not None
    assert (start.payload[EventPayload.QUERY_STR], start.payload[EventPayload.TOP_K]) == (QUERY, 2)
    assert start.payload[EventPayload.MODEL_NAME] == "tiny"
    assert end.payload == {EventPayload.NODES: kept}
    first, last = events.seen
    assert isinstance(first, ReRankStartEvent)
    assert (first.query, first.top_n, first.model_name, ids(first.nodes)) == (QUERY, 2, "tiny", [0, 1, 2, 3])
    assert isinstance(last, ReRankEndEvent)
    assert ids(last.nodes) == BEST_FIRST[:2]


def test_it_is_written_down_and_read_back(bundle: Path, bundle_order: list[int]) -> None:
    written = CrossforgeReranker(bundle, top_n=3, provider="cpu", precision="fp32", keep_retrieval_score=True)
    fields = written.to_dict()
    assert fields["class_name"] == "CrossforgeReranker"
    read = CrossforgeReranker.from_dict(fields)
    assert (read.model, read.top_n, read.precision, read.keep_retrieval_score) == (str(bundle), 3, "fp32", True)
    assert ids(read.postprocess_nodes(NODES, query_str=QUERY)) == bundle_order[:3]
    written.close()
    read.close()


def test_what_cannot_be_is_refused(reranker: Reranker, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="top_k is too small; got 0"):
        CrossforgeReranker(reranker, top_n=0)
    with pytest.raises(BundleNotFoundError, match="crossforge export"):
        CrossforgeReranker(tmp_path / "nothing")


def test_it_postprocesses_in_a_query_engine(reranker: Reranker) -> None:
    index = VectorStoreIndex([node.node for node in NODES if node.text], embed_model=MockEmbedding(embed_dim=4))
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=3),
        llm=MockLLM(),
        node_postprocessors=[CrossforgeReranker(reranker, top_n=2)],
    )
    assert ids(engine.query(QUERY).source_nodes) == BEST_FIRST[:2]
    assert ids(run(engine.aquery(QUERY)).source_nodes) == BEST_FIRST[:2]
