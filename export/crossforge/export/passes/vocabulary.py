"""A tokenizer that can lose tokens: which ones a corpus uses, which ones must stay beside them, and what is left.

Why a word of the corpus keeps its tokens, though the tokenizer chooses among fewer:

- **WordLevel**: a word is one token, there or not.
- **WordPiece** takes the longest piece that fits, again and again. The pieces that it took are all left, and no longer one
  can appear. A word that ended as the unknown token must fail again: the pieces that it took before it failed are kept
  too, so it fails at the same place.
- **Unigram** takes the path of best total score. The path of the corpus is left, its rivals only vanish, with one
  exception: a character that was a piece of its own and is gone may now be crossed as unknown. An unknown character costs
  the vocabulary's lowest score less a penalty. The lowest-scored piece is therefore kept, so crossing as unknown stays worse
  than the piece that vanished, which did not win either.
- **BPE** applies the merge of best rank, again and again. With every merge that makes a kept token, and the two halves of
  each kept in turn, all the merges that a word went through are left; at each step the best of all merges is still the best
  of fewer. Bytes are never removed, nor other symbols that no merge makes, unless an unknown token stands in for them.

All this can be checked on every text: :func:`check_same_tokens`.

What other text becomes depends on the tokenizer: a WordPiece word or a Unigram character with no piece left becomes the
unknown token, and can be counted. It may also be split into smaller pieces that are left, and byte-level BPE, or a
tokenizer with byte fallback, always can: there, text from outside costs tokens and quality and leaves no trace.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from crossforge.profiles import InputError

_TEXTS_AT_ONCE = 1024


class TrimmableTokenizer:
    """A tokenizer that can be trimmed: the object that encodes, and the document that it is.

    Args:
        text: The content of a ``tokenizer.json``.

    Raises:
        InputError: It cannot be read, is of a kind that nobody looked at, is random, or has no unknown token.
    """

    def __init__(self, text: str) -> None:
        try:
            self.tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"the tokenizer cannot be read ({error})", allowed=f"a tokenizer.json of {_TYPES}") from error
        self.document: dict[str, Any] = json.loads(self.tokenizer.to_str())  # in today's form, however old the file is
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.model: dict[str, Any] = self.document["model"]
        if self.model["type"] not in _COMPANIONS:
            raise InputError("the tokenizer's kind cannot be trimmed", got=self.model["type"], allowed=_TYPES)
        if self.model.get("dropout"):
            raise InputError("the tokenizer drops merges at random", got=f"dropout {self.model['dropout']}", allowed="none")
        pieces = self.model["vocab"]
        listed = isinstance(pieces, list)  # Unigram: a piece's place is its id
        self.vocabulary: dict[str, int] = {piece: i for i, (piece, _) in enumerate(pieces)} if listed else pieces
        self.unknown = self._unknown_id()

    def _unknown_id(self) -> int | None:
        token: str = self.model.get("unk_token") or ""
        unknown: int | None = self.model["unk_id"] if "unk_id" in self.model else self.vocabulary.get(token)
        can_spell = self.model["type"] == "BPE" and not token
        if unknown is None and not can_spell and not self.model.get("byte_fallback"):
            raise InputError("the tokenizer has no unknown token for text from outside", got=token)
        return unknown

    def fixed_ids(self) -> set[int]:
        """Tokens that the tokenizer itself refers to, and bytes that others fall back to."""
        named = {int(holder[key]) for holder, key in _id_slots(self.document)}
        names = (f"<0x{byte:02X}>" for byte in range(256)) if self.model.get("byte_fallback") else ()
        fallback = {self.vocabulary[name] for name in names if name in self.vocabulary}
        unknown = set() if self.unknown is None else {self.unknown}
        return named | fallback | unknown | set(self.tokenizer.get_added_tokens_decoder())

    def renumbered(self, new_ids: NDArray[np.int64]) -> str:
        """The ``tokenizer.json`` of what is left."""
        document = copy.deepcopy(self.document)
        for holder, key in _id_slots(document):
            holder[key] = int(new_ids[holder[key]])
        model = document["model"]
        if isinstance(model["vocab"], list):
            model["vocab"] = [piece for i, piece in enumerate(model["vocab"]) if new_ids[i] >= 0]
            model["unk_id"] = None if self.unknown is None else int(new_ids[self.unknown])
        else:
            model["vocab"] = {token: int(new_ids[i]) for token, i in model["vocab"].items() if new_ids[i] >= 0}
        if "merges" in model:
            left = model["vocab"].keys()
            model["merges"] = [merge for merge in model["merges"] if {*merge, _merged(merge, model)} <= left]
        return json.dumps(document, ensure_ascii=False, indent=2)


def _id_slots(document: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Where a document holds ids outside its model, as containers and keys."""
    for token in document["added_tokens"]:
        yield token, "id"
    if document["padding"]:
        yield document["padding"], "pad_id"
    processors = [document["post_processor"] or {}]
    while processors:
        processors.extend((processor := processors.pop()).get("processors", ()))  # Sequence
        for name in {"sep", "cls"} & processor.keys():  # RobertaProcessing, BertProcessing
            yield processor[name], 1
        for token in processor.get("special_tokens", {}).values():  # TemplateProcessing
            for i in range(len(token["ids"])):
                yield token["ids"], i


# What each kind of tokenizer needs besides the tokens that it gave

