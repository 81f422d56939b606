"""Fusion for CUDA, tested on the CPU provider: what is fused, what is not, and that no logit moves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.version_converter import convert_version

from crossforge.export.onnx import export_onnx
from crossforge.export.passes import convert_fp16, fuse_for_cpu, fuse_for_cuda, keep_first_row, quantize_int8_dynamic
from crossforge.export.passes.graph import find_types
from crossforge.export.source import load_source
from support.onnx_sessions import open_session
from support.tiny_models import save_tiny_model

Array = NDArray[Any]
FULLY_FUSED = ("bert", "roberta", "distilbert", "electra")
NO_ATTENTION = {
    "deberta-v2": "fused: 2 BiasGelu, 1 Gelu, 4 SkipLayerNormalization",
    "modernbert": "fused: 3 Gelu, 4 SkipLayerNormalization",
}
LEFT = "{} attention layers left as they were: no pattern matches them"
TOLERANCE = 1e-4
MOST_HALF_DIFFERENCE = 5e-3
"""Of a logit in float16, as a share of how far logits lie apart."""


def export(folder: Path, architecture: str) -> ModelProto:
    return export_onnx(load_source(str(save_tiny_model(folder / "checkpoint", architecture))).model)


@pytest.fixture(scope="module", params=FULLY_FUSED)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """A tiny reranker; tests must not change it."""
    return export(tmp_path_factory.mktemp("cuda"), request.param)


@pytest.fixture(scope="module")
def fused(graph: ModelProto) -> ModelProto:
    return fuse_for_cuda(graph).model


def batch(model: ModelProto, rows: int = 6, tokens: int = 23) -> dict[str, Array]:
    """Token ids padded on the right, each row shorter than the one before."""
    ids = np.random.default_rng(0).integers(5, 300, size=(rows, tokens))
    lengths = np.maximum(1, tokens - np.arange(rows) * tokens // rows)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * (np.arange(tokens) > tokens // 2)}
    return {value.name: every[value.name] for value in model.graph.input}


def run(model: ModelProto, inputs: dict[str, Array]) -> Array:
    answer: Array = open_session(model).run(None, inputs)[0]
    return answer


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def types_of(model: ModelProto, op_type: str) -> set[int]:
    """Element types of what nodes of a kind make."""
    types = find_types(model)
    return {types[node.output[0]] for node in model.graph.node if node.op_type == op_type}


def error(answer: Array, expected: Array) -> float:
    """The largest difference, as a share of how far the expected values lie apart."""
    return float(np.abs(answer - expected).max() / np.ptp(expected))


def test_attention_residual_sums_and_gelu_of_both_layers_are_fused(graph: ModelProto) -> None:
    result = fuse_for_cuda(graph)
    assert result.changed
    found = kinds(result.model)
    assert (found["Attention"], found["SkipLayerNormalization"], found["BiasGelu"]) == (2, 4, 2)
    assert found["Softmax"] == found["Erf"] == 0
    head = "1 Gelu, " if found["Gelu"] else ""  # of ELECTRA's head
    assert result.notes == (f"fused: 2 Attention, 2 BiasGelu, {head}4 SkipLayerNormalization",)


def test_the_attention_of_a_layer_that_was_cut_to_one_row_is_left(graph: ModelProto) -> None:
    cut = keep_first_row(graph).model
    result = fuse_for_cuda(cut)
    found = kinds(result.model)
    assert (found["Attention"], found["Softmax"], found["SkipLayerNormalization"], found["BiasGelu"]) == (1, 1, 4, 2)
    assert result.notes[1] == LEFT.format(1)
    np.testing.assert_allclose(run(result.model, batch(graph)), run(graph, batch(graph)), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", NO_ATTENTION)
def test_an_attention_of_another_form_is_left(architecture: str, tmp_path: Path) -> None:
    model = export(tmp_path, architecture)
    result = fuse_for_cuda(model)
    assert result.notes == (NO_ATTENTION[architecture], LEFT.format(2))
    np.testing.assert_allclose(run(result.model, batch(model)), run(model, batch(model)), rtol=0, atol=TOLERANCE)


def test_the_result_is_a_valid_model(fused: ModelProto) -> None:
    onnx.checker.check_model(fused, full_check=True)
    onnx.checker.check_model(convert_fp16(fused).model, full_check=True)


# Padding


def test_any_attention_mask_is_taken_on_request(graph: ModelProto, fused: ModelProto) -> None:
    inputs = batch(graph)
    inputs["attention_mask"] = inputs["attention_mask"][:, ::-1].copy()
    masked = fuse_for_cuda(graph, right_padded=False).model
    assert kinds(masked)["Attention"] == 2
    np.testing.assert_allclose(run(masked, inputs), run(graph, inputs), rtol=0, atol=TOLERANCE)
    assert np.abs(run(fused, inputs) - run(graph, inputs)).max() > TOLERANCE, "lengths alone cannot tell where padding is"


# With float16


def test_fused_first_the_attention_is_in_float16_and_normalizations_are_not(graph: ModelProto, fused: ModelProto) -> None:
    half = convert_fp16(fused).model
    assert types_of(half, "Attention") == types_of(half, "BiasGelu") == types_of(half, "MatMul") == {TensorProto.FLOAT16}
    assert types_of(half, "SkipLayerNormalization") == types_of(half, "LayerNormalization") == {TensorProto.FLOAT}
    assert types_of(half, "Gemm") == {TensorProto.FLOAT}
    assert list(half.graph.output) == list(graph.graph.output)
    assert error(run(half, batch(graph)), run(graph, batch(graph))) <= MOST_HALF_DIFFERENCE


def test_converted_first_attention_and_gelu_are_left(graph: ModelProto) -> None:
    half = convert_fp16(graph).model
    result = fuse_for_cuda(half)
    found = kinds(result.model)
    assert (found["Attention"], found["Softmax"], found["BiasGelu"]) == (0, 2, 0)
    assert result.notes[1] == LEFT.format(2)
    assert error(run(result.model, batch(graph)), run(graph, batch(graph))) <= MOST_HALF_DIFFERENCE


def test_the_last_layer_of_one_row_comes_out_right_in_float16(graph: ModelProto) -> None:
    half = convert_fp16(fuse_for_cuda(keep_first_row(graph).model).model).model
    assert types_of(half, "Softmax") == {TensorProto.FLOAT}
    assert error(run(half, batch(graph)), run(graph, batch(graph))) <= MOST_HALF_DIFFERENCE


# What it stays out of


def test_a_quantized_graph_is_left_as_it_is(tiny_graph: ModelProto) -> None:
    quantized = quantize_int8_dynamic(tiny_graph).model
    result = fuse_for_cuda(quantized)
    assert not result.changed
    assert result.notes[0].startswith("not applicable: the model is already quantized")
    assert result.model == quantized


def test_a_graph_that_is_fused_for_the_cpu_is_left_as_it_is(tiny_graph: ModelProto) -> None:
    for_cpu = fuse_for_cpu(tiny_graph).model
    result = fuse_for_cuda(for_cpu)
    assert not result.changed
    assert result.notes[0].startswith("not applicable: the graph is fused already")
    assert result.model == for_cpu


def test_an_opset_without_layer_normalization_is_left_as_it_is(tiny_graph: ModelProto) -> None:
    older = ModelProto()
    older.CopyFrom(tiny_graph)
    older.opset_import[0].version = 16
    assert fuse_for_cuda(older).notes == ("not applicable: the graph's opset is 16; 17 or later is needed",)
    assert fuse_for_cuda(convert_version(tiny_graph, 17)).changed


def test_a_graph_without_anything_to_fuse_is_left_as_it_is() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[b, s] x) => (float[b, s] y) { h = Identity(x)  y = Tanh(h) }'
    )
    result = fuse_for_cuda(model)
    assert not result.changed
    assert result.notes == ("not applicable: no pattern matches",)
    assert result.model == model


def test_an_epsilon_that_is_left_out_is_the_standard_one(tiny_graph: ModelProto) -> None:
    model = ModelProto()
    model.CopyFrom(tiny_graph)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            kept = [entry for entry in node.attribute if entry.name != "epsilon"]
            del node.attribute[:]
            node.attribute.extend(kept)
    fused = fuse_for_cuda(model).model
    epsilons = [a.f for node in fused.graph.node for a in node.attribute if a.name == "epsilon"]
    assert epsilons == pytest.approx([1e-5] * 5)
