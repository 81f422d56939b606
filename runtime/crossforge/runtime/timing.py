"""Where a call's time goes: the seam through which a reranker can be watched, at no cost while nobody does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

StageName = Literal["tokenize", "plan", "collate", "compute", "postprocess"]


class StageTimer(Protocol):
    """Told when a stage begins and ends. Batches that run side by side report from their own threads."""

    def __call__(self, stage: StageName, /) -> AbstractContextManager[object]:
        """Enter a stage; leaving the context ends it."""
        ...


_NOBODY: AbstractContextManager[object] = nullcontext()


def untimed(_stage: StageName, /) -> AbstractContextManager[object]:
    """A timer that nobody reads."""
    return _NOBODY
