"""Dynamic int8: signed weights with one scale a column, unsigned activations with one scale a *token*.

The usual recipe (``onnxruntime.quantization.quantize_dynamic``) takes one scale for the whole activation tensor. Then a
pair's score depends on which pairs share its batch, and one outlier token costs every other token its precision. Here each
token is quantized by its own largest value, so a pair scores the same alone and in any batch, and the ranking loses less
(docs/int8.md has the figures).

Requires: a float32 graph, opset 13 or later, whose linear layers are ``MatMul`` with a constant 2-D weight.
Ensures: same inputs and outputs; every such layer of the encoder runs as an integer product; the head stays float32;
word embeddings are stored as int8 with one scale a row. Runs in ONNX Runtime (``com.microsoft.MatMulIntegerToFloat``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from crossforge.export.onnx import opset_of
from crossforge.export.passes import gelu
from crossforge.export.passes.graph import names_read
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.passes.result import PassResult
from crossforge.export.passes.rounding import LEVELS, column_scales, round_to_nearest
from crossforge.profiles import InputError

_MICROSOFT = "com.microsoft"
_SMALLEST_SCALE = 1e-12
_EMBEDDING_ROWS = 1000
"""A lookup table with fewer rows (positions, segments) is not worth quantizing."""


def quantize_int8_dynamic(
    model: ModelProto,
    *,
    rounded: Mapping[str, NDArray[np.int8]] | None = None,
    keep_fp32: Collection[str] = (),
    levels: int = LEVELS,
    quantize_embeddings: bool = True,
) -> PassResult:
    """Quantize a reranker's encoder.

    Args:
        model: A float32 reranker; not changed.
        rounded: Weights that are rounded already, by name, int8 [in, out] in units of
            :func:`~crossforge.export.passes.rounding.column_scales`; the others are rounded to nearest.
        keep_fp32: Weights whose layers stay as they are.
        levels: Steps of a weight on each side of zero; 63 suits processors whose integer products saturate at 127.
        quantize_embeddings: Also store lookup tables of 1,000 rows or more as int8.

    Raises:
        InputError: The model is already quantized, or its opset is below 13.
    """
    _check(model)
    result = ModelProto()
    result.CopyFrom(model)
    rewriter = _Rewriter(result, rounded or {}, keep_fp32, levels)
    rewriter.run(quantize_embeddings=quantize_embeddings)
    changed = rewriter.products + rewriter.tables > 0
    if not changed:
        result.CopyFrom(model)
    notes = (
        f"{rewriter.products} matrix products and {rewriter.tables} lookup tables quantized to int8, "
        f"{rewriter.activations} activation tensors with one scale a token",
    )
    return PassResult(model=result, changed=changed, notes=notes)


def quantize_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale a column, to nearest: float32 [in, out] -> int8 [in, out], float32 [out]."""
    scales = column_scales(weight)
    return round_to_nearest(weight, scales), scales


