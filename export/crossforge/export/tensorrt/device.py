"""The GPU of this machine, asked for in a way that cannot crash where there is none."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from crossforge.profiles import MachineError, MissingPackageError
from crossforge.runtime.machine import inspect_machine

_AHEAD_OF_TIME = "Name the GPUs to build for, as in --target sm86,sm89: tensorrt-rtx compiles for them without having one."


@dataclass(frozen=True, kw_only=True)
class Device:
    """The first visible GPU."""

    name: str
    """Such as ``NVIDIA L4``."""
    compute_capability: str
    """Such as ``sm89``."""


def find_device() -> Device:
    """Ask the driver, then CUDA's runtime. No inference engine is asked: some crash where there is no GPU.

    Raises:
        MachineError: There is no usable GPU.
        MissingPackageError: There is one, but cuda-bindings is not installed.
    """
    machine = inspect_machine()
    if not machine.gpus:
        raise MachineError(f"this machine has no usable GPU: {machine.gpu_reason}", fix=_AHEAD_OF_TIME)
    try:
        cudart = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingPackageError("cuda-bindings", extra="rtx", purpose="Building for this machine's GPU") from error
    status, count = cudart.cudaGetDeviceCount()
    if int(status) or not count:
        raise MachineError(f"CUDA cannot use {machine.gpus[0]} (cudaGetDeviceCount answered {status})", fix=_AHEAD_OF_TIME)
    status, properties = cudart.cudaGetDeviceProperties(0)
    if int(status):
        raise MachineError(f"CUDA cannot describe {machine.gpus[0]} (it answered {status})", fix=_AHEAD_OF_TIME)
    return Device(
        name=properties.name.decode(errors="replace"), compute_capability=f"sm{properties.major}{properties.minor}"
    )
