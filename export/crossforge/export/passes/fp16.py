"""Float16 in the graph itself, which is how TensorRT 11 and every other strongly typed engine wants it.

What float16 cannot hold is left in float32: normalizations and Softmax, whose sums lose too much; GELU where it is spelled
out, for its ``1 + erf`` cancels (docs/int8.md has the figures); the head, which costs nothing; masks; and arithmetic on
positions, whose integers float16 counts only to 2,048. A sum that only such nodes read is in float32 as well, where that
takes no cast more: the residual stream, and a mask's addition to attention scores.

Requires: a float32 graph of standard operators.
Ensures: same inputs and outputs, of the same types; the encoder's weights and arithmetic in float16; at most one ``Cast`` of
a tensor in each direction; no masking constant below -65504, so that two of them added are not infinite.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from crossforge.export.onnx import opset_of
from crossforge.export.passes.gelu import find_spelled_out_gelu
from crossforge.export.passes.graph import FUSED, MICROSOFT, find_ranks, find_types, foreign_operators
from crossforge.export.passes.int8_dynamic import refuse_quantized
from crossforge.export.passes.result import PassResult
from crossforge.profiles import InputError

LARGEST = 65504.0
"""The largest float16; its negative is what masks become."""
_SMALLEST_NORMAL = 2.0**-14
_HALF, _FLOAT = int(TensorProto.FLOAT16), int(TensorProto.FLOAT)
_SUFFIXES = {_HALF: "_fp16", _FLOAT: "_fp32"}

_ALWAYS_FLOAT32 = frozenset(
    {
        *("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization"),
        *("LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax", "CumSum", "Sqrt", "Reciprocal"),
        *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSumExp"),
        *("If", "Loop", "Scan", "SkipLayerNormalization"),
    }
)
_NORM_STEPS = frozenset(
    {("ReduceMean", "Sub"), ("Pow", "ReduceMean"), ("Mul", "ReduceMean"), ("Sqrt", "Div"), ("Reciprocal", "Mul")}
)
"""A node of the first kind that a node of the second reads: steps of a LayerNorm or an RMSNorm that is spelled out."""
_READS_ANY = frozenset({"Shape", "Size", "Cast", "IsNaN", "IsInf"})
"""Operators that answer the same whichever precision they read."""
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "Einsum", "Attention", "MultiHeadAttention"})


def convert_fp16(model: ModelProto, *, keep_fp32_nodes: Collection[str] = ()) -> PassResult:
    """Convert a reranker's encoder to float16.

    Args:
        model: A float32 reranker; not changed.
        keep_fp32_nodes: Names of further nodes that compute in float32, such as
            :func:`~crossforge.export.passes.fp16_overflow.find_overflows` returns. A node without a name goes by the one
            that :func:`prepare` gives it.

    Raises:
        InputError: The model is quantized, or has operators of an engine's own, or no node of a name in
            ``keep_fp32_nodes``.
    """
    _check(model)
    if TensorProto.FLOAT16 in find_types(model).values():
        copy = ModelProto()
        copy.CopyFrom(model)
        return PassResult(model=copy, changed=False, notes=("the model computes in float16 already",))
    result, masks = prepare(model)
    if unknown := sorted(set(keep_fp32_nodes) - {node.name for node in result.graph.node}):
        raise InputError("no node to keep in float32 has this name", got=unknown[0], allowed="names of the model's nodes")
    plan = PrecisionPlan(result, keep_fp32_nodes)
    writer = _Writer(result, plan)
    if plan.half:
        writer.run()
    else:
        result.CopyFrom(model)
    notes = [f"{len(plan.half)} nodes in float16, {plan.float_count} kept in float32, {writer.casts} casts between them"]
    if masks and plan.half:
        notes.append(f"{masks} masking constants raised to {-LARGEST:.0f}")
    if plan.large:
        notes.append(f"{len(plan.large)} constants beyond {LARGEST:.0f} stay float32")
    if writer.subnormal:
        share = writer.subnormal / writer.weights
        notes.append(f"{share:.2%} of the weights below 6.1e-05, {writer.flushed:,} of them became 0")
    return PassResult(model=result, changed=bool(plan.half), notes=tuple(notes))


def prepare(model: ModelProto) -> tuple[ModelProto, int]:
    """Copy a model, name its nodes, raise its masking constants to -65504, and drop casts of float32 to float32.

    Returns:
        The copy, and the number of constants that were raised.
    """
    result = ModelProto()
    result.CopyFrom(model)
    _name_nodes(result)
    masks = sum(_raise_mask(tensor) for _, tensor in _filled_tensors(result))
    _drop_casts(result)
    return result, masks


class PrecisionPlan:
    """Which nodes of a prepared model compute in float16.

    Args:
        model: From :func:`prepare`.
        keep_fp32_nodes: Names of nodes that do not.
    """

    def __init__(self, model: ModelProto, keep_fp32_nodes: Collection[str] = ()) -> None:
        self._graph = model.graph
        self._opset = opset_of(model)
        self.floats = {name for name, kind in find_types(model).items() if kind == _FLOAT}
        """Every float32 tensor."""
        self.constants = {name: tensor for name, tensor in _constants(model) if tensor.data_type == _FLOAT}
        """The float32 constants, weights included."""
        self._producers = {output: node for node in self._graph.node for output in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self._graph.node:
            if node.op_type not in _READS_ANY:
                for name in {*self.float_inputs(node)}:
                    self._readers.setdefault(name, []).append(node)
        masks = {name for name, tensor in _filled_tensors(model) if _is_mask(numpy_helper.to_array(tensor))}
        self.large = {name for name, tensor in self.constants.items() if name not in masks and _beyond(tensor)}
        """Constants that float16 cannot hold, masks left out."""
        self._activations = self._find_activations(masks)
        self._gelu = find_spelled_out_gelu(model)
        self._unholdable = self._find_unholdable(masks | self.large)
        computing = [node for node in self._graph.node if node.input and self._activations.intersection(node.output)]
        head = self._find_head(find_ranks(model))
        captured = {name for node in self._graph.node for name in _captured(node)}
        candidates = {
            node.name: node
            for node in computing
            if node.name not in keep_fp32_nodes
            and node.op_type not in _READS_ANY
            and node.name not in head
            and captured.isdisjoint(node.output)
            and not self._needs_float32(node)
        }
        self.half = frozenset(self._choose_half(candidates))
        """Names of the nodes that compute in float16."""
        self.float_count = len(computing) - len(self.half)
        """Nodes that compute on the same activations in float32."""

    def float_inputs(self, node: NodeProto) -> list[str]:
        """The float32 tensors that a node reads."""
        return [name for name in (*node.input, *_captured(node)) if name in self.floats]

    def streams(self, node: NodeProto) -> set[str]:
        """The float32 tensors that a node reads, constants left out."""
        return {name for name in self.float_inputs(node) if name not in self.constants}

    def is_half(self, tensor: str) -> bool:
        """Whether a float32 tensor of the model, not a constant, becomes float16."""
        return tensor in self._producers and self._producers[tensor].name in self.half

    def _find_activations(self, masks: Collection[str]) -> set[str]:
        """Tensors that come of weights. What comes of positions and attention masks alone is none."""
        found = {value.name for value in self._graph.input if value.name in self.floats}
        for name, tensor in self.constants.items():
            if name not in masks and sum(size > 1 for size in tensor.dims) > 1:
                found.add(name)
        for node in self._graph.node:
            if not found.isdisjoint(self.float_inputs(node)):
                found.update(name for name in node.output if name in self.floats)
        return found

    def _find_unholdable(self, constants: Collection[str]) -> set[str]:
        """Masks and other large constants, and what is made of them up to where they meet activations."""
        found = set(constants)
        for node in self._graph.node:
            if not found.isdisjoint(node.input) and self._activations.isdisjoint(node.output):
                found.update(name for name in node.output if name in self.floats)
        return found

    def _find_head(self, ranks: Mapping[str, int]) -> set[str]:
        """Names of the nodes between the row selection, or the pooling, and the output."""
        outputs = {value.name for value in self._graph.output}
        head, rows = set(), set(outputs)
        for node in reversed(self._graph.node):
            if not rows.isdisjoint(node.output):
                on_rows = all(ranks.get(name, 3) <= 2 for name in self.streams(node))
                if on_rows:
                    rows |= self.streams(node)
                if on_rows or not outputs.isdisjoint(node.output):
                    head.add(node.name)
        return head

    def _needs_float32(self, node: NodeProto) -> bool:
        return (
            node.op_type in _ALWAYS_FLOAT32
            or not self._unholdable.isdisjoint(node.input)
            or not self._gelu.isdisjoint(node.output)
            or self._is_norm_step(node)
            or not self._allows_half(node)
        )

    def _is_norm_step(self, node: NodeProto) -> bool:
        sources = (self._producers[name] for name in node.input if name in self._activations and name in self._producers)
        readers = (reader for name in node.output for reader in self._readers.get(name, ()))
        before = any((source.op_type, node.op_type) in _NORM_STEPS for source in sources)
        return before or any((node.op_type, reader.op_type) in _NORM_STEPS for reader in readers)

    def _allows_half(self, node: NodeProto) -> bool:
        """Whether the operator's definition has float16 for what this node reads."""
        if node.domain == MICROSOFT:
            return True  # of all that _check lets through
        schema = onnx.defs.get_schema(node.op_type, self._opset, node.domain)
        allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
        declared = (
            schema.inputs[min(position, len(schema.inputs) - 1)].type_str  # the last one may stand for any number
            for position, name in enumerate(node.input)
            if name in self.floats
        )
        return all("tensor(float16)" in allowed.get(kind, [kind]) for kind in declared)

    def _choose_half(self, candidates: Mapping[str, NodeProto]) -> set[str]:
        """Names of the candidates, less those that float32 readers may have in float32 for no cast more.

        These support each other, as the sums of a residual stream do: all start in float32, and those without support leave.
        """
        cheap = {name: node for name, node in candidates.items() if self.streams(node) and node.op_type not in _PRODUCTS}
        half = candidates.keys() - cheap.keys()
        while unsupported := {name for name in cheap.keys() - half if not self._is_free(cheap[name], half)}:
            half |= unsupported
        return half

    def _is_free(self, node: NodeProto, half: Collection[str]) -> bool:
        streams = self.streams(node)
        casts = sum(name in self._producers and self._producers[name].name in half for name in streams)
        spared = 1 if node.op_type == "Add" and len(streams) == 2 else 0
        readers = (reader for name in node.output for reader in self._readers.get(name, ()))
        return casts <= spared and all(reader.name not in half for reader in readers)


