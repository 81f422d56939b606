from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from crossforge.profiles import InputError, ManifestError, Truncation, TruncationSide
from crossforge.runtime.batching import collate, plan_batches
from crossforge.runtime.inputs import MAX_TEXT_CHARS
from crossforge.runtime.templates import derive_pair_template
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer, load_tokenizer
from crossforge.runtime.unknown_tokens import find_unknown_id
from support.builders import TRUNCATION
from support.families import BERT_TEMPLATE, FAMILIES, PAD_TOKEN_IDS, TEMPLATES, make_tokenizer, word_tokenizer
from support.strategies import no_deadline, queries, texts

NEVER_CUT = Truncation(max_length=100_000, query_max_length=50_000, side=TruncationSide.RIGHT)
LONE_SURROGATE = "abc\ud800"


def make_pair_tokenizer(family: str = "bert", truncation: Truncation = NEVER_CUT) -> PairTokenizer:
    return PairTokenizer(make_tokenizer(family), TEMPLATES[family], truncation)


def assert_equal_to_tokenizer(pairs: EncodedPairs, expected: list[tuple[str, str]], family: str) -> None:
    """Compare each row of one batch with what the tokenizer itself makes of the pair."""
    tokenizer = make_tokenizer(family)
    names = ("input_ids", "attention_mask", "token_type_ids")
    for plan in plan_batches(pairs.lengths, budget_tokens=10**9):
        batch = collate(pairs, plan, template=TEMPLATES[family], pad_token_id=PAD_TOKEN_IDS[family], input_names=names)
        for row, i in enumerate(plan.indices):
            encoding = tokenizer.encode(*expected[i])
            length = len(encoding.ids)
            assert pairs.lengths[i] == length
            assert batch["input_ids"][row, :length].tolist() == encoding.ids
            assert batch["token_type_ids"][row, :length].tolist() == encoding.type_ids
            assert set(batch["input_ids"][row, length:].tolist()) <= {PAD_TOKEN_IDS[family]}
            assert batch["attention_mask"][row].sum() == length


@pytest.mark.parametrize("family", FAMILIES)
@given(query=queries, passages=st.lists(texts, max_size=4))
@no_deadline
def test_joined_pairs_equal_what_the_tokenizer_joins(family: str, query: str, passages: list[str]) -> None:
    pairs = make_pair_tokenizer(family).encode(query, passages)

    assert len(pairs) == len(passages)
    assert_equal_to_tokenizer(pairs, [(query, passage) for passage in passages], family)


@pytest.mark.parametrize("family", FAMILIES)
@given(pairs=st.lists(st.tuples(queries, texts), max_size=4), repeats=st.integers(min_value=1, max_value=2))
@no_deadline
def test_pairs_of_any_queries_equal_what_the_tokenizer_joins(
    family: str, pairs: list[tuple[str, str]], repeats: int
) -> None:
    encoded = make_pair_tokenizer(family).encode_pairs(pairs * repeats)

    assert len(encoded.heads) == len({query for query, _ in pairs})
    assert_equal_to_tokenizer(encoded, pairs * repeats, family)


