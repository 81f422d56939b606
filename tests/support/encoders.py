"""Small encoders of random weights for the native engine, and what they compute, written down in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossforge.runtime.sessions.native.encoder_file import Encoder, EncoderShape
from crossforge.runtime.sessions.native.library import load_library

Batch = dict[str, NDArray[np.int64]]
Rows = NDArray[np.float64]
"""float64 [heads, tokens, head width]."""
Attend = Callable[[Rows, Rows, Rows], Rows]
"""From queries, keys and values to their mixtures."""
ATTEND_IN_CODES = ("avx512_vnni",)
"""Kernels whose attention multiplies integers of 16 bits; the others' multiplies float32."""
_GELU_ZERO = 24


def make_shape(**overrides: Any) -> EncoderShape:
    sizes: dict[str, Any] = {
        "hidden": 64,
        "heads": 2,
        "layers": 2,
        "intermediate": 128,
        "vocabulary": 50,
        "positions": 200,
        "segments": 2,
        "labels": 1,
        "padding_id": -1,
        "epsilon": 1e-12,
    }
    return EncoderShape(**sizes | overrides)


def make_encoder(shape: EncoderShape | None = None, *, seed: int = 0) -> Encoder:
    """An encoder whose logits differ clearly from pair to pair."""
    shape = shape or make_shape()
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for name, (kind, size) in shape.tensors().items():
        part = name.rpartition(".")[2]
        if kind == "I8":
            tensors[name] = random.integers(-127, 128, size).astype(np.int8)
        elif part in ("gain", "smoothing"):
            tensors[name] = random.uniform(0.5, 2, size).astype(np.float32)
        elif part == "scale":
            tensors[name] = (random.uniform(1, 3, size) / (100 * np.sqrt(shape.hidden))).astype(np.float32)
        else:
            tensors[name] = random.normal(0, 0.3, size).astype(np.float32)
    for layer in range(shape.layers - 1):  # the last layer's query alone may have a smoothing of its own
        tensors[f"layers.{layer}.query.smoothing"] = tensors[f"layers.{layer}.key.smoothing"]
    for layer in range(shape.layers):
        tensors[f"layers.{layer}.value.smoothing"] = tensors[f"layers.{layer}.key.smoothing"]
        for name in ("attention_output", "feed_forward_out"):
            tensors[f"layers.{layer}.{name}.smoothing"] = np.ones_like(tensors[f"layers.{layer}.{name}.smoothing"])
    return Encoder(shape=shape, tensors=tensors)


