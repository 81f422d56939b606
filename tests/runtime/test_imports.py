"""What importing and running crossforge brings into a process, seen from a fresh one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.builders import write_bundle

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = [REPOSITORY / name for name in ("export", "runtime", "profiles")]
HEAVY = ("torch", "transformers", "optimum", "onnx", "sentence_transformers", "openvino", "nncf")
BLOCKED = ("onnxruntime", "torch", "optimum", "onnx", "openvino")
FRAMEWORKS = {f"crossforge.runtime.adapters.{name}" for name in ("langchain", "llama_index", "haystack")}
"""Modules that cannot be without their framework; what they say then is tested in ``adapters/test_local.py``."""


def modules_of(root: Path) -> list[str]:
    files = (path.relative_to(root).with_suffix("") for path in sorted(root.rglob("*.py")))
    return [".".join(path.parts).removesuffix(".__init__") for path in files]


def run_python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter that sees the three source roots, and return what it prints."""
    paths = os.pathsep.join(str(root) for root in ROOTS)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scoring_a_bundle_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from crossforge.runtime import CrossEncoder, Reranker
with Reranker.load(sys.argv[1], check_golden=True) as reranker:
    assert len(reranker.rank("where is the city", ["berlin", "a passage"])) == 2
with CrossEncoder(sys.argv[1]) as model:
    assert len(model.rank("where is the city", ["berlin", "a passage"], activation_fn="identity")) == 2
print(*(name for name in {HEAVY} if name in sys.modules))
"""
    assert run_python(code, str(write_bundle(tmp_path))).split() == []


def test_tensors_where_torch_is_missing_answer_with_a_pip_line(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["torch"] = None
from crossforge.runtime import CrossEncoder, CrossforgeError
pair = ("where is the city", "berlin")
with CrossEncoder(sys.argv[1]) as model:
    for options in ({"convert_to_tensor": True}, {"convert_to_numpy": False}, {"activation_fn": abs}):
        try:
            model.predict([pair], **options)
        except CrossforgeError as error:
            print(error)
"""
    returning = "Returning tensors needs the package torch, which is not installed. Run: pip install torch"
    calling = "Calling an activation function needs the package torch, which is not installed. Run: pip install torch"
    assert run_python(code, str(write_bundle(tmp_path))).splitlines() == [returning, returning, calling]


def test_importing_the_runtime_does_not_import_its_engine() -> None:
    loaded = run_python("import crossforge.runtime, sys; print(*sys.modules)").split()

    assert "crossforge.runtime.reranker" in loaded
    assert "onnxruntime" not in loaded


@pytest.mark.parametrize("root", ["profiles", "runtime"])
def test_every_module_imports_where_no_engine_is_installed(root: str) -> None:
    modules = [name for name in modules_of(REPOSITORY / root) if name not in FRAMEWORKS]
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({BLOCKED}))
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name)
"""
    assert f"crossforge.{root}" in modules
    assert run_python(code, *modules).split() == modules


def test_profiles_import_the_standard_library_alone() -> None:
    code = """
import importlib, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*{name.partition(".")[0] for name in set(sys.modules) - before} - {"crossforge"} - sys.stdlib_module_names)
"""
    assert run_python(code, *modules_of(REPOSITORY / "profiles")).split() == []


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_the_namespace_has_no_init_that_would_hide_its_siblings(root: Path) -> None:
    assert (root / "crossforge" / root.name / "__init__.py").is_file()
    assert (root / "crossforge" / root.name / "py.typed").is_file()
    assert not (root / "crossforge" / "__init__.py").exists()
