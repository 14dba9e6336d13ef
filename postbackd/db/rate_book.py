"""SQL of the fetched rates: accepted ones, refused ones, the state of the fetch.

Like `storage`, this module decides nothing; the caller opens the transaction.
"""

import sqlite3
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple

from postbackd.db.rows import utc_text
from rates import Rate, decimal_text


class FetchState(NamedTuple):
    """Which process fetches, and when the next fetch is due; times as text, None: none, at once."""

    holder: str | None
    held_until: str | None
    due_at: str | None
    asked: str | None
    tries: int


class Refusal(NamedTuple):
    """A refused rate; the fields are the columns. `rate` is '' if the source sent no number."""

    currency: str
    day: str
    source: str
    rate: str
    reason: str
    days_in_row: int
    created_at: str


class RefusedRate(NamedTuple):
    """A rate that a source published for a day and that was rejected as implausible."""

    value: Decimal
    day: date


class SourceState(NamedTuple):
    """How the last request to a source went; the fields are the columns."""

    source: str
    asked_at: str
    answered_at: str | None
    day: str | None
    trouble: str | None


# Rates.


def find_standing_rate(db: sqlite3.Connection, currency: str, day: date) -> Rate | None:
    """Find the rate that a new one is compared with: the last fetched one before it, else any."""
    for statement in (_FETCHED_BY_THEN, _FETCHED_AFTER, _BY_HAND):
        row = db.execute(statement, {"currency": currency, "day": str(day)}).fetchone()
        if row is not None:
            return Rate(Decimal(row[0]), date.fromisoformat(row[1]), row[2])
    return None


def list_rates_by_hand(db: sqlite3.Connection, day: date) -> list[tuple[str, Rate, Rate | None]]:
    """List the manual rates in force, each with the fetched rate that it overrides on a day."""
    by_hand = db.execute(
        "SELECT currency, rate, day FROM rates WHERE source = 'hand' AND ended_at IS NULL"
        " ORDER BY currency"
    ).fetchall()
    found = []
    for currency, rate, since in by_hand:
        fetched = db.execute(_FETCHED_BY_THEN, {"currency": currency, "day": str(day)}).fetchone()
        beaten = fetched and Rate(Decimal(fetched[0]), date.fromisoformat(fetched[1]), fetched[2])
        found.append((currency, Rate(Decimal(rate), date.fromisoformat(since), "hand"), beaten))
    return found


def has_rate(db: sqlite3.Connection, currency: str, day: date, source: str) -> bool:
    """Return whether the source's rate of the day is stored."""
    row = db.execute(
        "SELECT 1 FROM rates WHERE currency = ? AND day = ? AND source = ?",
        (currency, str(day), source),
    )
    return row.fetchone() is not None


def add_rate(db: sqlite3.Connection, currency: str, rate: Rate, now: datetime) -> None:
    """Store a fetched rate; the first one of a day and source is never replaced."""
    db.execute(
        "INSERT OR IGNORE INTO rates (currency, day, source, rate, created_at)"
        " VALUES (?, ?, ?, ?, ?)",
        (currency, str(rate.day), rate.source, decimal_text(rate.value), utc_text(now)),
    )


# Refusals.


def add_refusal(db: sqlite3.Connection, refusal: Refusal) -> bool:
    """Store a refused rate; False if the same one is stored already."""
    cursor = db.execute(
        "INSERT OR IGNORE INTO refused_rates"
        " (currency, day, source, rate, reason, days_in_row, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        refusal,
    )
    return cursor.rowcount > 0


def list_refused_before(
    db: sqlite3.Connection, currency: str, source: str, day: date, since: date
) -> list[RefusedRate]:
    """List a source's refused rates between two days, newest first, without those of no number."""
    rows = db.execute(
        "SELECT rate, day FROM refused_rates WHERE currency = ? AND source = ? AND day < ?"
        " AND day > ? AND rate <> '' AND accepted_at IS NULL ORDER BY day DESC, id DESC",
        (currency, source, str(day), str(since)),
    )
    return [RefusedRate(Decimal(rate), date.fromisoformat(day)) for rate, day in rows]


