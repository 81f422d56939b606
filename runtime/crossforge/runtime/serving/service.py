"""What every dialect calls: find the model, keep the limits, score, and hear of a client that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from crossforge.profiles import Activation, CrossforgeError, DeadlineError
from crossforge.runtime.activation import Floats
from crossforge.runtime.scored import ScoredPairs
from crossforge.runtime.serving.connections import Connections
from crossforge.runtime.serving.errors import Kind, ProblemError, problem_of
from crossforge.runtime.serving.facts import facts_of
from crossforge.runtime.serving.metrics import Metrics
from crossforge.runtime.serving.models import ServedModel
from crossforge.runtime.serving.settings import ServiceSettings
from crossforge.runtime.tokenization import EncodedPairs
from crossforge.runtime.windows import Chunking

_GRACE_S = 1.0
"""Beyond the deadline, for a model that does not notice it: a worker keeps deadlines between batches."""


class ClientGoneError(Exception):
    """The client went away before its request was answered."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a request's pairs came to."""

    model: ServedModel
    name: str
    """What the request called the model, or its first name."""
    scored: ScoredPairs
    relevance: Floats
    """float32 [n]: what ranks; see :meth:`Reranker.relevance`."""

    def best_first(self, top_n: int | None = None) -> list[int]:
        """Positions in the request, best first; ties go to the pair that came first."""
        order: NDArray[np.intp] = np.argsort(-self.relevance, kind="stable")
        return [int(i) for i in order[:top_n]]

    def bounded(self) -> list[float]:
        """Scores between 0 and 1: the sigmoid of a single label, else the ranking label's probability."""
        labels = self.scored.logits.shape[1]
        return self._activated(Activation.SIGMOID if labels == 1 else Activation.SOFTMAX)

    def predicted(self) -> list[float]:
        """Scores by the activation that the model was published with."""
        return self._activated(None)

    def raw(self) -> list[float]:
        """Scores without any activation, as :meth:`Reranker.score` gives them."""
        return [float(score) for score in self.relevance]

    @property
    def tokens(self) -> int:
        """Tokens of all pairs, special tokens included and padding left out."""
        return int(self.scored.token_counts.sum())

    def _activated(self, activation: Activation | None) -> list[float]:
        reranker = self.model.reranker
        kind = reranker.manifest.scoring.activation if activation is None else activation
        return [float(score) for score in reranker.relevance(self.scored.logits, activation=kind)]


