"""ONNX to a strongly typed network: every tensor has the type that the graph gives it, and the compiler chooses none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from crossforge.export.tensorrt.monitor import describe_failure
from crossforge.profiles import EngineTensor, InputError

_STANDARD_DOMAINS = ("", "ai.onnx")
_DTYPES = {"INT64": "int64", "INT32": "int32", "FLOAT": "float32", "HALF": "float16"}


def refuse_foreign_operators(path: Path) -> None:
    """Make sure that a graph holds standard operators only.

    Raises:
        InputError: It holds others, as ONNX Runtime's fusions leave behind.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in _STANDARD_DOMAINS})
    if foreign:
        raise InputError(
            f"{path.name} holds operators that only ONNX Runtime has",
            got=", ".join(foreign),
            allowed="standard ONNX operators",
            fix="Export the bundle again; crossforge writes fp16 and int8_qdq without such operators.",
        )


def parse_network(trt: Any, builder: Any, log: Any, path: Path, *, labels: int) -> Any:
    """Read a graph, with its external data where it has some.

    Args:
        trt: The compiler's package.
        builder: Its builder.
        log: As :func:`~crossforge.export.tensorrt.monitor.make_logger` makes it.
        path: The ONNX file.
        labels: Columns that the logits must have.

    Raises:
        EngineError: The compiler cannot read it.
        InputError: It is not a reranker with dynamic shapes.
    """
    # Ignored from TensorRT 11 on, where networks are always strongly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(i) for i in range(min(3, parser.num_errors))]
        messages = [f"{error.node_operator() or 'graph'} {error.node_name()}: {error.desc()}" for error in errors]
        raise describe_failure(f"the compiler cannot read {path.name}", messages)
    _check(network, path, labels)
    return network


def inputs_of(network: Any) -> tuple[EngineTensor, ...]:
    """A network's inputs, in its order."""
    return tuple(_describe(network.get_input(i)) for i in range(network.num_inputs))


def outputs_of(network: Any) -> tuple[EngineTensor, ...]:
    """A network's outputs, in its order."""
    return tuple(_describe(network.get_output(i)) for i in range(network.num_outputs))


def _check(network: Any, path: Path, labels: int) -> None:
    for tensor in inputs_of(network):
        if tensor.shape != (-1, -1):
            raise InputError(
                f"{path.name}: the input {tensor.name} has a fixed shape",
                got=list(tensor.shape),
                allowed="[batch, sequence]",
            )
    shapes = [tensor.shape for tensor in outputs_of(network)]
    if shapes not in ([(-1, labels)], [(-1, -1)]):
        raise InputError(f"{path.name} is not this bundle's reranker", got=f"outputs {shapes}", allowed=f"[batch, {labels}]")


def _describe(tensor: Any) -> EngineTensor:
    dtype = tensor.dtype.name
    return EngineTensor(name=tensor.name, dtype=_DTYPES.get(dtype, dtype.lower()), shape=tuple(tensor.shape))
