"""The reranker in LangChain."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from crossforge.profiles import BundleNotFoundError, InputError
from crossforge.runtime import FakeSession, Reranker
from crossforge.runtime.adapters.langchain import CrossforgeReranker
from crossforge.runtime.microbatch import MicroBatcher

from .conftest import BEST_FIRST, QUERY, SCORES, TEXTS, run

DOCUMENTS = [Document(page_content=text, metadata={"source": i}, id=str(i)) for i, text in enumerate(TEXTS)]


class Events(BaseCallbackHandler):
    def __init__(self) -> None:
        self.found: list[int] = []

    def on_retriever_end(self, documents: list[Document], **_: object) -> None:
        self.found.append(len(documents))


@pytest.fixture
def store() -> InMemoryVectorStore:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents(DOCUMENTS)
    return store


def sources(documents: object) -> list[int]:
    assert isinstance(documents, list)
    return [document.metadata["source"] for document in documents]


def test_the_best_documents_come_first_with_their_scores(reranker: Reranker) -> None:
    compressor = CrossforgeReranker(model=reranker)
    assert isinstance(compressor, BaseDocumentCompressor)
    kept = compressor.compress_documents(DOCUMENTS, QUERY)
    assert sources(kept) == BEST_FIRST[:3]
    assert [document.metadata["relevance_score"] for document in kept] == SCORES[:3]
    assert all(type(document.metadata["relevance_score"]) is float for document in kept)
    assert [(document.id, document.page_content) for document in kept] == [(str(i), TEXTS[i]) for i in BEST_FIRST[:3]]


def test_documents_that_are_given_stay_as_they_were(reranker: Reranker) -> None:
    CrossforgeReranker(model=reranker).compress_documents(DOCUMENTS, QUERY)
    assert all(document.metadata == {"source": i} for i, document in enumerate(DOCUMENTS))


@pytest.mark.parametrize(("top_n", "kept"), [(1, 1), (3, 3), (99, 4), (None, 4)])
def test_top_n_limits_what_is_kept(reranker: Reranker, top_n: int | None, kept: int) -> None:
    compressor = CrossforgeReranker(model=reranker, top_n=top_n)
    assert sources(compressor.compress_documents(DOCUMENTS, QUERY)) == BEST_FIRST[:kept]


def test_the_coroutine_answers_the_same(reranker: Reranker) -> None:
    with MicroBatcher(reranker) as batcher:
        for model in (reranker, batcher):
            compressor = CrossforgeReranker(model=model)
            expected = compressor.compress_documents(DOCUMENTS, QUERY)
            assert run(compressor.acompress_documents(DOCUMENTS, QUERY)) == expected


def test_no_documents_cost_nothing(session: FakeSession, reranker: Reranker) -> None:
    compressor = CrossforgeReranker(model=reranker)
    assert compressor.compress_documents([], QUERY) == run(compressor.acompress_documents([], QUERY)) == []
    assert session.batches == []


def test_a_bundle_is_loaded_when_the_reranker_is_made(bundle: Path, bundle_order: list[int], tmp_path: Path) -> None:
    compressor = CrossforgeReranker(model=bundle, top_n=None, provider="cpu", precision="fp32")
    assert sources(compressor.compress_documents(DOCUMENTS, QUERY)) == bundle_order
    compressor.close()
    with pytest.raises(BundleNotFoundError, match="crossforge export"):
        CrossforgeReranker(model=str(tmp_path / "nothing"))


def test_options_that_cannot_be_are_refused(reranker: Reranker) -> None:
    with pytest.raises(InputError, match="top_k is too small; got 0"):
        CrossforgeReranker(model=reranker, top_n=0)
    with pytest.raises(ValidationError, match="top_k"):
        CrossforgeReranker(model=reranker, top_k=3)  # type: ignore[call-arg]


def test_it_compresses_behind_a_retriever(reranker: Reranker, store: InMemoryVectorStore) -> None:
    events = Events()
    retriever = ContextualCompressionRetriever(
        base_compressor=CrossforgeReranker(model=reranker, top_n=2),
        base_retriever=store.as_retriever(search_kwargs={"k": 4}),
    )
    assert sources(retriever.invoke(QUERY, config={"callbacks": [events]})) == BEST_FIRST[:2]
    assert events.found == [4, 2]
    assert sources(run(retriever.ainvoke(QUERY))) == BEST_FIRST[:2]


def test_it_is_a_step_of_a_chain(reranker: Reranker, store: InMemoryVectorStore) -> None:
    compressor = CrossforgeReranker(model=reranker, top_n=1)
    found = RunnableParallel(documents=store.as_retriever(search_kwargs={"k": 4}), query=RunnablePassthrough())
    chain = found | RunnableLambda(lambda step: compressor.compress_documents(**step))
    assert [sources(answer) for answer in chain.batch([QUERY, QUERY])] == [BEST_FIRST[:1]] * 2