def make_batch(lengths: Sequence[int], shape: EncoderShape, *, seed: int = 0, padded_to: int | None = None) -> Batch:
    """Random pairs of these lengths. A pair's content depends on its length and the seed alone."""
    width = padded_to or max(lengths)
    ids = np.zeros((len(lengths), width), np.int64)
    mask, segments = np.zeros_like(ids), np.zeros_like(ids)
    for row, length in enumerate(lengths):
        random = np.random.default_rng([seed, length])
        ids[row, :length] = random.integers(2, shape.vocabulary, length)
        segments[row, length // 2 : length] = shape.segments - 1
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def compute(encoder: Encoder, batch: Batch, library: Path, kernels: str) -> NDArray[np.float64]:
    """Logits of a batch, float64 [batch, labels]: the arithmetic of the engine's kernels, one pair after the other.

    Only GELU, whose approximation has a test of its own, is asked of the library: else one value in fifty would be
    rounded to another code.
    """
    lengths = batch["attention_mask"].sum(axis=1)
    rows = zip(batch["input_ids"], batch["token_type_ids"], lengths, strict=True)
    attend = _attend_in_codes if kernels in ATTEND_IN_CODES else _attend
    return np.stack(
        [_compute_pair(encoder, ids[:length], segments[:length], library, attend) for ids, segments, length in rows]
    )


def _compute_pair(
    encoder: Encoder, ids: NDArray[np.int64], segments: NDArray[np.int64], library: Path, attend: Attend
) -> NDArray[np.float64]:
    shape, t = encoder.shape, {name: tensor.astype(np.float64) for name, tensor in encoder.tensors.items()}
    places = np.arange(len(ids)) + shape.padding_id + 1
    hidden = t["words"][ids] * t["words.scale"][ids, None] + t["segments"][segments] + t["positions"][places]
    hidden = _normalize(hidden, t, "embedding_norm", shape.epsilon)
    width = shape.hidden // shape.heads
    for layer in range(shape.layers):
        at = f"layers.{layer}"
        query, key, value = (
            _linear(hidden, t, f"{at}.{name}").reshape(len(ids), shape.heads, width).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        if layer == shape.layers - 1:  # the head reads the first row alone
            query, hidden = query[:, :1], hidden[:1]
        mixed = attend(query, key, value).transpose(1, 0, 2).reshape(len(hidden), shape.hidden)
        hidden = _normalize(hidden + _linear(mixed, t, f"{at}.attention_output"), t, f"{at}.attention_norm", shape.epsilon)
        wide = gelu(_linear(hidden, t, f"{at}.feed_forward_in"), library)
        narrow = _linear(wide, t, f"{at}.feed_forward_out", of_gelu=True)
        hidden = _normalize(hidden + narrow, t, f"{at}.feed_forward_norm", shape.epsilon)
    pooled = np.tanh(hidden[0] @ t["dense.weight"] + t["dense.bias"])
    logits: NDArray[np.float64] = pooled @ t["label.weight"] + t["label.bias"]
    return logits


def _attend(query: Rows, key: Rows, value: Rows) -> Rows:
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed: Rows = weights @ value / weights.sum(axis=-1, keepdims=True)
    return mixed


def _attend_in_codes(query: Rows, key: Rows, value: Rows) -> Rows:
    """Codes of 13 bits for a head's queries and keys, of 10 bits for a column of its values, of 15 bits for weights."""
    scales = [np.abs(rows).max(axis=(1, 2), keepdims=True) / 4095 for rows in (query, key)]
    scores = np.rint(query / scales[0]) @ np.rint(key / scales[1]).transpose(0, 2, 1)
    exponents = (scores - scores.max(axis=-1, keepdims=True)) * scales[0] * scales[1] / np.sqrt(query.shape[-1])
    weights = np.rint(32767 * np.exp(exponents))
    value_scale = np.abs(value).max(axis=1, keepdims=True) / 511
    mixed: Rows = weights @ np.rint(value / value_scale) * value_scale / weights.sum(axis=-1, keepdims=True)
    return mixed


def _linear(x: NDArray[np.float64], t: dict[str, NDArray[np.float64]], name: str, *, of_gelu: bool = False) -> NDArray[Any]:
    x = x * t[f"{name}.smoothing"]
    if of_gelu:
        scale = np.maximum(x.max(axis=1, keepdims=True) / (255 - _GELU_ZERO), 0.17 / _GELU_ZERO)
    else:
        scale = np.abs(x).max(axis=1, keepdims=True) / 127
    product: NDArray[Any] = np.rint(x / scale) @ t[f"{name}.weight"] * scale * t[f"{name}.scale"] + t[f"{name}.bias"]
    return product


def _normalize(x: NDArray[np.float64], t: dict[str, NDArray[np.float64]], name: str, epsilon: float) -> NDArray[Any]:
    centered = x - x.mean(axis=1, keepdims=True)
    spread = np.sqrt((centered**2).mean(axis=1, keepdims=True) + epsilon)
    result: NDArray[Any] = centered / spread * t[f"{name}.gain"] + t[f"{name}.offset"]
    return result


def gelu(x: NDArray[np.floating[Any]], library: Path) -> NDArray[np.float32]:
    """GELU as the engine computes it."""
    single = np.ascontiguousarray(x, np.float32)
    result = np.empty_like(single)
    load_library(library).crossforge_gelu(single.ctypes.data, single.size, result.ctypes.data)
    return result
