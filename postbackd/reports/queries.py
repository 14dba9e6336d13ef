"""The questions of the commands in SQL: one method each, beside a running service.

Everything is read-only; long answers are read in pages (`reports/listing.py`).
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from postbackd.db import key_usage, rate_book
from postbackd.db.rows import CONVERSION_COLUMNS, read_conversion, to_json
from postbackd.db.sqlite import schema
from postbackd.db.sqlite.connection import connect_to_read
from postbackd.reports.listing import (
    CLICKS,
    CONVERSIONS,
    DELETED_CONVERSIONS,
    PAGE_ROWS,
    POSTBACKS,
    Row,
    RowFilter,
    count_rows,
    list_rows,
    read_row,
    select_sql,
    where_sql,
)
from rates import Rate, from_micros
from statuses import Conversion
from storage import HAS_RATE

# There is no index from a network to its postbacks: the newest take some thirty milliseconds.
LOOKED_THROUGH_ROWS = 50_000

HISTORY_NAMES = (
    "seq",
    "at",
    "change",
    "postback_id",
    "status",
    "original_status",
    "tid",
    "amount",
    "currency",
    "payout",
    "rate",
    "rate_day",
    "rate_source",
    "cost",
    "reason",
)


CORRECTION_NAMES = ("conversion_id", "tid", "at", "change", "status", "reason")


class CurrencyRate(NamedTuple):
    """A currency's rate in force today, and the number of conversions that wait for it."""

    currency: str
    rate: str | None = None
    day: str | None = None
    source: str | None = None
    age_days: int | None = None
    waiting: int = 0


class Tally(NamedTuple):
    """How many in the last day, and in all."""

    recent: int
    total: int


class StoredConversion(NamedTuple):
    """A conversion as the engine reads it, its time, and its network."""

    conversion: Conversion
    created_at: str
    network: str | None


class Unbooked(NamedTuple):
    """A postback without a conversion."""

    received_at: str
    verdict: str
    reason: str


def open_to_read(path: Path) -> "Questions":
    """Open an existing database of ours; raises DatabaseError, sqlite3.Error."""
    return Questions(connect_to_read(path))