class CountingTokenizer:
    """Notes every text that a real tokenizer is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.texts += texts
        return self._tokenizer.encode_batch_fast(texts, **options)


def test_a_query_is_tokenized_once_however_many_passages_it_has() -> None:
    counting = CountingTokenizer(make_tokenizer())
    tokenizer = PairTokenizer(counting, BERT_TEMPLATE, NEVER_CUT)

    tokenizer.encode("the query", ["a", "b", "c"])
    tokenizer.encode_pairs([("query 1", "d"), ("query 2", "e"), ("query 1", "f")])

    assert counting.texts == ["the query", "a", "b", "c", "query 1", "query 2", "d", "e", "f"]


def test_no_passages_are_no_pairs() -> None:
    tokenizer = make_pair_tokenizer()

    for pairs in (tokenizer.encode("a query", []), tokenizer.encode_pairs([])):
        assert len(pairs) == 0
        assert pairs.lengths.tolist() == pairs.truncated.tolist() == pairs.query_truncated.tolist() == []


def test_the_tokenizers_own_truncation_and_padding_are_switched_off() -> None:
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=32)

    pairs = PairTokenizer(tokenizer, BERT_TEMPLATE, NEVER_CUT).encode("the query", ["where people live", "city"])

    assert pairs.lengths.tolist() == [8, 6]


@pytest.mark.parametrize(
    ("query", "passages", "message"),
    [
        ("q", "one text", "passages must be a list; got str 'one text'; allowed: a list or tuple of strings"),
        ("q", b"bytes", "passages must be a list; got bytes"),
        ("q", (text for text in "ab"), "passages must be a list; got generator"),
        ("q", None, "passages must be a list; got NoneType None"),
        ("q", ["a", 7], "passage 1 is not a string; got int 7; allowed: str"),
        ("q", ["a", "b", None], "passage 2 is not a string; got NoneType None"),
        ("q", ["a", "x" * 1_000_000], "passage 1 is too long; got 1,000,000 characters; allowed: up to 500,000"),
        ("q", [LONE_SURROGATE], "passage 0 is not valid Unicode; got a lone surrogate at character 3"),
        (LONE_SURROGATE, ["a"], "the query is not valid Unicode; got a lone surrogate at character 3"),
        ("", ["a"], "the query is empty; got ''; allowed: a text that is not blank"),
        (" \t\n", [], "the query is empty"),
        (None, ["a"], "the query is not a string; got NoneType None"),
        ("x" * (MAX_TEXT_CHARS + 1), ["a"], "the query is too long; got 500,001 characters"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(query: Any, passages: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_pair_tokenizer().encode(query, passages)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("q", "p"), "qp"], "pair 1 is not a pair; got str 'qp'; allowed: (query, passage)"),
        ([("q", "p", "r")], "pair 0 is not a pair; got tuple ('q', 'p', 'r')"),
        ([("q", "p"), ("q",)], "pair 1 is not a pair"),
        ([("q", "p"), 5], "pair 1 is not a pair; got int 5"),
        ([("q", "p"), {"q", "p"}], "pair 1 is not a pair; got set"),
        ([("q", "p"), (" ", "p")], "the query of pair 1 is empty"),
        ([("q", "p"), (["q"], "p")], "the query of pair 1 is not a string; got list"),
        ([("q", "p"), ("q", 3)], "passage 1 is not a string; got int 3"),
        ([("q", "p"), (LONE_SURROGATE, "p")], "the query of pair 1 is not valid Unicode"),
        (("query", "passage"), "pair 0 is not a pair; got str 'query'"),
        pytest.param(
            "qp",
            "pairs must be a list; got str 'qp'",
        ),
    ],
)
def test_a_pair_that_cannot_be_used_is_refused(pairs: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_pair_tokenizer().encode_pairs(pairs)
    assert str(caught.value).startswith(message)


UNKNOWN_TEXTS = ("city", "", "\N{CITYSCAPE}", "the \N{CITYSCAPE} and \N{CITYSCAPE}", "ж city жж", "")


@pytest.mark.parametrize("family", FAMILIES)
@given(pairs=st.lists(st.tuples(queries, texts), max_size=5))
@no_deadline
def test_unknown_tokens_are_those_that_the_tokenizer_gives(family: str, pairs: list[tuple[str, str]]) -> None:
    tokenizer = make_tokenizer(family)
    unknown = {"bert": "[UNK]", "xlm_roberta": "<unk>"}.get(family)
    id_ = None if unknown is None else tokenizer.token_to_id(unknown)

    counts = make_pair_tokenizer(family).encode_pairs(pairs).unknown_tokens

    assert counts.dtype == np.int32
    assert counts.tolist() == [tokenizer.encode(*pair).ids.count(id_) for pair in pairs]


def test_unknown_tokens_are_counted_by_pair() -> None:
    tokenizer = make_pair_tokenizer()

    assert tokenizer.encode("the city", UNKNOWN_TEXTS).unknown_tokens.tolist() == [0, 0, 1, 2, 2, 0]
    assert tokenizer.encode("\N{CITYSCAPE} city", UNKNOWN_TEXTS).unknown_tokens.tolist() == [1, 1, 2, 3, 3, 1]


def test_only_unknown_tokens_that_the_model_reads_are_counted() -> None:
    pairs = make_pair_tokenizer(truncation=TRUNCATION).encode("the city", ["\N{CITYSCAPE} " * 100])

    assert pairs.unknown_tokens.tolist() == [TRUNCATION.max_length - 2 - BERT_TEMPLATE.special_token_count]


@pytest.mark.parametrize(
    ("text", "mostly"),
    [
        ("ж жж", True),
        ("the ж жж", True),
        ("the city ж жж", False),  # half
        ("", False),
        ("\N{CITYSCAPE}", False),
        ("the \N{CITYSCAPE} \N{CITYSCAPE} \N{CITYSCAPE}", False),
        ("the ж жж \N{CITYSCAPE}", True),
    ],
)
def test_a_text_is_mostly_unknown_if_more_than_half_of_its_words_are(text: str, mostly: bool) -> None:
    tokenizer = make_pair_tokenizer()

    assert tokenizer.encode("the city", [text, "city"]).mostly_unknown.tolist() == [mostly, False]
    if text:
        assert tokenizer.encode(text, ["the city", "city"]).mostly_unknown.tolist() == [mostly, mostly]


@pytest.mark.parametrize(
    ("text", "mostly"),
    [("жж", True), ("жж жжж", True), ("the жж жжж", True), ("the city жж", False), ("the \N{CITYSCAPE}", False)],
)
def test_the_marks_of_unknown_words_are_not_known_text(text: str, mostly: bool) -> None:
    tokenizer = make_pair_tokenizer("xlm_roberta")

    assert tokenizer.encode("the city", [text, "city"]).mostly_unknown.tolist() == [mostly, False]


def test_a_tokenizer_that_spells_bytes_knows_everything() -> None:
    assert make_pair_tokenizer("roberta").encode("\N{CITYSCAPE}", UNKNOWN_TEXTS).unknown_tokens.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("model", "unknown"),
    [
        (models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"), 1),
        (models.WordPiece({"a": 0}, unk_token="[UNK]"), None),
        (models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"), 1),
        (models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>"), 1),
        (models.BPE({"a": 0}, []), None),
        (models.Unigram([("a", -1.0), ("<unk>", 0.0)], unk_id=1), 1),
        (models.Unigram([("a", -1.0)]), None),
        (
            models.Unigram([("<unk>", 0.0), *((f"<0x{i:02X}>", -1.0) for i in range(256))], unk_id=0, byte_fallback=True),
            None,
        ),
    ],
)
def test_the_unknown_token_is_found(model: Any, unknown: int | None) -> None:
    assert find_unknown_id(Tokenizer(model)) == unknown


def test_the_longest_text_that_is_allowed_is_encoded() -> None:
    pairs = make_pair_tokenizer(truncation=TRUNCATION).encode("the query", ["city " * (MAX_TEXT_CHARS // 5)])

    assert pairs.lengths.tolist() == [TRUNCATION.max_length]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pair_template_is_derived_from_the_tokenizer(family: str) -> None:
    assert derive_pair_template(make_tokenizer(family)) == TEMPLATES[family]


def test_a_tokenizer_without_special_tokens_has_an_empty_template() -> None:
    assert derive_pair_template(word_tokenizer(None)).special_token_count == 0


@pytest.mark.parametrize(
    "pair_template",
    [
        "[CLS] $B [SEP] $A [SEP]",
        "[CLS] $A [SEP] $B $A",
        pytest.param(
            "[CLS] $A $A [SEP] $B [SEP]",
        ),
        pytest.param(
            "[CLS] $A [SEP] $B [SEP] $B [SEP]",
        ),
    ],
)
def test_a_pair_joined_in_a_strange_way_is_refused(pair_template: str) -> None:
    with pytest.raises(ManifestError, match="joins a pair in a way that crossforge does not know"):
        derive_pair_template(word_tokenizer(pair_template))


def test_a_saved_tokenizer_is_read_without_its_truncation_and_padding(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    pairs = PairTokenizer.from_file(tmp_path / "tokenizer.json", BERT_TEMPLATE, NEVER_CUT).encode("the query", ["city"])

    assert (loaded.truncation, loaded.padding) == (None, None)
    np.testing.assert_array_equal(pairs.lengths, [6])


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "Oracle"}}', None])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ManifestError) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("Export the bundle again.")
