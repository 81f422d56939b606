"""Bulk scoring in one process: the scores, the files, what is refused, and what a stopped job leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from crossforge.export.cli import app
from crossforge.profiles import Activation, InputError
from crossforge.runtime import Reranker
from crossforge.runtime.distributed.bulk import LocalRunner, job_folder_of, score_file
from crossforge.runtime.distributed.jsonl import MOST_LINE_BYTES
from crossforge.runtime.distributed.scorer import Receipt, ShardWork
from crossforge.runtime.distributed.settings import BulkSettings
from support.builders import make_scoring, write_bundle
from support.bulk import environment, make_records, read_jsonl, write_jsonl, write_parquet
from support.mean_model import MeanModel

SMALL = BulkSettings(shard_pairs=16)


class StoppedError(Exception):
    """What ends a run before its time."""


class StopsAfter(LocalRunner):
    """This process, until so many shards are done."""

    def __init__(self, shards: int) -> None:
        super().__init__()
        self._shards = shards

    def run(self, work: ShardWork, shards: NDArray[np.int64]) -> Iterator[Receipt]:
        yield from super().run(work, shards[: self._shards])
        raise StoppedError


def begun(folder: Path) -> list[int]:
    """The shards that workers began to score, as they wrote it down."""
    notes = [json.loads(line) for file in sorted(folder.glob("journal-*")) for line in file.read_text().splitlines()]
    return [note["shard"] for note in notes if note["event"] == "begin"]


def test_every_pair_has_the_score_of_one_process(tiny_bundle: Path, tmp_path: Path) -> None:
    records = make_records(40)
    summary = score_file(tiny_bundle, write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl", settings=SMALL)

    with Reranker.load(tiny_bundle) as reranker:
        scored = reranker.score_pairs([(record["query"], record["passage"]) for record in records])
    rows = read_jsonl(tmp_path / "out.jsonl")
    np.testing.assert_allclose([row["score"] for row in rows], scored.logits[:, 0], rtol=0, atol=1e-5)
    assert [row["truncated"] for row in rows] == scored.truncated.tolist()
    assert any(row["truncated"] for row in rows)
    assert summary.truncated_pairs == scored.truncated.sum()
    assert summary.pairs == summary.scored_pairs == len(records)
    assert 0 < summary.padding_waste < 0.5


def test_a_shard_has_the_very_scores_of_a_reranker_that_scores_it_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    records = make_records(12)
    whole = BulkSettings(shard_pairs=10_000)
    score_file(tiny_bundle, write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl", settings=whole)

    with Reranker.load(tiny_bundle) as reranker:
        reranker.workers = 1
        scored = reranker.score_pairs([(record["query"], record["passage"]) for record in records])
    assert [np.float32(row["score"]) for row in read_jsonl(tmp_path / "out.jsonl")] == scored.logits[:, 0].tolist()


def test_the_other_fields_come_along_and_the_texts_do_not(tiny_bundle: Path, tmp_path: Path) -> None:
    records = [{"query": "where", "text": "berlin", "id": "é", "n": [1, {"a": None}]}]
    score_file(tiny_bundle, write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl")
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert row == {"id": "é", "n": [1, {"a": None}], "score": row["score"], "truncated": False}


def test_threads_change_no_byte(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(30))
    for threads in (1, 3):
        score_file(tiny_bundle, source, tmp_path / f"{threads}.jsonl", settings=SMALL, runner=LocalRunner(threads))
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "3.jsonl").read_bytes()


def test_parquet_scores_as_json_lines_do(tiny_bundle: Path, tmp_path: Path) -> None:
    records = make_records(40)
    score_file(tiny_bundle, write_jsonl(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl", settings=SMALL)
    score_file(tiny_bundle, write_parquet(tmp_path / "in.parquet", records), tmp_path / "out.parquet", settings=SMALL)

    table = pq.read_table(tmp_path / "out.parquet")
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert table.column_names == ["id", "rank", "score", "truncated"]
    assert table.column("id").to_pylist() == [row["id"] for row in rows]
    assert table.column("score").to_pylist() == [np.float32(row["score"]) for row in rows]


def test_a_folder_is_its_files_in_the_order_of_their_names(tiny_bundle: Path, tmp_path: Path) -> None:
    records = make_records(30)
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "b.jsonl", records[60:])
    write_jsonl(tmp_path / "in" / "a.jsonl", records[:60])
    score_file(tiny_bundle, tmp_path / "in", tmp_path / "out.jsonl", settings=SMALL)
    assert [row["id"] for row in read_jsonl(tmp_path / "out.jsonl")] == [record["id"] for record in records]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_stopped_job_goes_on_to_the_same_bytes(tiny_bundle: Path, tmp_path: Path, suffix: str, done: int) -> None:
    write = write_jsonl if suffix == ".jsonl" else write_parquet
    source = write(tmp_path / f"in{suffix}", make_records(40))
    clean, stopped = tmp_path / f"clean{suffix}", tmp_path / f"stopped{suffix}"
    score_file(tiny_bundle, source, clean, settings=SMALL)
    with pytest.raises(StoppedError):
        score_file(tiny_bundle, source, stopped, settings=SMALL, runner=StopsAfter(done))
    assert begun(job_folder_of(stopped)) == list(range(done))
    assert not stopped.exists()

    summary = score_file(tiny_bundle, source, stopped, settings=SMALL)

    assert stopped.read_bytes() == clean.read_bytes()
    assert summary.resumed_shards == done
    assert not job_folder_of(stopped).exists()


def test_a_job_that_ended_between_its_last_shard_and_the_joining_scores_nothing_again(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(20))
    with pytest.raises(StoppedError):
        score_file(tiny_bundle, source, tmp_path / "out.jsonl", settings=SMALL, runner=StopsAfter(1_000))
    summary = score_file(tiny_bundle, source, tmp_path / "out.jsonl", settings=SMALL)
    assert (summary.scored_pairs, summary.resumed_shards) == (0, summary.shards)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": BulkSettings(shard_pairs=17)}, "another settings"),
        ({"settings": BulkSettings(shard_pairs=16, activation=Activation.SIGMOID)}, "another settings"),
        ({"source": "other.jsonl"}, "another input"),
        ({"bundle": "other"}, "another bundle"),
    ],
)
def test_a_job_does_not_go_on_as_another(tiny_bundle: Path, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    write_jsonl(tmp_path / "in.jsonl", make_records(20))
    write_jsonl(tmp_path / "other.jsonl", make_records(20, seed=1))
    write_bundle(tmp_path / "other", model=MeanModel(seed=1))
    output = tmp_path / "out.jsonl"
    with pytest.raises(StoppedError):
        score_file(tiny_bundle, tmp_path / "in.jsonl", output, settings=SMALL, runner=StopsAfter(2))

    bundle = tmp_path / change["bundle"] if "bundle" in change else tiny_bundle
    source = tmp_path / change.get("source", "in.jsonl")
    with pytest.raises(InputError, match=f"begun with {named};.*delete the folder"):
        score_file(bundle, source, output, settings=change.get("settings", SMALL))


def test_two_runs_of_one_job_do_not_meet(tiny_bundle: Path, tmp_path: Path) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", make_records(5)), tmp_path / "out.jsonl"

    class RunsAnother(LocalRunner):
        def run(self, work: ShardWork, shards: NDArray[np.int64]) -> Iterator[Receipt]:
            with pytest.raises(InputError, match="another run is at work"):
                score_file(tiny_bundle, source, output)
            return super().run(work, shards)

    score_file(tiny_bundle, source, output, runner=RunsAnother())
    assert len(read_jsonl(output)) == len(read_jsonl(source))


def test_an_output_that_is_there_stays(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(2))
    (tmp_path / "out.jsonl").write_text("precious")
    with pytest.raises(InputError, match="exists"):
        score_file(tiny_bundle, source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "precious"


def test_a_part_that_lost_a_line_is_not_joined(tiny_bundle: Path, tmp_path: Path) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", make_records(20)), tmp_path / "out.jsonl"
    with pytest.raises(StoppedError):
        score_file(tiny_bundle, source, output, settings=SMALL, runner=StopsAfter(2))
    part = job_folder_of(output) / "part-000000001.jsonl"
    part.write_bytes(part.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(InputError, match=r"part-000000001.jsonl is damaged.*Delete it"):
        score_file(tiny_bundle, source, output, settings=SMALL)
    part.unlink()
    assert score_file(tiny_bundle, source, output, settings=SMALL).pairs == len(read_jsonl(source))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"query": "q"}', "line 3: 'passage' is missing"),
        ("[]", "line 3: not an object"),
        ('{"query": "q", "passage": "p", "score": 1}', "line 3: the output adds a field 'score'"),
        ('{"query": "q", "passage": "' + "p" * MOST_LINE_BYTES + '"}', "line 3: too long"),
    ],
    ids=["passage", "list", "score", "long"],
)
def test_a_bad_record_is_found_before_anything_is_scored(
    tiny_bundle: Path, tmp_path: Path, line: str, complaint: str
) -> None:
    (tmp_path / "in.jsonl").write_text('{"query": "q", "passage": "p"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=complaint):
        score_file(tiny_bundle, tmp_path / "in.jsonl", tmp_path / "out.jsonl", settings=BulkSettings(shard_pairs=1))
    assert begun(job_folder_of(tmp_path / "out.jsonl")) == []


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"query": "q", "words": "p"}, "'passage' is missing"),
        ({"query": "q", "passage": None}, "'passage' is not a column of strings"),
        ({"query": "q", "passage": "p", "truncated": True}, "the output adds a column 'truncated'"),
    ],
)
def test_a_bad_column_is_refused(tiny_bundle: Path, tmp_path: Path, record: dict[str, Any], complaint: str) -> None:
    source = write_parquet(tmp_path / "in.parquet", [record])
    with pytest.raises(InputError, match=complaint):
        score_file(tiny_bundle, source, tmp_path / "out.parquet")


def test_a_text_that_the_model_cannot_use_is_named_by_its_place(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"query": "q", "passage": "p"}, {"query": " ", "passage": "p"}])
    with pytest.raises(InputError, match=r"in.jsonl, from record 1 on: the query of pair 1"):
        score_file(tiny_bundle, source, tmp_path / "out.jsonl")


def test_a_model_that_ranks_by_no_label_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", model=MeanModel(labels=3), scoring=make_scoring(3, ranking_label=None))
    source = write_jsonl(tmp_path / "in.jsonl", make_records(1))
    with pytest.raises(InputError, match="no label that ranks"):
        score_file(bundle, source, tmp_path / "out.jsonl")


def test_memory_does_not_grow_with_the_input(tiny_bundle: Path, tmp_path: Path) -> None:
    limit_bytes = 2_000_000
    record = json.dumps({"query": "where is the city", "passage": "b" * 7_000}) + "\n"
    source = tmp_path / "in.jsonl"
    with source.open("w") as file:
        for _ in range(1_000):
            file.write(record)
    assert source.stat().st_size > 3 * limit_bytes
    tracemalloc.start()
    try:
        score_file(tiny_bundle, source, tmp_path / "out.jsonl", settings=BulkSettings(shard_pairs=2), runner=LocalRunner(1))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < limit_bytes


def test_the_commands_write_the_same_file(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(10))
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    bulk = CliRunner().invoke(app, ["bulk", str(tiny_bundle), str(source), str(one), "--json"])
    score = CliRunner().invoke(app, ["score", str(tiny_bundle), "--pairs", str(source), "--output", str(two)])

    assert bulk.exit_code == score.exit_code == 0, (bulk.output, score.output)
    assert json.loads(bulk.stdout)["pairs"] == len(read_jsonl(source))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "BUNDLE", "--ray", "--pairs", "in.jsonl"],
        ["score", "BUNDLE", "--output", "out.jsonl", "-q", "query", "-p", "passage"],
        ["score", "BUNDLE", "--pairs", "in.jsonl", "--output", "out.jsonl", "--chunk", "max"],
        ["score", "BUNDLE", "--pairs", "in.jsonl", "--output", "out.jsonl", "--instruction", "Judge."],
        ["bulk", "BUNDLE", "in.jsonl", "out.jsonl", "--actors", "2"],
        ["bulk", "BUNDLE", "in.jsonl", "out.parquet"],
        ["bulk", "BUNDLE", "missing.jsonl", "out.jsonl"],
        ["bulk", "BUNDLE", "in.csv", "out.csv"],
    ],
)
def test_commands_that_cannot_be_meant_are_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", make_records(1))
    (tmp_path / "in.csv").write_text("query,passage\n")
    done = CliRunner().invoke(app, [str(tiny_bundle) if word == "BUNDLE" else word for word in arguments])
    assert (done.exit_code, "allowed" in done.stderr) == (2, True), done.output


def test_ray_that_is_missing_answers_with_a_pip_line(tiny_bundle: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", make_records(1))
    code = """
import sys
sys.modules["ray"] = None
from crossforge.export.cli import app
app(["bulk", sys.argv[1], "in.jsonl", "out.jsonl", "--ray"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert 'pip install "crossforge[ray]"' in done.stderr
