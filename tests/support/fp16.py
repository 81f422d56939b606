"""Graphs in two precisions: made of text, run, and looked into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from crossforge.runtime.batching import Batch
from support.onnx_sessions import open_session

Array = NDArray[Any]
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
MOST_DIFFERENCE = 5e-3
"""Of a logit, as a share of how far logits lie apart."""
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(50, 16)).astype(np.float32)
WEIGHT = RNG.normal(size=(16, 16)).astype(np.float32)
IDS = RNG.integers(0, 50, size=(3, 7))
LOOKUP = "g (int64[b, s] ids) => (float[b, s, 16] y) { x = Gather(table, ids) "
"""The start of a graph that looks tokens up."""


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
    session = open_session(model)
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
