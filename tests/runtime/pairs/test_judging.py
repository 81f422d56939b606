"""Scores of a file, chunk by chunk, its threshold, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from crossforge.export.cli import app
from crossforge.profiles import Activation, InputError, Truncation, TruncationSide
from crossforge.runtime import FakeSession
from crossforge.runtime.pairs.judging import PairJudge, split
from crossforge.runtime.pairs.options import Criterion, JudgingOptions, LabelKind
from crossforge.runtime.pairs.records import TextPair, open_pairs
from crossforge.runtime.pairs.streaming import CHUNK_PAIRS, cut_chunks, score_stream
from support.builders import fake_reranker, make_manifest, make_scoring, write_bundle

WORDS = ("city", "people", "berlin", "where", "live", "passage")
ROWS = [
    {"text1": first, "text2": second, "label": int(first == second)} for first in WORDS for second in WORDS
]  # 36 pairs, 6 duplicates


def overlap(ids: NDArray[np.int64]) -> float:
    """A logit of 3 where both texts are the same token, otherwise lower."""
    return 3.0 if ids[1] == ids[3] else -abs(float(ids[1] - ids[3])) / 100


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge(path: Path, **options: Any) -> tuple[list[float], list[bool | None], PairJudge]:
    with open_pairs(path) as pairs, fake_reranker(FakeSession(overlap)) as reranker:
        judging = PairJudge(pairs, JudgingOptions(**options))
        rows = list(judging.run(reranker))
    return [row.score for row, _ in rows], [marked for _, marked in rows], judging


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", ROWS)


def test_scores_come_in_the_order_of_the_file_and_are_predicts(rows: Path) -> None:
    scores, _, _ = judge(rows)
    with fake_reranker(FakeSession(overlap)) as reranker:
        expected = reranker.predict([(row["text1"], row["text2"]) for row in ROWS])
    assert scores == expected.tolist()
    assert max(scores) < 1


def test_a_file_is_read_a_chunk_at_a_time() -> None:
    taken = 0

    def endless() -> Iterator[TextPair]:
        nonlocal taken
        while True:
            taken += 1
            yield TextPair(line=taken, text1=WORDS[taken % 6], text2="city", label=None)

    session = FakeSession(overlap)
    with fake_reranker(session) as reranker:
        stream = score_stream(reranker, endless())
        lines = [next(stream).pair.line for _ in range(CHUNK_PAIRS + 1)]
    assert lines == list(range(1, CHUNK_PAIRS + 2))
    assert taken == 2 * CHUNK_PAIRS + 1
    assert sum(len(batch["input_ids"]) for batch in session.batches) == 2 * 6, "equal pairs of a chunk are computed once"


def test_long_texts_make_small_chunks() -> None:
    pairs = [TextPair(line=i, text1="x" * length, text2="y", label=None) for i, length in enumerate((3, 3, 30, 2, 2, 2))]
    chunks = list(cut_chunks(pairs, most_pairs=2, most_chars=8))
    assert [[pair.line for pair in chunk] for chunk in chunks] == [[0, 1], [2], [3, 4], [5]]


@pytest.mark.parametrize(("labels", "score"), [(1, 1 / (1 + np.exp(-3))), (2, 1 / (1 + np.exp(1)))])
def test_a_score_is_the_bundles_activation_or_the_softmax_of_several_labels(labels: int, score: float) -> None:
    """Of two labels the fake's second logit is the first plus 1, and the first ranks here."""
    scoring = make_scoring(labels, activation=Activation.SIGMOID)
    pair = TextPair(line=1, text1="city", text2="city", label=None)
    with fake_reranker(FakeSession(overlap, labels=labels), manifest=make_manifest(scoring=scoring)) as reranker:
        (row,) = score_stream(reranker, [pair])
        (raw,) = score_stream(reranker, [pair], activation=Activation.IDENTITY)
    assert row.score == pytest.approx(score, abs=1e-6)
    assert raw.score == 3


def test_marks_and_figures_are_of_the_threshold(rows: Path) -> None:
    _, marks, judging = judge(rows, threshold=0.9)
    assert marks == [row["label"] == 1 for row in ROWS]
    summary = judging.summarize()
    assert (summary.pairs, summary.marked, summary.labels) == (36, 6, "binary, every one is 0 or 1")
    assert summary.binary is not None
    assert summary.binary.at_threshold is not None
    assert (summary.binary.average_precision, summary.binary.at_threshold.f1) == (1, 1)
    _, unmarked, without = judge(rows)
    assert set(unmarked) == {None}
    assert (without.summarize().marked, without.summarize().threshold) == (None, None)


