"""Pages of postbacks, conversions and clicks: the filter, the columns, the reading of rows.

A long answer is read in pages, each in a short read of its own: a read that stayed open while
somebody scrolls would block checkpoints, and the write-ahead log would grow without end.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from postbackd.db.sqlite.schema import decimal_sql
from postbackd.raw_text import read_text

Row = dict[str, Any]

# Some ten milliseconds of reading.
PAGE_ROWS = 500

# How many rows there are beyond those that are shown is worth a moment, and no more: a filter
# without an index reads every row of a large log.
COUNT_SECONDS = 1.0
# SQLite's steps between two looks at the clock: a fraction of a millisecond.
COUNT_STEPS = 1000

POSTBACK_NAMES = (
    "id",
    "received_at",
    "source",
    "method",
    "remote_addr",
    "query",
    "subid",
    "tid",
    "original_status",
    "verdict",
    "reason",
    "warnings",
    "conversion_id",
    "network",
    "settled_at",
    "settled_verdict",
    "settled_reason",
    "replay_of",
    "body",
    "body_type",
)
CONVERSION_NAMES = (
    "id",
    "subid",
    "tid",
    "status",
    "original_status",
    "previous_status",
    "amount",
    "currency",
    "payout",
    "rate",
    "rate_day",
    "rate_source",
    "cost",
    "campaign",
    "offer",
    "network",
    "sub_ids",
    "created_at",
    "updated_at",
    "sale_at",
)
CLICK_NAMES = (
    "id",
    "subid",
    "campaign",
    "offer",
    "clicked_at",
    "cost_model",
    "sub_ids",
    "created_at",
    "external_id",
    "source",
    "cost",
    "cost_currency",
)

# Stored as JSON text in the database.
_JSON_NAMES = frozenset({"warnings", "sub_ids"})


class RowFilter(NamedTuple):
    """Selects rows: conditions in SQL, each with its values."""

    conditions: tuple[str, ...] = ()
    values: tuple[object, ...] = ()

    def where(self, column: str, values: Sequence[object] | None) -> "RowFilter":
        """Select the rows whose column is one of the values (None or empty: all)."""
        if not values:
            return self
        marks = ", ".join("?" * len(values))
        return self.also(f"{column} IN ({marks})", *values)

    def between(self, column: str, since: str | None, until: str | None) -> "RowFilter":
        """Select the rows from one time on and before another."""
        wanted = self
        if since is not None:
            wanted = wanted.also(f"{column} >= ?", since)
        if until is not None:
            wanted = wanted.also(f"{column} < ?", until)
        return wanted

    def also(self, condition: str, *values: object) -> "RowFilter":
        """Add a further condition."""
        return RowFilter((*self.conditions, condition), (*self.values, *values))


class Listing(NamedTuple):
    """A list: its columns, its tables, and its order, by a key whose last part is unique."""

    names: Sequence[str]
    columns: Sequence[str]
    tables: str
    key: Sequence[str]


def of_click(subid: str) -> RowFilter:
    """Select the postbacks of a click, through two indexes: with a conversion, and without."""
    return RowFilter().also(_POSTBACKS_OF_CLICK, subid, subid)


def list_rows(
    db: sqlite3.Connection, listing: Listing, wanted: RowFilter, limit: int
) -> Iterator[Row]:
    """List the newest rows (limit 0: all), the newest last, a page at a time."""
    start = _find_start(db, listing, wanted, limit)
    if start is None:
        return
    key = ", ".join(listing.key)
    marks = ", ".join("?" * len(listing.key))
    names = [column.rpartition(".")[2] for column in listing.key]
    left = limit or -1
    comparison = ">="
    while True:
        page = wanted.also(f"({key}) {comparison} ({marks})", *start)
        size = PAGE_ROWS if left < 0 else min(PAGE_ROWS, left)
        sql = select_sql(listing, page, f"ORDER BY {key} LIMIT {size}")
        rows = [read_row(listing, row) for row in db.execute(sql, page.values).fetchall()]
        yield from rows
        left -= len(rows) if limit else 0
        if len(rows) < size or left == 0:
            return
        start, comparison = tuple(rows[-1][name] for name in names), ">"


def count_rows(db: sqlite3.Connection, listing: Listing, wanted: RowFilter) -> int | None:
    """Count what is wanted; None where that takes longer than `COUNT_SECONDS`."""
    until = time.monotonic() + COUNT_SECONDS
    db.set_progress_handler(lambda: time.monotonic() >= until, COUNT_STEPS)
    try:
        sql = f"SELECT count(*) FROM {listing.tables} {where_sql(wanted)}"
        number: int = db.execute(sql, wanted.values).fetchone()[0]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return None
    finally:
        db.set_progress_handler(None, 0)
    return number


def _find_start(
    db: sqlite3.Connection, listing: Listing, wanted: RowFilter, limit: int
) -> tuple[object, ...] | None:
    """Find the key of the first row to show, counted from the newest."""
    key = ", ".join(listing.key)
    order, offset = ("ASC", 0) if limit == 0 else ("DESC", limit - 1)
    by_key = ", ".join(f"{column} {order}" for column in listing.key)
    sql = f"SELECT {key} FROM {listing.tables} {where_sql(wanted)} ORDER BY {by_key}"
    row = db.execute(f"{sql} LIMIT 1 OFFSET {offset}", wanted.values).fetchone()
    if row is None and limit:
        return _find_start(db, listing, wanted, 0)
    return tuple(row) if row else None


def select_sql(listing: Listing, wanted: RowFilter, tail: str) -> str:
    """Write a SELECT for the selected rows; `tail` has the order and the limit."""
    return f"SELECT {', '.join(listing.columns)} FROM {listing.tables} {where_sql(wanted)} {tail}"


def where_sql(wanted: RowFilter) -> str:
    """Write the WHERE clause; empty if all rows are selected."""
    return f"WHERE {' AND '.join(wanted.conditions)}" if wanted.conditions else ""


def read_row(listing: Listing, row: Sequence[Any]) -> Row:
    """Return a row of a listing by column names."""
    return {
        name: json.loads(value)
        if name in _JSON_NAMES
        else read_text(value)
        if isinstance(value, bytes)
        else value
        for name, value in zip(listing.names, row, strict=True)
    }


POSTBACKS = Listing(
    names=POSTBACK_NAMES,
    columns=POSTBACK_NAMES,
    tables="postbacks",
    key=("received_at", "id"),
)

# UNION, not OR: with OR SQLite would read every postback.
_POSTBACKS_OF_CLICK = """
    postbacks.id IN (
        SELECT found.id FROM clicks
        JOIN conversions ON conversions.click_id = clicks.id
        JOIN postbacks AS found ON found.conversion_id = conversions.id
        WHERE clicks.subid = ?
        UNION
        SELECT found.id FROM postbacks AS found
        WHERE found.subid = ? AND found.conversion_id IS NULL)
"""

CONVERSIONS = Listing(
    names=CONVERSION_NAMES,
    columns=CONVERSION_NAMES,
    tables="conversions_view",
    key=("created_at", "id"),
)

DELETED_CONVERSIONS = Listing(
    names=(*CONVERSION_NAMES, "deleted_at"),
    columns=(*CONVERSION_NAMES, "deleted_at"),
    tables="deleted_conversions_view",
    key=("created_at", "id"),
)

CLICKS = Listing(
    names=CLICK_NAMES,
    columns=(
        "clicks.id",
        "subid",
        "campaigns.name",
        "offers.name",
        "clicked_at",
        "clicks.cost_model",
        "sub_ids",
        "created_at",
        "external_id",
        "source",
        f"CASE WHEN click_cost_micros IS NOT NULL THEN {decimal_sql('click_cost_micros')} END",
        "click_cost_currency",
    ),
    tables="clicks LEFT JOIN campaigns ON campaigns.id = campaign_id"
    " LEFT JOIN offers ON offers.id = offer_id",
    key=("clicks.id",),
)
