"""The recipe with fixed activation scales: smooth, round by output error, find the ranges of what came out of that."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from crossforge.export.dynamic_quantization import DynamicRecipe, prepare_int8
from crossforge.export.options import RangeMethod
from crossforge.export.passes import PassResult
from crossforge.export.passes.int8_static import ActivationType, find_quantizable, quantize_int8_static
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.passes.rounding import LEVELS
from crossforge.export.ranges import ActivationRange, collect_ranges
from crossforge.export.recipe import Settings
from crossforge.runtime.batching import Batch

_EMBEDDINGS = {ActivationType.UINT8: "int8, symmetric, one scale a row", ActivationType.INT8: "float32"}


@dataclass(frozen=True, kw_only=True)
class StaticRecipe:
    """A model that is ready to be quantized with fixed scales, wholly or in part."""

    prepared: DynamicRecipe
    """The smoothed model, its last layer cut to the row that the head reads, and its rounded weights."""
    ranges: dict[str, ActivationRange]
    """Of the prepared model's activations, by name."""
    activations: ActivationType
    """How activations are stored."""
    method: RangeMethod
    """How the ranges were chosen."""

    @property
    def settings(self) -> Settings:
        """How it quantizes, for the manifest."""
        return {
            "method": "static",
            "activations": f"{self.activations}, one fixed scale a tensor ({self.method}), LayerNorm outputs smoothed",
            "weights": "int8, symmetric, one scale a column, rounded by output error",
            "embeddings": _EMBEDDINGS[self.activations],
        }

    @property
    def products(self) -> tuple[str, ...]:
        """The weights of the layers that can be quantized, in the graph's order."""
        return find_quantizable(self.prepared.model, self.ranges)

    def apply(self, *, keep_fp32: Collection[str] = (), quantize_embeddings: bool | None = None) -> PassResult:
        """Quantize all layers but those whose weights are named; see :func:`quantize_int8_static`."""
        result = quantize_int8_static(
            self.prepared.model,
            self.ranges,
            activations=self.activations,
            rounded=self.prepared.rounded,
            keep_fp32=keep_fp32,
            levels=self.prepared.levels,
            quantize_embeddings=quantize_embeddings,
        )
        done = f"{self.prepared.smoothed} activations smoothed, {len(self.prepared.rounded)} weights rounded by output error"
        return PassResult(model=result.model, changed=result.changed, notes=(done, *result.notes))


def prepare_int8_static(
    model: ModelProto,
    batches: Sequence[Batch],
    *,
    activations: ActivationType,
    method: RangeMethod = RangeMethod.MINMAX,
    levels: int = LEVELS,
) -> StaticRecipe:
    """Smooth a reranker, round its weights and find its activations' ranges, all on calibration pairs.

    Args:
        model: A float32 reranker; not changed.
        batches: Calibration pairs, as the runtime batches them.
        activations: How activations are stored.
        method: How much of what calibration shows a range covers.
        levels: Steps of a weight on each side of zero.

    Raises:
        InputError: The model is already quantized, or there are no calibration pairs.
    """
    prepared = prepare_int8(model, batches, levels=levels)
    names = [product.activation for product in find_encoder_products(prepared.model)]
    ranges = collect_ranges(prepared.model, names, batches, method)
    return StaticRecipe(
        prepared=prepared, ranges=ranges, activations=ActivationType(activations), method=RangeMethod(method)
    )
