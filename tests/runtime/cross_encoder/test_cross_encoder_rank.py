"""``rank`` beside the original's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossforge.profiles import InputError
from support.cross_encoders import DOCUMENTS, QUERY, Both, ranking


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 2},
        {"top_k": 0},
        {"top_k": 99},
        {"return_documents": True},
        {"return_documents": True, "top_k": 1},
        {"batch_size": 1},
        {"activation_fn": torch.nn.Identity()},
        {"apply_softmax": True},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"show_progress_bar": False},
        {"chunk_size": 1},
        {"device": "cpu"},
    ],
    ids=str,
)
def test_rank_returns_what_the_original_does(one: Both, options: dict[str, Any]) -> None:
    ours, original = one.ours.rank(QUERY, DOCUMENTS, **options), one.original.rank(QUERY, DOCUMENTS, **options)
    assert ranking(ours) == ranking(original)
    for our_row, original_row in zip(ours, original, strict=True):
        assert list(our_row) == list(original_row)
        assert {name: type(value) for name, value in our_row.items()} == {n: type(v) for n, v in original_row.items()}
        assert our_row["score"].dtype == original_row["score"].dtype


def test_arguments_of_rank_may_be_given_by_position(one: Both) -> None:
    assert ranking(one.ours.rank(QUERY, DOCUMENTS, 2, True)) == ranking(one.original.rank(QUERY, DOCUMENTS, 2, True))


def test_no_documents_make_an_empty_ranking(one: Both) -> None:
    assert one.ours.rank(QUERY, []) == one.original.rank(QUERY, []) == []


def test_rank_refuses_several_labels_as_the_original_does(three: Both) -> None:
    with pytest.raises(ValueError, match="num_labels=1"):
        three.original.rank(QUERY, DOCUMENTS)
    with pytest.raises(InputError, match=r"rank\(\) is for models with one label; got 3 labels\. Use predict"):
        three.ours.rank(QUERY, DOCUMENTS)


def test_rank_refuses_what_is_surely_a_mistake(one: Both) -> None:
    with pytest.raises(InputError, match="documents must be a list; got str 'a text'"):
        one.ours.rank(QUERY, "a text")
    with pytest.raises(InputError, match="top_k is negative; got -1"):
        one.ours.rank(QUERY, DOCUMENTS, top_k=-1)
