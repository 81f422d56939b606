"""Tokenizers and graphs whose vocabulary cannot be trimmed safely."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import models, processors

from crossforge.export.passes import vocabulary
from crossforge.export.passes.trim_vocabulary import trim_vocabulary
from crossforge.profiles import InputError
from support.vocabularies import lookup_model, serialize, words


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
