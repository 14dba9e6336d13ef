"""Integrity checks: SQLite's own, and the rules that our tables must satisfy.

The whole database is read, which takes somewhat longer than reading the file.
"""

import sqlite3
from collections.abc import Iterator
from decimal import Decimal

from rates import convert, from_micros, to_micros
from statuses import MONEY, TRANSITIONS, Status

# A damaged file gives thousands of lines; these are enough.
LINES_SHOWN = 3

# Below this SQLite's quick check takes a fraction of a second.
SMALL_FILE_BYTES = 64_000_000
# How many of the newest rows of each table the quick check of a large file reads.
NEWEST_ROWS = 1000


def find_damage(db: sqlite3.Connection) -> list[str]:
    """Check quickly: all of a small file, the newest rows of a large one."""
    if _count_bytes(db) <= SMALL_FILE_BYTES:
        return _ask(db, f"PRAGMA quick_check({LINES_SHOWN})")
    for table, key in _NEWEST_LAST.items():
        # Reading a damaged page raises here.
        db.execute(f"SELECT * FROM {table} ORDER BY {key} DESC LIMIT {NEWEST_ROWS}").fetchall()
    return []


def is_small(db: sqlite3.Connection) -> bool:
    """Return whether the quick check reads the whole file."""
    return _count_bytes(db) <= SMALL_FILE_BYTES


def find_broken_pages(db: sqlite3.Connection) -> list[str]:
    """Let SQLite read every page: a gigabyte takes some ten seconds."""
    return _ask(db, f"PRAGMA quick_check({LINES_SHOWN})")


def find_all_damage(db: sqlite3.Connection) -> list[str]:
    """Let SQLite check pages, indexes and references."""
    return _ask(db, f"PRAGMA integrity_check({LINES_SHOWN})") + find_lost_references(db)


def find_lost_references(db: sqlite3.Connection) -> list[str]:
    """Let SQLite check that each row's references exist."""
    return [
        f"row {row} of {table} points to a row of {parent} that is not there"
        for table, row, parent, _ in db.execute("PRAGMA foreign_key_check").fetchmany(LINES_SHOWN)
    ]


def find_contradictions(db: sqlite3.Connection) -> Iterator[tuple[str, int, int]]:
    """Find contradictions: a sentence, the number of rows, and the first row's id."""
    db.create_function("worth_micros", 2, _find_worth, deterministic=True)
    for sentence, sql in _CONTRADICTIONS.items():
        count, first = db.execute(f"SELECT count(*), min(id) FROM ({sql})").fetchone()
        if count:
            yield sentence, count, first


def _ask(db: sqlite3.Connection, pragma: str) -> list[str]:
    found = [line for (line,) in db.execute(pragma)]
    return [] if found == ["ok"] else found


def _count_bytes(db: sqlite3.Connection) -> int:
    pages, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
    )
    return int(pages * size)


def _find_worth(amount_micros: int, rate: str) -> int:
    return to_micros(convert(from_micros(amount_micros), Decimal(rate)))


_NEWEST_LAST = {
    "postbacks": "id",
    "postbacks INDEXED BY postbacks_by_time": "received_at",
    "conversions": "id",
    "conversion_history": "conversion_id",
    "clicks": "id",
}

# The columns of a conversion that must equal those of its last row of history.
_STATE = (
    *("status", "original_status", "tid", "amount_micros", "currency", "payout_micros"),
    *("rate", "rate_day", "rate_source", "cost_micros"),
)
_DIFFERS = " OR ".join(f"conversions.{name} IS NOT last.{name}" for name in _STATE)
# With `unreject = yes` a rejected conversion comes back; an operator may do anything.
_MOVES = ", ".join(
    f"('{status}', '{after}')"
    for status, moves in {**TRANSITIONS, Status.REJECTED: sorted(MONEY)}.items()
    for after in moves
)

_CONTRADICTIONS = {
    "conversions without a row of history": """
        SELECT id FROM conversions
        WHERE NOT EXISTS (SELECT 1 FROM conversion_history WHERE conversion_id = conversions.id)""",
    "conversions whose last row of history says something else": f"""
        SELECT id FROM conversions JOIN conversion_history AS last
            ON last.conversion_id = conversions.id AND last.seq = (
                SELECT max(seq) FROM conversion_history WHERE conversion_id = conversions.id)
        WHERE {_DIFFERS}""",
    "conversions with a gap in their history": """
        SELECT conversion_id AS id FROM conversion_history
        GROUP BY conversion_id HAVING count(*) <> max(seq)""",
    "conversions that have moved as no postback may move them": f"""
        SELECT DISTINCT later.conversion_id AS id FROM conversion_history AS later
        JOIN conversion_history AS earlier
            ON earlier.conversion_id = later.conversion_id AND earlier.seq = later.seq - 1
        WHERE earlier.status <> later.status
            AND later.change NOT IN ('forced', 'operator', 'deleted')
            AND (earlier.status, later.status) NOT IN (VALUES {_MOVES})""",
    "conversions whose payout is not their amount at their rate": """
        SELECT id FROM conversions
        WHERE payout_micros IS NOT NULL AND payout_micros <> worth_micros(amount_micros, rate)""",
    "conversions whose cost is not what was sent at its rate": """
        SELECT id FROM conversions
        WHERE cost_micros IS NOT NULL
            AND cost_micros <> worth_micros(cost_amount_micros, cost_rate)""",
    "sales and rebills that do not say since when": """
        SELECT id FROM conversions WHERE status IN ('sale', 'rebill') AND sale_at IS NULL""",
    "postbacks that are parked though their click is there": """
        SELECT postbacks.id FROM postbacks JOIN clicks ON clicks.subid = postbacks.subid
        WHERE verdict = 'parked' AND settled_at IS NULL
            AND clicks.id NOT IN (SELECT click_id FROM due_clicks)""",
}
