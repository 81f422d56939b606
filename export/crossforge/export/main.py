"""The entry point: it loads the commands, and says in few words when it is stopped."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells count it: 128 and the signal's number."""


def main() -> None:
    """Run the command line."""
    try:
        from crossforge.export.cli import app  # takes half a second, in which Ctrl-C may come

        app()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        _leave_quietly()
    except SystemExit as ended:
        # The help is printed by typer and rich, which end with 1 when their reader has gone.
        if isinstance(ended.__context__, BrokenPipeError):
            _leave_quietly()
        raise


def _leave_quietly() -> None:
    """Nobody reads on (`| head`): that is no failure, and Python's last flush shall not make one of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0) from None
