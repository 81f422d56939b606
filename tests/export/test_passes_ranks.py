"""Ranks of tensors, for models of any size."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from crossforge.export.passes.ranks import infer_ranks


def graph(text: str) -> ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g {text}')


def test_ranks_of_inputs_results_and_weights_are_found() -> None:
    model = graph(
        "(float[b, s, 4] x) => (float[b, 2] y) { h = MatMul(x, w)  m = ReduceMean<keepdims = 0>(h, axis)  y = Identity(m) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 2), np.float32), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1]), "axis"))
    ranks = infer_ranks(model)
    assert {name: ranks[name] for name in ("x", "h", "m", "y")} == {"x": 3, "h": 3, "m": 2, "y": 2}


def test_a_reshape_is_followed_through_the_values_of_its_shape() -> None:
    model = graph("(float[b, 12] x) => (float[b, p, q] y) { h = Reshape(x, shape)  y = Identity(h) }")
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([-1, 3, 4]), "shape"))
    assert infer_ranks(model)["h"] == 3


def test_large_weights_are_left_out_of_the_inference_but_their_rank_is_known() -> None:
    model = graph("(float[b, s, 64] x) => (float[b, s, 64] y) { h = MatMul(x, w)  y = Tanh(h) }")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((64, 64), np.float32), "w"))
    ranks = infer_ranks(model)
    assert (ranks["w"], ranks["h"]) == (2, 3)


def test_a_tensor_of_unknown_rank_is_left_out() -> None:
    model = graph("(float[a] x, int64[n] shape) => (float[p, q] y) { h = Reshape(x, shape)  y = Identity(h) }")
    assert "h" not in infer_ranks(model)


def test_the_model_is_left_as_it_was(tiny_graph: ModelProto) -> None:
    before = tiny_graph.SerializeToString()
    assert infer_ranks(tiny_graph)["logits"] == 2
    assert tiny_graph.SerializeToString() == before
