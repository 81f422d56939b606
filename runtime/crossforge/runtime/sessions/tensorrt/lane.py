"""One stream of an engine: an execution context a profile, buffers that are grown once, pinned staging memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import DeviceMemoryError, EngineError
from crossforge.runtime.sessions.memory import Batch
from crossforge.runtime.sessions.tensorrt.cuda import Cuda, DeviceBuffer, PinnedBuffer
from crossforge.runtime.sessions.tensorrt.engine import LoadedEngine, Tensor


class EngineLane:
    """Runs batches of one engine on one stream; see :class:`Lane`.

    Inputs and logits have room for the largest shape of any profile from the start. Scratch memory is the engine's large
    need: it is shared by the lane's contexts, which run one after another, and grows to what a profile needs when the
    profile is first used, or, where memory is short, to what the batch at hand needs.

    Args:
        engine: What to run; shared by all lanes.
        cuda: The device's calls.

    Raises:
        DeviceMemoryError: There is no memory for inputs and logits.
    """

    def __init__(self, engine: LoadedEngine, cuda: Cuda) -> None:
        self._engine = engine
        self._cuda = cuda
        self._contexts: dict[int, Any] = {}
        self._scratch = DeviceBuffer(cuda)
        self._device: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedBuffer] = {}
        self._stream: Any = cuda.create_stream()
        rows = max(profile.batch_size.max for profile in engine.profiles)
        tokens = max(profile.batch_size.max * profile.sequence_length.max for profile in engine.profiles)
        try:
            for tensor in engine.inputs:
                self._allocate(tensor, tokens)
            self._allocate(engine.output, rows * engine.labels)
        except EngineError:
            self.close()
            raise

    def execute(self, profile: int, batch: Batch) -> NDArray[np.float32]:
        """Run a batch in a profile; see :meth:`Lane.execute`."""
        try:
            return self._execute(profile, batch)
        except DeviceMemoryError:
            self._cuda.synchronize(self._stream)  # copies may still read the staging memory that the next batch writes
            raise

    def close(self) -> None:
        """Free the contexts, the buffers and the stream."""
        self._contexts.clear()
        for buffer in (self._scratch, *self._device.values()):
            buffer.free()
        for staging in self._pinned.values():
            staging.free()
        self._device.clear()
        self._pinned.clear()
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self._cuda.destroy_stream(stream)

    def _execute(self, profile: int, batch: Batch) -> NDArray[np.float32]:
        context = self._contexts.get(profile) or self._create_context(profile)
        shape = next(iter(batch.values())).shape
        for tensor in self._engine.inputs:
            staged = self._pinned[tensor.name].view(shape, tensor.dtype)
            np.copyto(staged, batch[tensor.name], casting="same_kind")
            self._cuda.copy_in(self._device[tensor.name].address, staged, self._stream)
            self._check(context.set_input_shape(tensor.name, tuple(shape)), f"the shape {list(shape)}")
        self._give_scratch(context, profile)
        self._check(context.execute_async_v3(int(self._stream)), f"a batch of {list(shape)}")
        output = self._engine.output
        logits = self._pinned[output.name].view((shape[0], self._engine.labels), output.dtype)
        self._cuda.copy_out(logits, self._device[output.name].address, self._stream)
        self._cuda.synchronize(self._stream)
        return logits.astype(np.float32)  # a copy: the staging memory is written again by the next batch

    def _allocate(self, tensor: Tensor, elements: int) -> None:
        buffer = self._device[tensor.name] = DeviceBuffer(self._cuda)
        buffer.grow(elements * tensor.dtype.itemsize)
        self._pinned[tensor.name] = PinnedBuffer(self._cuda, elements * tensor.dtype.itemsize)

    def _create_context(self, profile: int) -> Any:
        strategy = self._engine.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.handle.create_execution_context(strategy)
        if context is None:
            raise DeviceMemoryError("TensorRT could not create an execution context")
        self._check(context.set_optimization_profile_async(profile, int(self._stream)), f"profile {profile}")
        for name, buffer in self._device.items():
            self._check(context.set_tensor_address(name, buffer.address), f"the address of {name}")
        self._contexts[profile] = context
        return context

    def _give_scratch(self, context: Any, profile: int) -> None:
        """Called after the shapes are set: what a batch needs depends on them."""
        needed = int(context.update_device_memory_size_for_shapes())
        if needed > self._scratch.size_bytes:
            try:
                self._scratch.grow(max(needed, int(self._engine.handle.get_device_memory_size_for_profile_v2(profile))))
            except DeviceMemoryError:
                self._scratch.grow(needed)
        if self._scratch.size_bytes:
            context.set_device_memory(self._scratch.address, self._scratch.size_bytes)

    def _check(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise EngineError(f"TensorRT refused {what}")
