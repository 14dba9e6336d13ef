"""When rates are fetched and by whom: the schedule, the lease, and a process of its own.

A worker looks at the lease while it keeps house; the one that gets it starts a process
(`fetching`) and waits for it in a thread. Nothing here speaks to a network.
"""

import json
import logging
import os
import random
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import ratebook
from config import Settings
from feeds import FEEDS
from masking import KeyMask
from ratebook import Round
from rows import utc_text
from storage import Storage

LOG = logging.getLogger("postback.rates")

# How often at most a worker looks whether rates are due: one small read, in a transaction that is
# there anyway.
LOOK_SECONDS = 1.0

# How long all sources together may take; they are asked side by side. `download` bounds silence,
# this bounds a source that drips.
ASKING_SECONDS = 30.0

# The process ends itself after the first, whatever it hangs in; who started it kills it after the
# second, and the lease runs out after the third: then it holds nothing, dead or alive.
ALARM_SECONDS = 50
CHILD_SECONDS = 60.0
LEASE_SECONDS = 90.0

# A failed round is tried again after a minute, then after twice as long each time, up to an hour:
# a service with an outage is asked a dozen times in its first half day, then at publication again.
FIRST_RETRY_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 3600.0
TRIES_AT_MOST = 12

# After a publication: later by up to this, so that receivers all over do not ask in one second.
PUBLICATION_JITTER_SECONDS = 1200.0
RETRY_JITTER = 0.25

# A due time farther off than the longest wait comes from a clock that was wrong.
LONGEST_WAIT = timedelta(days=2)

# What a process says at most; a line a source and a line a refused rate are far below.
OUTPUT_LIMIT_CHARACTERS = 100_000


class Errand(NamedTuple):
    """All that the fetching process is told; the fields go to it as JSON, never as arguments."""

    sources: Sequence[str]
    urls: Mapping[str, str]
    app_id: str
    tracker: str
    max_change: str
    db_path: str
    token: str


class Report(NamedTuple):
    """What the fetching process said: sentences with their level, and whether all went well."""

    lines: tuple[tuple[int, str], ...]
    is_good: bool


# The schedule


def fingerprint(settings: Settings) -> str:
    """Give a short mark of what is asked and where; another mark is due at once."""
    asked = (settings.rate_sources, sorted(settings.rate_urls.items()), settings.app_id)
    return sha256(repr(asked).encode()).hexdigest()[:16]


def is_due(current: Round, settings: Settings, now: datetime) -> bool:
    """Tell whether rates are to be fetched and nobody is at it."""
    if not settings.rate_sources or is_under_way(current, now):
        return False
    if current.asked != fingerprint(settings):
        return True
    return not _is_ahead(current.due_at, now, LONGEST_WAIT.total_seconds())


def is_under_way(current: Round, now: datetime) -> bool:
    """Tell whether somebody fetches now."""
    return _is_ahead(current.held_until, now, LEASE_SECONDS)


def _is_ahead(moment: str | None, now: datetime, seconds_at_most: float) -> bool:
    if moment is None:
        return False
    return utc_text(now) < moment <= utc_text(now + timedelta(seconds=seconds_at_most))


def take_lease(current: Round, settings: Settings, now: datetime, token: str) -> Round:
    """Give the round with the lease taken, counted as a failed try until it ends well."""
    mark = fingerprint(settings)
    tries = 1 + (current.tries if current.asked == mark else 0)
    return Round(
        holder=token,
        held_until=utc_text(now + timedelta(seconds=LEASE_SECONDS)),
        due_at=utc_text(find_retry(now, tries, settings.rate_sources)),
        asked=mark,
        tries=tries,
    )


def find_retry(now: datetime, tries: int, sources: Sequence[str]) -> datetime:
    """Give when to try again after so many tries without success."""
    publication = find_next_publication(now, sources)
    if tries > TRIES_AT_MOST:
        return publication
    seconds = min(FIRST_RETRY_SECONDS * 2 ** (tries - 1), LONGEST_RETRY_SECONDS)
    seconds *= random.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER)  # noqa: S311 no secret
    return min(now + timedelta(seconds=seconds), publication)


