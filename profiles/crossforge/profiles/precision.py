"""Numeric precision of a model variant."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath


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
    INT8_NATIVE = "int8_native"
    """For the native engine: the weights and scales of INT8, in a file of its own."""
    BF16_OPENVINO = "bf16_openvino"
    """For OpenVINO: the float32 graph, computed in bfloat16."""
    INT8_OPENVINO = "int8_openvino"
    """For OpenVINO: one fixed scale an activation, from calibration pairs."""
    INT8_DYNAMIC_OPENVINO = "int8_dynamic_openvino"
    """For OpenVINO: int8 weights, and a scale for each group of a token's activations as they come."""

    @property
    def file_name(self) -> str:
        """The name of the variant's file: an ONNX file's as Hugging Face repositories have it."""
        if self is Precision.INT8_NATIVE:
            return "model_int8.safetensors"
        if self in (Precision.INT8_OPENVINO, Precision.INT8_DYNAMIC_OPENVINO):
            return f"model_{self.value.removesuffix('_openvino')}.xml"
        return "model.onnx" if self in (Precision.FP32, Precision.BF16_OPENVINO) else f"model_{self.value}.onnx"

    @property
    def path(self) -> str:
        """The variant's file, relative to the bundle."""
        folder = {".xml": "openvino", ".safetensors": "native"}.get(PurePosixPath(self.file_name).suffix, "onnx")
        return f"{folder}/{self.file_name}"


EXACT_INT8_INSTRUCTION_SETS = ("avx512_vnni", "avx_vnni", "arm64")
"""Where u8 x s8 products accumulate in 32 bits (ARM is not measured yet); elsewhere 16-bit sums on the way saturate."""
BF16_INSTRUCTION_SETS = ("avx512_bf16", "amx_bf16", "bf16")
"""Where a processor multiplies bfloat16; elsewhere OpenVINO computes float32 instead."""
