"""CUDA's runtime and a TensorRT engine without a device: the memory is the host's, and every rule that is broken raises."""

# ruff: noqa: N802, N815 (the names are CUDA's)
from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

OUT_OF_MEMORY = 2
LOST = 700
NOT_PERMITTED = 900
"""``cudaErrorStreamCaptureUnsupported``: a call that must not be made while a stream is recorded."""


@dataclass
class FakeCudart:
    """Stands for ``cuda.bindings.runtime``: allocates host memory, keeps count, and fails when it is told to."""

    memory_bytes: int = 10**9
    fail_with: int = 0
    """Status of every call from now on."""
    blocks: dict[int, Any] = field(default_factory=dict)
    on_device: set[int] = field(default_factory=set)
    streams: set[int] = field(default_factory=set)
    allocations: list[int] = field(default_factory=list)
    """Bytes of each block of device memory, in order."""
    recording: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    """What was put on each stream that is being recorded."""
    graphs: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    """Recorded, and not destroyed yet."""
    launchable: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    """Graphs that can be launched, and are not destroyed yet."""
    launches: list[int] = field(default_factory=list)
    fail_in: dict[str, int] = field(default_factory=dict)
    """Status of a function by its name."""
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    @property
    def allocated_bytes(self) -> int:
        """Of the device."""
        return sum(len(self.blocks[address]) for address in self.on_device)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if self.recording:
            return NOT_PERMITTED, 0
        if self.fail_with:
            return self.fail_with, 0
        if self.allocated_bytes + size > self.memory_bytes:
            return OUT_OF_MEMORY, 0
        self.allocations.append(size)
        self.on_device.add(address := self._new(size))
        return 0, address

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        return self.fail_with, self._new(size)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.blocks[address]
        self.on_device.discard(address)
        return (self.fail_with,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        assert kind in (1, 2)
        assert stream in self.streams
        if not self.fail_with:
            self.put(stream, lambda: self._copy(target, source, size))
        return (self.fail_with,)

    def put(self, stream: int, work: Callable[[], None]) -> None:
        """Do it, or only write it down where the stream is being recorded."""
        if stream in self.recording:
            self.recording[stream].append(work)
        else:
            work()

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        assert mode == 1
        assert stream in self.streams - self.recording.keys()
        if status := self.fail_in.get("cudaStreamBeginCapture", 0):
            return (status,)
        self.recording[stream] = []
        return (self.fail_with,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:
        work = self.recording.pop(stream)
        if status := self.fail_in.get("cudaStreamEndCapture", 0):
            return status, 0
        self.graphs[number := 1000 + len(self.launches) + len(self.graphs) + len(self.launchable)] = work
        return self.fail_with, number

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        assert flags == 0
        if status := self.fail_in.get("cudaGraphInstantiate", 0):
            return status, 0
        work = list(self.graphs[graph])
        self.launchable[number := 2000 + max(self.launchable, default=0)] = work
        return self.fail_with, number

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:
        del self.graphs[graph]
        return (self.fail_with,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        assert stream in self.streams
        if not self.fail_with:
            self.launches.append(graph)
            for work in self.launchable[graph]:
                work()
        return (self.fail_with,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int]:
        del self.launchable[graph]
        return (self.fail_with,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        assert flags == 1
        self.streams.add(number := 100 + len(self.streams))
        return self.fail_with, number

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams.remove(stream)
        return (self.fail_with,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert stream in self.streams - self.recording.keys()
        return (self.fail_with,)

    def cudaGetLastError(self) -> tuple[int]:
        return (0,)

    def _new(self, size: int) -> int:
        block = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(block)
        self.blocks[address] = block
        return address

    def _copy(self, target: int, source: int, size: int) -> None:
        for address in (target, source):
            self._check_inside(address, size)
        ctypes.memmove(target, source, size)

    def _check_inside(self, address: int, size: int) -> None:
        assert any(start <= address and address + size <= start + len(block) for start, block in self.blocks.items())


@dataclass
class FakeContext:
    """An execution context that answers each pair with the sum of its ids, if it was set up as TensorRT wants it."""

    cudart: FakeCudart
    scratch_per_token: int
    refuse: str = ""
    profile: int | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    scratch: tuple[int, int] = (0, 0)
    settled: dict[str, tuple[int, ...]] | None = None
    """The shapes of its last run that was not recorded."""
    config: FakeRuntimeConfig | None = None
    recorded: bool = False
    """Whether a graph points to it: it must not be touched any more."""

    def __setattr__(self, name: str, value: object) -> None:
        assert not getattr(self, "recorded", False), "a context that was recorded is left alone"
        object.__setattr__(self, name, value)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self.cudart.streams
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.recorded
        self.shapes[name] = shape
        return self.refuse != "shape"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        rows, length = self.shapes["input_ids"]
        return rows * length * self.scratch_per_token

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in self.cudart.streams
        assert self.profile is not None
        assert self.scratch[1] >= self.update_device_memory_size_for_shapes()
        assert self.scratch[0] in self.cudart.blocks
        if stream in self.cudart.recording:
            assert self.settled == self.shapes, "a shape is run once before it is recorded"
            self.recorded = True
        else:
            self.settled = dict(self.shapes)
        self.cudart.put(stream, self._compute)
        return self.refuse != "run" and (self.refuse != "recording" or stream not in self.cudart.recording)

    def _compute(self) -> None:
        assert self.scratch[0] in self.cudart.blocks, "the scratch memory is gone"
        rows, length = self.shapes["input_ids"]
        ids = read(self.addresses["input_ids"], (rows, length), np.int64)
        mask = read(self.addresses["attention_mask"], (rows, length), np.int32)
        read(self.addresses["logits"], (rows, 1), np.float32)[:] = (ids * mask).sum(axis=1, keepdims=True)


class FakeRuntimeConfig:
    """Stands for TensorRT for RTX's ``IRuntimeConfig``."""

    def __init__(self, *, takes_graphs: bool) -> None:
        self._takes_graphs = takes_graphs
        self._strategy = "disabled"
        self.allocation = ""

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy

    @property
    def cuda_graph_strategy(self) -> str:
        return self._strategy

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: str) -> None:
        if self._takes_graphs:
            self._strategy = strategy


@dataclass
class FakeEngine:
    """Stands for ``ICudaEngine``."""

    cudart: FakeCudart
    profile_bytes: int
    scratch_per_token: int = 10
    refuse: str = ""
    most_contexts: int = 10**9
    contexts: list[FakeContext] = field(default_factory=list)

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig(takes_graphs=self.refuse != "graphs")

    def create_execution_context(self, how: str | FakeRuntimeConfig) -> FakeContext | None:
        config = how if isinstance(how, FakeRuntimeConfig) else None
        assert (config.allocation if config else how) == "user managed"
        if self.refuse == "context" or len(self.contexts) >= self.most_contexts:
            return None
        self.contexts.append(FakeContext(self.cudart, self.scratch_per_token, self.refuse, config=config))
        return self.contexts[-1]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        assert profile >= 0
        return self.profile_bytes


def read(address: int, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)
