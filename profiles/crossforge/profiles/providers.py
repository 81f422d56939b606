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

    @property
    def is_cpu(self) -> bool:
        """Whether it computes on the processor: many small batches side by side, instead of a few large ones."""
        return self not in (ExecutionProvider.TENSORRT, ExecutionProvider.CUDA)


PREFERENCE: tuple[ExecutionProvider, ...] = (
    ExecutionProvider.TENSORRT,
    ExecutionProvider.CUDA,
    ExecutionProvider.CPU,
)
"""Best first."""
