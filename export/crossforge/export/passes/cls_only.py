"""The last layer for one row: what the head does not read is not computed.

A cross-encoder's head reads one row of the last hidden state, that of the first token. The last layer therefore needs keys
and values of all rows, but the query, the attention's output and the whole feed-forward network of the first row alone.
No engine finds that out by itself.

The graph is swept once, from its outputs to its inputs. A tensor of which only the first row is read is computed for that
row alone, if the operator that makes it works on rows one by one; else it is computed whole and sliced. So every step is
exact by itself, and what the sweep cannot carry a row through only ends the saving there.

Requires: a float graph of standard operators, opset 13 or later, whose head selects row 0 of the hidden state
    [batch, sequence, hidden].
Ensures: same inputs and outputs, same logits up to float rounding; tensors keep their names and ranks; the hidden state that
    the head reads is [batch, 1, hidden]; a second run changes nothing. Graphs that it does not apply to come back unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from crossforge.export.passes.graph import (
    ONE,
    Dimension,
    Shape,
    attribute,
    integer_constants,
    names_read,
    probe_shapes,
    producers_of,
)
from crossforge.export.passes.requirements import why_not_plain
from crossforge.export.passes.result import PassResult

_SUFFIX = "_first_row"
_OLDEST_OPSET = 13
_ELEMENTWISE = frozenset((
    "Abs", "Add", "And", "Cast", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Gelu", "Greater", "GreaterOrEqual",
    "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow",
    "Reciprocal", "Relu", "Sigmoid", "Sin", "Softplus", "Sqrt", "Sub", "Tanh", "Where",
))  # fmt: skip
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"})


def keep_first_row(model: ModelProto) -> PassResult:
    """Compute the last layer for the first row alone, as far as the graph allows it.

    Args:
        model: A float reranker; not changed.

    Returns:
        The rewritten model. Where there is nothing to do it is a plain copy, ``changed`` is False and the first note says
        why: "already done: ..." or "not applicable: ...".
    """
    result = ModelProto()
    result.CopyFrom(model)
    obstacle = why_not_plain(model, oldest_opset=_OLDEST_OPSET)
    if obstacle is not None:
        return PassResult(model=result, changed=False, notes=(f"not applicable: {obstacle}",))
    sweep = _Sweep(model)
    sweep.run()
    if (outcome := sweep.unchanged_because()) is not None:
        return PassResult(model=result, changed=False, notes=(outcome,))
    sweep.rewrite(result)
    return PassResult(model=result, changed=True, notes=sweep.notes())


@dataclass
class _Need:
    """What the nodes after a tensor read of it."""

    whole_for: list[str] = field(default_factory=list)
    """Who reads all of it."""
    row_axes: set[int] = field(default_factory=set)
    """Axes along which only index 0 is read."""
    sizes: set[int] = field(default_factory=set)
    """Axes whose size is read. Of a shape vector: the entries that are read."""


@dataclass(frozen=True)
class _Crossing:
    """How a node makes the first row of its output."""

    axes: tuple[int | None, ...]
    """For each input the axis along which index 0 is enough, or None where all of it is read."""
    target: tuple[int, ...] | None = None
    """The new target shape of a ``Reshape``."""


class _Sweep:
    """Finds out, from the outputs to the inputs, what is read of every tensor."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._nodes = list(model.graph.node)
        self._producers = producers_of(self._nodes)
        self._rules = _Rules(model)
        self._needs: dict[str, _Need] = defaultdict(_Need)
        self._kept: set[int] = set()
        self._crossings: dict[int, _Crossing] = {}
        self._heads: list[str] = []
        self._stops: list[str] = []
        self._without_rule: list[str] = []

    def run(self) -> None:
        for output in self._graph.output:
            self._needs[output.name].whole_for.append(f"the output {output.name}")
        for position in reversed(range(len(self._nodes))):
            node = self._nodes[position]
            if not any(output in self._needs for output in node.output):
                continue  # nothing reads it any more
            crossing = self._cross(node)
            if crossing is None:
                self._kept.add(position)
                self._read(node)
            else:
                self._crossings[position] = crossing
                self._read_first_row(node, crossing)

    def unchanged_because(self) -> str | None:
        """Why the graph stays as it is, or None if it is to be rewritten."""
        if not self._heads:
            return "not applicable: the head does not select row 0 of the hidden state (no Gather or Slice does)"
        rows_come_cut = self._crossings and not any(self._cuts(crossing, at) for at, crossing in self._crossings.items())
        if rows_come_cut or any(self._rules.has_one_row(name, 1) for name in self._heads):
            return "already done: the head reads a hidden state of one row"
        if not self._linear_layers:
            return f"not applicable: {self._stops[0] if self._stops else 'no linear layer comes before the selected row'}"
        return None

    def notes(self) -> tuple[str, ...]:
        products = sum(self._nodes[position].op_type == "MatMul" for position in self._crossings)
        done = (
            f"{self._linear_layers} linear layers and {products - self._linear_layers} products of the attention "
            "compute one row of a pair instead of all"
        )
        if not self._without_rule:
            return (done,)
        return done, f"all rows are still computed before: {', '.join(dict.fromkeys(self._without_rule))}"

    def rewrite(self, model: ModelProto) -> None:
        """Carry out the plan on a copy of the graph that was swept."""
        graph = model.graph
        slices: dict[int, list[NodeProto]] = defaultdict(list)
        nodes = {position: graph.node[position] for position in sorted(self._kept | set(self._crossings))}
        for position, crossing in self._crossings.items():
            node = nodes[position]
            for index, axis in self._cuts(crossing, position):
                node.input[index] = self._slice(model, slices, node.input[index], axis)
            if crossing.target is not None:
                node.input[1] = _add_constant(model, f"{node.output[0]}{_SUFFIX}_shape", crossing.target)
                del node.attribute[:]  # without "allowzero", 0 copies a dimension
        ordered = slices[-1]
        for position, node in nodes.items():
            ordered += [node, *slices[position]]
        copies = [_copy(node) for node in ordered]
        del graph.node[:]
        graph.node.extend(copies)
        used = {name for node in copies for name in names_read(node)} | {value.name for value in graph.output}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]  # of tensors whose rows are fewer now

    @property
    def _linear_layers(self) -> int:
        products = (node for node in (self._nodes[position] for position in self._crossings) if node.op_type == "MatMul")
        return sum(len(self._rules.shapes[product.input[1]]) == 2 for product in products)

    def _cross(self, node: NodeProto) -> _Crossing | None:
        """How to make only the first row of a node's outputs; None where all rows are needed, or no rule makes fewer."""
        needs = {output: self._needs[output] for output in node.output if output in self._needs}
        axes = {axis for need in needs.values() for axis in need.row_axes}
        if not axes or all(self._rules.has_one_row(name, axis) for name in needs for axis in axes):
            return None
        name = node.output[0]
        readers = [reader for need in needs.values() for reader in need.whole_for]
        if readers:
            self._stops.append(f"all rows of {name} are read by {readers[0]}")
            return None
        if len(axes) > 1 or any(axes & need.sizes for need in needs.values()) or any(not n.row_axes for n in needs.values()):
            self._stops.append(f"the number of rows of {name} is read")
            return None
        crossing = self._rules.cross(node, *axes)
        if crossing is None:
            self._stops.append(f"one row alone cannot be computed through {node.op_type} ({name})")
            self._without_rule.append(node.op_type)
        return crossing

    def _read(self, node: NodeProto) -> None:
        """Note what a node reads that is computed whole."""
        entries = self._rules.entries_read(node)
        if self._rules.selects_first_row(node):
            self._heads.append(node.input[0])
            self._needs[node.input[0]].row_axes.add(1)
        elif node.op_type == "Shape":
            self._read_sizes(node)
        elif entries is not None and self._is_made_by(node.input[0], "Shape"):
            self._needs[node.input[0]].sizes |= entries
        else:
            self._needs_whole(names_read(node), node)
            return
        self._needs_whole(node.input[1:], node)

    def _read_sizes(self, node: NodeProto) -> None:
        data, vector = node.input[0], self._needs[node.output[0]]
        if data not in self._rules.shapes or node.attribute:  # attributes would shift the entries
            self._needs_whole([data], node)
        elif vector.whole_for or vector.row_axes:
            self._needs[data].sizes |= set(range(len(self._rules.shapes[data])))
        else:
            self._needs[data].sizes |= vector.sizes

    def _read_first_row(self, node: NodeProto, crossing: _Crossing) -> None:
        for name, axis in zip(node.input, crossing.axes, strict=True):
            if axis is not None:
                self._needs[name].row_axes.add(axis)
            elif name and crossing.target is None:
                self._needs_whole([name], node)

    def _needs_whole(self, names: Iterable[str], node: NodeProto) -> None:
        for name in names:
            self._needs[name].whole_for.append(f"{node.op_type} ({node.output[0]})")

    def _is_made_by(self, name: str, op_type: str) -> bool:
        return name in self._producers and self._nodes[self._producers[name]].op_type == op_type

    def _cuts(self, crossing: _Crossing, position: int) -> list[tuple[int, int]]:
        """The inputs of a crossing, with their axes, that are computed whole and have to be sliced."""
        names = self._nodes[position].input
        return [
            (index, axis)
            for index, axis in enumerate(crossing.axes)
            if axis is not None
            and self._producers.get(names[index], -1) not in self._crossings
            and not self._rules.has_one_row(names[index], axis)
        ]

    def _slice(self, model: ModelProto, slices: dict[int, list[NodeProto]], name: str, axis: int) -> str:
        """The name of the first row of a tensor along an axis, which is cut out right after the tensor is made."""
        row = f"{name}{_SUFFIX}_{axis}"
        made = slices[self._producers.get(name, -1)]
        if all(node.output[0] != row for node in made):
            begin, end, along = (_add_constant(model, f"{_SUFFIX[1:]}_{value}", (value,)) for value in (0, 1, axis))
            made.append(helper.make_node("Slice", [name, begin, end, along], [row], name=row))
        return row


