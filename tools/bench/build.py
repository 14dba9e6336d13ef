"""Builds the database of a tracker that has run for years: clicks, conversions, postbacks."""

import os
from collections.abc import Iterator
from pathlib import Path

from storage import Storage, open_database

NOON = "2026-01-01T12:00:00.000Z"
ROWS_AT_ONCE = 100_000

# Every subid is its number multiplied by this, modulo 2^32: all different, in no order, like the
# random ones of trackers.
SPREAD = 2654435761


def subid_of(number: int) -> str:
    """Return the click id of a click by its number."""
    return f"{number * SPREAD % 2**32:08x}{number:08x}"


def build_database(path: Path, rows: int) -> None:
    """Write `rows` clicks with a sale each, in the order of their ids: indexes then only grow."""
    subids = sorted(map(subid_of, range(rows)))
    with open_to_build(path) as storage:
        db = storage.db
        db.execute("INSERT OR IGNORE INTO offers (id, name) VALUES (1, 'O1')")
        for numbers in _batches(range(rows)):
            with storage.transaction():
                db.executemany(_CLICK, ((n + 1, subids[n], NOON) for n in numbers))
                db.executemany(_CONVERSION, ((n + 1, n + 1, f"t{n}", NOON, NOON) for n in numbers))
                db.executemany(_HISTORY, ((n + 1, NOON, n + 1, f"t{n}") for n in numbers))
                db.executemany(
                    _POSTBACK,
                    ((NOON, _query(subids[n], n), subids[n], f"t{n}", n + 1) for n in numbers),
                )
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def make_ready(path: Path, fresh_clicks: int) -> int:
    """Add clicks without a conversion if needed; returns the number of the first."""
    with open_to_build(path) as storage:
        db = storage.db
        first: int = db.execute("SELECT coalesce(max(click_id), 0) FROM conversions").fetchone()[0]
        last: int = db.execute("SELECT coalesce(max(id), 0) FROM clicks").fetchone()[0]
        add_clicks(storage, range(last, first + fresh_clicks))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    # Else the first sync of a run would write the whole new database, and count as its latency.
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return first


def open_to_build(path: Path) -> Storage:
    """Open a database without syncs: it can be built again if it is lost."""
    storage = open_database(path, "USD")
    storage.db.execute("PRAGMA synchronous = OFF")
    storage.db.execute("PRAGMA cache_size = -1000000")
    return storage


def add_clicks(storage: Storage, all_numbers: range) -> None:
    """Write clicks by their numbers; their subids are in no order."""
    for numbers in _batches(all_numbers):
        ordered = sorted((subid_of(number), number) for number in numbers)
        with storage.transaction():
            storage.db.executemany(_CLICK, ((n + 1, subid, NOON) for subid, n in ordered))


def _batches(numbers: range) -> Iterator[range]:
    for start in range(0, len(numbers), ROWS_AT_ONCE):
        yield numbers[start : start + ROWS_AT_ONCE]


def _query(subid: str, number: int) -> str:
    return f"subid={subid}&status=sale&payout=12.50&currency=usd&tid=t{number}"


_CLICK = "INSERT INTO clicks (id, subid, offer_id, created_at) VALUES (?, ?, 1, ?)"
_CONVERSION = """
    INSERT INTO conversions (id, click_id, tid, status, original_status, amount_micros, currency,
        amount_day, payout_micros, rate, rate_day, rate_source, offer_id, created_at, updated_at)
    VALUES (?, ?, ?, 'sale', 'sale', 12500000, 'USD', '2026-01-01', 12500000, '1', '2026-01-01',
        'same', 1, ?, ?)
"""
_HISTORY = """
    INSERT INTO conversion_history (conversion_id, seq, at, change, postback_id, status,
        original_status, tid, amount_micros, currency, payout_micros, rate, rate_day, rate_source)
    VALUES (?, 1, ?, 'recorded', ?, 'sale', 'sale', ?, 12500000, 'USD', 12500000, '1',
        '2026-01-01', 'same')
"""
_POSTBACK = """
    INSERT INTO postbacks (received_at, source, method, remote_addr, query, subid, tid,
        original_status, verdict, reason, conversion_id)
    VALUES (?, 'http', 'GET', '127.0.0.1', ?, ?, ?, 'sale', 'recorded',
        'the first conversion of the click, as sale', ?)
"""
