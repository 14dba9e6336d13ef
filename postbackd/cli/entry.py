"""The entry point of the `postback` command: quiet on Ctrl-C from the first moment to the last."""

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; gives the exit status."""
    # Not above: importing it takes a while, see below.
    from postbackd.cli import main as program  # noqa: PLC0415

    return program.main(argv)


def enter() -> int:
    """Be the command, for a process of its own.

    While Python imports and while it ends, Ctrl-C would show a traceback: it just ends the process
    then. Between the two `main` tells of it.
    """
    _open_closed_streams()
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        # Ignored, as in a shell's background.
        _import_commands()
        return main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _import_commands()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _import_commands() -> None:
    from postbackd.cli import main as program  # noqa: PLC0415

    program.hide_keys_in_what_python_writes()


def _open_closed_streams() -> None:
    """Let streams that the shell closed (`>&-`) lead nowhere.

    Python has None for them, and the next file that is opened would get their number: what is
    meant for the terminal would be written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest number that is free, so this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(enter())
