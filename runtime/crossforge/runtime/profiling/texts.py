"""Texts of exactly so many tokens.

Real prose, cut, and made up to the exact count with words of one token: prose, because a tokenizer's time depends on what
it reads, and exact, because a row's length should be what the row says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crossforge.profiles import InputError

_STRIDE = 11
"""Words between the beginnings of two texts. Prime to the number of words: each word begins one before any begins two."""

CountTokens = Callable[[Sequence[str]], list[int]]
"""Tokens of each text."""

_PROSE = """
A cross-encoder reads the query and the passage together and answers with one number, which says how well the passage
answers the query. Because every word of the one can attend to every word of the other, it orders passages better than
two vectors that never met, and because nothing can be computed before the query arrives, it costs a pass through the
model for every pair. In a search engine it therefore comes last: a cheap first stage finds a hundred candidates among
millions of documents, and the reranker puts the best of them on top. How many it may read depends on the time that the
user is willing to wait, on the length of the passages and on the machine, whose caches, cores and instructions decide
how close the arithmetic comes to what the hardware could do. The city library of Bergen, for example, keeps 1,250,000
catalogue entries; a question such as "which storms damaged the harbour between 1890 and 1910?" matches some 400 of
them, most of which mention a storm, or a harbour, but not both. Reading them all takes a librarian an afternoon.
"""
_FILLERS = ("the", "a", "of", "and", "is", "city", "word", "x", "1", "?", "。")


def compose_texts(count_tokens: CountTokens, tokens: int, number: int) -> tuple[str, ...]:
    """Make texts of one length, each another: equal passages would be computed once.

    Texts of a handful of tokens repeat when more are asked for than there are ways to begin.

    Args:
        count_tokens: The tokenizer's count, special tokens left out.
        tokens: Tokens of each.
        number: How many texts.

    Raises:
        InputError: The tokenizer has no word that is one token wherever it stands.
    """
    prose = _PROSE.split()
    texts = []
    for i in range(number):
        lap = i // len(prose)
        words = [prose[(i * _STRIDE + k) % len(prose)] for k in range(tokens)]  # a word is a token at least
        texts.append(_compose(count_tokens, [str(lap), *words] if lap else words, tokens))
    return tuple(texts)


def _compose(count_tokens: CountTokens, words: Sequence[str], tokens: int) -> str:
    low, high = 0, tokens
    while low < high:  # the most words that do not exceed the count
        middle = (low + high + 1) // 2
        if count_tokens([" ".join(words[:middle])])[0] <= tokens:
            low = middle
        else:
            high = middle - 1
    for kept in range(low, max(-1, low - 3), -1):
        for filler in _FILLERS:
            if text := _fill(count_tokens, words[:kept], filler, tokens):
                return text
    raise InputError(
        f"cannot make a text of exactly {tokens} tokens with this tokenizer",
        fix="Measure your own texts: --workload FILE.",
    )


def _fill(count_tokens: CountTokens, words: Sequence[str], filler: str, tokens: int) -> str:
    """Words with fillers behind them; blank if that does not come out even."""
    fillers = 0
    for _ in range(3):  # corrected twice: the first word of a text may have more tokens than the same word elsewhere
        text = " ".join([*words, *[filler] * fillers])
        missing = tokens - count_tokens([text])[0]
        if not missing:
            return text
        fillers = max(0, fillers + missing)
    return ""
