"""Deletes old rows, in small transactions beside a running service: its SQL.

Old rows of the postback log are deleted by default; conversions and clicks only if asked for. The
newest row of the postback log and of the conversions is never deleted: SQLite would assign its id
again, and a history would then name another one's postback.
"""

import sqlite3
from typing import NamedTuple

from postbackd.db.rows import to_json


class Age(NamedTuple):
    """Limits of age: for a row, and for a parked postback that may still find its click."""

    before: str
    parked_since: str


class Purge(NamedTuple):
    """How one table is purged: the conditions of old rows, and their order."""

    table: str
    key: str
    old: str
    # Condition of a row that can be deleted now; a count leaves it out, as other tables may be
    # purged before.
    free: str = "1"

    def list_old(
        self, db: sqlite3.Connection, age: Age, after: tuple[str, int], limit: int
    ) -> "IdChunk":
        """List ids of old rows after a given one; a separate read, without a lock."""
        found = db.execute(
            f"SELECT {self.key}, id FROM {self.table} WHERE {self.old}"
            f" AND ({self.key}, id) > (:key, :id) ORDER BY {self.key}, id LIMIT :limit",
            {**age._asdict(), "key": after[0], "id": after[1], "limit": limit},
        ).fetchall()
        return IdChunk([number for _, number in found], found[-1] if found else after)

    def delete(self, db: sqlite3.Connection, age: Age, ids: list[int]) -> int:
        """Delete the given rows that are still old; return their number."""
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
    """Rows to delete in one transaction, and the position of the last one."""

    ids: list[int]
    last: tuple[str, int]


# A conversion's history is deleted with it.
_GOES_WITH = {"conversions": ("DELETE FROM conversion_history",)}

POSTBACKS = Purge(
    table="postbacks",
    key="received_at",
    old="received_at < :before AND id < (SELECT max(id) FROM postbacks)"
    " AND (verdict <> 'parked' OR settled_at IS NOT NULL OR received_at < :parked_since)"
    # A replay that waits for its click reads the time to book it at from its original.
    " AND NOT EXISTS (SELECT 1 FROM postbacks AS again WHERE again.replay_of = postbacks.id"
    " AND again.verdict = 'parked' AND again.settled_at IS NULL)",
)

# A conversion with a later postback is not old, whatever the verdict on that postback.
CONVERSIONS = Purge(
    table="conversions",
    key="created_at",
    old="created_at < :before AND updated_at < :before"
    " AND id < (SELECT max(id) FROM conversions)"
    " AND NOT EXISTS (SELECT 1 FROM postbacks WHERE conversion_id = conversions.id"
    " AND (received_at >= :before OR id = (SELECT max(id) FROM postbacks)))",
    free="NOT EXISTS (SELECT 1 FROM postbacks WHERE conversion_id = conversions.id)",
)

# Without clicks whose parked postbacks are about to be applied.
CLICKS = Purge(
    table="clicks",
    key="coalesce(clicked_at, created_at)",
    old="coalesce(clicked_at, created_at) < :before"
    " AND NOT EXISTS (SELECT 1 FROM conversions WHERE click_id = clicks.id)"
    " AND NOT EXISTS (SELECT 1 FROM due_clicks WHERE click_id = clicks.id)",
)


def measure_free(db: sqlite3.Connection) -> int:
    """Return the number of unused bytes in the file."""
    (pages,) = db.execute("PRAGMA freelist_count").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    return int(pages) * int(size)
