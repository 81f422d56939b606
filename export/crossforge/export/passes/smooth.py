"""Moving outliers from activations, where they cost every token its precision, into weights, where they cost little.

A channel of a LayerNorm's output that is fifteen times as large as the others leaves them a fifteenth of the int8 range.
The activation is divided by one scale a channel and the weights that read it are multiplied by it, which changes nothing
in exact arithmetic. The balance between the two follows SmoothQuant (Xiao et al., 2022, arXiv:2211.10438).

Requires: a float32 graph; statistics of the activations.
Ensures: same inputs and outputs; same logits up to float32 rounding; one ``Mul`` more for each smoothed activation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from crossforge.export.calibration import ActivationStatistics
from crossforge.export.passes.products import EncoderProduct, find_encoder_products
from crossforge.export.passes.result import PassResult

MIGRATION = 0.65
"""How much of a channel's size moves into the weights: 0 none, 1 all. Chosen on the demo model (docs/int8.md)."""
_SMALLEST = 1e-3
_SUFFIX = "_smoothed"
_SELECTIONS = frozenset({"Gather", "Slice"})
"""Operators by which the last layer, cut to one row, reads its input."""


@dataclass(frozen=True, kw_only=True)
class SmoothResult(PassResult):
    """A smoothed model, and what each activation was divided by."""

    scales: dict[str, NDArray[np.float64]]
    """One scale a channel, by the name of the new activation."""
    sources: dict[str, str]
    """The activation that each new one was made of."""


def smooth(
    model: ModelProto, statistics: Mapping[str, ActivationStatistics], *, migration: float = MIGRATION
) -> SmoothResult:
    """Smooth the outputs of LayerNorms that feed encoder products.

    Args:
        model: A float32 reranker; not changed.
        statistics: Of the activations that may be smoothed, by name.
        migration: The balance between activations (0) and weights (1).
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[EncoderProduct]] = {}
    for product in find_encoder_products(result):
        if product.activation in statistics and _is_normalized(product.activation, producers):
            readers.setdefault(product.activation, []).append(product)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    scales: dict[str, NDArray[np.float64]] = {}
    sources: dict[str, str] = {}
    divisions: dict[str, NodeProto] = {}
    for activation, products in readers.items():
        names = [product.weight for product in products]
        if any(_reads(graph.node, name) > 1 for name in names):
            continue  # the weight is shared with a reader of another activation
        matrices = [numpy_helper.to_array(weights[name]) for name in names]
        scale = _balance(statistics[activation].largest, matrices, migration)
        for name, matrix in zip(names, matrices, strict=True):
            weights[name].CopyFrom(numpy_helper.from_array((matrix * scale[:, None]).astype(np.float32), name))
        smoothed, divisor = activation + _SUFFIX, activation + _SUFFIX + "_scale"
        graph.initializer.append(numpy_helper.from_array((1 / scale).astype(np.float32), divisor))
        divisions[activation] = helper.make_node("Mul", [activation, divisor], [smoothed], name=smoothed)
        for product in products:
            product.node.input[0] = smoothed
        scales[smoothed] = scale
        sources[smoothed] = activation
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        nodes.extend(divisions[output] for output in node.output if output in divisions)
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return SmoothResult(
        model=result,
        changed=bool(scales),
        notes=(f"{len(scales)} LayerNorm outputs smoothed",),
        scales=scales,
        sources=sources,
    )


def _is_normalized(activation: str, producers: Mapping[str, NodeProto]) -> bool:
    """Whether an activation is a LayerNorm's output, or the first row of one."""
    producer = producers.get(activation)
    if producer is not None and producer.op_type in _SELECTIONS:
        producer = producers.get(producer.input[0])
    return producer is not None and producer.op_type == "LayerNormalization"


def _balance(largest: NDArray[np.float64], weights: list[NDArray[np.float32]], migration: float) -> NDArray[np.float64]:
    """One scale a channel, of geometric mean 1: [hidden]."""
    strongest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    scale = np.maximum(largest, _SMALLEST) ** migration / np.maximum(strongest, _SMALLEST) ** (1 - migration)
    balanced: NDArray[np.float64] = scale / np.exp(np.log(scale).mean())
    return balanced


def _reads(nodes: Iterable[NodeProto], name: str) -> int:
    return sum(list(node.input).count(name) for node in nodes)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
