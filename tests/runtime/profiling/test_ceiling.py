from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from crossforge.profiles import ExecutionProvider, Precision
from crossforge.runtime.profiling import ceiling
from crossforge.runtime.profiling.ceiling import count_operations, gemm_share, measure_ceiling
from crossforge.runtime.profiling.product_model import product_model
from support.builders import make_manifest
from support.reports import make_row

CPU = ExecutionProvider.CPU


@pytest.mark.parametrize(
    ("operator", "left_type", "right_type", "result"),
    [("MatMul", np.float32, np.float32, np.float32), ("MatMulInteger", np.uint8, np.int8, np.int32)],
)
def test_the_hand_spelled_model_is_valid_and_multiplies(operator: str, left_type: Any, right_type: Any, result: Any) -> None:
    left = np.arange(200 * 3).reshape(200, 3).astype(left_type)
    right = (np.arange(3 * 130) % 90 - 45).reshape(3, 130).astype(right_type)
    model = product_model(operator, left, right, result)

    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    (product,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"left": left})
    np.testing.assert_array_equal(product, left.astype(np.int64) @ right.astype(np.int64))


def test_the_operations_of_a_pair_are_counted_from_the_graph(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT),  # [batch, sequence]
        helper.make_node("Unsqueeze", ["x", "axis"], ["column"]),  # [batch, sequence, 1]
        helper.make_node("MatMul", ["column", "weights"], ["hidden"]),  # [batch, sequence, 5]
        helper.make_node("ReduceSum", ["hidden", "sequence"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", "head"], ["logits"], transB=1),  # [batch, 2]
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    constants = [
        onnx.numpy_helper.from_array(np.ones((1, 5), np.float32), "weights"),
        onnx.numpy_helper.from_array(np.ones((2, 5), np.float32), "head"),
        onnx.numpy_helper.from_array(np.asarray([2]), "axis"),
        onnx.numpy_helper.from_array(np.asarray([1]), "sequence"),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=constants)
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "model.onnx"
    )
    manifest = make_manifest(input_names=("input_ids",))

    assert count_operations(tmp_path / "model.onnx", manifest, [3, 8]) == {
        3: 2 * 3 * 1 * 5 + 2 * 5 * 2,
        8: 2 * 8 * 1 * 5 + 2 * 5 * 2,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_a_ceiling_is_measured_for_what_runs_on_the_processor(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "_SECONDS", 0.01)
    measured = measure_ceiling(CPU, precision, workers=2)
    assert measured is not None
    assert measured > 0


@pytest.mark.parametrize(("provider", "precision"), [(CPU, Precision.FP16), (ExecutionProvider.CUDA, Precision.FP32)])
def test_elsewhere_there_is_no_ceiling(provider: ExecutionProvider, precision: Precision) -> None:
    assert measure_ceiling(provider, precision, workers=2) is None


def test_the_share_is_that_of_the_fastest_row() -> None:
    rows = [make_row((10.0,) * 6), make_row((5.0,) * 6), make_row((1.0,), sequence_length=7)]
    operations = {64: 1_000_000}  # the row of 7 tokens was not counted

    assert gemm_share(rows, operations, 4e9) == pytest.approx(10 * 1_000_000 / 0.005 / 4e9)
    assert gemm_share(rows, operations, None) is None
    assert gemm_share(rows, {}, 4e9) is None
    assert gemm_share(rows, operations, 1e9) is None  # nothing is faster than its ceiling
