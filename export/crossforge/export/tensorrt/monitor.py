"""What a compiler says while it works: its messages, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossforge.profiles import EngineError
from crossforge.runtime.progress import Stage


def make_logger(trt: Any) -> Any:
    """An ``ILogger`` that prints nothing and keeps errors in its list ``errors``."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base class is known once the compiler is loaded
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def make_monitor(trt: Any, stage: Stage) -> Any:
    """An ``IProgressMonitor`` that advances a stage by the steps of all phases; phases announce theirs as they begin.

    An exception on the way, such as the KeyboardInterrupt of Ctrl-C, must not unwind through the compiler's C++: the
    monitor cancels the build and keeps it in ``interruption``.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.interruption: BaseException | None = None
            self._done = self._total = 0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
            self._total += steps

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:  # noqa: ARG002
            try:
                self._done += 1
                stage.advance(self._done, self._total)
            except BaseException as error:  # noqa: BLE001  # compile_engine raises it again
                self.interruption = error
            return self.interruption is None

    return Monitor()


def describe_failure(what: str, messages: Sequence[str]) -> EngineError:
    """The error for a compiler that gave up, in its own words."""
    return EngineError(f"{what} ({'; '.join(messages) or 'it does not say why'})")
