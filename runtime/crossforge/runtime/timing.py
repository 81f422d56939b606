"""Where a call's time goes: the seam through which a reranker can be watched, at no cost while nobody does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

StageName = Literal["tokenize", "plan", "collate", "compute", "postprocess"]


@dataclass(frozen=True, kw_only=True)
class RequestTimes:
    """Where a queued request's time went. What is left of its latency passed outside the queue."""

    queue_s: float
    """Waiting for a thread that tokenizes, and then for a worker."""
    tokenize_s: float
    compute_s: float
    """From its first batch's begin to its last one's end; other requests' batches may have had turns between."""


class StageTimer(Protocol):
    """Told when a stage begins and ends. Batches that run side by side report from their own threads."""

    def __call__(self, stage: StageName, /) -> AbstractContextManager[object]:
        """Enter a stage; leaving the context ends it."""
        ...


_NOBODY: AbstractContextManager[object] = nullcontext()


def untimed(_stage: StageName, /) -> AbstractContextManager[object]:
    """A timer that nobody reads."""
    return _NOBODY
