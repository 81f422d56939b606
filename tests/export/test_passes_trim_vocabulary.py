"""Trimming a vocabulary: kept text scores the same, the file shrinks, and what cannot be trimmed safely is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from crossforge.export.onnx import export_onnx
from crossforge.export.passes import quantize_int8_dynamic, vocabulary
from crossforge.export.passes.trim_vocabulary import TrimResult, count_rows, renumber_tokens, trim_vocabulary
from crossforge.export.source import load_source
from crossforge.profiles import InputError, Truncation, TruncationSide
from crossforge.runtime.batching import BatchPlan, collate
from crossforge.runtime.tokenization import PairTokenizer, derive_pair_template
from support.tiny_models import MAX_LENGTH, VOCABULARY, save_tiny_model

Array = NDArray[Any]
SAME = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
TRUNCATION = Truncation(max_length=MAX_LENGTH, query_max_length=32, side=TruncationSide.RIGHT)
PAIRS = (
    ("How long does a blue whale live?", "Whales are mammals that live in the ocean and breathe air."),
    ("What is the boiling point of water?", "Water boils at 100 degrees Celsius."),
    ("What is the boiling point of water?", "The kettle boils water in less than three minutes."),
    ("Quelle est la hauteur de la tour?", "La tour Eiffel mesure trois cent trente mètres de haut."),
    ("How long does a blue whale live?", ""),
)
CORPUS = [text for pair in PAIRS for text in pair]
UNUSED = "zygote"
NONE = "ж"
"""A character that no tiny tokenizer knows."""
FAMILIES = ("bert", "roberta", "xlm-roberta")
SHAPES = ((1, 60), (2, 72), (5, MAX_LENGTH))


@dataclass(frozen=True)
class Case:
    model: ModelProto
    tokenizer_json: str
    pad: str

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self.tokenizer_json)

    def trim(self, corpus: list[str] | None = None) -> Case:
        result = trim_vocabulary(self.model, self.tokenizer_json, CORPUS if corpus is None else corpus)
        return Case(result.model, result.tokenizer_json, self.pad)

    def logits(self, pairs: tuple[tuple[str, str], ...], length: int = MAX_LENGTH) -> Array:
        """Through the pair tokenizer and its derived template, padded to a length."""
        tokenizer = PairTokenizer(self.tokenizer, derive_pair_template(self.tokenizer), TRUNCATION)
        batch = collate(
            tokenizer.encode_pairs(pairs),
            BatchPlan(indices=np.arange(len(pairs)), sequence_length=length),
            template=tokenizer.template,
            pad_token_id=self.tokenizer.token_to_id(self.pad),
            input_names=[value.name for value in self.model.graph.input],
        )
        return run(self.model, **batch)


def run(model: ModelProto, **inputs: Array) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: Array = session.run(None, inputs)[0]
    return answer


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @cache
    def make(family: str) -> Case:
        folder = save_tiny_model(tmp_path_factory.mktemp(family) / "checkpoint", family)
        pad = "[PAD]" if family == "bert" else "<pad>"
        return Case(export_onnx(load_source(str(folder)).model), (folder / "tokenizer.json").read_text(), pad)

    return make


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


@pytest.fixture(scope="module")
def trimmed(case: Case) -> TrimResult:
    return trim_vocabulary(case.model, case.tokenizer_json, CORPUS)


def lookup_model(rows: int, text: str = "e = Gather(table, input_ids)") -> ModelProto:
    """Looks ids up in a table, ``e``, and averages them; ``three`` is a constant."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (int64[b, s] input_ids) => (float[b, 8] y) {'
        f"three = Constant<value = int64[1] {{3}}>() {text} y = ReduceMean<axes = [1], keepdims = 0>(e) }}"
    )
    table = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return model


def serialize(model: Any, pre_tokenizer: Any = None, **parts: Any) -> str:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.WhitespaceSplit()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return str(tokenizer.to_str())


def words(*tokens: str) -> str:
    """A tokenizer of one token a word."""
    return serialize(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))


def tokens_of(tokenizer_json: str, text: str) -> list[str]:
    return list(Tokenizer.from_str(tokenizer_json).encode(text, add_special_tokens=False).tokens)


