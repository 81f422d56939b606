"""How evenly one query is answered: the same query and candidates again and again, p50, p90 and p99.

python benchmarks/one_query.py [--precision int8_native] [--queries 2] [--calls 150]

Between two calls the machine is asked how quiet it is: the control is integer products in ONNX Runtime, pieces of some 10 ms
dealt to as many threads until about as much time has passed. It has no query, no batches of different sizes and no Python to
speak of, so what its p99 is above its p50 is the machine's, and so much of the reranker's may be. `disturbed` counts the
calls that took 1.3 times their p50 and more.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from common import demo_bundle_of_all, workload

from crossforge.runtime import Reranker
from crossforge.runtime.machine import usable_cores
from crossforge.runtime.profiling.product_model import product_model
from crossforge.runtime.sessions.ort import import_onnxruntime

WARM_UP = 5
PIECE_S = 0.01
DISTURBED = 1.3


class Control:
    """The machine alone: integer products on every core, in pieces that whoever is free takes."""

    def __init__(self, threads: int) -> None:
        random = np.random.default_rng(0)
        self._left = random.integers(0, 255, (384, 1024), dtype=np.uint8)
        right = random.integers(-127, 127, (1024, 1024), dtype=np.int8)
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = product_model("MatMulInteger", self._left, right, np.int32)
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._piece = 1
        self._piece = max(1, int(PIECE_S / np.median([_seconds(self._multiply) for _ in range(20)])))

    def run(self, seconds: float) -> None:
        """Take about so long, on a quiet machine."""
        pieces = self._threads * max(1, round(seconds / PIECE_S))
        list(self._pool.map(lambda _: self._multiply(), range(pieces)))

    def _multiply(self) -> None:
        for _ in range(self._piece):
            self._session.run(None, {"left": self._left})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="int8_native")
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--calls", type=int, default=150, help="of a query with 100 candidates; with 20, four times as many")
    arguments = parser.parse_args()
    control = Control(usable_cores())
    print(
        "| query | candidates | calls | p50 ms | p90 ms | p99 ms | p99 / p50 | disturbed | machine's p99 / p50 | disturbed |"
    )
    print("|---" * 10 + "|")
    with Reranker.load(demo_bundle_of_all(), precision=arguments.precision) as reranker:
        for record in workload().records[: arguments.queries]:
            for count, calls in ((20, 4 * arguments.calls), (100, arguments.calls)):
                texts = [passage.text for passage in record.passages[:count]]
                ours, machine = measure(reranker, control, record.query, texts, calls)
                times = " | ".join(f"{ms:.0f}" for ms in np.percentile(ours, [50, 90, 99]) * 1e3)
                print(f"| {record.qid} | {count} | {calls} | {times} | {evenness(ours)} | {evenness(machine)} |", flush=True)


def measure(
    reranker: Reranker, control: Control, query: str, texts: Sequence[str], calls: int
) -> tuple[list[float], list[float]]:
    """Seconds of each call, and of the control that follows it."""
    expected = float(np.median([_seconds(lambda: reranker.rank(query, texts)) for _ in range(WARM_UP)]))
    ours, machine = [], []
    for _ in range(calls):
        ours.append(_seconds(lambda: reranker.rank(query, texts)))
        machine.append(_seconds(lambda: control.run(expected)))
    return ours, machine


def evenness(seconds: Sequence[float]) -> str:
    """p99 / p50, and how many took far longer than the median."""
    p50, p99 = np.percentile(seconds, [50, 99])
    return f"{p99 / p50:.2f} | {sum(s >= DISTURBED * p50 for s in seconds)}"


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
