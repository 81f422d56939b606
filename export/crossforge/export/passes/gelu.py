"""Finding GELU in a graph, however it was written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

MINIMUM = -0.17005
"""Just below the smallest value that GELU takes (about -0.16997 in its exact form, -0.17004 in the tanh form)."""
_SINGLE_OPERATORS = frozenset({"Gelu", "BiasGelu", "FastGelu"})


def find_gelu_outputs(model: ModelProto) -> set[str]:
    """Names of the tensors that GELU produced: a single operator, or ``0.5 * x * (1 + erf(x / sqrt 2))`` spelled out."""
    return {steps[0].output[0] for steps in _find_gelus(model)}


def find_spelled_out_gelu(model: ModelProto) -> set[str]:
    """Names of the tensors that the steps of a spelled-out GELU produce, its output among them."""
    return {step.output[0] for steps in _find_gelus(model) if len(steps) > 1 for step in steps}


def _find_gelus(model: ModelProto) -> Iterator[tuple[NodeProto, ...]]:
    """The nodes of each GELU, last one first."""
    producers = {output: node for node in model.graph.node for output in node.output}
    constants = _scalar_constants(model)
    for node in model.graph.node:
        if steps := _match(node, producers, constants):
            yield steps


def _match(node: NodeProto, producers: Mapping[str, NodeProto], constants: Mapping[str, float]) -> tuple[NodeProto, ...]:
    if node.op_type in _SINGLE_OPERATORS:
        return (node,)
    # torch writes ((x * (1 + erf(x / sqrt 2))) * 0.5)
    scaled = _other_factor(node, 0.5, constants)
    product = producers.get(scaled or "")
    if product is None or product.op_type != "Mul":
        return ()
    for x, gate in (tuple(product.input), tuple(reversed(product.input))):
        plus_one = producers.get(gate)
        if plus_one is None or plus_one.op_type != "Add":
            continue
        erf = producers.get(_other_operand(plus_one, 1.0, constants) or "")
        if erf is None or erf.op_type != "Erf":
            continue
        argument = producers.get(erf.input[0])
        if argument is not None and argument.op_type in ("Div", "Mul") and argument.input[0] == x:
            divisor = constants.get(argument.input[1], 0.0)
            expected = np.sqrt(2) if argument.op_type == "Div" else 1 / np.sqrt(2)
            return (node, product, plus_one, erf, argument) if np.isclose(divisor, expected, rtol=1e-4) else ()
    return ()


def _other_factor(node: NodeProto, value: float, constants: Mapping[str, float]) -> str | None:
    return _other_operand(node, value, constants) if node.op_type == "Mul" else None


def _other_operand(node: NodeProto, value: float, constants: Mapping[str, float]) -> str | None:
    """The input of a two-input node beside a constant of the given value."""
    for constant, other in (tuple(node.input), tuple(reversed(node.input))):
        if constants.get(constant) == value:
            return str(other)
    return None


def _scalar_constants(model: ModelProto) -> dict[str, float]:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    values = {}
    for name, tensor in tensors.items():
        if list(tensor.dims) in ([], [1]):
            values[name] = float(numpy_helper.to_array(tensor).reshape(-1)[0])
    return values
