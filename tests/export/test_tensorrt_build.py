"""What a build tells its compiler. The compiler is a stand-in; test_tensorrt_compile.py has a real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from crossforge.export.tensorrt.build import BuildResult, build_engines
from crossforge.export.tensorrt.device import Device
from crossforge.export.tensorrt.options import BuildOptions
from crossforge.export.tensorrt.shapes import ShapeOptions
from crossforge.profiles import (
    CrossforgeWarning,
    EngineBackend,
    EngineError,
    InputError,
    IntegrityError,
    MachineError,
    Precision,
    profiles_to_toml,
)
from crossforge.runtime.progress import Progress, Stage
from support.builders import make_parity, make_profile, read_manifest, record_again, write_bundle
from support.fake_tensorrt import COMPUTE_CAPABILITY, DEVICE_NAME, FakeTensorrt
from support.mean_model import MeanModel

CLASSIC, RTX = EngineBackend.TENSORRT, EngineBackend.TENSORRT_RTX
H100 = Device(name=DEVICE_NAME, compute_capability=COMPUTE_CAPABILITY)
FP16 = f"onnx/{Precision.FP16.file_name}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.FP16))


def build(
    bundle: Path,
    trt: FakeTensorrt | None = None,
    shapes: ShapeOptions | None = None,
    *,
    backend: EngineBackend = CLASSIC,
    progress: Progress | None = None,
    **options: Any,
) -> BuildResult:
    trt = trt or make_compiler(backend)
    return build_engines(
        bundle,
        BuildOptions(backend=backend, **options),
        shapes,
        progress=progress,
        find_device=lambda: H100,
        load_backend=lambda _: trt,
    )


def make_compiler(backend: EngineBackend, **options: Any) -> FakeTensorrt:
    return FakeTensorrt(ahead_of_time=["SM86", "SM89"] if backend is RTX else None, **options)


# The same way for both compilers


def test_every_profile_is_set_for_every_input(bundle: Path, tmp_path: Path) -> None:
    trt = make_compiler(CLASSIC)
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(profiles_to_toml([make_profile((17, 64), batch=4), make_profile((1, 16), batch=9)]))

    build(bundle, trt, ShapeOptions(profiles=profiles))

    boxes = [((1, 1), (9, 16), (9, 16)), ((1, 17), (4, 64), (4, 64))]
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    assert [profile.shapes for profile in trt.configs[0].profiles] == [dict.fromkeys(inputs, box) for box in boxes]


@pytest.mark.parametrize("backend", EngineBackend)
def test_float32_arithmetic_keeps_all_its_bits(bundle: Path, backend: EngineBackend) -> None:
    trt = make_compiler(backend)
    build(bundle, trt, backend=backend, targets=("sm86" if backend is RTX else COMPUTE_CAPABILITY,))
    assert FakeTensorrt.BuilderFlag.TF32 not in trt.configs[0].flags


def test_level_and_workspace_reach_the_builder(bundle: Path) -> None:
    trt = make_compiler(CLASSIC)
    build(bundle, trt, builder_level=5, workspace_mb=256)
    assert trt.configs[0].builder_optimization_level == 5
    assert trt.configs[0].pools == {FakeTensorrt.MemoryPoolType.WORKSPACE: 256 * 2**20}


def test_the_sidecar_says_what_goes_in_and_out(bundle: Path) -> None:
    record = build(bundle).engines[0].record
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in record.inputs] == [
        (name, "int64", (-1, -1)) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in record.outputs] == [("logits", "float32", (-1, 1))]


def test_a_second_build_is_a_no_op(bundle: Path) -> None:
    trt = make_compiler(RTX)
    first = build(bundle, trt, backend=RTX, targets=("sm86", "sm89"))
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    second = build(bundle, trt, backend=RTX, targets=("sm89", "sm86"))

    assert [engine.built for engine in first.engines] == [True, True]
    assert [engine.built for engine in second.engines] == [False, False]
    assert [engine.record for engine in second.engines] == [engine.record for engine in reversed(first.engines)]
    assert len(trt.configs) == 2
    assert before == {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}


def test_force_builds_again(bundle: Path) -> None:
    first = build(bundle)
    again = build(bundle, force=True)
    assert again.engines[0].built
    assert again.engines[0].record.key == first.engines[0].record.key


@pytest.mark.parametrize("change", ["weights", "profiles", "precision", "version", "level", "damage"])
def test_any_change_builds_again(bundle: Path, change: str) -> None:
    first = build(bundle).engines[0].record
    options: dict[str, Any] = {}
    trt, shapes = make_compiler(CLASSIC), ShapeOptions()
    if change == "weights":
        MeanModel(seed=7).save(bundle / FP16)
        record_again(bundle, FP16)
    elif change == "profiles":
        shapes = ShapeOptions(max_profiles=1)
    elif change == "precision":
        options = {"precision": Precision.FP32}
    elif change == "version":
        trt = make_compiler(CLASSIC, version="10.14.0.1")
    elif change == "level":
        options = {"builder_level": 2}
    else:
        (bundle / first.spec.path).write_bytes(b"?")

    (second,) = build(bundle, trt, shapes, **options).engines

    assert second.built
    assert (second.record.key == first.key) == (change == "damage")


def test_engines_that_were_finished_stay_when_a_later_one_fails(bundle: Path) -> None:
    trt = make_compiler(RTX)

    def fail_the_second() -> None:
        trt.failure = "no kernel fits" if len(trt.configs) == 2 else None

    trt.on_build = fail_the_second
    with pytest.raises(EngineError, match=r"cannot compile the fp16 variant for sm89 \(no kernel fits\)"):
        build(bundle, trt, backend=RTX, targets=("sm86", "sm89"))

    assert [engine.built for engine in build(bundle, backend=RTX, targets=("sm86", "sm89")).engines] == [False, True]


def test_ctrl_c_cancels_the_build_and_leaves_nothing(bundle: Path) -> None:
    class Interrupted(Stage):
        def advance(self, done: int, total: int) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    class Interrupting:
        @contextmanager
        def stage(self, name: str) -> Iterator[Stage]:  # noqa: ARG002
            yield Interrupted()

    with pytest.raises(KeyboardInterrupt):
        build(bundle, progress=Interrupting())
    assert not (bundle / "tensorrt").exists()


# Where they part


def test_targets_reach_tensorrt_for_rtx(bundle: Path) -> None:
    trt = make_compiler(RTX)
    result = build(bundle, trt, backend=RTX, targets=("sm89", "sm86"), hardware_compatible=True)
    assert trt.configs[0].compute_capabilities == ["SM89", "SM86"]
    assert [engine.record.spec.target for engine in result.engines] == ["sm89+sm86"]


def test_classic_engines_name_the_gpu_that_they_were_timed_on(bundle: Path) -> None:
    spec = build(bundle).engines[0].record.spec
    assert (spec.target, spec.gpu) == (COMPUTE_CAPABILITY, DEVICE_NAME)


def test_compatible_engines_are_asked_for(bundle: Path) -> None:
    trt = make_compiler(CLASSIC)
    spec = build(bundle, trt, version_compatible=True, hardware_compatible=True).engines[0].record.spec
    assert FakeTensorrt.BuilderFlag.VERSION_COMPATIBLE in trt.configs[0].flags
    assert trt.configs[0].hardware_compatibility_level is FakeTensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert (spec.target, spec.gpu) == ("sm80+", None)


@pytest.mark.parametrize("before", [None, b"old;", b"damaged;"])
def test_timings_are_kept_between_builds(bundle: Path, tmp_path: Path, before: bytes | None) -> None:
    folder = tmp_path / "cache"
    file = folder / "tensorrt-10.13.0.35-NVIDIA-H100-PCIe.timing"
    if before is not None:
        folder.mkdir()
        file.write_bytes(before)

    build(bundle, timing_cache=folder)

    assert file.read_bytes() == (b"old;timed;" if before == b"old;" else b"timed;")
    assert list(folder.iterdir()) == [file]


def test_a_timing_cache_that_cannot_be_written_costs_nothing_else(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert build(bundle, timing_cache=tmp_path / "file").engines[0].built


def test_tensorrt_for_rtx_keeps_no_timings(bundle: Path, tmp_path: Path) -> None:
    build(bundle, backend=RTX, targets=("sm86",), timing_cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_compiler_that_does_not_start_is_the_machines_fault(bundle: Path) -> None:
    class Broken(FakeTensorrt):
        def Builder(self, log: Any) -> Any:  # noqa: N802
            log.log(self.ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(MachineError, match=r"cannot start here \(CUDA initialization failure"):
        build(bundle, Broken())


# Refusals


def test_the_cpus_int8_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"ONNX Runtime on the CPU.*allowed: fp16, int8_qdq, fp32.*--precision int8_qdq"):
        build(bundle, precision=Precision.INT8)


def test_a_missing_variant_says_how_to_make_it(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    with pytest.raises(
        InputError, match=r"no fp16 variant.*allowed: fp32.*quantize BUNDLE --precision fp16, or build another"
    ):
        build(bundle)


def test_a_variant_that_failed_its_gate_is_built_with_a_warning(tmp_path: Path) -> None:
    failed = {Precision.FP16: {"parity": make_parity(passed=False)}}
    bundle = write_bundle(tmp_path, precisions=(Precision.FP16,), variant_overrides=failed)
    with pytest.warns(CrossforgeWarning, match="failed its parity gate"):
        build(bundle)


def test_operators_of_onnx_runtime_are_refused(bundle: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("FusedMatMul", ["input_ids", "input_ids"], ["logits"], domain="com.microsoft")],
        "fused",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 1])],
    )
    onnx.save_model(helper.make_model(graph), bundle / FP16)
    record_again(bundle, FP16)
    with pytest.raises(InputError, match=r"only ONNX Runtime has; got com\.microsoft\.FusedMatMul"):
        build(bundle)


def rewrite(bundle: Path, change: Any) -> None:
    model = onnx.load(bundle / FP16)
    change(model.graph)
    onnx.save_model(model, bundle / FP16)
    record_again(bundle, FP16)


def test_a_fixed_shape_is_refused(bundle: Path) -> None:
    def fix(graph: Any) -> None:
        graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64

    rewrite(bundle, fix)
    with pytest.raises(InputError, match=r"input_ids has a fixed shape; got \[-1, 64\]"):
        build(bundle)


def test_another_number_of_labels_is_refused(bundle: Path) -> None:
    def widen(graph: Any) -> None:
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3

    rewrite(bundle, widen)
    with pytest.raises(InputError, match=r"not this bundle's reranker; got outputs \[\(-1, 3\)\]"):
        build(bundle)


def test_a_damaged_variant_is_not_compiled(bundle: Path) -> None:
    (bundle / FP16).write_bytes(b"?")
    with pytest.raises(IntegrityError, match="model_fp16"):
        build(bundle)


# Shapes


def test_profiles_reach_the_longest_pair_within_the_token_limit(bundle: Path) -> None:
    result = build(bundle, shapes=ShapeOptions(max_profiles=3, max_tokens=512))
    profiles = result.engines[0].record.spec.profiles
    assert profiles == result.shapes.profiles
    assert profiles[-1].sequence_length.max == read_manifest(bundle).truncation.max_length
    assert all(profile.batch_size.max == 512 // profile.sequence_length.max for profile in profiles)
    assert "built-in workload" in result.shapes.reasons[0]


def test_a_run_is_counted_with_the_bundles_tokenizer(bundle: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    run.write_text(
        '{"qid": "1", "query": "where", "passages": [{"id": "a", "text": "berlin"}, {"id": "b", "text": "city"}]}'
    )
    result = build(bundle, shapes=ShapeOptions(workload=run))
    assert [profile.sequence_length.max for profile in result.shapes.profiles] == [8, 64]
    assert result.shapes.profiles[0].batch_size.opt == 2
    assert str(run) in result.shapes.reasons[0]


def test_profiles_from_a_file_must_reach_the_longest_pair(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text(profiles_to_toml([make_profile((1, 32))]))
    with pytest.raises(InputError, match="no profile takes the longest pairs"):
        build(bundle, shapes=ShapeOptions(profiles=path))


def test_the_order_of_profiles_in_a_file_does_not_matter(bundle: Path, tmp_path: Path) -> None:
    keys = []
    profiles = [make_profile((1, 32)), make_profile((33, 64))]
    for i, order in enumerate((profiles, profiles[::-1])):
        path = tmp_path / f"{i}.toml"
        path.write_text(profiles_to_toml(order))
        keys.append(build(bundle, shapes=ShapeOptions(profiles=path)).engines[0].record.key)
    assert keys[0] == keys[1]


@pytest.mark.parametrize("other", [{"workload": Path("run")}, {"max_profiles": 2}, {"max_tokens": 2}])
def test_profiles_from_a_file_are_taken_as_they_are(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="either --profiles, or"):
        ShapeOptions(profiles=Path("profiles.toml"), **other)
