"""Run exports that are killed, each at a later change to the file system, until one lives to its end.

Usage: python kill_exports.py ROOT NAME. Each exports to ROOT/deaths/NUMBER/NAME, where a copy of ROOT/old stands if there
is one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

from crossforge.export.bundle import staged_bundle

CHANGES = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"})
"""Audit events, each raised just before the call that it names."""


def export_and_die(target: Path, steps_to_live: int) -> None:
    """Write a bundle; end by SIGKILL before the change to the file system that is one too many."""
    remaining = steps_to_live

    def count(event: str, _: object) -> None:
        nonlocal remaining
        if event in CHANGES:
            if remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            remaining -= 1

    sys.addaudithook(count)
    with staged_bundle(target) as folder:
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_text("new")
        (folder / "crossforge.json").write_text("new")


def main(root: Path, name: str) -> None:
    for steps in itertools.count():
        target = root / "deaths" / f"{steps:03}" / name
        target.parent.mkdir(parents=True)
        if (root / "old").exists():
            shutil.copytree(root / "old", target)
        if (child := os.fork()) == 0:
            export_and_die(target, steps)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
