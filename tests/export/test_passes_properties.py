"""What every pass promises, held on exported models of several architectures.

A new pass gets a row in :data:`PASSES`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from crossforge.export.calibration import ActivationStatistics, collect_statistics
from crossforge.export.onnx import export_onnx
from crossforge.export.passes import (
    PassResult,
    convert_fp16,
    fuse_for_cpu,
    fuse_for_cuda,
    keep_first_row,
    quantize_int8_dynamic,
    quantize_int8_static,
    settle_shapes,
    smooth,
    trim_vocabulary,
)
from crossforge.export.passes.graph import ONE, find_types, integer_constants, probe_shapes
from crossforge.export.passes.int8_static import ActivationType
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.passes.trim_vocabulary import TrimResult
from crossforge.export.ranges import ActivationRange, collect_ranges
from crossforge.export.source import load_source
from crossforge.profiles import InputError
from crossforge.profiles.precision import EXACT_INT8_INSTRUCTION_SETS
from crossforge.runtime.machine import inspect_machine
from support.onnx_sessions import open_session
from support.tiny_models import MAX_LENGTH, VOCABULARY, save_tiny_model

Array = NDArray[Any]
ARCHITECTURES = ("bert", "roberta", "deberta-v2", "modernbert")
CORPUS = ("How long does a blue whale live?", "Whales are mammals that live in the ocean and breathe air.")
HALF_TYPES = {int(TensorProto.FLOAT), int(TensorProto.FLOAT16)}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An exported reranker, with what passes want besides the graph."""

    graph: ModelProto
    tokenizer_json: str

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        return open_session(self.graph)

    @cached_property
    def statistics(self) -> Mapping[str, ActivationStatistics]:
        widths = {product.activation: product.width for product in find_encoder_products(self.graph)}
        (statistics,) = collect_statistics(self.graph, widths, [draw_batch(self.graph, seed=1)])
        return statistics

    @cached_property
    def ranges(self) -> Mapping[str, ActivationRange]:
        names = [product.activation for product in find_encoder_products(self.graph)]
        return collect_ranges(self.graph, names, [draw_batch(self.graph, rows=32, seed=1)]) if names else {}

    @cached_property
    def spread(self) -> float:
        """How far logits lie apart."""
        return float(np.ptp(self.session.run(None, draw_batch(self.graph, rows=32, seed=2))[0]))


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass, and what it promises of its own."""

    apply: Callable[[ModelProto, Subject], PassResult]
    tolerance: float
    """Largest difference of a logit, as a share of how far logits lie apart."""
    claim: Callable[[ModelProto, ModelProto], str]
    """What its notes must say, counted in the graphs before and after."""
    quantizes: bool = False
    """Whether it refuses its own result, and needs a processor whose integer products are exact."""


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def one_row_claim(_before: ModelProto, after: ModelProto) -> str:
    shapes = probe_shapes(after)
    weights = {tensor.name for tensor in after.graph.initializer}
    linear = [node for node in after.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    return f"{sum(ONE in shapes[node.output[0]][1:2] for node in linear)} linear layers and "


def settled_claim(before: ModelProto, after: ModelProto) -> str:
    def constant_targets(model: ModelProto) -> int:
        constants = integer_constants(model.graph)
        return sum(node.op_type == "Reshape" and node.input[1] in constants for node in model.graph.node)

    gone = len(before.graph.node) - len(after.graph.node)
    return f"{constant_targets(after) - constant_targets(before)} reshapes have constant targets, {gone} nodes are gone"


def fused_for_cuda_claim(_before: ModelProto, after: ModelProto) -> str:
    counts = Counter(node.op_type for node in after.graph.node if node.domain)
    return "fused: " + ", ".join(f"{count} {op_type}" for op_type, count in sorted(counts.items()))


def casts_claim(_before: ModelProto, after: ModelProto) -> str:
    types = find_types(after)
    casts = [node for node in after.graph.node if node.op_type == "Cast"]
    return f"{sum({types[node.input[0]], types[node.output[0]]} == HALF_TYPES for node in casts)} casts between them"


def int8_claim(_before: ModelProto, after: ModelProto) -> str:
    rows = sum(tensor.name.endswith("_rows_int8") for tensor in after.graph.initializer)
    found = kinds(after)
    products, tokens = found["MatMulIntegerToFloat"], found["QuantizeLinear"]
    return f"{products} matrix products and {rows} lookup tables quantized to int8, {tokens} activation tensors"


def static_claim(_before: ModelProto, after: ModelProto) -> str:
    rows = sum(tensor.name.endswith("_rows_int8") for tensor in after.graph.initializer)
    restored = {node.output[0] for node in after.graph.node if node.op_type == "DequantizeLinear"}
    products = sum(node.op_type == "MatMul" and set(node.input) <= restored for node in after.graph.node)
    tokens = kinds(after)["QuantizeLinear"]
    return f"{products} matrix products and {rows} lookup tables quantized to int8, {tokens} activation tensors to "


def quantize_static(model: ModelProto, subject: Subject, activations: ActivationType) -> PassResult:
    return quantize_int8_static(model, subject.ranges, activations=activations)


def trimmed_claim(before: ModelProto, after: ModelProto) -> str:
    rows = {tensor.name: tensor.dims[0] for tensor in after.graph.initializer if len(tensor.dims) == 2}
    removed = {tensor.dims[0] - rows[tensor.name] for tensor in before.graph.initializer if tensor.name in rows} - {0}
    return f"{removed.pop()} of {VOCABULARY} tokens removed"


PASSES: Mapping[str, Pass] = {
    "keep_first_row": Pass(apply=lambda model, _: keep_first_row(model), tolerance=1e-5, claim=one_row_claim),
    "settle_shapes": Pass(apply=lambda model, _: settle_shapes(model), tolerance=1e-5, claim=settled_claim),
    "fuse_for_cpu": Pass(
        apply=lambda model, _: fuse_for_cpu(model),
        tolerance=1e-5,
        claim=lambda before, after: f"{len(before.graph.node)} nodes fused to {len(after.graph.node)}",
    ),
    "fuse_for_cuda": Pass(apply=lambda model, _: fuse_for_cuda(model), tolerance=1e-5, claim=fused_for_cuda_claim),
    "convert_fp16": Pass(apply=lambda model, _: convert_fp16(model), tolerance=1e-2, claim=casts_claim),
    "smooth": Pass(
        apply=lambda model, subject: smooth(model, subject.statistics),
        tolerance=1e-5,
        claim=lambda before, after: f"{len(after.graph.node) - len(before.graph.node)} LayerNorm outputs smoothed",
    ),
    "quantize_int8_dynamic": Pass(
        apply=lambda model, _: quantize_int8_dynamic(model), tolerance=0.15, claim=int8_claim, quantizes=True
    ),
    "quantize_int8_static, unsigned": Pass(
        apply=partial(quantize_static, activations=ActivationType.UINT8), tolerance=0.2, claim=static_claim, quantizes=True
    ),
    "quantize_int8_static, signed": Pass(
        apply=partial(quantize_static, activations=ActivationType.INT8), tolerance=0.2, claim=static_claim, quantizes=True
    ),
    "trim_vocabulary": Pass(
        apply=lambda model, subject: trim_vocabulary(model, subject.tokenizer_json, CORPUS),
        tolerance=1e-6,
        claim=trimmed_claim,
    ),
}
NOTHING_TO_DO = {("keep_first_row", "modernbert")}
"""Passes that do not apply to an architecture: its head pools all rows."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """A pass that ran on a subject."""

    name: str
    architecture: str
    subject: Subject
    before: bytes
    """The graph as it was before the pass."""
    result: PassResult

    @property
    def rules(self) -> Pass:
        return PASSES[self.name]

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        return open_session(self.result.model)

    def again(self) -> PassResult:
        """The pass, applied to its own result."""
        trimmed = self.result.tokenizer_json if isinstance(self.result, TrimResult) else self.subject.tokenizer_json
        return self.rules.apply(self.result.model, Subject(graph=self.subject.graph, tokenizer_json=trimmed))

    def renumber(self, batch: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """A batch for the graph before, and the same for the graph after; only of tokens that both know."""
        if not isinstance(self.result, TrimResult):
            return dict(batch), dict(batch)
        kept = np.flatnonzero(self.result.new_ids >= 0)
        ids = kept[batch["input_ids"] % len(kept)]
        return {**batch, "input_ids": ids}, {**batch, "input_ids": self.result.new_ids[ids]}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    """Those made so far: pytest comes back to an architecture with every pass."""
    return {}


@pytest.fixture(scope="module")
def subject(architecture: str, subjects: dict[str, Subject], tmp_path_factory: pytest.TempPathFactory) -> Subject:
    if architecture not in subjects:
        folder = save_tiny_model(tmp_path_factory.mktemp(architecture) / "checkpoint", architecture)
        graph = export_onnx(load_source(str(folder)).model)
        subjects[architecture] = Subject(graph=graph, tokenizer_json=(folder / "tokenizer.json").read_text())
    return subjects[architecture]


@pytest.fixture(scope="module", params=PASSES)
def applied(request: pytest.FixtureRequest, architecture: str, subject: Subject) -> Applied:
    before = serialized(subject.graph)
    result = PASSES[request.param].apply(subject.graph, subject)
    return Applied(name=request.param, architecture=architecture, subject=subject, before=before, result=result)


def serialized(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def draw_batch(model: ModelProto, *, rows: int = 4, tokens: int = 31, seed: int = 0) -> dict[str, Array]:
    """Random ids of the whole vocabulary, each row padded on the right by another length: int64 [rows, tokens]."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(tokens) < rng.integers(1, tokens + 1, size=(rows, 1))).astype(np.int64)
    inputs = {
        "input_ids": rng.integers(0, VOCABULARY, size=(rows, tokens)),
        "attention_mask": mask,
        "token_type_ids": mask * rng.integers(0, 2, size=(rows, tokens)),
    }
    return {value.name: inputs[value.name] for value in model.graph.input}