class _Rules:
    """Operators that work on rows one by one, and what they read to make the first."""

    def __init__(self, model: ModelProto) -> None:
        self.shapes = probe_shapes(model)
        self._constants = integer_constants(model.graph)
        self._first_rows = {(node.output[0], axis) for node in model.graph.node for axis in self._first_row_axes(node)}

    def has_one_row(self, name: str, axis: int) -> bool:
        shape = self.shapes.get(name, ())
        return (name, axis) in self._first_rows or (axis < len(shape) and shape[axis] == ONE)

    def selects_first_row(self, node: NodeProto) -> bool:
        """Whether a node reads only row 0 of a tensor [batch, sequence, hidden]."""
        if len(self.shapes.get(node.input[0], ()) if node.input else ()) != 3:
            return False
        if node.op_type == "Gather":
            return attribute(node, "axis", 0) in (1, -2) and self._values(node, 1) == [0]
        return self._first_row_axes(node) == [1]

    def _first_row_axes(self, node: NodeProto) -> list[int]:
        """The axis along which a ``Slice`` takes index 0 and nothing else."""
        if node.op_type != "Slice" or len(node.input) < 4:
            return []
        begin, end, axes, step = (self._values(node, index) for index in range(1, 5))
        if (begin, end) != ([0], [1]) or axes is None or step not in (None, [1]) or node.input[0] not in self.shapes:
            return []
        return [axes[0] % len(self.shapes[node.input[0]])]

    def entries_read(self, node: NodeProto) -> set[int] | None:
        """Which entries a node reads of a shape vector, if it reads some by constant positions."""
        shape = self.shapes.get(node.input[0], ()) if node.input else ()
        if len(shape) != 1 or shape[0] is None:
            return None
        count = shape[0][0]
        if node.op_type == "Gather" and (indices := self._values(node, 1)) is not None:
            return {index % count for index in indices}
        begin, end = self._values(node, 1), self._values(node, 2)
        if node.op_type == "Slice" and begin and end and self._values(node, 4) in (None, [1]):
            return set(range(count)[begin[0] : end[0]])
        return None

    def cross(self, node: NodeProto, axis: int) -> _Crossing | None:
        """How to make index 0 along an axis of a node's output, or None if there is no rule for that."""
        shape = self.shapes.get(node.output[0])
        if shape is None or any(name and name not in self.shapes for name in node.input):
            return None
        inputs = [self.shapes[name] if name else () for name in node.input]
        rest = (None,) * (len(inputs) - 1)
        rank = len(shape)
        match node.op_type:
            case "MatMul" if axis == rank - 2 and min(map(len, inputs)) >= 2:
                return _Crossing((len(inputs[0]) - 2, None))
            case "Transpose":
                return _Crossing((int(attribute(node, "perm", range(rank)[::-1])[axis]),))
            case "Reshape":
                return _reshape(inputs[0], shape, axis)
            case "Softmax" | "LogSoftmax" | "LayerNormalization":
                return _Crossing((axis, *rest)) if attribute(node, "axis", -1) % rank > axis else None
            case "Slice" | "Split" | "Concat":
                return self._beside(node, axis, rank, len(inputs))
            case kind if kind in _REDUCTIONS:
                reduced = attribute(node, "axes") or self._values(node, 1) or range(len(inputs[0]))
                return _Crossing((axis, *rest)) if all(other % len(inputs[0]) > axis for other in reduced) else None
            case kind if kind in _ELEMENTWISE:
                return _Crossing(tuple(_broadcast_axis(operand, axis, rank) for operand in inputs))
        return None

    def _beside(self, node: NodeProto, axis: int, rank: int, inputs: int) -> _Crossing | None:
        """Operators that work along other axes."""
        along = self._values(node, 3) if node.op_type == "Slice" else [int(attribute(node, "axis", 0))]
        if along is None or any(other % rank == axis for other in along):
            return None
        return _Crossing((axis,) * inputs if node.op_type == "Concat" else (axis, *(None,) * (inputs - 1)))

    def _values(self, node: NodeProto, index: int) -> list[int] | None:
        if index >= len(node.input) or node.input[index] not in self._constants:
            return None
        return [int(value) for value in self._constants[node.input[index]].reshape(-1)]


