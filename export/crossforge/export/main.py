"""The entry point: it loads the commands, and says in few words when it is stopped."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line."""
    try:
        from crossforge.export.cli import app  # takes half a second, in which Ctrl-C may come

        app()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit as ended:
        # The help is printed by typer and rich, which end with 1 when nobody reads on (`| head`): that is no failure.
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        from crossforge.runtime.console import silence_stdout

        silence_stdout()
        raise SystemExit(0) from None
