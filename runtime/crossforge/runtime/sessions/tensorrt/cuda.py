"""CUDA's runtime in the few calls that an engine needs, with its status codes turned into our errors."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import (
    DeviceLostError,
    DeviceMemoryError,
    EngineError,
    MissingPackageError,
    ProviderUnavailableError,
)
from crossforge.runtime.sessions.cuda_errors import OUT_OF_MEMORY, STICKY

_SUCCESS = 0
_NON_BLOCKING = 1


def import_cudart(extra: str) -> ModuleType:
    """Import CUDA's runtime, or say which extra brings it.

    Raises:
        MissingPackageError: cuda-bindings is not installed.
        ProviderUnavailableError: CUDA finds no device. This is asked before anything that can crash without one.
    """
    try:
        cudart = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingPackageError("cuda-bindings", extra=extra, purpose="Running a TensorRT engine") from error
    status, count = cudart.cudaGetDeviceCount()
    if int(status) != _SUCCESS or not count:
        raise ProviderUnavailableError(f"CUDA finds no GPU (cudaGetDeviceCount answered {int(status)})")
    return cudart


class Cuda:
    """The calls of one device.

    Args:
        cudart: ``cuda.bindings.runtime``, or what stands in for it.
    """

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart

    def call(self, name: str, *arguments: object) -> Any:
        """Call a function of the runtime; gives what it answers beside its status.

        Raises:
            DeviceMemoryError: Memory is full.
            DeviceLostError: The device is in an error that does not go away.
            EngineError: Another status than success.
        """
        status, *values = getattr(self._cudart, name)(*arguments)
        code = int(status)
        if code == OUT_OF_MEMORY:
            self._cudart.cudaGetLastError()  # or the next call would report it again
            raise DeviceMemoryError("the GPU has no memory left", got=f"{name}{arguments}")
        if code in STICKY:
            raise DeviceLostError(f"the GPU is lost: {STICKY[code]}", got=f"CUDA error {code} in {name}")
        if code != _SUCCESS:
            self._cudart.cudaGetLastError()
            raise EngineError("CUDA failed", got=f"error {code} in {name}")
        return values[0] if values else None

    def create_stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self.call("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def destroy_stream(self, stream: Any) -> None:
        """Destroy a stream."""
        with contextlib.suppress(DeviceLostError):
            self.call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until everything on a stream is done."""
        self.call("cudaStreamSynchronize", stream)

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """Record what is put on a stream, instead of running it.

        Args:
            stream: Nothing may be running on it.
            enqueue: Puts work on it, and neither waits nor allocates.

        Returns:
            A graph to launch, of the caller.

        Raises:
            EngineError: CUDA cannot record it, or ``enqueue`` failed. The stream is usable as before.
        """
        # Of this thread alone: others may allocate meanwhile.
        self.call("cudaStreamBeginCapture", stream, self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(EngineError):
                self.call("cudaGraphDestroy", self.call("cudaStreamEndCapture", stream))
            raise
        recorded = self.call("cudaStreamEndCapture", stream)
        try:
            return self.call("cudaGraphInstantiate", recorded, 0)
        finally:
            self.call("cudaGraphDestroy", recorded)

    def launch(self, graph: Any, stream: Any) -> None:
        """Run what was recorded."""
        self.call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Destroy what :meth:`capture` gave; it must not be running."""
        with contextlib.suppress(DeviceLostError):
            self.call("cudaGraphExecDestroy", graph)

    def copy_in(self, device: int, host: NDArray[np.generic], stream: Any) -> None:
        """Copy an array of pinned memory to the device, in the stream's order."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", device, host.ctypes.data, host.nbytes, kind, stream)

    def copy_out(self, host: NDArray[np.generic], device: int, stream: Any) -> None:
        """Copy from the device into an array of pinned memory, in the stream's order."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", host.ctypes.data, device, host.nbytes, kind, stream)


class DeviceBuffer:
    """Memory of the device that grows and never shrinks."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self.size_bytes = 0

    def grow(self, size_bytes: int) -> bool:
        """Hold at least so much; says whether the address changed. The content is lost where it did.

        Raises:
            DeviceMemoryError: There is not so much. The buffer is then empty.
        """
        if size_bytes <= self.size_bytes:
            return False
        self.free()
        self.address = int(self._cuda.call("cudaMalloc", size_bytes))
        self.size_bytes = size_bytes
        return True

    def free(self) -> None:
        """Give the memory back."""
        address, self.address, self.size_bytes = self.address, 0, 0
        if address:
            with contextlib.suppress(DeviceLostError):  # its memory went with it
                self._cuda.call("cudaFree", address)


class PinnedBuffer:
    """Memory of the host that the device copies from and to by itself; of a fixed size."""

    def __init__(self, cuda: Cuda, size_bytes: int) -> None:
        self._cuda = cuda
        self._address = int(cuda.call("cudaMallocHost", size_bytes))
        self._bytes = _as_bytes(self._address, size_bytes)

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The start of the buffer as an array."""
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        return self._bytes[:size_bytes].view(dtype).reshape(shape)

    def free(self) -> None:
        """Give the memory back; views of it must not be used any more."""
        address, self._address = self._address, 0
        if address:
            with contextlib.suppress(DeviceLostError):
                self._cuda.call("cudaFreeHost", address)


def _as_bytes(address: int, size_bytes: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
