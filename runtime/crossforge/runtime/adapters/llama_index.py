"""A bundle as LlamaIndex's node postprocessor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crossforge.profiles import InputError, MissingPackageError
from crossforge.runtime.adapters.local import LocalRanker, Model
from crossforge.runtime.precision import AUTO
from crossforge.runtime.ranking import RankedPassage, check_top_k

try:
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined] # public, but not exported
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise MissingPackageError("llama-index-core", extra="llama-index", purpose="The reranker for LlamaIndex") from error

RETRIEVAL_SCORE = "retrieval_score"
"""Where LlamaIndex's rerankers keep the score that a node came with."""

dispatcher = get_dispatcher(__name__)


class CrossforgeReranker(BaseNodePostprocessor):
    """Keeps the nodes that suit a query best, best first; ``score`` becomes the raw relevance.

    A node's text is what an embedding model would see of it (``MetadataMode.EMBED``), as for LlamaIndex's own rerankers.
    Nodes that are given are not changed. Blank queries are refused. The bundle is loaded when this is made.

    Args:
        model: A bundle's folder; or a Reranker or MicroBatcher that is open and stays its owner's.
        top_n: Nodes to keep; None keeps all.
        keep_retrieval_score: Keep the score that a node came with in ``metadata["retrieval_score"]``.
        provider: ``auto`` or the name of an execution provider; only for a folder.
        precision: ``auto`` or a variant's name; only for a folder.
        callback_manager: Told when a reranking begins and ends.

    Raises:
        CrossforgeError: As :meth:`Reranker.load` and :meth:`Reranker.rank`.
    """

    model: str = Field(description="The bundle's folder.")
    top_n: int | None = Field(description="Nodes to keep; None keeps all.")
    keep_retrieval_score: bool = Field(description="Whether to keep the score that a node came with in its metadata.")
    provider: str = Field(description="Where to run.")
    precision: str = Field(description="The variant to run.")
    _ranker: LocalRanker = PrivateAttr()

    def __init__(
        self,
        model: Model,
        *,
        top_n: int | None = 2,
        keep_retrieval_score: bool = False,
        provider: str = AUTO,
        precision: str = AUTO,
        callback_manager: CallbackManager | None = None,
        **fields: Any,
    ) -> None:
        check_top_k(top_n)
        ranker = LocalRanker(model, provider=provider, precision=precision)
        fields |= {"model": ranker.name, "top_n": top_n, "keep_retrieval_score": keep_retrieval_score}
        fields |= {"provider": provider, "precision": precision}
        super().__init__(callback_manager=callback_manager or CallbackManager(), **fields)
        self._ranker = ranker

    @classmethod
    def class_name(cls) -> str:
        """The name that a serialized postprocessor carries."""
        return "CrossforgeReranker"

    def close(self) -> None:
        """Free the model, if it was loaded here."""
        self._ranker.close()

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None) -> list[NodeWithScore]:
        query = _query_of(query_bundle)
        if not nodes:
            return []
        with self._reported(nodes, query) as answer:
            answer += self._scored(nodes, self._ranker.rank(query, _texts(nodes), self.top_n))
        return answer

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query_of(query_bundle)
        if not nodes:
            return []
        with self._reported(nodes, query) as answer:
            answer += self._scored(nodes, await self._ranker.rank_async(query, _texts(nodes), self.top_n))
        return answer

    @contextmanager
    def _reported(self, nodes: list[NodeWithScore], query: str) -> Iterator[list[NodeWithScore]]:
        """Tell LlamaIndex's two systems of observation when a reranking begins, and what it found."""
        top_n = len(nodes) if self.top_n is None else self.top_n
        answer: list[NodeWithScore] = []
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield answer
            event.on_end(payload={EventPayload.NODES: answer})
        dispatcher.event(ReRankEndEvent(nodes=answer))

    def _scored(self, nodes: list[NodeWithScore], rows: list[RankedPassage]) -> list[NodeWithScore]:
        answer = []
        for row in rows:
            given = nodes[row.corpus_id]
            node = given.node
            if self.keep_retrieval_score:
                node = node.model_copy(update={"metadata": {**node.metadata, RETRIEVAL_SCORE: given.score}})
            answer.append(NodeWithScore(node=node, score=row.score))
        return answer


def _query_of(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise InputError("nodes are ranked against a query", got="no query", fix="Give query_bundle= or query_str=.")
    return query_bundle.query_str


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
