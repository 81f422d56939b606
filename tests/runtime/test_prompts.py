"""A prompt's tokens are those that the checkpoint's own code makes of the filled text, whatever the texts are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from crossforge.export.causal import QWEN3
from crossforge.profiles import InputError, Prompt, Truncation, TruncationSide
from crossforge.runtime.distinct import find_distinct
from crossforge.runtime.prompts import PromptTokenizer
from crossforge.runtime.templates import derive_prompt_template
from crossforge.runtime.token_cache import TokenCache
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer
from support.causal_models import CARD_PREFIX, CARD_SUFFIX, CARD_TASK, make_tokenizer
from support.families import BERT_TEMPLATE
from support.families import make_tokenizer as make_family_tokenizer

REFERENCE = make_tokenizer()
LONG = Truncation(max_length=4000, query_max_length=900, side=TruncationSide.RIGHT)
SHORT = Truncation(max_length=110, query_max_length=12, side=TruncationSide.RIGHT)
QUERY = "How many people live in Berlin?"
PASSAGE = "Berlin has a population of 3,520,031 registered inhabitants."
EDGES = (
    "", " ", "  a", "a  ", "\n", "\n\na", "a\n\n", "\r\nb\r\n", "\ta\t", ":", "...", "?!", "(a)", "'s", "s'", "3,141",
    "質問：答え。", "。", "🦀", "👩‍👩‍👧", "é", "e\u0301", "\u0301", "ﬁ", "\u200d", "\u00a0x\u00a0",
    "12345", "<Document>: ", "<Query>: x\n",
    "<|im_end|>", "<think>", "yes", " no", "{query}", "{passage}", "{instruction}", "\x00",
)  # fmt: skip
texts = st.one_of(
    st.sampled_from(EDGES),
    st.text(max_size=30),
    st.lists(st.sampled_from((*EDGES, "the ", "city of", " people")), max_size=6).map("".join),
)
queries = texts.filter(str.strip)


def open_prompt(truncation: Truncation = LONG, prompt: Prompt = QWEN3, cache: TokenCache | None = None) -> PromptTokenizer:
    tokenizer = Tokenizer.from_str(REFERENCE.backend_tokenizer.to_str())
    return PromptTokenizer(tokenizer, prompt, derive_prompt_template(tokenizer, prompt), truncation, cache=cache)


LONG_PROMPT, SHORT_PROMPT = open_prompt(), open_prompt(SHORT)
CACHED_PROMPT = open_prompt(cache=TokenCache(100_000))


def card_ids(query: str, passage: str, *, max_length: int = LONG.max_length, task: str = CARD_TASK) -> list[int]:
    """What Qwen3-Reranker's model card feeds its model, by transformers' tokenizer alone."""
    prefix = REFERENCE.encode(CARD_PREFIX, add_special_tokens=False)
    suffix = REFERENCE.encode(CARD_SUFFIX, add_special_tokens=False)
    body = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {passage}"
    room = max_length - len(prefix) - len(suffix)
    cut = REFERENCE(body, truncation="longest_first", max_length=room, add_special_tokens=False)["input_ids"]
    return [*prefix, *cut, *suffix]


def our_ids(pairs: EncodedPairs, tokenizer: PairTokenizer, i: int = 0) -> list[int]:
    head, passage = pairs.heads[pairs.head_of_pair[i]], pairs.passages[i]
    return [*head.tolist(), *passage.tolist(), *tokenizer.template.suffix.ids]


@given(queries, st.lists(texts, min_size=1, max_size=3))
def test_tokens_are_those_of_the_model_card(query: str, passages: list[str]) -> None:
    pairs = LONG_PROMPT.encode(query, passages)

    for i, passage in enumerate(passages):
        assert our_ids(pairs, LONG_PROMPT, i) == card_ids(query, passage)
    assert not pairs.truncated.any()


@pytest.mark.parametrize("edge", EDGES)
def test_borders_with_every_edge_are_tokenized_as_one_text(edge: str) -> None:
    pairs = LONG_PROMPT.encode_pairs([(f"{edge}x{edge}", edge), (f"{edge}x{edge}", f"{edge}b{edge}")])

    assert our_ids(pairs, LONG_PROMPT, 0) == card_ids(f"{edge}x{edge}", edge)
    assert our_ids(pairs, LONG_PROMPT, 1) == card_ids(f"{edge}x{edge}", f"{edge}b{edge}")


def test_a_merge_reaches_over_the_border() -> None:
    """Else the tests above would prove little: the passage apart has other tokens."""
    tokenizer = LONG_PROMPT
    apart = tokenizer.encode(QUERY, [""])
    joined = [*apart.heads[0], *REFERENCE.encode(PASSAGE, add_special_tokens=False), *tokenizer.template.suffix.ids]
    assert joined != card_ids(QUERY, PASSAGE)


@given(queries, texts)
def test_the_suffix_survives_every_cut(query: str, passage: str) -> None:
    pairs = SHORT_PROMPT.encode(query, [passage * 20])
    ids = our_ids(pairs, SHORT_PROMPT)

    assert ids[-len(SHORT_PROMPT.template.suffix.ids) :] == REFERENCE.encode(CARD_SUFFIX, add_special_tokens=False)
    assert len(ids) == pairs.lengths[0] <= SHORT.max_length


@given(texts)
def test_a_passage_is_cut_where_the_model_card_cuts_it_and_that_is_reported(passage: str) -> None:
    pairs = SHORT_PROMPT.encode("where is it", [passage * 20])
    whole, cut = card_ids("where is it", passage * 20), card_ids("where is it", passage * 20, max_length=SHORT.max_length)

    assert our_ids(pairs, SHORT_PROMPT) == cut
    assert pairs.truncated[0] == (len(cut) < len(whole))
    assert not pairs.query_truncated[0]


def test_a_query_keeps_its_tokens_and_a_longer_one_is_reported() -> None:
    words = "where is the city " * 20
    pairs = SHORT_PROMPT.encode(words, [PASSAGE])
    kept = REFERENCE.decode(REFERENCE.encode(words, add_special_tokens=False)[: SHORT.query_max_length])

    assert our_ids(pairs, SHORT_PROMPT) == card_ids(kept, PASSAGE, max_length=SHORT.max_length)
    assert (bool(pairs.truncated[0]), bool(pairs.query_truncated[0])) == (True, True)


def test_a_passage_can_be_cut_further() -> None:
    pairs = LONG_PROMPT.encode(QUERY, [PASSAGE], max_passage_tokens=5)

    assert len(pairs.passages[0]) == 5
    assert pairs.truncated[0]


@given(queries, texts)
def test_a_cache_changes_no_token(query: str, passage: str) -> None:
    for _ in range(2):
        assert our_ids(CACHED_PROMPT.encode(query, [passage]), CACHED_PROMPT) == card_ids(query, passage)


def test_equal_pairs_are_computed_once() -> None:
    pairs = [(QUERY, PASSAGE), (QUERY, "a"), (QUERY, PASSAGE), ("why?", PASSAGE)]
    assert find_distinct(LONG_PROMPT.encode_pairs(pairs)).position.tolist() == [0, 1, 0, 2]


def test_another_instruction_takes_the_place_of_the_prompts_own() -> None:
    told = LONG_PROMPT.with_instruction("Find the contract's clause.")
    assert our_ids(told.encode(QUERY, [PASSAGE]), told) == card_ids(QUERY, PASSAGE, task="Find the contract's clause.")


@pytest.mark.parametrize("instruction", ["word " * 200, "  "])
def test_an_instruction_that_cannot_be_used_is_refused(instruction: str) -> None:
    with pytest.raises(InputError, match="instruction"):
        SHORT_PROMPT.with_instruction(instruction)


def test_other_models_take_no_instruction() -> None:
    tokenizer = PairTokenizer(
        make_family_tokenizer(), BERT_TEMPLATE, Truncation(max_length=64, query_max_length=8, side=TruncationSide.RIGHT)
    )
    fixed = Prompt(prefix="", body="{query}\n{passage}", suffix="", instruction=None)
    for one in (tokenizer, open_prompt(prompt=fixed)):
        with pytest.raises(InputError, match="takes no instruction"):
            one.with_instruction("Find it.")


@given(queries, texts)
def test_what_is_read_of_texts_is_what_their_tokens_spell(query: str, passage: str) -> None:
    (query_start, query_end), (start, end) = SHORT_PROMPT.read_spans(query, [passage * 20])
    pairs = SHORT_PROMPT.encode(query, [passage * 20])

    assert (query_start, start) == (0, 0)
    assert (query_end < len(query)) == pairs.query_truncated[0]
    assert end <= len(passage * 20)
    if not pairs.truncated[0]:
        assert end == len(passage * 20)


def test_a_query_of_unknown_words_is_told_whatever_its_prompt_says() -> None:
    tokenizer = make_family_tokenizer()
    prompt = Prompt(
        prefix="", body="where people live in the city of {query} is berlin {passage}", suffix="", instruction=None
    )
    ours = PromptTokenizer(tokenizer, prompt, derive_prompt_template(tokenizer, prompt), LONG)
    pairs = ours.encode_pairs([("ж жж", "city"), ("city", "ж жж"), ("city", "city")])

    assert pairs.mostly_unknown.tolist() == [True, True, False]


def test_the_lengths_are_those_of_the_sequences() -> None:
    pairs = LONG_PROMPT.encode(QUERY, [PASSAGE, "", "\n\n", "Berlin"])
    assert pairs.lengths.tolist() == [len(our_ids(pairs, LONG_PROMPT, i)) for i in range(4)]
    assert pairs.lengths.dtype == np.int32


@pytest.mark.parametrize(
    ("body", "instruction"),
    [
        ("{query}", None),
        ("{passage} {query}", None),
        ("{query} {passage}.", None),
        ("{query} {query} {passage}", None),
        ("{instruction} {query} {passage}", None),
        ("{query} {passage}", "Find it."),
        ("{instruction}{instruction} {query} {passage}", "Find it."),
    ],
)
def test_a_body_without_its_places_is_no_prompt(body: str, instruction: str | None) -> None:
    with pytest.raises(ValueError, match="prompt"):
        Prompt(prefix="", body=body, suffix="", instruction=instruction)


def test_a_passage_within_a_prompt_is_not_split_into_windows() -> None:
    with pytest.raises(InputError, match="not split into windows"):
        SHORT_PROMPT.encode(QUERY, [PASSAGE], chunk="max")
