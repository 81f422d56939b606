from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import InputError, Truncation, TruncationSide
from crossforge.runtime.token_cache import TokenCache
from crossforge.runtime.tokenization import PairTokenizer
from support.families import FAMILIES, TEMPLATES, make_tokenizer
from support.strategies import no_deadline, words

sides = st.sampled_from(list(TruncationSide))
limits = st.tuples(st.integers(min_value=1, max_value=20), st.integers(min_value=1, max_value=40))


def make_truncation(family: str, query_max_length: int, room: int, side: TruncationSide) -> Truncation:
    """A contract that leaves at least ``room`` tokens to a passage."""
    max_length = query_max_length + TEMPLATES[family].special_token_count + room
    return Truncation(max_length=max_length, query_max_length=query_max_length, side=side)


def keep(ids: list[int], count: int, side: TruncationSide) -> list[int]:
    excess = max(0, len(ids) - count)
    return ids[: len(ids) - excess] if side is TruncationSide.RIGHT else ids[excess:]


@pytest.mark.parametrize("family", FAMILIES)
@given(query=words.filter(bool), passages=st.lists(words, max_size=3), limit=limits, side=sides)
@no_deadline
def test_the_query_keeps_its_length_and_the_passage_gives_way(
    family: str, query: str, passages: list[str], limit: tuple[int, int], side: TruncationSide
) -> None:
    truncation = make_truncation(family, *limit, side)
    template, real = TEMPLATES[family], make_tokenizer(family)
    query_ids = real.encode(query, add_special_tokens=False).ids
    kept_query = keep(query_ids, truncation.query_max_length, side)

    pairs = PairTokenizer(make_tokenizer(family), template, truncation).encode(query, passages)

    assert pairs.heads[0].tolist() == [*template.prefix.ids, *kept_query, *template.separator.ids]
    for i, passage in enumerate(passages):
        ids = real.encode(passage, add_special_tokens=False).ids
        room = truncation.max_length - len(kept_query) - template.special_token_count
        assert pairs.passages[i].tolist() == keep(ids, room, side)
        assert pairs.lengths[i] == min(truncation.max_length, len(kept_query) + len(ids) + template.special_token_count)
        assert pairs.query_truncated[i] == (len(query_ids) > truncation.query_max_length)
        assert pairs.truncated[i] == (pairs.query_truncated[i] or len(ids) > room)


@pytest.mark.parametrize("family", FAMILIES)
@given(query=st.sampled_from(["the", "city live"]), passage=words, room=st.integers(min_value=1, max_value=40), side=sides)
@no_deadline
def test_a_passage_is_cut_as_the_tokenizer_cuts_only_the_second(
    family: str, query: str, passage: str, room: int, side: TruncationSide
) -> None:
    real = make_tokenizer(family)
    truncation = make_truncation(family, 20, room, side)
    real.enable_truncation(truncation.max_length, strategy="only_second", direction=str(side))
    encoding = real.encode(query, passage)

    pairs = PairTokenizer(make_tokenizer(family), TEMPLATES[family], truncation).encode(query, [passage])

    ids = [*pairs.heads[0].tolist(), *pairs.passages[0].tolist(), *TEMPLATES[family].suffix.ids]
    assert ids == encoding.ids
    assert bool(pairs.truncated[0]) == bool(encoding.overflowing)


@pytest.mark.parametrize("family", FAMILIES)
@given(query=words.filter(bool), passages=st.lists(words, max_size=3), limit=limits, side=sides)
@no_deadline
def test_what_is_read_of_a_text_ends_where_the_first_lost_token_begins(
    family: str, query: str, passages: list[str], limit: tuple[int, int], side: TruncationSide
) -> None:
    truncation = make_truncation(family, *limit, side)
    real, tokenizer = make_tokenizer(family), PairTokenizer(make_tokenizer(family), TEMPLATES[family], truncation)
    pairs = tokenizer.encode(query, passages)

    spans = tokenizer.read_spans(query, passages)

    kept_query = keep(real.encode(query, add_special_tokens=False).ids, truncation.query_max_length, side)
    for text, kept, (start, end) in zip(
        [query, *passages], [kept_query, *(ids.tolist() for ids in pairs.passages)], spans, strict=True
    ):
        encoding = real.encode(text, add_special_tokens=False)
        lost = len(encoding.ids) - len(kept)
        if side is TruncationSide.RIGHT:
            kept_tokens, lost_tokens = encoding.offsets[: len(kept)], encoding.offsets[len(kept) :]
            assert all(first >= end for first, _ in lost_tokens)
        else:
            kept_tokens, lost_tokens = encoding.offsets[lost:], encoding.offsets[:lost]
            assert all(last <= start for _, last in lost_tokens)
        # A character that a kept token shares with a lost one was not read.
        assert all(start - 1 <= first and last <= end + 1 for first, last in kept_tokens)
        assert (start, end) == (0, len(text)) or lost


