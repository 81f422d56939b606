"""What an exception of ONNX Runtime means for a GPU: memory is full, the device is lost, or something else.

ONNX Runtime has one exception class for each of its status codes, and no code for a full memory: what the arena throws
arrives as ``Fail`` or ``RuntimeException`` among all others, so its words have to be read. CUDA's own errors carry their
number in the message. The words are those of ONNX Runtime's sources, ``core/framework/bfc_arena.cc`` and
``core/providers/cuda/cuda_call.cc``.
"""

from __future__ import annotations

import re

from crossforge.profiles import DeviceLostError, DeviceMemoryError, EngineError
from crossforge.runtime.sessions.cuda_errors import OUT_OF_MEMORY, STICKY

_MEMORY_IS_FULL = (
    "Failed to allocate memory for requested buffer of size",  # the device has no more
    "is smaller than requested bytes of",  # the limit that was set (gpu_mem_limit) is reached
    "Failed to find a free memory block despite calling Extend",
    "out of memory",  # CUDA's own words for its error 2, where a message leaves the number out
)
_LIBRARY_IS_OUT_OF_MEMORY = re.compile(r"CU(BLAS|DNN|SOLVER|FFT)\w*_STATUS_\w*ALLOC\w*_FAILED")
_CUDA_NUMBER = re.compile(r"\bCUDA failure (\d+):")
_RESET = "DeviceReset"
"""The class for the status code ``DEVICE_RESET``; by name, since older releases have none."""


def explain_failure(error: Exception) -> EngineError:
    """The error of our tree for what ONNX Runtime raised on a GPU; to be raised from it.

    Args:
        error: Any exception of a run.
    """
    text, reason = str(error), first_line(error)
    number = next((int(match) for match in _CUDA_NUMBER.findall(text)), None)
    if number is not None and number in STICKY:
        return DeviceLostError(f"the GPU is lost: {STICKY[number]}", got=reason)
    if type(error).__name__ == _RESET:
        return DeviceLostError("the GPU was reset", got=reason)
    if number == OUT_OF_MEMORY or any(words in text for words in _MEMORY_IS_FULL) or _LIBRARY_IS_OUT_OF_MEMORY.search(text):
        return DeviceMemoryError("the GPU has no memory left", got=reason)
    return EngineError(f"ONNX Runtime failed on a batch ({reason})")


def first_line(error: BaseException) -> str:
    """The first line of a message, or the error's name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
