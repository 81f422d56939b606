"""The file that the native engine reads: an encoder's shape and its tensors, in the layout of safetensors.

A little-endian 64-bit length, that many bytes of JSON that name each tensor with its type, shape and place, and the tensors'
bytes. Any tool that reads safetensors reads it; this module needs numpy alone. The shape stands in the JSON's metadata.

Tensors, all float32 but the int8 ones: ``words`` int8 [vocabulary, hidden] and ``words.scale`` [vocabulary]; ``positions``
[positions, hidden]; ``segments`` [segments, hidden]; ``embedding_norm.gain`` and ``.offset`` [hidden]; for each layer N and
each of :data:`LINEAR_LAYERS` ``layers.N.NAME.weight`` int8 [in, out], ``.scale`` [out], ``.bias`` [out] and ``.smoothing``
[in]; for each of :data:`NORMS` ``layers.N.NAME.gain`` and ``.offset`` [hidden]; ``dense.weight`` [hidden, hidden] as
[in, out], ``dense.bias`` [hidden], ``label.weight`` [hidden, labels], ``label.bias`` [labels].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import BundleError

LINEAR_LAYERS = ("query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out")
NORMS = ("attention_norm", "feed_forward_norm")
_FORMAT = "crossforge-encoder-1"
_TYPES: Mapping[str, np.dtype[Any]] = {"I8": np.dtype(np.int8), "F32": np.dtype("<f4")}
_ALIGNMENT = 64
_MOST_SUMMED = 65_536
"""Products of 255 and 127 whose sum surely fits 32 bits."""


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """The sizes that an encoder is made of."""

    hidden: int
    heads: int
    layers: int
    intermediate: int
    vocabulary: int
    positions: int
    segments: int
    labels: int
    padding_id: int
    """Of models that count positions from ``padding_id + 1``, as RoBERTa does; -1 of models that count from 0."""
    epsilon: float
    """What LayerNorm adds to the variance."""

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each tensor, by name."""
        hidden, wide = (self.hidden,), (self.intermediate,)
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            "words": ("I8", (self.vocabulary, self.hidden)),
            "words.scale": ("F32", (self.vocabulary,)),
            "positions": ("F32", (self.positions, self.hidden)),
            "segments": ("F32", (self.segments, self.hidden)),
            "embedding_norm.gain": ("F32", hidden),
            "embedding_norm.offset": ("F32", hidden),
            "dense.weight": ("F32", (self.hidden, self.hidden)),
            "dense.bias": ("F32", hidden),
            "label.weight": ("F32", (self.hidden, self.labels)),
            "label.bias": ("F32", (self.labels,)),
        }
        for layer in range(self.layers):
            for name in LINEAR_LAYERS:
                inner = wide if name == "feed_forward_out" else hidden
                outer = wide if name == "feed_forward_in" else hidden
                prefix = f"layers.{layer}.{name}"
                found |= {
                    f"{prefix}.weight": ("I8", inner + outer),
                    f"{prefix}.scale": ("F32", outer),
                    f"{prefix}.bias": ("F32", outer),
                    f"{prefix}.smoothing": ("F32", inner),
                }
            for name in NORMS:
                found |= {f"layers.{layer}.{name}.{part}": ("F32", hidden) for part in ("gain", "offset")}
        return found


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A shape, and every tensor that it asks for."""

    shape: EncoderShape
    tensors: Mapping[str, NDArray[np.generic]]


def write_encoder(encoder: Encoder, path: Path) -> None:
    """Write a file.

    Raises:
        ValueError: A tensor is missing, or of another type or shape than the encoder's shape says.
    """
    header: dict[str, object] = {"__metadata__": {"format": _FORMAT, "shape": json.dumps(asdict(encoder.shape))}}
    blobs = []
    position = 0
    for name, (kind, shape) in encoder.shape.tensors().items():
        tensor = encoder.tensors[name]
        if tensor.shape != shape or tensor.dtype != _TYPES[kind]:
            raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, not {kind} {shape}")
        blobs.append(np.ascontiguousarray(tensor))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [position, position + tensor.nbytes]}
        position += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for blob in blobs:
            file.write(blob.tobytes())


def read_encoder(path: Path) -> Encoder:
    """Read a file; tensors are views of it, mapped into memory.

    Raises:
        BundleError: It is not such a file.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + length].tobytes())
        metadata = header["__metadata__"]
        if metadata["format"] != _FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}")
        shape = EncoderShape(**json.loads(metadata["shape"]))
        _check_numbers(shape)
        tensors = {name: _view(data, 8 + length, header[name], *wanted) for name, wanted in shape.tensors().items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path} is not a file of the native engine ({error})", allowed=_FORMAT, fix="Make the variant again."
        ) from error
    return Encoder(shape=shape, tensors=tensors)


def _check_numbers(shape: EncoderShape) -> None:
    for field in fields(shape):
        value = getattr(shape, field.name)
        smallest = -1 if field.name == "padding_id" else 1
        if field.name == "epsilon" and not (isinstance(value, float) and value >= 0):
            raise ValueError(f"epsilon is {value!r}")
        if field.name != "epsilon" and (type(value) is not int or not smallest <= value < 2**31):
            raise ValueError(f"{field.name} is {value!r}")
    if shape.hidden % 64 or shape.intermediate % 64 or shape.hidden > 4096:
        raise ValueError(f"widths {shape.hidden} and {shape.intermediate} are not multiples of 64, or above 4096")
    if shape.intermediate > _MOST_SUMMED:
        raise ValueError(f"a sum over {shape.intermediate} products may not fit 32 bits")
    if shape.hidden not in (32 * shape.heads, 64 * shape.heads):
        raise ValueError(f"{shape.heads} heads of a width of {shape.hidden} are neither 32 nor 64 wide")


def _view(
    data: NDArray[np.uint8], start: int, entry: Mapping[str, Any], kind: str, shape: tuple[int, ...]
) -> NDArray[np.generic]:
    begin, end = entry["data_offsets"]
    if entry["dtype"] != kind or tuple(entry["shape"]) != shape:
        raise ValueError(f"a tensor is {entry['dtype']} {entry['shape']}, not {kind} {shape}")
    piece: NDArray[Any] = np.frombuffer(data[start + begin : start + end].data, dtype=_TYPES[kind])
    return piece.reshape(shape)
