"""A worker's part in fetching rates: it looks at the lease, and starts a process where it has it.

The process is the command `postback rates update --leased TOKEN`; a thread waits for it and logs
what it wrote. Nothing here speaks to a network.
"""

import logging
import os
import subprocess
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from postbackd.config.settings import Settings
from postbackd.db import rate_book
from postbackd.exchange.schedule import CHILD_SECONDS, is_due, new_token, take_lease
from postbackd.masking import KeyMask
from storage import Storage

LOG = logging.getLogger("postback.rates")

# How often at most a worker looks whether rates are due: one small read, in a transaction that is
# there anyway.
LOOK_SECONDS = 1.0

# The output that is read at most; a line a source and a line a refused rate are far below.
OUTPUT_LIMIT_CHARACTERS = 100_000

# Of a traceback: its end says what went wrong.
CAUSE_LIMIT_CHARACTERS = 2000

# What the command writes before each sentence on standard error.
PREFIX = "postback: "


class Report(NamedTuple):
    """The sentences that the process wrote, with their log levels."""

    lines: tuple[tuple[int, str], ...]


def build_command(config_path: Path, token: str) -> list[str]:
    """Build the command line of the process that fetches under a lease."""
    # The interpreter that runs us, whatever PATH says; -P, so that no module in the working
    # directory is taken for one of ours.
    command = [sys.executable, "-P", "-m", "postbackd.cli.entry", "rates", "update"]
    return [*command, "--leased", token, "--config", str(config_path)]


class Runner:
    """The process that fetches: started, read, and killed where it takes too long."""

    def __init__(self, settings: Settings, token: str) -> None:
        """Take the token of the lease; nothing is started yet."""
        self._command = build_command(settings.path, token)
        self._mask = KeyMask(settings.secrets())
        self._starting = threading.Lock()
        self._is_stopped = False
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> Report:
        """Run it to its end and return its sentences."""
        with self._starting:
            if self._is_stopped:
                return Report(())
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=_build_environment(),
                # A ^C in the terminal is for the server, which ends this process itself.
                start_new_session=True,
            )
        try:
            said, complained = process.communicate(timeout=CHILD_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return _fail(f"fetching rates was ended: it took more than {CHILD_SECONDS:g} seconds")
        return self._read_report(process.returncode, said, complained)

    def stop(self) -> None:
        """End it, or keep it from starting."""
        with self._starting:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def _read_report(self, status: int, said: str, complained: str) -> Report:
        if self._is_stopped:
            return Report(())
        # Hidden before it is cut: a part of a key would be no key.
        said, complained = (
            self._mask.hide(text)[:OUTPUT_LIMIT_CHARACTERS] for text in (said, complained)
        )
        sentences, rest = _split_sentences(complained)
        lines = [(logging.INFO, line) for line in said.splitlines()]
        lines += [(logging.WARNING, sentence) for sentence in sentences]
        # Status 1 is the command's for a source that failed, and Python's for a traceback.
        if status not in (0, 1) or (status == 1 and rest):
            cause = rest.strip()[-CAUSE_LIMIT_CHARACTERS:] or f"status {status}"
            lines.append((logging.ERROR, f"fetching rates broke off: {cause}"))
        return Report(tuple(lines))


def _build_environment() -> dict[str, str]:
    # Nothing that makes a terminal of a pipe: its lines would be wrapped and coloured.
    terminal = {"FORCE_COLOR", "TTY_COMPATIBLE"}
    inherited = {name: value for name, value in os.environ.items() if name not in terminal}
    return {**inherited, "PYTHONUTF8": "1"}


def _split_sentences(complained: str) -> tuple[list[str], str]:
    """Split standard error into the command's sentences and all else, such as a traceback."""
    lines = complained.splitlines()
    sentences = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    return sentences, "\n".join(line for line in lines if not line.startswith(PREFIX))


def _fail(sentence: str) -> Report:
    return Report(((logging.ERROR, sentence),))


class RateKeeper:
    """One worker's part: looks at the lease, and runs the fetch when it is this worker's turn."""

    def __init__(self) -> None:
        """Begin with nothing under way."""
        self._looked_at: datetime | None = None
        self._token = ""
        self._runner: Runner | None = None
        self._thread: threading.Thread | None = None

    def look(self, db: Storage, settings: Settings, now: datetime) -> None:
        """Take the lease where rates are due; run where it is ours. Inside a transaction."""
        # A clock that was set back is not waited for.
        if self._looked_at and _is_within(now - self._looked_at, LOOK_SECONDS):
            return
        self._looked_at = now
        if not settings.rate_sources or (self._thread is not None and self._thread.is_alive()):
            return
        current = rate_book.read_fetch_state(db.db)
        if self._token and current.holder == self._token:
            # Seen in a later transaction than the one that took it: so the lease is on disk.
            self._begin(Runner(settings, self._token))
            self._token = ""
        elif is_due(current, settings, now):
            self._token = new_token()
            rate_book.write_fetch_state(db.db, take_lease(current, settings, now, self._token))

    def close(self) -> None:
        """End what is under way: a stop does not wait for a fetch."""
        if self._runner is not None:
            self._runner.stop()
        if self._thread is not None:
            self._thread.join(LOOK_SECONDS)

    def _begin(self, runner: Runner) -> None:
        self._runner = runner
        # Starting a process takes milliseconds, and the write lock is held here.
        self._thread = threading.Thread(
            target=_run_and_log, args=(runner,), name="rates", daemon=True
        )
        self._thread.start()


def _is_within(passed: timedelta, seconds: float) -> bool:
    return 0 <= passed.total_seconds() < seconds


def _run_and_log(runner: Runner) -> None:
    try:
        report = runner.run()
    except OSError as error:
        report = _fail(f"fetching rates could not be started: {error}")
    for level, sentence in report.lines:
        LOG.log(level, "%s", sentence)
