"""What each kind of tokenizer needs besides its tokens when its vocabulary is trimmed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from crossforge.export.passes import vocabulary
from crossforge.export.passes.trim_vocabulary import trim_vocabulary
from crossforge.profiles import InputError
from support.vocabularies import NONE, lookup_model, serialize, tokens_of, vocabulary_of

FAILING_WORD = serialize(
    models.WordPiece({"[UNK]": 0, "a": 1, "ab": 2, "##bx": 3, "c": 4, "z": 5}, unk_token="[UNK]"),
)
"""``abx`` fails after ``ab``; without ``ab`` it would become ``a ##bx``."""
LOWEST_SCORE = serialize(
    models.Unigram(
        [("<unk>", 0.0), ("ab", -20.0), ("cd", -20.0), ("bcd", -5.0), ("a", -38.0), ("rare", -39.0), ("zz", -1.0)], unk_id=0
    )
)
"""``abcd`` is ``ab cd``; without ``rare``, an unknown ``a`` before ``bcd`` would cost less."""
INTERMEDIATE = serialize(
    models.BPE(
        {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4, "abc": 5, "abcd": 6, "z": 7, "zz": 8},
        [("a", "b"), ("ab", "c"), ("abc", "d"), ("z", "z")],
    )
)
"""``abcd`` comes about by way of ``ab`` and ``abc``."""
CLOSURES = {
    "WordPiece": (FAILING_WORD, ["abx", "cbx a"], {"[UNK]", "a", "ab", "##bx", "c"}),
    "Unigram": (LOWEST_SCORE, ["abcd", "bcd"], {"<unk>", "ab", "cd", "bcd", "rare"}),
    "BPE": (INTERMEDIATE, ["abcd"], {"a", "b", "c", "d", "ab", "abc", "abcd", "z"}),
}
"""A tokenizer, texts, and the tokens that are left when it is trimmed to them."""


@pytest.mark.parametrize("kind", CLOSURES)
def test_what_a_tokenizer_needs_besides_is_kept(kind: str) -> None:
    text, corpus, kept = CLOSURES[kind]
    assert json.loads(text)["model"]["type"] == kind
    result = trim_vocabulary(lookup_model(9), text, corpus)
    assert set(vocabulary_of(result.tokenizer_json)) == kept
    assert [tokens_of(result.tokenizer_json, t) for t in corpus] == [tokens_of(text, t) for t in corpus]


@pytest.mark.parametrize("kind", CLOSURES)
def test_a_text_that_would_be_tokenized_differently_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vocabulary._COMPANIONS, kind, lambda *_: set())
    text, corpus, _ = CLOSURES[kind]
    with pytest.raises(InputError, match="a text would be tokenized differently"):
        trim_vocabulary(lookup_model(9), text, corpus)


def test_byte_pairs_with_an_unknown_token_lose_symbols_too() -> None:
    text = serialize(models.BPE({"<unk>": 0, "a": 1, "b": 2, "ab": 3, "z": 4}, [("a", "b")], unk_token="<unk>"))
    result = trim_vocabulary(lookup_model(5), text, ["a"])
    assert vocabulary_of(result.tokenizer_json) == {"<unk>": 0, "a": 1}
    assert Tokenizer.from_str(result.tokenizer_json).encode("z").ids == [0]


def test_bytes_are_kept_beside_an_unknown_token() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", *alphabet, "ab"])}
    model = models.BPE(vocabulary, [("a", "b")], unk_token="<unk>")
    nested = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    result = trim_vocabulary(lookup_model(258), serialize(model, nested), ["c"])
    assert result.removed == 1
    assert tokens_of(result.tokenizer_json, f"ab{NONE}") == ["a", "b", "Ð", "¶"]


def test_byte_pairs_with_affixes_keep_their_merges() -> None:
    vocabulary = {"<unk>": 0, "a": 1, "##b": 2, "##c</w>": 3, "ab": 4, "abc</w>": 5, "z": 6}
    model = models.BPE(
        vocabulary,
        [("a", "##b"), ("ab", "##c</w>")],
        unk_token="<unk>",
        continuing_subword_prefix="##",
        end_of_word_suffix="</w>",
    )
    result = trim_vocabulary(lookup_model(7), serialize(model), ["abc"])
    assert tokens_of(result.tokenizer_json, "abc") == ["abc</w>"]
    assert result.removed == 1


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_bytes_to_fall_back_to_are_kept(kind: str) -> None:
    tokens = ["<unk>", "a", "z", *(f"<0x{byte:02X}>" for byte in range(256))]
    if kind == "BPE":
        numbered = {token: i for i, token in enumerate(tokens)}
        text = serialize(models.BPE(numbered, [], unk_token="<unk>", byte_fallback=True))
    else:
        text = serialize(models.Unigram([(token, -1.0) for token in tokens], unk_id=0, byte_fallback=True))
    result = trim_vocabulary(lookup_model(len(tokens)), text, ["a"])
    assert result.removed == 1
    assert tokens_of(result.tokenizer_json, "az") == ["a", "<0x7A>"]


LETTERS = st.text("abcd", min_size=1, max_size=5)
SCORED = st.dictionaries(LETTERS, st.sampled_from([-1.0, -2.0, -3.5, -5.0, -8.0, -13.0, -21.0]), min_size=1, max_size=15)
TEXTS = st.lists(st.text("abcde ", min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=6)


def check_same_tokens(text: str, corpus: list[str]) -> None:
    result = trim_vocabulary(lookup_model(300), text, corpus)
    assert [tokens_of(result.tokenizer_json, t) for t in corpus] == [tokens_of(text, t) for t in corpus]
    again = trim_vocabulary(result.model, result.tokenizer_json, corpus)
    assert not again.changed


@given(scores=SCORED, corpus=TEXTS)
@settings(max_examples=150, deadline=None)
def test_no_unigram_vocabulary_is_too_odd(scores: dict[str, float], corpus: list[str]) -> None:
    check_same_tokens(serialize(models.Unigram([("<unk>", 0.0), *scores.items()], unk_id=0)), corpus)


@given(first=st.sets(LETTERS, max_size=12), later=st.sets(LETTERS, max_size=12), corpus=TEXTS)
@settings(max_examples=150, deadline=None)
def test_no_word_piece_vocabulary_is_too_odd(first: set[str], later: set[str], corpus: list[str]) -> None:
    tokens = ["[UNK]", *sorted(first), *(f"##{piece}" for piece in sorted(later))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    check_same_tokens(serialize(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=9)), corpus)


@given(learned=TEXTS, corpus=TEXTS, unknown=st.sampled_from([None, "<unk>"]), seed=st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_no_order_of_merges_is_too_odd(learned: list[str], corpus: list[str], unknown: str | None, seed: Any) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=40, special_tokens=["<unk>"], show_progress=False, initial_alphabet=["a"])
    tokenizer.train_from_iterator(learned, trainer)
    document = json.loads(tokenizer.to_str())
    seed.shuffle(document["model"]["merges"])
    if any(encoding.ids for encoding in tokenizer.encode_batch(corpus)):
        check_same_tokens(json.dumps(document), corpus)
