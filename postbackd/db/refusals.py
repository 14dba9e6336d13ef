"""Requests that were refused unread, by the server or for their key, counted by kind and hour.

A server counts them in memory, and the housekeeping writes the counts: a refused request causes
no write of its own. `postback check` adds up the last 24 hours.
"""

import secrets
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from postbackd.db.rows import utc_text

# How far the counts in the database may lag behind.
PRECISION = timedelta(minutes=1)

# How long a count is stored, and an address with it: longer than a weekend without a look.
KEPT = timedelta(days=7)

# `2026-11-22T10`: the hour of a time as the tables write it.
_HOUR_CHARACTERS = 13

_NEVER = datetime.min.replace(tzinfo=UTC)


class Kind(NamedTuple):
    """The status of the answer, and the reason."""

    status: int
    reason: str


class Tally(NamedTuple):
    """How many requests of a kind were refused, and the last of them."""

    status: int
    reason: str
    requests: int
    last_at: str
    last_address: str


@dataclass(slots=True)
class _Count:
    """The requests of one kind in one hour, as counted by this process."""

    requests: int = 0
    last_at: datetime = _NEVER
    last_address: str = ""


class Refusals:
    """The counts of one process: the server calls `note`, the housekeeping calls `write`."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self._process = secrets.token_hex(8)
        self._counts: dict[tuple[str, Kind], _Count] = {}
        self._written_at = _NEVER
        self._cleaned_hour = ""

    @property
    def has_any(self) -> bool:
        """Return whether anything was refused."""
        return bool(self._counts)

    def note(self, kind: Kind, address: str, now: datetime, requests: int = 1) -> None:
        """Count refused requests, the last of them from an address."""
        count = self._counts.setdefault((_hour_of(now), kind), _Count())
        count.requests += requests
        count.last_at = now
        count.last_address = address

    def write(
        self, db: sqlite3.Connection, now: datetime, precision: timedelta = PRECISION
    ) -> None:
        """Write changed counts and delete old ones; the caller opens the transaction."""
        if self._cleaned_hour != _hour_of(now):
            self._cleaned_hour = _hour_of(now)
            self._clean(db, _hour_of(now - KEPT))
        if self._counts and now - self._written_at >= precision:
            self._written_at = now
            self._write_counts(db)

    def _write_counts(self, db: sqlite3.Connection) -> None:
        # Read, not remembered: the last write may have been rolled back, or the file replaced.
        # Total counts are written, so a second write changes nothing.
        held = {(row[0], Kind(*row[1:3])): row[3] for row in db.execute(_FIND, (self._process,))}
        # A copy: another thread may count meanwhile.
        for (hour, kind), count in self._counts.copy().items():
            if held.get((hour, kind)) != count.requests:
                last = (utc_text(count.last_at), count.last_address)
                db.execute(_PUT, (hour, *kind, self._process, count.requests, *last))

    def _clean(self, db: sqlite3.Connection, oldest: str) -> None:
        db.execute("DELETE FROM refused_requests WHERE hour < ?", (oldest,))
        for hour, kind in list(self._counts):
            if hour < oldest:
                del self._counts[hour, kind]


def list_tallies(db: sqlite3.Connection, now: datetime) -> list[Tally]:
    """List the refusals of the last 24 hours, the most frequent kind first."""
    tallies: dict[Kind, Tally] = {}
    for status, reason, *numbers in db.execute(_LIST, (_hour_of(now - timedelta(days=1)),)):
        kind = Kind(status, reason)
        tally = Tally(status, reason, *numbers)
        before = tallies[kind].requests if kind in tallies else 0
        # Rows come in the order of time: the last one's address remains.
        tallies[kind] = tally._replace(requests=before + tally.requests)
    return sorted(tallies.values(), key=lambda tally: -tally.requests)


def _hour_of(moment: datetime) -> str:
    return utc_text(moment)[:_HOUR_CHARACTERS]


_FIND = "SELECT hour, status, reason, requests FROM refused_requests WHERE process = ?"

_PUT = """
    INSERT INTO refused_requests (hour, status, reason, process, requests, last_at, last_address)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (hour, status, reason, process) DO UPDATE SET
        requests = excluded.requests, last_at = excluded.last_at,
        last_address = excluded.last_address
"""

_LIST = """
    SELECT status, reason, requests, last_at, last_address FROM refused_requests
    WHERE hour > ? ORDER BY last_at
"""