def find_next_publication(now: datetime, sources: Sequence[str]) -> datetime:
    """Give when one of the sources has news next."""
    delay = timedelta(seconds=random.uniform(0, PUBLICATION_JITTER_SECONDS))  # noqa: S311
    return min(_next(now, at) for source in sources for at in FEEDS[source].published) + delay


def _next(now: datetime, at: time) -> datetime:
    today = datetime.combine(now.astimezone(UTC).date(), at, UTC)
    return today if today > now else today + timedelta(days=1)


def new_token() -> str:
    """Give a name for a holder of the lease that nobody else has."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def write_errand(settings: Settings, token: str) -> Errand:
    """Say what the fetching process is to do."""
    return Errand(
        sources=settings.rate_sources,
        urls=dict(settings.rate_urls),
        app_id=settings.app_id,
        tracker=settings.currency,
        max_change=str(settings.max_change),
        db_path=str(settings.db_path),
        token=token,
    )


# The process


class Runner:
    """The fetching process, started, listened to, and killed where it takes too long."""

    def __init__(self, errand: Errand, mask: KeyMask) -> None:
        """Take the errand, and the keys that no message may show; nothing is started yet."""
        self._errand = errand
        self._mask = mask
        self._starting = threading.Lock()
        self._is_stopped = False
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> Report:
        """Run it to its end and give what it said."""
        with self._starting:
            if self._is_stopped:
                return Report((), is_good=False)
            process = self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("fetching.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "PYTHONUTF8": "1"},
                # A ^C in the terminal is for the server, which ends this process itself.
                start_new_session=True,
            )
        try:
            said, broken = process.communicate(json.dumps(self._errand._asdict()), CHILD_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return _fail(f"fetching rates was ended: it took more than {CHILD_SECONDS:g} seconds")
        return self._read_report(process.returncode, said, broken)

    def stop(self) -> None:
        """End it, or keep it from starting."""
        with self._starting:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def _read_report(self, status: int, said: str, broken: str) -> Report:
        if self._is_stopped:
            return Report((), is_good=False)
        lines = list(_read_lines(self._mask.hide(said)[:OUTPUT_LIMIT_CHARACTERS]))
        if status not in (0, 1):
            # Hidden before it is cut: the end of a key would be no key.
            cause = self._mask.hide(broken.strip())[-2000:] or f"status {status}"
            lines.append((logging.ERROR, f"fetching rates broke off: {cause}"))
        return Report(tuple(lines), is_good=status == 0)


def _fail(sentence: str) -> Report:
    return Report(((logging.ERROR, sentence),), is_good=False)


def _read_lines(said: str) -> Iterator[tuple[int, str]]:
    """Read `LEVEL sentence` lines."""
    levels = logging.getLevelNamesMapping()
    for line in said.splitlines():
        level, _, sentence = line.partition(" ")
        if sentence:
            yield levels.get(level, logging.ERROR), sentence


class RateKeeper:
    """One worker's part: looks at the lease, and runs the fetch when it is this worker's turn."""

    def __init__(self) -> None:
        """Begin with nothing under way."""
        self._next_look = 0.0
        self._token = ""
        self._runner: Runner | None = None
        self._thread: threading.Thread | None = None

    def look(self, db: Storage, settings: Settings, now: datetime) -> None:
        """Take the lease where rates are due; run where it is ours. Inside a transaction."""
        if monotonic() < self._next_look:
            return
        self._next_look = monotonic() + LOOK_SECONDS
        if not settings.rate_sources or (self._thread is not None and self._thread.is_alive()):
            return
        current = ratebook.read_round(db)
        if self._token and current.holder == self._token:
            # Seen in a later transaction than the one that took it: so the lease is on disk.
            self._begin(Runner(write_errand(settings, self._token), KeyMask(settings.secrets())))
            self._token = ""
        elif is_due(current, settings, now):
            self._token = new_token()
            ratebook.write_round(db, take_lease(current, settings, now, self._token))

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


def _run_and_log(runner: Runner) -> None:
    try:
        report = runner.run()
    except OSError as error:
        report = _fail(f"fetching rates could not be started: {error}")
    for level, sentence in report.lines:
        LOG.log(level, "%s", sentence)
