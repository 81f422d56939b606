"""What a reranker or an embedder answers beside its numbers: what was cut, what was not understood, what it cost."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import NonFiniteLogitsError, Precision, TruncationWarning, UnknownTokensWarning
from crossforge.runtime.activation import Floats, relevance
from crossforge.runtime.timing import RequestTimes
from crossforge.runtime.tokenization import EncodedPairs
from crossforge.runtime.windows import PassageWindows, Window


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of ``n`` pairs, or of ``n`` texts by themselves, on the way to their numbers."""

    item: ClassVar[str]
    """What a warning calls one of them."""
    numbers: ClassVar[str]
    """What a warning calls the numbers."""
    told_by: ClassVar[str]
    """The method whose result says which of them a warning is about."""

    truncated: NDArray[np.bool_]
    """Those of which the model did not see all: bool [n]."""
    unknown_tokens: NDArray[np.int32]
    """Tokens of each that stand for text the tokenizer has no token for: int32 [n]."""
    mostly_unknown: NDArray[np.bool_]
    """Those with a text that is mostly words that the tokenizer has no token for, symbols such as emoji aside: bool [n]."""
    token_counts: NDArray[np.int32]
    """Tokens of each, special tokens and prompt included, of all windows of a pair together: int32 [n]."""
    batches: int
    """It took so many for those that differ; equal ones are computed once."""
    padding_waste: float
    """Share of the computed tokens that were padding, 0.0 to 1.0."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedTexts(Outcome):
    """Embeddings, with what happened on the way to them."""

    item = "text"
    numbers = "embeddings"
    told_by = "embed"

    vectors: Floats
    """float32 [n, dimension], in the texts' order."""


@dataclass(frozen=True, kw_only=True)
class ScoredPairs(Outcome):
    """Logits, with what happened on the way to them."""

    item = "pair"
    numbers = "scores"
    told_by = "score_pairs"

    logits: Floats
    """float32 [n, labels]."""
    query_truncated: NDArray[np.bool_]
    """Pairs of whose query the model did not see all: bool [n]."""
    times: RequestTimes | None = None
    """Where the time went, if a micro-batcher scored them."""
    windows: tuple[Window | None, ...] | None = None
    """The window that gave each pair's logits, None where its passage fits: [n]. None if passages were not to be split."""

    @classmethod
    def of(
        cls,
        asked: EncodedPairs,
        logits: Floats,
        *,
        batches: int,
        padding_waste: float,
        ranking_label: int | None,
        times: RequestTimes | None = None,
    ) -> ScoredPairs:
        """What was computed of the pairs that were asked for, float32 [n, labels]; ``ranking_label`` chooses windows."""
        scored = cls(
            logits=logits,
            truncated=asked.truncated,
            query_truncated=asked.query_truncated,
            unknown_tokens=asked.unknown_tokens,
            mostly_unknown=asked.mostly_unknown,
            token_counts=asked.lengths,
            batches=batches,
            padding_waste=padding_waste,
            times=times,
        )
        if asked.windows is None or ranking_label is None:
            return scored
        return scored.choose_windows(asked.windows, ranking_label)

    def choose_windows(self, windows: PassageWindows, ranking_label: int) -> ScoredPairs:
        """Make of one row a window one row a pair: that of the window which ranks best.

        Args:
            windows: Which rows belong together.
            ranking_label: The label that ranks.
        """
        best = windows.find_best(relevance(self.logits, ranking_label))
        return replace(
            self,
            logits=self.logits[best],
            truncated=self.truncated[best],
            query_truncated=self.query_truncated[best],
            unknown_tokens=self.unknown_tokens[best],
            mostly_unknown=self.mostly_unknown[best],
            token_counts=np.add.reduceat(self.token_counts, windows.first_row) if len(best) else self.token_counts,
            windows=windows.describe(best),
        )


def check_finite(rows: Floats, precision: Precision, *, item: str = "pair") -> None:
    """Check what a variant answered, float32 [n, labels] or [n, dimension].

    Args:
        rows: One for each pair or text.
        precision: The variant.
        item: What an error calls what a row is of.

    Raises:
        NonFiniteLogitsError: A number is NaN or infinite.
    """
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise NonFiniteLogitsError(
            f"the {precision} variant answered NaN or infinity for {len(bad)} of {len(rows)} {item}s",
            got=f"{item} {bad[0]} first",
            fix="Use the fp32 variant; if it does this too, the checkpoint itself is broken.",
        )


def warn_of_losses(outcome: Outcome, *, truncation: bool = True) -> None:
    """Warn the caller's caller that the model did not see a text, or could not read it.

    Args:
        outcome: What was scored or embedded.
        truncation: Whether to tell what was cut; false where the result itself says so.
    """
    of_all, told_by = f"of {len(outcome.truncated)} {outcome.item}s", f"{outcome.told_by}() says which"
    if truncation and (count := int(outcome.truncated.sum())):
        warnings.warn(
            f"{count} {of_all} were too long for the model and were cut; {told_by}", TruncationWarning, stacklevel=3
        )
    if count := int(outcome.mostly_unknown.sum()):
        warnings.warn(
            f"{count} {of_all} are mostly text that the model has no token for, so their {outcome.numbers} mean little; "
            f"{told_by}",
            UnknownTokensWarning,
            stacklevel=3,
        )