def vocabulary_of(tokenizer_json: str) -> dict[str, int]:
    return dict(Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True))


def table_of(model: ModelProto, name: str = "table") -> Array:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


# Kept text


@pytest.mark.parametrize(("rows", "length"), SHAPES)
def test_kept_text_scores_the_same(case: Case, rows: int, length: int) -> None:
    SAME(case.trim().logits(PAIRS[:rows], length), case.logits(PAIRS[:rows], length))


def test_kept_text_has_different_scores_to_begin_with(case: Case) -> None:
    assert np.ptp(case.logits(PAIRS)) > 0.1


def test_an_int8_model_scores_the_same(case: Case) -> None:
    quantized = Case(quantize_int8_dynamic(case.model).model, case.tokenizer_json, case.pad)
    trimmed = quantized.trim()
    SAME(trimmed.logits(PAIRS), quantized.logits(PAIRS))
    rows = {t.data_type: t.dims[0] for t in trimmed.model.graph.initializer if "word_embeddings.weight_rows" in t.name}
    kept = trim_vocabulary(case.model, case.tokenizer_json, CORPUS).kept
    assert rows == {TensorProto.INT8: kept, TensorProto.FLOAT: kept}


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_sentence_of_kept_words_is_tokenized_the_same(case: Case, trimmed: TrimResult, data: st.DataObject) -> None:
    # Byte-level BPE tells a word at the start of a text from one after a space.
    first = data.draw(st.sampled_from([text.split()[0] for text in CORPUS if text]))
    rest = data.draw(st.lists(st.sampled_from([word for text in CORPUS for word in text.split()[1:]]), max_size=12))
    sentence = " ".join([first, *rest])
    old, new = case.tokenizer.encode(sentence), Tokenizer.from_str(trimmed.tokenizer_json).encode(sentence)
    assert new.tokens == old.tokens
    assert new.ids == trimmed.new_ids[old.ids].tolist()


# What is left


def test_the_table_shrinks_to_the_rows_kept(case: Case, trimmed: TrimResult) -> None:
    assert trimmed.changed
    assert trimmed.kept + trimmed.removed == VOCABULARY == len(trimmed.new_ids)
    assert trimmed.notes == (f"{trimmed.removed} of {VOCABULARY} tokens removed",)
    assert trimmed.kept == len(vocabulary_of(trimmed.tokenizer_json)) < len(vocabulary_of(case.tokenizer_json))
    name = next(t.name for t in case.model.graph.initializer if list(t.dims) == [VOCABULARY, 32])
    np.testing.assert_array_equal(table_of(trimmed.model, name), table_of(case.model, name)[trimmed.new_ids >= 0])
    assert trimmed.model.ByteSize() <= case.model.ByteSize() - trimmed.removed * 32 * 4 + 100


def test_ids_are_dense_and_in_the_old_order(trimmed: TrimResult) -> None:
    left = trimmed.new_ids[trimmed.new_ids >= 0]
    np.testing.assert_array_equal(left, np.arange(trimmed.kept))
    assert sorted(vocabulary_of(trimmed.tokenizer_json).values()) == left.tolist()


def test_every_special_token_survives(case: Case, trimmed: TrimResult) -> None:
    special = {token.content: i for i, token in case.tokenizer.get_added_tokens_decoder().items()}
    new = Tokenizer.from_str(trimmed.tokenizer_json)
    assert len(special) == 5
    assert {content: int(trimmed.new_ids[i]) for content, i in special.items()} == {
        token.content: i for i, token in new.get_added_tokens_decoder().items()
    }
    assert new.encode(*PAIRS[0]).tokens == case.tokenizer.encode(*PAIRS[0]).tokens


def test_inputs_and_outputs_stay_the_same(case: Case, trimmed: TrimResult) -> None:
    assert list(trimmed.model.graph.input) == list(case.model.graph.input)
    assert list(trimmed.model.graph.output) == list(case.model.graph.output)
    onnx.checker.check_model(trimmed.model, full_check=True)


