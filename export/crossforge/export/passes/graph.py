"""Reading a graph: who makes a tensor, which values are constant, and of what size and type a tensor is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

PROBES = ((3, 17), (5, 19))
"""Batch sizes and sequence lengths at which :func:`probe_shapes` asks for every shape. The lengths fit any model."""
ONE = (1,) * len(PROBES)
"""A dimension of one row, whatever the inputs' sizes."""
MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
FUSED = frozenset({"Attention", "BiasGelu", "FastGelu", "Gelu", "MultiHeadAttention", "SkipLayerNormalization"})
"""Operators of that domain that hold several standard ones. Their outputs have the shape and type of their first input."""
_SMALL_ELEMENTS = 1024
"""Tensors up to this size may be shapes and axes, whose values shape inference reads."""

Dimension = tuple[int, ...]
"""A dimension's size at each probe: equal sizes are a fixed dimension, equal tuples are the same dimension."""
Shape = tuple[Dimension | None, ...]
"""A dimension that shape inference did not find out is None."""


def probe_shapes(model: ModelProto) -> dict[str, Shape]:
    """Shapes by tensor name, for the tensors whose rank shape inference finds out.

    Symbolic inference loses the batch's name at every broadcast, so it cannot tell whether a ``Reshape`` keeps it. Numbers
    do not get lost: the graph is inferred at two pairs of sizes, and what moves with the batch is the batch.
    """
    probes = [_probe(model, batch, sequence) for batch, sequence in PROBES]
    common = set.intersection(*(set(probe) for probe in probes))
    return {name: _merge([probe[name] for probe in probes]) for name in common if _agree(probe[name] for probe in probes)}


def find_ranks(model: ModelProto) -> dict[str, int]:
    """Number of axes by tensor name, for the tensors where shape inference finds it out."""
    known = (value for value in _infer(model) if value.type.tensor_type.HasField("shape"))
    return {value.name: len(value.type.tensor_type.shape.dim) for value in known}


def find_types(model: ModelProto) -> dict[str, int]:
    """Element types by tensor name, for the tensors where type inference finds it out."""
    return {value.name: value.type.tensor_type.elem_type for value in _infer(model)}


def foreign_operators(model: ModelProto) -> set[str]:
    """Operators that are not standard ONNX, as ``domain.operator``."""
    return {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}


def integer_constants(graph: GraphProto) -> dict[str, NDArray[np.int64]]:
    """Values of small integer tensors (indices, axes, target shapes) that no caller can override."""
    overridable = {value.name for value in graph.input}
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in overridable}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: numpy_helper.to_array(tensor).astype(np.int64)
        for name, tensor in tensors.items()
        if tensor.data_type in (TensorProto.INT64, TensorProto.INT32) and _elements(tensor) <= _SMALL_ELEMENTS
    }


def producers_of(nodes: Iterable[NodeProto]) -> Mapping[str, int]:
    """The position of the node that makes a tensor, by the tensor's name."""
    return {output: position for position, node in enumerate(nodes) for output in node.output if output}


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, or the default where it is left out."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def names_read(node: NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those inside the branches of an ``If`` included."""
    yield from (name for name in node.input if name)
    for entry in node.attribute:
        for inner in entry.g.node:
            yield from names_read(inner)
        yield from (output.name for output in entry.g.output)


def _probe(model: ModelProto, batch: int, sequence: int) -> dict[str, tuple[int | None, ...]]:
    """Shapes at one size of the inputs."""
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in _infer(model, (batch, sequence))
        if value.type.tensor_type.HasField("shape")
    }


def _infer(model: ModelProto, sizes: tuple[int, int] | None = None) -> list[ValueInfoProto]:
    """Types and shapes, at one batch size and sequence length or as they are declared.

    Inference refuses a message of 2 GB, so large weights go without content.
    """
    light = ModelProto()
    for entry in model.opset_import:
        # Inference reads target shapes from 14 on. What 14 changed since 13 is which types operators take.
        light.opset_import.append(helper.make_opsetid(entry.domain, 14 if entry.version == 13 else entry.version))
    light.ir_version = model.ir_version
    light.graph.name = model.graph.name
    for node in model.graph.node:
        light.graph.node.extend([node] if node.domain != MICROSOFT else _stand_ins(node))
    for value in model.graph.output:
        light.graph.output.append(value)
        if sizes:  # the declared shape is of others
            light.graph.output[-1].type.tensor_type.ClearField("shape")
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in weights:
            light.graph.input.append(value)
            for axis, dimension in enumerate(light.graph.input[-1].type.tensor_type.shape.dim):
                if sizes and not dimension.HasField("dim_value"):
                    dimension.dim_value = sizes[min(axis, 1)]
    for tensor in model.graph.initializer:
        light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        if _elements(tensor) <= _SMALL_ELEMENTS:
            light.graph.initializer.append(tensor)
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return [*inferred.value_info, *inferred.input, *inferred.output]


def _stand_ins(node: NodeProto) -> list[NodeProto]:
    """Standard operators with the outputs of a node that inference does not know."""
    if node.op_type not in FUSED:
        return [node]
    return [helper.make_node("Identity", node.input[:1], [output]) for output in node.output if output]


def _agree(shapes: Iterable[tuple[int | None, ...]]) -> bool:
    return len({len(shape) for shape in shapes}) == 1


def _merge(shapes: list[tuple[int | None, ...]]) -> Shape:
    return tuple(
        None if None in sizes else tuple(size for size in sizes if size is not None) for sizes in zip(*shapes, strict=True)
    )


def _elements(tensor: TensorProto) -> int:
    count = 1
    for dimension in tensor.dims:
        count *= dimension
    return count
