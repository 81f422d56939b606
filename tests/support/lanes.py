"""A lane of an engine over memory of the host, and batches for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from crossforge.profiles import OptimizationProfile, ShapeRange
from crossforge.runtime.sessions.tensorrt.cuda import Cuda
from crossforge.runtime.sessions.tensorrt.engine import LoadedEngine, Tensor
from crossforge.runtime.sessions.tensorrt.lane import EngineLane
from support.fake_cuda import FakeCudart, FakeEngine

PROFILES = tuple(
    OptimizationProfile(
        batch_size=ShapeRange(min=1, opt=rows, max=rows), sequence_length=ShapeRange(min=low, opt=high, max=high)
    )
    for low, high, rows in ((1, 16, 8), (17, 32, 4))
)
"""The first takes up to 8 rows of up to 16 tokens, the second up to 4 of 17 to 32."""


def make_lane(
    cudart: FakeCudart | None = None, *, cuda_graphs: bool = False, records_graphs: bool = False, **engine: Any
) -> tuple[EngineLane, FakeCudart, FakeEngine]:
    """A lane, and what it runs on.

    Args:
        cudart: The device.
        cuda_graphs: As the lane takes it.
        records_graphs: Whether the engine's runtime records CUDA graphs by itself, as TensorRT for RTX does.
        engine: Fields of the fake engine.
    """
    cudart = cudart or FakeCudart()
    handle = FakeEngine(cudart, **{"profile_bytes": 2000, **engine})
    trt = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"))
    if records_graphs:
        trt.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")
    loaded = LoadedEngine(
        handle=handle,
        runtime=None,
        trt=trt,
        inputs=(
            Tensor(name="input_ids", dtype=np.dtype(np.int64)),
            Tensor(name="attention_mask", dtype=np.dtype(np.int32)),
        ),
        output=Tensor(name="logits", dtype=np.dtype(np.float32)),
        labels=1,
        profiles=PROFILES,
    )
    return EngineLane(loaded, Cuda(cudart), cuda_graphs=cuda_graphs), cudart, handle


def batch_of(rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Ids that differ by position and seed, and a mask with holes."""
    ids = np.arange(rows * length, dtype=np.int64).reshape(rows, length) + 100 * seed
    return {"input_ids": ids, "attention_mask": (ids % 3 > 0).astype(np.int64)}


def expected(batch: dict[str, np.ndarray]) -> np.ndarray:
    """What the fake engine answers."""
    answer: np.ndarray = (batch["input_ids"] * batch["attention_mask"]).sum(axis=1, keepdims=True)
    return answer
