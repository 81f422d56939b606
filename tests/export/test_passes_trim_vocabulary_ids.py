"""Ids beside the embedding table, which move along when a vocabulary is trimmed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, processors

from crossforge.export.passes.trim_vocabulary import renumber_tokens, trim_vocabulary
from crossforge.profiles import InputError
from support.onnx_sessions import run
from support.vocabularies import SAME, lookup_model, serialize, table_of, tokens_of, vocabulary_of, words


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
