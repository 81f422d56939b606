"""Queries and passages in, token ids out: joined as the model's post-processor joins them, and never cut in silence."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from crossforge.profiles import InputError, ManifestError, PairTemplate, Truncation, TruncationSide
from crossforge.runtime.inputs import check_list, check_pair, check_query, check_texts
from crossforge.runtime.token_cache import Ids, TokenCache
from crossforge.runtime.unknown_tokens import UnknownTokens
from crossforge.runtime.windows import Chunking, PassageWindows, split_passages


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

    def take(self, rows: NDArray[np.intp]) -> EncodedPairs:
        """The pairs at these positions, [m], in this order and each as often as it is named; windows are left out."""
        return EncodedPairs(
            heads=self.heads,
            head_of_pair=self.head_of_pair[rows],
            passages=tuple(self.passages[i] for i in rows),
            lengths=self.lengths[rows],
            truncated=self.truncated[rows],
            query_truncated=self.query_truncated[rows],
            unknown_tokens=self.unknown_tokens[rows],
            mostly_unknown=self.mostly_unknown[rows],
        )


class PairTokenizer:
    """Encodes (query, passage) pairs with Hugging Face ``tokenizers`` alone.

    A query is tokenized once, however many passages it is paired with, and so is a passage that repeats; passages are
    tokenized in parallel. Ids are joined by the pair template, which equals what the tokenizer's own post-processor would
    have produced.

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
        self._unknown = UnknownTokens(tokenizer)

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
            InputError: A text is not a string, is blank (the query), is longer than 500,000 characters, or holds a lone
                surrogate; or ``chunk`` is not understood, or comes with ``max_passage_tokens``.
        """
        check_list(passages, "passages", "strings")
        if max_passage_tokens is not None and max_passage_tokens < 1:
            raise InputError("max_passage_tokens is too small", got=max_passage_tokens, allowed="1 or more")
        chunking = Chunking.parse(chunk)
        if max_passage_tokens is not None and chunking is not None:
            raise InputError(
                "a passage cannot be both cut and split", got="max_passage_tokens and chunk", allowed="one of the two"
            )
        check_query(query, "the query")
        check_texts(passages, "passage")
        return self._encode([query], passages, np.zeros(len(passages), dtype=np.intp), max_passage_tokens, chunking)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], *, chunk: Chunking | str | None = None) -> EncodedPairs:
        """Encode pairs of any queries; each distinct query is tokenized once. ``chunk`` is as for :meth:`encode`.

        Raises:
            InputError: As :meth:`encode`; or an item is not a pair.
        """
        check_list(pairs, "pairs", "(query, passage) pairs")
        index_of_query: dict[str, int] = {}
        head_of_pair = np.empty(len(pairs), dtype=np.intp)
        passages: list[str] = []
        for i, pair in enumerate(pairs):
            check_pair(pair, i)
            query, passage = pair
            check_query(query, f"the query of pair {i}")
            head_of_pair[i] = index_of_query.setdefault(query, len(index_of_query))
            passages.append(passage)
        check_texts(passages, "passage")
        return self._encode(list(index_of_query), passages, head_of_pair, chunking=Chunking.parse(chunk))

    def encode_texts(self, texts: Sequence[str]) -> EncodedPairs:
        """Encode texts by themselves, as a bi-encoder reads them: as passages without a query.

        The template must be one of texts, from :func:`~crossforge.runtime.templates.derive_text_template`.

        Raises:
            InputError: A text is not a string, is longer than 500,000 characters, or holds a lone surrogate.
        """
        check_list(texts, "texts", "strings")
        check_texts(texts, "text")
        return self._encode([""], texts, np.zeros(len(texts), dtype=np.intp))

    def _encode(
        self,
        queries: list[str],
        passages: Sequence[str],
        head_of_pair: NDArray[np.intp],
        max_passage_tokens: int | None = None,
        chunking: Chunking | None = None,
    ) -> EncodedPairs:
        """Encode what was checked: each query once, and the passage of each pair beside the query at ``head_of_pair``."""
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
        unknown_in_queries, unknown_in_passages = self._unknown.count(kept_queries), self._unknown.count(kept_passages)
        mostly_unknown_queries = self._unknown.are_most(queries, kept_queries, unknown_in_queries)
        pairs = EncodedPairs(
            heads=heads,
            head_of_pair=head_of_pair,
            passages=kept_passages,
            lengths=np.asarray(lengths, dtype=np.int32),
            truncated=passage_cut | query_truncated,
            query_truncated=query_truncated,
            unknown_tokens=unknown_in_passages + unknown_in_queries[head_of_pair],
            mostly_unknown=self._unknown.are_most(passages, kept_passages, unknown_in_passages)
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
