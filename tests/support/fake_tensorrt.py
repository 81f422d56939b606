"""A stand-in for the package ``tensorrt`` that compiles nothing and remembers what it was told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import onnx

DEVICE_NAME, COMPUTE_CAPABILITY = "NVIDIA H100 PCIe", "sm90"


class FakeTensorrt:
    """Has the parts of nvinfer's Python API that building takes, and nothing else.

    Args:
        version: Its ``__version__``.
        failure: What the compiler logs before it gives up; None to compile.
        ahead_of_time: Names in ``ComputeCapability``; None for classic TensorRT, which has no such enumeration.
        on_build: Called in the middle of a build.
    """

    class NetworkDefinitionCreationFlag(IntEnum):
        STRONGLY_TYPED = 1

    class BuilderFlag(Enum):
        TF32 = "tf32"
        VERSION_COMPATIBLE = "version compatible"

    class MemoryPoolType(Enum):
        WORKSPACE = "workspace"

    class HardwareCompatibilityLevel(Enum):
        NONE = "none"
        AMPERE_PLUS = "ampere plus"

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class IProgressMonitor:
        pass

    def __init__(
        self,
        *,
        version: str = "10.13.0.35",
        failure: str | None = None,
        ahead_of_time: Sequence[str] | None = None,
        on_build: Callable[[], None] = lambda: None,
    ) -> None:
        self.__version__ = version
        self.failure = failure
        self.on_build = on_build
        self.configs: list[FakeConfig] = []
        if ahead_of_time is not None:
            self.ComputeCapability = Enum("ComputeCapability", ["NONE", "CURRENT", *ahead_of_time])

    def Builder(self, log: Any) -> Any:  # noqa: N802
        return FakeBuilder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: ARG002, N802
        def parse_from_file(path: str) -> bool:
            graph = onnx.load(path).graph
            network.inputs = [_tensor(value) for value in graph.input]
            network.outputs = [_tensor(value) for value in graph.output]
            return True

        return SimpleNamespace(parse_from_file=parse_from_file)


class FakeBuilder:
    def __init__(self, trt: FakeTensorrt, log: Any) -> None:
        self._trt, self._log = trt, log

    def create_network(self, flags: int) -> FakeNetwork:
        assert flags == 1 << FakeTensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return FakeNetwork()

    def create_builder_config(self) -> FakeConfig:
        self._trt.configs.append(FakeConfig())
        return self._trt.configs[-1]

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        for step in range(2):
            self._trt.on_build()
            if not monitor.step_complete("Building engine", step):
                return None
        monitor.phase_finish("Building engine")
        if self._trt.failure is not None:
            self._log.log(FakeTensorrt.ILogger.WARNING, "a warning")
            self._log.log(FakeTensorrt.ILogger.ERROR, self._trt.failure)
            return None
        if config.timing_cache is not None:
            config.timing_cache.content += b"timed;"
        return f"engine of {[tensor.name for tensor in network.inputs]}".encode()


class FakeNetwork:
    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, i: int) -> Any:
        return self.inputs[i]

    def get_output(self, i: int) -> Any:
        return self.outputs[i]


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, int], ...]] = {}

    def set_shape(self, name: str, smallest: tuple[int, int], likely: tuple[int, int], largest: tuple[int, int]) -> None:
        self.shapes[name] = (smallest, likely, largest)


class FakeTimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class FakeConfig:
    def __init__(self) -> None:
        self.progress_monitor: Any = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = FakeTensorrt.HardwareCompatibilityLevel.NONE
        self.flags = {FakeTensorrt.BuilderFlag.TF32}
        self.pools: dict[Any, int] = {}
        self.profiles: list[FakeProfile] = []
        self.timing_cache: FakeTimingCache | None = None
        self.num_compute_capabilities = 0
        self.compute_capabilities: list[str] = []

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool] = size

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        assert index == len(self.compute_capabilities) < self.num_compute_capabilities
        self.compute_capabilities.append(capability.name)
        return True

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> FakeTimingCache | None:
        return None if content.startswith(b"damaged") else FakeTimingCache(content)

    def set_timing_cache(self, cache: FakeTimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timing_cache = cache
        return True

    def get_timing_cache(self) -> FakeTimingCache | None:
        return self.timing_cache


def _tensor(value: onnx.ValueInfoProto) -> Any:
    kind = value.type.tensor_type
    names = {onnx.TensorProto.INT64: "INT64", onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return SimpleNamespace(name=value.name, dtype=SimpleNamespace(name=names[kind.elem_type]), shape=shape)
