"""Questions with a relevant passage, split by passage, and the hard negatives of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives
from transformers import PreTrainedTokenizerBase

from crossforge.profiles import InputError
from crossforge.runtime.records import QueryRecord


@dataclass(frozen=True, kw_only=True)
class Split:
    """Two sides that share no passage, whatever its role."""

    pairs: tuple[tuple[str, str], ...]
    """Questions to train on, each with a relevant passage."""
    corpus: tuple[str, ...]
    """Passages that negatives are taken from: all of the training side."""
    held_out: tuple[QueryRecord, ...]
    """Questions whose relevant passages are all held out, with the held-out passages of their lists in the lists' order."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A question, one relevant passage, and passages that look like it and are not relevant."""

    query: str
    positive: str
    negatives: tuple[str, ...]


def is_held_out(passage: str, fraction: float) -> bool:
    """Decide by the text alone: the same passage falls on the same side in every run and in every file."""
    return int.from_bytes(hashlib.sha256(passage.encode()).digest()[:4], "big") < fraction * 2**32


def split_by_passage(
    records: Sequence[QueryRecord], judgements: Mapping[str, Mapping[str, int]], *, fraction: float
) -> Split:
    """Hold out a fraction of the passages, and the questions that they answer."""
    texts = {passage.id: passage.text for record in records for passage in record.passages}
    pairs: list[tuple[str, str]] = []
    held_out: list[QueryRecord] = []
    for record in records:
        relevant = [texts[i] for i, grade in judgements.get(record.qid, {}).items() if grade > 0 and i in texts]
        training = [(record.query, text) for text in relevant if not is_held_out(text, fraction)]
        pairs.extend(training)
        if relevant and not training:
            kept = tuple(passage for passage in record.passages if is_held_out(passage.text, fraction))
            held_out.append(replace(record, passages=kept))
    if not pairs or not held_out:
        raise InputError(
            "the split leaves one side without a question",
            got=f"{len(pairs)} questions to train on and {len(held_out)} held out",
            fix="Take more questions, or another --held-out.",
        )
    corpus = tuple(text for text in dict.fromkeys(texts.values()) if not is_held_out(text, fraction))
    return Split(pairs=tuple(pairs), corpus=corpus, held_out=tuple(held_out))


def mine_negatives(split: Split, bi_encoder: SentenceTransformer, *, negatives: int) -> list[Group]:
    """The passages of the training side that a bi-encoder finds most like each question, its relevant ones left out."""
    if negatives >= len(split.corpus):
        raise InputError("there are too few passages", got=f"{len(split.corpus)}, for {negatives} negatives a question")
    columns = {"query": [query for query, _ in split.pairs], "passage": [passage for _, passage in split.pairs]}
    mined = mine_hard_negatives(
        Dataset.from_dict(columns),
        bi_encoder,
        corpus=list(split.corpus),
        num_negatives=negatives,
        output_format="n-tuple",
        verbose=False,
    )
    return [
        Group(
            query=row["query"],
            positive=row["passage"],
            negatives=tuple(row[f"negative_{i}"] for i in range(1, negatives + 1)),
        )
        for row in mined
    ]


def cut_query(query: str, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> str:
    """The text of the first tokens: what the bundle will keep of a long query, too."""
    spans = tokenizer(query, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return query if len(spans) <= max_tokens else query[: spans[max_tokens - 1][1]]
