"""Fake sessions that a test holds up, or breaks."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Semaphore

import numpy as np
from numpy.typing import NDArray

from crossforge.runtime import FakeSession

WAIT_S = 20.0
"""Far longer than anything takes; a test that hangs fails instead."""


class GatedSession(FakeSession):
    """Runs a batch when it is let through, and tells when one stands before the gate."""

    def __init__(self) -> None:
        super().__init__()
        self._arrived = Semaphore(0)
        self._passes = Semaphore(0)
        self.failures: list[BaseException] = []
        """Raised instead of an answer, one a batch, first to last."""

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        self._arrived.release()
        assert self._passes.acquire(timeout=WAIT_S)
        if self.failures:
            raise self.failures.pop(0)
        return super().run(batch)

    def wait_for_a_batch(self) -> None:
        assert self._arrived.acquire(timeout=WAIT_S)

    def let_through(self, batches: int = 10_000) -> None:
        self._passes.release(batches)
