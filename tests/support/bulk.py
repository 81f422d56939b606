"""Files of pairs to score in bulk, and a Ray cluster to score them on."""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["where", "is", "the", "city", "berlin", "people", "live", "a", "passage", "query", "river"]

_TOKEN = secrets.token_hex(32)
_CLUSTER = """
import sys, crossforge.runtime, ray
context = ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


def make_records(queries: int, *, seed: int = 0, most: int = 9) -> list[dict[str, Any]]:
    """Records of ``queries`` queries with one to ``most`` passages each, some of them too long for the model."""
    draw = random.Random(seed)
    records = []
    for q in range(queries):
        query = " ".join([f"{q}", *draw.choices(WORDS, k=4)])
        for p in range(draw.randint(1, most)):
            text = " ".join(draw.choices(WORDS, k=draw.randint(1, 80)))
            records.append({"id": f"{q}-{p}", "query": query, "passage": text, "rank": p})
    return records


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def write_parquet(path: Path, records: list[dict[str, Any]], *, rows_per_group: int = 50) -> Path:
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=rows_per_group)
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def environment(**variables: str) -> dict[str, str]:
    """A process's environment in which crossforge is this tree's, also for the actors that it starts."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("export", "runtime", "profiles"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}  # or Ray keeps one in the home folder
    return {**kept, "PYTHONPATH": paths, **token, **variables}


@contextmanager
def ray_cluster() -> Iterator[str]:
    """A Ray of two CPUs in processes of its own; its address."""
    command = [sys.executable, "-c", _CLUSTER]
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        assert address, "Ray did not start"
        yield address
        cluster.stdin.close()
