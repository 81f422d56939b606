from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from crossforge.profiles import ExecutionProvider, InputError, Precision, ProviderUnavailableError
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.profiling.contenders import (
    deployed_candidate,
    list_candidates,
    open_contenders,
    refuse_none,
    size_bytes,
)
from crossforge.runtime.profiling.stages import StageRecorder
from support.builders import make_machine, make_manifest, make_variant, record_again, write_bundle

HELD = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_QDQ, Precision.FP16_CUDA, Precision.INT8_NATIVE)
ALL = make_manifest(variants={precision: make_variant(precision) for precision in HELD})
GPU = make_machine(
    gpus=("Test GPU",),
    gpu_targets=("sm89",),
    gpu_reason="",
    onnxruntime_packages=("onnxruntime-gpu 1.23.0",),
    onnxruntime_providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
)


def test_a_processor_measures_what_is_made_for_it_and_says_what_keeps_the_rest_out() -> None:
    candidates, skipped = list_candidates(ALL, make_machine())

    assert [str(candidate) for candidate in candidates] == ["fp32 on cpu", "int8 on cpu"]
    assert [item.what for item in skipped] == [
        "tensorrt", "cuda", "native", "fp16 on cpu", "int8_qdq on cpu", "fp16_cuda on cpu",
    ]  # fmt: skip
    assert skipped[1].why == "no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    assert "--precision int8_qdq" in skipped[4].why


def test_what_is_named_is_tried() -> None:
    candidates, skipped = list_candidates(
        ALL, make_machine(), providers=(ExecutionProvider.CPU,), precisions=(Precision.INT8_QDQ,)
    )
    assert ([str(candidate) for candidate in candidates], skipped) == (["int8_qdq on cpu"], [])


def test_a_gpu_is_measured_beside_the_processor() -> None:
    candidates, skipped = list_candidates(ALL, GPU)

    assert [str(candidate) for candidate in candidates] == [
        "fp32 on cuda", "fp16 on cuda", "int8_qdq on cuda", "fp16_cuda on cuda", "fp32 on cpu", "int8 on cpu",
    ]  # fmt: skip
    assert [item.what for item in skipped] == [
        "tensorrt", "int8 on cuda", "native", "fp16 on cpu", "int8_qdq on cpu", "fp16_cuda on cpu",
    ]  # fmt: skip


def test_an_engine_with_variants_of_its_own_measures_them_where_the_bundle_has_some() -> None:
    machine = make_machine(openvino_packages=("openvino 2026.4.1",))
    held = (Precision.FP32, Precision.INT8, Precision.INT8_OPENVINO)
    manifest = make_manifest(variants={precision: make_variant(precision) for precision in held})
    without = make_manifest(variants={precision: make_variant(precision) for precision in held[:2]})

    def names(*options: object) -> list[str]:
        return [str(candidate) for candidate in options]

    assert names(*list_candidates(without, machine)[0]) == ["fp32 on cpu", "int8 on cpu"]
    assert names(*list_candidates(manifest, machine)[0])[2:] == ["fp32 on openvino", "int8_openvino on openvino"]
    named, _ = list_candidates(manifest, machine, precisions=(Precision.INT8_OPENVINO,))
    assert names(*named) == ["int8_openvino on openvino"]
    nothing, skipped = list_candidates(
        manifest, machine, providers=(ExecutionProvider.CPU,), precisions=(Precision.INT8_OPENVINO,)
    )
    assert (nothing, skipped[0].why) == ([], "only the openvino engine runs int8_openvino")


def test_a_variant_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no fp16 variant"):
        list_candidates(make_manifest(), make_machine(), precisions=(Precision.FP16,))


def test_a_variant_that_does_not_load_is_skipped_with_the_reason(tmp_path: Path) -> None:
    write_bundle(tmp_path, precisions=(Precision.FP32, Precision.INT8))
    (tmp_path / "onnx/model_int8.onnx").write_bytes(b"nonsense")
    record_again(tmp_path, "onnx/model_int8.onnx")
    bundle = Bundle.open(tmp_path)
    candidates, _ = list_candidates(bundle.manifest, make_machine())
    with ExitStack() as stack:
        contenders, skipped = open_contenders(bundle, candidates, stack, lambda: 0)

        assert [str(contender) for contender in contenders] == ["fp32 on cpu"]
        assert isinstance(contenders[0].recorder, StageRecorder)
    assert skipped[0].what == "int8 on cpu"
    assert "cannot load" in skipped[0].why
    assert size_bytes(bundle, make_machine(), candidates[0]) == bundle.size_bytes(Precision.FP32)
    with pytest.raises(ProviderUnavailableError, match="int8 on cpu"):
        refuse_none(skipped)


def test_a_deployment_profile_is_a_candidate_of_its_own(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.INT8)))
    tuned = tmp_path / "tuned.toml"
    tuned.write_text('precision = "fp32"\nworkers = 1\nbudget_tokens = 77\n')
    candidate = deployed_candidate(bundle, make_machine(), tuned)

    assert (candidate.provider, candidate.precision) == (ExecutionProvider.CPU, Precision.FP32)
    assert str(candidate) == "fp32 on cpu by tuned.toml"
    with ExitStack() as stack:
        (contender,), skipped = open_contenders(bundle, [candidate], stack, lambda: 0)
        assert (contender.reranker.workers, contender.reranker.budget_tokens) == (1, 77)
        assert (contender.deployment_name, skipped) == ("tuned.toml", [])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('precision = "fp16"', InputError),
        ('precision = "fp31"', InputError),
        ('providers = ["cuda"]', ProviderUnavailableError),
    ],
)
def test_a_deployment_profile_that_does_not_suit_is_refused(tmp_path: Path, content: str, error: type[Exception]) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle"))
    (tmp_path / "tuned.toml").write_text(content)
    with pytest.raises(error):
        deployed_candidate(bundle, make_machine(), tmp_path / "tuned.toml")
