"""Shapes that are known are not computed.

An exporter spells a reshape from [batch, sequence, hidden] to heads as arithmetic on sizes that it reads from a tensor, a
dozen small nodes a layer. ``Reshape`` copies a size by itself where the target says 0, and works one out where it says -1,
so most of these targets are constants. What nothing reads any more goes, and an engine has fewer nodes to load and to run.

Requires: a float graph of standard operators, opset 13 or later.
Ensures: same inputs and outputs, same logits up to float rounding (an engine may fuse what has become constant); tensors
    that stay keep their names, ranks and types; a second run changes nothing. Graphs that it does not apply to come back
    unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from crossforge.export.passes.graph import Shape, attribute, integer_constants, names_read, probe_shapes
from crossforge.export.passes.requirements import why_not_plain
from crossforge.export.passes.result import PassResult

_OLDEST_OPSET = 13
_COPY, _REST = 0, -1
"""What ``Reshape`` reads in the place of a size."""
_UNKNOWN = -1
"""Stands for a size that depends on the inputs' sizes."""

Sizes = NDArray[np.int64]


def settle_shapes(model: ModelProto) -> PassResult:
    """Give reshapes constant targets, as far as shape inference tells them, and drop what computed them.

    Args:
        model: A float reranker; not changed.

    Returns:
        The rewritten model. Where there is nothing to do it is a plain copy, ``changed`` is False and the note says why.
    """
    result = ModelProto()
    result.CopyFrom(model)
    obstacle = why_not_plain(model, oldest_opset=_OLDEST_OPSET)
    if obstacle is not None:
        return PassResult(model=result, changed=False, notes=(f"not applicable: {obstacle}",))
    shapes, constants = probe_shapes(model), integer_constants(model.graph)
    sizes = _settled_sizes(model, shapes, constants)
    settled: dict[str, Sizes] = {}
    reshapes = 0
    for node in result.graph.node:
        for position, name in enumerate(node.input):
            if name in sizes:
                node.input[position] = f"{name}_settled"
                settled[node.input[position]] = sizes[name]
        if node.op_type == "Reshape" and node.input[1] not in constants:
            target = _target(shapes.get(node.input[0]), shapes.get(node.output[0]))
            if target is not None:
                node.input[1] = "reshape_to_" + "_".join("rest" if size == _REST else str(size) for size in target)
                settled[node.input[1]] = np.asarray(target, dtype=np.int64)
                del node.attribute[:]  # without "allowzero", 0 copies a dimension
                reshapes += 1
    if not settled:
        return PassResult(model=result, changed=False, notes=("already done: every target that can be settled is",))
    there = {tensor.name for tensor in result.graph.initializer}
    result.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in settled.items() if name not in there
    )
    _drop_unread(result)
    dropped = len(model.graph.node) - len(result.graph.node)
    return PassResult(
        model=result, changed=True, notes=(f"{reshapes} reshapes have constant targets, {dropped} nodes are gone",)
    )


def _target(before: Shape | None, after: Shape | None) -> list[int] | None:
    """What a reshape between two shapes can be told instead of its sizes; None where more than one size stays open."""
    if before is None or after is None:
        return None
    target = []
    for axis, dimension in enumerate(after):
        if dimension is None:
            return None
        if len(set(dimension)) == 1:
            target.append(dimension[0])
        else:
            target.append(_COPY if before[axis : axis + 1] == (dimension,) else _REST)
    return target if target.count(_REST) <= 1 else None


def _settled_sizes(model: ModelProto, shapes: Mapping[str, Shape], constants: Mapping[str, Sizes]) -> dict[str, Sizes]:
    """What arithmetic on shapes gives, by tensor name, where it is the same whatever the inputs' sizes."""
    sizes: dict[str, Sizes] = {}
    for node in model.graph.node:
        if (value := _evaluate(node, shapes, sizes, constants)) is not None:
            sizes[node.output[0]] = value
    return {name: value for name, value in sizes.items() if (value != _UNKNOWN).all()}


def _evaluate(
    node: NodeProto, shapes: Mapping[str, Shape], sizes: Mapping[str, Sizes], constants: Mapping[str, Sizes]
) -> Sizes | None:
    """What a node makes of sizes, with those that depend on the inputs' marked as unknown; None of anything else."""
    if node.op_type == "Shape":
        return _read_shape(node, shapes.get(node.input[0]))
    if node.op_type == "Concat":
        parts = [sizes.get(name, constants.get(name)) for name in node.input]
        known = [part for part in parts if part is not None and part.ndim == 1]
        return np.concatenate(known) if len(known) == len(parts) and not sizes.keys().isdisjoint(node.input) else None
    if not node.input or node.input[0] not in sizes or any(name not in constants for name in node.input[1:] if name):
        return None
    data, options = sizes[node.input[0]], [constants[name] for name in node.input[1:] if name]
    if node.op_type == "Gather" and data.ndim == 1:
        return np.asarray(data[options[0]], dtype=np.int64)
    if node.op_type == "Slice" and data.ndim == 1 and all(option.shape == (1,) for option in options):
        start, end, _axis, step = (*(int(option[0]) for option in options), *(0, 1)[len(options) - 2 :])
        return data[start:end:step]
    if node.op_type == "Unsqueeze" and data.ndim == 0:
        return data.reshape(1)
    if node.op_type == "Squeeze" and data.shape == (1,):
        return data.reshape(())
    return None


def _read_shape(node: NodeProto, shape: Shape | None) -> Sizes | None:
    if shape is None:
        return None
    sizes = [_UNKNOWN if dimension is None or len(set(dimension)) > 1 else dimension[0] for dimension in shape]
    return np.asarray(sizes[attribute(node, "start", 0) : attribute(node, "end", None)], dtype=np.int64)


def _drop_unread(model: ModelProto) -> None:
    """Drop nodes and weights that no output depends on."""
    graph = model.graph
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(output in read for output in node.output):
            kept.append(node)
            read.update(names_read(node))
    kept.reverse()
    nodes = [*kept]
    del graph.node[:]
    graph.node.extend(nodes)
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    left = [value for value in graph.value_info if value.name in {output for node in nodes for output in node.output}]
    del graph.value_info[:]
    graph.value_info.extend(left)
