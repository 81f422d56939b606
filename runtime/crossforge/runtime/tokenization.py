"""Queries and passages in, token ids out: joined as the model's post-processor joins them, and never cut in silence."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from crossforge.profiles import InputError, ManifestError, PairTemplate, SpecialTokens, Truncation, TruncationSide
from crossforge.runtime.token_cache import Ids, TokenCache
from crossforge.runtime.windows import Chunking, PassageWindows, split_passages

MAX_TEXT_CHARS = 500_000
"""Longest text that is accepted. A model reads a few thousand characters of it; more is a file passed by mistake."""
_NO_CHARACTER = "\U0010ffff"
"""Unicode will never assign it."""
_WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""What sentencepiece puts before a word; a token of its own before a word that has none."""


@dataclass(frozen=True, kw_only=True)
class EncodedPairs:
    """Token ids of ``n`` pairs. A query that several pairs share is stored once.

    With ``windows``, ``n`` counts windows: a pair whose passage is too long has one row for each of its passage's.
    """

    heads: tuple[Ids, ...]
    """``prefix query separator`` of each distinct query: int32 [head length]."""
    head_of_pair: NDArray[np.intp]
    """The index in ``heads`` of each pair's query: [n]."""
    passages: tuple[Ids, ...]
    """Each pair's passage tokens after truncation: int32 [passage length]."""
    lengths: NDArray[np.int32]
    """Tokens of each whole pair, special tokens included: int32 [n]."""
    truncated: NDArray[np.bool_]
    """Pairs that lost tokens, of the passage or of the query: bool [n]."""
    query_truncated: NDArray[np.bool_]
    """Pairs whose query lost tokens: bool [n]."""
    unknown_tokens: NDArray[np.int32]
    """Tokens of each pair, after truncation, that stand for text the tokenizer has no token for: int32 [n]."""
    mostly_unknown: NDArray[np.bool_]
    """Pairs of which a text is mostly words that the tokenizer has no token for, symbols such as emoji aside: bool [n]."""
    windows: PassageWindows | None = None
    """Which rows belong to one passage, if passages were to be split."""

    def __len__(self) -> int:
        return len(self.passages)


