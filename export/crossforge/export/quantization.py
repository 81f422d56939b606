"""The recipe that int8 variants are made by: smooth, round by output error, quantize by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from crossforge.export.calibration import collect_statistics
from crossforge.export.passes import PassResult, quantize_int8_dynamic, smooth
from crossforge.export.passes.products import find_encoder_products
from crossforge.export.passes.rounding import column_scales, round_by_output
from crossforge.runtime.batching import Batch

INT8_SETTINGS: dict[str, str | int | float | bool] = {
    "method": "dynamic",
    "activations": "uint8, one scale a token, LayerNorm outputs smoothed",
    "weights": "int8, symmetric, one scale a column, rounded by output error",
    "embeddings": "int8, symmetric, one scale a row",
}
"""What the manifest says of a variant made by :func:`quantize_int8`."""


def quantize_int8(model: ModelProto, batches: Sequence[Batch]) -> PassResult:
    """Quantize a reranker with what calibration pairs tell about its activations.

    Args:
        model: A float32 reranker; not changed.
        batches: Calibration pairs, as the runtime batches them.

    Raises:
        InputError: The model is already quantized, or its opset is below 13.
    """
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
                weight = numpy_helper.to_array(weights[product.weight])
                rounded[product.weight] = round_by_output(weight, column_scales(weight), seen[product.activation].gram)
    quantized = quantize_int8_dynamic(current, rounded=rounded)
    notes = (f"{smoothed} activations smoothed, {len(rounded)} weights rounded by output error", *quantized.notes)
    return PassResult(model=quantized.model, changed=quantized.changed, notes=notes)
