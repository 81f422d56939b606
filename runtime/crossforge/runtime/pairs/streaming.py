"""Scores of any number of pairs in bounded memory: a chunk at a time, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from crossforge.profiles import Activation
from crossforge.runtime.activation import Floats
from crossforge.runtime.pairs.records import TextPair
from crossforge.runtime.reranker import Reranker

CHUNK_PAIRS = 4096
"""Enough that batches of pairs of one length fill, few enough to hold."""
CHUNK_CHARS = 2**23
"""Pairs of whole documents make a smaller chunk."""


@dataclass(frozen=True, kw_only=True)
class ScoredPair:
    """A pair and what the model says of it."""

    pair: TextPair
    score: float
    """By :func:`similarity_activation`, or the activation that was asked for."""
    truncated: bool
    """Whether the model did not see all of it."""
    text1_truncated: bool
    mostly_unknown: bool
    """Whether a text is mostly nothing that the model has a token for."""


def similarity_activation(reranker: Reranker, activation: Activation | None = None) -> Activation:
    """What turns logits into a pair's score: the bundle's activation; for a model with several labels the softmax.

    One logit of several, or its sigmoid, does not order pairs.
    """
    if activation is not None:
        return activation
    scoring = reranker.manifest.scoring
    return scoring.activation if len(scoring.labels) == 1 else Activation.SOFTMAX


def score_stream(
    reranker: Reranker, pairs: Iterable[TextPair], *, activation: Activation | None = None
) -> Iterator[ScoredPair]:
    """Score pairs in their order, holding a chunk of them at a time.

    Within a chunk the runtime sorts by length, computes equal pairs once and tokenizes equal texts once; a chunk's first
    score comes when all of the chunk is computed.

    Args:
        reranker: Scores.
        pairs: Any number.
        activation: Instead of :func:`similarity_activation`.

    Raises:
        InputError: A text cannot be used, or no label of the model ranks.
        NonFiniteLogitsError: The model answered NaN or infinity.
    """
    chosen = similarity_activation(reranker, activation)
    for chunk in cut_chunks(pairs):
        scored = reranker.score_pairs([(pair.text1, pair.text2) for pair in chunk])
        scores: Floats = reranker.relevance(scored.logits, activation=chosen)
        cut, first_cut = scored.truncated.tolist(), scored.query_truncated.tolist()
        for i, (pair, score) in enumerate(zip(chunk, scores.tolist(), strict=True)):
            yield ScoredPair(
                pair=pair,
                score=score,
                truncated=cut[i],
                text1_truncated=first_cut[i],
                mostly_unknown=bool(scored.mostly_unknown[i]),
            )


def score_all(reranker: Reranker, pairs: Iterable[TextPair], *, activation: Activation | None = None) -> np.ndarray:
    """The scores alone: float64 [pairs]; see :func:`score_stream`."""
    return np.fromiter((row.score for row in score_stream(reranker, pairs, activation=activation)), dtype=np.float64)


def cut_chunks(
    pairs: Iterable[TextPair], *, most_pairs: int = CHUNK_PAIRS, most_chars: int = CHUNK_CHARS
) -> Iterator[list[TextPair]]:
    """Pairs in lists of at most so many; one that is longer than ``most_chars`` goes alone."""
    chunk: list[TextPair] = []
    chars = 0
    for pair in pairs:
        length = len(pair.text1) + len(pair.text2)
        if chunk and (len(chunk) == most_pairs or chars + length > most_chars):
            yield chunk
            chunk, chars = [], 0
        chunk.append(pair)
        chars += length
    if chunk:
        yield chunk
