"""A TensorRT engine as a session: which profile runs a batch, what is split, what is refused.

All that touches the GPU is behind :class:`Lane`, so this logic runs and is tested without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import LifoQueue
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import (
    DeviceLostError,
    EngineError,
    ExecutionProvider,
    InputError,
    OptimizationProfile,
    check_profiles,
    smallest_profile,
)
from crossforge.runtime.sessions.memory import Batch, MemoryLimit


class Lane(Protocol):
    """One stream with its execution contexts and buffers; runs one batch at a time."""

    def execute(self, profile: int, batch: Batch) -> NDArray[np.float32]:
        """Run a batch in a profile, float32 [batch, labels].

        Args:
            profile: The profile's number in the engine; the batch's shape lies in it.
            batch: int64 [batch, sequence] for each input.

        Raises:
            DeviceMemoryError: There is no memory for a batch of this shape. The lane is still usable.
            DeviceLostError: The GPU answers no more.
            EngineError: The engine failed otherwise.
        """
        ...

    def close(self) -> None:
        """Free the contexts, the buffers and the stream."""
        ...


class TensorRTSession:
    """An engine that may run on several threads at once, as many as it has lanes; more wait their turn.

    A batch runs in the smallest profile that takes it. One that is too large for every profile of its length is split into
    several runs; a length beyond every profile is refused, and nothing is ever built again at run time. When the GPU has no
    memory for a batch, it is halved until it fits, and later batches are cut to what did fit.

    Args:
        lanes: At least one; the session owns them.
        profiles: The engine's, in its own order.
        input_names: The engine's inputs.
    """

    def __init__(self, lanes: Sequence[Lane], profiles: Sequence[OptimizationProfile], input_names: Sequence[str]) -> None:
        check_profiles(profiles)
        self.profiles = tuple(profiles)
        """The shapes that the engine takes."""
        self._lanes = tuple(lanes)
        self._input_names = tuple(input_names)
        self._free: LifoQueue[Lane | None] = LifoQueue()
        for lane in lanes:
            self._free.put(lane)
        self._lock = Lock()
        self._memory = MemoryLimit()
        self._lost: DeviceLostError | None = None
        self._closed = False

    @property
    def input_names(self) -> tuple[str, ...]:
        """The engine's inputs."""
        return self._input_names

    @property
    def provider(self) -> ExecutionProvider:
        """TensorRT: an engine runs nowhere else."""
        return ExecutionProvider.TENSORRT

    @property
    def most_tokens(self) -> int | None:
        """Largest ``batch x sequence`` that memory allows, as far as it was found out; None while nothing failed."""
        return self._memory.most_tokens

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Compute logits; see :meth:`Session.run`.

        Raises:
            EngineError: The engine failed, or the session is closed.
            InputError: The batch is longer than every profile.
        """
        rows, length = next(iter(batch.values())).shape
        most = max((profile.batch_size.max for profile in self.profiles if length in profile.sequence_length), default=0)
        if not most:
            raise InputError(
                "the engine has no profile for a pair of this length",
                got=f"{length} tokens",
                allowed=", ".join(map(str, self.profiles)),
                fix="Build the engine with profiles that reach the model's max_length: crossforge build BUNDLE",
            )
        parts = [{name: ids[start : start + most] for name, ids in batch.items()} for start in range(0, rows, most)]
        answers = [self._memory.run(part, self._execute) for part in parts]
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def close(self) -> None:
        """Wait for batches that are running, then free everything."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for _ in self._lanes:
            self._free.get()
        self._free.put(None)  # wakes whoever waits for a lane
        for lane in self._lanes:
            lane.close()

    def _execute(self, batch: Batch) -> NDArray[np.float32]:
        rows, length = next(iter(batch.values())).shape
        profile = smallest_profile(self.profiles, batch_size=rows, sequence_length=length)
        try:
            with self._lane() as lane:
                return lane.execute(self.profiles.index(profile), batch)
        except DeviceLostError as error:
            self._lost = error
            raise

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        if self._closed:
            raise EngineError("the session is closed")
        if self._lost is not None:
            raise DeviceLostError(str(self._lost.what), fix="Start a new process.") from self._lost
        lane = self._free.get()
        if lane is None:
            self._free.put(None)
            raise EngineError("the session is closed")
        try:
            yield lane
        finally:
            self._free.put(lane)
