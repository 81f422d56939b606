"""The reranker in Haystack."""

from __future__ import annotations

from pathlib import Path

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.core.errors import DeserializationError
from haystack.document_stores.in_memory import InMemoryDocumentStore

from crossforge.profiles import BundleNotFoundError, EngineError, InputError
from crossforge.runtime import FakeSession, Reranker
from crossforge.runtime.adapters.haystack import CrossforgeReranker
from crossforge.runtime.microbatch import MicroBatcher

from .conftest import BEST_FIRST, QUERY, SCORES, TEXTS, run

DOCUMENTS = [Document(id=str(i), content=text, meta={"title": "the city"}, score=0.5) for i, text in enumerate(TEXTS)]


def ids(documents: list[Document]) -> list[int]:
    return [int(document.id) for document in documents]


def make_pipeline(ranker: CrossforgeReranker) -> Pipeline:
    store = InMemoryDocumentStore()
    store.write_documents(DOCUMENTS)
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=4))
    pipeline.add_component("ranker", ranker)
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def test_the_best_documents_come_first_with_their_scores(reranker: Reranker) -> None:
    [(name, ranked)] = CrossforgeReranker(reranker).run(QUERY, DOCUMENTS).items()
    assert name == "documents"
    assert ids(ranked) == BEST_FIRST
    assert [document.score for document in ranked] == SCORES
    assert all(document.score == 0.5 for document in DOCUMENTS)


def test_top_k_of_the_call_wins_over_the_component_s(reranker: Reranker) -> None:
    ranker = CrossforgeReranker(reranker, top_k=2)
    assert ids(ranker.run(QUERY, DOCUMENTS)["documents"]) == BEST_FIRST[:2]
    assert ids(ranker.run(QUERY, DOCUMENTS, top_k=3)["documents"]) == BEST_FIRST[:3]
    for make in (lambda: CrossforgeReranker(reranker, top_k=0), lambda: ranker.run(QUERY, DOCUMENTS, top_k=0)):
        with pytest.raises(InputError, match="top_k is too small; got 0"):
            make()


def test_the_coroutine_answers_the_same(reranker: Reranker) -> None:
    with MicroBatcher(reranker) as batcher:
        for model in (reranker, batcher):
            ranker = CrossforgeReranker(model, top_k=3)
            assert run(ranker.run_async(QUERY, DOCUMENTS)) == ranker.run(QUERY, DOCUMENTS)


def test_no_documents_cost_nothing(session: FakeSession, reranker: Reranker) -> None:
    ranker = CrossforgeReranker(reranker)
    assert ranker.run(QUERY, []) == run(ranker.run_async(QUERY, [])) == {"documents": []}
    assert session.batches == []


def test_a_document_that_came_twice_is_ranked_once(reranker: Reranker) -> None:
    twice = [Document(id="0", content="berlin"), Document(id="0", content="the city", score=0.1), DOCUMENTS[1]]
    ranked = CrossforgeReranker(reranker).run(QUERY, twice)["documents"]
    assert [(document.id, document.content) for document in ranked] == [("1", TEXTS[1]), ("0", "the city")]


def test_fields_of_meta_go_before_the_content(reranker: Reranker) -> None:
    ranker = CrossforgeReranker(reranker, meta_fields_to_embed=["title", "absent"], embedding_separator=" ")
    [ranked] = ranker.run(QUERY, [DOCUMENTS[0]])["documents"]
    assert ranked.score == SCORES[2] + 2
    assert ranked.content == TEXTS[0]


def test_a_document_without_text_ranks_as_an_empty_one(reranker: Reranker) -> None:
    assert [d.score for d in CrossforgeReranker(reranker).run(QUERY, [Document(id="0")])["documents"]] == SCORES[3:]


def test_the_bundle_is_loaded_by_warm_up_and_again_after_close(
    tmp_path: Path, bundle: Path, bundle_order: list[int]
) -> None:
    (tmp_path / "moved").symlink_to(bundle)
    ranker = CrossforgeReranker(tmp_path / "moved")
    ranker.warm_up()
    (tmp_path / "moved").unlink()
    ranker.warm_up()
    assert ids(ranker.run(QUERY, DOCUMENTS)["documents"]) == bundle_order
    ranker.close()
    with pytest.raises(BundleNotFoundError, match="crossforge export"):
        ranker.run(QUERY, DOCUMENTS)


def test_an_open_reranker_is_left_to_its_owner(reranker: Reranker) -> None:
    ranker = CrossforgeReranker(reranker)
    ranker.warm_up()
    ranker.close()
    assert reranker.rank(QUERY, TEXTS)
    reranker.close()
    with pytest.raises(EngineError, match="closed"):
        ranker.run(QUERY, DOCUMENTS)


def test_it_ranks_in_a_pipeline(reranker: Reranker) -> None:
    pipeline = make_pipeline(CrossforgeReranker(reranker, top_k=2))
    data = {"retriever": {"query": "berlin people"}, "ranker": {"query": QUERY}}
    ranked = pipeline.run(data)["ranker"]["documents"]
    assert ids(ranked) == BEST_FIRST[:2]
    assert run(pipeline.run_async(data))["ranker"]["documents"] == ranked


def test_a_pipeline_is_written_down_and_read_back(bundle: Path, bundle_order: list[int]) -> None:
    options = {"top_k": 3, "meta_fields_to_embed": ["absent"], "embedding_separator": " "}
    text = make_pipeline(CrossforgeReranker(str(bundle), provider="cpu", precision="fp32", **options)).dumps()
    with pytest.raises(DeserializationError, match="crossforge"):
        Pipeline.loads(text)
    pipeline = Pipeline.loads(text, allowed_modules=["crossforge.*"])
    ranker = pipeline.get_component("ranker")
    assert (ranker.model, ranker.top_k, ranker.provider, ranker.precision) == (str(bundle), 3, "cpu", "fp32")
    assert (ranker.meta_fields_to_embed, ranker.embedding_separator) == (("absent",), " ")
    assert ids(ranker.run(QUERY, DOCUMENTS)["documents"]) == bundle_order[:3]
    ranker.close()


def test_an_open_model_cannot_be_written_down(reranker: Reranker) -> None:
    with pytest.raises(InputError, match=r"cannot be written down; got Reranker; allowed: a bundle's folder"):
        CrossforgeReranker(reranker).to_dict()
