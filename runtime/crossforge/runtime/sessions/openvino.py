"""OpenVINO on the processor."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import BundleError, EngineError, ExecutionProvider, MissingPackageError, Precision

ACTIVATION_GROUP = 128
"""Channels of a token that share a scale where activations are quantized as they come (docs/openvino.md)."""


def compile_properties(precision: Precision, *, streams: int) -> dict[str, Any]:
    """How OpenVINO compiles a variant. Everything that changes a score is named, so that no default of a processor does.

    Args:
        precision: The variant.
        streams: Batches that run at the same time, one thread each.
    """
    return {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        # A service may run several processes, which would all be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
        # Where a processor has bfloat16, OpenVINO would use it for float32 graphs too.
        "INFERENCE_PRECISION_HINT": "bf16" if precision is Precision.BF16_OPENVINO else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": ACTIVATION_GROUP if precision is Precision.INT8_DYNAMIC_OPENVINO else 0,
    }


class OpenVinoSession:
    """A model file in OpenVINO, with a request a stream.

    Each call of ``run`` takes a request that is free, or waits for one; a request computes on one thread.

    Args:
        path: The ONNX file, or OpenVINO's own ``.xml`` with its ``.bin`` beside it.
        precision: The variant, which says how the file is compiled.
        labels: Columns that the output must have.
        streams: Batches that may run at the same time.

    Raises:
        MissingPackageError: openvino is not installed.
        BundleError: The file is not a reranker with ``labels`` outputs.
        EngineError: OpenVINO cannot load the file.
    """

    provider = ExecutionProvider.OPENVINO

    def __init__(
        self, path: str | Path, *, precision: Precision = Precision.FP32, labels: int = 1, streams: int = 1
    ) -> None:
        core = import_openvino().Core()
        try:
            model = core.read_model(str(path))
            _check_signature(model, path, labels)
            self._compiled = core.compile_model(model, "CPU", compile_properties(precision, streams=streams))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load {path} ({_last_line(error)})") from error
        self._names = tuple(value.any_name for value in self._compiled.inputs)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._requests.put(self._compiled.create_infer_request())

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs."""
        return self._names

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Compute logits; see :meth:`Session.run`."""
        requests = self._requests  # close() puts another queue in its place
        request = requests.get()
        if request is None:
            requests.put(None)  # for whoever comes next
            raise EngineError("the session is closed")
        try:
            answer = request.infer(dict(batch), share_inputs=True)
            return np.array(answer[0], dtype=np.float32)  # a copy: the request's next answer goes where this one lies
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a batch ({_last_line(error)})") from error
        finally:
            requests.put(request)

    def close(self) -> None:
        """Free the model, once the batches that run or wait for a request are done."""
        closed: SimpleQueue[Any] = SimpleQueue()
        closed.put(None)
        self._requests, self._compiled = closed, None


def import_openvino() -> ModuleType:
    """Import openvino, or say which extra brings it."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingPackageError("openvino", extra="openvino", purpose="OpenVINO") from error


def _check_signature(model: Any, path: str | Path, labels: int) -> None:
    shapes = [output.get_partial_shape() for output in model.outputs]
    columns = shapes[0][1] if len(shapes) == 1 and shapes[0].rank.get_length() == 2 else None
    if columns is None or (columns.is_static and columns.get_length() != labels):
        raise BundleError(
            f"{path} is not a reranker with {labels} label{'s' if labels > 1 else ''}",
            got=f"outputs {', '.join(str(shape) for shape in shapes)}",
            allowed=f"one output [batch, {labels}]",
            fix="A graph without its classification head cannot score pairs; export the whole model.",
        )


def _last_line(error: BaseException) -> str:
    """OpenVINO's messages end with the reason, below the places in its source that it came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
