"""The pass that computes the last layer for one row: what it saves, that nothing else changes, and where it stays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from crossforge.export.onnx import export_onnx
from crossforge.export.passes import quantize_int8_dynamic
from crossforge.export.passes.cls_only import keep_first_row
from crossforge.export.source import load_source
from support.onnx_sessions import open_session
from support.tiny_models import MAX_LENGTH, save_tiny_model

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

WHOLE_LAYER = ("bert", "roberta", "xlm-roberta", "distilbert", "electra")
"""Query, attention and feed-forward all run on one row."""
IN_PART = {"deberta-v2": (3, 1), "modernbert": (3, 2)}
"""Linear layers and products of the attention that run on one row; the rest is in operators that rows cannot cross."""
STOPS = {
    "deberta-v2": ("all rows are still computed before: Reshape",),
    "modernbert": ("all rows are still computed before: Squeeze, Unsqueeze",),
}
SHAPES = [(1, 1), (1, 2), (5, 3), (1, 41), (5, 41), (2, MAX_LENGTH)]
TOLERANCE = 1e-5
WEIGHTS: dict[str, Array] = {
    "w": np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32),
    "zero": np.asarray(0),
    "one": np.asarray(1),
    "from0": np.asarray([0]),
    "to1": np.asarray([1]),
    "to2": np.asarray([2]),
    "axis1": np.asarray([1]),
    "axis2": np.asarray([2]),
    "to3": np.asarray([3]),
    "ones": np.ones(8, np.float32),
}


@pytest.fixture(scope="module", params=[*WHOLE_LAYER, *IN_PART])
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def graph(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """An exported reranker whose head reads one row."""
    pooling = {"classifier_pooling": "cls"} if architecture == "modernbert" else {}
    return export(tmp_path_factory.mktemp(architecture), architecture, **pooling)


@pytest.fixture(scope="module")
def rewritten(graph: ModelProto) -> ModelProto:
    result = keep_first_row(graph)
    assert result.changed
    return result.model


def export(folder: Path, architecture: str, **config: object) -> ModelProto:
    return export_onnx(load_source(str(save_tiny_model(folder / "checkpoint", architecture, **config))).model)


def layers(body: str, outputs: str = "float[b, 8] y") -> ModelProto:
    """A model from ONNX's textual syntax: x float [batch, sequence, 8] in."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[b, s, 8] x) => ({outputs}) {{ {body} }}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in WEIGHTS.items() if name in body)
    onnx.checker.check_model(model, full_check=True)
    return model


def batch(model: ModelProto, rows: int, tokens: int, seed: int = 0) -> dict[str, Array]:
    """Token ids with padding in every second row, as int64 [rows, tokens]."""
    rng = np.random.default_rng(seed)
    lengths = np.where(np.arange(rows) % 2, rng.integers(1, tokens + 1, size=rows), tokens)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    inputs: dict[str, Array] = {
        "input_ids": np.where(mask, rng.integers(5, 300, size=(rows, tokens)), 0),
        "attention_mask": mask,
        "token_type_ids": mask * (np.arange(tokens) > tokens // 2),
    }
    return {value.name: inputs[value.name] for value in model.graph.input}


def hidden_states(rows: int = 3, tokens: int = 7) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).normal(size=(rows, tokens, 8)).astype(np.float32)}


def run(model: ModelProto, inputs: Mapping[str, Array]) -> list[Floats]:
    answers: list[Floats] = open_session(model).run(None, dict(inputs))
    return answers


def assert_same(model: ModelProto, other: ModelProto, inputs: Mapping[str, Array]) -> None:
    for ours, theirs in zip(run(model, inputs), run(other, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def rows_computed(model: ModelProto, rows: int, tokens: int) -> dict[str, int]:
    """Rows that each matrix product makes in one run, by the name of its output."""
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMul"]
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in products)
    answers = run(shown, batch(model, rows, tokens))[len(model.graph.output) :]
    return {name: answer.shape[-2] for name, answer in zip(products, answers, strict=True)}


# That nothing else changes


@pytest.mark.parametrize(("rows", "tokens"), SHAPES)
def test_logits_stay_the_same_at_any_shape(graph: ModelProto, rewritten: ModelProto, rows: int, tokens: int) -> None:
    assert_same(rewritten, graph, batch(graph, rows, tokens))


@dataclass(frozen=True)
class Sessions:
    """The embedded model with the pass and without it."""

    graph: ModelProto
    before: onnxruntime.InferenceSession
    after: onnxruntime.InferenceSession


@pytest.fixture(scope="module")
def demo() -> Sessions:
    graph = export_onnx(load_source("demo").model)
    result = keep_first_row(graph)
    assert result.changed
    return Sessions(graph, open_session(graph), open_session(result.model))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 6), tokens=st.integers(1, MAX_LENGTH), seed=st.integers(0, 1000))
def test_logits_of_the_demo_model_stay_the_same(demo: Sessions, rows: int, tokens: int, seed: int) -> None:
    inputs = batch(demo.graph, rows, tokens, seed)
    before, after = (session.run(None, inputs)[0] for session in (demo.before, demo.after))
    np.testing.assert_allclose(after, before, rtol=0, atol=TOLERANCE)