class Questions:
    """An open database, and the commands' questions about it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """Use a connection; `open_to_read` returns a Questions."""
        self._db = db

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, for modules with larger questions."""
        return self._db

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    # Postbacks.

    def list_postbacks(self, wanted: RowFilter, limit: int) -> Iterator[Row]:
        """List the newest postbacks (limit 0: all), the newest last."""
        return list_rows(self._db, POSTBACKS, wanted, limit)

    def count_postbacks(self, wanted: RowFilter) -> int | None:
        """Count the postbacks that are wanted; None where that takes too long."""
        return count_rows(self._db, POSTBACKS, wanted)

    def list_postbacks_between(self, after: int, last: int, wanted: RowFilter) -> list[Row]:
        """List at most a page of the postbacks with ids above `after` and up to `last`."""
        page = wanted.also("postbacks.id > ? AND postbacks.id <= ?", after, last)
        sql = select_sql(POSTBACKS, page, f"ORDER BY id LIMIT {PAGE_ROWS}")
        return [read_row(POSTBACKS, row) for row in self._db.execute(sql, page.values)]

    def find_last_postback_id(self) -> int:
        """Return the id of the newest postback, 0 if there is none."""
        return self._count("SELECT coalesce(max(id), 0) FROM postbacks")

    def find_postback_ids(self, since: str | None, until: str | None) -> tuple[int, int]:
        """Return the first and the last id of the postbacks of a time; 1 and 0 if none."""
        wanted = RowFilter().between("received_at", since, until)
        sql = (
            f"SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM postbacks {where_sql(wanted)}"
        )
        first, last = self._db.execute(sql, wanted.values).fetchone()
        return first, last

    def find_last_postback(self) -> tuple[str, str] | None:
        """Return the time and the verdict of the newest postback."""
        # Not the highest id: a postback that was caught and imported was received earlier.
        newest = "ORDER BY received_at DESC, id DESC LIMIT 1"
        # What an operator wrote is none.
        sql = f"SELECT received_at, verdict FROM postbacks WHERE source <> 'operator' {newest}"
        row: tuple[str, str] | None = self._db.execute(sql).fetchone()
        return row

    def count_parked(self, since: str) -> Tally:
        """Count the postbacks that wait for their click."""
        waits = "verdict = 'parked' AND settled_at IS NULL"
        return self._tally(f"FROM postbacks WHERE {waits}", since)

    def count_unmapped(self, since: str) -> Tally:
        """Count the postbacks whose status word has no meaning."""
        return self._tally(_UNMAPPED, since)

    def find_unmapped_words(self, limit: int) -> list[tuple[str, int]]:
        """List the most frequent words without a meaning, with their numbers."""
        sql = (
            f"SELECT original_status, count(*) {_UNMAPPED} GROUP BY original_status"
            " ORDER BY count(*) DESC, original_status LIMIT ?"
        )
        return self._db.execute(sql, (limit,)).fetchall()

    def find_mapping_queries(self, network: str | None, word: str) -> list[str]:
        """List a network's newest queries that may define a meaning for the word.

        The word may not be their own status: a URL with lists of statuses has all of them.
        """
        # `_` matches any character, so + too. A query that matches by chance is read in vain.
        plain, written = f"%{word.replace(' ', '_')}%", f"%{quote(word.encode('utf-8'))}%"
        values = (network, word, plain, written, plain != written, LOOKED_THROUGH_ROWS)
        rows = self._db.execute(_MAPPING, values)
        return [query for (query,) in rows]

    def find_refused_queries(self, since: str) -> list[str]:
        """List the newest queries refused since then whose conversion is no sale or rebill now."""
        rows = self._db.execute(_REFUSED, (since, LOOKED_THROUGH_ROWS))
        return [query for (query,) in rows]

    def find_repeats(self, since: str) -> list[tuple[str, Decimal | None, str | None]]:
        """List the last repeat of each conversion since then, with the stored amount."""
        rows = self._db.execute(_REPEATS, (since, LOOKED_THROUGH_ROWS))
        return [
            (query, None if micros is None else from_micros(micros), currency)
            for query, micros, currency in rows
        ]

    def has_rate_of(self, currency: str) -> bool:
        """Return whether a currency has a rate: a manual one in force, or a fetched one."""
        return self._db.execute(HAS_RATE, (currency,)).fetchone() is not None

    def count_sales_without_amount(self, since: str) -> tuple[int, int]:
        """Count the sales and rebills since then without an amount or its currency, and all."""
        count, total = self._db.execute(_WITHOUT_AMOUNT, (since,)).fetchone()
        return count, total

    def _tally(self, source: str, since: str) -> Tally:
        sql = f"SELECT coalesce(sum(received_at >= ?), 0), count(*) {source}"
        return Tally(*self._db.execute(sql, (since,)).fetchone())

    # Conversions.

    def list_conversions(self, wanted: RowFilter, limit: int) -> Iterator[Row]:
        """List the newest conversions (limit 0: all), the newest last."""
        return list_rows(self._db, CONVERSIONS, wanted, limit)

    def list_deleted_conversions(self, wanted: RowFilter, limit: int) -> Iterator[Row]:
        """List the newest of those that an operator has deleted (limit 0: all), the newest last."""
        return list_rows(self._db, DELETED_CONVERSIONS, wanted, limit)

    def list_corrections(self, subid: str) -> list[Row]:
        """List what operators have set or deleted of a click's conversions, oldest first."""
        rows = self._db.execute(_CORRECTIONS, (subid,))
        return [dict(zip(CORRECTION_NAMES, row, strict=True)) for row in rows]

    def count_conversions(self, wanted: RowFilter) -> int | None:
        """Count the conversions that are wanted; None where that takes too long."""
        return count_rows(self._db, CONVERSIONS, wanted)

    def count_deleted_conversions(self, wanted: RowFilter) -> int | None:
        """Count likewise those that an operator has deleted."""
        return count_rows(self._db, DELETED_CONVERSIONS, wanted)

    def list_conversion_ids(self, since: str | None, until: str | None) -> Iterator[list[int]]:
        """List the ids of the conversions of a time, a page at a time."""
        start, after = since or "", -1
        while True:
            page = RowFilter().between("created_at", None, until).also("deleted_at IS NULL")
            page = page.also("(created_at, id) > (?, ?)", start, after)
            sql = (
                f"SELECT created_at, id FROM conversions {where_sql(page)}"
                f" ORDER BY created_at, id LIMIT {PAGE_ROWS}"
            )
            rows = self._db.execute(sql, page.values).fetchall()
            if not rows:
                return
            yield [conversion_id for _, conversion_id in rows]
            start, after = rows[-1]

    def list_history(self, conversion_id: int) -> list[Row]:
        """List every change of a conversion, in order."""
        rows = self._db.execute(_HISTORY, (conversion_id,))
        return [dict(zip(HISTORY_NAMES, row, strict=True)) for row in rows]

    def find_held(self, subids: Iterable[str]) -> dict[str, list[StoredConversion]]:
        """Find the conversions of clicks, oldest first; unknown clicks are left out."""
        held: dict[str, list[StoredConversion]] = {}
        for subid, created_at, network, *row in self._db.execute(_HELD, (to_json(list(subids)),)):
            of_click = held.setdefault(subid, [])
            if created_at is not None:
                of_click.append(StoredConversion(read_conversion(row), created_at, network))
        return held

    def find_unbooked(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Unbooked]:
        """Find the newest postback without a conversion for each click id and transaction id."""
        rows = self._db.execute(_UNBOOKED, (to_json(list(keys)),))
        return {(subid, tid): Unbooked(*rest) for subid, tid, _, *rest in rows}

    # Clicks, offers, campaigns.

    def count_clicks(self, wanted: RowFilter) -> int | None:
        """Count the clicks that are wanted; None where that takes too long."""
        return count_rows(self._db, CLICKS, wanted)

    def list_clicks(self, wanted: RowFilter, limit: int) -> Iterator[Row]:
        """List the newest clicks (limit 0: all), the newest last."""
        return list_rows(self._db, CLICKS, wanted, limit)

    def find_subids(self, wanted: Sequence[str]) -> list[str]:
        """Return those of the click ids that are known."""
        sql = "SELECT subid FROM clicks WHERE subid IN (SELECT value FROM json_each(?))"
        return [subid for (subid,) in self._db.execute(sql, (json.dumps(wanted),))]

    def find_subids_in_other_case(self, subid: str, limit: int) -> list[str]:
        """List click ids that differ only in the case of ASCII letters: reads the whole index."""
        sql = "SELECT subid FROM clicks WHERE subid = ?1 COLLATE NOCASE AND subid <> ?1 LIMIT ?2"
        return [subid for (subid,) in self._db.execute(sql, (subid, limit))]

    def find_subids_beginning(self, beginning: str, limit: int) -> list[str]:
        """List longer click ids with this beginning."""
        sql = "SELECT subid FROM clicks WHERE subid > ?1 AND subid < ?1 || char(1114111) LIMIT ?2"
        return [subid for (subid,) in self._db.execute(sql, (beginning, limit))]

    def list_offers(self) -> Iterator[Row]:
        """List the offers by name, and whether they allow rebills; None if that was never set."""
        for name, allow_rebills in self._db.execute(
            "SELECT name, allow_rebills FROM offers ORDER BY name"
        ):
            is_set = allow_rebills is not None
            yield {"name": name, "allow_rebills": bool(allow_rebills) if is_set else None}

    def list_campaigns(self) -> Iterator[Row]:
        """List the campaigns by name, and their cost models."""
        for name, cost_model in self._db.execute(
            "SELECT name, cost_model FROM campaigns ORDER BY name"
        ):
            yield {"name": name, "cost_model": cost_model}

    # Rates.

    def list_rates(self, today: str) -> list[CurrencyRate]:
        """List each currency's rate in force today, and the conversions that wait for a rate."""
        rates = {
            row[0]: CurrencyRate(*row)
            for row in self._db.execute(_RATES_IN_FORCE, {"today": today})
        }
        for currency, waiting in self.count_waiting().items():
            known = rates.get(currency, CurrencyRate(currency))
            rates[currency] = known._replace(waiting=waiting)
        return [rates[currency] for currency in sorted(rates)]

    def list_rates_by_hand(self, day: date) -> list[tuple[str, Rate, Rate | None]]:
        """List the manual rates in force, each with the fetched rate that it overrides on a day."""
        return rate_book.list_rates_by_hand(self._db, day)

    def list_refused_rates(self) -> list[rate_book.Refusal]:
        """List each currency's newest refusal that has no accepted rate after it."""
        return rate_book.list_standing_refusals(self._db)

    def list_rate_sources(self) -> list[rate_book.SourceState]:
        """List how the last request to each source of rates went."""
        return rate_book.list_sources(self._db)

    def count_waiting(self) -> dict[str, int]:
        """Count the conversions that wait for a rate, by currency."""
        return dict(self._db.execute(_WAITING).fetchall())

    # Keys.

    def find_key_uses(self, keys: Sequence[bytes]) -> dict[bytes, str | None]:
        """Return when each of these keys was last used, to the minute; None: no use is recorded."""
        return key_usage.find_uses(self._db, keys)

    # The database itself.

    def find_currency(self) -> str:
        """Return the currency of the amounts in the database."""
        currency: str = self._db.execute("SELECT currency FROM tracker").fetchone()[0]
        return currency

    def _count(self, sql: str) -> int:
        number: int = self._db.execute(sql).fetchone()[0]
        return number