class Service:
    """The models, the limits, and whether requests are taken. One for each application.

    Args:
        models: Each by its name; the first answers requests that name none.
        settings: Of the service.
        metrics: Counts what happens.
        connections: Those that are open, if the server tells.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        settings: ServiceSettings,
        metrics: Metrics,
        connections: Connections,
    ) -> None:
        self.models = dict(models)
        self.settings = settings
        self.metrics = metrics
        self.connections = connections
        self.ready = False
        """Warmed up, and not closed."""
        self.draining = False
        """Told to stop: what was taken is answered, and nothing else is taken."""
        self.in_flight = 0

    def find_model(self, name: str | None) -> tuple[str, ServedModel]:
        """The model of a name, and the name; the first one if there is none.

        Raises:
            ProblemError: No model is called so.
        """
        chosen = name or next(iter(self.models))
        if chosen not in self.models:
            served = ", ".join(self.models)
            raise ProblemError(
                Kind.NOT_FOUND, f"no model is called {chosen[:100]!r}; served: {served}. Start it as {chosen[:100]}=BUNDLE."
            )
        return chosen, self.models[chosen]

    async def score(
        self,
        request: Request,
        model: str | None,
        query: str,
        passages: Sequence[str],
        *,
        cut: bool = True,
        max_passage_tokens: int | None = None,
        chunking: Chunking | None = None,
    ) -> Scores:
        """Score the passages of one query.

        Args:
            request: Whose client may go away.
            model: Its name, if the request has one.
            query: A text.
            passages: At least one.
            cut: Cut what the model cannot read whole; otherwise refuse it.
            max_passage_tokens: Cut passages to so many tokens.
            chunking: Split passages that are too long, into no more tokens than may wait.

        Raises:
            ProblemError: It is not scored, and why.
            ClientGoneError: Nobody waits for it any more.
        """
        name, served = self.find_model(model)
        return await self.score_with(
            request, name, served, query, passages, cut=cut, max_passage_tokens=max_passage_tokens, chunking=chunking
        )

    async def score_with(
        self,
        request: Request,
        name: str,
        served: ServedModel,
        query: str,
        passages: Sequence[str],
        *,
        cut: bool = True,
        max_passage_tokens: int | None = None,
        chunking: Chunking | None = None,
    ) -> Scores:
        """Score with a model that is at hand, under a name for log and metrics; see :meth:`score`."""
        self._check(request, name, [query], passages)
        tokenizer = served.reranker.tokenizer
        chunk = None if chunking is None else replace(chunking, max_tokens=self.settings.max_queue_tokens)

        def encode() -> EncodedPairs:
            pairs = tokenizer.encode(query, passages, max_passage_tokens=max_passage_tokens, chunk=chunk)
            return pairs if cut else _uncut(pairs, served)

        return await self._score(request, name, served, encode, len(passages))

    async def score_pairs(
        self, request: Request, model: str | None, pairs: Sequence[tuple[str, str]], *, cut: bool = True
    ) -> Scores:
        """Score (query, passage) pairs of any queries; see :meth:`score`."""
        name, served = self.find_model(model)
        self._check(request, name, [query for query, _ in pairs], [passage for _, passage in pairs])
        tokenizer = served.reranker.tokenizer

        def encode() -> EncodedPairs:
            encoded = tokenizer.encode_pairs(pairs)
            return encoded if cut else _uncut(encoded, served)

        return await self._score(request, name, served, encode, len(pairs))

    async def _score(
        self, request: Request, name: str, served: ServedModel, encode: Callable[[], EncodedPairs], count: int
    ) -> Scores:
        timeout_s = self.settings.timeout_s
        future = served.scorer.schedule_encoding(encode, count=count, deadline_s=timeout_s)
        try:
            scored = await _unless_gone(request, future, timeout_s + _GRACE_S)
            relevance = served.reranker.relevance(scored.logits)
        except CrossforgeError as error:
            problem = problem_of(error, wait_s=served.scorer.estimate_wait_s())
            raise ProblemError(problem.kind, problem.message, retry_after_s=problem.retry_after_s) from error
        facts = facts_of(request.scope)
        facts.tokens, facts.truncated = int(scored.token_counts.sum()), int(scored.truncated.sum())
        facts.times = scored.times
        return Scores(model=served, name=name, scored=scored, relevance=relevance)

    def _check(self, request: Request, name: str, queries: Sequence[str], passages: Sequence[str]) -> None:
        facts = facts_of(request.scope)
        facts.model, facts.passages = name, len(passages)
        if not passages:
            raise ProblemError(Kind.EMPTY, "there is nothing to rank; send at least one passage")
        most = self.settings.max_passages
        if len(passages) > most:
            raise ProblemError(
                Kind.TOO_LARGE, f"too many passages; got {len(passages):,}; allowed: up to {most:,} a request"
            )
        longest = max(max(map(len, queries)), max(map(len, passages)))
        if longest > self.settings.max_text_chars:
            raise ProblemError(
                Kind.TOO_LARGE,
                f"a text is too long; got {longest:,} characters; allowed: up to {self.settings.max_text_chars:,}. "
                "Split it into passages.",
            )


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


def _uncut(pairs: EncodedPairs, served: ServedModel) -> EncodedPairs:
    """The pairs, if the model reads all of them whole."""
    truncated = pairs.truncated if pairs.windows is None else pairs.truncated[pairs.windows.first_row]
    if truncated.any():
        first = int(np.flatnonzero(truncated)[0])
        contract = served.reranker.tokenizer.truncation
        share = "" if contract.is_symmetric else f", up to {contract.query_max_length} of them the query's"
        raise ProblemError(
            Kind.TOO_LONG,
            f"{int(truncated.sum())} of {len(truncated)} pairs are too long for the model, pair {first} first; allowed: "
            f"{contract.max_length} tokens a pair{share}. "
            "Send shorter texts, or ask for truncation.",
        )
    return pairs


async def _unless_gone(request: Request, future: Future[ScoredPairs], timeout_s: float) -> ScoredPairs:
    """Wait for the scores, the deadline, or the client's going away, whichever is first; the latter two cancel the rest."""
    scores = asyncio.wrap_future(future)
    gone: asyncio.Future[None] = asyncio.ensure_future(_wait_until_gone(request))
    try:
        waiting: set[asyncio.Future[Any]] = {scores, gone}
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if scores.done():
            return scores.result()
        if gone.done():
            raise ClientGoneError
        raise DeadlineError("the deadline passed and the model did not answer", fix="Send less, or allow more time.")
    finally:
        scores.cancel()
        gone.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
