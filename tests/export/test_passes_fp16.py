"""The float16 pass: what computes in which precision, how close the logits stay, and what would overflow."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from crossforge.export.calibration import calibration_batches
from crossforge.export.onnx import export_onnx
from crossforge.export.pairs import flatten, verification_pairs
from crossforge.export.parity import kendall_tau
from crossforge.export.passes import quantize_int8_dynamic
from crossforge.export.passes.fp16 import LARGEST, PrecisionPlan, convert_fp16, prepare
from crossforge.export.passes.fp16_overflow import find_overflows
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.source import load_source
from crossforge.profiles import InputError
from crossforge.runtime.batching import Batch
from crossforge.runtime.bundle import TOKENIZER_NAME, Bundle
from crossforge.runtime.tokenization import PairTokenizer
from support.tiny_models import MAX_LENGTH, save_tiny_model

Array = NDArray[Any]
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
ARCHITECTURES = ("bert", "roberta", "electra", "deberta-v2", "modernbert")
MOST_DIFFERENCE = 5e-3
"""Of a logit, as a share of how far logits lie apart."""
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(50, 16)).astype(np.float32)
WEIGHT = RNG.normal(size=(16, 16)).astype(np.float32)
IDS = RNG.integers(0, 50, size=(3, 7))
LOOKUP = "g (int64[b, s] ids) => (float[b, s, 16] y) { x = Gather(table, ids) "
"""The start of a graph that looks tokens up."""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """A tiny reranker in float32; tests must not change it."""
    folder = save_tiny_model(tmp_path_factory.mktemp("fp16") / "checkpoint", request.param)
    return export_onnx(load_source(str(folder)).model)


@pytest.fixture(scope="module")
def half(graph: ModelProto) -> ModelProto:
    return convert_fp16(graph).model


def parse(text: str, **constants: Array) -> ModelProto:
    """A model from ONNX's textual syntax, with initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def random_batch(model: ModelProto, rows: int, tokens: int, *, padded: bool = True) -> Batch:
    """Rows of random ids, each shorter than the one before."""
    rng = np.random.default_rng(rows * tokens)
    ids = rng.integers(5, 300, size=(rows, tokens))
    lengths = np.maximum(2, tokens - np.arange(rows) * tokens // rows) if padded else np.full(rows, tokens)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: every[name] for name in (str(value.name) for value in model.graph.input)}


def run(model: ModelProto, *batches: Mapping[str, Array]) -> Array:
    """What a model answers to batches, one after another."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, dict(batch))[0] for batch in batches])


def run_strongly_typed(model: ModelProto, batch: Mapping[str, Array]) -> Array:
    """Logits from ONNX's own evaluator: float16 is float16 there, where ONNX Runtime's CPU may leave casts out."""
    with np.errstate(all="ignore"):
        answers: Any = ReferenceEvaluator(model).run(None, dict(batch))
    logits: Array = answers[0]
    return logits


def error(answer: Array, expected: Array) -> float:
    """The largest difference, as a share of how far the expected values lie apart."""
    return float(np.abs(answer - expected).max() / np.ptp(expected))


def kinds(model: ModelProto) -> dict[str, int]:
    """Element types by tensor name, after ONNX found every operator's types to be allowed."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=False).graph
    known = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    return known | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def node_kinds(model: ModelProto, *op_types: str) -> set[int]:
    """The float types that nodes of these kinds read and write."""
    types = kinds(model)
    names = [name for node in nodes(model, *op_types) for name in (*node.input, *node.output)]
    return {types[name] for name in names if name in types} & {FLOAT, HALF}


def nodes(model: ModelProto, *op_types: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type in op_types]


def casts(model: ModelProto) -> list[NodeProto]:
    """Casts from one float type to the other."""
    types = kinds(model)
    return [node for node in nodes(model, "Cast") if {types.get(node.input[0]), types[node.output[0]]} == {FLOAT, HALF}]


def weight_bytes(model: ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def floats_of(model: ModelProto) -> list[Array]:
    """Every float constant of a model."""
    tensors = list(model.graph.initializer)
    tensors += [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    values = [numpy_helper.to_array(tensor) for tensor in tensors]
    return [value for value in values if value.dtype.kind == "f"]


# Every architecture


def test_inputs_and_outputs_stay_the_same(graph: ModelProto, half: ModelProto) -> None:
    assert list(half.graph.input) == list(graph.graph.input)
    assert list(half.graph.output) == list(graph.graph.output)
    assert kinds(half)["logits"] == FLOAT


def test_the_input_model_is_left_as_it_was(graph: ModelProto) -> None:
    before = graph.SerializeToString()
    convert_fp16(graph)
    find_overflows(graph, [random_batch(graph, 2, 5)])
    assert graph.SerializeToString() == before


def test_operators_are_standard_and_allow_their_types(graph: ModelProto, half: ModelProto) -> None:
    onnx.checker.check_model(half, full_check=True)
    assert half.opset_import == graph.opset_import
    assert len({node.name for node in half.graph.node}) == len(half.graph.node)


def test_weights_take_half_the_bytes(graph: ModelProto, half: ModelProto) -> None:
    assert weight_bytes(half) < 0.56 * weight_bytes(graph)


def test_all_products_of_the_encoder_are_in_float16(graph: ModelProto, half: ModelProto) -> None:
    types = kinds(half)
    products = [product.node.output[0] for product in find_encoder_products(graph)]
    assert products
    assert {types[name] for name in products} == {HALF}


def test_word_embeddings_are_looked_up_in_float16(half: ModelProto) -> None:
    types = kinds(half)
    assert [types[node.output[0]] for node in nodes(half, "Gather") if node.input[1] == "input_ids"] == [HALF]


def test_normalizations_softmax_and_the_head_are_in_float32(half: ModelProto) -> None:
    assert node_kinds(half, "LayerNormalization", "Softmax") == {FLOAT}
    assert node_kinds(half, "Gemm", "ReduceSum") == {FLOAT}


@pytest.mark.parametrize(("rows", "tokens"), [(1, 2), (7, 19), (4, MAX_LENGTH)])
def test_logits_stay_close_at_shapes_that_were_never_traced(
    graph: ModelProto, half: ModelProto, rows: int, tokens: int
) -> None:
    batches = [random_batch(graph, 16, 20), random_batch(graph, rows, tokens)]
    assert error(run(half, *batches), run(graph, *batches)) <= MOST_DIFFERENCE


def test_logits_stay_close_where_every_type_is_obeyed(
    request: pytest.FixtureRequest, graph: ModelProto, half: ModelProto
) -> None:
    if "deberta" in request.node.name:
        pytest.skip("onnx's evaluator cannot run DeBERTa's GatherElements")
    batch = random_batch(graph, 8, 11)
    assert error(run_strongly_typed(half, batch), run_strongly_typed(graph, batch)) <= MOST_DIFFERENCE


def test_padding_changes_no_logit(graph: ModelProto, half: ModelProto) -> None:
    batch = random_batch(graph, 4, 12, padded=False)
    padded = {name: np.pad(values, ((0, 0), (0, 40))) for name, values in batch.items()}
    assert error(run(half, padded), run(graph, batch)) <= MOST_DIFFERENCE


def test_a_row_without_any_token_is_finite_where_it_was(graph: ModelProto, half: ModelProto) -> None:
    batch = random_batch(graph, 3, 6)
    batch["attention_mask"][1] = 0
    assert (np.isfinite(run(half, batch)) == np.isfinite(run(graph, batch))).all()


def test_no_constant_is_too_large_for_float16(graph: ModelProto, half: ModelProto) -> None:
    assert min(values.min(initial=0) for values in floats_of(graph)) < -LARGEST
    assert min(values.min(initial=0) for values in floats_of(half)) == -LARGEST
    assert all(np.isfinite(values).all() for values in floats_of(half))


def test_a_tensor_is_cast_once_and_never_back(half: ModelProto) -> None:
    between = casts(half)
    assert max(Counter(node.input[0] for node in between).values()) == 1
    assert {node.input[0] for node in between}.isdisjoint(node.output[0] for node in between)


def test_a_second_run_changes_nothing(half: ModelProto) -> None:
    again = convert_fp16(half)
    assert not again.changed
    assert again.notes == ("the model computes in float16 already",)
    assert again.model == half
    assert again.model is not half


def test_a_healthy_model_overflows_nowhere(graph: ModelProto) -> None:
    assert find_overflows(graph, [random_batch(graph, 6, 20), random_batch(graph, 1, MAX_LENGTH)]) == ()


# What stays in float32


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


# Masks

BY_CONSTANT = "m = Where(hidden, lowest, nothing)"
BY_PRODUCT = "f = Cast<to = 1>(hidden)  m = Mul(f, lowest)"
BY_CAST = "l = Cast<to = 1>(lowest)  m = Where(hidden, l, nothing)"
LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize(
    ("mask", "lowest"),
    [
        (BY_CONSTANT, np.asarray(LOWEST, np.float32)),
        (BY_CONSTANT, np.asarray([-1e9], np.float32)),
        (BY_CONSTANT, np.asarray([-np.inf], np.float32)),
        (BY_PRODUCT, np.asarray(LOWEST, np.float32)),
        (BY_CAST, np.asarray(np.finfo(np.float64).min)),
        ("one = Shape(nothing)  l = ConstantOfShape<value = float[1] {-3.4e38}>(one)  m = Where(hidden, l, nothing)", None),
        ("l = Constant<value = float {-3.4e38}>()  m = Where(hidden, l, nothing)", None),
        ("big = Constant<value = float {3.4e38}>()  f = Cast<to = 1>(hidden)  n = Mul(f, big)  m = Neg(n)", None),
    ],
    ids=["scalar", "-1e9", "infinite", "product", "double", "ConstantOfShape", "Constant", "negated"],
)
def test_a_mask_is_finite_whatever_it_is_made_of(mask: str, lowest: Array | None) -> None:
    text = (
        "g (int64[b, s] ids) => (float[b, s, s] y) { x = Gather(table, ids)  small = Less(ids, ten)"
        f" hidden = Unsqueeze(small, row)  {mask}"
        " k = Transpose<perm = [0, 2, 1]>(x)  scores = MatMul(x, k)  masked = Add(scores, m)"
        " t = Relu(masked)  p = Softmax(masked)  y = Sub(p, t) }"
    )
    constants = {"table": TABLE, "ten": np.asarray(10), "row": np.asarray([1]), "nothing": np.zeros(1, np.float32)}
    if lowest is not None:
        constants["lowest"] = lowest
    model = parse(text, **constants)
    result = convert_fp16(model)
    assert not any(np.isinf(values).any() for values in floats_of(result.model))
    whole_row_masked = {"ids": np.asarray([[1, 2, 3], [20, 1, 30], [20, 40, 30]])}
    expected, answer = run(model, whole_row_masked), run_strongly_typed(result.model, whole_row_masked)
    assert np.isfinite(answer).all()
    assert answer[1:] == pytest.approx(expected[1:], abs=0.05)
    assert (answer[1, :, 1] == 0).all()


def test_two_masks_added_are_not_infinite() -> None:
    model = parse(
        LOOKUP
        + "h = MatMul(x, w)  a = Add(h, mask)  b = Add(a, mask)  p = Softmax(b)  out = MatMul(p, w)  y = Identity(out) }",
        table=TABLE,
        w=WEIGHT,
        mask=np.full((1, 1, 16), LOWEST, np.float32),
    )
    assert np.isnan(run_strongly_typed(model, {"ids": IDS})).all()
    assert np.isfinite(run_strongly_typed(convert_fp16(model).model, {"ids": IDS})).all()


def test_a_matrix_of_masks_is_raised_and_not_taken_for_a_weight() -> None:
    window = np.where(np.abs(np.subtract.outer(np.arange(7), np.arange(7))) <= 2, 0, -np.inf).astype(np.float32)
    model = parse(
        LOOKUP + "k = Transpose<perm = [0, 2, 1]>(x)  scores = MatMul(x, k)  a = Add(scores, window)  p = Softmax(a)"
        " out = MatMul(p, x)  y = Identity(out) }",
        table=TABLE,
        window=window,
    )
    result = convert_fp16(model)
    assert "1 masking constants raised to -65504" in result.notes
    types = kinds(result.model)
    assert (types["scores"], types["window"], types["a"], types["out"]) == (HALF, FLOAT, FLOAT, HALF)
    assert error(run(result.model, {"ids": IDS}), run(model, {"ids": IDS})) <= MOST_DIFFERENCE


# What overflows


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """A model whose first feed-forward layer works on values of a few hundred thousand, and gives what it gave."""
    folder = save_tiny_model(tmp_path_factory.mktemp("fp16") / "checkpoint", hidden_act="relu")
    model: Any = copy.deepcopy(load_source(str(folder)).model)
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        factor = 0.9 * LARGEST / layer.intermediate.dense.weight.abs().max()
        layer.intermediate.dense.weight *= factor
        layer.intermediate.dense.bias *= factor
        layer.output.dense.weight /= factor
    return export_onnx(model)


def test_plain_conversion_of_an_overflowing_model_gives_no_ranking(overflowing: ModelProto) -> None:
    batch = random_batch(overflowing, 12, 15)
    assert np.isfinite(run_strongly_typed(overflowing, batch)).all()
    assert not np.isfinite(run_strongly_typed(convert_fp16(overflowing).model, batch)).any()


def test_overflowing_nodes_kept_in_float32_restore_the_ranking(overflowing: ModelProto) -> None:
    names = find_overflows(overflowing, [random_batch(overflowing, 8, 12)])
    assert 1 <= len(names) <= 4
    assert all("layer.0/" in name for name in names)
    model = convert_fp16(overflowing, keep_fp32_nodes=names).model
    batch = random_batch(overflowing, 12, 15)  # other pairs
    expected = run(overflowing, batch)
    for answer in (run(model, batch), run_strongly_typed(model, batch)):
        assert error(answer, expected) <= MOST_DIFFERENCE
        assert kendall_tau(answer[:, 0], expected[:, 0]) == pytest.approx(1)


def test_names_come_in_the_graphs_order(overflowing: ModelProto) -> None:
    every = [node.name for node in prepare(overflowing)[0].graph.node]
    names = find_overflows(overflowing, [random_batch(overflowing, 2, 6)])
    assert list(names) == sorted(names, key=every.index)


def test_any_batch_may_overflow() -> None:
    table = TABLE.copy()
    table[7] = 5e4
    model = parse(LOOKUP + "h = MatMul(x, w)  out = MatMul(h, w)  y = Identity(out) }", table=table, w=WEIGHT / 100)
    healthy, ill = {"ids": np.asarray([[1, 2]])}, {"ids": np.asarray([[3, 7]])}
    assert find_overflows(model, [healthy]) == ()
    assert find_overflows(model, [ill, healthy]) == find_overflows(model, [healthy, ill]) == ("Gather_x", "MatMul_h")
    assert find_overflows(model, [ill], limit=5e4) == ()


def test_only_nodes_that_would_be_float16_are_named(tiny_graph: ModelProto) -> None:
    names = find_overflows(tiny_graph, [random_batch(tiny_graph, 2, 5)], limit=0)
    plan = PrecisionPlan(prepare(tiny_graph)[0])
    assert set(names) == plan.half
    assert not any("LayerNorm" in name or "Softmax" in name for name in names)


def test_nothing_to_measure_on_is_an_error(tiny_graph: ModelProto) -> None:
    with pytest.raises(InputError, match="no batches"):
        find_overflows(tiny_graph, [])


# A trained model


@pytest.mark.slow
def test_the_demo_model_ranks_the_same(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(demo_bundle)
    manifest = bundle.manifest
    tokenizer = PairTokenizer.from_file(demo_bundle / TOKENIZER_NAME, manifest.pair_template, manifest.truncation)
    records = verification_pairs()[:3]
    model = onnx.load(demo_bundle / "onnx" / "model.onnx")
    half = convert_fp16(model).model
    onnx.save(half, tmp_path / "half.onnx")
    size_bytes = (demo_bundle / "onnx" / "model.onnx").stat().st_size
    assert (tmp_path / "half.onnx").stat().st_size < 0.52 * size_bytes
    batches = calibration_batches(records, tokenizer, pad_token_id=manifest.pad_token_id, input_names=manifest.input_names)
    assert find_overflows(model, batches[:2]) == ()
    expected, answer = run(model, *batches)[:, 0], run(half, *batches)[:, 0]
    assert len(answer) == len(flatten(records)) == 60
    tau = kendall_tau(answer, expected)
    assert tau is not None
    assert tau >= 0.995
