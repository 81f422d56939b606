"""``crossforge build``, and what ``inspect`` and ``verify`` say of its engines."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from crossforge.export.cli import app
from crossforge.export.tensorrt import backend
from crossforge.profiles import Precision
from crossforge.runtime.machine import inspect_machine
from support.builders import make_engine_record, make_engine_spec, read_manifest, record_again, write_bundle
from support.mean_model import MeanModel

FP16 = f"onnx/{Precision.FP16.file_name}"
without_gpu = pytest.mark.skipif(bool(inspect_machine().gpus), reason="this machine has a GPU")


def crossforge(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.FP16))


@pytest.fixture
def compiler() -> None:
    pytest.importorskip("tensorrt_rtx", reason='TensorRT for RTX is not installed: pip install "crossforge[rtx]"')


@pytest.mark.usefixtures("compiler")
def test_build_prints_one_json_document(bundle: Path) -> None:
    result = crossforge("build", bundle, "--target", "sm86,sm89", "--max-profiles", 2, "--json")

    assert result.exit_code == 0, result.stderr
    engines = json.loads(result.stdout)["engines"]
    assert [engine["target"] for engine in engines] == ["sm86", "sm89"]
    for engine in engines:
        assert engine["precision"] == "fp16"
        assert engine["built"] is True
        assert engine["path"] == f"tensorrt/{engine['key']}.engine"
        assert (bundle / engine["path"]).stat().st_size == engine["size_bytes"]
        assert engine["profiles"][-1]["sequence_length"]["max"] == 64
        assert engine["profiles"][0]["batch_size"].keys() == {"min", "opt", "max"}
    assert "takes the room of" in result.stderr


@pytest.mark.usefixtures("compiler")
def test_the_second_build_says_that_nothing_was_to_be_done(bundle: Path) -> None:
    crossforge("build", bundle, "--target", "sm86")
    result = crossforge("build", bundle, "--target", "sm86")
    assert result.stdout.startswith("0 built, 1 there already.")
    again = crossforge("build", bundle, "--target", "sm86", "--force", "--json")
    assert json.loads(again.stdout)["engines"][0]["built"] is True


@pytest.mark.usefixtures("compiler")
def test_inspect_and_verify_know_the_engines(bundle: Path) -> None:
    key = json.loads(crossforge("build", bundle, "--target", "sm89", "--json").stdout)["engines"][0]["key"]

    shown = crossforge("inspect", bundle).stdout
    assert re.search(rf"{key[:12]} +sm89 +fp16 .*tensorrt-rtx \d.* current", shown)
    (engine,) = json.loads(crossforge("inspect", bundle, "--json").stdout)["engines"]
    assert engine["key"] == key
    assert engine["spec"]["targets"] == ["sm89"]
    assert crossforge("verify", bundle).exit_code == 0

    path = bundle / "tensorrt" / f"{key}.engine"
    path.write_bytes(path.read_bytes()[:-1])
    damaged = crossforge("verify", bundle)
    assert damaged.exit_code == 1
    assert key in damaged.stdout


def test_inspect_marks_engines_of_an_older_variant(bundle: Path) -> None:
    spec = make_engine_spec(model={FP16: read_manifest(bundle).files[FP16].sha256})
    (bundle / "tensorrt").mkdir()
    (bundle / spec.record_path).write_text(make_engine_record(spec).to_json())
    record_again(bundle, spec.record_path)
    assert " current" in crossforge("inspect", bundle).stdout

    MeanModel(seed=7).save(bundle / FP16)
    record_again(bundle, FP16)
    assert "of an older variant" in crossforge("inspect", bundle).stdout


@pytest.mark.usefixtures("compiler")
def test_prune_removes_what_was_built_from_an_older_variant(bundle: Path) -> None:
    (old,) = json.loads(crossforge("build", bundle, "--target", "sm86", "--json").stdout)["engines"]
    MeanModel(seed=7).save(bundle / FP16)
    record_again(bundle, FP16)

    document = json.loads(crossforge("build", bundle, "--target", "sm86", "--prune", "--json").stdout)

    (new,) = document["engines"]
    assert document["pruned"] == [{"key": old["key"], "path": old["path"]}]
    assert sorted(path.stem for path in (bundle / "tensorrt").iterdir()) == [new["key"]] * 2
    assert json.loads(crossforge("verify", bundle, "--json").stdout)["damaged_files"] == []
    again = crossforge("build", bundle, "--target", "sm86", "--prune").stdout
    assert again.startswith("0 built, 1 there already, 0 removed.")


def test_inspect_without_engines_shows_none(bundle: Path) -> None:
    assert "built by" not in crossforge("inspect", bundle).stdout
    assert json.loads(crossforge("inspect", bundle, "--json").stdout)["engines"] == []


@without_gpu
@pytest.mark.parametrize("arguments", [(), ("--target", "sm86,current"), ("--backend", "tensorrt", "--target", "sm86")])
def test_without_a_gpu_one_sentence_says_what_to_do(bundle: Path, arguments: tuple[str, ...]) -> None:
    result = crossforge("build", bundle, *arguments)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "has no usable GPU" in result.stderr
    assert "--target sm86,sm89" in result.stderr


@pytest.mark.usefixtures("compiler")
def test_without_an_fp16_variant_fp32_is_built_and_that_is_said(tmp_path: Path) -> None:
    result = crossforge("build", write_bundle(tmp_path / "bundle"), "--target", "sm86", "--json")
    (engine,) = json.loads(result.stdout)["engines"]
    assert engine["precision"] == "fp32"
    assert "no fp16 variant, so fp32 is built" in result.stderr
    assert "--precision fp16" in result.stderr


def test_a_missing_compiler_names_its_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None if "tensorrt" in name else object())
    result = crossforge("build", bundle, "--target", "sm86")
    assert result.exit_code == 3
    assert 'pip install "crossforge[rtx]"' in result.stderr


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "sm90"), "unknown target; got sm90; allowed: current, sm75, sm80, sm86, sm89"),
        (("--target", "sm86", "--precision", "int8"), "for ONNX Runtime on the CPU"),
        (("--target", "sm86", "--precision", "bf16_openvino"), "variant is for OpenVINO"),
        (("--target", "sm86", "--precision", "int8_qdq"), "crossforge quantize BUNDLE --precision int8_qdq"),
        (("--target", "sm86", "--precision", "bf16"), "unknown precision; got 'bf16'"),
        (("--target", "sm86", "--version-compatible"), "no version-compatible engines"),
        (("--target", "sm86", "--builder-level", "9"), "unknown builder level"),
        (("--target", "sm86", "--profiles", "a.toml", "--max-tokens", "9"), "either --profiles, or"),
        (("--target", "sm86", "--workload", "no-such-file"), "cannot read no-such-file"),
        (("--target", ","), "there is no target"),
    ],
)
def test_bad_input_ends_with_status_2_and_a_sentence(bundle: Path, arguments: tuple[str, ...], words: str) -> None:
    result = crossforge("build", bundle, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (bundle / "tensorrt").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_the_demo_models_engines_have_the_profiles_of_a_run(demo_bundle: Path, shared_data: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    run = shared_data / "xquad-en" / "bm25-top10.jsonl"
    arguments = ("build", bundle, "--target", "sm89", "--precision", "fp32", "--workload", run, "--json")

    first, second = (json.loads(crossforge(*arguments).stdout)["engines"] for _ in range(2))

    assert [engine["target"] for engine in first] == ["sm89"]
    assert all(len(engine["profiles"]) >= 3 for engine in first)
    assert [engine["built"] for engine in first + second] == [True, False]
    assert [engine["key"] for engine in first] == [engine["key"] for engine in second]
