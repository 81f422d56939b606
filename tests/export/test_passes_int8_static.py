"""Static int8: what is rewritten, with which numbers, and that nothing in a batch can change a pair's score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from crossforge.export.onnx import export_onnx
from crossforge.export.options import RangeMethod
from crossforge.export.passes import fuse_for_cpu, keep_first_row, quantize_int8_dynamic, quantize_int8_static
from crossforge.export.passes.int8_static import ActivationType, find_code
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.ranges import ActivationRange, collect_ranges
from crossforge.export.source import load_source
from crossforge.profiles import InputError
from crossforge.runtime.batching import Batch
from support.onnx_sessions import open_session, run
from support.tiny_models import MAX_LENGTH, save_tiny_model

Array = NDArray[np.generic]
Ranges = Mapping[str, ActivationRange]
BOTH = pytest.mark.parametrize("activations", list(ActivationType))
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(16, 8)).astype(np.float32)
TOKENS = RNG.normal(size=(2, 5, 16)).astype(np.float32)
RANGE = ActivationRange(low=float(TOKENS.min()), high=float(TOKENS.max()))


def graph(text: str, weights: Mapping[str, Array], opset: int = 18) -> ModelProto:
    """A model from ONNX's textual syntax, with initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def linear_layer(opset: int = 18) -> ModelProto:
    return graph("g (float[b, s, 16] x) => (float[b, s, 8] y) { y = MatMul(x, w) }", {"w": WEIGHT}, opset)


def two_layers() -> ModelProto:
    """Both read ``x`` or what became of it."""
    return graph(
        "g (float[b, s, 16] x) => (float[b, s, 8] y) { p = MatMul(x, w)  t = Tanh(x)  q = MatMul(t, v)  y = Add(p, q) }",
        {"w": WEIGHT, "v": WEIGHT[::-1].copy()},
    )


