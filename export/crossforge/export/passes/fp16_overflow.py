"""Finding what float16 would overflow, by running the float32 graph on real pairs."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from crossforge.export.onnx import save_onnx
from crossforge.export.passes.fp16 import LARGEST, PrecisionPlan, prepare
from crossforge.profiles import InputError
from crossforge.runtime.batching import Batch

_ERRORS_ONLY = 3


def find_overflows(model: ModelProto, batches: Iterable[Batch], *, limit: float = LARGEST * 0.5) -> tuple[str, ...]:
    """Find the nodes that must not compute in float16.

    Only nodes that :func:`~crossforge.export.passes.fp16.convert_fp16` would convert are looked at, so masks, normalizations
    and the head do not count. Padding does count: an infinity there becomes NaN where attention multiplies it by zero.

    Args:
        model: A float32 reranker; not changed.
        batches: Real pairs, as the runtime batches them.
        limit: The largest magnitude that is left to float16. Half of what it can hold leaves room for other pairs.

    Returns:
        Names for ``keep_fp32_nodes``, in the graph's order: nodes with an input or an output beyond the limit.

    Raises:
        InputError: There are no batches.
    """
    prepared, _ = prepare(model)
    plan = PrecisionPlan(prepared)
    touched = {
        node.name: [name for name in (*plan.streams(node), *node.output) if name in plan.floats]
        for node in prepared.graph.node
        if node.name in plan.half
    }
    names = sorted({name for tensors in touched.values() for name in tensors})
    largest = _measure(prepared, names, batches)
    return tuple(node for node, tensors in touched.items() if not all(largest[name] <= limit for name in tensors))


def _measure(model: ModelProto, names: Collection[str], batches: Iterable[Batch]) -> dict[str, float]:
    """Largest magnitude of each tensor, NaN if it is not a number anywhere.

    Each is reduced to one number inside the graph, so that no activation outlives the nodes that read it.
    """
    if not names:
        return {}
    measures = [f"{name}_largest" for name in names]
    for name, measure in zip(names, measures, strict=True):
        model.graph.node.append(helper.make_node("Abs", [name], [f"{measure}_abs"]))
        model.graph.node.append(helper.make_node("ReduceMax", [f"{measure}_abs"], [measure], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(measure, TensorProto.FLOAT, []))
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(model, path)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    answers = [session.run(measures, batch) for batch in batches]
    if not answers:
        raise InputError("there is nothing to measure activations on", got="no batches", allowed="one or more")
    return dict(zip(names, np.max(answers, axis=0).tolist(), strict=True))
