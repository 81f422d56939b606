from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import DeploymentProfile, InputError, Truncation, TruncationSide
from crossforge.runtime import Reranker
from crossforge.runtime.token_cache import Ids, TokenCache
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer
from support.families import BERT_TEMPLATE, make_tokenizer
from support.strategies import no_deadline, words

ENTRY = 256 + 1 + 4  # one character, one id


def ids(*values: int) -> Ids:
    return np.asarray(values, dtype=np.int32)


def make(cache: TokenCache | None, *, max_length: int = 12, side: TruncationSide = TruncationSide.RIGHT) -> PairTokenizer:
    truncation = Truncation(max_length=max_length, query_max_length=4, side=side)
    return PairTokenizer(make_tokenizer(), BERT_TEMPLATE, truncation, cache=cache)


def assert_equal(one: EncodedPairs, other: EncodedPairs) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one.passages, other.passages, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name in ("lengths", "truncated", "query_truncated", "unknown_tokens", "head_of_pair"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@given(
    rounds=st.lists(st.lists(words, max_size=6), min_size=1, max_size=5),
    max_bytes=st.integers(min_value=1, max_value=3000),
    side=st.sampled_from(TruncationSide),
)
@no_deadline
def test_a_cache_changes_nothing_but_the_work(rounds: list[list[str]], max_bytes: int, side: TruncationSide) -> None:
    cached, plain = make(TokenCache(max_bytes), side=side), make(None, side=side)
    for passages in rounds:
        assert_equal(cached.encode("where is", passages), plain.encode("where is", passages))


def test_a_passage_is_tokenized_once_for_all_queries_and_for_all_its_places() -> None:
    cache = TokenCache(10_000)
    tokenizer = make(cache)
    tokenizer.encode("where", ["berlin", "the city", "berlin"])
    assert (cache.hits, cache.misses, len(cache)) == (0, 2, 2)
    tokenizer.encode("who is", ["the city", "people"])
    assert (cache.hits, cache.misses, len(cache)) == (1, 3, 3)


def test_of_a_long_passage_no_more_is_held_than_the_model_reads() -> None:
    cache = TokenCache(100_000)
    tokenizer = make(cache)
    first = tokenizer.encode("where", ["city " * 1000])
    again = tokenizer.encode("where", ["city " * 1000])

    assert cache.hits == 1
    assert cache.size_bytes <= 5000 + 4 * 13 + 256
    assert_equal(first, again)
    assert again.truncated.tolist() == [True]


def test_what_was_not_asked_for_longest_goes_first() -> None:
    cache = TokenCache(2 * ENTRY)
    cache.add({"a": ids(1), "b": ids(2)})
    cache.find(["a"])
    cache.add({"c": ids(3)})

    assert set(cache.find(["a", "b", "c"])) == {"a", "c"}
    assert cache.size_bytes == 2 * ENTRY


def test_a_text_larger_than_the_cache_is_left_out_and_drops_nothing() -> None:
    cache = TokenCache(2 * ENTRY)
    cache.add({"a": ids(1), "x" * 1000: ids(2)})
    assert set(cache.find(["a", "x" * 1000])) == {"a"}


@given(texts=st.lists(st.text(max_size=40), max_size=40), max_bytes=st.integers(min_value=1, max_value=2000))
@no_deadline
def test_the_bound_holds_and_the_count_is_true(texts: list[str], max_bytes: int) -> None:
    cache = TokenCache(max_bytes)
    for text in texts:
        cache.add({text: ids(*range(len(text) % 7))})
        assert cache.size_bytes <= max_bytes
    held = cache.find(list(dict.fromkeys(texts)))
    assert len(held) == len(cache)
    assert all(np.array_equal(found, ids(*range(len(text) % 7))) for text, found in held.items())


def test_threads_share_it() -> None:
    cache = TokenCache(20 * ENTRY)
    tokenizer, plain = make(cache), make(None)
    requests = [list("abcdefghijklmnopqrstuvwxyz"[i % 20 :]) for i in range(200)]
    with ThreadPoolExecutor(4) as callers:
        for got, passages in zip(callers.map(lambda each: tokenizer.encode("where", each), requests), requests, strict=True):
            assert_equal(got, plain.encode("where", passages))
    assert cache.size_bytes == len(cache) * ENTRY


def test_a_deployment_profile_switches_it_on(demo_bundle: Path, tmp_path: Path) -> None:
    profile = tmp_path / "deployment.toml"
    profile.write_text("passage_cache_bytes = 1_000_000\n")
    with (
        Reranker.load(demo_bundle, deployment=DeploymentProfile.from_toml(profile)) as cached,
        Reranker.load(demo_bundle) as plain,
    ):
        passages = ["the city", "berlin"]
        for query in ("where", "who"):
            np.testing.assert_array_equal(cached.score(query, passages), plain.score(query, passages))
        assert plain.tokenizer.cache is None
        assert cached.tokenizer.cache is not None
        assert (cached.tokenizer.cache.hits, cached.tokenizer.cache.misses) == (2, 2)


def test_a_cache_of_no_size_is_refused() -> None:
    with pytest.raises(InputError, match="the passage cache is too small; got 0 bytes"):
        TokenCache(0)