def batch_of(rows: int, tokens: int, seed: int = 1) -> Batch:
    ids = np.random.default_rng(seed).integers(5, 300, size=(rows, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def constants(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def float_matrices(model: ModelProto) -> set[str]:
    return {t.name for t in model.graph.initializer if len(t.dims) == 2 and t.data_type == TensorProto.FLOAT}


def ranges_of(model: ModelProto, batches: list[Batch]) -> dict[str, ActivationRange]:
    return collect_ranges(model, [p.activation for p in find_encoder_products(model)], batches, RangeMethod.MINMAX)


@pytest.fixture(scope="module")
def tiny_ranges(tiny_graph: ModelProto) -> Ranges:
    return ranges_of(tiny_graph, [batch_of(8, 24), batch_of(4, 60, seed=2)])


# What it rewrites, and what it leaves


@BOTH
def test_the_input_model_is_left_as_it_was(tiny_graph: ModelProto, tiny_ranges: Ranges, activations: ActivationType) -> None:
    before = tiny_graph.SerializeToString()
    result = quantize_int8_static(tiny_graph, tiny_ranges, activations=activations)
    assert result.changed
    assert tiny_graph.SerializeToString() == before
    assert list(result.model.graph.input) == list(tiny_graph.graph.input)
    assert list(result.model.graph.output) == list(tiny_graph.graph.output)


@BOTH
def test_every_linear_layer_reads_eight_bits_on_both_sides(
    tiny_graph: ModelProto, tiny_ranges: Ranges, activations: ActivationType
) -> None:
    quantized = quantize_int8_static(tiny_graph, tiny_ranges, activations=activations).model
    values, makers = constants(quantized), {output: node for node in quantized.graph.node for output in node.output}
    products = []
    for node in quantized.graph.node:
        left, right = (
            (makers.get(name, NodeProto()) for name in node.input[:2]) if node.op_type == "MatMul" else (None, None)
        )
        if right is None or right.op_type != "DequantizeLinear":
            continue
        products.append(node)
        weight, scales = (values[name] for name in right.input)
        assert left is not None
        source = makers[left.input[0]]
        assert (left.op_type, source.op_type) == ("DequantizeLinear", "QuantizeLinear")
        assert left.input[1:] == source.input[1:], "what is quantized with a scale comes back with it"
        assert weight.dtype == np.int8
        assert [attribute.i for attribute in right.attribute] == [1]
        assert scales.shape == (weight.shape[1],)
        assert values[source.input[1]].shape == ()
        assert values[source.input[2]].dtype == np.dtype(activations)
    assert len(products) == 2 * 6, "query, key, value, attention output and two feed-forward layers, twice"
    assert kinds(quantized)["MatMul"] == 2 * 6 + 2 * 2, "attention multiplies activations with each other"


@BOTH
def test_an_activation_that_several_products_read_is_quantized_once(
    tiny_graph: ModelProto, tiny_ranges: Ranges, activations: ActivationType
) -> None:
    result = quantize_int8_static(tiny_graph, tiny_ranges, activations=activations)
    assert kinds(result.model)["QuantizeLinear"] == 2 * 4
    tables = 1 if activations is ActivationType.UINT8 else 0
    assert result.notes == (
        f"12 matrix products and {tables} lookup tables quantized to int8, "
        f"8 activation tensors to {activations} with a fixed scale",
    )


@BOTH
def test_it_is_written_in_standard_operators(
    tiny_graph: ModelProto, tiny_ranges: Ranges, activations: ActivationType
) -> None:
    quantized = quantize_int8_static(tiny_graph, tiny_ranges, activations=activations).model
    onnx.checker.check_model(quantized, full_check=True)
    assert {node.domain for node in quantized.graph.node} <= {"", "ai.onnx"}
    assert {entry.domain for entry in quantized.opset_import} <= {"", "ai.onnx"}


def test_the_head_stays_float(tiny_graph: ModelProto, tiny_ranges: Ranges) -> None:
    quantized = quantize_int8_static(tiny_graph, tiny_ranges, activations=ActivationType.INT8).model
    heads = [node for node in tiny_graph.graph.node if node.op_type == "Gemm"]
    assert len(heads) == 2, "pooler and classifier"
    assert [node for node in quantized.graph.node if node.op_type == "Gemm"] == heads


def test_a_layer_that_is_kept_stays_float(tiny_graph: ModelProto, tiny_ranges: Ranges) -> None:
    kept = find_encoder_products(tiny_graph)[3].weight
    result = quantize_int8_static(tiny_graph, tiny_ranges, activations=ActivationType.UINT8, keep_fp32=[kept])
    assert kept in float_matrices(result.model)
    assert result.notes[0].startswith("11 matrix products")


def test_with_every_layer_kept_and_no_tables_nothing_changes(tiny_graph: ModelProto) -> None:
    everything = [product.weight for product in find_encoder_products(tiny_graph)]
    result = quantize_int8_static(tiny_graph, {}, activations=ActivationType.INT8, keep_fp32=everything)
    assert not result.changed
    assert list(result.model.graph.node) == list(tiny_graph.graph.node)


@pytest.mark.parametrize(
    ("activations", "asked", "quantized"),
    [("uint8", None, True), ("int8", None, False), ("uint8", False, False), ("int8", True, True)],
)
def test_tables_are_quantized_for_unsigned_activations_or_on_request(
    tiny_graph: ModelProto, tiny_ranges: Ranges, activations: str, asked: bool | None, quantized: bool
) -> None:
    type_ = ActivationType(activations)
    result = quantize_int8_static(tiny_graph, tiny_ranges, activations=type_, quantize_embeddings=asked).model
    assert ("bert.embeddings.word_embeddings.weight" not in float_matrices(result)) is quantized
    dynamic = quantize_int8_dynamic(tiny_graph).model
    if quantized:
        name = "bert.embeddings.word_embeddings.weight_rows_int8"
        np.testing.assert_array_equal(constants(result)[name], constants(dynamic)[name])


def test_a_product_without_a_range_stays_float_and_is_named() -> None:
    result = quantize_int8_static(two_layers(), {"x": RANGE}, activations=ActivationType.INT8)
    assert result.notes[1:] == ("1 matrix products left in float32, no range for t",)
    assert float_matrices(result.model) == {"v"}
    whole = quantize_int8_static(
        two_layers(), {"x": RANGE, "t": ActivationRange(low=-1.0, high=1.0)}, activations=ActivationType.INT8
    )
    assert float_matrices(whole.model) == set()
    assert len(whole.notes) == 1


def test_a_table_of_relative_positions_stays_float(tmp_path: Path) -> None:
    model = export_onnx(load_source(str(save_tiny_model(tmp_path / "deberta", "deberta-v2"))).model)
    inputs = {k: v for k, v in batch_of(3, 11).items() if k in {value.name for value in model.graph.input}}
    result = quantize_int8_static(model, ranges_of(model, [inputs]), activations=ActivationType.UINT8)
    assert result.notes[0].startswith("12 matrix products")
    assert "left in float32, no range for" in result.notes[1]
    assert np.abs(run(result.model, **inputs) - run(model, **inputs)).mean() < 0.3 * np.abs(run(model, **inputs)).mean()


# What engines make of it


def test_onnx_runtime_folds_unsigned_activations_into_integer_products(tiny_graph: ModelProto, tiny_ranges: Ranges) -> None:
    fused = fuse_for_cpu(quantize_int8_static(tiny_graph, tiny_ranges, activations=ActivationType.UINT8).model).model
    left = kinds(fused)
    assert left["MatMulIntegerToFloat"] == 2 * 6
    assert left["QuantizeLinear"] == 2 * 4
    assert left["DequantizeLinear"] == 0


# Numbers


@BOTH
@pytest.mark.parametrize(("rows", "tokens"), [(16, 2), (9, 17), (2, MAX_LENGTH)])
@pytest.mark.usefixtures("exact_int8")
def test_scores_stay_close_at_shapes_that_nobody_traced(
    tiny_graph: ModelProto, tiny_ranges: Ranges, activations: ActivationType, rows: int, tokens: int
) -> None:
    inputs = batch_of(rows, tokens, seed=9)
    quantized = quantize_int8_static(tiny_graph, tiny_ranges, activations=activations).model
    assert_close(run(quantized, **inputs), run(tiny_graph, **inputs))


@BOTH
@pytest.mark.usefixtures("exact_int8")
def test_a_graph_cut_to_its_first_row_stays_close_too(tiny_graph: ModelProto, activations: ActivationType) -> None:
    cut, inputs = keep_first_row(tiny_graph).model, batch_of(5, 20, seed=9)
    quantized = quantize_int8_static(cut, ranges_of(cut, [batch_of(8, 24)]), activations=activations)
    assert quantized.notes[0].startswith("12 matrix products")
    assert_close(run(quantized.model, **inputs), run(tiny_graph, **inputs))


def assert_close(answer: Array, expected: Array) -> None:
    """Within what random weights lose to eight bits: tenths on average, on logits that span several units."""
    assert answer.shape == expected.shape
    assert 0 < np.abs(answer - expected).mean() < 0.3


@settings(max_examples=20, deadline=None)
@given(company=st.lists(st.integers(0, 9), min_size=1, max_size=8), width=st.integers(30, 40))
@BOTH
def test_a_pairs_logits_do_not_depend_on_its_batch(
    sessions: dict[ActivationType, onnxruntime.InferenceSession],
    activations: ActivationType,
    company: list[int],
    width: int,
) -> None:
    lengths = np.arange(12, 32, 2)

    def logits(rows: list[int], padded_to: int) -> Array:
        inputs = {name: value[rows, :padded_to] for name, value in batch_of(10, 40, seed=3).items()}
        inputs["attention_mask"] = (np.arange(padded_to) < lengths[rows, None]).astype(np.int64)
        answer: Array = sessions[activations].run(None, inputs)[0]
        return answer

    alone = np.concatenate([logits([row], int(lengths[row])) for row in company])
    np.testing.assert_allclose(logits(company, width), alone, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def sessions(tiny_graph: ModelProto, tiny_ranges: Ranges) -> dict[ActivationType, onnxruntime.InferenceSession]:
    return {
        activations: open_session(quantize_int8_static(tiny_graph, tiny_ranges, activations=activations).model)
        for activations in ActivationType
    }


@BOTH
@pytest.mark.usefixtures("exact_int8")
def test_the_error_of_a_product_is_that_of_rounding(activations: ActivationType) -> None:
    answer = run(quantize_int8_static(linear_layer(), {"x": RANGE}, activations=activations).model, x=TOKENS)
    scale, _ = find_code(RANGE, activations)
    token_step, column_step = scale / 2 * (1 + 1e-5), np.abs(WEIGHT).max(axis=0) / 127 / 2
    bound = token_step * np.abs(WEIGHT).sum(axis=0) + column_step * np.abs(TOKENS).sum(axis=-1, keepdims=True)
    # The zero point is rounded, so an end of the range may lie half a step outside the code.
    bound += 16 * token_step * column_step + token_step * np.abs(WEIGHT).max(axis=0)
    error = np.abs(answer - TOKENS @ WEIGHT)
    assert (error <= bound).all()
    assert error.max() > 0


@BOTH
@pytest.mark.usefixtures("exact_int8")
def test_a_value_beyond_the_range_is_clipped(activations: ActivationType) -> None:
    quantized = quantize_int8_static(linear_layer(), {"x": RANGE}, activations=activations).model
    loud, clipped = TOKENS.copy(), TOKENS.copy()
    loud[0, 2, 3], clipped[0, 2, 3] = 1000.0, RANGE.magnitude * 1.01
    np.testing.assert_array_equal(run(quantized, x=loud), run(quantized, x=clipped))


def test_an_older_opset_gives_the_same_numbers() -> None:
    old, new = (
        quantize_int8_static(linear_layer(opset), {"x": RANGE}, activations=ActivationType.UINT8).model for opset in (13, 18)
    )
    np.testing.assert_array_equal(run(old, x=TOKENS), run(new, x=TOKENS))


def test_rounded_weights_are_taken_as_they_are() -> None:
    rounded = RNG.integers(-127, 128, size=WEIGHT.shape).astype(np.int8)
    quantized = quantize_int8_static(linear_layer(), {"x": RANGE}, activations=ActivationType.INT8, rounded={"w": rounded})
    np.testing.assert_array_equal(constants(quantized.model)["w_int8"], rounded)


def test_levels_bound_the_weights() -> None:
    quantized = quantize_int8_static(linear_layer(), {"x": RANGE}, activations=ActivationType.UINT8, levels=63).model
    values = constants(quantized)
    assert np.abs(values["w_int8"].astype(int)).max() == 63
    np.testing.assert_allclose(values["w_int8"] * values["w_scale"], WEIGHT, atol=values["w_scale"].max() / 2 * 1.001)


ENDS = st.floats(-1e6, 1e6, allow_subnormal=False)


@BOTH
@given(ends=st.tuples(ENDS, ENDS), share=st.floats(0, 1))
def test_a_code_holds_its_range_and_zero_exactly(
    activations: ActivationType, ends: tuple[float, float], share: float
) -> None:
    covered = ActivationRange(low=min(ends), high=max(ends))
    scale, zero_point = find_code(covered, activations)
    assert scale > 0
    assert (scale.dtype, zero_point.dtype) == (np.float32, np.dtype(activations))
    limits = np.iinfo(np.dtype(activations))

    def restored(value: float) -> float:
        code = np.clip(np.rint(value / float(scale)) + int(zero_point), limits.min, limits.max)
        return float((code - int(zero_point)) * float(scale))

    assert restored(0.0) == 0.0
    value = covered.low + share * (covered.high - covered.low)
    # At an end the rounded zero point may cost another half a step.
    assert abs(restored(value) - value) <= float(scale) * (1 + 1e-4)


def test_a_symmetric_code_has_its_zero_at_zero() -> None:
    assert find_code(ActivationRange(low=-0.17, high=5.0), ActivationType.INT8) == (np.float32(5 / 127), 0)


def test_an_unsigned_code_spends_no_step_outside_the_range() -> None:
    scale, zero_point = find_code(ActivationRange(low=-0.17, high=5.0), ActivationType.UINT8)
    assert scale == np.float32(5.17 / 255)
    assert zero_point == 8


# What it refuses


@BOTH
def test_its_own_result_is_refused(tiny_graph: ModelProto, tiny_ranges: Ranges, activations: ActivationType) -> None:
    once = quantize_int8_static(tiny_graph, tiny_ranges, activations=activations).model
    with pytest.raises(InputError, match="already quantized; got DequantizeLinear"):
        quantize_int8_static(once, tiny_ranges, activations=activations)


def test_the_result_of_the_dynamic_pass_is_refused(tiny_graph: ModelProto, tiny_ranges: Ranges) -> None:
    with pytest.raises(InputError, match="already quantized; got MatMulIntegerToFloat"):
        quantize_int8_static(quantize_int8_dynamic(tiny_graph).model, tiny_ranges, activations=ActivationType.UINT8)


def test_an_opset_without_scales_a_column_is_refused() -> None:
    with pytest.raises(InputError, match="opset has no scales a column; got 12; allowed: 13 or later"):
        quantize_int8_static(linear_layer(opset=12), {"x": RANGE}, activations=ActivationType.INT8)


def test_ranges_of_another_graph_are_refused() -> None:
    with pytest.raises(InputError, match="no activation of the graph has a range; got ranges of z; allowed: ranges of x, t"):
        quantize_int8_static(two_layers(), {"z": RANGE}, activations=ActivationType.INT8)
