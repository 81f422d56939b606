"""Seconds and memory from a fresh interpreter to the first score.

python benchmarks/cold_start.py [--runs 9] [--precision int8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from common import demo_bundle

CHILD = """
import json, sys, time
start = time.perf_counter()
from crossforge.runtime import Reranker
imported = time.perf_counter()
reranker = Reranker.load(sys.argv[1], precision=sys.argv[2])
loaded = time.perf_counter()
reranker.score("How many people live in Berlin?", ["Berlin has 3.7 million inhabitants.", "Berlin has museums."])
scored = time.perf_counter()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss would be the parent's
def mb(field):
    return int(status[field].split()[0]) * 1024 / 1e6
print(json.dumps({
    "import_s": imported - start, "load_s": loaded - imported, "first_score_s": scored - loaded, "total_s": scored - start,
    "resident_mb": mb("VmRSS"), "peak_mb": mb("VmHWM"),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--precision", default="int8")
    arguments = parser.parse_args()
    bundle = demo_bundle()
    samples = []
    for _ in range(arguments.runs + 1):
        command = [sys.executable, "-c", CHILD, str(bundle), arguments.precision]
        samples.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    counted = samples[1:]  # the first run reads the files from disk
    print(f"\n{arguments.precision}, median (min-max) of {arguments.runs} fresh processes")
    for name in counted[0]:
        values = [sample[name] for sample in counted]
        print(f"  {name:<14} {statistics.median(values):7.3f}  ({min(values):.3f}-{max(values):.3f})")


if __name__ == "__main__":
    main()
