"""The range that each activation takes on real pairs, for quantization with fixed scales."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from crossforge.export.calibration import token_rows
from crossforge.export.histograms import Histogram, find_entropy_threshold, find_percentile_range
from crossforge.export.onnx import save_onnx
from crossforge.export.options import RangeMethod
from crossforge.profiles import InputError
from crossforge.runtime.batching import Batch

PERCENTILE = 99.99
"""Share of the values that stay inside a range found by percentile."""
_TENSORS_AT_ONCE = 32
"""Activations that one run of a batch answers: bounds the memory that they take together."""
_ERRORS_ONLY = 3
_SUFFIX = "_observed"


@dataclass(frozen=True, kw_only=True)
class ActivationRange:
    """The values of an activation that quantization must tell apart; those beyond are clipped.

    Raises:
        InputError: An end is not finite, or the ends are the wrong way round.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low <= self.high):
            raise InputError("not a range of values", got=f"{self.low} to {self.high}", allowed="finite ends, low first")

    @property
    def magnitude(self) -> float:
        """The end that is farther from zero: what a symmetric code reaches to on both sides."""
        return max(abs(self.low), abs(self.high))

    @property
    def symmetric(self) -> ActivationRange:
        """The narrowest range around zero that holds this one."""
        return ActivationRange(low=-self.magnitude, high=self.magnitude)

    def clipped(self, low: float, high: float) -> ActivationRange:
        """This range where it lies inside another."""
        return ActivationRange(low=max(self.low, low), high=min(self.high, high))


def collect_ranges(
    model: ModelProto,
    names: Iterable[str],
    batches: Sequence[Batch],
    method: RangeMethod = RangeMethod.MINMAX,
    *,
    percentile: float = PERCENTILE,
) -> dict[str, ActivationRange]:
    """Run batches and find the range of activations. Padding does not count.

    Args:
        model: A float32 graph; not changed.
        names: Activations, float32 [batch, sequence, hidden], or [batch, 1, hidden] where a graph computes its last layer
            for the first row alone.
        batches: Inputs with an attention mask, run once, or twice for another method than ``minmax``.
        method: How much a range covers.
        percentile: For that method, the share of the values that stay inside, above 0 to 100.

    Returns:
        Ranges by name. Activations that are not of the batch's tokens (a table of relative positions, say) are left out.

    Raises:
        InputError: There are no batches, the percentile is not one, the graph does not compute an activation of that name,
            or an activation is not finite.
    """
    method = RangeMethod(method)
    if not 0 < percentile <= 100:
        raise InputError("the percentile is not one", got=percentile, allowed="above 0 to 100")
    if not batches:
        raise InputError("there is nothing to measure activations on", got="no batches", allowed="one or more")
    wanted = list(dict.fromkeys(names))
    _check_names(model, wanted)
    ranges: dict[str, ActivationRange] = {}
    for start in range(0, len(wanted), _TENSORS_AT_ONCE):
        observe = _open_observer(model, wanted[start : start + _TENSORS_AT_ONCE])
        seen = _find_extremes(observe, batches)
        if method is not RangeMethod.MINMAX:
            for name, histogram in _count(observe, batches, seen).items():
                if method is RangeMethod.PERCENTILE:
                    low, high = find_percentile_range(histogram, percentile)
                else:
                    high = find_entropy_threshold(histogram)
                    low = -high
                seen[name] = seen[name].clipped(low, high)
        ranges |= seen
    return ranges


Observer = Callable[[Batch], Iterator[tuple[str, NDArray[np.float32] | None]]]
"""Gives, for one batch, each activation's values of real tokens; None where it is not of the batch's tokens."""


def _find_extremes(observe: Observer, batches: Sequence[Batch]) -> dict[str, ActivationRange]:
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    elsewhere: set[str] = set()
    for batch in batches:
        for name, values in observe(batch):
            if values is None:
                elsewhere.add(name)
                continue
            low, high = float(values.min()), float(values.max())
            if not (isfinite(low) and isfinite(high)):
                raise InputError(f"the activation {name} is not finite on the calibration pairs", got=f"{low} to {high}")
            lows[name] = min(low, lows.get(name, low))
            highs[name] = max(high, highs.get(name, high))
    return {name: ActivationRange(low=lows[name], high=highs[name]) for name in lows if name not in elsewhere}


def _count(observe: Observer, batches: Sequence[Batch], seen: dict[str, ActivationRange]) -> dict[str, Histogram]:
    """Histograms of the activations that are not zero everywhere."""
    histograms = {name: Histogram.empty(extremes.magnitude) for name, extremes in seen.items() if extremes.magnitude > 0}
    for batch in batches:
        for name, values in observe(batch):
            if values is not None and name in histograms:
                histograms[name] = histograms[name].with_values(values)
    return histograms


def _open_observer(model: ModelProto, names: Sequence[str]) -> Observer:
    copy = ModelProto()
    copy.CopyFrom(model)
    observed = [name + _SUFFIX for name in names]
    for name, output in zip(names, observed, strict=True):
        # A copy, because a tensor cannot be an output twice.
        copy.graph.node.append(helper.make_node("Identity", [name], [output], name=output))
        copy.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(copy, path)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def observe(batch: Batch) -> Iterator[tuple[str, NDArray[np.float32] | None]]:
        real = batch["attention_mask"].astype(bool)
        for name, value in zip(names, session.run(observed, batch), strict=True):
            yield name, token_rows(value, real)

    return observe


def _check_names(model: ModelProto, names: Sequence[str]) -> None:
    known = {*(output for node in model.graph.node for output in node.output), *(value.name for value in model.graph.input)}
    if unknown := sorted(set(names) - known):
        raise InputError("the graph computes no activation of that name", got=", ".join(unknown))
