"""ONNX Runtime, on the CPU and on CUDA."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import (
    BundleError,
    DeviceLostError,
    EngineError,
    ExecutionProvider,
    MissingPackageError,
    ProviderUnavailableError,
)
from crossforge.runtime.sessions.memory import MemoryLimit
from crossforge.runtime.sessions.ort_binding import BoundRuns
from crossforge.runtime.sessions.ort_errors import explain_failure, first_line

_ERRORS_ONLY = 3
_PROVIDER_OPTIONS: Mapping[ExecutionProvider, Mapping[str, str]] = {
    ExecutionProvider.CUDA: {
        "arena_extend_strategy": "kSameAsRequested",  # else the arena doubles, and memory of one large batch never returns
        "use_tf32": "0",  # fp32 means fp32; whoever wants the speed has fp16, and its figures
    },
}


class OnnxRuntimeSession:
    """A model file in ONNX Runtime, on one provider and on no other.

    On the CPU each call of ``run`` computes on the calling thread alone: parallelism comes from running several batches at
    once, which loses less at synchronization points than splitting every operator over the cores (docs/cpu.md).

    Args:
        path: The ONNX file.
        provider: Where to run. The session is refused if ONNX Runtime would run it elsewhere.
        labels: Columns that the output must have.
        io_binding: Run through IO bindings; see :class:`~crossforge.runtime.sessions.ort_binding.BoundRuns`.
        memory_limit_mb: Most MiB that CUDA's arena may take; None for all.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ProviderUnavailableError: The provider cannot be had.
        BundleError: The file is not a reranker with ``labels`` outputs.
        EngineError: ONNX Runtime cannot load the file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        provider: ExecutionProvider = ExecutionProvider.CPU,
        labels: int = 1,
        io_binding: bool = False,
        memory_limit_mb: int | None = None,
    ) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # Only read back where there is something to tell apart: it costs time and memory.
        on_gpu = provider is not ExecutionProvider.CPU
        if on_gpu:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(
                str(path),
                options,
                providers=[(provider.onnxruntime_name, provider_options(provider, memory_limit_mb=memory_limit_mb))],
                # Large batches lose to the fused kernel what they win by other fusions (docs/cpu.md).
                disabled_optimizers=None if on_gpu else ["SkipLayerNormFusion"],
                enable_fallback=0,
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            raise EngineError(f"ONNX Runtime cannot load {path} ({first_line(error)})") from error
        self._session.disable_fallback()
        self._memory = MemoryLimit() if on_gpu else None
        self._lost: DeviceLostError | None = None
        self._provider = self._check_provider(provider)
        self._inputs = {spec.name: spec for spec in self._session.get_inputs()}
        self._check_signature(path, labels)
        self._bound = BoundRuns(self._session, labels) if io_binding else None

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs."""
        return tuple(self._inputs)

    @property
    def provider(self) -> ExecutionProvider:
        """What really runs the model."""
        return self._provider

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Compute logits; see :meth:`Session.run`."""
        return self._execute(batch) if self._memory is None else self._memory.run(batch, self._execute)

    def close(self) -> None:
        """Free the model."""
        self._session = self._bound = None

    def _execute(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        session, bound = self._session, self._bound  # close() forgets them, and what runs keeps them
        if session is None:
            raise EngineError("the session is closed")
        if self._lost is not None:
            raise DeviceLostError(self._lost.what, fix="Start a new process.") from self._lost
        try:
            if bound is not None:
                return bound.run(batch)
            (logits,) = session.run(None, dict(batch))
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            if self._memory is None:
                raise EngineError(f"ONNX Runtime failed on a batch ({first_line(error)})") from error
            failure = explain_failure(error)
            if isinstance(failure, DeviceLostError):
                self._lost = failure
            raise failure from error
        return np.asarray(logits, dtype=np.float32)

    def _check_provider(self, wanted: ExecutionProvider) -> ExecutionProvider:
        running = self._session.get_providers()
        if not running or running[0] != wanted.onnxruntime_name:
            raise ProviderUnavailableError(
                f"ONNX Runtime did not load its {wanted} provider", got=", ".join(running) or "none", allowed=wanted
            )
        if wanted is not ExecutionProvider.CPU:
            assigned = {group.ep_name for group in self._session.get_provider_graph_assignment_info()}
            if wanted.onnxruntime_name not in assigned:
                raise ProviderUnavailableError(
                    f"ONNX Runtime gave no node of the model to {wanted}",
                    got=", ".join(sorted(assigned)),
                    allowed=wanted,
                )
        return wanted

    def _check_signature(self, path: str | Path, labels: int) -> None:
        outputs = self._session.get_outputs()
        shapes = ", ".join(f"{output.name} {output.shape}" for output in outputs)
        columns = outputs[0].shape[1] if len(outputs) == 1 and len(outputs[0].shape) == 2 else -1
        if isinstance(columns, int) and columns != labels:  # a symbolic size is a string or None
            raise BundleError(
                f"{path} is not a reranker with {labels} label{'s' if labels > 1 else ''}",
                got=f"outputs {shapes}",
                allowed=f"one output [batch, {labels}]",
                fix="A graph without its classification head cannot score pairs; export the whole model.",
            )


def provider_options(provider: ExecutionProvider, *, memory_limit_mb: int | None = None) -> dict[str, str]:
    """What ONNX Runtime is told of a provider.

    Args:
        provider: Which.
        memory_limit_mb: Most MiB that CUDA's arena may take; None for all. Means nothing to other providers.
    """
    options = dict(_PROVIDER_OPTIONS.get(provider, {}))
    if provider is ExecutionProvider.CUDA and memory_limit_mb is not None:
        options["gpu_mem_limit"] = str(memory_limit_mb * 2**20)
    return options


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime, or say which extra brings it."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingPackageError("onnxruntime", extra="cpu", purpose="Running a bundle") from error
