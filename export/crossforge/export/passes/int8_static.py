"""Static int8: activations with one fixed scale a tensor, found on calibration pairs, in standard ONNX operators alone.

Every quantized product reads its activation through ``QuantizeLinear`` and ``DequantizeLinear`` and its weight, stored as
int8, through ``DequantizeLinear`` with one scale a column. Engines fold these pairs into integer products: ONNX Runtime on
x86 needs unsigned activations for that (``MatMulIntegerToFloat``; signed ones it computes in float32), TensorRT and CUDA
need signed ones with their zero at 0. A scale that no run changes also makes a pair's score independent of its batch.

Requires: a float32 graph, opset 13 or later, whose linear layers are ``MatMul`` with a constant 2-D weight; ranges of the
    activations (:func:`~crossforge.export.ranges.collect_ranges`) of this very graph.
Ensures: same inputs and outputs; standard operators only; each activation is quantized once, however many products read it;
    the head stays float32, and so does a product whose activation has no range, which the notes say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from crossforge.export.onnx import opset_of
from crossforge.export.passes.int8_dynamic import refuse_quantized
from crossforge.export.passes.int8_graph import Int8Graph
from crossforge.export.passes.products import EncoderProduct, find_encoder_products
from crossforge.export.passes.result import PassResult
from crossforge.export.passes.rounding import LEVELS
from crossforge.export.ranges import ActivationRange
from crossforge.profiles import InputError

_OLDEST_OPSET = 13
_SMALLEST_SCALE = 1e-12


class ActivationType(StrEnum):
    """How activations are stored; the weights are int8 either way."""

    INT8 = "int8"
    """Symmetric, zero point 0: for TensorRT and CUDA."""
    UINT8 = "uint8"
    """Asymmetric, all 256 steps on the range: for x86 processors."""


def quantize_int8_static(
    model: ModelProto,
    ranges: Mapping[str, ActivationRange],
    *,
    activations: ActivationType,
    rounded: Mapping[str, NDArray[np.int8]] | None = None,
    keep_fp32: Collection[str] = (),
    levels: int = LEVELS,
    quantize_embeddings: bool | None = None,
) -> PassResult:
    """Quantize a reranker's encoder with fixed scales.

    Args:
        model: A float32 reranker; not changed.
        ranges: Of the activations that products read, by name. A product whose activation has none stays float32: what was
            never seen cannot be given a scale.
        activations: How activations are stored.
        rounded: Weights that are rounded already, by name, int8 [in, out] in units of
            :func:`~crossforge.export.passes.rounding.column_scales`; the others are rounded to nearest.
        keep_fp32: Weights whose layers stay as they are.
        levels: Steps of a weight on each side of zero; 63 suits processors whose integer products saturate at 127.
        quantize_embeddings: Also store lookup tables of 1,000 rows or more as int8, with one scale a row. None does so for
            unsigned activations alone.

    Raises:
        InputError: The model is already quantized, its opset is below 13, or there are products to quantize but a range for
            none of them.
    """
    _check_opset(model)
    refuse_quantized(model)
    activations = ActivationType(activations)
    result = ModelProto()
    result.CopyFrom(model)
    wanted = [product for product in find_encoder_products(result) if product.weight not in keep_fp32]
    ranged = [product for product in wanted if product.activation in ranges]
    if wanted and not ranged:
        raise InputError(
            "no activation of the graph has a range",
            got=f"ranges of {', '.join(sorted(ranges)) or 'nothing'}",
            allowed=f"ranges of {', '.join(dict.fromkeys(product.activation for product in wanted))}",
            fix="Collect them on this graph, after the passes that rename its activations.",
        )
    graph = Int8Graph(result, rounded=rounded, levels=levels)
    rewriter = _StaticRewriter(graph, ranges, activations)
    graph.rewrite(
        {product.node.output[0] for product in ranged},
        rewriter.rewrite_product,
        quantize_embeddings=activations is ActivationType.UINT8 if quantize_embeddings is None else quantize_embeddings,
    )
    changed = len(ranged) + graph.tables > 0
    if not changed:
        result.CopyFrom(model)
    done = (
        f"{len(ranged)} matrix products and {graph.tables} lookup tables quantized to int8, "
        f"{rewriter.activations} activation tensors to {activations} with a fixed scale"
    )
    return PassResult(model=result, changed=changed, notes=(done, *_describe_unranged(wanted, ranges)))


def find_quantizable(model: ModelProto, ranges: Mapping[str, ActivationRange]) -> tuple[str, ...]:
    """Weights of the layers that :func:`quantize_int8_static` can quantize, in the graph's order."""
    return tuple(dict.fromkeys(p.weight for p in find_encoder_products(model) if p.activation in ranges))


def find_code(covered: ActivationRange, activations: ActivationType) -> tuple[np.float32, np.int8 | np.uint8]:
    """The scale and the zero point that lay a range, widened to hold zero, on the 8 bits of a type.

    The scale is never zero, and zero is exact: the attention mask and GELU make many of it.
    """
    if activations is ActivationType.INT8:
        return np.float32(max(covered.magnitude / 127, _SMALLEST_SCALE)), np.int8(0)
    low, high = min(covered.low, 0.0), max(covered.high, 0.0)
    scale = max((high - low) / 255, _SMALLEST_SCALE)
    return np.float32(scale), np.uint8(round(-low / scale))


def _check_opset(model: ModelProto) -> None:
    if opset_of(model) < _OLDEST_OPSET:
        raise InputError(
            "the model's opset has no scales a column", got=opset_of(model), allowed=f"{_OLDEST_OPSET} or later"
        )


def _describe_unranged(wanted: Collection[EncoderProduct], ranges: Mapping[str, ActivationRange]) -> tuple[str, ...]:
    left = [product for product in wanted if product.activation not in ranges]
    names = ", ".join(dict.fromkeys(product.activation for product in left))
    return (f"{len(left)} matrix products left in float32, no range for {names}",) if left else ()


class _StaticRewriter:
    """Puts quantized inputs in the place of a product's float ones."""

    def __init__(self, graph: Int8Graph, ranges: Mapping[str, ActivationRange], type_: ActivationType) -> None:
        self._graph = graph
        self._ranges = ranges
        self._type = type_
        self._restored: dict[str, str] = {}  # tensor -> what its quantized form stands for, in float

    @property
    def activations(self) -> int:
        return sum(name in self._ranges for name in self._restored)

    def rewrite_product(self, node: NodeProto) -> None:
        activation, weight = node.input
        self._graph.add("MatMul", [self._restore_activation(activation), self._restore_weight(weight)], node.output[0])

    def _restore_activation(self, name: str) -> str:
        if name not in self._restored:
            scale, zero_point = find_code(self._ranges[name], self._type)
            code = [
                self._graph.constant(f"{name}_scale_{self._type}", np.asarray(scale)),
                self._graph.constant(f"{name}_zero_{self._type}", np.asarray(zero_point)),
            ]
            self._graph.add("QuantizeLinear", [name, *code], f"{name}_{self._type}")
            self._restored[name] = f"{name}_restored"
            self._graph.add("DequantizeLinear", [f"{name}_{self._type}", *code], self._restored[name])
        return self._restored[name]

    def _restore_weight(self, name: str) -> str:
        if name not in self._restored:
            columns, scales = self._graph.quantize_weight(name)
            integers = self._graph.constant(f"{name}_int8", columns)
            column_scales = self._graph.constant(f"{name}_scale", scales)
            self._restored[name] = f"{name}_restored"
            self._graph.add("DequantizeLinear", [integers, column_scales], self._restored[name], axis=1)
        return self._restored[name]