def _broadcast_axis(operand: Shape, axis: int, rank: int) -> int | None:
    """The axis of an operand that meets an axis of the result; None where the operand is the same for every row."""
    own = axis - (rank - len(operand))
    return own if own >= 0 and operand[own] != ONE else None


def _reshape(before: Shape, after: Shape, axis: int) -> _Crossing | None:
    """Rows stay rows if as much lies behind them, and as many are there, as before."""
    behind = _volume(after[axis + 1 :])
    for own, size in enumerate(before):
        if behind is not None and _volume(before[own + 1 :]) == behind and size is not None and size == after[axis]:
            break
    else:
        return None
    target = []
    for index, dimension in enumerate(after):
        if index == axis:
            target.append(1)
        elif dimension is not None and len(set(dimension)) == 1:
            target.append(dimension[0])
        elif dimension is not None and index < len(before) and index != own and before[index] == dimension:
            target.append(0)
        else:
            target.append(-1)
    return _Crossing((own, None), tuple(target)) if target.count(-1) <= 1 else None


def _volume(shape: Sequence[Dimension | None]) -> Dimension | None:
    known = [dimension for dimension in shape if dimension is not None]
    return tuple(prod(sizes) for sizes in zip(ONE, *known, strict=True)) if len(known) == len(shape) else None


def _add_constant(model: ModelProto, name: str, values: Sequence[int]) -> str:
    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
    return name


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
