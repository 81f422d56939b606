"""How close a variant comes to what this machine can multiply.

The ceiling is the rate of one large product in the variant's arithmetic, run by the engine that runs the variant on as many
cores as it has workers. The work is counted from the fp32 graph as it is stored, which every variant computes. Only
ONNX Runtime on the CPU, in float32 and int8, is measured; elsewhere a single product includes the copies to the device.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import ExecutionProvider, Manifest, Precision
from crossforge.runtime.profiling.product_model import product_model
from crossforge.runtime.profiling.report import LatencyRow
from crossforge.runtime.sessions.ort import import_onnxruntime

_ROWS, _INNER, _COLUMNS = 384, 1024, 1024
"""As many rows as a batch has tokens; the weights fit a core's cache."""
_SECONDS = 0.6
_ROUNDS = 12
_PRODUCTS = ("MatMul", "Gemm")


def gemm_share(rows: Sequence[LatencyRow], operations: Mapping[int, int], ceiling: float | None) -> float | None:
    """The largest share of a ceiling that any row reaches; None too if that is above 1: the ceiling was measured too low.

    Args:
        rows: One variant's.
        operations: Multiplications and additions of the products in a pair of so many tokens.
        ceiling: Operations a second; None where not measured.
    """
    rates = [
        operations[row.sequence_length] * row.candidates / row.percentile_ms(50) * 1e3
        for row in rows
        if operations.get(row.sequence_length)
    ]
    if not rates or not ceiling:
        return None
    share = max(rates) / ceiling
    return share if share <= 1 else None


def measure_ceiling(provider: str, precision: Precision, *, workers: int) -> float | None:
    """Operations a second that a large product reaches, the best of a few rounds; None where that cannot be measured."""
    if provider != ExecutionProvider.CPU or precision not in (Precision.FP32, Precision.INT8):
        return None
    random = np.random.default_rng(0)
    left: NDArray[Any]
    right: NDArray[Any]
    if precision is Precision.FP32:
        left = random.standard_normal((_ROWS, _INNER)).astype(np.float32)
        right = random.standard_normal((_INNER, _COLUMNS)).astype(np.float32)
        model = product_model("MatMul", left, right, np.float32)
    else:
        left = random.integers(0, 255, (_ROWS, _INNER), dtype=np.uint8)
        right = random.integers(-127, 127, (_INNER, _COLUMNS), dtype=np.int8)
        model = product_model("MatMulInteger", left, right, np.int32)
    session = _session(model)
    operations = 2 * _ROWS * _INNER * _COLUMNS

    def run(repeats: int) -> None:
        for _ in range(repeats):
            session.run(None, {"left": left})

    def seconds(pool: ThreadPoolExecutor, repeats: int) -> float:
        start = time.perf_counter()
        list(pool.map(run, [repeats] * workers))
        return time.perf_counter() - start

    with ThreadPoolExecutor(workers) as pool:
        seconds(pool, 2)
        repeats = max(1, int(_SECONDS / _ROUNDS / seconds(pool, 1)))
        best = min(seconds(pool, repeats) for _ in range(_ROUNDS))
    return operations * repeats * workers / best


def count_operations(path: Path, manifest: Manifest, lengths: Sequence[int]) -> dict[int, int]:
    """Multiplications and additions of the matrix products in one pair of each length.

    ONNX Runtime runs the graph as it is stored, and its profile tells the shapes.

    Args:
        path: A float32 graph of standard operators.
        manifest: Names its inputs.
        lengths: Tokens of a pair.
    """
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            session = _session(str(path), profile=str(Path(folder) / f"{length}"))
            inputs = {name: np.zeros((1, length), dtype=np.int64) for name in manifest.input_names}
            if "attention_mask" in inputs:
                inputs["attention_mask"] += 1
            session.run(None, inputs)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            counts[length] = sum(_operations(event.get("args", {})) for event in events)
    return counts


def _operations(node: Mapping[str, Any]) -> int:
    """Two for each element of a product and each element of the sum behind it; 0 for what is no product."""
    if node.get("op_name") not in _PRODUCTS or "input_type_shape" not in node:
        return 0
    (left,) = node["input_type_shape"][0].values()
    (product,) = node["output_type_shape"][0].values()
    inner = left[-1] if node["op_name"] == "MatMul" else math.prod(left) // product[0]
    return int(2 * math.prod(product) * inner)


def _session(model: str | bytes, *, profile: str | None = None) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=[ExecutionProvider.CPU.onnxruntime_name])
