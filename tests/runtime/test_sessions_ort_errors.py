"""What ONNX Runtime's exceptions mean on a GPU. The arena's are caused for real: the CPU's is the same code."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from crossforge.profiles import DeviceLostError, DeviceMemoryError, EngineError, ExecutionProvider
from crossforge.runtime.sessions.memory import MemoryLimit
from crossforge.runtime.sessions.ort import OnnxRuntimeSession, provider_options
from crossforge.runtime.sessions.ort_errors import explain_failure

MORE_THAN_THERE_IS = 10**15
HEAD = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running MatMul node. Name:'m' "


def greedy_graph() -> bytes:
    """A graph that takes as much memory as its input says."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (int64[1] size) => (float total)'
        "{ zeros = ConstantOfShape (size)  total = ReduceSum <keepdims = 0> (zeros) }"
    )
    content: bytes = model.SerializeToString()
    return content


def failure_of(session: onnxruntime.InferenceSession, size: int) -> Exception:
    try:
        session.run(None, {"size": np.array([size])})
    except Exception as error:  # noqa: BLE001 (ONNX Runtime's exceptions share no base class but this)
        return error
    raise AssertionError("nothing failed")


def quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


@pytest.fixture(scope="module")
def limited() -> onnxruntime.InferenceSession:
    """A session whose arena may take 1 MiB, as ``gpu_mem_limit`` limits CUDA's."""
    arena = onnxruntime.OrtArenaCfg({"max_mem": 2**20, "arena_extend_strategy": 1})
    info = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(info, arena)  # only for sessions that ask for it
    options = quiet()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(greedy_graph(), options, providers=["CPUExecutionProvider"])


def test_an_arena_that_gets_no_more_is_out_of_memory() -> None:
    session = onnxruntime.InferenceSession(greedy_graph(), quiet(), providers=["CPUExecutionProvider"])
    explained = explain_failure(failure_of(session, MORE_THAN_THERE_IS))
    assert isinstance(explained, DeviceMemoryError)
    assert str(explained).startswith("the GPU has no memory left; got [ONNXRuntimeError]")


def test_an_arena_at_its_limit_is_out_of_memory(limited: onnxruntime.InferenceSession) -> None:
    error = failure_of(limited, 10**6)
    assert "smaller than requested" in str(error)
    assert isinstance(explain_failure(error), DeviceMemoryError)


@pytest.mark.parametrize(
    "message",
    [
        # bfc_arena.cc, Extend and AllocateRawInternal
        "Available memory of 1048576 is smaller than requested bytes of 4000000",
        "Failed to find a free memory block despite calling Extend. rounded_bytes=4000000",
        # cuda_call.cc, "%s failure %d: %s ; GPU=%d ; hostname=%s ; expr=%s; %s", and with file and line in later releases
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; expr=cudaMalloc((void**)&p, size); ",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; file=/o/cuda_allocator.cc ; line=62 ; expr=cudaMalloc; ",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=box ; expr=cublasCreate(&cublas_handle_); ",
        "CUDNN failure 4001: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0 ; hostname=box ; expr=e; ",
    ],
)
def test_messages_of_a_full_memory_are_recognised(message: str) -> None:
    assert isinstance(explain_failure(RuntimeError(f"{HEAD}Status Message: {message}")), DeviceMemoryError)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=box ; expr=cudaStreamSynchronize; ",
        "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=box ; expr=cudaEventRecord(event_, stream); ",
    ],
)
def test_an_error_that_stays_is_a_lost_device(message: str) -> None:
    assert isinstance(explain_failure(RuntimeError(HEAD + message)), DeviceLostError)


def test_the_status_code_of_a_reset_is_a_lost_device() -> None:
    error_class = getattr(onnxruntime.capi.onnxruntime_pybind11_state, "DeviceReset", None)
    if error_class is None:
        pytest.skip("this onnxruntime has no DeviceReset")
    assert isinstance(explain_failure(error_class("the device was reset")), DeviceLostError)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA failure 209: no kernel image is available for execution on the device ; GPU=0 ; hostname=box ; expr=e; ",
        "indices element out of data bounds, idx=20 must be within the inclusive range [-5,4]",
        "Got invalid dimensions for input: input_ids",
        "",
    ],
)
def test_anything_else_is_neither(message: str) -> None:
    explained = explain_failure(RuntimeError(message))
    assert type(explained) is EngineError
    assert "\n" not in str(explained)


class BrokenEngine:
    """Stands for ``InferenceSession`` on a GPU that fails."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.batches: list[int] = []

    def run(self, outputs: None, batch: dict[str, np.ndarray]) -> list[np.ndarray]:  # noqa: ARG002
        self.batches.append(len(batch["input_ids"]))
        if self.failures:
            raise self.failures.pop(0)
        return [batch["input_ids"].sum(axis=1, keepdims=True).astype(np.float32)]


def gpu_session(engine: BrokenEngine) -> OnnxRuntimeSession:
    """A session as it is after loading on CUDA, over an engine that needs none."""
    session = object.__new__(OnnxRuntimeSession)
    session._session, session._bound, session._lost, session._memory = engine, None, None, MemoryLimit()
    return session


def test_a_full_arena_halves_the_batch(limited: onnxruntime.InferenceSession) -> None:
    engine = BrokenEngine(failure_of(limited, 10**6))
    batch = {"input_ids": np.arange(32).reshape(8, 4)}
    np.testing.assert_array_equal(gpu_session(engine).run(batch), batch["input_ids"].sum(axis=1, keepdims=True))
    assert engine.batches == [8, 4, 4]


def test_a_lost_device_is_asked_nothing_more() -> None:
    engine = BrokenEngine(RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0"))
    session = gpu_session(engine)
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="the GPU is lost: illegal memory access"):
            session.run({"input_ids": np.ones((2, 3), np.int64)})
    assert engine.batches == [2]


def test_a_memory_limit_is_given_to_cuda_in_bytes() -> None:
    assert provider_options(ExecutionProvider.CUDA, memory_limit_mb=3) == {
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "gpu_mem_limit": str(3 * 2**20),
    }
    assert "gpu_mem_limit" not in provider_options(ExecutionProvider.CUDA)
    assert provider_options(ExecutionProvider.CPU, memory_limit_mb=3) == {}
