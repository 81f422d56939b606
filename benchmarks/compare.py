"""Pairs per second of each variant beside sentence-transformers, in turns, in one process, with equal threads.

    python benchmarks/compare.py [--queries 6] [--rounds 5] [--json]

Every round runs every contender once on the same pairs, so that drift of the machine hits all alike; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from common import demo_bundle, demo_checkpoint, workload
from sentence_transformers import CrossEncoder

from crossforge.export.parity import kendall_tau
from crossforge.profiles import Precision
from crossforge.runtime import Reranker
from crossforge.runtime.machine import inspect_machine

REFERENCE = "sentence-transformers fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    machine = inspect_machine()
    torch.set_num_threads(machine.usable_cores)
    bundle, work = demo_bundle(), workload(arguments.queries)
    pairs = work.pairs
    teacher = CrossEncoder(str(demo_checkpoint()), device="cpu", max_length=512)
    rerankers = {precision: Reranker.load(bundle, precision=precision) for precision in (Precision.FP32, Precision.INT8)}
    contenders: dict[str, Callable[[], np.ndarray]] = {
        REFERENCE: lambda: teacher.predict(pairs, batch_size=32, show_progress_bar=False)
    }
    for precision, reranker in rerankers.items():
        contenders[f"crossforge {precision}"] = lambda r=reranker: r.score_pairs(pairs).logits[:, 0]

    scores = {name: run() for name, run in contenders.items()}  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    tokenizing: list[float] = []
    for _ in range(arguments.rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run))
        tokenizing.append(timed(lambda: rerankers[Precision.INT8].tokenizer.encode_pairs(pairs)))

    baseline = statistics.median(seconds[REFERENCE])
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        rows.append(
            {
                "name": name,
                "pairs_per_s": len(pairs) / median,
                "slowest": len(pairs) / max(times),
                "fastest": len(pairs) / min(times),
                "ratio": baseline / median,
                "max_abs_diff": float(np.abs(scores[name] - scores[REFERENCE]).max()),
                "kendall_tau": mean_tau(scores[REFERENCE], scores[name], [len(r.passages) for r in work.records]),
            }
        )
    share = statistics.median(tokenizing) / statistics.median(seconds["crossforge int8"])
    if arguments.json:
        print(
            json.dumps(
                {"machine": machine.cpu, "workload": work.name, "pairs": len(pairs), "rows": rows, "tokenizer_share": share}
            )
        )
        return
    print(
        f"\n{work.name}: {len(pairs)} pairs, {arguments.rounds} rounds, {machine.usable_cores} threads each, {machine.cpu}\n"
    )
    print(f"| {'':<27} | pairs/s (min-max)   | ratio | max diff. | Kendall tau |")
    print(f"|{'-' * 29}|{'-' * 21}|{'-' * 7}|{'-' * 11}|{'-' * 13}|")
    for row in rows:
        spread = f"{row['pairs_per_s']:.0f} ({row['slowest']:.0f}-{row['fastest']:.0f})"
        fidelity = f"{row['max_abs_diff']:<9.2g} | {row['kendall_tau']:<11.4f}"
        print(f"| {row['name']:<27} | {spread:<19} | {row['ratio']:<5.2f} | {fidelity} |")
    print(f"\nTokenizing takes {share:.1%} of the int8 variant's time.")


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def mean_tau(reference: np.ndarray, scores: np.ndarray, sizes: Sequence[int]) -> float:
    cuts = np.cumsum(sizes)[:-1]
    taus = [kendall_tau(a, b) for a, b in zip(np.split(reference, cuts), np.split(scores, cuts), strict=True)]
    return float(np.mean([tau for tau in taus if tau is not None]))


if __name__ == "__main__":
    main()
