"""The pairs that come with the package."""

from __future__ import annotations

from dataclasses import replace

from crossforge.export.pairs import berlin, builtin_pairs, calibration_pairs, digest_pairs, flatten, verification_pairs
from crossforge.runtime.records import Passage, QueryRecord


def texts(records: list[QueryRecord]) -> set[str]:
    return {text for pair in flatten(records) for text in pair}


def test_there_are_24_queries_with_10_passages_each() -> None:
    records = builtin_pairs()
    assert len(records) == 24
    assert {len(record.passages) for record in records} == {10}
    assert len(texts(records)) == 24 * 11, "a text comes twice"


def test_the_pairs_are_of_many_lengths_and_scripts() -> None:
    lengths = [len(passage) for _, passage in flatten(builtin_pairs())]
    assert min(lengths) < 100
    assert max(lengths) > 1500
    assert any(not query.isascii() for query, _ in flatten(builtin_pairs()))


def test_verification_ranks_twenty_passages_a_query() -> None:
    records = verification_pairs()
    assert len(records) == 12
    for record in records:
        assert len({passage.id for passage in record.passages}) == 20


def test_every_query_is_verified_on_its_own_passages_first() -> None:
    own = {record.qid: record.passages for record in builtin_pairs()}
    for record in verification_pairs():
        assert record.passages[:10] == own[record.qid]


def test_calibration_and_verification_share_no_text() -> None:
    assert not texts(calibration_pairs()) & texts(verification_pairs())
    assert texts(calibration_pairs()) | texts(verification_pairs()) == texts(builtin_pairs())


def test_the_demonstration_asks_about_berlin() -> None:
    record = berlin()
    assert record.query == "How many people live in Berlin?"
    assert len(record.passages) == 14
    assert sum("Berlin" in passage.text for passage in record.passages) >= 4


def test_pairs_are_flattened_in_order() -> None:
    first = QueryRecord(qid="1", query="q", passages=(Passage(id="a", text="x"), Passage(id="b", text="y")))
    second = QueryRecord(qid="2", query="r", passages=(Passage(id="a", text="z"),))
    assert flatten([first, second]) == [("q", "x"), ("q", "y"), ("r", "z")]


def test_the_digest_is_of_the_texts_in_their_order() -> None:
    records = builtin_pairs()
    digest = digest_pairs(records)
    assert digest == digest_pairs(builtin_pairs())
    assert digest != digest_pairs(records[::-1])
    assert digest != digest_pairs(records[1:])
    renamed = [replace(record, qid=f"other-{record.qid}") for record in records]
    assert digest == digest_pairs(renamed)


def test_the_digest_sees_where_a_text_ends() -> None:
    def one(query: str, passage: str) -> list[QueryRecord]:
        return [QueryRecord(qid="1", query=query, passages=(Passage(id="1", text=passage),))]

    assert digest_pairs(one("ab", "c")) != digest_pairs(one("a", "bc"))
