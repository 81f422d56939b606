from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from crossforge.profiles import InputError
from crossforge.runtime.profiling.options import ProfileOptions
from crossforge.runtime.profiling.texts import compose_texts
from crossforge.runtime.profiling.workload import cells_of_run, clip_lengths, plan_workload
from crossforge.runtime.records import Passage, QueryRecord
from crossforge.runtime.tokenization import PairTokenizer
from support.builders import TRUNCATION
from support.families import FAMILIES, TEMPLATES, make_tokenizer


def pair_tokenizer(family: str = "bert", max_length: int = 64) -> PairTokenizer:
    return PairTokenizer(make_tokenizer(family), TEMPLATES[family], replace(TRUNCATION, max_length=max_length))


def record(qid: str, passages: int, words: int = 1) -> QueryRecord:
    items = tuple(Passage(id=str(i), text=" ".join(["city"] * words)) for i in range(passages))
    return QueryRecord(qid=qid, query="where", passages=items)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_a_grid_have_exactly_the_tokens_that_it_says(family: str) -> None:
    tokenizer = pair_tokenizer(family)
    options = ProfileOptions(candidates=(1, 20), lengths=(16, 31, 64), query_tokens=5)
    cells, skipped = plan_workload(options, tokenizer)

    assert skipped == []
    assert [(cell.candidates, cell.sequence_length) for cell in cells] == [
        (1, 16), (1, 31), (1, 64), (20, 16), (20, 31), (20, 64),
    ]  # fmt: skip
    for cell in cells:
        (call,) = cell.calls
        encoded = tokenizer.encode(call.query, call.passages)
        assert encoded.lengths.tolist() == [cell.sequence_length] * cell.candidates == list(call.lengths)
        assert not encoded.truncated.any()
        assert len(tokenizer.encode(call.query, [""]).heads[0]) == 5 + len(encoded.heads[0]) - 5
        assert cell.tokens == cell.candidates * cell.sequence_length


def test_the_query_of_a_grid_may_be_as_long_as_the_contract_allows() -> None:
    tokenizer = pair_tokenizer()
    cells, _ = plan_workload(ProfileOptions(candidates=(1,), lengths=(40,), query_tokens=16), tokenizer)
    encoded = tokenizer.encode(cells[0].calls[0].query, ["city"])

    assert len(encoded.heads[0]) == 16 + 2
    assert not encoded.query_truncated.any()
    with pytest.raises(InputError, match="the query would be cut"):
        plan_workload(ProfileOptions(query_tokens=17), tokenizer)


def test_different_texts_are_used_as_far_as_they_go() -> None:
    cells, _ = plan_workload(ProfileOptions(candidates=(40,), lengths=(64,)), pair_tokenizer())
    assert len(set(cells[0].calls[0].passages)) > 8


def test_a_tokenizer_without_one_token_words_is_told_of() -> None:
    with pytest.raises(InputError, match="--workload"):
        compose_texts(lambda texts: [2 * len(text.split()) for text in texts], 7, 1)


def test_lengths_beyond_the_model_are_clipped_and_said() -> None:
    kept, skipped = clip_lengths([32, 64, 100, 600], least=12, most=64)

    assert kept == [32, 64]
    assert [(item.what, item.why) for item in skipped] == [
        ("100 tokens", "the model reads 64 at most, which are measured in their place"),
        ("600 tokens", "the model reads 64 at most, which are measured in their place"),
    ]


def test_lengths_that_are_too_short_for_a_pair_are_left_out() -> None:
    kept, skipped = clip_lengths([5, 32], least=12, most=64)

    assert (kept, skipped[0].what) == ([32], "5 tokens")
    with pytest.raises(InputError, match="no length can be measured"):
        clip_lengths([5], least=12, most=64)


def test_the_queries_of_a_run_are_grouped_by_their_candidates() -> None:
    records = [record("a", 3), record("b", 1), record("c", 3, words=5), record("none", 0)]
    cells = cells_of_run(records, pair_tokenizer())

    assert [(cell.candidates, len(cell.calls)) for cell in cells] == [(1, 1), (3, 2)]
    assert cells[1].sequence_length == round((3 * 5 + 3 * 9) / 6)
    assert cells[1].tokens == round((3 * 5 + 3 * 9) / 2)


def test_many_numbers_of_candidates_make_eight_groups_that_leave_nothing_out() -> None:
    records = [record(str(i), i + 1) for i in range(30)]
    cells = cells_of_run(records, pair_tokenizer())

    assert len(cells) == len({cell.candidates for cell in cells}) == 8
    assert sum(len(cell.calls) for cell in cells) == 30


def test_a_workload_without_pairs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({"qid": "1", "query": "where", "passages": []}))
    with pytest.raises(InputError, match="holds no pair"):
        plan_workload(ProfileOptions(workload=path), pair_tokenizer())


@pytest.mark.parametrize(
    "bad",
    [{"candidates": ()}, {"candidates": (0,)}, {"lengths": (-1,)}, {"query_tokens": 0}, {"budget_s": 0.0},
     {"budget_s": float("nan")}, {"interval_width": 0.0}, {"interval_width": 1.0}, {"cold_starts": 0}],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ProfileOptions(**bad)  # type: ignore[arg-type]
