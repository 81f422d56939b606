"""The memory that a deployment takes, told by a fresh process: ``python -m`` this, with a bundle and a deployment profile.

It runs pairs of the greatest length on every worker at once; standard output is the peak of the resident memory in bytes.
"""

from __future__ import annotations

import sys

from crossforge.profiles import DeploymentProfile
from crossforge.runtime.profiling.memory import read_memory
from crossforge.runtime.profiling.requests import QUERY, long_passage
from crossforge.runtime.reranker import Reranker


def main() -> None:
    """Load, run once, and print the peak."""
    bundle, profile = sys.argv[1:]
    with Reranker.load(bundle, deployment=DeploymentProfile.from_toml(profile)) as reranker:
        rows = max(1, reranker.budget_tokens // reranker.manifest.truncation.max_length)
        passage = long_passage(reranker.tokenizer)  # its end is cut off: pairs differ by their beginnings
        reranker.score_pairs([(QUERY, f"{i} {passage}") for i in range(rows * reranker.workers * 2)])
    sys.stdout.write(f"{read_memory().peak_bytes}\n")


if __name__ == "__main__":
    main()
