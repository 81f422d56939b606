from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2]


def written_at_home(home: Path, code: str, **variables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_", "HF_"))}
    paths = os.pathsep.join(str(SOURCES / name) for name in ("export", "runtime", "profiles"))
    subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HOME": str(home), "PYTHONPATH": paths} | variables, check=True
    )
    return [path.name for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "code",
    [
        "from crossforge.runtime.machine import inspect_machine; inspect_machine()",
        "from crossforge.runtime.sessions.ort import OnnxRuntimeSession; import onnxruntime",
        "import crossforge.export.calibration",
    ],
)
def test_onnx_runtime_does_not_report(tmp_path: Path, code: str) -> None:
    assert written_at_home(tmp_path, f"{code}; import sys; assert 'onnxruntime' in sys.modules") == []


def test_whoever_wants_reports_has_them(tmp_path: Path) -> None:
    code = "import os, crossforge.runtime; assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'"
    assert written_at_home(tmp_path, code, ORT_DISABLE_TELEMETRY="0") == []


def test_huggingface_hub_does_not_tell_what_is_installed(tmp_path: Path) -> None:
    code = "import crossforge.runtime, huggingface_hub.constants as hub; assert hub.HF_HUB_DISABLE_TELEMETRY"
    assert written_at_home(tmp_path, code) == []


def test_ray_does_not_report() -> None:
    code = "import crossforge.runtime, ray; from ray._common.usage import usage_lib; print(usage_lib.usage_stats_enabled())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join(str(SOURCES / name) for name in ("export", "runtime", "profiles"))
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
