"""A fresh process that sees only some of the installed packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json, sys

class OnlySome:  # the finders that were there, for some packages
    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in sys.argv[2:]:
            return next(filter(None, (finder.find_spec(name, path, target) for finder in self.finders)), None)

sys.meta_path[:] = [OnlySome()]
from crossforge.runtime import Reranker
with Reranker.load(sys.argv[1]) as reranker:
    ranked = reranker.rank("where is the city", ["berlin", "a passage"])
    print(json.dumps([reranker.session.provider, reranker.precision, [passage.score for passage in ranked]]))
"""


def rank_with(packages: Sequence[str], bundle: Path) -> tuple[str, str, list[float]]:
    """Rank two passages where no other package can be imported: the provider, the precision and the scores."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("export", "runtime", "profiles"))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(bundle), "crossforge", *packages],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    provider, precision, scores = json.loads(done.stdout)
    return provider, precision, scores


def edge_requirements(name: str) -> dict[str, str]:
    """The packages of a file in ``examples/deploy/edge``, each with its version."""
    lines = (ROOT / "examples" / "deploy" / "edge" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))
