"""From nothing to the first score, in a process of its own: what a variant costs alone."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from crossforge.profiles import EngineError

_CHILD = """
import json, sys, time
sys.path[:] = json.loads(sys.argv[1])
bundle, provider, precision, *deployment = sys.argv[2:]
start = time.perf_counter_ns()
from crossforge.runtime import Reranker
imported = time.perf_counter_ns()
from crossforge.profiles import DeploymentProfile
settings = DeploymentProfile.from_toml(deployment[0]) if deployment else None
reranker = Reranker.load(bundle, provider=provider, precision=precision, strict=True, deployment=settings)
loaded = time.perf_counter_ns()
query = "how many people live in the city?"
reranker.score_pairs([(query, text) for text in ("It has 3.7 million inhabitants.", "A museum.")])
called = time.perf_counter_ns()
from crossforge.runtime.profiling.memory import read_memory
print(json.dumps({
    "import_ms": (imported - start) / 1e6, "load_ms": (loaded - imported) / 1e6, "first_call_ms": (called - loaded) / 1e6,
    "resident_bytes": read_memory().resident_bytes,
}))
"""


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """A fresh process, with one variant."""

    import_ms: float
    load_ms: float
    """Opening the bundle, every file's digest compared."""
    first_call_ms: float
    """Two short pairs."""
    resident_bytes: int
    """After that call."""


def measure_cold_start(
    bundle: Path, *, provider: str, precision: str, deployment: Path | None = None, runs: int
) -> ColdStart:
    """Start so many processes one after another, with a deployment profile if one is given; the median of each figure.

    Raises:
        EngineError: A process failed.
    """
    arguments = [str(bundle), provider, precision, *([] if deployment is None else [str(deployment)])]
    starts = [_start(arguments, f"{precision} on {provider}") for _ in range(runs)]
    return ColdStart(
        import_ms=statistics.median(start.import_ms for start in starts),
        load_ms=statistics.median(start.load_ms for start in starts),
        first_call_ms=statistics.median(start.first_call_ms for start in starts),
        resident_bytes=int(statistics.median(start.resident_bytes for start in starts)),
    )


def _start(arguments: list[str], name: str) -> ColdStart:
    # The child imports what this process would: its path goes along, however it came to be.
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise EngineError(f"{name} does not start in a process of its own", got=last[0])
    return ColdStart(**json.loads(done.stdout.splitlines()[-1]))
