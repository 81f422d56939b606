"""What the float16 pass leaves in float32, and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from crossforge.export.passes import quantize_int8_dynamic
from crossforge.export.passes.fp16 import convert_fp16
from crossforge.export.passes.fp16_overflow import find_overflows
from crossforge.export.passes.products import find_encoder_products
from crossforge.profiles import InputError
from support.fp16 import (
    FLOAT,
    HALF,
    IDS,
    LOOKUP,
    MOST_DIFFERENCE,
    TABLE,
    WEIGHT,
    casts,
    error,
    kinds,
    nodes,
    parse,
    random_batch,
    run,
    run_strongly_typed,
)


def test_the_notes_count_what_was_done(tiny_graph: ModelProto) -> None:
    result = convert_fp16(tiny_graph)
    assert result.changed
    assert result.notes[:2] == (
        "53 nodes in float16, 27 kept in float32, 21 casts between them",
        "1 masking constants raised to -65504",
    )
    assert len(casts(result.model)) == 21


def test_gelu_is_computed_in_float32_between_two_casts(tiny_graph: ModelProto) -> None:
    model = convert_fp16(tiny_graph).model
    types = kinds(model)
    readers = {name: node for node in model.graph.node for name in node.input}
    gates = nodes(model, "Erf")
    assert len(gates) == 2
    for gate in gates:
        plus_one = readers[gate.output[0]]
        product = readers[plus_one.output[0]]
        output = readers[product.output[0]]
        assert {types[step.output[0]] for step in (gate, plus_one, product, output)} == {FLOAT}
        assert readers[output.output[0]].op_type == "Cast"
    (weights,) = {types[node.input[0]] for node in nodes(model, "MatMul")}
    assert weights == HALF


def test_the_residual_stream_and_masked_scores_are_summed_in_float32(tiny_graph: ModelProto) -> None:
    model = convert_fp16(tiny_graph).model
    types = kinds(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    readers = nodes(model, "LayerNormalization", "Softmax")[1:]  # the first one reads the sum of the embeddings
    sums = [producers[node.input[0]] for node in readers]
    assert {node.op_type for node in sums} == {"Add"}
    assert {types[name] for node in sums for name in node.input} == {FLOAT}


def test_the_sum_of_the_embeddings_is_in_float16(tiny_graph: ModelProto) -> None:
    model = convert_fp16(tiny_graph).model
    assert kinds(model)["/bert/embeddings/Add_1_output_0"] == HALF


def test_positions_stay_in_float32() -> None:
    model = parse(
        LOOKUP + "n = Shape<start = 1, end = 2>(ids)  count = Squeeze(n)  steps = Range(zero, count, one)"
        " p = Cast<to = 1>(steps)  angles = Mul(p, frequency)  c = Cos(angles)  column = Unsqueeze(c, last)"
        " turned = Mul(x, column)  h = MatMul(turned, w)  y = Identity(h) }",
        table=TABLE,
        w=WEIGHT,
        zero=np.asarray(0),
        one=np.asarray(1),
        last=np.asarray([1]),
        frequency=np.asarray(0.3, np.float32),
    )
    half = convert_fp16(model).model
    types = kinds(half)
    assert {types[name] for name in ("p", "angles", "c", "column")} == {FLOAT}
    assert types["turned"] == HALF
    long = {"ids": np.zeros((1, 4001), np.int64)}
    assert error(run(half, long), run(model, long)) <= MOST_DIFFERENCE


def test_a_spelled_out_layer_norm_stays_in_float32() -> None:
    model = parse(
        LOOKUP + "h = MatMul(x, w)  m = ReduceMean(h, last)  d = Sub(h, m)  d2 = Pow(d, two)  v = ReduceMean(d2, last)"
        " ve = Add(v, eps)  s = Sqrt(ve)  n = Div(d, s)  scaled = Mul(n, gamma)"
        " out = MatMul(scaled, small)  y = Identity(out) }",
        table=TABLE,
        small=WEIGHT,
        w=WEIGHT * 300,  # squares of what comes out are beyond float16
        last=np.asarray([-1]),
        two=np.asarray(2, np.float32),
        eps=np.asarray(1e-12, np.float32),
        gamma=np.ones(16, np.float32),
    )
    half = convert_fp16(model).model
    types = kinds(half)
    assert {types[name] for name in ("m", "d", "d2", "v", "ve", "s", "n")} == {FLOAT}
    assert {types[name] for name in ("x", "h", "scaled", "out")} == {HALF}
    assert error(run_strongly_typed(half, {"ids": IDS}), run(model, {"ids": IDS})) <= MOST_DIFFERENCE


def test_a_spelled_out_rms_norm_stays_in_float32() -> None:
    model = parse(
        LOOKUP + "h = MatMul(x, w)  h2 = Mul(h, h)  v = ReduceMean(h2, last)  ve = Add(v, eps)  s = Sqrt(ve)"
        " r = Reciprocal(s)  n = Mul(h, r)  out = MatMul(n, w)  y = Identity(out) }",
        table=TABLE,
        w=WEIGHT,
        last=np.asarray([-1]),
        eps=np.asarray(1e-6, np.float32),
    )
    types = kinds(convert_fp16(model).model)
    assert {types[name] for name in ("h2", "v", "ve", "s", "r", "n")} == {FLOAT}


def test_what_lies_between_float32_nodes_is_not_cast_to_float16_and_back() -> None:
    model = parse(
        LOOKUP + "h = MatMul(x, w)  a = Softmax(h)  t = Tanh(a)  b = Softmax(t)  out = MatMul(b, w)  y = Identity(out) }",
        table=TABLE,
        w=WEIGHT,
    )
    half = convert_fp16(model).model
    assert kinds(half)["t"] == FLOAT
    assert [node.input[0] for node in casts(half)] == ["h", "b", "out"]


def test_named_nodes_stay_in_float32(tiny_graph: ModelProto) -> None:
    name = find_encoder_products(tiny_graph)[4].node.name
    result = convert_fp16(tiny_graph, keep_fp32_nodes=[name])
    (kept,) = [node for node in result.model.graph.node if node.name == name]
    assert {kinds(result.model)[tensor] for tensor in (*kept.input, *kept.output)} == {FLOAT}
    batch = random_batch(tiny_graph, 4, 9)
    assert error(run(result.model, batch), run(tiny_graph, batch)) <= MOST_DIFFERENCE


def test_a_name_that_no_node_has_is_refused(tiny_graph: ModelProto) -> None:
    with pytest.raises(InputError, match=r"no node to keep in float32.*absent"):
        convert_fp16(tiny_graph, keep_fp32_nodes=["absent"])


def test_nodes_without_names_can_be_kept_by_the_name_they_get() -> None:
    text = LOOKUP + "h = MatMul(x, large)  t = Tanh(h)  out = MatMul(t, w)  y = Identity(out) }"
    model = parse(text, table=TABLE, large=WEIGHT * 1e4, w=WEIGHT)
    names = find_overflows(model, [{"ids": IDS}])
    assert names == ("MatMul_h", "Tanh_t")
    types = kinds(convert_fp16(model, keep_fp32_nodes=names).model)
    assert (types["h"], types["t"], types["out"]) == (FLOAT, FLOAT, HALF)


def test_nodes_of_one_name_get_names_of_their_own() -> None:
    model = parse(LOOKUP + "h = MatMul(x, w)  out = MatMul(h, w)  y = Identity(out) }", table=TABLE, w=WEIGHT)
    for node in model.graph.node:
        node.name = "same"
    converted = convert_fp16(model).model.graph.node
    assert len({node.name for node in converted}) == len(converted)
    assert {node.name for node in model.graph.node} == {"same"}


def test_a_weight_that_float16_cannot_hold_stays() -> None:
    large = WEIGHT.copy()
    large[3, 3] = -1e5
    model = parse(
        LOOKUP + "h = MatMul(x, large)  t = Tanh(h)  out = MatMul(t, w)  y = Identity(out) }",
        table=TABLE,
        w=WEIGHT,
        large=large,
    )
    result = convert_fp16(model)
    assert "1 constants beyond 65504 stay float32" in result.notes
    types = kinds(result.model)
    assert (types["large"], types["h"], types["w"], types["out"]) == (FLOAT, FLOAT, HALF, HALF)
    kept = next(tensor for tensor in result.model.graph.initializer if tensor.name == "large")
    assert (numpy_helper.to_array(kept) == large).all()


def test_a_weight_that_both_precisions_read_is_there_twice() -> None:
    model = parse(
        LOOKUP + "h = MatMul(x, w)  first = Gather<axis = 1>(h, zero)  r = MatMul(first, w)  y = Unsqueeze(r, one) }",
        table=TABLE,
        w=WEIGHT,
        zero=np.asarray(0),
        one=np.asarray([1]),
    )
    half = convert_fp16(model, keep_fp32_nodes=["MatMul_r"]).model
    types = kinds(half)
    assert (types["w"], types["w_fp16"]) == (FLOAT, HALF)
    assert error(run(half, {"ids": IDS}), run(model, {"ids": IDS})) <= MOST_DIFFERENCE


def test_weights_that_become_zero_are_counted() -> None:
    small = np.full((16, 16), 1e-9, np.float32)
    small[0] = 1e-6
    model = parse(LOOKUP + "h = MatMul(x, small)  y = Identity(h) }", table=np.ones((50, 16), np.float32), small=small)
    assert convert_fp16(model).notes[-1] == "24.24% of the weights below 6.1e-05, 240 of them became 0"


def test_an_operator_without_float16_stays_in_float32() -> None:
    model = parse(
        LOOKUP + "h = MatMul(x, w)  big = Resize<mode = 'linear'>(h, , scales)  y = Identity(big) }".replace("'", '"'),
        table=TABLE,
        w=WEIGHT,
        scales=np.ones(3, np.float32),
    )
    types = kinds(convert_fp16(model).model)
    assert (types["h"], types["scales"], types["big"]) == (HALF, FLOAT, FLOAT)


def test_branches_read_float32() -> None:
    model = parse(
        LOOKUP + "h = MatMul(x, w)  n = Size(ids)  c = Greater(n, zero)"
        " z = If(c) <then_branch = t () => (float[b, s, 16] p) { p = MatMul(h, w) },"
        " else_branch = e () => (float[b, s, 16] q) { q = Neg(h) }>  out = MatMul(z, w)  y = Identity(out) }",
        table=TABLE,
        w=WEIGHT,
        zero=np.asarray(0),
    )
    half = convert_fp16(model).model
    types = kinds(half)
    assert (types["x"], types["h"], types["z"], types["out"]) == (HALF, FLOAT, FLOAT, HALF)
    assert error(run(half, {"ids": IDS}), run(model, {"ids": IDS})) <= MOST_DIFFERENCE


def test_casts_of_float32_to_float32_are_dropped() -> None:
    model = parse(
        LOOKUP + "h = MatMul(x, w)  a = Cast<to = 1>(h)  s = Softmax(a)  b = Cast<to = 1>(s)  out = MatMul(b, w)"
        " y = Cast<to = 1>(out) }",
        table=TABLE,
        w=WEIGHT,
    )
    half = convert_fp16(model).model
    assert [node.input[0] for node in nodes(half, "Cast")] == ["h", "s", "out"]
    assert error(run(half, {"ids": IDS}), run(model, {"ids": IDS})) <= MOST_DIFFERENCE


def test_a_graph_without_weights_is_not_changed() -> None:
    result = convert_fp16(parse("g (int64[b, s] ids) => (float[b, s] y) { y = Cast<to = 1>(ids) }"))
    assert not result.changed
    assert result.notes == ("0 nodes in float16, 0 kept in float32, 0 casts between them",)


def test_a_quantized_model_is_refused(tiny_graph: ModelProto) -> None:
    with pytest.raises(InputError, match="already quantized"):
        convert_fp16(quantize_int8_dynamic(tiny_graph).model)


def test_an_operator_of_one_engine_is_refused() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>'
        " g (float[b, s, 16] x) => (float[b, s, 16] y) { y = com.microsoft.QuickGelu(x) }"
    )
    with pytest.raises(InputError, match="QuickGelu"):
        convert_fp16(model)