class _Writer:
    """Walks a prepared graph once and writes it anew."""

    def __init__(self, model: ModelProto, plan: PrecisionPlan) -> None:
        self._graph = model.graph
        self._plan = plan
        self._nodes: list[NodeProto] = []
        self._converted: dict[tuple[str, int], str] = {}
        self._halves: list[TensorProto] = []
        self._taken = {name for node in self._graph.node for name in (*node.input, *node.output)}
        self._float_constants = {
            name
            for node in self._graph.node
            if node.name not in plan.half
            for name in plan.float_inputs(node)
            if name in plan.constants
        }
        self.casts = self.weights = self.subnormal = self.flushed = 0

    def run(self) -> None:
        for node in self._graph.node:
            if node.op_type == "Constant" and node.output[0] in self._plan.constants:
                if self._is_read_in_float32(node.output[0]):
                    self._nodes.append(node)
                continue
            if node.op_type not in _READS_ANY:
                kind = _HALF if node.name in self._plan.half else _FLOAT
                node.input[:] = [self._read(name, kind) for name in node.input]
            self._nodes.append(node)
        nodes = list(self._nodes)
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        kept = [tensor for tensor in self._graph.initializer if self._is_read_in_float32(tensor.name)]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *self._halves])
        del self._graph.value_info[:]

    def _is_read_in_float32(self, name: str) -> bool:
        return name not in self._plan.constants or name in self._float_constants

    def _read(self, name: str, kind: int) -> str:
        """The name by which a tensor is read in a precision."""
        native = _HALF if self._plan.is_half(name) else _FLOAT
        if name not in self._plan.floats or native == kind:
            return name
        if (name, kind) not in self._converted:
            constant = self._plan.constants.get(name)
            self._converted[name, kind] = self._cast(name, kind) if constant is None else self._halve(name, constant)
        return self._converted[name, kind]

    def _cast(self, name: str, kind: int) -> str:
        target = self._fresh(name + _SUFFIXES[kind])
        self._nodes.append(helper.make_node("Cast", [name], [target], name=target, to=kind))
        self.casts += 1
        return target

    def _halve(self, name: str, tensor: TensorProto) -> str:
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        magnitudes = np.abs(values[values != 0])
        self.weights += values.size
        self.subnormal += int((magnitudes < _SMALLEST_NORMAL).sum())
        self.flushed += magnitudes.size - int(np.count_nonzero(half))
        target = self._fresh(name + _SUFFIXES[_HALF]) if name in self._float_constants else name
        self._halves.append(numpy_helper.from_array(half, target))
        return target

    def _fresh(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _check(model: ModelProto) -> None:
    refuse_quantized(model)
    if foreign := sorted(foreign_operators(model) - {f"{MICROSOFT}.{op_type}" for op_type in FUSED}):
        allowed = f"standard ONNX, and ONNX Runtime's {', '.join(sorted(FUSED))}"
        raise InputError("the model has operators of one engine's own", got=", ".join(foreign), allowed=allowed)


def _name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own; the first node of a name keeps it."""
    taken: set[str] = set()
    for node in model.graph.node:
        name = node.name or f"{node.op_type}_{node.output[0]}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)


def _drop_casts(model: ModelProto) -> None:
    """Drop what exporters write where a model computes in float32 explicitly: there is nothing else yet."""
    types = find_types(model)
    kept_names = {value.name for value in model.graph.output} | {n for node in model.graph.node for n in _captured(node)}
    aliases: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        node.input[:] = [aliases.get(name, name) for name in node.input]
        is_cast = node.op_type == "Cast" and types.get(node.input[0]) == types.get(node.output[0]) == _FLOAT
        if is_cast and node.output[0] not in kept_names:
            aliases[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _constants(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")


def _filled_tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Float constants, and what fills a ``ConstantOfShape``, each by the name of the tensor it is in."""
    yield from ((name, tensor) for name, tensor in _constants(model) if _is_floating(tensor))
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            yield from ((node.output[0], attribute.t) for attribute in node.attribute if _is_floating(attribute.t))


def _is_floating(tensor: TensorProto) -> bool:
    return tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)


def _is_mask(values: NDArray[np.floating]) -> bool:
    """Whether a constant masks: nothing but zeros and what float16 has no lower number for. A weight is left as it is."""
    masking = values <= -LARGEST
    return bool(masking.any()) and not values[~masking].any()


def _raise_mask(tensor: TensorProto) -> bool:
    values = numpy_helper.to_array(tensor)
    if not _is_mask(values) or values.min() == -LARGEST:
        return False
    raised = np.maximum(values, -LARGEST).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(raised, tensor.name))
    return True


def _beyond(tensor: TensorProto) -> bool:
    return bool(np.abs(numpy_helper.to_array(tensor)).max(initial=0) > LARGEST)


def _captured(node: NodeProto) -> Iterator[str]:
    """Names that the branches of a node read, their own tensors among them."""
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from inner.input
            yield from _captured(inner)
