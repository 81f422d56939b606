"""Fusion for ONNX Runtime's CPU provider, done once at export instead of at every load.

ONNX Runtime fuses a graph when it loads it. Doing that ahead of time takes about a quarter off loading the demo model and
leaves a smaller file to parse. One fusion is left out: with large batches the CPU kernel of SkipLayerNormalization takes
longer than Add and LayerNormalization do (docs/cpu.md).

Requires: a graph that ONNX Runtime loads, weights below 2 GB.
Ensures: same inputs and outputs, same logits up to float32 rounding. The result holds ``com.microsoft`` operators, so it is
for ONNX Runtime alone: never give it to TensorRT or OpenVINO.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import ModelProto

from crossforge.export.onnx import weight_bytes
from crossforge.export.options import EXTERNAL_DATA_THRESHOLD_BYTES
from crossforge.export.passes.result import PassResult

NEVER_ON_CPU = ("SkipLayerNormFusion",)
"""Optimizers of ONNX Runtime that make a reranker slower on the CPU."""
_ERRORS_ONLY = 3


def fuse_for_cpu(model: ModelProto) -> PassResult:
    """Apply ONNX Runtime's graph optimizations for the CPU, but those that do not pay.

    Args:
        model: A reranker, float32 or int8; not changed.
    """
    if weight_bytes(model) >= EXTERNAL_DATA_THRESHOLD_BYTES:
        copy = ModelProto()
        copy.CopyFrom(model)
        return PassResult(model=copy, changed=False, notes=("not fused ahead of time: 2 GB of weights or more",))
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # The extended level is the last that does not depend on the processor that it runs on.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="crossforge-") as folder:
        path = Path(folder) / "fused.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(NEVER_ON_CPU),
        )
        fused: ModelProto = onnx.load(str(path))
    if _kinds(fused) == _kinds(model):  # written in another order, perhaps, and with opsets that nothing needs
        fused.CopyFrom(model)
        return PassResult(model=fused, changed=False, notes=("not applicable: nothing is left to fuse",))
    notes = (f"{len(model.graph.node)} nodes fused to {len(fused.graph.node)}",)
    return PassResult(model=fused, changed=True, notes=notes)


def _kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)
