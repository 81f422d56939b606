"""Execution providers: what a session's arithmetic runs on."""

from __future__ import annotations

from enum import StrEnum


class ExecutionProvider(StrEnum):
    """An inference backend, in the order in which ``auto`` prefers them."""

    TENSORRT = "tensorrt"
    CUDA = "cuda"
    CPU = "cpu"

    @property
    def onnxruntime_name(self) -> str:
        """The provider's name in ONNX Runtime."""
        return {
            ExecutionProvider.TENSORRT: "TensorrtExecutionProvider",
            ExecutionProvider.CUDA: "CUDAExecutionProvider",
            ExecutionProvider.CPU: "CPUExecutionProvider",
        }[self]


PREFERENCE: tuple[ExecutionProvider, ...] = (
    ExecutionProvider.TENSORRT,
    ExecutionProvider.CUDA,
    ExecutionProvider.CPU,
)
"""Best first."""
