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

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from crossforge.export.onnx import opset_of
from crossforge.export.passes import gelu
from crossforge.export.passes.graph import probe_shapes
from crossforge.export.passes.int8_graph import Int8Graph
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.passes.result import PassResult
from crossforge.export.passes.rounding import LEVELS
from crossforge.profiles import InputError

_MICROSOFT = "com.microsoft"
_SMALLEST_SCALE = 1e-12


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
    graph = Int8Graph(result, rounded=rounded, levels=levels)
    rewriter = _TokenRewriter(result, graph)
    products = {product.node.output[0] for product in find_encoder_products(result) if product.weight not in keep_fp32}
    graph.rewrite(products, rewriter.rewrite_product, quantize_embeddings=quantize_embeddings)
    changed = rewriter.products + graph.tables > 0
    if not changed:
        result.CopyFrom(model)
    elif all(entry.domain != _MICROSOFT for entry in result.opset_import):
        result.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    notes = (
        f"{rewriter.products} matrix products and {graph.tables} lookup tables quantized to int8, "
        f"{rewriter.activations} activation tensors with one scale a token",
    )
    return PassResult(model=result, changed=changed, notes=notes)


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


class _TokenRewriter:
    """Puts integer products with one activation scale a token in the place of float ones."""

    def __init__(self, model: ModelProto, graph: Int8Graph) -> None:
        self._graph = graph
        self._opset = opset_of(model)
        self._gelu_outputs = gelu.find_gelu_outputs(model)
        self._shapes = probe_shapes(model)
        self._quantized: dict[str, str] = {}  # activation -> prefix of its quantized form
        self._shared: dict[Hashable, str] = {}  # what is computed once for all activations of as many rows
        self.products = 0

    @property
    def activations(self) -> int:
        return len(self._quantized)

    def rewrite_product(self, node: NodeProto) -> None:
        activation, weight = node.input
        columns, scale = self._graph.quantize_weight(weight)
        out = node.output[0]
        code = _GELU if activation in self._gelu_outputs else _SYMMETRIC
        token = self._quantize_tokens(activation, code, inner=columns.shape[0])
        add, constant = self._graph.add, self._graph.constant
        integers = constant(f"{weight}_int8", columns)
        scales = constant(f"{weight}_scale", scale)
        one = constant("int8_one", np.asarray(1, np.float32))
        zero_point = constant(f"int8_{code.name}_zero_point", np.asarray(code.zero_point, np.uint8))
        zero = constant("int8_zero", np.asarray(0, np.int8))
        # The engine's product takes one activation scale; the token's own is applied to the float result.
        add(
            "MatMulIntegerToFloat",
            [f"{token}_q", integers, one, scales, zero_point, zero],
            f"{out}_unscaled",
            domain=_MICROSOFT,
        )
        add("Mul", [f"{out}_unscaled", f"{token}_scale"], f"{out}_tokens")
        add("Reshape", [f"{out}_tokens", self._shape_of(activation, columns.shape[1])], out)
        self.products += 1

    def _quantize_tokens(self, activation: str, code: _TokenCode, *, inner: int) -> str:
        """Quantize an activation [batch, sequence, inner] once, however many products read it."""
        if activation in self._quantized:
            return self._quantized[activation]
        prefix = self._quantized[activation] = f"{activation}_token"
        add, constant = self._graph.add, self._graph.constant
        flat = constant(f"int8_flat_{inner}", np.asarray([-1, inner], np.int64))
        axis = constant("int8_axis", np.asarray([1], np.int64))
        step = constant(f"int8_{code.name}_step", np.asarray(1 / code.levels, np.float32))
        smallest = constant(f"int8_{code.name}_smallest", np.asarray(code.smallest_scale, np.float32))
        add("Reshape", [activation, flat], f"{prefix}_flat")
        largest_of = f"{prefix}_flat"
        if code.signed:
            largest_of = f"{prefix}_abs"
            add("Abs", [f"{prefix}_flat"], largest_of)
        if self._opset >= 18:
            add("ReduceMax", [largest_of, axis], f"{prefix}_max", keepdims=0)
        else:
            add("ReduceMax", [largest_of], f"{prefix}_max", axes=[1], keepdims=0)
        add("Mul", [f"{prefix}_max", step], f"{prefix}_raw")
        add("Max", [f"{prefix}_raw", smallest], f"{prefix}_scales")
        zero = self._zero_points(activation, f"{prefix}_scales", code)
        add("QuantizeLinear", [f"{prefix}_flat", f"{prefix}_scales", zero], f"{prefix}_q", axis=0)
        add("Unsqueeze", [f"{prefix}_scales", axis], f"{prefix}_scale")
        return prefix

    def _shape_of(self, activation: str, width: int) -> str:
        """[batch, sequence, width], computed once for all activations of as many rows."""
        rows = self._rows(activation)
        if (rows, width) not in self._shared:
            add, constant = self._graph.add, self._graph.constant
            if rows not in self._shared:
                begin, end = constant("int8_0", np.asarray([0], np.int64)), constant("int8_2", np.asarray([2], np.int64))
                self._shared[rows] = f"{activation}_rows"
                add("Shape", [activation], f"{activation}_shape")
                add("Slice", [f"{activation}_shape", begin, end], self._shared[rows])
            self._shared[rows, width] = f"{self._shared[rows]}_{width}"
            columns = constant(f"int8_width_{width}", np.asarray([width], np.int64))
            add("Concat", [self._shared[rows], columns], self._shared[rows, width], axis=0)
        return self._shared[rows, width]

    def _zero_points(self, activation: str, scales: str, code: _TokenCode) -> str:
        """A zero point for each scale, computed once for all activations of as many rows."""
        key = (self._rows(activation), code.name)
        if key not in self._shared:
            self._shared[key] = f"{scales}_zero"
            value = numpy_helper.from_array(np.asarray([code.zero_point], np.uint8))
            self._graph.add("Shape", [scales], f"{scales}_count")
            self._graph.add("ConstantOfShape", [f"{scales}_count"], self._shared[key], value=value)
        return self._shared[key]

    def _rows(self, activation: str) -> Hashable:
        """What is equal for activations of as many rows; where shape inference cannot tell, the activation alone."""
        rows = self._shapes.get(activation, ())[:2]
        return activation if len(rows) < 2 or None in rows else rows
