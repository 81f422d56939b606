"""Error numbers of CUDA's runtime, as ``cudaError_t`` has them, whoever reports them."""

from __future__ import annotations

from collections.abc import Mapping

OUT_OF_MEMORY = 2
STICKY: Mapping[int, str] = {
    46: "the device is busy or unavailable",
    214: "uncorrectable memory error",
    220: "the NVLink failed",
    700: "illegal memory access",
    702: "a kernel ran too long",
    709: "the context is destroyed",
    710: "a device assertion failed",
    714: "hardware stack error",
    715: "illegal instruction",
    716: "misaligned address",
    718: "invalid program counter",
    719: "a kernel failed",
}
"""Errors after which CUDA answers every call with the same error."""
