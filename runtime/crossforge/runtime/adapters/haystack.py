"""A bundle as a Haystack component."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from crossforge.profiles import InputError, MissingPackageError
from crossforge.runtime.adapters.local import LocalRanker, Model
from crossforge.runtime.precision import AUTO
from crossforge.runtime.ranking import RankedPassage, check_top_k

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise MissingPackageError("haystack-ai", extra="haystack", purpose="The reranker for Haystack") from error


@component
class CrossforgeReranker:
    """Keeps the documents that suit a query best, best first; ``score`` becomes the raw relevance.

    Documents that are given are not changed; of several with one id, the one with the highest score is ranked. Blank
    queries are refused. The bundle is loaded by ``warm_up``, which a pipeline calls, and at the latest by ``run``.

    Args:
        model: A bundle's folder; or a Reranker or MicroBatcher that is open and stays its owner's.
        top_k: Documents to keep; None keeps all.
        meta_fields_to_embed: Fields of ``meta`` whose values go before a document's content.
        embedding_separator: Stands between them.
        provider: ``auto`` or the name of an execution provider; only for a folder.
        precision: ``auto`` or a variant's name; only for a folder.

    Raises:
        InputError: ``top_k`` is below 1.
    """

    def __init__(
        self,
        model: Model,
        *,
        top_k: int | None = 10,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
        provider: str = AUTO,
        precision: str = AUTO,
    ) -> None:
        check_top_k(top_k)
        self.model = model
        self.top_k = top_k
        self.meta_fields_to_embed = tuple(meta_fields_to_embed)
        self.embedding_separator = embedding_separator
        self.provider = provider
        self.precision = precision
        self._ranker: LocalRanker | None = None

    def warm_up(self) -> None:
        """Load the bundle, if it is not loaded; raises as :meth:`Reranker.load`."""
        self._loaded()

    def close(self) -> None:
        """Free the model, if it was loaded here; the next run loads it again."""
        if self._ranker is not None:
            self._ranker.close()
            self._ranker = None

    def to_dict(self) -> dict[str, Any]:
        """The component as plain values.

        Raises:
            InputError: The model is an open one, which cannot be written down.
        """
        if not isinstance(self.model, str | Path):
            raise InputError(
                "an open model cannot be written down",
                got=type(self.model).__name__,
                allowed="a bundle's folder",
                fix="Give the component the folder instead.",
            )
        return default_to_dict(
            self,
            model=str(self.model),
            top_k=self.top_k,
            meta_fields_to_embed=list(self.meta_fields_to_embed),
            embedding_separator=self.embedding_separator,
            provider=self.provider,
            precision=self.precision,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A component from what :meth:`to_dict` gave."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Rank documents.

        Args:
            query: A text that is not blank.
            documents: Any number of documents.
            top_k: Instead of the component's.

        Returns:
            ``documents``: copies of the best, best first.
        """
        if not documents:
            return {"documents": []}
        distinct = _distinct(documents)
        rows = self._loaded().rank(query, self._texts(distinct), self._limit(top_k))
        return {"documents": _scored(distinct, rows)}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """As :meth:`run`, without holding up the event loop."""
        if not documents:
            return {"documents": []}
        distinct = _distinct(documents)
        rows = await self._loaded().rank_async(query, self._texts(distinct), self._limit(top_k))
        return {"documents": _scored(distinct, rows)}

    def _loaded(self) -> LocalRanker:
        if self._ranker is None:
            self._ranker = LocalRanker(self.model, provider=self.provider, precision=self.precision)
        return self._ranker

    def _limit(self, top_k: int | None) -> int | None:
        return self.top_k if top_k is None else top_k

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        return [
            self.embedding_separator.join(
                [*(str(doc.meta[name]) for name in self.meta_fields_to_embed if doc.meta.get(name)), doc.content or ""]
            )
            for doc in documents
        ]


def _distinct(documents: Sequence[Document]) -> list[Document]:
    """Documents without those of the same id but a lower score, in the order of their first appearance."""
    best: dict[str, Document] = {}
    for document in documents:
        known = best.get(document.id)
        if known is None or _score_of(document) > _score_of(known):
            best[document.id] = document
    return list(best.values())


def _score_of(document: Document) -> float:
    return float("-inf") if document.score is None else document.score


def _scored(documents: Sequence[Document], rows: Sequence[RankedPassage]) -> list[Document]:
    return [replace(documents[row.corpus_id], score=row.score) for row in rows]
