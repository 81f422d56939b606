"""A model of one matrix product, spelled in ONNX's wire format.

The runtime has no onnx package to build a model with, and the ceiling should be measured through the engine that runs the
variants, with its kernels and its packing of constant weights. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ELEMENT_TYPES = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3, np.dtype(np.int32): 6}
_IR_VERSION, _OPSET = 8, 13


def product_model(operator: str, left: NDArray[np.generic], right: NDArray[np.generic], result: type[np.generic]) -> bytes:
    """A model that multiplies its input ``left`` by a constant.

    Args:
        operator: ``MatMul`` or ``MatMulInteger``.
        left: An array of the input's shape and type.
        right: The constant.
        result: The output's type.
    """
    node = _text(1, "left") + _text(1, "right") + _text(2, "product") + _text(4, operator)
    constant = (
        b"".join(_number(1, size) for size in right.shape)
        + _number(2, _ELEMENT_TYPES[right.dtype])
        + _text(8, "right")
        + _bytes(9, right.tobytes())
    )
    rows, columns = left.shape[0], right.shape[1]
    graph = (
        _bytes(1, node)
        + _text(2, "product")
        + _bytes(5, constant)
        + _bytes(11, _value("left", left.dtype, left.shape))
        + _bytes(12, _value("product", np.dtype(result), (rows, columns)))
    )
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _text(1, "") + _number(2, _OPSET))


def _value(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(_bytes(1, _number(1, size)) for size in shape)
    tensor = _number(1, _ELEMENT_TYPES[dtype]) + _bytes(2, sizes)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
