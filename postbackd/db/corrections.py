"""What an operator sets or deletes: the SQL that reads a click's conversions and writes the change.

Everything happens on the caller's transaction: the row of the postback log, the conversion and the
row of its history are committed together, or none of them.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from postbackd.db.rows import HISTORY_COLUMNS, PostbackRow


class HeldConversion(NamedTuple):
    """A conversion as the database holds it, a deleted one too; the fields are columns."""

    id: int
    subid: str
    tid: str
    status: str
    original_status: str | None
    previous_status: str | None
    amount_micros: int | None
    currency: str | None
    amount_day: str | None
    payout_micros: int | None
    rate: str | None
    rate_day: str | None
    rate_source: str | None
    cost_amount_micros: int | None
    cost_currency: str | None
    cost_day: str | None
    cost_micros: int | None
    network: str | None
    created_at: str
    updated_at: str
    sale_at: str | None
    deleted_at: str | None


def list_held(db: sqlite3.Connection, subid: str) -> list[HeldConversion]:
    """List the conversions of a click, the deleted ones too, oldest first."""
    return [HeldConversion(*row) for row in db.execute(_LIST_HELD, (subid,))]


def is_click_known(db: sqlite3.Connection, subid: str) -> bool:
    """Tell whether there is such a click."""
    return db.execute("SELECT 1 FROM clicks WHERE subid = ?", (subid,)).fetchone() is not None


def write_correction(
    db: sqlite3.Connection,
    row: PostbackRow,
    values: Mapping[str, Any],
    change: str,
    reason: str,
) -> None:
    """Change columns of `row`'s conversion; `change` and `reason` are those of its history."""
    marks = ", ".join("?" * len(row))
    sql = f"INSERT INTO postbacks ({', '.join(row._fields)}) VALUES ({marks})"
    postback_id = db.execute(sql, tuple(row)).lastrowid
    columns = {**values, "corrected_by": postback_id}
    changes = ", ".join(f"{name} = ?" for name in columns)
    db.execute(
        f"UPDATE conversions SET {changes} WHERE id = ?", (*columns.values(), row.conversion_id)
    )
    db.execute(_ADD_HISTORY, (row.received_at, change, postback_id, reason, row.conversion_id))


_NOT_OF_CONVERSIONS = {"subid": "clicks.subid"}
_HELD = ", ".join(
    _NOT_OF_CONVERSIONS.get(name, f"conversions.{name}") for name in HeldConversion._fields
)
_LIST_HELD = f"""
    SELECT {_HELD}
    FROM clicks JOIN conversions ON conversions.click_id = clicks.id
    WHERE clicks.subid = ? ORDER BY conversions.id
"""

_SEEN = ", ".join(HISTORY_COLUMNS)
_ADD_HISTORY = f"""
    INSERT INTO conversion_history (conversion_id, seq, at, change, postback_id, reason, {_SEEN})
    SELECT id,
        (SELECT coalesce(max(seq), 0) + 1 FROM conversion_history WHERE conversion_id = c.id),
        ?, ?, ?, ?, {_SEEN}
    FROM conversions AS c WHERE id = ?
"""
