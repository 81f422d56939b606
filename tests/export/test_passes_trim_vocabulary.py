"""Trimming a vocabulary: kept text scores the same, and the file shrinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto
from tokenizers import Tokenizer

from crossforge.export.onnx import export_onnx
from crossforge.export.passes import quantize_int8_dynamic
from crossforge.export.passes.trim_vocabulary import TrimResult, count_rows, renumber_tokens, trim_vocabulary
from crossforge.export.source import load_source
from crossforge.profiles import Truncation, TruncationSide
from crossforge.runtime.batching import BatchPlan, collate
from crossforge.runtime.templates import derive_pair_template
from crossforge.runtime.tokenization import PairTokenizer
from support.tiny_models import MAX_LENGTH, VOCABULARY, save_tiny_model
from support.vocabularies import NONE, SAME, Array, run, table_of, tokens_of, vocabulary_of

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


def test_another_graph_of_the_same_tokenizer_is_renumbered_alike(case: Case, trimmed: TrimResult) -> None:
    quantized = quantize_int8_dynamic(case.model).model
    again = Case(renumber_tokens(quantized, trimmed.new_ids), trimmed.tokenizer_json, case.pad)
    assert count_rows(again.model) == trimmed.kept
    SAME(again.logits(PAIRS), Case(quantized, case.tokenizer_json, case.pad).logits(PAIRS))