def test_the_input_model_is_left_as_it_was(case: Case) -> None:
    before = case.model.SerializeToString()
    assert case.trim().model.SerializeToString() != before
    assert case.model.SerializeToString() == before


def test_trimming_again_changes_nothing(trimmed: TrimResult) -> None:
    again = trim_vocabulary(trimmed.model, trimmed.tokenizer_json, CORPUS)
    assert not again.changed
    assert again.removed == 0
    assert again.notes == ("the texts use every token",)
    assert again.tokenizer_json == trimmed.tokenizer_json
    assert again.model == trimmed.model
    np.testing.assert_array_equal(again.new_ids, np.arange(trimmed.kept))


def test_texts_may_come_from_a_generator(case: Case, trimmed: TrimResult) -> None:
    once = trim_vocabulary(case.model, case.tokenizer_json, (text for text in CORPUS))
    assert once.tokenizer_json == trimmed.tokenizer_json


# Text from outside


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_text_from_outside_becomes_unknown_and_scores_finite(cases: Callable[[str], Case], family: str) -> None:
    case = cases(family)
    trimmed = case.trim(["a whale"])
    unknown = "[UNK]" if family == "bert" else "<unk>"
    assert case.tokenizer.token_to_id(unknown) not in case.tokenizer.encode(UNUSED).ids
    assert trimmed.tokenizer.token_to_id(unknown) in trimmed.tokenizer.encode(UNUSED).ids
    assert np.isfinite(trimmed.logits(((UNUSED, NONE),))).all()


def test_byte_pairs_from_outside_are_spelled_in_bytes(cases: Callable[[str], Case]) -> None:
    trimmed = cases("roberta").trim(["a whale"])
    pieces = trimmed.tokenizer.encode(f"{UNUSED}{NONE}", add_special_tokens=False).tokens
    assert len(pieces) == len(f"{UNUSED}{NONE}".encode())
    assert np.isfinite(trimmed.logits(((UNUSED, NONE),))).all()


def test_text_that_was_unknown_stays_unknown(case: Case) -> None:
    corpus = [*CORPUS, f"whale{NONE} {NONE}{NONE} Celsius"]
    assert tokens_of(case.trim(corpus).tokenizer_json, corpus[-1]) == tokens_of(case.tokenizer_json, corpus[-1])


# Ids beside the table


@pytest.mark.parametrize(
    ("processor", "pair"),
    [
        (processors.RobertaProcessing(sep=("</s>", 5), cls=("<s>", 4)), "<s> a </s> </s> b </s>"),
        (processors.BertProcessing(sep=("</s>", 5), cls=("<s>", 4)), "<s> a </s> b </s>"),
        (
            processors.TemplateProcessing(
                single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 4), ("</s>", 5)]
            ),
            "<s> a </s> b </s>",
        ),
        (
            processors.Sequence(
                [
                    processors.ByteLevel(),
                    processors.TemplateProcessing(
                        single="$A <s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 4), ("</s>", 5)]
                    ),
                ]
            ),
            "<s> a </s> b",
        ),
    ],
    ids=["RobertaProcessing", "BertProcessing", "TemplateProcessing", "Sequence"],
)
def test_the_post_processor_gets_the_new_ids(processor: Any, pair: str) -> None:
    vocabulary = {"x": 0, "a": 1, "y": 2, "b": 3, "<s>": 4, "</s>": 5, "[UNK]": 6}
    text = serialize(models.WordLevel(vocabulary, unk_token="[UNK]"), post_processor=processor)
    encoding = Tokenizer.from_str(trim_vocabulary(lookup_model(7), text, ["a b"]).tokenizer_json).encode("a", "b")
    assert encoding.tokens == pair.split()
    assert encoding.ids == [{"a": 0, "b": 1, "<s>": 2, "</s>": 3}[token] for token in pair.split()]


def test_padding_inside_the_tokenizer_gets_the_new_id() -> None:
    tokenizer = Tokenizer.from_str(words("x", "a", "[UNK]", "[PAD]"))
    tokenizer.enable_padding(pad_id=3, pad_token="[PAD]", length=3)
    tokenizer.enable_truncation(max_length=2)
    result = trim_vocabulary(lookup_model(4), tokenizer.to_str(), ["a a a"])
    new = Tokenizer.from_str(result.tokenizer_json)
    assert new.encode("a").ids == [0, 2, 2]
    assert new.truncation == tokenizer.truncation


