"""How long work says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage:
    """One piece of work in progress. The base class listens to nothing."""

    note: str = ""
    """What the stage found out, shown when it ends."""

    def advance(self, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` items are finished."""


class Progress(Protocol):
    """Receives the stages of long work."""

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """Enter a stage; leaving the context ends it."""
        ...


class Silent:
    """A progress that nobody watches."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:  # noqa: ARG002
        """Enter a stage; see :meth:`Progress.stage`."""
        yield Stage()
