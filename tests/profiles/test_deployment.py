from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossforge.profiles import (
    PREFERENCE,
    CostModel,
    DeploymentProfile,
    ExecutionProvider,
    GpuOptions,
    InputError,
    Precision,
)

TERMS = "fixed_ms = 0.5\nper_token_ms = 0.01\nper_token_squared_ms = 0\n"
COST = CostModel(fixed_ms=0.5, per_token_ms=0.01, per_token_squared_ms=0)
CARRIED = DeploymentProfile(
    precision=Precision.INT8,
    providers=(ExecutionProvider.CPU,),
    budget_tokens=256,
    workers=2,
    passage_cache_bytes=1_000,
    cost=COST,
)


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
        (
            "budget = 1",
            "unknown key 'budget'; allowed: budget_tokens, cost, gpu, passage_cache_bytes, precision, providers, workers",
        ),
        ('precision = "fp64"', "'fp64' is not a valid Precision"),
        ("precision = [1]", "not a valid Precision"),
        ('providers = ["cpu", "npu"]', "'npu' is not a valid ExecutionProvider"),
        ("providers = 1", "providers is no list; got 1; allowed: such as"),
        ("providers = []", "providers is empty; allowed: tensorrt, cuda, native, cpu"),
        ("budget_tokens = 0", "budget_tokens is too small; got 0; allowed: 1 or more"),
        ('budget_tokens = "many"', "budget_tokens must be a whole number; got 'many'"),
        ("budget_tokens = 1.5", "budget_tokens must be a whole number; got 1.5"),
        ("workers = true", "workers must be a whole number; got True"),
        ("workers = -1", "workers is too small; got -1; allowed: 1 or more"),
        (
            "[cost]\nfixed_ms = 1",
            "[cost] is not a cost model; got fixed_ms; allowed: fixed_ms, per_token_ms, per_token_squared_ms",
        ),
        ("gpu = true", "gpu is not a table; got True; allowed: [gpu] with cuda_graphs, io_binding, memory_limit_mb"),
        ("[gpu]\ngraphs = true", "unknown key 'graphs' in [gpu]; allowed: cuda_graphs, io_binding, memory_limit_mb"),
        ("[gpu]\ncuda_graphs = 1", "cuda_graphs must be true or false; got 1"),
        ('[gpu]\nio_binding = "yes"', "io_binding must be true or false; got 'yes'"),
        ("[gpu]\nmemory_limit_mb = true", "memory_limit_mb must be a whole number; got True"),
        ("[gpu]\nmemory_limit_mb = 0", "memory_limit_mb is too small; got 0; allowed: 1 or more"),
        ("cost = 3", "[cost] is not a cost model; got 3"),
        (f"[cost]\n{TERMS}", "a cost model holds for one variant and one number of workers"),
        (f'precision = "int8"\nworkers = 1\n[cost]\n{TERMS}'.replace("0.5", "-1"), "fixed_ms of a cost model is not a time"),
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


def test_a_cost_model_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, f'precision = "int8"\nworkers = 2\n[cost]\n{TERMS}')

    assert DeploymentProfile.from_toml(path).cost == COST


@pytest.mark.parametrize(
    "profile",
    [
        DeploymentProfile(),
        DeploymentProfile(precision=Precision.FP32),
        DeploymentProfile(workers=3),
        CARRIED,
        replace(CARRIED, gpu=GpuOptions(cuda_graphs=True, memory_limit_mb=512)),
        DeploymentProfile(gpu=GpuOptions(io_binding=True)),
    ],
)
def test_what_is_written_is_read(tmp_path: Path, profile: DeploymentProfile) -> None:
    assert DeploymentProfile.from_toml(write(tmp_path, profile.to_toml())) == profile


def test_nothing_of_a_gpu_is_switched_on_unasked() -> None:
    options = DeploymentProfile().gpu
    assert options == GpuOptions(cuda_graphs=False, io_binding=False, memory_limit_mb=None)
    assert {options.describe(provider) for provider in ExecutionProvider} == {""}


def test_each_switch_of_a_gpu_is_told_for_the_provider_that_it_is_for() -> None:
    options = GpuOptions(cuda_graphs=True, io_binding=True, memory_limit_mb=2048)
    told = {provider: options.describe(provider) for provider in ExecutionProvider if options.describe(provider)}
    assert told == {
        ExecutionProvider.TENSORRT: "CUDA graphs",
        ExecutionProvider.CUDA: "IO binding, at most 2048 MiB",
    }


def test_a_cost_model_holds_for_what_it_was_measured_on() -> None:
    assert CARRIED.cost_on(ExecutionProvider.CPU, Precision.INT8) is COST
    assert CARRIED.cost_on(ExecutionProvider.CPU, Precision.FP32) is None
    assert CARRIED.cost_on(ExecutionProvider.CUDA, Precision.INT8) is None


@pytest.mark.parametrize("values", [{"providers": ()}, {"budget_tokens": 0}, {"workers": 0}, {"passage_cache_bytes": -1}])
def test_the_constructor_checks_its_values(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        DeploymentProfile(**values)


def test_every_precision_has_the_file_name_of_the_hub() -> None:
    assert {precision: precision.file_name for precision in Precision} == {
        Precision.FP32: "model.onnx",
        Precision.FP16: "model_fp16.onnx",
        Precision.FP16_CUDA: "model_fp16_cuda.onnx",
        Precision.INT8: "model_int8.onnx",
        Precision.INT8_QDQ: "model_int8_qdq.onnx",
        Precision.INT8_NATIVE: "model_int8.safetensors",
        Precision.BF16_OPENVINO: "model.onnx",
        Precision.INT8_OPENVINO: "model_int8.xml",
        Precision.INT8_DYNAMIC_OPENVINO: "model_int8_dynamic.xml",
    }


def test_every_provider_has_its_name_in_onnxruntime() -> None:
    assert [provider.onnxruntime_name for provider in PREFERENCE] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "",
        "CPUExecutionProvider",
    ]
    assert {*PREFERENCE, ExecutionProvider.OPENVINO} == set(ExecutionProvider)
