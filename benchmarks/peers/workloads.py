"""What is asked: real pairs in bulk, long pairs in bulk, and one query at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from crossforge.runtime.records import Passage, QueryRecord
from crossforge.runtime.tokenization import PairTokenizer

LONG_TOKENS = (300, 512)
_LATENCY_QUERIES = 5


@dataclass(frozen=True, kw_only=True)
class Bulk:
    """Pairs for one call, with their lengths."""

    records: tuple[QueryRecord, ...]
    lengths: NDArray[np.int32]
    """Tokens of each pair: int32 [pairs]."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(record.query, passage.text) for record in self.records for passage in record.passages]


def bulk(records: Sequence[QueryRecord], tokenizer: PairTokenizer) -> Bulk:
    pairs = [(record.query, passage.text) for record in records for passage in record.passages]
    return Bulk(records=tuple(records), lengths=tokenizer.encode_pairs(pairs).lengths)


def slices(records: Sequence[QueryRecord], rounds: int) -> list[list[QueryRecord]]:
    """The records dealt out to rounds, so that a run scores each once; with fewer records than rounds some come again."""
    hands: list[list[QueryRecord]] = [[] for _ in range(rounds)]
    for record, hand in zip(records, cycle(hands), strict=False):
        hand.append(record)
    return [hand or [records[i % len(records)]] for i, hand in enumerate(hands)]


def long_records(
    records: Sequence[QueryRecord], tokenizer: PairTokenizer, pairs: int, *, seed: int = 0
) -> list[QueryRecord]:
    """Real passages joined until a pair has between 300 and 512 tokens, lengths spread evenly; ten pairs a query."""
    generator = np.random.default_rng(seed)
    passages = [passage.text for record in records for passage in record.passages]
    made: list[QueryRecord] = []
    for number in range(-(-pairs // 10)):
        query = records[number % len(records)].query
        texts = []
        for _ in range(min(10, pairs - 10 * number)):
            wanted = int(generator.integers(*LONG_TOKENS))
            words: list[str] = []
            while len(words) < wanted:  # a word has one token or more
                words += passages[generator.integers(len(passages))].split()
            texts.append(_cut(query, words, wanted, tokenizer))
        joined = tuple(Passage(id=f"long-{number}-{i}", text=text) for i, text in enumerate(texts))
        made.append(QueryRecord(qid=f"long-{number}", query=query, passages=joined))
    return made


def latency_queries(records: Sequence[QueryRecord], tokenizer: PairTokenizer, candidates: int) -> list[QueryRecord]:
    """The queries whose first candidates have the most usual number of tokens in all: what differs is then the machine."""
    cut = [
        replace(record, passages=record.passages[:candidates]) for record in records if len(record.passages) >= candidates
    ]
    totals = np.asarray([int(bulk([record], tokenizer).lengths.sum()) for record in cut])
    nearest = np.argsort(np.abs(totals - np.median(totals)), kind="stable")[:_LATENCY_QUERIES]
    return [cut[i] for i in nearest]


def _cut(query: str, words: Sequence[str], wanted: int, tokenizer: PairTokenizer) -> str:
    """As many of the words as make a pair of so many tokens, found by bisection."""
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if tokenizer.encode_pairs([(query, " ".join(words[:middle]))]).lengths[0] <= wanted:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])
