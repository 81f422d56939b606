"""Pairs for a causal reranker: query and passage filled into one text, exactly as its checkpoint's own code tokenizes it.

A byte-level BPE merges across borders: ``<Document>: `` and a passage have other tokens together than apart. So the body is
tokenized as one text for each pair, where other models' passages are tokenized by themselves. Beside the cost of a decoder
this is little, and it is exact whatever a text begins or ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crossforge.profiles import InputError, Manifest, PairTemplate, Prompt, Truncation, TruncationSide
from crossforge.runtime.bundle import TOKENIZER_NAME
from crossforge.runtime.inputs import check_query
from crossforge.runtime.templates import encode_special
from crossforge.runtime.token_cache import Ids, TokenCache
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer, load_tokenizer, read_span
from crossforge.runtime.windows import Chunking


class PromptTokenizer(PairTokenizer):
    """Encodes pairs through a prompt.

    In :class:`EncodedPairs` a head is the prefix and the tokens of the body before the passage, as far as no token reaches
    over into the passage; a token that does is counted to the passage.

    Args:
        tokenizer: As for :class:`PairTokenizer`.
        prompt: The text around the pair.
        template: The tokens of its prefix and suffix; see :func:`~crossforge.runtime.templates.derive_prompt_template`.
        truncation: What gives way: the passage, on the right; and of the query what is beyond its own limit.
        instruction: Instead of the prompt's own.
        cache: Holds the ids of whole bodies.

    Raises:
        ValueError: The truncation contract leaves no room for a passage, or cuts on the left.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Prompt,
        template: PairTemplate,
        truncation: Truncation,
        *,
        instruction: str | None = None,
        cache: TokenCache | None = None,
    ) -> None:
        if truncation.side is not TruncationSide.RIGHT or truncation.query_max_length is None:
            raise ValueError("a prompt's query has a limit of its own, and its passage is cut on the right")
        self._query_max_length = truncation.query_max_length
        self.prompt = prompt
        self._outer = template
        self._before_query = prompt.before_query(instruction)
        self._before_passage = prompt.before_passage(instruction)
        own_text = self._before_query, self._before_passage
        super().__init__(tokenizer, _with_text(template, tokenizer, own_text), truncation, cache=cache)
        self._room = truncation.max_length - len(self.template.prefix.ids) - len(self.template.suffix.ids)

    def with_instruction(self, instruction: str) -> PairTokenizer:
        """As :meth:`PairTokenizer.with_instruction`; shares the cache, which holds whole texts."""
        if self.prompt.instruction is None:
            return super().with_instruction(instruction)
        check_query(instruction, "the instruction")
        try:
            return PromptTokenizer(
                self._tokenizer, self.prompt, self._outer, self.truncation, instruction=instruction, cache=self.cache
            )
        except ValueError as error:
            raise InputError(f"the instruction is too long ({error})", fix="Shorten it.") from error

    def read_spans(self, query: str, passages: Sequence[str]) -> list[tuple[int, int]]:
        """As :meth:`PairTokenizer.read_spans`."""
        query_span, _ = self._read_query(query)
        opening = self._opening(query[slice(*query_span)])
        bodies = [opening + passage for passage in passages]
        spans = [query_span]
        for body, encoding in zip(bodies, self._tokenizer.encode_batch(bodies, add_special_tokens=False), strict=True):
            _, end = read_span(encoding, self._room, len(body), self.truncation.side)
            spans.append((0, max(0, end - len(opening))))
        return spans

    def _encode(
        self,
        queries: list[str],
        passages: Sequence[str],
        head_of_pair: NDArray[np.intp],
        max_passage_tokens: int | None = None,
        chunking: Chunking | None = None,
    ) -> EncodedPairs:
        if chunking is not None:
            raise InputError(
                "passages within a prompt are not split into windows",
                got=f"chunk {chunking.pooling}",
                fix="Leave chunk out, or split the passages before.",
            )
        read = [self._read_query(query) for query in queries]
        query_spans, query_ids = [span for span, _ in read], [ids for _, ids in read]
        query_cut = np.asarray([span != (0, len(q)) for span, q in zip(query_spans, queries, strict=True)], dtype=bool)
        openings = [self._opening(query[slice(*span)]) for query, span in zip(queries, query_spans, strict=True)]
        opening_ids = self._tokenize(openings)
        body_ids = self._tokenize_passages([openings[h] + text for h, text in zip(head_of_pair, passages, strict=True)])

        index_of_head: dict[tuple[int, int], int] = {}
        heads: list[Ids] = []
        new_head_of_pair = np.empty(len(passages), dtype=np.intp)
        kept_passages: list[Ids] = []
        cut = np.empty(len(passages), dtype=bool)
        for i, (h, whole) in enumerate(zip(head_of_pair.tolist(), body_ids, strict=True)):
            body = self._cut(whole, self._room)
            shared = _shared_length(opening_ids[h], body)
            passage = body[shared:] if max_passage_tokens is None else self._cut(body[shared:], max_passage_tokens)
            cut[i] = shared + len(passage) < len(whole)
            if (h, shared) not in index_of_head:
                index_of_head[h, shared] = len(heads)
                heads.append(np.concatenate([self._prefix, body[:shared]]))
            new_head_of_pair[i] = index_of_head[h, shared]
            kept_passages.append(passage)

        suffix = len(self.template.suffix.ids)
        lengths = [len(heads[h]) + len(ids) + suffix for h, ids in zip(new_head_of_pair, kept_passages, strict=True)]
        unknown_in_heads, unknown_in_passages = self._unknown.count(heads), self._unknown.count(kept_passages)
        unknown_in_queries = self._unknown.count(query_ids)
        query_truncated = query_cut[head_of_pair]
        return EncodedPairs(
            heads=tuple(heads),
            head_of_pair=new_head_of_pair,
            passages=tuple(kept_passages),
            lengths=np.asarray(lengths, dtype=np.int32),
            truncated=cut | query_truncated,
            query_truncated=query_truncated,
            unknown_tokens=unknown_in_passages + unknown_in_heads[new_head_of_pair],
            mostly_unknown=self._unknown.are_most(passages, kept_passages, unknown_in_passages)
            | self._unknown.are_most(queries, query_ids, unknown_in_queries)[head_of_pair],
        )

    def _opening(self, query: str) -> str:
        return self._before_query + query + self._before_passage

    def _read_query(self, query: str) -> tuple[tuple[int, int], Ids]:
        """What is read of a query: as many characters as its first ``query_max_length`` tokens spell, and these tokens."""
        encoding = self._tokenizer.encode(query, add_special_tokens=False)
        span = read_span(encoding, self._query_max_length, len(query), self.truncation.side)
        return span, np.asarray(encoding.ids[: self._query_max_length], dtype=np.int32)