def test_a_threshold_is_chosen_on_another_file(rows: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", ROWS[:14])
    scores, marks, judging = judge(rows, threshold_from=other)
    assert judging.threshold is not None
    assert sorted(set(scores))[-2] < judging.threshold < max(scores)
    assert sum(mark is True for mark in marks) == 6
    assert judging.threshold_source == f"best F1 on {other}"


def test_a_threshold_is_chosen_on_pairs_that_are_not_measured(rows: Path) -> None:
    _, _, judging = judge(rows, held_out=0.5, seed=3, criterion=Criterion.ACCURACY)
    summary = judging.summarize()
    assert summary.binary is not None
    assert (summary.binary.pairs, summary.binary.duplicates) == (18, 3)
    assert summary.threshold_source == "best accuracy on 18 pairs, the figures are of the other 18"
    assert judging.threshold == judge(rows, held_out=0.5, seed=3, criterion=Criterion.ACCURACY)[2].threshold


@pytest.mark.parametrize(("kept", "message"), [(30, "shrank"), (72, "grew")])
def test_a_file_that_changes_under_the_reading_is_noticed(rows: Path, kept: int, message: str) -> None:
    with open_pairs(rows) as pairs, fake_reranker(FakeSession(overlap)) as reranker:
        judging = PairJudge(pairs)
        write_rows(rows, (ROWS * 2)[:kept])
        with pytest.raises(InputError, match=f"{message} while it was read"):
            list(judging.run(reranker))


def test_a_split_has_both_kinds_on_both_sides() -> None:
    labels = np.asarray([np.nan, *[1.0] * 3, *[0.0] * 10])
    chosen = split(labels, 0.01, seed=0)
    assert (chosen.sum(), chosen[0]) == (2, False)
    assert not (split(labels, 0.5, seed=0) == split(labels, 0.5, seed=1)).all()
    with pytest.raises(InputError, match="too few labels to hold some out; got 1 of 1"):
        split(np.asarray([0.0, 0, 1]), 0.5, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.5, "held_out": 0.5}, "several sources; got threshold and held_out"),
        ({"held_out": 1.0}, "held_out is no share"),
        ({"threshold": float("nan")}, "not a number"),
        ({"held_out": 0.5, "labels": LabelKind.GRADED}, "no binary labels to choose a threshold on"),
        ({"threshold_from": "graded"}, "a threshold is chosen on binary labels; got .*graded, 0 to 5"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(rows: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    if options.get("threshold_from"):
        graded = [{**row, "label": i % 6} for i, row in enumerate(ROWS)]
        options = {"threshold_from": write_rows(tmp_path / "graded.jsonl", graded)}
    with pytest.raises(InputError, match=message):
        judge(rows, **options)


# The command


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def crossforge(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.stderr
    return result


def test_the_command_prints_pairs_and_what_they_are_worth(bundle: Path, rows: Path) -> None:
    result = crossforge("pairs", bundle, rows, "--threshold", 0.5)
    lines = result.stdout.splitlines()
    assert len(lines) == 36 + 7
    for line, row in zip(lines, ROWS, strict=False):
        score, *mark, label, first, bar, second = line.split()
        assert (mark == ["="]) == (float(score) >= 0.5)
        assert (label, first, bar, second) == (str(row["label"]), row["text1"], "|", row["text2"])
    assert lines[36] == "36 pairs; labels: binary, every one is 0 or 1"
    assert lines[37].endswith("score 0.5 or more (as given)")
    assert lines[38].startswith("average precision 0.")
    assert lines[39].startswith("at 0.5: precision")
    assert [line.split(":")[0] for line in lines[40:42]] == ["best F1 on these pairs", "best accuracy on these pairs"]


def test_json_lines_are_pairs_alone_and_json_is_one_document(bundle: Path, rows: Path) -> None:
    result = crossforge("pairs", bundle, rows, "--threshold", 0.5, "--format", "jsonl")
    printed = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["text1"], row["text2"], row["label"]) for row in printed] == [tuple(row.values()) for row in ROWS]
    assert "average precision" in result.stderr
    document = json.loads(crossforge("pairs", bundle, rows, "--threshold", 0.5, "--json").stdout)
    assert document["scores"] == [row["score"] for row in printed]
    assert document["duplicate"] == [row["duplicate"] for row in printed]
    assert (document["provider"], document["precision"], document["activation"]) == ("cpu", "fp32", "sigmoid")
    assert document["binary"]["best"].keys() == {"f1", "accuracy"}


def test_graded_labels_give_correlations(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    path = write_rows(tmp_path / "graded.jsonl", [{**row, "label": i / 7} for i, row in enumerate(ROWS)])
    lines = crossforge("pairs", bundle, path).stdout.splitlines()
    assert lines[36] == "36 pairs; labels: graded, 0 to 5"
    assert lines[37].startswith("Spearman ")


def test_a_first_text_that_is_cut_as_a_query_is_told(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "long.jsonl", [{"text1": "the city " * 20, "text2": "a passage"}])
    as_query = crossforge("pairs", write_bundle(tmp_path / "bundle"), rows)
    assert "1 of 1 pairs were too long for the model and were cut, 1 of them in the first text. The bundle takes" in (
        " ".join(as_query.stderr.split())
    )
    symmetric = Truncation(max_length=64, query_max_length=None, side=TruncationSide.RIGHT)
    whole = crossforge("pairs", write_bundle(tmp_path / "symmetric", truncation=symmetric), rows)
    assert "cut" not in whole.stderr


def test_a_bad_line_ends_it_before_anything_is_scored(tmp_path: Path, rows: Path) -> None:
    with rows.open("a") as stream:
        stream.write('{"text1": "a"}\n')
    result = crossforge("pairs", tmp_path / "no-bundle", rows, code=2)
    assert result.stdout == ""
    assert "line 37: no pair of texts" in result.stderr
