"""Store an engine in copies of a bundle, or prune them, killed each at a later change, until one lives to its end.

Usage: python kill_builds.py store|prune BUNDLE FOLDER. The copies are FOLDER/000, FOLDER/001 and so on.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

from crossforge.export.tensorrt.compiler import CompiledEngine
from crossforge.export.tensorrt.store import prune_engines, store_engine
from crossforge.profiles import Manifest, Precision
from support.builders import make_engine_spec

CHANGES = frozenset({"open", "os.mkdir", "os.rename", "os.remove"})
"""Audit events, each raised just before the call that it names."""


def act_and_die(what: str, bundle: Path, steps_to_live: int) -> None:
    """Store an engine, or prune; end by SIGKILL before the change to the file system that is one too many."""
    manifest = Manifest.from_json((bundle / "crossforge.json").read_text())
    path = manifest.variants[Precision.FP16].path
    spec = make_engine_spec(model={path: manifest.files[path].sha256})
    compiled = CompiledEngine(plan=memoryview(b"the new engine"), inputs=(), outputs=())
    remaining = steps_to_live

    def count(event: str, _: object) -> None:
        nonlocal remaining
        if event in CHANGES:
            if remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            remaining -= 1

    sys.addaudithook(count)
    if what == "prune":
        prune_engines(bundle)
    else:
        store_engine(bundle, spec, compiled, build_seconds=1.0)


def main(what: str, bundle: Path, folder: Path) -> None:
    for steps in itertools.count():
        copy = Path(shutil.copytree(bundle, folder / f"{steps:03}"))
        if (child := os.fork()) == 0:
            act_and_die(what, copy, steps)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