@pytest.mark.parametrize(
    ("side", "kept"), [(TruncationSide.RIGHT, ["the", "city", "where"]), (TruncationSide.LEFT, ["people", "live", "is"])]
)
def test_the_side_says_which_end_is_lost(side: TruncationSide, kept: list[str]) -> None:
    tokenizer = make_tokenizer()
    truncation = make_truncation("bert", 1, 3, side)

    pairs = PairTokenizer(tokenizer, TEMPLATES["bert"], truncation).encode("query", ["the city where people live is"])

    assert [tokenizer.id_to_token(i) for i in pairs.passages[0]] == kept


@pytest.mark.parametrize("side", TruncationSide)
def test_a_contract_without_room_for_a_passage_is_refused(side: TruncationSide) -> None:
    with pytest.raises(ValueError, match="room"):
        PairTokenizer(make_tokenizer(), TEMPLATES["bert"], make_truncation("bert", 4, -2, side))


def test_each_pair_is_told_who_was_cut() -> None:
    truncation = make_truncation("bert", 2, 4, TruncationSide.RIGHT)
    short, long = "the city", "the city where people live is the city"

    pairs = PairTokenizer(make_tokenizer(), TEMPLATES["bert"], truncation).encode_pairs(
        [(short, short), (short, long), (long, short), (long, long), (short, "")]
    )

    assert pairs.truncated.tolist() == [False, True, True, True, False]
    assert pairs.query_truncated.tolist() == [False, False, True, True, False]
    assert pairs.lengths.tolist() == [7, 9, 7, 9, 5]


@given(passage=words, most=st.integers(min_value=1, max_value=40), room=st.integers(min_value=1, max_value=20), side=sides)
@no_deadline
def test_a_passage_may_be_cut_shorter_than_the_model_reads_but_not_longer(
    passage: str, most: int, room: int, side: TruncationSide
) -> None:
    truncation = make_truncation("bert", 1, room, side)
    tokenizer = PairTokenizer(make_tokenizer(), TEMPLATES["bert"], truncation)
    ids = make_tokenizer().encode(passage, add_special_tokens=False).ids

    pairs = tokenizer.encode("the", [passage], max_passage_tokens=most)

    assert pairs.passages[0].tolist() == keep(ids, min(most, room), side)
    assert pairs.truncated[0] == (len(ids) > min(most, room))


def test_a_passage_of_no_tokens_is_not_asked_for() -> None:
    tokenizer = PairTokenizer(make_tokenizer(), TEMPLATES["bert"], make_truncation("bert", 1, 5, TruncationSide.RIGHT))
    with pytest.raises(InputError, match="max_passage_tokens"):
        tokenizer.encode("the", ["city"], max_passage_tokens=0)


@pytest.mark.parametrize("family", FAMILIES)
@given(pairs=st.lists(st.tuples(words.filter(bool), words), max_size=4), room=st.integers(2, 41), side=sides)
@no_deadline
def test_texts_of_equal_standing_are_cut_as_the_tokenizer_cuts_the_longest_first(
    family: str, pairs: list[tuple[str, str]], room: int, side: TruncationSide
) -> None:
    real, template = make_tokenizer(family), TEMPLATES[family]
    truncation = Truncation(max_length=room + template.special_token_count, query_max_length=None, side=side)
    lengths = [[len(real.encode(text, add_special_tokens=False).ids) for text in pair] for pair in pairs]
    real.enable_truncation(truncation.max_length, strategy="longest_first", direction=str(side))
    expected = [real.encode(*pair) for pair in pairs]
    cache = TokenCache(10_000)
    for _ in range(2):  # the second time from the cache
        tokenizer = PairTokenizer(make_tokenizer(family), template, truncation, cache=cache)
        encoded = tokenizer.encode_pairs(pairs)
        heads = [encoded.heads[head].tolist() for head in encoded.head_of_pair]
        ids = [[*head, *text.tolist(), *template.suffix.ids] for head, text in zip(heads, encoded.passages, strict=True)]
        assert ids == [encoding.ids for encoding in expected]
        assert encoded.lengths.tolist() == [len(encoding.ids) for encoding in expected]
        assert encoded.truncated.tolist() == [sum(both) > room for both in lengths]
        kept = [len(head) - len(template.prefix.ids) - len(template.separator.ids) for head in heads]
        assert encoded.query_truncated.tolist() == [k < first for k, (first, _) in zip(kept, lengths, strict=True)]


def test_a_text_keeps_more_beside_a_short_one() -> None:
    truncation = Truncation(max_length=8 + 3, query_max_length=None, side=TruncationSide.RIGHT)
    tokenizer = PairTokenizer(make_tokenizer(), TEMPLATES["bert"], truncation)
    long = "the city where people live is the city"

    pairs = tokenizer.encode(long, ["", "the city", long])

    assert [len(ids) for ids in pairs.passages] == [0, 2, 4]
    assert pairs.query_truncated.tolist() == [False, True, True]
    assert len(pairs.heads) == 3
    assert tokenizer.read_spans(long, ["the city", long]) == [(0, len("the city where people")), (0, 8), (0, 21)]