def test_a_token_added_behind_the_vocabulary_keeps_its_content() -> None:
    tokenizer = Tokenizer.from_str(words("x", "a", "[UNK]"))
    tokenizer.add_tokens([AddedToken("new york", lstrip=True)])
    before = tokenizer.encode("a new york").tokens
    result = trim_vocabulary(lookup_model(8), tokenizer.to_str(), ["a"])
    assert vocabulary_of(result.tokenizer_json) == {"a": 0, "[UNK]": 1, "new york": 2}
    assert tokens_of(result.tokenizer_json, "a new york") == before == ["a", " new york"]


COMPARES_WITH_THREE = """
    mask = Equal(input_ids, three)
    numbers = Cast<to = 1>(mask)
    offset = Cast<to = 1>(three)
    weights = Add(numbers, offset)
    axis = Constant<value = int64[1] {2}>()
    column = Unsqueeze(weights, axis)
    rows = Gather(table, input_ids)
    e = Mul(rows, column)
"""


def test_an_id_that_the_graph_compares_with_moves_along() -> None:
    model = lookup_model(6, COMPARES_WITH_THREE)
    result = trim_vocabulary(model, words("x", "a", "y", "[PAD]", "b", "[UNK]"), ["a b"])
    assert result.new_ids.tolist() == [-1, 0, -1, 1, 2, 3]  # no text has [PAD] and nothing says it is special
    old = np.asarray([[1, 3, 4, 3], [4, 4, 1, 5]])
    SAME(run(result.model, input_ids=result.new_ids[old]), run(model, input_ids=old))


def test_another_graph_of_the_same_tokenizer_is_renumbered_alike(case: Case, trimmed: TrimResult) -> None:
    quantized = quantize_int8_dynamic(case.model).model
    again = Case(renumber_tokens(quantized, trimmed.new_ids), trimmed.tokenizer_json, case.pad)
    assert count_rows(again.model) == trimmed.kept
    SAME(again.logits(PAIRS), Case(quantized, case.tokenizer_json, case.pad).logits(PAIRS))


def test_another_graph_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="another vocabulary; got 4 rows; allowed: 3"):
        renumber_tokens(lookup_model(4), np.asarray([0, 1, -1]))
    with pytest.raises(InputError, match="compares ids with a token that is gone; got 3"):
        renumber_tokens(lookup_model(4, COMPARES_WITH_THREE), np.asarray([0, 1, 2, -1]))


def test_a_constant_that_is_no_id_stays() -> None:
    text = "ignored = Constant<value = int64 {-100}>() mask = Equal(ignored, input_ids) e = Gather(table, input_ids)"
    model = lookup_model(3, text)
    result = trim_vocabulary(model, words("x", "a", "[UNK]"), ["a"])
    assert result.kept == 2
    assert list(result.model.graph.node) == list(model.graph.node)


@pytest.mark.parametrize(
    "text",
    [
        "ids = Cast<to = 6>(input_ids) e = Gather<axis = 0>(table, ids)",
        "flat = Cast<to = 7>(input_ids) shape = Shape(input_ids) ids = Reshape(flat, shape) e = Gather(table, ids)",
    ],
)
def test_ids_are_followed_to_the_table(text: str) -> None:
    model = lookup_model(3, text)
    result = trim_vocabulary(model, words("x", "a", "[UNK]"), ["a"])
    assert table_of(result.model).shape == (2, 8)
    SAME(run(result.model, input_ids=np.asarray([[0, 1]])), run(model, input_ids=np.asarray([[1, 2]])))


def test_ids_are_kept_on_request() -> None:
    text = words("x", "a", "[UNK]", "[PAD]")
    assert trim_vocabulary(lookup_model(9), text, ["a"], keep_ids=[3, 8]).new_ids.tolist() == [-1, 0, 1, 2, *[-1] * 4, 3]


# What each kind of tokenizer needs besides its tokens

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


