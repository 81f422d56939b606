"""Shapes that are known are not computed: what is left of the arithmetic on sizes, and what is left alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from crossforge.export.passes import keep_first_row, quantize_int8_dynamic, settle_shapes
from support.onnx_sessions import run


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def make_reshape(target: list[int | str], *, allowzero: int = 0) -> ModelProto:
    """A graph that reshapes ``x``, [a, b, 6], to sizes of its own (an axis's name) and to given ones."""
    nodes = [helper.make_node("Shape", ["x"], ["sizes"])]
    constants = {"axis": np.asarray([0], np.int64)}
    parts = []
    for position, size in enumerate(target):
        name = f"part_{position}"
        if isinstance(size, str):
            constants[f"at_{position}"] = np.asarray("abc".index(size), np.int64)
            nodes.append(helper.make_node("Gather", ["sizes", f"at_{position}"], [f"{name}_scalar"]))
            nodes.append(helper.make_node("Unsqueeze", [f"{name}_scalar", "axis"], [name]))
        else:
            constants[name] = np.asarray([size], np.int64)
        parts.append(name)
    nodes.append(helper.make_node("Concat", parts, ["target"], axis=0))
    nodes.append(helper.make_node("Reshape", ["x", "target"], ["y"], allowzero=allowzero))
    graph = helper.make_graph(
        nodes,
        "reshape",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(target))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (["a", "b", 2, 3], [0, 0, 2, 3]),
        (["a", "b", "c"], [0, 0, 6]),
        (["a", -1], [0, -1]),
        (["b", "a", 6], None),  # two sizes that no target can tell
        ([-1, "b", 6], [0, 0, 6]),
    ],
)
@pytest.mark.parametrize("allowzero", [0, 1])
def test_a_target_is_settled_where_it_can_be(target: list[int | str], expected: list[int] | None, allowzero: int) -> None:
    model = make_reshape(target, allowzero=allowzero)
    result = settle_shapes(model)

    x = np.arange(2 * 5 * 6, dtype=np.float32).reshape(2, 5, 6)
    np.testing.assert_array_equal(run(result.model, x=x), run(model, x=x))
    if expected is None:
        assert kinds(result.model)["Concat"] == 1
    else:
        assert kinds(result.model) == {"Reshape": 1}
        (constant,) = result.model.graph.initializer
        assert numpy_helper.to_array(constant).tolist() == expected


def test_a_tiny_reranker_loses_a_quarter_of_its_nodes(tiny_graph: ModelProto) -> None:
    cut = keep_first_row(tiny_graph).model
    before, after = kinds(cut), kinds(settle_shapes(cut).model)

    assert after.total() < before.total() * 3 / 4
    assert after["Concat"] <= 1  # the mask's
    assert {op: after[op] for op in ("MatMul", "Reshape", "Softmax")} == {
        op: before[op] for op in ("MatMul", "Reshape", "Softmax")
    }


def test_int8_computes_the_sizes_of_tokens_once(tiny_graph: ModelProto) -> None:
    settled = settle_shapes(keep_first_row(tiny_graph).model).model
    before, after = kinds(settled), kinds(quantize_int8_dynamic(settled).model)

    # Of all rows and of the last layer's: the activations' shape, and a zero point a token in each of two codes.
    assert after["Shape"] - before["Shape"] == 2 + 4
    assert after["ConstantOfShape"] - before["ConstantOfShape"] == 4


def test_a_quantized_graph_is_left_alone(tiny_graph: ModelProto) -> None:
    result = settle_shapes(quantize_int8_dynamic(tiny_graph).model)
    assert not result.changed
    assert result.notes[0].startswith("not applicable: the model is already quantized")
