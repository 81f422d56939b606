"""How evenly one query is answered: the same query and candidates again and again, p50, p90 and p99.

python benchmarks/one_query.py [--precision int8_native] [--queries 2] [--calls 150]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from common import demo_bundle_of_all, workload

from crossforge.runtime import Reranker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="int8_native")
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--calls", type=int, default=150, help="of a query with 100 candidates; with 20, four times as many")
    arguments = parser.parse_args()
    print("| query | candidates | calls | p50 ms | p90 ms | p99 ms | p99 / p50 |\n|---|---|---|---|---|---|---|")
    with Reranker.load(demo_bundle_of_all(), precision=arguments.precision) as reranker:
        for record in workload().records[: arguments.queries]:
            for count, calls in ((20, 4 * arguments.calls), (100, arguments.calls)):
                texts = [passage.text for passage in record.passages[:count]]
                times_ms = [measure(reranker, record.query, texts) for _ in range(calls + 5)][5:]
                p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
                print(f"| {record.qid} | {count} | {calls} | {p50:.0f} | {p90:.0f} | {p99:.0f} | {p99 / p50:.2f} |")


def measure(reranker: Reranker, query: str, texts: list[str]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    reranker.rank(query, texts)
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
