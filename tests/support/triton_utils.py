"""What ``triton_python_backend_utils`` offers inside Triton's Python backend, as far as a model of ours uses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self._array = name, array

    @classmethod
    def from_dlpack(cls, name: str, source: Tensor) -> Tensor:
        return cls(name, source.as_numpy())

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class TritonError:
    INTERNAL, INVALID_ARG = 1, 3

    def __init__(self, message: str, code: int) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor]
    error: TritonError | None = None

    def output(self, name: str) -> NDArray[Any]:
        return next(tensor.as_numpy() for tensor in self.output_tensors if tensor.name() == name)


@dataclass
class InferenceRequest:
    inputs: list[Tensor] = field(default_factory=list)


class Logger:
    @staticmethod
    def log_info(message: str) -> None:
        pass


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs if tensor.name() == name), None)


def make_request(queries: list[Any], passages: list[list[Any]]) -> InferenceRequest:
    """One row a query, as it comes over the wire: bytes, [rows, 1] and [rows, passages]."""

    def tensor(name: str, rows: list[list[Any]]) -> Tensor:
        raw = [[text if isinstance(text, bytes) else text.encode() for text in row] for row in rows]
        return Tensor(name, np.array(raw, dtype=np.object_).reshape(len(rows), -1 if rows[0] else 0))

    return InferenceRequest([tensor("QUERY", [[query] for query in queries]), tensor("PASSAGE", passages)])