class PairTokenizer:
    """Encodes (query, passage) pairs with Hugging Face ``tokenizers`` alone.

    A query is tokenized once, however many passages it is paired with, and so is a passage that repeats; passages are
    tokenized in parallel. Ids are joined
    by the pair template, which equals what the tokenizer's own post-processor would have produced.

    Args:
        tokenizer: The model's tokenizer. Its own truncation and padding are switched off.
        template: How a pair becomes one sequence.
        truncation: What gives way when a pair is too long.
        cache: Holds passages' ids from one call to the next; the tokenizer is its only user.

    Raises:
        ValueError: The truncation contract leaves no room for a passage.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: PairTemplate, truncation: Truncation, *, cache: TokenCache | None = None
    ) -> None:
        if truncation.max_length <= (truncation.query_max_length or 1) + template.special_token_count:
            raise ValueError(
                f"{truncation} leaves no room for a passage beside {template.special_token_count} special tokens"
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.template = template
        self.truncation = truncation
        self.cache = cache
        self._prefix = np.asarray(template.prefix.ids, dtype=np.int32)
        self._separator = np.asarray(template.separator.ids, dtype=np.int32)
        self._unknown_id = find_unknown_id(tokenizer)
        self._word_mark_id = tokenizer.token_to_id(_WORD_MARK)

    @classmethod
    def from_file(
        cls, path: str | Path, template: PairTemplate, truncation: Truncation, *, cache: TokenCache | None = None
    ) -> PairTokenizer:
        """Load a ``tokenizer.json``.

        Raises:
            ManifestError: The file is not a tokenizer that this version of ``tokenizers`` reads.
        """
        return cls(load_tokenizer(path), template, truncation, cache=cache)

    def with_instruction(self, instruction: str) -> PairTokenizer:
        """The same tokenizer for another instruction, where the model is told what to look for.

        Raises:
            InputError: The model takes none, or this one leaves no room for a passage.
        """
        raise InputError("this model takes no instruction", got=f"{instruction!r:.60}", fix="Leave it out.")

    def encode(
        self,
        query: str,
        passages: Sequence[str],
        *,
        max_passage_tokens: int | None = None,
        chunk: Chunking | str | None = None,
    ) -> EncodedPairs:
        """Encode one query against many passages.

        Args:
            query: Not blank.
            passages: Any number of texts; empty strings are allowed.
            max_passage_tokens: Cut passages to so many tokens, where the model would read more of them.
            chunk: Split passages that are too long into windows, instead of cutting them. They are tokenized whole, once
                more for the places of their tokens; no window is tokenized by itself.

        Raises:
            InputError: A text is not a string, is blank (the query), is longer than :data:`MAX_TEXT_CHARS`, or holds
                a lone surrogate; or ``chunk`` is not understood, or comes with ``max_passage_tokens``.
        """
        _check_is_list(passages, "passages", "strings")
        if max_passage_tokens is not None and max_passage_tokens < 1:
            raise InputError("max_passage_tokens is too small", got=max_passage_tokens, allowed="1 or more")
        chunking = Chunking.parse(chunk)
        if max_passage_tokens is not None and chunking is not None:
            raise InputError(
                "a passage cannot be both cut and split", got="max_passage_tokens and chunk", allowed="one of the two"
            )
        return self._encode([query], passages, np.zeros(len(passages), dtype=np.intp), max_passage_tokens, chunking)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], *, chunk: Chunking | str | None = None) -> EncodedPairs:
        """Encode pairs of any queries; each distinct query is tokenized once. ``chunk`` is as for :meth:`encode`.

        Raises:
            InputError: As :meth:`encode`; or an item is not a pair.
        """
        _check_is_list(pairs, "pairs", "(query, passage) pairs")
        index_of_query: dict[str, int] = {}
        head_of_pair = np.empty(len(pairs), dtype=np.intp)
        passages: list[str] = []
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"pair {i} is not a pair", got=_describe(pair), allowed="(query, passage)")
            query, passage = pair
            check_query(query, f"the query of pair {i}")
            head_of_pair[i] = index_of_query.setdefault(query, len(index_of_query))
            passages.append(passage)
        return self._encode(list(index_of_query), passages, head_of_pair, chunking=Chunking.parse(chunk))

    def encode_texts(self, texts: Sequence[str]) -> EncodedPairs:
        """Encode texts by themselves, as a bi-encoder reads them: as passages without a query.

        The template must be one of texts, from :func:`derive_text_template`.

        Raises:
            InputError: A text is not a string, is longer than :data:`MAX_TEXT_CHARS`, or holds a lone surrogate.
        """
        _check_is_list(texts, "texts", "strings")
        for i, text in enumerate(texts):
            check_text(text, f"text {i}")
        return self._encode_checked([""], texts, np.zeros(len(texts), dtype=np.intp))

    def _encode(
        self,
        queries: list[str],
        passages: Sequence[str],
        head_of_pair: NDArray[np.intp],
        max_passage_tokens: int | None = None,
        chunking: Chunking | None = None,
    ) -> EncodedPairs:
        for query in queries:
            check_query(query, "the query")
        for i, passage in enumerate(passages):
            check_text(passage, f"passage {i}")
        return self._encode_checked(queries, passages, head_of_pair, max_passage_tokens, chunking)

    def _encode_checked(
        self,
        queries: list[str],
        passages: Sequence[str],
        head_of_pair: NDArray[np.intp],
        max_passage_tokens: int | None = None,
        chunking: Chunking | None = None,
    ) -> EncodedPairs:
        query_ids = self._tokenize(queries)
        passage_ids = self._tokenize_passages(passages)

        if self.truncation.is_symmetric:  # what is left of a query depends on its passage: a head for each length of it
            lengths_of_pair = zip(head_of_pair.tolist(), passage_ids, strict=True)
            keys = [(q, self._kept_of_query(len(query_ids[q]), len(ids))) for q, ids in lengths_of_pair]
            index_of_head = {key: i for i, key in enumerate(dict.fromkeys(keys))}
            head_of_pair = np.asarray([index_of_head[key] for key in keys], dtype=np.intp)
            queries, query_ids = [queries[q] for q, _ in index_of_head], [query_ids[q] for q, _ in index_of_head]
            limits = [keep for _, keep in index_of_head]
        else:
            limits = [self._kept_of_query(len(ids), 0) for ids in query_ids]
        kept_queries = [self._cut(ids, limit) for ids, limit in zip(query_ids, limits, strict=True)]
        heads = tuple(np.concatenate([self._prefix, ids, self._separator]) for ids in kept_queries)
        query_cut = np.asarray([len(kept) < len(ids) for kept, ids in zip(kept_queries, query_ids, strict=True)], dtype=bool)

        room_beside = [self.truncation.max_length - len(head) - len(self.template.suffix.ids) for head in heads]
        most = max_passage_tokens if chunking is None else chunking.window_tokens
        if most is not None:
            room_beside = [min(room, most) for room in room_beside]
        rooms = [room_beside[h] for h in head_of_pair]
        wholes: dict[str, Encoding] = {}
        if chunking is None:
            kept_passages = tuple(map(self._cut, passage_ids, rooms))
        else:
            wholes = self._tokenize_whole(
                text for text, ids, room in zip(passages, passage_ids, rooms, strict=True) if len(ids) > room
            )
            whole_ids = {text: np.asarray(encoding.ids, dtype=np.int32) for text, encoding in wholes.items()}
            kept_passages = tuple(whole_ids.get(text, ids) for text, ids in zip(passages, passage_ids, strict=True))
        passage_cut = np.asarray([len(k) < len(ids) for k, ids in zip(kept_passages, passage_ids, strict=True)], dtype=bool)

        query_truncated = query_cut[head_of_pair]
        suffix = len(self.template.suffix.ids)
        lengths = [len(heads[h]) + len(ids) + suffix for ids, h in zip(kept_passages, head_of_pair, strict=True)]
        unknown_in_queries, unknown_in_passages = self._count_unknown(kept_queries), self._count_unknown(kept_passages)
        mostly_unknown_queries = self._are_mostly_unknown(queries, kept_queries, unknown_in_queries)
        pairs = EncodedPairs(
            heads=heads,
            head_of_pair=head_of_pair,
            passages=kept_passages,
            lengths=np.asarray(lengths, dtype=np.int32),
            truncated=passage_cut | query_truncated,
            query_truncated=query_truncated,
            unknown_tokens=unknown_in_passages + unknown_in_queries[head_of_pair],
            mostly_unknown=self._are_mostly_unknown(passages, kept_passages, unknown_in_passages)
            | mostly_unknown_queries[head_of_pair],
        )
        if chunking is None:
            return pairs
        offsets = {text: encoding.offsets for text, encoding in wholes.items()}
        return split_passages(pairs, rooms, [offsets.get(text) for text in passages], [*map(len, passages)], chunking)

    def read_spans(self, query: str, passages: Sequence[str]) -> list[tuple[int, int]]:
        """Find out which characters the model reads of texts that :meth:`encode` takes, the query's first.

        Returns:
            Start and end of what is read of each text, in characters: 0 and the text's length where nothing was cut. Of a
            query that is cut differently beside each passage, what is read beside all of them.
        """
        texts = self._tokenizer.encode_batch([query, *passages], add_special_tokens=False)
        lengths = [len(text.ids) for text in texts]
        room = self.truncation.max_length - self.template.special_token_count
        kept_of_query = [self._kept_of_query(lengths[0], length) for length in lengths[1:]]
        kept = [min(kept_of_query, default=self._kept_of_query(lengths[0], 0)), *(room - keep for keep in kept_of_query)]
        return [
            read_span(encoding, keep, len(text), self.truncation.side)
            for encoding, keep, text in zip(texts, kept, [query, *passages], strict=True)
        ]

    def _kept_of_query(self, query_tokens: int, passage_tokens: int) -> int:
        """How many of its tokens a query keeps beside a passage, which has the rest of the room."""
        return self.truncation.kept_of_query(query_tokens, passage_tokens, self.template.special_token_count)

    def _count_unknown(self, texts: Sequence[Ids]) -> NDArray[np.int32]:
        """Unknown tokens of each text: int32 [texts]."""
        if self._unknown_id is None or not texts:
            return np.zeros(len(texts), dtype=np.int32)
        # All texts at once: a thousand short passages cost a fraction of a millisecond.
        places = np.flatnonzero(np.concatenate(texts) == self._unknown_id)
        ends = np.cumsum([len(ids) for ids in texts])
        owners = np.searchsorted(ends, places, side="right")
        return np.bincount(owners, minlength=len(texts)).astype(np.int32)

    def _are_mostly_unknown(
        self, texts: Sequence[str], kept: Sequence[Ids], unknown: NDArray[np.int32]
    ) -> NDArray[np.bool_]:
        """Whether more than half of each text's tokens are unknown, its symbols left out: bool [texts].

        Emoji are unknown to most vocabularies and say little; a script that a vocabulary lacks leaves nothing to score.
        """
        lengths = np.asarray([len(ids) for ids in kept], dtype=np.int32)
        for i in np.flatnonzero(unknown).tolist() if self._word_mark_id is not None else ():
            ids = kept[i]
            lengths[i] -= np.count_nonzero((ids[:-1] == self._word_mark_id) & (ids[1:] == self._unknown_id))
        mostly = 2 * unknown > lengths
        for i in np.flatnonzero(mostly).tolist():
            symbols = sum(not (word.isascii() or any(char.isalnum() for char in word)) for word in texts[i].split())
            mostly[i] = 2 * (unknown[i] - symbols) > lengths[i] - symbols
        return mostly

    def _tokenize_passages(self, passages: Sequence[str]) -> list[Ids]:
        """Ids of each passage, and no more than one beyond what the model can read: each text is tokenized once.

        Where the longer text gives way, all of them: which one is longer must still be seen.
        """
        texts = list(dict.fromkeys(passages))
        known = {} if self.cache is None else self.cache.find(texts)
        missing = [text for text in texts if text not in known]
        beyond = sys.maxsize if self.truncation.is_symmetric else self.truncation.max_length + 1
        fresh = {text: self._cut(ids, beyond) for text, ids in zip(missing, self._tokenize(missing), strict=True)}
        if self.cache is not None:
            self.cache.add(fresh)
        known |= fresh
        return [known[text] for text in passages]

    def _tokenize_whole(self, texts: Iterable[str]) -> dict[str, Encoding]:
        """All of each different text, with the places of its tokens."""
        different = list(dict.fromkeys(texts))
        return dict(zip(different, self._tokenizer.encode_batch(different, add_special_tokens=False), strict=True))

    def _tokenize(self, texts: Sequence[str]) -> list[Ids]:
        # The fast form leaves out character offsets, which nothing here reads.
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _cut(self, ids: Ids, keep: int) -> Ids:
        if len(ids) <= keep:
            return ids
        # A copy, so that a megabyte of ids does not stay alive for the few hundred that are used.
        return (ids[:keep] if self.truncation.side is TruncationSide.RIGHT else ids[-keep:]).copy()


def read_span(encoding: Encoding, keep: int, characters: int, side: TruncationSide) -> tuple[int, int]:
    """Start and end of the characters that the first ``keep`` tokens of a text spell, or the last ones."""
    if len(encoding.ids) <= keep:
        return 0, characters
    # A character that several tokens spell is read if all of them are kept.
    if side is TruncationSide.RIGHT:
        return 0, int(min(encoding.offsets[keep - 1][1], encoding.offsets[keep][0]))
    return int(max(encoding.offsets[-keep][0], encoding.offsets[-keep - 1][1])), characters


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a ``tokenizer.json``, without its truncation and padding.

    Raises:
        ManifestError: The file cannot be read as a tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ManifestError(f"cannot read the tokenizer {path} ({error})", fix="Export the bundle again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


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


def derive_pair_template(tokenizer: Tokenizer) -> PairTemplate:
    """Find out how a tokenizer's post-processor joins a pair, by watching it join one.

    Raises:
        ManifestError: The result is not ``prefix query separator passage suffix`` with one segment id a text.
    """
    probe = tokenizer.encode("a", "b")
    pieces = _split_by_sequence(probe)
    if pieces is None:
        raise ManifestError(
            "the tokenizer joins a pair in a way that crossforge does not know",
            got=" ".join(probe.tokens),
            allowed="special tokens, query, special tokens, passage, special tokens",
        )
    prefix, query, separator, passage, suffix = pieces
    query_types, passage_types = {probe.type_ids[i] for i in query}, {probe.type_ids[i] for i in passage}

    def special(positions: list[int]) -> SpecialTokens:
        return SpecialTokens(
            ids=tuple(probe.ids[i] for i in positions), type_ids=tuple(probe.type_ids[i] for i in positions)
        )

    return PairTemplate(
        prefix=special(prefix),
        separator=special(separator),
        suffix=special(suffix),
        query_type_id=query_types.pop(),
        passage_type_id=passage_types.pop(),
    )


def derive_text_template(tokenizer: Tokenizer) -> PairTemplate:
    """Find out what a tokenizer's post-processor puts around a single text: the template of a pair without a query.

    Raises:
        ManifestError: The result is not ``prefix text suffix`` with one segment id.
    """
    probe = tokenizer.encode("a")
    text = [i for i, sequence in enumerate(probe.sequence_ids) if sequence == 0]
    others = [i for i, sequence in enumerate(probe.sequence_ids) if sequence != 0]
    types = {probe.type_ids[i] for i in text}
    if len(types) != 1 or not all(probe.special_tokens_mask[i] for i in others):
        raise ManifestError(
            "the tokenizer wraps a text in a way that crossforge does not know",
            got=" ".join(probe.tokens),
            allowed="special tokens, text, special tokens",
        )

    def special(positions: list[int]) -> SpecialTokens:
        return SpecialTokens(
            ids=tuple(probe.ids[i] for i in positions), type_ids=tuple(probe.type_ids[i] for i in positions)
        )

    type_id = types.pop()
    return PairTemplate(
        prefix=special([i for i in others if i < text[0]]),
        separator=SpecialTokens(ids=(), type_ids=()),
        suffix=special([i for i in others if i > text[-1]]),
        query_type_id=type_id,
        passage_type_id=type_id,
    )


def _split_by_sequence(encoding: Encoding) -> tuple[list[int], list[int], list[int], list[int], list[int]] | None:
    """Positions of prefix, query, separator, passage and suffix; None if the sequence is built otherwise."""
    owner = encoding.sequence_ids
    query = [i for i, sequence in enumerate(owner) if sequence == 0]
    passage = [i for i, sequence in enumerate(owner) if sequence == 1]
    if not query or not passage:
        return None
    others = [i for i, sequence in enumerate(owner) if sequence is None]
    # A template that repeats a text leaves the copy without a sequence id, but does not call it special.
    if query[-1] >= passage[0] or not all(encoding.special_tokens_mask[i] for i in others):
        return None
    return (
        list(range(query[0])),
        query,
        list(range(query[-1] + 1, passage[0])),
        passage,
        list(range(passage[-1] + 1, len(owner))),
    )


def _check_is_list(value: object, name: str, items: str) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InputError(f"{name} must be a list", got=_describe(value), allowed=f"a list or tuple of {items}")


def check_query(query: object, what: str) -> None:
    """Make sure that a query can be used.

    Raises:
        InputError: It is blank, or as :func:`check_text`.
    """
    check_text(query, what)
    if not str(query).strip():
        raise InputError(f"{what} is empty", got=repr(query), allowed="a text that is not blank")


def check_text(text: object, what: str) -> None:
    """Make sure that a text can be used.

    Raises:
        InputError: It is not a string, is longer than :data:`MAX_TEXT_CHARS`, or holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} is not a string", got=_describe(text), allowed="str")
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(
            f"{what} is too long",
            got=f"{len(text):,} characters",
            allowed=f"up to {MAX_TEXT_CHARS:,}",
            fix="Split it into passages; a cross-encoder reads only the first few hundred tokens.",
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{what} is not valid Unicode", got=f"a lone surrogate at character {error.start}") from error


def _describe(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
