from __future__ import annotations

import platform
from pathlib import Path

import pytest

from crossforge.profiles import ExecutionProvider, Precision
from crossforge.runtime.bundle import Bundle, record_file
from crossforge.runtime.profiling.settings import QualityLimits, candidate_settings
from crossforge.runtime.profiling.space import find_space
from crossforge.runtime.scoring import default_budget_tokens
from support.builders import make_engine_record, make_engine_spec, make_machine, read_manifest, record_again, write_bundle

RTX_BOX = make_machine(
    gpus=("NVIDIA L4",),
    gpu_reason="",
    gpu_targets=("sm89",),
    tensorrt_packages=("tensorrt-rtx 1.7.1",),
    onnxruntime_packages=("onnxruntime-gpu 1.23.0",),
    onnxruntime_providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
)


@pytest.mark.parametrize("provider", ExecutionProvider)
def test_a_provider_joins_the_search_by_what_it_runs_on(provider: ExecutionProvider) -> None:
    settings = candidate_settings({provider: (Precision.FP32,)}, cores=4)

    assert {setting.provider for setting in settings} == {provider}
    assert default_budget_tokens(provider) in {setting.budget_tokens for setting in settings}
    every_number = {1, 2, 4} if provider.is_cpu else {1, 2}
    # OpenVINO compiles a model anew for each number of workers, and holds it.
    assert {setting.workers for setting in settings} == ({4} if provider is ExecutionProvider.OPENVINO else every_number)


def test_a_tensorrt_engine_is_searched_in_the_variant_that_it_was_built_of(tmp_path: Path) -> None:
    write_bundle(tmp_path, precisions=(Precision.FP32, Precision.FP16))
    file = read_manifest(tmp_path).variants[Precision.FP16].path
    spec = make_engine_spec(
        model={file: read_manifest(tmp_path).files[file].sha256},
        targets=("sm89",),
        compiler_version="1.7.1",
        platform=f"{platform.system().lower()}-{platform.machine().lower()}",
    )
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / spec.path).write_bytes(b"engine")
    record = make_engine_record(spec, engine=record_file(tmp_path / spec.path))
    (tmp_path / spec.record_path).write_text(record.to_json(), encoding="utf-8")
    for name in (spec.path, spec.record_path):
        record_again(tmp_path, name)
    found = find_space(Bundle.open(tmp_path), RTX_BOX, QualityLimits())

    by_provider = {
        provider: {setting.precision for setting in found.settings if setting.provider is provider}
        for provider in ExecutionProvider
    }
    assert by_provider[ExecutionProvider.TENSORRT] == {Precision.FP16}
    assert by_provider[ExecutionProvider.CUDA] == {Precision.FP32, Precision.FP16}
    assert found.default.provider is ExecutionProvider.TENSORRT
    assert "fp32 on tensorrt" in [item.what for item in found.skipped]