def interface(model: ModelProto) -> list[tuple[str, int, int]]:
    """Names, element types and ranks of a model's inputs and outputs."""
    types = [(value.name, value.type.tensor_type) for value in (*model.graph.input, *model.graph.output)]
    return [(name, kind.elem_type, len(kind.shape.dim)) for name, kind in types]


def test_inputs_and_outputs_keep_names_types_and_ranks(applied: Applied) -> None:
    assert interface(applied.result.model) == interface(applied.subject.graph)


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 5), tokens=st.integers(1, MAX_LENGTH), seed=st.integers(0, 2**32 - 1))
def test_scores_stay_the_same_at_any_shape(applied: Applied, rows: int, tokens: int, seed: int) -> None:
    if applied.rules.quantizes and not set(EXACT_INT8_INSTRUCTION_SETS) & set(inspect_machine().instruction_sets):
        pytest.skip("this processor's integer products saturate")
    old, new = applied.renumber(draw_batch(applied.subject.graph, rows=rows, tokens=tokens, seed=seed))
    (expected,), (scores,) = applied.subject.session.run(None, old), applied.session.run(None, new)
    assert scores.shape == expected.shape == (rows, 1)
    assert np.abs(scores - expected).max() <= applied.rules.tolerance * applied.subject.spread


def test_the_input_is_left_as_it_was(applied: Applied) -> None:
    assert serialized(applied.subject.graph) == applied.before
    assert applied.result.model is not applied.subject.graph


