"""What every command shares: one JSON document on stdout, everything else on stderr, errors without tracebacks."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from crossforge.profiles import CrossforgeError, CrossforgeWarning, MachineError
from crossforge.profiles.jsonio import encode
from crossforge.runtime.progress import Stage

P = ParamSpec("P")
R = TypeVar("R")

_WIDE = 120


class _Results(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to :func:`handles_errors`, which knows the exit status."""
        raise


out = _Results(soft_wrap=True, highlight=False)
"""For results."""
err = Console(stderr=True, soft_wrap=True, highlight=False)
"""For progress, warnings and errors."""


def print_json(document: object) -> None:
    """Print dataclasses and plain values as one JSON document on stdout."""
    typer.echo(json.dumps(encode(document), indent=2, ensure_ascii=False))


def one_line(text: str) -> str:
    """A text without its line breaks and repeated spaces."""
    return " ".join(text.split())


def print_wide(table: Table) -> None:
    """Print a table whose lines may be longer than the terminal, or than what is taken for its width where there is none."""
    _Results(width=max(out.width, _WIDE), highlight=False).print(table)


def print_ranking(rows: Iterable[tuple[float, str, str]]) -> None:
    """Print a ranking, best first, from (score, id, text); a text that is too wide for the terminal is cut."""
    table = Table(
        Column("#", no_wrap=True, justify="right"),
        Column("score", no_wrap=True, justify="right"),
        Column("id", no_wrap=True),
        Column("passage", no_wrap=True, overflow="ellipsis", ratio=1),
        box=None,
        pad_edge=False,
        expand=True,
    )
    for position, (score, id_, text) in enumerate(rows, start=1):
        table.add_row(str(position), f"{score:.3f}", escape(id_), escape(one_line(text)))
    out.print(table)


def handles_errors(command: Callable[P, R]) -> Callable[P, R]:
    """End a command with its error's message and exit status; show warnings as one line each.

    The command must have a parameter ``debug``.
    """

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with warnings.catch_warnings():
            warnings.simplefilter("default", CrossforgeWarning)  # the same words once
            warnings.showwarning = _show_warning
            try:
                return command(*args, **kwargs)
            except CrossforgeError as error:
                if kwargs.get("debug"):
                    traceback.print_exc()
                err.print(f"[bold red]Error:[/] {escape(str(error))}")
                raise typer.Exit(error.exit_code) from error
            except OSError as error:  # such as a full disk
                if isinstance(error, BrokenPipeError) and _reader_left():
                    silence_stdout()
                    raise typer.Exit(0) from error
                if kwargs.get("debug"):
                    traceback.print_exc()
                err.print(f"[bold red]Error:[/] {escape(f'the system refused what was to be done ({error})')}")
                raise typer.Exit(MachineError.exit_code) from error
            except KeyboardInterrupt as error:
                err.print("Interrupted; nothing was left half written.")
                raise typer.Exit(128 + signal.SIGINT) from error  # as shells count it

    return wrapper


def silence_stdout() -> None:
    """Send what is still to be written nowhere: nobody reads on, and Python's last flush would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_left() -> bool:
    """Whether whoever read stdout has gone (`| head`): other pipes, of processes that work for us, can break too."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, CrossforgeWarning):
        err.print(f"[yellow]Warning:[/] {escape(str(message))}")


class TerminalProgress:
    """Stages on stderr: a spinner and a bar on a terminal, a line at each end elsewhere."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Enter a stage; see :meth:`Progress.stage`."""
        start = time.perf_counter()
        if err.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
            )
            with Bars(*columns, console=err, transient=True) as bars:
                stage: Stage = _BarStage(bars, name)
                yield stage
        else:
            stage = Stage()
            yield stage
        seconds = time.perf_counter() - start
        err.print(f"[green]✓[/] {name:<28} {seconds:6.1f} s  [dim]{escape(stage.note)}[/]")


class _BarStage(Stage):
    def __init__(self, bars: Bars, name: str) -> None:
        self._bars = bars
        self._task = bars.add_task(name, total=None)

    def advance(self, done: int, total: int) -> None:
        self._bars.update(self._task, completed=done, total=total)
