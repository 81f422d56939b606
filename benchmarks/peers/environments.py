"""A virtual environment for each group of peers, and the demo model in the forms that they read; each made once."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from crossforge.export.demo import default_cache_dir
from crossforge.export.pairs import calibration_pairs
from crossforge.profiles.precision import EXACT_INT8_INSTRUCTION_SETS
from peers.contenders import FLASHRANK_FILE, FLASHRANK_NAME
from peers.process import ContenderError

REQUIREMENTS = Path(__file__).parent
CACHE = default_cache_dir() / "peers"


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


def prepare_models(checkpoint: Path, instruction_sets: Sequence[str]) -> tuple[Path, str]:
    """The folder of the peers' forms of the model, and why it cannot be had if it cannot."""
    known = next((name for name in EXACT_INT8_INSTRUCTION_SETS if name in instruction_sets), "avx2")
    instruction_set = "avx2" if known == "avx_vnni" else known
    sources = (REQUIREMENTS / "sentence-transformers.txt", REQUIREMENTS / "models.py")
    key = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = CACHE / f"{checkpoint.name}-{instruction_set}-{key}"
    if (folder / ".made").is_file():
        return folder, ""
    try:
        python = prepare_environment("sentence-transformers", CACHE)
    except ContenderError as error:
        return folder, str(error)
    print("Exporting the demo model for the peers", file=sys.stderr)
    calibration = folder / "calibration"
    calibration.mkdir(parents=True, exist_ok=True)
    texts = [f"{record.query} {passage.text}" for record in calibration_pairs() for passage in record.passages]
    rows = "".join(json.dumps({"sentence": text}) + "\n" for text in texts)
    (calibration / "train.jsonl").write_text(rows, encoding="utf-8")
    command = [python, sources[1], checkpoint, folder, calibration, instruction_set, FLASHRANK_NAME, FLASHRANK_FILE]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return folder, f"not exported: {last[0]}"
    (folder / ".made").touch()
    return folder, ""


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ContenderError(f"not installed: {last[0]}")