def _decimal(column: str) -> str:
    return f"CASE WHEN {column} IS NOT NULL THEN {schema.decimal_sql(column)} END"


# The smallest index that has all of these rows.
_UNMAPPED = """
    FROM postbacks INDEXED BY postbacks_without_conversion
    WHERE conversion_id IS NULL AND verdict = 'unmapped' AND settled_at IS NULL
        AND NOT EXISTS (SELECT 1 FROM postbacks AS again WHERE again.replay_of = postbacks.id)
"""

# Each query once: a network may send the same again and again.
_REFUSED = """
    SELECT DISTINCT query FROM postbacks
    WHERE received_at >= ?1 AND id > (SELECT max(id) FROM postbacks) - ?2
        AND source <> 'replay' AND coalesce(settled_verdict, verdict) = 'refused'
        AND NOT EXISTS (
            SELECT 1 FROM clicks JOIN conversions ON click_id = clicks.id
            WHERE clicks.subid = postbacks.subid AND conversions.tid = postbacks.tid
                AND status IN ('sale', 'rebill'))
"""

# SQLite takes the other columns from the row that has the maximum.
_REPEATS = """
    SELECT query, amount_micros, currency FROM (
        SELECT max(id), query, conversion_id FROM postbacks
        WHERE received_at >= ?1 AND id > (SELECT max(id) FROM postbacks) - ?2
            AND coalesce(settled_verdict, verdict) = 'repeated' AND conversion_id IS NOT NULL
        GROUP BY conversion_id)
    JOIN conversions ON conversions.id = conversion_id WHERE status <> 'rejected'
"""

