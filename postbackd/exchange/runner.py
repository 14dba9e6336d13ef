"""Runs the fetch from a worker: checks the lease, and starts a process if this worker has it.

The process is the command `postback rates update --leased TOKEN`; a thread waits for it and logs
its output. Nothing here opens a network connection.
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

# How often at most a worker checks whether rates are due: one small read, in a transaction that is
# open anyway.
LOOK_SECONDS = 1.0

# Limit of the output that is read; a line a source and a line a refused rate are far below.
OUTPUT_LIMIT_CHARACTERS = 100_000

# Characters of a traceback that are logged: its end has the error.
CAUSE_LIMIT_CHARACTERS = 2000

# The command's prefix of each sentence on standard error.
PREFIX = "postback: "


class Report(NamedTuple):
    """The sentences written by the process, with their log levels."""

    lines: tuple[tuple[int, str], ...]


def build_command(config_path: Path, token: str) -> list[str]:
    """Build the command line of the process that uses a lease."""
    # The interpreter that runs us, whatever PATH says; -P, so that a module in the working
    # directory cannot replace one of ours.
    command = [sys.executable, "-P", "-m", "postbackd.cli.entry", "rates", "update"]
    return [*command, "--leased", token, "--config", str(config_path)]


class Runner:
    """The fetch process: started, read, and killed if it takes too long."""

    def __init__(self, settings: Settings, token: str) -> None:
        """Set the token of the lease; nothing is started yet."""
        self._command = build_command(settings.path, token)
        self._mask = KeyMask(settings.secrets())
        self._starting = threading.Lock()
        self._is_stopped = False
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> Report:
        """Run the process to its end and return its sentences."""
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
                # Ctrl-C in the terminal is for the server, which ends this process itself.
                start_new_session=True,
            )
        try:
            output, errors = process.communicate(timeout=CHILD_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return _fail(f"fetching rates was ended: it took more than {CHILD_SECONDS:g} seconds")
        return self._read_report(process.returncode, output, errors)

    def stop(self) -> None:
        """Kill the process, or prevent its start."""
        with self._starting:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def _read_report(self, status: int, output: str, errors: str) -> Report:
        if self._is_stopped:
            return Report(())
        # Masked before it is cut: a part of a key would not be recognized.
        output, errors = (
            self._mask.hide(text)[:OUTPUT_LIMIT_CHARACTERS] for text in (output, errors)
        )
        sentences, rest = _split_sentences(errors)
        lines = [(logging.INFO, line) for line in output.splitlines()]
        lines += [(logging.WARNING, sentence) for sentence in sentences]
        # Status 1 is the command's when a source failed, and Python's with a traceback.
        if status not in (0, 1) or (status == 1 and rest):
            cause = rest.strip()[-CAUSE_LIMIT_CHARACTERS:] or f"status {status}"
            lines.append((logging.ERROR, f"fetching rates broke off: {cause}"))
        return Report(tuple(lines))


def _build_environment() -> dict[str, str]:
    # Without variables that make rich treat a pipe as a terminal: it would wrap and colour lines.
    terminal = {"FORCE_COLOR", "TTY_COMPATIBLE"}
    inherited = {name: value for name, value in os.environ.items() if name not in terminal}
    return {**inherited, "PYTHONUTF8": "1"}


def _split_sentences(errors: str) -> tuple[list[str], str]:
    """Split standard error into the command's sentences and the rest, such as a traceback."""
    lines = errors.splitlines()
    sentences = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    return sentences, "\n".join(line for line in lines if not line.startswith(PREFIX))


def _fail(sentence: str) -> Report:
    return Report(((logging.ERROR, sentence),))


class RateKeeper:
    """Checks the lease for one worker, and runs the fetch if this worker has it."""

    def __init__(self) -> None:
        """Start without a running fetch."""
        self._looked_at: datetime | None = None
        self._token = ""
        self._runner: Runner | None = None
        self._thread: threading.Thread | None = None

    def look(self, db: Storage, settings: Settings, now: datetime) -> None:
        """Take the lease if rates are due; start the fetch if it is ours. Inside a transaction."""
        # After a clock was set back the next check is at once.
        if self._looked_at and _is_within(now - self._looked_at, LOOK_SECONDS):
            return
        self._looked_at = now
        if not settings.rate_sources or (self._thread is not None and self._thread.is_alive()):
            return
        current = rate_book.read_fetch_state(db.db)
        if self._token and current.holder == self._token:
            # Read in a later transaction than the one that took it: so the lease is on disk.
            self._begin(Runner(settings, self._token))
            self._token = ""
        elif is_due(current, settings, now):
            self._token = new_token()
            rate_book.write_fetch_state(db.db, take_lease(current, settings, now, self._token))

    def close(self) -> None:
        """Kill a running fetch: a stop does not wait for it."""
        if self._runner is not None:
            self._runner.stop()
        if self._thread is not None:
            self._thread.join(LOOK_SECONDS)

    def _begin(self, runner: Runner) -> None:
        self._runner = runner
        # In a thread: starting a process takes milliseconds, and the write lock is held here.
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
