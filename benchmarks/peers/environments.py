"""A virtual environment for each group of peers, made once for each list of requirements."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from peers.process import ContenderError

REQUIREMENTS = Path(__file__).parent


def prepare_environment(name: str, cache: Path) -> str:
    """The environment's interpreter.

    Args:
        name: A file ``NAME.txt`` beside this one lists exact versions; a line ``# first: REQUIREMENT`` goes before the rest.
        cache: Where environments live.

    Raises:
        ContenderError: A package cannot be installed.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / f"{name}-{key}"
    python, mark = folder / "bin" / "python", folder / ".installed"
    if not mark.is_file():
        print(f"Installing {name} into {folder} (a few minutes, once)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for line in requirements.read_text(encoding="utf-8").splitlines():
            if line.startswith("# first: "):
                _run([*pip, line.removeprefix("# first: ")])
        _run([*pip, "-r", str(requirements)])
        mark.touch()
    return str(python)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ContenderError(f"not installed: {last[0]}")
