"""The int8 pass: what it rewrites, what it leaves, and that a token's scale is its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.version_converter import convert_version

from crossforge.export.onnx import opset_of
from crossforge.export.passes import quantize_int8_dynamic
from crossforge.export.passes.rounding import quantize_columns
from crossforge.profiles import InputError
from support.onnx_sessions import run

Array = NDArray[np.generic]
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(16, 8)).astype(np.float32)
TOKENS = RNG.normal(size=(2, 5, 16)).astype(np.float32)


def graph(text: str, weights: Mapping[str, Array], opset: int = 18) -> ModelProto:
    """A model from ONNX's textual syntax, with initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def linear_layer(opset: int = 18) -> ModelProto:
    return graph("g (float[b, s, 16] x) => (float[b, s, 8] y) { y = MatMul(x, w) }", {"w": WEIGHT}, opset)


def batch(rows: int, tokens: int) -> dict[str, Array]:
    ids = np.random.default_rng(1).integers(5, 300, size=(rows, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def tables(model: ModelProto) -> set[str]:
    """Names of the float32 matrices that a model holds."""
    return {t.name for t in model.graph.initializer if len(t.dims) == 2 and t.data_type == TensorProto.FLOAT}


# What it rewrites, and what it leaves


def test_the_input_model_is_left_as_it_was(tiny_graph: ModelProto) -> None:
    before = tiny_graph.SerializeToString()
    result = quantize_int8_dynamic(tiny_graph)
    assert result.changed
    assert tiny_graph.SerializeToString() == before
    assert result.model.SerializeToString() != before


def test_inputs_and_outputs_stay_the_same(tiny_graph: ModelProto) -> None:
    quantized = quantize_int8_dynamic(tiny_graph).model
    assert list(quantized.graph.input) == list(tiny_graph.graph.input)
    assert list(quantized.graph.output) == list(tiny_graph.graph.output)


def test_every_linear_layer_of_the_encoder_becomes_an_integer_product(tiny_graph: ModelProto) -> None:
    result = quantize_int8_dynamic(tiny_graph)
    weights = {tensor.name for tensor in result.model.graph.initializer}
    assert kinds(result.model)["MatMulIntegerToFloat"] == 2 * 6  # query, key, value, output and two of the feed-forward
    left = [node for node in result.model.graph.node if node.op_type == "MatMul"]
    assert len(left) == 2 * 2  # attention multiplies activations with each other
    assert not any(set(node.input) & weights for node in left)


def test_an_activation_that_several_products_read_is_quantized_once(tiny_graph: ModelProto) -> None:
    result = quantize_int8_dynamic(tiny_graph)
    assert kinds(result.model)["QuantizeLinear"] == 2 * 4
    assert result.notes == (
        "12 matrix products and 1 lookup tables quantized to int8, 8 activation tensors with one scale a token",
    )


def test_the_head_stays_float(tiny_graph: ModelProto) -> None:
    quantized = quantize_int8_dynamic(tiny_graph).model
    heads = [node for node in tiny_graph.graph.node if node.op_type == "Gemm"]
    assert len(heads) == 2  # pooler and classifier
    assert [node for node in quantized.graph.node if node.op_type == "Gemm"] == heads
    assert {head.input[1] for head in heads} <= tables(quantized)


def test_a_product_over_one_row_a_pair_stays_float() -> None:
    model = graph(
        "g (float[b, s, 16] x) => (float[b, 4] y)"
        " { h = MatMul(x, w)  first = Gather<axis = 1>(h, zero)  y = MatMul(first, head) }",
        {"w": WEIGHT, "zero": np.asarray(0), "head": RNG.normal(size=(8, 4)).astype(np.float32)},
    )
    quantized = quantize_int8_dynamic(model).model
    assert kinds(quantized)["MatMulIntegerToFloat"] == 1
    assert kinds(quantized)["MatMul"] == 1
    assert tables(quantized) == {"head"}


def test_a_graph_without_linear_layers_is_not_changed() -> None:
    result = quantize_int8_dynamic(graph("g (float[b, s, 16] x) => (float[b, s, 16] y) { y = Tanh(x) }", {}))
    assert not result.changed
    assert kinds(result.model) == {"Tanh": 1}


def test_a_weight_that_a_branch_reads_is_kept() -> None:
    model = graph(
        "g (float[b, s, 16] x, bool flag) => (float[b, s, 8] y) { h = MatMul(x, w)"
        "  y = If (flag) <then_branch = t () => (float[b, s, 8] a) { a = Add(h, bias) },"
        "  else_branch = e () => (float[b, s, 8] c) { c = Sub(h, bias) }> }",
        {"w": WEIGHT, "bias": np.ones(8, np.float32)},
    )
    quantized = quantize_int8_dynamic(model).model
    above, below = (run(quantized, x=TOKENS, flag=np.asarray(flag)) for flag in (True, False))
    np.testing.assert_allclose(above - below, 2.0, atol=1e-5)


# Lookup tables


@pytest.mark.parametrize(("rows", "quantized"), [(999, False), (1000, True)])
def test_only_tables_of_a_thousand_rows_are_quantized(rows: int, quantized: bool) -> None:
    table = RNG.normal(size=(rows, 8)).astype(np.float32)
    model = graph("g (int64[b, s] ids) => (float[b, s, 8] y) { y = Gather<axis = 0>(table, ids) }", {"table": table})
    result = quantize_int8_dynamic(model)
    assert result.changed is quantized
    assert (tables(result.model) == {"table"}) is not quantized
    ids = np.asarray([[0, 5, rows - 1]])
    largest = np.abs(table[ids]).max(axis=-1, keepdims=True)
    assert (np.abs(run(result.model, ids=ids) - table[ids]) <= largest / 127 / 2 * 1.001).all()


def test_tables_are_left_alone_on_request() -> None:
    table = RNG.normal(size=(1000, 8)).astype(np.float32)
    model = graph("g (int64[b, s] ids) => (float[b, s, 8] y) { y = Gather(table, ids) }", {"table": table})
    assert not quantize_int8_dynamic(model, quantize_embeddings=False).changed


def test_columns_picked_from_a_matrix_are_not_taken_for_a_lookup() -> None:
    matrix = RNG.normal(size=(1000, 8)).astype(np.float32)
    model = graph("g (int64[n] ids) => (float[1000, n] y) { y = Gather<axis = 1>(matrix, ids) }", {"matrix": matrix})
    ids = np.asarray([7, 0, 3])
    np.testing.assert_array_equal(run(quantize_int8_dynamic(model).model, ids=ids), matrix[:, ids])


@pytest.mark.usefixtures("exact_int8")
def test_a_matrix_that_is_both_a_table_and_a_weight_is_quantized_for_each() -> None:
    shared = (RNG.normal(size=(1000, 8)) * np.logspace(-2, 2, 8)).astype(np.float32)
    model = graph(
        "g (int64[b, s] ids, float[b, s, 1000] x) => (float[b, s, 8] y)"
        " { e = Gather(shared, ids)  p = MatMul(x, shared)  y = Add(e, p) }",
        {"shared": shared},
    )
    ids, one_hot = np.asarray([[1, 2]]), np.eye(1000, dtype=np.float32)[None, [3, 4]]
    expected = shared[[1, 2]] + shared[[3, 4]]
    answer = run(quantize_int8_dynamic(model).model, ids=ids, x=one_hot)[0]
    np.testing.assert_allclose(answer, expected, atol=np.abs(shared).max() / 100)


# Numbers


@pytest.mark.usefixtures("exact_int8")
def test_the_error_of_a_product_is_that_of_rounding() -> None:
    answer = run(quantize_int8_dynamic(linear_layer()).model, x=TOKENS)
    token_step = np.abs(TOKENS).max(axis=-1, keepdims=True) / 127 / 2
    column_step = np.abs(WEIGHT).max(axis=0) / 127 / 2
    bound = token_step * np.abs(WEIGHT).sum(axis=0) + column_step * np.abs(TOKENS).sum(axis=-1, keepdims=True)
    bound += 16 * token_step * column_step
    error = np.abs(answer - TOKENS @ WEIGHT)
    assert (error <= bound * 1.001).all()
    assert error.max() > 0


def test_an_outlier_token_costs_the_others_nothing() -> None:
    quantized = quantize_int8_dynamic(linear_layer()).model
    loud = TOKENS.copy()
    loud[0, 2] *= 1000
    others = np.ones((2, 5), dtype=bool)
    others[0, 2] = False
    np.testing.assert_array_equal(run(quantized, x=loud)[others], run(quantized, x=TOKENS)[others])


def test_a_token_of_zeros_gives_zeros() -> None:
    answer = run(quantize_int8_dynamic(linear_layer()).model, x=np.zeros_like(TOKENS))
    np.testing.assert_array_equal(answer, np.zeros((2, 5, 8), np.float32))


@pytest.mark.parametrize("opset", [13, 17])
def test_an_older_opset_gives_the_same_numbers(opset: int) -> None:
    old, new = quantize_int8_dynamic(linear_layer(opset)).model, quantize_int8_dynamic(linear_layer()).model
    assert opset_of(old) == opset
    np.testing.assert_array_equal(run(old, x=TOKENS), run(new, x=TOKENS))


def test_a_whole_model_at_opset_17_gives_the_same_logits(tiny_graph: ModelProto) -> None:
    old = quantize_int8_dynamic(convert_version(tiny_graph, 17)).model
    assert opset_of(old) == 17
    inputs = batch(rows=3, tokens=17)
    np.testing.assert_allclose(run(old, **inputs), run(quantize_int8_dynamic(tiny_graph).model, **inputs), atol=1e-5)


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    )
)
def test_columns_come_back_within_half_a_step(weight: NDArray[np.float32]) -> None:
    integers, scale = quantize_columns(weight)
    assert integers.dtype == np.int8
    assert scale.shape == (weight.shape[1],)
    assert np.abs(integers.astype(int)).max() <= 127
    error = np.abs(integers.astype(np.float64) * scale - weight)
    assert (error <= scale.astype(np.float64) / 2 * (1 + 1e-5)).all()


# What it refuses


def test_its_own_result_is_refused(tiny_graph: ModelProto) -> None:
    with pytest.raises(InputError, match="already quantized; got MatMulIntegerToFloat"):
        quantize_int8_dynamic(quantize_int8_dynamic(tiny_graph).model)


def test_a_graph_with_dequantized_weights_is_refused() -> None:
    model = graph(
        "g (float[b, s, 16] x) => (float[b, s, 8] y) { w = DequantizeLinear(wq, scale)  y = MatMul(x, w) }",
        {"wq": np.ones((16, 8), np.int8), "scale": np.asarray(0.1, np.float32)},
    )
    with pytest.raises(InputError, match="already quantized; got DequantizeLinear"):
        quantize_int8_dynamic(model)


def test_an_opset_without_scales_per_axis_is_refused() -> None:
    with pytest.raises(InputError, match=r"opset cannot quantize.*got 12; allowed: 13 or later"):
        quantize_int8_dynamic(linear_layer(opset=12))
