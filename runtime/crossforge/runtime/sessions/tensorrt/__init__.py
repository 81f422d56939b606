"""TensorRT engines, classic and for RTX: the same nvinfer interface, over cuda-bindings alone."""

from __future__ import annotations

from pathlib import Path

from crossforge.profiles import EngineRecord
from crossforge.runtime.sessions.tensorrt.cuda import Cuda, import_cudart
from crossforge.runtime.sessions.tensorrt.engine import import_tensorrt, load_engine
from crossforge.runtime.sessions.tensorrt.lane import EngineLane
from crossforge.runtime.sessions.tensorrt.session import Lane, TensorRTSession

__all__ = ["Lane", "TensorRTSession", "open_tensorrt_session"]


def open_tensorrt_session(
    path: Path, record: EngineRecord, *, lanes: int = 1, allow_host_code: bool = False, cuda_graphs: bool = False
) -> TensorRTSession:
    """Load an engine on this machine's first GPU.

    Args:
        path: The engine's file.
        record: Its sidecar.
        lanes: Batches that may run at the same time, each with buffers of its own.
        allow_host_code: Load an engine that embeds code for the host.
        cuda_graphs: Replay the shapes that come most often as CUDA graphs.

    Raises:
        MissingPackageError: TensorRT or cuda-bindings is not installed.
        ProviderUnavailableError: CUDA finds no device.
        EngineError: The engine does not load, or there is no memory for its buffers.
    """
    cuda = Cuda(import_cudart(record.spec.backend.extra))  # first: TensorRT may crash where there is no device
    engine = load_engine(path, import_tensorrt(record.spec.backend), allow_host_code=allow_host_code)
    return TensorRTSession(
        [EngineLane(engine, cuda, cuda_graphs=cuda_graphs) for _ in range(lanes)],
        engine.profiles,
        [tensor.name for tensor in engine.inputs],
    )
