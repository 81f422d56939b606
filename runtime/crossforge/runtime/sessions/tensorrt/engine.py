"""Loading an engine and reading what it is: its inputs, its output, its profiles."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossforge.profiles import (
    DeviceMemoryError,
    EngineBackend,
    EngineError,
    MissingPackageError,
    OptimizationProfile,
    ShapeRange,
)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or the output of an engine."""

    name: str
    dtype: np.dtype[Any]


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """A deserialized engine. Whoever holds it keeps the runtime that made it alive."""

    handle: Any
    """``ICudaEngine``."""
    runtime: Any
    trt: Any
    """The module that it was loaded with: ``tensorrt`` or ``tensorrt_rtx``."""
    inputs: tuple[Tensor, ...]
    output: Tensor
    labels: int
    profiles: tuple[OptimizationProfile, ...]

    @property
    def records_graphs(self) -> bool:
        """Whether its runtime records CUDA graphs by itself, as TensorRT for RTX does from 1.2 on."""
        return hasattr(self.trt, "CudaGraphStrategy")


def import_tensorrt(backend: EngineBackend) -> Any:
    """Import the package that runs a backend's engines, or say which extra brings it."""
    try:
        return importlib.import_module(backend.module)
    except ImportError as error:
        raise MissingPackageError(backend.value, extra=backend.extra, purpose="Running a TensorRT engine") from error


def load_engine(path: Path, trt: Any, *, allow_host_code: bool = False) -> LoadedEngine:
    """Deserialize an engine.

    Args:
        path: The engine's file.
        trt: The module of the backend that compiled it.
        allow_host_code: Load it even if it embeds code for the host, as version-compatible engines do. That code runs with
            this process's rights.

    Raises:
        EngineError: TensorRT refuses it, or it is not a reranker.
    """
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    runtime.engine_host_code_allowed = allow_host_code
    handle = runtime.deserialize_cuda_engine(path.read_bytes())
    if handle is None:
        raise EngineError(
            f"TensorRT cannot load {path}",
            fix="It was built for another GPU, driver or version. Build it again here: crossforge build BUNDLE",
        )
    names = [handle.get_tensor_name(i) for i in range(handle.num_io_tensors)]
    inputs = [name for name in names if handle.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    shape = tuple(handle.get_tensor_shape(outputs[0])) if len(outputs) == 1 else ()
    if not inputs or len(shape) != 2:
        raise EngineError(
            f"{path} is not a reranker's engine", got=f"outputs {', '.join(outputs)}", allowed="logits [batch, labels]"
        )
    tensors = {name: Tensor(name=name, dtype=np.dtype(trt.nptype(handle.get_tensor_dtype(name)))) for name in names}
    return LoadedEngine(
        handle=handle,
        runtime=runtime,
        trt=trt,
        inputs=tuple(tensors[name] for name in inputs),
        output=tensors[outputs[0]],
        labels=int(shape[1]),
        profiles=tuple(_read_profile(handle, inputs[0], i) for i in range(handle.num_optimization_profiles)),
    )


def _read_profile(handle: Any, name: str, index: int) -> OptimizationProfile:
    shapes = [tuple(int(size) for size in shape) for shape in handle.get_tensor_profile_shape(name, index)]
    batch, sequence = (ShapeRange(min=low, opt=best, max=high) for low, best, high in zip(*shapes, strict=True))
    return OptimizationProfile(batch_size=batch, sequence_length=sequence)


def create_context(engine: LoadedEngine, *, cuda_graphs: bool = False) -> Any:
    """An ``IExecutionContext`` whose scratch memory the caller gives.

    Args:
        engine: What it runs.
        cuda_graphs: Have TensorRT for RTX record CUDA graphs by itself; see :attr:`LoadedEngine.records_graphs`.

    Raises:
        DeviceMemoryError: There is no memory for it.
        EngineError: TensorRT does not take the setting.
    """
    trt, strategy = engine.trt, engine.trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if cuda_graphs:
        config = engine.handle.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.cuda_graph_strategy = wanted = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if config.cuda_graph_strategy != wanted:
            raise EngineError("TensorRT for RTX refused CUDA graphs", fix="Switch cuda_graphs off.")
        context = engine.handle.create_execution_context(config)
    else:
        context = engine.handle.create_execution_context(strategy)
    if context is None:
        raise DeviceMemoryError("TensorRT could not create an execution context")
    return context
