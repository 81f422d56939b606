"""The recipe that int8 variants are made by: smooth, round by output error, quantize by token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from crossforge.export.calibration import collect_statistics
from crossforge.export.passes import PassResult, keep_first_row, quantize_int8_dynamic, settle_shapes, smooth
from crossforge.export.passes.int8_dynamic import refuse_quantized
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.passes.rounding import LEVELS, column_scales, round_by_output
from crossforge.export.recipe import Settings
from crossforge.runtime.batching import Batch

_SETTINGS: Settings = {
    "method": "dynamic",
    "activations": "uint8, one scale a token, LayerNorm outputs smoothed",
    "weights": "int8, symmetric, one scale a column, rounded by output error",
    "embeddings": "int8, symmetric, one scale a row",
}


@dataclass(frozen=True, kw_only=True)
class DynamicRecipe:
    """A model that is ready to be quantized, wholly or in part."""

    model: ModelProto
    """Smoothed, its last layer cut to the row that the head reads, no shape computed that is known; still float32: the same
    logits up to rounding."""
    rounded: dict[str, NDArray[np.int8]]
    """Each encoder weight in int8, by name."""
    smoothed: int
    """Activations that were smoothed."""
    levels: int
    """Steps of a weight on each side of zero."""

    @property
    def settings(self) -> Settings:
        """How it quantizes, for the manifest."""
        return _SETTINGS

    @property
    def products(self) -> tuple[str, ...]:
        """The weights of the layers that can be quantized, in the graph's order."""
        return tuple(dict.fromkeys(product.weight for product in find_encoder_products(self.model)))

    def apply(self, *, keep_fp32: Collection[str] = (), quantize_embeddings: bool = True) -> PassResult:
        """Quantize all layers but those whose weights are named."""
        result = quantize_int8_dynamic(
            self.model,
            rounded=self.rounded,
            keep_fp32=keep_fp32,
            levels=self.levels,
            quantize_embeddings=quantize_embeddings,
        )
        notes = (f"{self.smoothed} activations smoothed, {len(self.rounded)} weights rounded by output error", *result.notes)
        return PassResult(model=result.model, changed=result.changed, notes=notes)


def prepare_int8(model: ModelProto, batches: Sequence[Batch], *, levels: int = LEVELS) -> DynamicRecipe:
    """Smooth a reranker and round its weights, with what calibration pairs tell about its activations.

    The last layer is cut to the row that the head reads first, so what is learned about it is of the rows that it computes.

    Args:
        model: A float32 reranker; not changed.
        batches: Calibration pairs, as the runtime batches them.
        levels: Steps of a weight on each side of zero.

    Raises:
        InputError: The model is already quantized.
    """
    refuse_quantized(model)
    model = keep_first_row(model).model
    widths = {product.activation: product.width for product in find_encoder_products(model)}
    current = model
    rounded: dict[str, NDArray[np.int8]] = {}
    smoothed = 0
    for statistics in collect_statistics(model, widths, batches):
        step = smooth(current, statistics)
        current = step.model
        smoothed += len(step.scales)
        seen = dict(statistics)
        for name, scale in step.scales.items():
            seen[name] = statistics[step.sources[name]].divided_by(scale)
        weights = {tensor.name: tensor for tensor in current.graph.initializer}
        for product in find_encoder_products(current):
            if product.activation in seen and product.weight not in rounded:
                gram = seen[product.activation].gram
                weight = numpy_helper.to_array(weights[product.weight])
                rounded[product.weight] = round_by_output(weight, column_scales(weight, levels), gram, levels)
    return DynamicRecipe(model=settle_shapes(current).model, rounded=rounded, smoothed=smoothed, levels=levels)


def quantize_int8(model: ModelProto, batches: Sequence[Batch]) -> PassResult:
    """Prepare and apply the whole recipe; see :func:`prepare_int8`."""
    return prepare_int8(model, batches).apply()
