"""Bulk scoring and Ray Serve on a real Ray of two CPUs, one for all tests here; every driver is a process of its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossforge.runtime.distributed.bulk import job_folder_of, score_file
from crossforge.runtime.distributed.settings import BulkSettings
from support.bulk import ROOT, environment, make_records, ray_cluster, write_jsonl, write_parquet

pytestmark = pytest.mark.slow

SHARD_PAIRS = 10
MAIN = "from crossforge.export.main import main; main()"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_cluster() as address:
        yield address


def start_bulk(address: str, bundle: Path, source: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    """A driver."""
    words = [str(bundle), str(source), str(output), "--ray", "--json", "--shard-pairs", str(SHARD_PAIRS), *options]
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, "bulk", *words],
        env=environment(RAY_ADDRESS=address), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(driver: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    stdout, stderr = driver.communicate(timeout=180)
    assert driver.returncode == status, stderr
    return stdout, stderr


def parts_of(folder: Path) -> dict[str, int]:
    """The finished parts, each with the number of its file on the disk: another if it was written again."""
    return {part.name: part.stat().st_ino for part in folder.glob("part-*.jsonl")}


def shards_begun(journals: set[Path]) -> set[str]:
    """What actors wrote down that they began to score, as the names of parts."""
    notes = [json.loads(line) for journal in journals for line in journal.read_text().splitlines() if line.endswith("}")]
    return {f"part-{note['shard']:09d}.jsonl" for note in notes if note["event"] == "begin"}


def test_drivers_that_are_killed_and_one_that_is_not_write_what_one_process_writes(
    address: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(600))
    clean, output = tmp_path / "clean.jsonl", tmp_path / "out.jsonl"
    local = score_file(tiny_bundle, source, clean, settings=BulkSettings(shard_pairs=SHARD_PAIRS))
    folder, moments = job_folder_of(output), sorted(random.Random(9).sample(range(1, local.shards * 2 // 3), 2))
    finished: dict[str, int] = {}
    known: set[Path] = set()

    for moment in moments:
        driver = start_bulk(address, tiny_bundle, source, output)
        while len(parts_of(folder)) < moment:
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.01)  # looking all the time would take a core from the actors
        driver.kill()
        driver.communicate()
        journals = set(folder.glob("journal-*")) - known
        known |= journals
        assert shards_begun(journals)
        assert not shards_begun(journals) & finished.keys()
        finished = parts_of(folder)

    summary = json.loads(finish(start_bulk(address, tiny_bundle, source, output))[0])

    assert output.read_bytes() == clean.read_bytes()
    assert summary["pairs"] == local.pairs
    assert summary["resumed_shards"] >= len(finished)
    assert summary["scored_pairs"] < local.pairs
    assert summary["workers"] == 2


def test_parquet_on_one_actor_is_parquet_of_one_process(address: str, tiny_bundle: Path, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", make_records(30))
    score_file(tiny_bundle, source, tmp_path / "clean.parquet", settings=BulkSettings(shard_pairs=SHARD_PAIRS))
    finish(start_bulk(address, tiny_bundle, source, tmp_path / "out.parquet", "--actors", "1", "--cpus-per-actor", "2"))
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "clean.parquet").read_bytes()


def test_what_an_actor_cannot_do_is_told_in_its_own_words(address: str, tiny_bundle: Path, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"query": "q", "passage": "p"}, {"query": " ", "passage": "p"}]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    _, stderr = finish(start_bulk(address, tiny_bundle, source, tmp_path / "out.jsonl"), status=2)
    assert "from record 1 on: the query of pair 1" in stderr
    assert "Traceback" not in stderr


def test_the_example_serves_from_as_many_replicas_as_it_is_set_to(address: str, demo_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ray_serve.py"), str(demo_bundle)],
        env=environment(RAY_ADDRESS=address), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    best, worst, health, replicas = [line for line in done.stdout.splitlines() if line[:1] not in "(\x1b"]
    assert best.endswith("Berlin has about 3.8 million inhabitants.")
    assert worst.endswith("Berlin is known for its museums.")
    assert health == "health: ok"
    assert replicas == "replicas: {'RUNNING': 2}"
