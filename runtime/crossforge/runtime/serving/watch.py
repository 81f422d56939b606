"""What a model's session computes, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import ExecutionProvider
from crossforge.runtime.sessions import Session


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch that was computed."""

    pairs: int
    tokens: int
    """Padding left out."""
    padded_tokens: int


class WatchedSession:
    """A session that tells of every batch which it has computed, and when the last one was.

    Args:
        session: Does the work.
        clock: Seconds that never go back.
    """

    def __init__(self, session: Session, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock
        self.on_batch: Callable[[Batch], None] = lambda _batch: None
        self.last_batch_at: float | None = None

    @property
    def input_names(self) -> tuple[str, ...]:
        """See :class:`Session`."""
        return self._session.input_names

    @property
    def provider(self) -> ExecutionProvider:
        """See :class:`Session`."""
        return self._session.provider

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Compute logits; see :meth:`Session.run`."""
        logits = self._session.run(batch)
        mask = batch["attention_mask"]
        self.on_batch(Batch(pairs=mask.shape[0], tokens=int(mask.sum()), padded_tokens=mask.size))
        self.last_batch_at = self._clock()
        return logits

    def close(self) -> None:
        """Free the model."""
        self._session.close()

    def idle_s(self) -> float:
        """Seconds since the last batch was computed; infinite before the first."""
        return float("inf") if self.last_batch_at is None else self._clock() - self.last_batch_at