_Companions = Callable[[TrimmableTokenizer, set[int], Sequence[str]], set[int]]
"""From the tokens used and the texts that hold an unknown token, to the further tokens to keep."""


def _of_word_piece(source: TrimmableTokenizer, _used: set[int], unknown_texts: Sequence[str]) -> set[int]:
    words = {word for text in unknown_texts for word in _pre_tokens(source.tokenizer, text)}
    return {piece for word in words for piece in _pieces_before_failure(word, source)}


def _pre_tokens(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    if tokenizer.pre_tokenizer is None:
        yield normalized
    else:
        yield from (word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))


def _pieces_before_failure(word: str, source: TrimmableTokenizer) -> Iterator[int]:
    start = 0
    while start < len(word) <= source.model["max_input_chars_per_word"]:
        prefix = source.model["continuing_subword_prefix"] if start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in source.vocabulary)
        end = next(ends, None)
        if end is None:
            return
        yield source.vocabulary[prefix + word[start:end]]
        start = end


def _of_unigram(source: TrimmableTokenizer, _used: set[int], _unknown_texts: Sequence[str]) -> set[int]:
    scores = [score for _, score in source.model["vocab"]]
    return {scores.index(min(scores))}


def _of_byte_pairs(source: TrimmableTokenizer, used: set[int], _unknown_texts: Sequence[str]) -> set[int]:
    halves: dict[str, list[str]] = {}
    for merge in source.model["merges"]:
        halves.setdefault(_merged(merge, source.model), []).extend(merge)
    waiting = [token for token, id_ in source.vocabulary.items() if id_ in used]
    spells_bytes = '"type": "ByteLevel"' in json.dumps([source.document["normalizer"], source.document["pre_tokenizer"]])
    if source.unknown is None or spells_bytes:
        waiting.extend(token for token in source.vocabulary if token not in halves)
    reached: set[str] = set()
    while waiting:
        token = waiting.pop()
        if token not in reached:
            reached.add(token)
            waiting.extend(halves.get(token, ()))
    return {source.vocabulary[token] for token in reached}


def _merged(merge: Sequence[str], model: dict[str, Any]) -> str:
    return merge[0] + merge[1][len(model["continuing_subword_prefix"] or "") :]


_COMPANIONS: Mapping[str, _Companions] = {
    "BPE": _of_byte_pairs,
    "Unigram": _of_unigram,
    "WordLevel": lambda *_: set(),
    "WordPiece": _of_word_piece,
}
_TYPES = ", ".join(_COMPANIONS)


# Deciding and checking


def list_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list.

    Raises:
        InputError: They are one string, or one of them is not a string or not valid Unicode.
    """
    if isinstance(texts, str):
        raise InputError("texts must be many strings", got="one string", allowed="a list, or any iterable of strings")
    corpus = list(texts)
    for i, text in enumerate(corpus):
        if not isinstance(text, str):
            raise InputError(f"text {i} is not a string", got=f"{type(text).__name__} {text!r:.60}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text {i} is not valid Unicode", got=f"a lone surrogate at character {error.start}") from error
    return corpus


def _encode(tokenizer: Tokenizer, corpus: list[str]) -> Iterator[Encoding]:
    for start in range(0, len(corpus), _TEXTS_AT_ONCE):
        yield from tokenizer.encode_batch_fast(corpus[start : start + _TEXTS_AT_ONCE], add_special_tokens=False)


def find_used(source: TrimmableTokenizer, corpus: list[str], keep: Collection[int]) -> set[int]:
    """The ids that a corpus uses, those to keep, and all that these need beside them.

    Raises:
        InputError: The corpus has no token.
    """
    found: set[int] = set()
    unknown_texts = []
    for text, encoding in zip(corpus, _encode(source.tokenizer, corpus), strict=True):
        found.update(encoding.ids)
        if source.unknown in encoding.ids:
            unknown_texts.append(text)
    if not found:
        raise InputError("there is no text to keep tokens for", got=f"{len(corpus)} texts and not one token")
    used = found | source.fixed_ids() | set(keep)
    return used | _COMPANIONS[source.model["type"]](source, used, unknown_texts)


def check_same_tokens(
    source: TrimmableTokenizer, tokenizer_json: str, new_ids: NDArray[np.int64], corpus: list[str]
) -> None:
    """Make sure that a trimmed tokenizer gives every text of a corpus the tokens that it had.

    Raises:
        InputError: It does not, or its ids are not the new ones.
    """
    trimmed = TrimmableTokenizer(tokenizer_json).tokenizer
    tokens = source.tokenizer.get_vocab(with_added_tokens=True)
    expected = {token: int(new_ids[id_]) for token, id_ in tokens.items() if new_ids[id_] >= 0}
    if trimmed.get_vocab(with_added_tokens=True) != expected:
        raise InputError(
            "the tokenizer's ids cannot be numbered anew",
            fix="Its added tokens must come after its other tokens, and no token may be listed twice.",
        )
    for text, before, after in zip(corpus, _encode(source.tokenizer, corpus), _encode(trimmed, corpus), strict=True):
        if before.tokens != after.tokens or new_ids[before.ids].tolist() != after.ids:
            raise InputError(
                "a text would be tokenized differently, so nothing was trimmed",
                got=f"{' '.join(after.tokens):.120} for {text!r:.80}",
                allowed=f"{' '.join(before.tokens):.120}",
            )
