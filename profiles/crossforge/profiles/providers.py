"""Execution providers: what a session's arithmetic runs on."""

from __future__ import annotations

from enum import StrEnum


class ExecutionProvider(StrEnum):
    """An inference backend, in the order in which ``auto`` prefers them."""

    TENSORRT = "tensorrt"
    CUDA = "cuda"
    NATIVE = "native"
    """Our own engine for int8 encoders on processors with AVX-512 VNNI, compiled by ``crossforge native``."""
    CPU = "cpu"

    @property
    def is_cpu(self) -> bool:
        """Whether it computes on the processor."""
        return self in (ExecutionProvider.NATIVE, ExecutionProvider.CPU)

    @property
    def onnxruntime_name(self) -> str:
        """The provider's name in ONNX Runtime; blank for the native engine, which is not part of it."""
        return {
            ExecutionProvider.NATIVE: "",
            ExecutionProvider.TENSORRT: "TensorrtExecutionProvider",
            ExecutionProvider.CUDA: "CUDAExecutionProvider",
            ExecutionProvider.CPU: "CPUExecutionProvider",
        }[self]


PREFERENCE: tuple[ExecutionProvider, ...] = (
    ExecutionProvider.TENSORRT,
    ExecutionProvider.CUDA,
    ExecutionProvider.NATIVE,
    ExecutionProvider.CPU,
)
"""Best first."""
