"""What every adapter ranks with: a bundle in this process, asked from a thread or from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from crossforge.runtime.microbatch import MicroBatcher
from crossforge.runtime.ranking import RankedPassage, check_top_k, rank_passages
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.scored import ScoredPairs, warn_of_losses

Model = str | Path | Reranker | MicroBatcher
"""A bundle's folder, or what runs one already."""


class LocalRanker:
    """Ranks passages with a model of this process. Safe to use from several threads and event loops.

    Args:
        model: A bundle's folder, which is loaded and closed here; or a reranker or micro-batcher that is open, which stays
            its owner's. A micro-batcher computes concurrent calls together.
        provider: As for :meth:`Reranker.load`; only for a folder.
        precision: As for :meth:`Reranker.load`; only for a folder.

    Raises:
        BundleError: The bundle is missing, damaged, or not understood.
        InputError: An unknown provider or precision.
        MachineError: This machine cannot run it.
        EngineError: The model does not load.
    """

    def __init__(self, model: Model, *, provider: str, precision: str) -> None:
        self._batcher = model if isinstance(model, MicroBatcher) else None
        self._owned: Reranker | None = None
        if isinstance(model, MicroBatcher):
            self._reranker = model.reranker
        elif isinstance(model, Reranker):
            self._reranker = model
        else:
            self._reranker = self._owned = Reranker.load(model, provider=provider, precision=precision)
        self.name = str(model) if self._owned else self._reranker.manifest.source.id
        """The folder, or what an open model was made of."""

    def rank(self, query: str, passages: Sequence[str], top_k: int | None) -> list[RankedPassage]:
        """Rank passages as :meth:`Reranker.rank` does, and raise what it raises.

        Warns:
            TruncationWarning: Text was cut.
        """
        check_top_k(top_k)
        batcher = self._batcher
        scored = batcher.submit(query, passages).result() if batcher else self._score(query, passages)
        return self._ranked(passages, scored, top_k)

    async def rank_async(self, query: str, passages: Sequence[str], top_k: int | None) -> list[RankedPassage]:
        """As :meth:`rank`, without holding up the event loop. Cancelling drops what a micro-batcher did not compute."""
        check_top_k(top_k)
        if self._batcher is None:
            scored = await asyncio.to_thread(self._score, query, passages)
        else:
            scored = await asyncio.wrap_future(self._batcher.schedule(query, passages))
        return self._ranked(passages, scored, top_k)

    def close(self) -> None:
        """Free the model, if it was loaded here."""
        if self._owned is not None:
            self._owned.close()

    def _score(self, query: str, passages: Sequence[str]) -> ScoredPairs:
        return self._reranker.score_pairs([(query, passage) for passage in passages])

    def _ranked(self, passages: Sequence[str], scored: ScoredPairs, top_k: int | None) -> list[RankedPassage]:
        warn_of_losses(scored)
        return rank_passages(passages, self._reranker.relevance(scored.logits), scored.truncated, top_k=top_k)