_WITHOUT_AMOUNT = """
    SELECT coalesce(sum(currency IS NULL), 0), count(*) FROM conversions
    WHERE created_at >= ? AND status IN ('sale', 'rebill')
"""

# A query with another status may define the word too; some dozens are read.
_MAPPING = """
    SELECT query FROM postbacks
    WHERE id > (SELECT max(id) FROM postbacks) - ?6 AND network IS ?1
        AND verdict NOT IN ('unmapped', 'invalid') AND source <> 'replay'
        AND (original_status = ?2 COLLATE NOCASE OR query LIKE ?3 OR ?5 AND query LIKE ?4)
    ORDER BY id DESC LIMIT 50
"""

# CROSS JOIN: one look-up in the index for each click id.
_HELD = f"""
    SELECT clicks.subid, conversions.created_at, network, {CONVERSION_COLUMNS}
    FROM (SELECT DISTINCT value FROM json_each(?))
    CROSS JOIN clicks ON clicks.subid = value
    LEFT JOIN conversions ON conversions.click_id = clicks.id AND deleted_at IS NULL
    ORDER BY conversions.id
"""

# SQLite takes the other columns from the row that has the maximum.
_UNBOOKED = """
    SELECT postbacks.subid, postbacks.tid, max(postbacks.id), received_at, verdict, reason
    FROM (SELECT DISTINCT value FROM json_each(?))
    CROSS JOIN postbacks INDEXED BY postbacks_without_conversion
        ON postbacks.subid = value ->> 0 AND postbacks.tid = value ->> 1
    WHERE conversion_id IS NULL
    GROUP BY postbacks.subid, postbacks.tid
"""

_HISTORY = f"""
    SELECT seq, at, change, postback_id, status, original_status, tid,
        {_decimal("amount_micros")}, currency, {_decimal("payout_micros")},
        rate, rate_day, rate_source, {_decimal("cost_micros")}, reason
    FROM conversion_history WHERE conversion_id = ? ORDER BY seq
"""

_CORRECTIONS = """
    SELECT conversion_id, conversion_history.tid, at, change, conversion_history.status, reason
    FROM clicks JOIN conversions ON conversions.click_id = clicks.id
    JOIN conversion_history ON conversion_id = conversions.id
    WHERE clicks.subid = ? AND change IN ('operator', 'deleted') ORDER BY at, conversion_id, seq
"""

# Rates in the order in which storage looks for one: the manual one, the newest up to today, the
# newest of all; of two sources on one day, the one stored first.
_RATES_IN_FORCE = """
    SELECT currency, rate, day, source, CAST(julianday(:today) - julianday(day) AS INTEGER)
    FROM (
        SELECT currency, rate, day, source, row_number() OVER (
            PARTITION BY currency
            ORDER BY source <> 'hand', source <> 'hand' AND day > :today, day DESC, id) AS place
        FROM rates WHERE ended_at IS NULL)
    WHERE place = 1
"""

_WAITING = """
    SELECT currency, count(DISTINCT id) FROM (
        SELECT currency, id FROM conversions
        WHERE payout_micros IS NULL AND amount_day IS NOT NULL
        UNION ALL
        SELECT cost_currency, id FROM conversions
        WHERE cost_micros IS NULL AND cost_day IS NOT NULL)
    GROUP BY currency
"""
