"""Reading graphs: ranks and types of tensors, for models of any size and opset."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from crossforge.export.passes.graph import FUSED, find_ranks, find_types


def graph(text: str, opset: int = 18) -> ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> g {text}')


def test_ranks_of_inputs_results_and_weights_are_found() -> None:
    model = graph(
        "(float[b, s, 4] x) => (float[b, 2] y) { h = MatMul(x, w)  m = ReduceMean<keepdims = 0>(h, axis)  y = Identity(m) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 2), np.float32), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1]), "axis"))
    ranks = find_ranks(model)
    assert {name: ranks[name] for name in ("x", "h", "m", "y")} == {"x": 3, "h": 3, "m": 2, "y": 2}


def test_a_reshape_is_followed_through_the_values_of_its_shape() -> None:
    model = graph("(float[b, 12] x) => (float[b, p, q] y) { h = Reshape(x, shape)  y = Identity(h) }")
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([-1, 3, 4]), "shape"))
    assert find_ranks(model)["h"] == 3


def test_large_weights_are_left_out_of_the_inference_but_their_rank_is_known() -> None:
    model = graph("(float[b, s, 64] x) => (float[b, s, 64] y) { h = MatMul(x, w)  y = Tanh(h) }")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((64, 64), np.float32), "w"))
    ranks = find_ranks(model)
    assert (ranks["w"], ranks["h"]) == (2, 3)


def test_a_tensor_of_unknown_rank_is_left_out() -> None:
    model = graph("(float[a] x, int64[n] shape) => (float[p, q] y) { h = Reshape(x, shape)  y = Identity(h) }")
    assert "h" not in find_ranks(model)


@pytest.mark.parametrize("opset", [13, 14, 18])
def test_a_reshape_to_sizes_of_another_tensor_is_followed(opset: int) -> None:
    model = graph(
        "(float[b, s, 12] x) => (float[b, p, q, r] y)"
        " { sizes = Shape(x)  rows = Slice(sizes, from0, to2)  shape = Concat<axis = 0>(rows, heads)  h = Reshape(x, shape)"
        "  y = Identity(h) }",
        opset,
    )
    for name, values in {"from0": [0], "to2": [2], "heads": [3, 4]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    assert find_ranks(model)["h"] == 4


@pytest.mark.parametrize("operator", sorted(FUSED))
def test_an_operator_of_onnx_runtime_has_the_shape_and_type_of_its_first_input(operator: str) -> None:
    model = graph(f"(float16[b, s, 16] x) => (float16[b, s, 16] y) {{ h = com.microsoft.{operator}(x, w)  y = Tanh(h) }}")
    assert find_ranks(model)["h"] == find_ranks(model)["y"] == 3
    assert find_types(model)["h"] == find_types(model)["y"] == TensorProto.FLOAT16


def test_what_follows_another_unknown_operator_is_unknown() -> None:
    model = graph("(float[b, s, 16] x) => (float[b, s, 16] y) { h = com.microsoft.Other(x)  y = Tanh(h) }")
    assert "h" not in find_ranks(model)


def test_the_model_is_left_as_it_was(tiny_graph: ModelProto) -> None:
    before = tiny_graph.SerializeToString()
    assert find_ranks(tiny_graph)["logits"] == 2
    assert find_types(tiny_graph)["logits"] == TensorProto.FLOAT
    assert tiny_graph.SerializeToString() == before
