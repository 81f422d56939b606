"""One stream of an engine: an execution context a profile, buffers that are grown once, pinned staging memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import DeviceMemoryError, EngineError
from crossforge.runtime.sessions.memory import Batch
from crossforge.runtime.sessions.tensorrt.cuda import Cuda, DeviceBuffer, PinnedBuffer
from crossforge.runtime.sessions.tensorrt.engine import LoadedEngine, Tensor, create_context
from crossforge.runtime.sessions.tensorrt.graphs import ShapeGraphs


class EngineLane:
    """Runs batches of one engine on one stream; see :class:`Lane`.

    Inputs and logits have room for the largest shape of any profile from the start. Scratch memory is the engine's large
    need: it is shared by the lane's contexts, which run one after another, and grows to what a profile needs when the
    profile is first used, or, where memory is short, to what the batch at hand needs.

    Args:
        engine: What to run; shared by all lanes.
        cuda: The device's calls.
        cuda_graphs: Replay the shapes that come most often as CUDA graphs: those that TensorRT for RTX records by itself,
            or, with classic TensorRT, those of :class:`~crossforge.runtime.sessions.tensorrt.graphs.ShapeGraphs`.

    Raises:
        DeviceMemoryError: There is no memory for inputs and logits.
    """

    def __init__(self, engine: LoadedEngine, cuda: Cuda, *, cuda_graphs: bool = False) -> None:
        self._engine = engine
        self._cuda = cuda
        self._contexts: dict[int, Any] = {}
        self._scratch = DeviceBuffer(cuda)
        self._device: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedBuffer] = {}
        self._stream: Any = cuda.create_stream()
        self._recorded_by_engine = cuda_graphs and engine.records_graphs
        self._graphs = ShapeGraphs(cuda, self._stream) if cuda_graphs and not engine.records_graphs else None
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
            self._drop_graphs()  # what they hold may be what is missing
            raise

    def close(self) -> None:
        """Free the graphs, the contexts, the buffers and the stream."""
        self._drop_graphs()
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
        rows, length = next(iter(batch.values())).shape
        key = (profile, rows, length)
        for tensor in self._engine.inputs:
            np.copyto(self._staged(tensor, rows, length), batch[tensor.name], casting="same_kind")
        is_due = False
        if self._graphs is None or not self._graphs.launch(key):
            context = self._contexts.get(profile) or self._create_context(profile)
            self._contexts[profile] = context
            self._set_shape(context, profile, rows, length)
            self._enqueue(context, rows, length)
            is_due = self._graphs is not None and self._graphs.count(key)
        self._cuda.synchronize(self._stream)
        answer = self._staged_logits(rows).astype(np.float32)  # a copy: the next batch writes the staging memory again
        if is_due and self._graphs is not None:
            self._graphs.record(
                key,
                lambda: self._set_shape(self._create_context(profile), profile, rows, length),
                lambda context: self._enqueue(context, rows, length),
            )
        return answer

    def _staged(self, tensor: Tensor, rows: int, length: int) -> NDArray[np.generic]:
        return self._pinned[tensor.name].view((rows, length), tensor.dtype)

    def _staged_logits(self, rows: int) -> NDArray[np.generic]:
        output = self._engine.output
        return self._pinned[output.name].view((rows, self._engine.labels), output.dtype)

    def _set_shape(self, context: Any, profile: int, rows: int, length: int) -> Any:
        for tensor in self._engine.inputs:
            self._check(context.set_input_shape(tensor.name, (rows, length)), f"the shape {[rows, length]}")
        self._give_scratch(context, profile)
        return context

    def _enqueue(self, context: Any, rows: int, length: int) -> None:
        """Put the copies in, the run and the copy out on the stream: the same memory for the same shape every time."""
        for tensor in self._engine.inputs:
            self._cuda.copy_in(self._device[tensor.name].address, self._staged(tensor, rows, length), self._stream)
        self._check(context.execute_async_v3(int(self._stream)), f"a batch of {[rows, length]}")
        self._cuda.copy_out(self._staged_logits(rows), self._device[self._engine.output.name].address, self._stream)

    def _drop_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def _allocate(self, tensor: Tensor, elements: int) -> None:
        buffer = self._device[tensor.name] = DeviceBuffer(self._cuda)
        buffer.grow(elements * tensor.dtype.itemsize)
        self._pinned[tensor.name] = PinnedBuffer(self._cuda, elements * tensor.dtype.itemsize)

    def _create_context(self, profile: int) -> Any:
        context = create_context(self._engine, cuda_graphs=self._recorded_by_engine)
        self._check(context.set_optimization_profile_async(profile, int(self._stream)), f"profile {profile}")
        for name, buffer in self._device.items():
            self._check(context.set_tensor_address(name, buffer.address), f"the address of {name}")
        return context

    def _give_scratch(self, context: Any, profile: int) -> None:
        """Called after the shapes are set: what a batch needs depends on them."""
        needed = int(context.update_device_memory_size_for_shapes())
        if needed > self._scratch.size_bytes:
            self._drop_graphs()  # they point to the scratch that goes
            try:
                self._scratch.grow(max(needed, int(self._engine.handle.get_device_memory_size_for_profile_v2(profile))))
            except DeviceMemoryError:
                self._scratch.grow(needed)
        if self._scratch.size_bytes:
            context.set_device_memory(self._scratch.address, self._scratch.size_bytes)

    def _check(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise EngineError(f"TensorRT refused {what}")
