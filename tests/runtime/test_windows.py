"""Passages that are too long for the model: split into windows, and scored by the best of them."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import InputError, RequestTooLargeError, Truncation, TruncationSide, TruncationWarning
from crossforge.runtime import Chunking, FakeSession, PairTokenizer, Reranker, Window
from crossforge.runtime.microbatch import MicroBatcher
from crossforge.runtime.token_cache import TokenCache
from crossforge.runtime.tokenization import EncodedPairs
from crossforge.runtime.windows import cut_windows
from support.builders import fake_reranker, make_manifest, make_scoring
from support.families import FAMILIES, TEMPLATES, different_passages, make_tokenizer
from support.sessions import WAIT_S
from support.strategies import no_deadline, texts, words

QUERY = "where is the city"
LONG = (
    "the people live where the passage is " * 30 + "berlin berlin berlin " + "a query is the passage where people live " * 30
)
SHORT = "people live in berlin"
BERLIN = make_tokenizer().token_to_id("berlin")
overlaps = st.floats(min_value=0.0, max_value=0.9)
sides = st.sampled_from(list(TruncationSide))


def count_berlin(ids: Any) -> float:
    """A score that the planted words raise."""
    return float((ids == BERLIN).sum())


def pair_tokenizer(family: str, room: int, side: TruncationSide = TruncationSide.RIGHT, **options: Any) -> PairTokenizer:
    max_length = 16 + TEMPLATES[family].special_token_count + room
    truncation = Truncation(max_length=max_length, query_max_length=16, side=side)
    return PairTokenizer(make_tokenizer(family), TEMPLATES[family], truncation, **options)


# Where windows are cut


@given(tokens=st.integers(1, 5000), room=st.integers(1, 600), overlap=overlaps)
@no_deadline
def test_windows_cover_every_token_and_none_is_too_long(tokens: int, room: int, overlap: float) -> None:
    windows = cut_windows(tokens, room, overlap)

    assert windows[0][0] == 0
    assert windows[-1][1] == tokens
    assert all(start < next_start <= end for (start, end), (next_start, _) in pairwise(windows))
    assert all(end - start <= room for start, end in windows)


@given(tokens=st.integers(1, 5000), room=st.integers(1, 600), overlap=overlaps)
@no_deadline
def test_windows_are_equal_and_overlap_as_asked(tokens: int, room: int, overlap: float) -> None:
    windows = cut_windows(tokens, room, overlap)

    assert len({end - start for start, end in windows}) == 1
    shared = min(int(room * overlap), room - 1)
    assert all(shared <= end - next_start <= shared + 2 for (_, end), (next_start, _) in pairwise(windows))


@given(tokens=st.integers(1, 5000), room=st.integers(1, 600), overlap=overlaps)
@no_deadline
def test_no_fewer_windows_would_do(tokens: int, room: int, overlap: float) -> None:
    count = len(cut_windows(tokens, room, overlap))
    shared = min(int(room * overlap), room - 1)

    assert count == 1 if tokens <= room else room + (count - 2) * (room - shared) < tokens
    assert count == 1 + max(0, ceil((tokens - room) / (room - shared)))


@pytest.mark.parametrize("family", FAMILIES)
@given(
    query=st.sampled_from(["the", "city live"]), passage=words | texts, room=st.integers(1, 40), overlap=overlaps, side=sides
)
@no_deadline
def test_windows_hold_the_tokens_of_the_whole_text_and_say_where_they_stand(
    family: str, query: str, passage: str, room: int, overlap: float, side: TruncationSide
) -> None:
    tokenizer = pair_tokenizer(family, room, side)
    whole = make_tokenizer(family).encode(passage, add_special_tokens=False)

    pairs = tokenizer.encode(query, [passage, ""], chunk=Chunking(overlap=overlap))

    assert pairs.windows is not None
    count = int(pairs.windows.first_row[1])
    assert len(pairs) == count + 1
    windows, spans = pairs.passages[:count], pairs.windows.spans[:count].tolist()
    assert pairs.lengths.max() <= tokenizer.truncation.max_length
    places = cut_windows(len(whole.ids), tokenizer.truncation.max_length - int(pairs.lengths[-1]), overlap)
    read = 0
    for ids, (first, last), (start, end) in zip(windows, places, spans, strict=True):
        assert ids.tolist() == whole.ids[first:last]
        assert read <= end <= len(passage)
        between = [token for token in whole.offsets if token[0] < token[1] and read < token[1] <= start]
        assert not between, "only what has no token, or a token without characters, lies between"
        assert all(start <= token_start <= token_end <= end for token_start, token_end in whole.offsets[first:last])
        read = end
    assert read == len(passage)
    assert not pairs.truncated.any()


@pytest.mark.parametrize("side", TruncationSide)
def test_a_query_that_is_cut_is_still_reported(side: TruncationSide) -> None:
    pairs = pair_tokenizer("bert", 20, side).encode_pairs([("city " * 17, LONG), ("city", LONG)], chunk="max")

    assert pairs.windows is not None
    owner = np.arange(len(pairs)) < pairs.windows.first_row[1]
    np.testing.assert_array_equal(pairs.truncated, owner)
    np.testing.assert_array_equal(pairs.query_truncated, owner)


# What a passage scores


@given(passages=st.lists(words, max_size=8), query=st.sampled_from([QUERY, "city"]))
@no_deadline
def test_passages_that_fit_score_as_without(passages: list[str], query: str) -> None:
    manifest = make_manifest(truncation=Truncation(max_length=512, query_max_length=64, side=TruncationSide.RIGHT))
    with fake_reranker(manifest=manifest) as reranker:
        assert reranker.rank(query, passages, chunk="max") == reranker.rank(query, passages)
        np.testing.assert_array_equal(reranker.score(query, passages, chunk="max"), reranker.score(query, passages))


@pytest.mark.parametrize("family", ["one label", "three labels"])
def test_a_long_passage_scores_as_its_best_window(family: str) -> None:
    labels = 1 if family == "one label" else 3
    manifest = make_manifest(scoring=make_scoring(labels, ranking_label=labels - 1))
    with fake_reranker(uneven(labels), manifest=manifest, budget_tokens=200) as reranker:
        encoded = reranker.tokenizer.encode(QUERY, [LONG], chunk="max")
        alone = [reranker.relevance(reranker.compute_logits(row(encoded, i))[0])[0] for i in range(len(encoded))]
        scored = reranker.score_pairs([(QUERY, SHORT), (QUERY, LONG)], chunk="max")

    assert len(alone) > 5
    assert reranker.relevance(scored.logits)[1] == pytest.approx(max(alone), abs=1e-5)
    assert scored.windows is not None
    short, long = scored.windows
    assert short is None
    assert long is not None
    assert (long.index, long.count) == (int(np.argmax(alone)), len(alone))
    assert scored.token_counts[1] == encoded.lengths.sum()
    assert not scored.truncated.any()


def uneven(labels: int) -> FakeSession:
    """Its labels do not rank alike: with several, the logit that ranks best is not that of the best window."""

    class Uneven(FakeSession):
        def run(self, batch: Any) -> Any:
            logits = super().run(batch)
            return logits * np.linspace(1, -1, labels, dtype=np.float32) if labels > 1 else logits

    return Uneven(lambda ids: float(ids.sum() % 97) / 10, labels=labels)


def row(pairs: EncodedPairs, index: int) -> EncodedPairs:
    return pairs.take(np.asarray([index]))


def test_the_window_that_won_holds_what_was_planted() -> None:
    with fake_reranker(FakeSession(count_berlin)) as reranker:
        best, other = reranker.rank(QUERY, ["the city", LONG], chunk="max")

    assert (best.corpus_id, best.score, best.truncated) == (1, 3.0, False)
    assert best.window is not None
    assert "berlin berlin berlin" in best.text[best.window.start : best.window.end]
    assert 0 < best.window.index < best.window.count - 1
    assert other.window is None


def test_of_equal_windows_the_first_wins() -> None:
    with fake_reranker(FakeSession(lambda _: 1.0)) as reranker:
        (ranked,) = reranker.rank(QUERY, [LONG], chunk=Chunking(overlap=0))

    assert ranked.window is not None
    assert (ranked.window.index, ranked.window.start) == (0, 0)


def test_nothing_is_reported_as_cut() -> None:
    with fake_reranker() as reranker, warnings.catch_warnings():
        warnings.simplefilter("error")
        reranker.score(QUERY, [LONG], chunk="max")
    with fake_reranker() as reranker, pytest.warns(TruncationWarning):
        reranker.score(QUERY, [LONG])


def test_all_windows_share_batches_and_the_budget_holds() -> None:
    passages = [
        SHORT,
        " ".join(different_passages(200, words=2)),
        "the city",
        " ".join(reversed(different_passages(200, words=2))),
    ]
    session = FakeSession()
    with fake_reranker(session, budget_tokens=256) as reranker:
        reranker.score(QUERY, passages, chunk="max")
        windows = reranker.tokenizer.encode(QUERY, passages, chunk="max")

    assert len(windows) > 2 * len(passages)
    assert all(batch["input_ids"].size <= 256 for batch in session.batches)
    assert sum(len(batch["input_ids"]) for batch in session.batches) == len(windows)
    assert len(session.batches) <= windows.lengths.sum() / 256 + 2


def test_equal_windows_are_computed_once() -> None:
    session = FakeSession()
    with fake_reranker(session) as reranker:
        scored = reranker.score_pairs([(QUERY, LONG)] * 5, chunk="max")
        windows = len(reranker.tokenizer.encode(QUERY, [LONG], chunk="max"))

    assert len(scored.logits) == 5
    assert sum(len(batch["input_ids"]) for batch in session.batches) <= windows


def test_a_cached_long_passage_is_split_like_a_fresh_one() -> None:
    cache = TokenCache(100_000)
    cached, fresh = pair_tokenizer("bert", 30, cache=cache), pair_tokenizer("bert", 30)
    cached.encode(QUERY, [LONG, SHORT])

    pairs, expected = (tokenizer.encode(QUERY, [LONG, SHORT], chunk="max") for tokenizer in (cached, fresh))

    assert cache.hits == 2
    assert [ids.tolist() for ids in pairs.passages] == [ids.tolist() for ids in expected.passages]
    cut, expected = (tokenizer.encode(QUERY, [LONG]) for tokenizer in (cached, fresh))
    assert cut.passages[0].tolist() == expected.passages[0].tolist(), "the cache gives a split passage as it gives a cut one"


def test_a_passage_may_fit_beside_one_query_and_not_beside_another() -> None:
    passage = "city " * 24
    pairs = pair_tokenizer("bert", 12).encode_pairs([("the", passage), ("the " * 16, passage)], chunk="max")

    assert pairs.windows is not None
    assert pairs.windows.first_row.tolist() == [0, 1]
    assert len(pairs) == 4
    assert len(pairs.passages[0]) == 24


def test_windows_may_be_shorter_than_what_the_model_reads() -> None:
    pairs = pair_tokenizer("bert", 100).encode("city", ["city " * 60, "city " * 20], chunk=Chunking(window_tokens=20))

    assert pairs.windows is not None
    assert pairs.windows.first_row.tolist() == [0, 4]
    assert max(map(len, pairs.passages)) <= 20


def test_no_passages_give_no_windows() -> None:
    with fake_reranker() as reranker:
        assert reranker.rank(QUERY, [], chunk="max") == []
        assert reranker.score_pairs([], chunk="max").windows == ()


# Through the micro-batcher


def test_the_micro_batcher_answers_as_the_reranker_does() -> None:
    pairs = [(QUERY, SHORT), (QUERY, LONG), ("query", LONG)]
    with fake_reranker(FakeSession(count_berlin), budget_tokens=128) as reranker, MicroBatcher(reranker) as batcher:
        expected = reranker.score_pairs(pairs, chunk="max")
        futures = [batcher.submit_pairs(pairs, chunk="max"), batcher.schedule(QUERY, [SHORT, LONG], chunk="max")]
        scored, first_two = (future.result(WAIT_S) for future in futures)

    assert scored.windows == expected.windows
    assert first_two.windows == expected.windows[:2] if expected.windows else False
    for name in ("logits", "truncated", "token_counts", "unknown_tokens"):
        np.testing.assert_array_equal(getattr(scored, name), getattr(expected, name))


async def _rank(batcher: MicroBatcher) -> Any:
    return await batcher.rank(QUERY, [SHORT, LONG], chunk="max"), await batcher.score(QUERY, [SHORT, LONG], chunk="max")


def test_the_micro_batcher_ranks_windows() -> None:
    with fake_reranker(FakeSession(count_berlin)) as reranker, MicroBatcher(reranker) as batcher:
        ranking, scores = asyncio.run(_rank(batcher))
        assert ranking == reranker.rank(QUERY, [SHORT, LONG], chunk="max")
        assert scores.tolist() == [1.0, 3.0]


# What is refused


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ("mean", "unknown chunk; got 'mean'; allowed: None, max"),
        (True, "unknown chunk; got True"),
        (0.5, "unknown chunk; got 0.5"),
    ],
)
def test_an_unknown_chunk_is_refused(chunk: Any, message: str) -> None:
    with fake_reranker() as reranker, pytest.raises(InputError, match=message):
        reranker.rank(QUERY, [SHORT], chunk=chunk)


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="window_tokens is too small; got 0; allowed: 1 or more"):
        Chunking(window_tokens=0)


@pytest.mark.parametrize("overlap", [-0.1, 0.95, 1, float("nan")])
def test_an_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(InputError, match=r"the overlap of windows is out of range; got .*; allowed: 0.0 to 0.9"):
        Chunking(overlap=overlap)


def test_cutting_and_splitting_together_are_refused() -> None:
    with pytest.raises(InputError, match="a passage cannot be both cut and split"):
        pair_tokenizer("bert", 30).encode(QUERY, [LONG], max_passage_tokens=10, chunk="max")


def test_a_model_without_a_label_that_ranks_cannot_choose_a_window() -> None:
    session = FakeSession(labels=3)
    manifest = make_manifest(scoring=make_scoring(3, ranking_label=None))
    with fake_reranker(session, manifest=manifest) as reranker, MicroBatcher(reranker) as batcher:
        for ask in (reranker.score_pairs, batcher.submit_pairs):
            with pytest.raises(InputError, match="no label that ranks"):
                ask([(QUERY, LONG)], chunk="max")
    assert session.batches == []


# The embedded model


FILLER = (
    "The kettle boils water in less than three minutes, and the lid opens at the press of a button. ",
    "Oranges and lemons are rich in vitamin C, and so are peppers and most berries of the garden. ",
    "The court dismissed the claim for want of jurisdiction, and the parties bore their own costs. ",
)
ANSWER = "Berlin has about 3.8 million inhabitants. "


def planted(before: int, after: int) -> str:
    return "".join(FILLER[i % 3] for i in range(before)) + ANSWER + "".join(FILLER[i % 3] for i in range(after))


@pytest.fixture(scope="module")
def reranker(demo_bundle: Any) -> Any:
    with Reranker.load(demo_bundle, provider="cpu", precision="fp32") as loaded:
        yield loaded


def score_of_parts(reranker: Reranker, query: str, passage: str) -> Sequence[float]:
    encoded = reranker.tokenizer.encode(query, [passage], chunk="max")
    return [float(reranker.compute_logits(row(encoded, i))[0][0, 0]) for i in range(len(encoded))]


def test_the_demo_model_finds_an_answer_past_its_limit(reranker: Reranker) -> None:
    query = "How many people live in Berlin?"
    long, unrelated = planted(45, 15), planted(20, 0).replace(ANSWER, "")
    best = reranker.rank(query, [unrelated, long], chunk="max")[0]

    assert best.corpus_id == 1
    assert isinstance(best.window, Window)
    assert ANSWER.strip() in long[best.window.start : best.window.end]
    assert best.score == pytest.approx(max(score_of_parts(reranker, query, long)), abs=1e-5)
    cut = reranker.score_pairs([(query, long)])
    assert cut.truncated.all()
    assert best.score > cut.logits[0, 0] + 0.5, "the answer is beyond what is read of a cut passage"
    short = reranker.rank(query, [long], chunk=Chunking(window_tokens=96))[0]
    assert isinstance(short.window, Window)
    assert ANSWER.strip() in long[short.window.start : short.window.end]
    np.testing.assert_array_equal(
        reranker.score(query, [ANSWER, FILLER[0]], chunk="max"), reranker.score(query, [ANSWER, FILLER[0]])
    )


def test_windows_beyond_the_most_tokens_are_refused_and_equal_passages_count_once() -> None:
    tokenizer = pair_tokenizer("bert", 40)
    tokens = int(tokenizer.encode(QUERY, [LONG, SHORT], chunk="max").lengths.sum())

    assert len(tokenizer.encode(QUERY, [LONG, LONG, SHORT], chunk=Chunking(max_tokens=tokens)))
    with pytest.raises(RequestTooLargeError, match=f"got {tokens:,} tokens"):
        tokenizer.encode(QUERY, [LONG, SHORT], chunk=Chunking(max_tokens=tokens - 1))
