"""How the tests call the `postback` command: in this process, in one of its own, on a terminal."""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tree import ROOT

# Long enough for any machine; nothing waits for it unless it hangs.
PATIENCE_SECONDS = 60

# What a test of the pipe must not inherit from the terminal of whoever runs it.
TERMINAL_VARIABLES = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "POSTBACK_CONFIG", "TERM")


class Ran(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Its output line by line."""
        return self.out.splitlines()

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a table in a pipe, without the titles."""
        return [line.split("\t") for line in self.lines[1:]]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects it wrote."""
        return [json.loads(line) for line in self.lines]


Call = Callable[..., Ran]


def without_styles(text: str) -> str:
    """Take our own colours and weights away."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def build_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Give an environment without a terminal's variables, in which `python -m postbackd.cli.entry`
    works.
    """
    kept = {name: value for name, value in os.environ.items() if name not in TERMINAL_VARIABLES}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def build_command(*words: str) -> list[str]:
    """Give the command line of the real command."""
    return [sys.executable, "-m", "postbackd.cli.entry", *words]


def call_process(
    directory: Path, *words: str, stdin: bytes | None = None, **environment: str
) -> Ran:
    """Run the command in a directory, its output in pipes."""
    done = subprocess.run(
        build_command(*words),
        cwd=directory,
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        env=build_environment(environment),
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal:
    """The command on a terminal of its own."""

    def __init__(
        self, directory: Path, *words: str, columns: int = 100, **environment: str
    ) -> None:
        """Start the command."""
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            # Here, before there is a command: from outside it could come too late.
            size = struct.pack("HHHH", 30, columns, 0, 0)
            fcntl.ioctl(0, termios.TIOCSWINSZ, size)
            os.chdir(directory)
            os.execvpe(  # noqa: S606  # no shell wanted
                sys.executable,
                build_command(*words),
                build_environment({"TERM": "xterm-256color", **environment}),
            )
        self.seen = ""
        # A read may end in the middle of a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def wait_for(self, text: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Read on until a text is seen."""
        until = time.monotonic() + seconds
        while text not in self.seen and self._read(until):
            pass
        assert text in self.seen, self.seen

    def type(self, text: str) -> None:
        """Type something, `\x03` for Ctrl-C."""
        os.write(self._terminal, text.encode())

    def press_ctrl_c(self) -> None:
        """Interrupt the command."""
        self.type("\x03")

    def finish(self, seconds: float = PATIENCE_SECONDS) -> Ran:
        """Read to the end."""
        until = time.monotonic() + seconds
        while self._read(until):
            pass
        _, status = os.waitpid(self._process, 0)
        os.close(self._terminal)
        return Ran(os.waitstatus_to_exitcode(status), self.seen.replace("\r\n", "\n"), "")

    def kill(self) -> None:
        """End a command that would go on."""
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)

    def _read(self, until: float) -> bool:
        ready, _, _ = select.select([self._terminal], [], [], max(0, until - time.monotonic()))
        assert ready, f"nothing more came: {self.seen!r}"
        # The kernel reports the other side's end as an input/output error.
        with suppress(OSError):
            piece = os.read(self._terminal, 65536)
            self.seen += self._decoder.decode(piece)
            return bool(piece)
        return False


def call_on_terminal(directory: Path, *words: str, columns: int = 100, **environment: str) -> Ran:
    """Run the command on a terminal and give what one sees there."""
    return Terminal(directory, *words, columns=columns, **environment).finish()