def count_flawed_days(db: sqlite3.Connection, currency: str, source: str, since: date) -> int:
    """Count the days after `since` for which a source published something that is no rate."""
    row = db.execute(
        "SELECT count(DISTINCT day) FROM refused_rates WHERE currency = ? AND source = ?"
        " AND day > ? AND rate = '' AND accepted_at IS NULL",
        (currency, source, str(since)),
    )
    count: int = row.fetchone()[0]
    return count


def list_standing_refusals(db: sqlite3.Connection) -> list[Refusal]:
    """List each currency's newest refusal that has no accepted rate after it."""
    return [Refusal(*row) for row in db.execute(_STANDING_REFUSALS)]


def find_acceptable(db: sqlite3.Connection, currency: str) -> Refusal | None:
    """Find the newest refused rate of a currency that a person may accept."""
    rows = [r for r in list_standing_refusals(db) if r.currency == currency and r.rate]
    return rows[0] if rows else None


def end_refusals(
    db: sqlite3.Connection, currency: str, source: str, day: date, now: datetime
) -> None:
    """Mark the refusals of a source up to a day as accepted."""
    db.execute(
        "UPDATE refused_rates SET accepted_at = ? WHERE currency = ? AND source = ? AND day <= ?"
        " AND accepted_at IS NULL",
        (utc_text(now), currency, source, str(day)),
    )


# Sources.


def save_answer(db: sqlite3.Connection, source: str, day: date, now: datetime) -> None:
    """Store that a source sent a valid document."""
    at = utc_text(now)
    db.execute(
        "INSERT INTO rate_sources (source, asked_at, answered_at, day, trouble)"
        " VALUES (?, ?, ?, ?, NULL) ON CONFLICT (source) DO UPDATE SET asked_at = ?2,"
        " answered_at = ?3, day = ?4, trouble = NULL",
        (source, at, at, str(day)),
    )


def save_trouble(db: sqlite3.Connection, source: str, trouble: str, now: datetime) -> None:
    """Store why a source sent no valid document."""
    db.execute(
        "INSERT INTO rate_sources (source, asked_at, trouble) VALUES (?, ?, ?)"
        " ON CONFLICT (source) DO UPDATE SET asked_at = ?2, trouble = ?3",
        (source, utc_text(now), trouble),
    )


def list_sources(db: sqlite3.Connection) -> list[SourceState]:
    """List how the last request to each source went."""
    rows = db.execute("SELECT source, asked_at, answered_at, day, trouble FROM rate_sources")
    return [SourceState(*row) for row in rows]


# The lease.


def read_fetch_state(db: sqlite3.Connection) -> FetchState:
    """Read which process fetches, and when the next fetch is due."""
    row = db.execute("SELECT holder, held_until, due_at, asked, tries FROM rate_rounds")
    return FetchState(*row.fetchone())


def write_fetch_state(db: sqlite3.Connection, new: FetchState) -> None:
    """Write the same."""
    db.execute(
        "UPDATE rate_rounds SET holder = ?, held_until = ?, due_at = ?, asked = ?, tries = ?", new
    )


_FETCHED_BY_THEN = """
    SELECT rate, day, source FROM rates WHERE currency = :currency AND source <> 'hand'
        AND day <= :day ORDER BY day DESC, id LIMIT 1
"""
_FETCHED_AFTER = """
    SELECT rate, day, source FROM rates WHERE currency = :currency AND source <> 'hand'
        AND day > :day ORDER BY day, id LIMIT 1
"""
_BY_HAND = """
    SELECT rate, day, source FROM rates
    WHERE currency = :currency AND source = 'hand' AND ended_at IS NULL
"""
# SQLite gives the other columns from the row that has the maximum.
_STANDING_REFUSALS = """
    SELECT currency, day, source, rate, reason, days_in_row, created_at FROM (
        SELECT max(id), * FROM refused_rates WHERE accepted_at IS NULL GROUP BY currency) AS refused
    WHERE NOT EXISTS (SELECT 1 FROM rates WHERE rates.currency = refused.currency
        AND rates.source <> 'hand' AND rates.day >= refused.day)
    ORDER BY currency
"""
