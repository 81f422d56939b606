"""Going on when a GPU's memory is full: halve the batch, and ask for no more the next time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import DeviceMemoryError

Batch = Mapping[str, NDArray[np.int64]]
Execute = Callable[[Batch], NDArray[np.float32]]


class MemoryLimit:
    """How large a batch may be, as far as failures have shown. One for each session; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._most_tokens: int | None = None

    @property
    def most_tokens(self) -> int | None:
        """Largest ``batch x sequence`` that was not too much after one was; None while none was."""
        return self._most_tokens

    def run(self, batch: Batch, execute: Execute) -> NDArray[np.float32]:
        """Run a batch in as many parts as memory asks for.

        Args:
            batch: int64 [batch, sequence] for each input.
            execute: Runs a part; float32 [part, labels].

        Returns:
            float32 [batch, labels].

        Raises:
            DeviceMemoryError: There is no memory for one pair.
        """
        rows, length = next(iter(batch.values())).shape
        answers = []
        start = 0
        while start < rows:
            # Asked anew for each part: an earlier one, here or on another thread, may have lowered it.
            count = rows - start if self._most_tokens is None else min(rows - start, max(1, self._most_tokens // length))
            try:
                answers.append(execute({name: ids[start : start + count] for name, ids in batch.items()}))
                start += count
            except DeviceMemoryError:
                if count == 1:
                    raise
                with self._lock:
                    self._most_tokens = min(self._most_tokens or count * length, (count // 2) * length)
        return answers[0] if len(answers) == 1 else np.concatenate(answers)
