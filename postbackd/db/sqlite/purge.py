"""What is old enough to be deleted: its SQL, in pieces beside a running service.

The log of postbacks goes by itself; conversions and clicks only where they are asked for. Of the
log and of the conversions the newest row stays whatever its age: SQLite would give its id out
again, and a history would then name the postback of another.
"""

import sqlite3
from typing import NamedTuple

from postbackd.db.rows import to_json


class Age(NamedTuple):
    """Before when a row is old, and since when a parked postback may still find its click."""

    before: str
    parked_since: str


class Purge(NamedTuple):
    """How one table is purged: which rows are old, in which order they are found."""

    table: str
    key: str
    old: str
    # What holds of a row that can go in a moment; a count looks ahead, to when other tables have
    # been purged too.
    free: str = "1"

    def list_old(
        self, db: sqlite3.Connection, age: Age, after: tuple[str, int], limit: int
    ) -> "IdChunk":
        """List ids of old rows behind a place; a read of its own, without a lock."""
        found = db.execute(
            f"SELECT {self.key}, id FROM {self.table} WHERE {self.old}"
            f" AND ({self.key}, id) > (:key, :id) ORDER BY {self.key}, id LIMIT :limit",
            {**age._asdict(), "key": after[0], "id": after[1], "limit": limit},
        ).fetchall()
        return IdChunk([number for _, number in found], found[-1] if found else after)

    def delete(self, db: sqlite3.Connection, age: Age, ids: list[int]) -> int:
        """Delete those of the rows that are old still; gives how many."""
        values = {**age._asdict(), "ids": to_json(ids)}
        for statement in (*_GOES_WITH.get(self.table, ()), f"DELETE FROM {self.table}"):
            column = "conversion_id" if "history" in statement else "id"
            old = f"id IN (SELECT value FROM json_each(:ids)) AND {self.old} AND {self.free}"
            sql = f"{statement} WHERE {column} IN (SELECT id FROM {self.table} WHERE {old})"
            deleted = db.execute(sql, values).rowcount
        return deleted

    def count_old(self, db: sqlite3.Connection, age: Age) -> int:
        """Count the old rows."""
        sql = f"SELECT count(*) FROM {self.table} WHERE {self.old}"
        count: int = db.execute(sql, age._asdict()).fetchone()[0]
        return count


class IdChunk(NamedTuple):
    """Rows to delete in one transaction, and the place of the last of them."""

    ids: list[int]
    last: tuple[str, int]


# The history of a conversion is a part of it.
_GOES_WITH = {"conversions": ("DELETE FROM conversion_history",)}

POSTBACKS = Purge(
    table="postbacks",
    key="received_at",
    old="received_at < :before AND id < (SELECT max(id) FROM postbacks)"
    " AND (verdict <> 'parked' OR settled_at IS NOT NULL OR received_at < :parked_since)"
    # A replay that waits for its click is booked at its original's time, and reads it there.
    " AND NOT EXISTS (SELECT 1 FROM postbacks AS again WHERE again.replay_of = postbacks.id"
    " AND again.verdict = 'parked' AND again.settled_at IS NULL)",
)

# A conversion that a postback was about since is not old, whatever came of that postback.
CONVERSIONS = Purge(
    table="conversions",
    key="created_at",
    old="created_at < :before AND updated_at < :before"
    " AND id < (SELECT max(id) FROM conversions)"
    " AND NOT EXISTS (SELECT 1 FROM postbacks WHERE conversion_id = conversions.id"
    " AND (received_at >= :before OR id = (SELECT max(id) FROM postbacks)))",
    free="NOT EXISTS (SELECT 1 FROM postbacks WHERE conversion_id = conversions.id)",
)

# Not those whose parked postbacks are about to be applied.
CLICKS = Purge(
    table="clicks",
    key="coalesce(clicked_at, created_at)",
    old="coalesce(clicked_at, created_at) < :before"
    " AND NOT EXISTS (SELECT 1 FROM conversions WHERE click_id = clicks.id)"
    " AND NOT EXISTS (SELECT 1 FROM due_clicks WHERE click_id = clicks.id)",
)


def measure_free(db: sqlite3.Connection) -> int:
    """Give the bytes in the file that are free to be used again."""
    (pages,) = db.execute("PRAGMA freelist_count").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    return int(pages) * int(size)
