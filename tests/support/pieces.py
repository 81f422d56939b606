"""Small vocabularies of WordPiece and Unigram that are the same in every process.

The trainers that tokenizers has for these two break ties by the order of a hash table, which differs from run to run: a
test on what they make is a test on chance. Its trainer of byte pairs does not, so the pieces come from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log

from tokenizers import AddedToken, Tokenizer, models, trainers


def fill_word_piece(tokenizer: Tokenizer, texts: Iterable[str], *, size: int, special_tokens: Sequence[str]) -> None:
    """Give a tokenizer a WordPiece model of the texts; ``[UNK]`` is unknown, and no word of their characters is."""
    counted: Counter[str] = Counter()
    characters: set[str] = set()
    for pieces in _words_in_pieces(tokenizer, texts, size=size):
        counted.update(piece if place == 0 else f"##{piece}" for place, piece in enumerate(pieces))
        characters.update(*pieces)
    spelling = [mark + character for mark in ("", "##") for character in sorted(characters)]
    vocabulary = [*special_tokens, *spelling, *_by_frequency(counted, without=spelling)][:size]
    tokenizer.model = models.WordPiece({piece: i for i, piece in enumerate(vocabulary)}, unk_token="[UNK]")
    _add_special(tokenizer, special_tokens)


def fill_unigram(
    tokenizer: Tokenizer, texts: Iterable[str], *, size: int, special_tokens: Sequence[str], unknown: str
) -> None:
    """Give a tokenizer a Unigram model of the texts: each piece scores the logarithm of its share."""
    counted: Counter[str] = Counter()
    for pieces in _words_in_pieces(tokenizer, texts, size=size):
        counted.update(pieces)
        counted.update({character: 0 for piece in pieces for character in piece})
    total = sum(counted.values())
    scored = [(piece, log((counted[piece] + 0.5) / total)) for piece in _by_frequency(counted)]
    tokenizer.model = models.Unigram([(token, 0.0) for token in special_tokens] + scored, special_tokens.index(unknown))
    _add_special(tokenizer, special_tokens)


def _words_in_pieces(tokenizer: Tokenizer, texts: Iterable[str], *, size: int) -> list[list[str]]:
    """The words of the texts as this tokenizer would part them, in the pieces of ``size`` byte pairs."""
    parted = [tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)) for text in texts]
    words = [word for words in parted for word, _ in words]
    pairs = Tokenizer(models.BPE())
    pairs.train_from_iterator(words, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    return [pairs.encode(word).tokens for word in words]


def _by_frequency(counted: Counter[str], *, without: Sequence[str] = ()) -> list[str]:
    return sorted(counted.keys() - set(without), key=lambda piece: (-counted[piece], piece))


def _add_special(tokenizer: Tokenizer, tokens: Sequence[str]) -> None:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
