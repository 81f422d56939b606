"""A bundle as LangChain's ``BaseDocumentCompressor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crossforge.profiles import MissingPackageError
from crossforge.runtime.adapters.local import LocalRanker, Model
from crossforge.runtime.precision import AUTO
from crossforge.runtime.ranking import RankedPassage, check_top_k

try:
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import ConfigDict, PrivateAttr
except ImportError as error:
    raise MissingPackageError("langchain-core", extra="langchain", purpose="The reranker for LangChain") from error

if TYPE_CHECKING:
    from langchain_core.callbacks import Callbacks

RELEVANCE_SCORE = "relevance_score"
"""Where LangChain's compressors put a document's score."""


class CrossforgeReranker(BaseDocumentCompressor):
    """Keeps the documents that suit a query best, best first, with their raw relevance in ``metadata["relevance_score"]``.

    Documents that are given are not changed. Blank queries are refused. The bundle is loaded when this is made.

    Args:
        model: A bundle's folder; or a Reranker or MicroBatcher that is open and stays its owner's.
        top_n: Documents to keep; None keeps all.
        provider: ``auto`` or the name of an execution provider; only for a folder.
        precision: ``auto`` or a variant's name; only for a folder.

    Raises:
        CrossforgeError: As :meth:`Reranker.load` and :meth:`Reranker.rank`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True)

    model: Model
    top_n: int | None = 3
    provider: str = AUTO
    precision: str = AUTO
    _ranker: LocalRanker = PrivateAttr()

    def model_post_init(self, _: Any, /) -> None:
        """Load the bundle."""
        check_top_k(self.top_n)
        self._ranker = LocalRanker(self.model, provider=self.provider, precision=self.precision)

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 - a ranking has no steps that call back
    ) -> list[Document]:
        """The best ``top_n`` documents as copies, best first."""
        if not documents:
            return []
        return _scored(documents, self._ranker.rank(query, _texts(documents), self.top_n))

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> list[Document]:
        """As :meth:`compress_documents`, without holding up the event loop."""
        if not documents:
            return []
        return _scored(documents, await self._ranker.rank_async(query, _texts(documents), self.top_n))

    def close(self) -> None:
        """Free the model, if it was loaded here."""
        self._ranker.close()


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


def _scored(documents: Sequence[Document], rows: Sequence[RankedPassage]) -> list[Document]:
    chosen = ((documents[row.corpus_id], row.score) for row in rows)
    return [doc.model_copy(update={"metadata": {**doc.metadata, RELEVANCE_SCORE: score}}) for doc, score in chosen]
