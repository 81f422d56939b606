from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossforge.profiles import InputError, Truncation, TruncationSide, Workload, profiles_from_lengths
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.records import Passage, QueryRecord, read_run
from crossforge.runtime.tokenization import PairTokenizer
from crossforge.runtime.workload import workload_from_records
from support.families import BERT_TEMPLATE, make_tokenizer


def record(query: str, *passages: str) -> QueryRecord:
    texts = tuple(Passage(id=str(i), text=text) for i, text in enumerate(passages))
    return QueryRecord(qid=query, query=query, passages=texts)


def make_pair_tokenizer(max_length: int = 100) -> PairTokenizer:
    contract = Truncation(max_length=max_length, query_max_length=4, side=TruncationSide.RIGHT)
    return PairTokenizer(make_tokenizer(), BERT_TEMPLATE, contract)


def test_pairs_and_candidates_are_counted() -> None:
    records = [record("the city", "the", "city", "the city"), record("people", "the", "city", ""), record("live", "city")]

    # Three special tokens a pair, and a token a word.
    assert workload_from_records(records, make_pair_tokenizer()) == Workload(
        pair_lengths={6: 2, 7: 1, 5: 3, 4: 1}, candidates={3: 2, 1: 1}
    )


def test_lengths_are_those_that_the_reranker_sees() -> None:
    tokenizer, texts = make_pair_tokenizer(max_length=9), ["the city " * 20, "people"]
    workload = workload_from_records([record("the city", *texts)], tokenizer)
    values, counts = np.unique(tokenizer.encode("the city", texts).lengths, return_counts=True)

    assert workload.pair_lengths == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert max(workload.pair_lengths) == 9


def test_a_query_without_passages_counts_for_nothing() -> None:
    workload = workload_from_records([record("the city"), record("people", "city")], make_pair_tokenizer())

    assert workload.candidates == {1: 1}


def test_no_pairs_are_no_workload() -> None:
    with pytest.raises(InputError, match="the workload holds no pair"):
        workload_from_records([record("the city")], make_pair_tokenizer())


def test_a_text_that_cannot_be_used_is_named_with_its_query() -> None:
    with pytest.raises(InputError, match=r"query ' ': the query is empty; got ' '"):
        workload_from_records([record(" ", "city")], make_pair_tokenizer())


def test_another_language_asks_for_other_profiles(demo_bundle: Path, shared_data: Path) -> None:
    manifest = Bundle.open(demo_bundle).manifest
    tokenizer = PairTokenizer.from_file(demo_bundle / TOKENIZER_NAME, manifest.pair_template, manifest.truncation)
    english, german = (
        workload_from_records(read_run(shared_data / f"xquad-{language}" / "bm25-top10.jsonl"), tokenizer)
        for language in ("en", "de")
    )

    assert german.mean_length > 1.5 * english.mean_length
    edges = [
        [profile.sequence_length.max for profile in profiles_from_lengths(work, max_length=512, max_tokens=16_384)]
        for work in (english, german)
    ]
    assert all(longer > shorter for shorter, longer in zip(*(of[:-1] for of in edges), strict=True))
