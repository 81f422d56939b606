"""Engines compiled for real, ahead of time, by TensorRT for RTX. No engine runs here: that takes a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from crossforge.export.onnx import save_onnx
from crossforge.export.passes.fp16 import convert_fp16
from crossforge.export.tensorrt.backend import ahead_of_time_targets, load_backend
from crossforge.export.tensorrt.build import BuildResult, build_engines
from crossforge.export.tensorrt.compiler import compile_engine
from crossforge.export.tensorrt.options import BuildOptions
from crossforge.export.tensorrt.shapes import ShapeOptions
from crossforge.profiles import EngineBackend, EngineError, Precision, profiles_to_toml
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.engines import read_engines
from crossforge.runtime.progress import Stage
from support.builders import make_engine_spec, make_profile, read_manifest, record_again, write_bundle
from support.mean_model import MeanModel
from support.tiny_models import MAX_LENGTH

trt = pytest.importorskip("tensorrt_rtx", reason='TensorRT for RTX is not installed: pip install "crossforge[rtx]"')
FP16 = f"onnx/{Precision.FP16.file_name}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", precisions=(Precision.FP32, Precision.FP16))


def build(bundle: Path, *targets: str, **options: Any) -> BuildResult:
    profiles = bundle.parent / "profiles.toml"
    profiles.write_text(profiles_to_toml([make_profile((1, 16)), make_profile((17, 32)), make_profile((33, 64))]))
    return build_engines(bundle, BuildOptions(targets=targets, **options), ShapeOptions(profiles=profiles))


def compile_file(path: Path, stage: Stage | None = None, **overrides: Any) -> Any:
    profiles = (make_profile((1, 32)), make_profile((33, 64)))
    spec = make_engine_spec(**{"compiler_version": trt.__version__, "profiles": profiles} | overrides)
    return compile_engine(trt, spec, path, labels=1, stage=stage or Stage())


def check(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.check(opened.manifest.files)


def test_the_compiler_names_its_targets() -> None:
    assert {"sm75", "sm86", "sm89"} <= set(ahead_of_time_targets(load_backend(EngineBackend.TENSORRT_RTX)))


def test_engines_for_two_gpus_are_made_without_either(bundle: Path) -> None:
    result = build(bundle, "sm86", "sm89")

    assert [engine.record.spec.target for engine in result.engines] == ["sm86", "sm89"]
    for engine in result.engines:
        record = engine.record
        assert engine.built
        assert len(record.spec.profiles) == 3
        assert record.spec.compiler_version == trt.__version__
        assert {tensor.name: tensor.shape for tensor in record.inputs} == dict.fromkeys(
            read_manifest(bundle).input_names, (-1, -1)
        )
        assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in record.outputs] == [("logits", "float32", (-1, 1))]
        assert (bundle / record.spec.path).read_bytes().startswith(b"vtrt")
    assert len(read_engines(Bundle.open(bundle))) == 2
    check(bundle)


def test_the_second_build_is_a_no_op(bundle: Path) -> None:
    build(bundle, "sm86")
    (again,) = build(bundle, "sm86").engines
    assert not again.built


def test_other_weights_make_another_engine(bundle: Path) -> None:
    (one,) = build(bundle, "sm86").engines
    MeanModel(seed=1).save(bundle / FP16)
    record_again(bundle, FP16)
    (other,) = build(bundle, "sm86").engines

    assert other.built
    assert other.record.key != one.record.key
    assert other.record.engine.sha256 != one.record.engine.sha256
    check(bundle)


def test_one_engine_takes_several_targets(bundle: Path) -> None:
    (engine,) = build(bundle, "sm86", "sm89", "sm120", hardware_compatible=True).engines
    assert engine.record.spec.targets == ("sm86", "sm89", "sm120")
    check(bundle)


def test_float16_of_the_export_compiles(tiny_graph: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model_fp16.onnx"
    save_onnx(convert_fp16(tiny_graph).model, path)
    assert compile_file(path).outputs[0].dtype == "float32"


def test_weights_beside_the_graph_are_found(tiny_graph: ModelProto, tmp_path: Path) -> None:
    whole, split = tmp_path / "whole.onnx", tmp_path / "split.onnx"
    save_onnx(tiny_graph, whole)
    assert len(save_onnx(tiny_graph, split, external_data_threshold_bytes=0)) == 2
    assert compile_file(split).plan.nbytes == compile_file(whole).plan.nbytes


def test_explicit_quantization_compiles(tmp_path: Path) -> None:
    assert compile_file(save_quantized(tmp_path / "int8.onnx"), precision=Precision.INT8_QDQ).plan.nbytes > 0


def test_each_profile_is_compiled_in(bundle: Path) -> None:
    """Nothing can be read back from an engine without a GPU, but a profile leaves its own kernels in it."""
    edges = [(1, 16), (17, 32), (33, 64)]
    sizes = [
        compile_file(bundle / FP16, profiles=tuple(make_profile(edge) for edge in edges[:n])).plan.nbytes for n in (1, 2, 3)
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def test_profiles_beyond_the_models_positions_are_explained(tiny_graph: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model_fp16.onnx"
    save_onnx(tiny_graph, path)
    with pytest.raises(EngineError, match=r"values for profile 0 violate shape constraints"):
        compile_file(path, profiles=(make_profile((1, MAX_LENGTH + 1)),))


def test_progress_never_goes_back(bundle: Path) -> None:
    class Watching(Stage):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def advance(self, done: int, total: int) -> None:
            self.seen.append((done, total))

    stage = Watching()
    compile_file(bundle / FP16, stage)
    assert [done for done, _ in stage.seen] == list(range(1, len(stage.seen) + 1))
    assert all(done <= total for done, total in stage.seen)


def test_an_exception_on_the_way_cancels_the_build(bundle: Path) -> None:
    class Interrupted(Stage):
        def advance(self, done: int, total: int) -> None:  # noqa: ARG002
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_file(bundle / FP16, Interrupted())


def test_a_graph_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "unknown.onnx"
    node = helper.make_node("NoSuchOperator", ["input_ids"], ["logits"], name="odd one")
    graph = helper.make_graph(
        [node],
        "unknown",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 1])],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    with pytest.raises(EngineError, match=r"cannot read unknown\.onnx \(NoSuchOperator odd one"):
        compile_file(path)


def test_a_target_that_lacks_the_arithmetic_is_explained(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot compile the fp16 variant for sm75 .*FP32 GEMM is not supported"):
        build(bundle, "sm75")
    assert not (bundle / "tensorrt").exists()


def save_quantized(path: Path) -> Path:
    """Embeddings, summed, times a matrix: both sides through symmetric QuantizeLinear and DequantizeLinear."""
    random = np.random.default_rng(0)
    constants = {
        "words": random.standard_normal((64, 32)).astype(np.float32),
        "weight": random.integers(-127, 128, (32, 1)).astype(np.int8),
        "scale": np.float32(0.05),
        "zero": np.int8(0),
        "axis": np.asarray([1]),
    }
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["vectors"]),
        helper.make_node("ReduceSum", ["vectors", "axis"], ["sum"], keepdims=0),
        helper.make_node("QuantizeLinear", ["sum", "scale", "zero"], ["sum_q"]),
        helper.make_node("DequantizeLinear", ["sum_q", "scale", "zero"], ["sum_d"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["weight_d"]),
        helper.make_node("MatMul", ["sum_d", "weight_d"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