def test_the_demo_bundle_holds_a_graph_that_the_pass_understands(demo_bundle: Path) -> None:
    graph = onnx.load(demo_bundle / "onnx" / "model.onnx")
    result = keep_first_row(graph)
    assert not result.changed
    assert result.notes[0].startswith("already done")
    assert_same(result.model, graph, batch(graph, 3, 33))


def test_the_input_model_is_left_as_it_was(graph: ModelProto) -> None:
    before = graph.SerializeToString()
    assert keep_first_row(graph).model.SerializeToString() != before
    assert graph.SerializeToString() == before


def test_inputs_and_outputs_stay_the_same(graph: ModelProto, rewritten: ModelProto) -> None:
    assert list(rewritten.graph.input) == list(graph.graph.input)
    assert list(rewritten.graph.output) == list(graph.graph.output)


def test_the_result_is_a_valid_model(rewritten: ModelProto) -> None:
    onnx.checker.check_model(rewritten, full_check=True)


def test_every_weight_keeps_its_name_and_value(graph: ModelProto, rewritten: ModelProto) -> None:
    weights = {tensor.name: tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    assert {tensor.name: tensor for tensor in rewritten.graph.initializer if len(tensor.dims) == 2} == weights


def test_a_second_run_changes_nothing(rewritten: ModelProto) -> None:
    again = keep_first_row(rewritten)
    assert not again.changed
    assert again.notes == ("already done: the head reads a hidden state of one row",)
    assert again.model == rewritten


# What it saves


def test_the_last_layer_computes_one_row(architecture: str, graph: ModelProto, rewritten: ModelProto) -> None:
    before, after = rows_computed(graph, rows=2, tokens=11), rows_computed(rewritten, rows=2, tokens=11)
    fewer = [name for name, rows in after.items() if rows < before[name]]
    assert {after[name] for name in fewer} == {1}
    assert len(fewer) == sum(IN_PART.get(architecture, (4, 2)))


def test_keys_and_values_are_computed_for_all_rows(tiny_graph: ModelProto) -> None:
    after = rows_computed(keep_first_row(tiny_graph).model, rows=2, tokens=11)
    last = {name.rpartition("layer.1/")[2]: rows for name, rows in after.items() if "layer.1" in name}
    assert last == {
        "attention/self/query/MatMul_output_0": 1,
        "attention/self/key/MatMul_output_0": 11,
        "attention/self/value/MatMul_output_0": 11,
        "attention/self/MatMul_output_0": 1,
        "attention/self/MatMul_1_output_0": 1,
        "attention/output/dense/MatMul_output_0": 1,
        "intermediate/dense/MatMul_output_0": 1,
        "output/dense/MatMul_output_0": 1,
    }


def test_the_other_layers_are_left_alone(tiny_graph: ModelProto) -> None:
    before, after = rows_computed(tiny_graph, 2, 11), rows_computed(keep_first_row(tiny_graph).model, 2, 11)
    assert {name: rows for name, rows in after.items() if "layer.0" in name} == {
        name: rows for name, rows in before.items() if "layer.0" in name
    }


def test_the_notes_say_what_was_saved(architecture: str, graph: ModelProto) -> None:
    linear, attention = IN_PART.get(architecture, (4, 2))
    notes = keep_first_row(graph).notes
    assert (
        notes[0]
        == f"{linear} linear layers and {attention} products of the attention compute one row of a pair instead of all"
    )
    assert notes[1:] == STOPS.get(architecture, ())


@pytest.mark.parametrize("opset", [13, 14, 17])
def test_graphs_of_an_older_opset_are_rewritten(opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossforge.export.onnx.OPSET", opset)
    model = export(tmp_path, "electra")
    assert ("LayerNormalization" in {node.op_type for node in model.graph.node}) == (opset >= 17)  # spelled out before
    result = keep_first_row(model)
    assert result.notes[0].startswith("4 linear layers and 2 products")
    assert_same(result.model, model, batch(model, 3, 17))


def test_a_model_of_one_layer_is_rewritten(tmp_path: Path) -> None:
    model = export(tmp_path, "bert", num_hidden_layers=1)
    result = keep_first_row(model)
    assert result.notes[0].startswith("4 linear layers and 2 products")
    assert_same(result.model, model, batch(model, 3, 17))


def test_a_head_that_slices_is_understood() -> None:
    model = layers(
        "h = MatMul(x, w)  row = Slice(h, from0, to1, axis1)  y = Squeeze(row, axis1)",
    )
    result = keep_first_row(model)
    assert result.changed
    assert_same(result.model, model, hidden_states())


def test_a_mask_of_one_row_is_not_sliced(tmp_path: Path) -> None:
    model = keep_first_row(export(tmp_path, "electra")).model  # its mask is [batch, 1, 1, sequence]
    assert sum(node.op_type == "Slice" and node.name.endswith("first_row_1") for node in model.graph.node) == 1
    assert not any(node.name.endswith("first_row_2") for node in model.graph.node)


# int8 after it


@pytest.mark.usefixtures("exact_int8")
def test_the_int8_pass_quantizes_the_same_layers_after_it(graph: ModelProto, rewritten: ModelProto) -> None:
    before, after = quantize_int8_dynamic(graph), quantize_int8_dynamic(rewritten)
    assert after.notes[0].split(",")[0] == before.notes[0].split(",")[0]
    for rows, tokens in SHAPES:
        assert_same(after.model, before.model, batch(graph, rows, tokens))


# Where it stays out


def assert_not_applicable(model: ModelProto, because: str) -> None:
    result = keep_first_row(model)
    assert not result.changed
    (note,) = result.notes
    assert note.startswith("not applicable: ")
    assert because in note
    assert result.model == model


def test_a_head_that_pools_all_rows_is_left_alone(tmp_path: Path) -> None:
    assert_not_applicable(export(tmp_path, "modernbert", classifier_pooling="mean"), "does not select row 0")


def test_a_fused_graph_is_left_alone(tiny_graph: ModelProto, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tiny_graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert_not_applicable(onnx.load(tmp_path / "fused.onnx"), "the graph is fused already (com.microsoft.")


def test_a_quantized_graph_is_left_alone(tiny_graph: ModelProto) -> None:
    assert_not_applicable(quantize_int8_dynamic(tiny_graph).model, "already quantized; got MatMulIntegerToFloat")


def test_a_graph_of_an_opset_that_is_too_old_is_left_alone() -> None:
    model = layers("h = MatMul(x, w)  y = Gather<axis = 1>(h, zero)")
    model.opset_import[0].version = 12
    assert_not_applicable(model, "the graph's opset is 12; 13 or later is needed")


def test_another_row_than_the_first_is_left_alone() -> None:
    assert_not_applicable(layers("h = MatMul(x, w)  y = Gather<axis = 1>(h, one)"), "does not select row 0")


def test_two_rows_are_left_alone() -> None:
    model = layers("h = MatMul(x, w)  y = Slice(h, from0, to2, axis1)", outputs="float[b, t, 8] y")
    assert_not_applicable(model, "does not select row 0")


def test_a_hidden_state_that_is_an_output_too_is_left_alone() -> None:
    model = layers("h = MatMul(x, w)  y = Gather<axis = 1>(h, zero)", outputs="float[b, 8] y, float[b, s, 8] h")
    assert_not_applicable(model, "all rows of h are read by the output h")


def test_a_hidden_state_that_others_read_whole_is_left_alone() -> None:
    model = layers(
        "h = MatMul(x, w)  first = Gather<axis = 1>(h, zero)"
        "  mean = ReduceMean<keepdims = 0>(h, axis1)  y = Add(first, mean)"
    )
    assert_not_applicable(model, "all rows of h are read by ReduceMean (mean)")


def test_an_operator_that_mixes_rows_is_not_crossed() -> None:
    model = layers("h = MatMul(x, w)  sums = CumSum(h, one)  y = Gather<axis = 1>(sums, zero)")
    assert_not_applicable(model, "one row alone cannot be computed through CumSum (sums)")


@pytest.mark.parametrize("operator", ["Softmax<axis = 1>(h)", "LayerNormalization<axis = 1>(h, ones)"])
def test_a_norm_over_the_rows_is_not_crossed(operator: str) -> None:
    model = layers(f"h = MatMul(x, w)  n = {operator}  y = Gather<axis = 1>(n, zero)")
    assert_not_applicable(model, "one row alone cannot be computed through")


def test_rows_that_are_counted_are_all_computed() -> None:
    model = layers(
        "h = MatMul(x, w)  first = Gather<axis = 1>(h, zero)  shape = Shape(h)  count = Gather(shape, one)"
        "  rows = Cast<to = 1>(count)  y = Mul(first, rows)"
    )
    assert_not_applicable(model, "the number of rows of h is read")


def test_a_size_that_is_the_same_for_one_row_may_be_read() -> None:
    model = layers(
        "h = MatMul(x, w)  first = Gather<axis = 1>(h, zero)  shape = Shape(h)  width = Slice(shape, axis2, to3)"
        "  scale = Cast<to = 1>(width)  y = Div(first, scale)"
    )
    result = keep_first_row(model)
    assert result.changed
    assert_same(result.model, model, hidden_states())


def test_a_reshape_that_moves_values_between_rows_is_not_crossed() -> None:
    model = layers(
        "h = MatMul(x, w)  swapped = Transpose<perm = [0, 2, 1]>(h)  shape = Shape(h)  mixed = Reshape(swapped, shape)"
        "  y = Gather<axis = 1>(mixed, zero)"
    )
    assert_not_applicable(model, "Reshape")


def test_values_that_are_added_to_each_row_are_cut_with_it() -> None:
    model = layers("h = MatMul(x, w)  twice = Add(h, x)  y = Gather<axis = 1>(twice, zero)")
    result = keep_first_row(model)
    assert [node.op_type for node in result.model.graph.node] == ["Slice", "MatMul", "Add", "Gather"]
    assert_same(result.model, model, hidden_states())
