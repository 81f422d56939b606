"""The native engine as a session."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import BundleError, EngineError, ExecutionProvider, ProviderUnavailableError
from crossforge.runtime.sessions.native.encoder_file import LINEAR_LAYERS, NORMS, Encoder, read_encoder
from crossforge.runtime.sessions.native.library import (
    BUILD_COMMAND,
    NATIVE_INSTRUCTION_SETS,
    SCALAR,
    CLayer,
    CLinear,
    CModel,
    CNorm,
    find_library,
    kernels_here,
    load_library,
)

_ERRORS = {
    1: "an id is outside the vocabulary, or a segment id outside the model's segments",
    2: "a pair is longer than the model has positions",
    3: "there is no memory left",
    4: "an attention mask is not ones followed by zeros",
    5: "a pair has no token",
}


class NativeSession:
    """An encoder file in the native engine. Each call computes on the calling thread, without holding Python's lock.

    Args:
        path: The encoder file.
        labels: Columns that the output must have.
        library: The compiled library; None takes this version's, where it is built.
        kernels: The kernels to compute with, such as ``avx2``, or ``scalar``, which run anywhere and are slow: for
            comparison. None takes the fastest that this processor runs, and never ``scalar``.

    Raises:
        ProviderUnavailableError: The library is not built, or this processor does not run the kernels.
        BundleError: The file is not an encoder with ``labels`` outputs.
        EngineError: The library does not load, or there is no memory.
    """

    provider = ExecutionProvider.NATIVE

    def __init__(
        self, path: str | Path, *, labels: int = 1, library: Path | None = None, kernels: str | None = None
    ) -> None:
        library = library or find_library()
        if library is None:
            raise ProviderUnavailableError("the native engine is not built", fix=f"Run: {BUILD_COMMAND}")
        self._library = load_library(library)
        here = kernels_here(self._library)
        self.kernels = kernels or here[0]
        """What it computes with."""
        if self.kernels not in here or (kernels is None and self.kernels == SCALAR):
            raise ProviderUnavailableError(
                f"this processor does not run the native engine's {kernels or 'vector'} kernels",
                got=", ".join(here),
                allowed="one of " + ", ".join(NATIVE_INSTRUCTION_SETS),
            )
        encoder = read_encoder(Path(path))
        if encoder.shape.labels != labels:
            raise BundleError(f"{path} is not a reranker with {labels} labels", got=f"{encoder.shape.labels} labels")
        self._labels = labels
        self._has_segments = encoder.shape.segments > 1
        self._engine = self._library.crossforge_open(ctypes.byref(_describe(encoder)), self.kernels.encode())
        if not self._engine:
            raise EngineError(f"there is no memory for {path}")
        self._running = 0
        self._idle = Condition()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Segment ids are among them if the model has more than one segment."""
        return ("input_ids", "attention_mask", *(("token_type_ids",) if self._has_segments else ()))

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Compute logits; see :meth:`Session.run`. Padding, on the right, costs nothing: it is not computed.

        Raises:
            EngineError: An id is unknown, a pair is empty or too long, a mask has gaps, or the session is closed.
        """
        inputs = [np.ascontiguousarray(batch[name], dtype=np.int64) for name in self.input_names]
        if any(array.ndim != 2 or array.shape != inputs[0].shape for array in inputs):
            raise EngineError("a batch's inputs differ in shape", got=", ".join(str(array.shape) for array in inputs))
        rows, length = inputs[0].shape
        logits = np.empty((rows, self._labels), dtype=np.float32)
        pointers = [array.ctypes.data for array in inputs] + [None] * (3 - len(inputs))
        with self._idle:
            engine = self._engine  # close() forgets it at once, and frees it when no batch runs
            if not engine:
                raise EngineError("the session is closed")
            self._running += 1
        try:
            status = self._library.crossforge_run(engine, *pointers, rows, length, logits.ctypes.data)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()
        if status:
            raise EngineError(f"the native engine refused a batch: {_ERRORS.get(status, status)}")
        return logits

    def close(self) -> None:
        """Free the model, once the batches that run are done."""
        with self._idle:
            engine, self._engine = self._engine, None
            self._idle.wait_for(lambda: self._running == 0)
        if engine:
            self._library.crossforge_close(engine)


def _describe(encoder: Encoder) -> CModel:
    """The structure that the engine copies its weights from. It points into ``encoder``, which has to outlive it."""
    shape, tensors = encoder.shape, encoder.tensors

    def at(name: str) -> int:
        return int(tensors[name].ctypes.data)

    def norm(prefix: str) -> CNorm:
        return CNorm(at(f"{prefix}.gain"), at(f"{prefix}.offset"))

    def linear(prefix: str) -> CLinear:
        return CLinear(*(at(f"{prefix}.{part}") for part in ("weight", "scale", "bias", "smoothing")))

    layers = (CLayer * shape.layers)(
        *(
            CLayer(
                *(linear(f"layers.{index}.{name}") for name in LINEAR_LAYERS),
                *(norm(f"layers.{index}.{name}") for name in NORMS),
            )
            for index in range(shape.layers)
        )
    )
    return CModel(
        shape.hidden, shape.heads, shape.layers, shape.intermediate, shape.vocabulary, shape.positions, shape.segments,
        shape.labels, shape.padding_id, shape.epsilon,
        at("words"), at("words.scale"), at("positions"), at("segments"), norm("embedding_norm"), layers,
        at("dense.weight"), at("dense.bias"), at("label.weight"), at("label.bias"),
    )  # fmt: skip
