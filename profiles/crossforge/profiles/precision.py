"""Numeric precision of a model variant."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """The arithmetic that a variant's matrix products run in."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    """For ONNX Runtime on the CPU: unsigned activations, signed weights."""
    INT8_QDQ = "int8_qdq"
    """For TensorRT and CUDA: signed throughout and symmetric, as standard QuantizeLinear and DequantizeLinear pairs."""
    FP16_CUDA = "fp16_cuda"
    """For ONNX Runtime on CUDA alone: attention, residual sums and GELU as operators of its own."""

    @property
    def file_name(self) -> str:
        """The variant's file inside the bundle's ``onnx/`` folder, named as Hugging Face ONNX repositories do."""
        return "model.onnx" if self is Precision.FP32 else f"model_{self.value}.onnx"


EXACT_INT8_INSTRUCTION_SETS = ("avx512_vnni", "avx_vnni", "arm64")
"""Where u8 x s8 products accumulate in 32 bits (ARM is not measured yet); elsewhere 16-bit sums on the way saturate."""