def refuse_quantized(model: ModelProto) -> None:
    """Make sure that a model is float.

    Raises:
        InputError: It is already quantized.
    """
    integer = {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QAttention"}
    present = sorted({node.op_type for node in model.graph.node} & (integer | {"DequantizeLinear"}))
    if present:
        raise InputError("the model is already quantized", got=", ".join(present), allowed="a float32 graph")


def _check(model: ModelProto) -> None:
    if opset_of(model) < 13:
        raise InputError("the model's opset cannot quantize a token at a time", got=opset_of(model), allowed="13 or later")
    refuse_quantized(model)


@dataclass(frozen=True, kw_only=True)
class _TokenCode:
    """How the values of a token are laid on 0..255."""

    name: str
    zero_point: int
    levels: int
    """Steps between zero and the token's largest value."""
    smallest_scale: float
    signed: bool
    """Whether the largest value is looked for among the magnitudes."""


_SYMMETRIC = _TokenCode(name="symmetric", zero_point=128, levels=LEVELS, smallest_scale=_SMALLEST_SCALE, signed=True)

# GELU never goes below -0.17. With its zero at 24, 24 steps reach down there whenever a step is at least 0.17/24, and 231
# are left for the positive side: nearly one bit more than the symmetric code has, and no pass over the magnitudes.
_GELU_ZERO = 24
_GELU = _TokenCode(
    name="gelu",
    zero_point=_GELU_ZERO,
    levels=255 - _GELU_ZERO,
    smallest_scale=-gelu.MINIMUM / _GELU_ZERO,
    signed=False,
)


class _Rewriter:
    """Walks a graph once and writes it anew."""

    def __init__(
        self, model: ModelProto, rounded: Mapping[str, NDArray[np.int8]], keep_fp32: Collection[str], levels: int
    ) -> None:
        self._model = model
        self._rounded = rounded
        self._levels = levels
        self._graph = model.graph
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        products = find_encoder_products(model)
        self._products = {product.node.output[0] for product in products if product.weight not in keep_fp32}
        self._nodes: list[NodeProto] = []
        self._gelu_outputs = gelu.find_gelu_outputs(model)
        self._quantized: dict[str, str] = {}  # activation -> prefix of its quantized form
        self._new: dict[str, TensorProto] = {}
        self.products = self.tables = 0

    @property
    def activations(self) -> int:
        return len(self._quantized)

    def run(self, *, quantize_embeddings: bool) -> None:
        for node in self._graph.node:
            if node.output[0] in self._products:
                self._rewrite_product(node)
            elif quantize_embeddings and self._is_embedding(node):
                self._rewrite_embedding(node)
            else:
                self._nodes.append(node)
        nodes = [*self._nodes]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        used = {*(name for node in nodes for name in names_read(node)), *(output.name for output in self._graph.output)}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *self._new.values()])
        del self._graph.value_info[:]
        if all(entry.domain != _MICROSOFT for entry in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))

    def _is_embedding(self, node: NodeProto) -> bool:
        return (
            node.op_type == "Gather"
            and self._is_matrix(node.input[0])
            and all(attribute.i == 0 for attribute in node.attribute)  # the axis, which is 0 where it is left out
            and self._weights[node.input[0]].dims[0] >= _EMBEDDING_ROWS
        )

    def _is_matrix(self, name: str) -> bool:
        tensor = self._weights.get(name)
        return tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT

    def _rewrite_product(self, node: NodeProto) -> None:
        activation, weight = node.input
        columns, scale = self._quantize_weight(weight)
        out = node.output[0]
        code = _GELU if activation in self._gelu_outputs else _SYMMETRIC
        token = self._quantize_tokens(activation, code, inner=columns.shape[0])
        integers = self._constant(f"{weight}_int8", columns)
        scales = self._constant(f"{weight}_scale", scale)
        one = self._constant("int8_one", np.asarray(1, np.float32))
        zero_point = self._constant(f"int8_{code.name}_zero_point", np.asarray(code.zero_point, np.uint8))
        zero = self._constant("int8_zero", np.asarray(0, np.int8))
        width = self._constant(f"int8_width_{columns.shape[1]}", np.asarray([columns.shape[1]], np.int64))
        # The engine's product takes one activation scale; the token's own is applied to the float result.
        self._add(
            "MatMulIntegerToFloat",
            [f"{token}_q", integers, one, scales, zero_point, zero],
            f"{out}_unscaled",
            domain=_MICROSOFT,
        )
        self._add("Mul", [f"{out}_unscaled", f"{token}_scale"], f"{out}_tokens")
        self._add("Concat", [f"{token}_batch", width], f"{out}_shape", axis=0)
        self._add("Reshape", [f"{out}_tokens", f"{out}_shape"], out)
        self.products += 1

    def _quantize_weight(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        weight = numpy_helper.to_array(self._weights[name])
        scales = column_scales(weight, self._levels)
        rounded = self._rounded.get(name)
        return (round_to_nearest(weight, scales, self._levels) if rounded is None else rounded), scales

    def _quantize_tokens(self, activation: str, code: _TokenCode, *, inner: int) -> str:
        """Quantize an activation [batch, sequence, inner] once, however many products read it."""
        if activation in self._quantized:
            return self._quantized[activation]
        prefix = self._quantized[activation] = f"{activation}_token"
        flat = self._constant(f"int8_flat_{inner}", np.asarray([-1, inner], np.int64))
        axis = self._constant("int8_axis", np.asarray([1], np.int64))
        step = self._constant(f"int8_{code.name}_step", np.asarray(1 / code.levels, np.float32))
        smallest = self._constant(f"int8_{code.name}_smallest", np.asarray(code.smallest_scale, np.float32))
        begin, end = self._constant("int8_0", np.asarray([0], np.int64)), self._constant("int8_2", np.asarray([2], np.int64))
        self._add("Reshape", [activation, flat], f"{prefix}_flat")
        largest_of = f"{prefix}_flat"
        if code.signed:
            largest_of = f"{prefix}_abs"
            self._add("Abs", [f"{prefix}_flat"], largest_of)
        if opset_of(self._model) >= 18:
            self._add("ReduceMax", [largest_of, axis], f"{prefix}_max", keepdims=0)
        else:
            self._add("ReduceMax", [largest_of], f"{prefix}_max", axes=[1], keepdims=0)
        self._add("Mul", [f"{prefix}_max", step], f"{prefix}_raw")
        self._add("Max", [f"{prefix}_raw", smallest], f"{prefix}_scales")
        self._add("Shape", [f"{prefix}_scales"], f"{prefix}_count")
        zero_point = numpy_helper.from_array(np.asarray([code.zero_point], np.uint8))
        self._add("ConstantOfShape", [f"{prefix}_count"], f"{prefix}_zero", value=zero_point)
        self._add("QuantizeLinear", [f"{prefix}_flat", f"{prefix}_scales", f"{prefix}_zero"], f"{prefix}_q", axis=0)
        self._add("Unsqueeze", [f"{prefix}_scales", axis], f"{prefix}_scale")
        self._add("Shape", [activation], f"{prefix}_shape")
        self._add("Slice", [f"{prefix}_shape", begin, end], f"{prefix}_batch")
        return prefix

    def _rewrite_embedding(self, node: NodeProto) -> None:
        table, ids = node.input
        rows, scale = quantize_columns(numpy_helper.to_array(self._weights[table]).T)
        out = node.output[0]
        integers = self._constant(f"{table}_rows_int8", np.ascontiguousarray(rows.T))
        scales = self._constant(f"{table}_rows_scale", scale[:, None])
        self._add("Gather", [integers, ids], f"{out}_int8", axis=0)
        self._add("Cast", [f"{out}_int8"], f"{out}_float", to=TensorProto.FLOAT)
        self._add("Gather", [scales, ids], f"{out}_scale", axis=0)
        self._add("Mul", [f"{out}_float", f"{out}_scale"], out)
        self.tables += 1

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        if name not in self._new:
            self._new[name] = numpy_helper.from_array(value, name)
        return name

    def _add(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"{output}_{op_type}", **attributes))
