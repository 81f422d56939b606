"""Which engine, provider and variant run a bundle, from facts alone."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from crossforge.profiles import (
    EngineBackend,
    EngineRecord,
    ExecutionProvider,
    FileRecord,
    GpuOptions,
    InputError,
    Manifest,
    Precision,
    ProviderUnavailableError,
)
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.decision import decide
from crossforge.runtime.engines import select_engine
from crossforge.runtime.machine import Machine
from support.builders import make_engine_record, make_engine_spec, make_machine, make_manifest, make_parity, make_variant

HERE = f"{platform.system().lower()}-{platform.machine().lower()}"
FP16_FILE = "onnx/model_fp16.onnx"
ENGINE: dict[str, Any] = {
    "model": {FP16_FILE: "3" * 64},
    "platform": HERE,
    "targets": ("sm89",),
    "compiler_version": "1.7.1",
}


def gpu_box(**overrides: Any) -> Machine:
    facts: dict[str, Any] = {
        "gpus": ("NVIDIA L4",),
        "gpu_reason": "",
        "gpu_targets": ("sm89",),
        "tensorrt_packages": ("tensorrt-rtx 1.7.1",),
        "onnxruntime_packages": ("onnxruntime-gpu 1.23.0",),
        "onnxruntime_providers": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    }
    return make_machine(**facts | overrides)


def manifest(**variant: Any) -> Manifest:
    fp16 = make_variant(Precision.FP16, **variant)
    return make_manifest(variants={Precision.FP32: make_variant(), Precision.FP16: fp16})


def engine(**overrides: Any) -> EngineRecord:
    return make_engine_record(make_engine_spec(**ENGINE | overrides))


def test_an_engine_of_this_model_for_this_gpu_runs() -> None:
    record = engine()
    assert select_engine([record], manifest(), gpu_box()).record == record


@pytest.mark.parametrize(
    ("changed", "machine", "words"),
    [
        ({"model": {FP16_FILE: "9" * 64}}, {}, "was built from another model than the bundle's fp16 variant"),
        ({"platform": "plan9-mips"}, {}, f"is for plan9-mips, this is {HERE}"),
        ({"targets": ("sm86", "sm120")}, {}, "is for sm86+sm120, this GPU is sm89"),
        ({"gpu": "NVIDIA L40S"}, {}, "was timed on NVIDIA L40S, this is NVIDIA L4"),
        ({"compiler_version": "1.6.0"}, {}, "was compiled by tensorrt-rtx 1.6.0, installed is 1.7.1"),
        ({"backend": EngineBackend.TENSORRT}, {}, 'tensorrt is not installed: pip install "crossforge[tensorrt]"'),
        ({"version_compatible": True}, {}, "embeds code for the host"),
        ({}, {"tensorrt_packages": ()}, 'tensorrt-rtx is not installed: pip install "crossforge[rtx]"'),
    ],
)
def test_an_engine_that_cannot_run_here_is_named_with_its_reason(
    changed: dict[str, Any], machine: dict[str, Any], words: str
) -> None:
    choice = select_engine([engine(**changed)], manifest(), gpu_box(**machine))
    assert choice.record is None
    assert words in choice.reason


def test_an_engine_of_a_variant_that_failed_its_gate_does_not_run() -> None:
    choice = select_engine([engine()], manifest(parity=make_parity(passed=False)), gpu_box())
    assert "failed its parity gate" in choice.reason


def test_host_code_is_loaded_on_request_and_then_by_a_later_version_too() -> None:
    record = engine(version_compatible=True, compiler_version="1.6.0")
    assert select_engine([record], manifest(), gpu_box(), host_code=True).record == record


def test_the_first_engine_that_runs_is_taken_fp16_before_fp32() -> None:
    fp32 = engine(precision=Precision.FP32, model={"onnx/model.onnx": "3" * 64})
    other, fp16 = engine(targets=("sm86",)), engine()
    assert select_engine([fp32, other, fp16], manifest(), gpu_box()).record == fp16
    assert select_engine([fp32, other, fp16], manifest(), gpu_box(), precision="fp32").record == fp32
    assert select_engine([fp32, other], manifest(), gpu_box()).record == fp32


def test_a_bundle_without_engines_says_how_to_build_one() -> None:
    assert select_engine([], manifest(), gpu_box()).reason == "the bundle has no engine: crossforge build BUNDLE"
    reason = select_engine([engine()], manifest(), gpu_box(), precision="int8_qdq").reason
    assert reason == "the bundle has no int8_qdq engine: crossforge build BUNDLE"


# The whole decision


def bundle_with(tmp_path: Path, *records: EngineRecord) -> Bundle:
    files = dict(manifest().files)
    for record in records:
        path = tmp_path / record.spec.record_path
        path.parent.mkdir(exist_ok=True)
        path.write_text(record.to_json())
        for name in (record.spec.path, record.spec.record_path):
            files[name] = FileRecord(sha256="3" * 64, size_bytes=1)
    variants = manifest().variants
    return Bundle(tmp_path, make_manifest(variants=variants, files=files))


def test_auto_takes_the_engine_then_cuda_then_the_cpu(tmp_path: Path) -> None:
    with_engine, without = bundle_with(tmp_path, engine()), bundle_with(tmp_path)
    decision = decide(with_engine, gpu_box())
    assert (decision.plan.chosen, decision.choice.precision) == (ExecutionProvider.TENSORRT, Precision.FP16)
    assert decision.explain() == "fp16 on tensorrt"
    decision = decide(without, gpu_box())
    assert (decision.plan.chosen, decision.engine) == (ExecutionProvider.CUDA, None)
    assert decision.explain() == "fp16 on cuda (not tensorrt: the bundle has no engine: crossforge build BUNDLE)"
    assert decide(with_engine, make_machine()).plan.chosen is ExecutionProvider.CPU


def test_what_is_switched_on_is_told_where_it_holds(tmp_path: Path) -> None:
    options = GpuOptions(cuda_graphs=True, io_binding=True, memory_limit_mb=512)
    with_engine = bundle_with(tmp_path, engine())
    assert decide(with_engine, gpu_box(), gpu=options).explain() == "fp16 on tensorrt, with CUDA graphs"
    on_cuda = decide(with_engine, gpu_box(), provider="cuda", gpu=options).explain()
    assert on_cuda == "fp16 on cuda, with IO binding, at most 512 MiB"
    assert "with" not in decide(with_engine, make_machine(), gpu=options).explain().replace("without", "")


def test_without_a_gpu_no_sidecar_is_read(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, engine())
    for path in (tmp_path / "tensorrt").iterdir():
        path.write_text("not a record")
    decision = decide(bundle, make_machine())
    assert decision.explain().startswith("fp32 (not int8: not in the bundle) on cpu (not tensorrt or cuda: no NVIDIA driver")


def test_an_engine_for_another_gpu_is_named_and_not_loaded(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, engine())
    with pytest.raises(ProviderUnavailableError, match="is for sm89, this GPU is sm120"):
        decide(bundle, gpu_box(gpu_targets=("sm120",)), provider="tensorrt", strict=True)


def test_a_named_variant_without_an_engine_runs_elsewhere(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, engine())
    decision = decide(bundle, gpu_box(), precision="fp32")
    assert (decision.plan.chosen, decision.choice.precision) == (ExecutionProvider.CUDA, Precision.FP32)
    with pytest.raises(InputError, match="no int8_qdq variant"):
        decide(bundle, gpu_box(), precision="int8_qdq")


def native_manifest(**variant: Any) -> Manifest:
    native = make_variant(Precision.INT8_NATIVE, instruction_sets=(), **variant)
    return make_manifest(variants={Precision.INT8: make_variant(Precision.INT8), Precision.INT8_NATIVE: native})


def test_the_native_variant_runs_where_the_native_engine_is() -> None:
    decision = decide(Bundle(Path("bundle"), native_manifest()), make_machine(native_engine=True))
    assert (decision.plan.chosen, decision.choice.precision) == (ExecutionProvider.NATIVE, Precision.INT8_NATIVE)


def test_without_the_native_engine_int8_runs_and_the_reason_is_told() -> None:
    decision = decide(Bundle(Path("bundle"), native_manifest()), make_machine())
    assert (decision.plan.chosen, decision.choice.precision) == (ExecutionProvider.CPU, Precision.INT8)
    assert "not native: it is not compiled here: crossforge native" in decision.explain()


@pytest.mark.parametrize(
    ("variants", "precision", "reason"),
    [
        (make_manifest(), "auto", "the bundle has no int8_native variant"),
        (native_manifest(), "int8", "it runs int8_native, not int8"),
        (native_manifest(parity=make_parity(passed=False)), "auto", "it failed its parity gate when the bundle was made"),
    ],
    ids=["none in the bundle", "another is wanted", "it failed its gate"],
)
def test_the_native_engine_is_passed_over_for_its_variant(variants: Manifest, precision: str, reason: str) -> None:
    decision = decide(Bundle(Path("bundle"), variants), make_machine(native_engine=True), precision=precision)
    assert decision.plan.chosen is ExecutionProvider.CPU
    assert f"native: {reason}" in decision.plan.explain()


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_no_other_provider_takes_the_native_variant(provider: str) -> None:
    bundle = Bundle(Path("bundle"), native_manifest())
    with pytest.raises(ProviderUnavailableError, match="only the native engine runs int8_native"):
        decide(bundle, make_machine(), provider=provider, precision="int8_native")
