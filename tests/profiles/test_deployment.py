from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossforge.profiles import PREFERENCE, DeploymentProfile, ExecutionProvider, InputError, Precision


def write(folder: Path, text: str) -> Path:
    path = folder / "profile.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_field_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, 'precision = "int8"\nproviders = ["cuda", "cpu"]\nbudget_tokens = 2048\nworkers = 3\n')

    assert DeploymentProfile.from_toml(path) == DeploymentProfile(
        precision=Precision.INT8,
        providers=(ExecutionProvider.CUDA, ExecutionProvider.CPU),
        budget_tokens=2048,
        workers=3,
    )


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    profile = DeploymentProfile.from_toml(write(tmp_path, ""))

    assert profile == DeploymentProfile()
    assert profile.providers == PREFERENCE


def test_the_path_may_be_a_string(tmp_path: Path) -> None:
    assert DeploymentProfile.from_toml(str(write(tmp_path, "workers = 5"))).workers == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget = 1", "unknown key 'budget'; allowed: budget_tokens, precision, providers, workers"),
        ('precision = "fp64"', "'fp64' is not a valid Precision"),
        ("precision = [1]", "not a valid Precision"),
        ('providers = ["cpu", "npu"]', "'npu' is not a valid ExecutionProvider"),
        ("providers = 1", "not iterable"),
        ("providers = []", "providers is empty; allowed: tensorrt, cuda, cpu"),
        ("budget_tokens = 0", "budget_tokens is too small; got 0; allowed: 1 or more"),
        ('budget_tokens = "many"', "budget_tokens must be a whole number; got 'many'"),
        ("budget_tokens = 1.5", "budget_tokens must be a whole number; got 1.5"),
        ("workers = true", "workers must be a whole number; got True"),
        ("workers = -1", "workers is too small; got -1; allowed: 1 or more"),
        ("workers = ", "cannot read the deployment profile"),
    ],
)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(InputError) as caught:
        DeploymentProfile.from_toml(path)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    latin1 = tmp_path / "latin1.toml"
    latin1.write_bytes(b'precision = "\xe9"')

    for path in (tmp_path / "absent.toml", tmp_path, latin1):
        with pytest.raises(InputError) as caught:
            DeploymentProfile.from_toml(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("values", [{"providers": ()}, {"budget_tokens": 0}, {"workers": 0}])
def test_the_constructor_checks_its_values(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        DeploymentProfile(**values)


def test_every_precision_has_the_file_name_of_the_hub() -> None:
    assert {precision: precision.file_name for precision in Precision} == {
        Precision.FP32: "model.onnx",
        Precision.FP16: "model_fp16.onnx",
        Precision.INT8: "model_int8.onnx",
        Precision.INT8_QDQ: "model_int8_qdq.onnx",
    }


def test_every_provider_has_its_name_in_onnxruntime() -> None:
    assert [provider.onnxruntime_name for provider in PREFERENCE] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert set(PREFERENCE) == set(ExecutionProvider)
