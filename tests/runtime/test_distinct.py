from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import InputError, Truncation, TruncationSide
from crossforge.runtime import FakeSession
from crossforge.runtime.distinct import find_distinct
from crossforge.runtime.microbatch import MicroBatcher
from support.builders import fake_reranker, make_manifest
from support.strategies import no_deadline

REPEATED = ["berlin", "the city", "berlin", "berlin", "people live", "the city"]
few_texts = st.sampled_from(["berlin", "the city", "people live in berlin", ""])


def rows_run(session: FakeSession) -> int:
    return sum(len(batch["input_ids"]) for batch in session.batches)


@given(pairs=st.lists(st.tuples(st.sampled_from(["where", "who is"]), few_texts), max_size=12))
@no_deadline
def test_every_pair_finds_its_own_tokens_among_the_distinct_ones(pairs: list[tuple[str, str]]) -> None:
    with fake_reranker() as reranker:
        asked = reranker.tokenizer.encode_pairs(pairs)
    distinct = find_distinct(asked)

    assert len(distinct.pairs) == len(set(pairs))
    for i, j in enumerate(distinct.position):
        np.testing.assert_array_equal(asked.passages[i], distinct.pairs.passages[j])
        assert asked.head_of_pair[i] == distinct.pairs.head_of_pair[j]
        assert asked.lengths[i] == distinct.pairs.lengths[j]


def test_a_passage_that_repeats_is_computed_once_and_scored_each_time() -> None:
    session = FakeSession()
    with fake_reranker(session) as reranker:
        scores = reranker.score("where", REPEATED)
        alone = [float(reranker.score("where", [text])[0]) for text in REPEATED]

    assert rows_run(session) == 3 + len(REPEATED)
    assert scores.tolist() == alone


def test_equal_passages_of_different_queries_are_different_pairs() -> None:
    session = FakeSession()
    with fake_reranker(session) as reranker:
        reranker.predict([("where", "berlin"), ("who is", "berlin")])

    assert rows_run(session) == 2


def test_passages_that_are_equal_once_cut_are_computed_once_and_say_which_was_cut() -> None:
    session = FakeSession()
    manifest = make_manifest(truncation=Truncation(max_length=8, query_max_length=2, side=TruncationSide.RIGHT))
    with fake_reranker(session, manifest=manifest) as reranker:
        scored = reranker.score_pairs([("where", "the city the city"), ("where", "the city the city berlin")])

    assert rows_run(session) == 1
    assert scored.truncated.tolist() == [False, True]
    assert scored.token_counts.tolist() == [8, 8]
    assert scored.logits[0] == scored.logits[1]


def test_ties_of_equal_passages_keep_their_order() -> None:
    with fake_reranker() as reranker:
        ranking = reranker.rank("where", ["berlin"] * 4)

    assert [item.corpus_id for item in ranking] == [0, 1, 2, 3]


def test_the_micro_batcher_computes_a_repeated_passage_of_a_request_once() -> None:
    session = FakeSession()
    with fake_reranker(session) as reranker:
        with MicroBatcher(reranker) as batcher:
            scored = batcher.submit("where", REPEATED).result(timeout=30)
            pairs = batcher.stats().pairs
        alone = reranker.score_pairs([("where", text) for text in REPEATED])

    assert pairs == 3
    np.testing.assert_array_equal(scored.logits, alone.logits)
    np.testing.assert_array_equal(scored.token_counts, alone.token_counts)


def test_a_bad_text_is_refused_by_its_own_place() -> None:
    with fake_reranker() as reranker, pytest.raises(InputError, match="passage 2"):
        reranker.score("where", ["berlin", "berlin", 3])  # type: ignore[list-item]