# What it refuses


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no text to keep tokens for; got 0 texts and not one token"),
        (["", " "], "no text to keep tokens for; got 2 texts and not one token"),
        ("a", "texts must be many strings"),
        (["a", 3], "text 1 is not a string; got int 3"),
        (["\ud800"], "text 0 is not valid Unicode; got a lone surrogate at character 0"),
    ],
)
def test_texts_that_are_none_are_refused(texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trim_vocabulary(lookup_model(3), words("a", "x", "[UNK]"), texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the tokenizer cannot be read"),
        ('{"model": {"type": "Magic"}}', "allowed: a tokenizer.json of BPE, Unigram, WordLevel, WordPiece"),
        (words("a", "b"), "no unknown token for text from outside"),
        (serialize(models.Unigram([("a", -1.0)])), "no unknown token for text from outside"),
        (serialize(models.BPE({"a": 0}, [], dropout=0.5)), "drops merges at random; got dropout 0.5"),
        (words("a", "x", "y", "[UNK]"), "no row in the embedding table; got 3; allowed: 0 to 2"),
    ],
)
def test_tokenizers_that_cannot_be_trimmed_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trim_vocabulary(lookup_model(3), text, ["a"])


def test_a_kind_of_tokenizer_that_nobody_looked_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vocabulary._COMPANIONS, "WordLevel")
    with pytest.raises(InputError, match="kind cannot be trimmed; got WordLevel; allowed: BPE"):
        trim_vocabulary(lookup_model(3), words("a", "x", "[UNK]"), ["a"])


def test_a_post_processor_with_an_id_beyond_the_table_is_refused() -> None:
    vocabulary = {"a": 0, "x": 1, "[UNK]": 2}
    processor = processors.RobertaProcessing(sep=("</s>", 9), cls=("<s>", 0))
    text = serialize(models.WordLevel(vocabulary, unk_token="[UNK]"), post_processor=processor)
    with pytest.raises(InputError, match="no row in the embedding table; got 9"):
        trim_vocabulary(lookup_model(3), text, ["a"])


def test_a_token_that_is_listed_twice_is_refused() -> None:
    text = serialize(models.Unigram([("<unk>", 0.0), ("a", -9.0), ("a", -1.0), ("x", -1.0)], unk_id=0))
    with pytest.raises(InputError, match="ids cannot be numbered anew"):
        trim_vocabulary(lookup_model(4), text, ["x"])


def test_an_id_to_keep_that_has_no_row_is_refused() -> None:
    with pytest.raises(InputError, match="an id to keep is not in the table; got 3; allowed: 0 to 2"):
        trim_vocabulary(lookup_model(3), words("a", "x", "[UNK]"), ["a"], keep_ids=[3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = Less(input_ids, three) e = Gather(table, input_ids)", "would not survive renumbering; got Less"),
        ("a = Equal(input_ids, input_ids) e = Gather(table, input_ids)", "would not survive renumbering; got Equal"),
        ("a = Cast<to = 1>(input_ids) e = Gather(table, input_ids)", "would not survive renumbering; got Cast"),
        ("t = Neg(table) e = Gather(t, input_ids)", "would not survive renumbering; got Gather"),
        ("t = Neg(table) e = Gather(table, input_ids)", "table is also used as something else; got table"),
        ("e = Gather(table, three)", "input_ids must be looked up in tables of one length; got no table"),
        (
            "e = Gather(table, input_ids) c = Constant<value = bool {1}>()"
            " f = If (c) <then_branch = t () => (int64[b, s] p) { p = Neg(input_ids) },"
            " else_branch = o () => (int64[b, s] q) { q = Neg(input_ids) }>",
            "would not survive renumbering; got If",
        ),
    ],
)
def test_graphs_that_do_more_with_ids_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trim_vocabulary(lookup_model(3, text), words("a", "x", "[UNK]"), ["a"])


def test_a_graph_without_ids_is_refused() -> None:
    model = lookup_model(3)
    model.graph.input[0].name = "tokens"
    with pytest.raises(InputError, match="the graph has no input input_ids; got tokens"):
        trim_vocabulary(model, words("a", "x", "[UNK]"), ["a"])
