"""Tokens that stand for text which a tokenizer has no token for: a model cannot read what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crossforge.runtime.token_cache import Ids

_NO_CHARACTER = "\U0010ffff"
"""Unicode will never assign it."""
_WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""What sentencepiece puts before a word; a token of its own before a word that has none."""


class UnknownTokens:
    """Finds unknown tokens among the ids of texts.

    Args:
        tokenizer: Whose ids they are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._id = find_unknown_id(tokenizer)
        self._word_mark_id = tokenizer.token_to_id(_WORD_MARK)

    def count(self, texts: Sequence[Ids]) -> NDArray[np.int32]:
        """Unknown tokens of each text: int32 [texts]."""
        if self._id is None or not texts:
            return np.zeros(len(texts), dtype=np.int32)
        # All texts at once: a thousand short passages cost a fraction of a millisecond.
        places = np.flatnonzero(np.concatenate(texts) == self._id)
        ends = np.cumsum([len(ids) for ids in texts])
        owners = np.searchsorted(ends, places, side="right")
        return np.bincount(owners, minlength=len(texts)).astype(np.int32)

    def are_most(self, texts: Sequence[str], kept: Sequence[Ids], unknown: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether more than half of each text's tokens are unknown, its symbols left out: bool [texts].

        Emoji are unknown to most vocabularies and say little; a script that a vocabulary lacks leaves nothing to score.
        """
        lengths = np.asarray([len(ids) for ids in kept], dtype=np.int32)
        for i in np.flatnonzero(unknown).tolist() if self._word_mark_id is not None else ():
            ids = kept[i]
            lengths[i] -= np.count_nonzero((ids[:-1] == self._word_mark_id) & (ids[1:] == self._id))
        mostly = 2 * unknown > lengths
        for i in np.flatnonzero(mostly).tolist():
            symbols = sum(not (word.isascii() or any(char.isalnum() for char in word)) for word in texts[i].split())
            mostly[i] = 2 * (unknown[i] - symbols) > lengths[i] - symbols
        return mostly


def find_unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token that stands for text without a token; None where every text can be spelled.

    Found by watching the model meet a character that no vocabulary holds: a Unigram model does not tell, and reading it
    out of the serialized vocabulary would cost every load a parse of megabytes.
    """
    try:
        tokens = tokenizer.model.tokenize(_NO_CHARACTER)
    except Exception:  # noqa: BLE001 - tokenizers raises bare Exception where there is no unknown token
        return None
    return int(tokens[0].id) if len(tokens) == 1 else None  # byte fallback spells it in four
