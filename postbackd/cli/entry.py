"""The entry point of the `postback` command: no traceback on Ctrl-C, from start to end."""

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    # Imported here: it takes a while, and `enter` handles Ctrl-C during that time.
    from postbackd.cli import main as program  # noqa: PLC0415

    return program.main(argv)


def enter() -> int:
    """Run the command in a process of its own.

    While Python imports modules and while it exits, Ctrl-C would show a traceback: at these times
    it ends the process at once. In between `main` prints "stopped".
    """
    _open_closed_streams()
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        # Ctrl-C is ignored, as for a shell's background jobs.
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
    """Open /dev/null for each stream that the shell closed (`>&-`).

    Python has None for such a stream, and the next file that is opened would get its descriptor:
    text for the terminal would be written into that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # The kernel gives the lowest free descriptor, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(enter())
