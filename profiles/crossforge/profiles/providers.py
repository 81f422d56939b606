"""Execution providers: what a session's arithmetic runs on."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from crossforge.profiles.precision import Precision


class ExecutionProvider(StrEnum):
    """An inference backend."""

    TENSORRT = "tensorrt"
    CUDA = "cuda"
    NATIVE = "native"
    """Our own engine for int8 encoders, compiled by ``crossforge native``."""
    CPU = "cpu"
    OPENVINO = "openvino"
    """OpenVINO on the processor. ``auto`` does not take it: ``crossforge tune`` finds out where it is faster."""

    @property
    def serves_any_workers(self) -> bool:
        """Whether one session serves any number of workers; others are made for a number of them."""
        return self in (ExecutionProvider.NATIVE, ExecutionProvider.CPU)

    @property
    def onnxruntime_name(self) -> str:
        """The provider's name in ONNX Runtime; blank for engines that are not part of it."""
        return {
            ExecutionProvider.NATIVE: "",
            ExecutionProvider.OPENVINO: "",
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
    ExecutionProvider.NATIVE,
    ExecutionProvider.CPU,
)
"""What ``auto`` takes, best first."""

RUNS_ONLY: Mapping[ExecutionProvider, tuple[Precision, ...]] = {
    ExecutionProvider.NATIVE: (Precision.INT8_NATIVE,),
    ExecutionProvider.OPENVINO: (
        Precision.FP32,
        Precision.BF16_OPENVINO,
        Precision.INT8_OPENVINO,
        Precision.INT8_DYNAMIC_OPENVINO,
    ),
}
"""The variants of engines that do not run every ONNX file."""
ENGINE_OF: Mapping[Precision, ExecutionProvider] = {
    precision: provider
    for provider, precisions in RUNS_ONLY.items()
    for precision in precisions
    if precision is not Precision.FP32
}
"""The one engine of a variant that no other runs."""


def mismatch(provider: ExecutionProvider, precision: Precision) -> str | None:
    """The reason for which a provider cannot run a variant, whatever the machine; None if it can."""
    engine = ENGINE_OF.get(precision, provider)
    if engine is not provider:
        return f"only the {engine} engine runs {precision}"
    if precision not in RUNS_ONLY.get(provider, (precision,)):
        return f"it runs {', '.join(RUNS_ONLY[provider])}, not {precision}"
    return None