def test_a_second_run_changes_nothing(applied: Applied) -> None:
    before = serialized(applied.result.model)
    if applied.rules.quantizes:
        with pytest.raises(InputError, match="already quantized"):
            applied.again()
    else:
        again = applied.again()
        assert not again.changed
        assert serialized(again.model) == before
        assert again.notes
    assert serialized(applied.result.model) == before


def test_changed_says_whether_the_graph_differs(applied: Applied) -> None:
    assert applied.result.changed is (serialized(applied.result.model) != applied.before)
    assert applied.result.changed is ((applied.name, applied.architecture) not in NOTHING_TO_DO)


def test_the_notes_say_what_was_done(applied: Applied) -> None:
    if applied.result.changed:
        claim = applied.rules.claim(applied.subject.graph, applied.result.model)
        assert claim in "; ".join(applied.result.notes)
        assert re.search("[1-9]", claim), "nothing was counted"
    else:
        assert re.match("not applicable: |already done: ", applied.result.notes[0])


@pytest.mark.parametrize("name", sorted(PASSES.keys() - {"trim_vocabulary"}))  # which refuses a graph without token ids
def test_a_graph_without_anything_to_do_comes_back_as_a_copy(name: str) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[b, s, 8] x) => (float[b, s, 8] y) { y = Tanh(x) }'
    )
    subject = Subject(graph=model, tokenizer_json="")
    vars(subject)["statistics"] = {}
    result = PASSES[name].apply(model, subject)
    assert not result.changed
    assert result.model is not model
    assert serialized(result.model) == serialized(model)