def open_tokenizer(
    folder: str | Path, manifest: Manifest, *, instruction: str | None = None, cache: TokenCache | None = None
) -> PairTokenizer:
    """Load the tokenizer of a bundle, of the kind that its model needs.

    Args:
        folder: The bundle's.
        manifest: Says how a pair becomes a sequence.
        instruction: What a causal reranker is told to look for, instead of the manifest's.
        cache: Holds ids from one call to the next.

    Raises:
        ManifestError: The file is not a tokenizer that this version of ``tokenizers`` reads.
        InputError: The model takes no instruction, or this one leaves no room for a passage.
    """
    path = Path(folder) / TOKENIZER_NAME
    if manifest.prompt is None:
        tokenizer = PairTokenizer.from_file(path, manifest.pair_template, manifest.truncation, cache=cache)
    else:
        try:
            tokenizer = PromptTokenizer(
                load_tokenizer(path), manifest.prompt, manifest.pair_template, manifest.truncation, cache=cache
            )
        except ValueError as error:
            raise InputError(f"the prompt does not fit into a pair ({error})", fix="Allow longer pairs.") from error
    return tokenizer if instruction is None else tokenizer.with_instruction(instruction)


def _with_text(template: PairTemplate, tokenizer: Tokenizer, texts: Sequence[str]) -> PairTemplate:
    """A pair template with the body's own text counted as its separator, for whoever asks how much room is left."""
    return replace(template, separator=encode_special(tokenizer, *texts))


def _shared_length(opening: Ids, body: Ids) -> int:
    """Number of tokens that two texts have in common at their beginning."""
    shorter = min(len(opening), len(body))
    different = np.flatnonzero(opening[:shorter] != body[:shorter])
    return int(different[0]) if len(different) else shorter
