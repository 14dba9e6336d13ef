"""What people ask from a terminal, in SQL: one method a question, beside a running service.

Everything is read-only; what is long comes in pages (`reports/listing.py`).
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

# No index leads from a network to its postbacks: some thirty milliseconds of the newest.
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
)


class CurrencyRate(NamedTuple):
    """What stands for a currency today, and how many conversions wait for it."""

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
    """A conversion as the engine sees it, when it came, and from which network."""

    conversion: Conversion
    created_at: str
    network: str | None


class Unbooked(NamedTuple):
    """A postback that no conversion came of."""

    received_at: str
    verdict: str
    reason: str


def open_to_read(path: Path) -> "Questions":
    """Open a database of ours that is there; raises DatabaseError, sqlite3.Error."""
    return Questions(connect_to_read(path))


class Questions:
    """An open database and what people ask of it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """Take on a connection; `open_to_read` gives one."""
        self._db = db

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, for modules that ask larger questions."""
        return self._db

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    # Postbacks

    def list_postbacks(self, wanted: RowFilter, limit: int) -> Iterator[Row]:
        """List the newest postbacks (limit 0: all), the newest last."""
        return list_rows(self._db, POSTBACKS, wanted, limit)

    def count_postbacks(self, wanted: RowFilter) -> int | None:
        """Count the postbacks that are wanted; None where that takes too long."""
        return count_rows(self._db, POSTBACKS, wanted)

    def list_postbacks_between(self, after: int, last: int, wanted: RowFilter) -> list[Row]:
        """List what came after a postback and through another, a page at most, by id."""
        page = wanted.also("postbacks.id > ? AND postbacks.id <= ?", after, last)
        sql = select_sql(POSTBACKS, page, f"ORDER BY id LIMIT {PAGE_ROWS}")
        return [read_row(POSTBACKS, row) for row in self._db.execute(sql, page.values)]

    def find_last_postback_id(self) -> int:
        """Tell the id of the newest postback, 0 where there is none."""
        return self._count("SELECT coalesce(max(id), 0) FROM postbacks")

    def find_postback_ids(self, since: str | None, until: str | None) -> tuple[int, int]:
        """Tell the first and the last id of the postbacks of a time, 1 and 0 where none came."""
        wanted = RowFilter().between("received_at", since, until)
        sql = (
            f"SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM postbacks {where_sql(wanted)}"
        )
        first, last = self._db.execute(sql, wanted.values).fetchone()
        return first, last

    def find_last_postback(self) -> tuple[str, str] | None:
        """Tell when the newest postback came and its verdict."""
        # Not the highest id: a postback that was caught and imported came before.
        newest = "ORDER BY received_at DESC, id DESC LIMIT 1"
        sql = f"SELECT received_at, verdict FROM postbacks {newest}"
        row: tuple[str, str] | None = self._db.execute(sql).fetchone()
        return row

    def count_parked(self, since: str) -> Tally:
        """Count what waits for its click."""
        waits = "verdict = 'parked' AND settled_at IS NULL"
        return self._tally(f"FROM postbacks WHERE {waits}", since)

    def count_unmapped(self, since: str) -> Tally:
        """Count the postbacks whose word has no meaning."""
        return self._tally(_UNMAPPED, since)

    def find_unmapped_words(self, limit: int) -> list[tuple[str, int]]:
        """List the commonest words without a meaning, and how often they came."""
        sql = (
            f"SELECT original_status, count(*) {_UNMAPPED} GROUP BY original_status"
            " ORDER BY count(*) DESC, original_status LIMIT ?"
        )
        return self._db.execute(sql, (limit,)).fetchall()

    def find_mapping_queries(self, network: str | None, word: str) -> list[str]:
        """List the newest queries of a network that may have a meaning for the word.

        It need not be the status that they came with: a URL that has lists has them all.
        """
        # `_` is any sign, so + too. What matches by chance is only read in vain.
        plain, written = f"%{word.replace(' ', '_')}%", f"%{quote(word.encode('utf-8'))}%"
        values = (network, word, plain, written, plain != written, LOOKED_THROUGH_ROWS)
        rows = self._db.execute(_MAPPING, values)
        return [query for (query,) in rows]

    def find_refused_queries(self, since: str) -> list[str]:
        """List what was refused since then and is booked by no other postback, of the newest."""
        rows = self._db.execute(_REFUSED, (since, LOOKED_THROUGH_ROWS))
        return [query for (query,) in rows]

    def find_repeats(self, since: str) -> list[tuple[str, Decimal | None, str | None]]:
        """List the last repeat of each conversion since then, and the amount that stands."""
        rows = self._db.execute(_REPEATS, (since, LOOKED_THROUGH_ROWS))
        return [
            (query, None if micros is None else from_micros(micros), currency)
            for query, micros, currency in rows
        ]

    def has_rate_of(self, currency: str) -> bool:
        """Tell whether any rate names a currency, one set by hand that has not ended or fetched."""
        return self._db.execute(HAS_RATE, (currency,)).fetchone() is not None

    def count_sales_without_amount(self, since: str) -> tuple[int, int]:
        """Count the sales and rebills since then without an amount or its currency, and all."""
        count, total = self._db.execute(_WITHOUT_AMOUNT, (since,)).fetchone()
        return count, total

    def _tally(self, source: str, since: str) -> Tally:
        sql = f"SELECT coalesce(sum(received_at >= ?), 0), count(*) {source}"
        return Tally(*self._db.execute(sql, (since,)).fetchone())

    # Conversions

    def list_conversions(self, wanted: RowFilter, limit: int) -> Iterator[Row]:
        """List the newest conversions (limit 0: all), the newest last."""
        return list_rows(self._db, CONVERSIONS, wanted, limit)

    def count_conversions(self, wanted: RowFilter) -> int | None:
        """Count the conversions that are wanted; None where that takes too long."""
        return count_rows(self._db, CONVERSIONS, wanted)

    def list_conversion_ids(self, since: str | None, until: str | None) -> Iterator[list[int]]:
        """List the ids of the conversions of a time, a page at a time."""
        start, after = since or "", -1
        while True:
            page = RowFilter().between("created_at", None, until)
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
        """Find the conversions of clicks, oldest first; clicks that are not known are left out."""
        held: dict[str, list[StoredConversion]] = {}
        for subid, created_at, network, *row in self._db.execute(_HELD, (to_json(list(subids)),)):
            of_click = held.setdefault(subid, [])
            if created_at is not None:
                of_click.append(StoredConversion(read_conversion(row), created_at, network))
        return held

    def find_unbooked(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Unbooked]:
        """Find the newest postback without a conversion of each click id and transaction id."""
        rows = self._db.execute(_UNBOOKED, (to_json(list(keys)),))
        return {(subid, tid): Unbooked(*rest) for subid, tid, _, *rest in rows}

    # Clicks, offers, campaigns

    def count_clicks(self, wanted: RowFilter) -> int | None:
        """Count the clicks that are wanted; None where that takes too long."""
        return count_rows(self._db, CLICKS, wanted)

    def list_clicks(self, wanted: RowFilter, limit: int) -> Iterator[Row]:
        """List the clicks that came last (limit 0: all), the newest last."""
        return list_rows(self._db, CLICKS, wanted, limit)

    def find_subids(self, wanted: Sequence[str]) -> list[str]:
        """Tell which of these click ids are known."""
        sql = "SELECT subid FROM clicks WHERE subid IN (SELECT value FROM json_each(?))"
        return [subid for (subid,) in self._db.execute(sql, (json.dumps(wanted),))]

    def find_subids_in_other_case(self, subid: str, limit: int) -> list[str]:
        """List click ids that differ in the case of ASCII letters only: reads all of the index."""
        sql = "SELECT subid FROM clicks WHERE subid = ?1 COLLATE NOCASE AND subid <> ?1 LIMIT ?2"
        return [subid for (subid,) in self._db.execute(sql, (subid, limit))]

    def find_subids_beginning(self, beginning: str, limit: int) -> list[str]:
        """List longer click ids that begin so."""
        sql = "SELECT subid FROM clicks WHERE subid > ?1 AND subid < ?1 || char(1114111) LIMIT ?2"
        return [subid for (subid,) in self._db.execute(sql, (beginning, limit))]

    def list_offers(self) -> Iterator[Row]:
        """List the offers by name, and whether they allow rebills; None where it was never set."""
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

    # Rates

    def list_rates(self, today: str) -> list[CurrencyRate]:
        """List what each currency is worth today, and what waits for a rate."""
        rates = {
            row[0]: CurrencyRate(*row)
            for row in self._db.execute(_RATES_IN_FORCE, {"today": today})
        }
        for currency, waiting in self.count_waiting().items():
            known = rates.get(currency, CurrencyRate(currency))
            rates[currency] = known._replace(waiting=waiting)
        return [rates[currency] for currency in sorted(rates)]

    def list_rates_by_hand(self, day: date) -> list[tuple[str, Rate, Rate | None]]:
        """List each rate by hand in force, and the fetched one that it beats on a day."""
        return rate_book.list_rates_by_hand(self._db, day)

    def list_refused_rates(self) -> list[rate_book.Refusal]:
        """List the newest refusal of each currency that stands."""
        return rate_book.list_standing_refusals(self._db)

    def list_rate_sources(self) -> list[rate_book.SourceState]:
        """List how asking each source of rates went last."""
        return rate_book.list_sources(self._db)

    def count_waiting(self) -> dict[str, int]:
        """Count the conversions that wait for a rate, by currency."""
        return dict(self._db.execute(_WAITING).fetchall())

    # Keys

    def find_key_uses(self, keys: Sequence[bytes]) -> dict[bytes, str | None]:
        """Tell when each of these keys was last used, to the minute; None: never."""
        return key_usage.find_uses(self._db, keys)

    # The database itself

    def find_currency(self) -> str:
        """Tell which currency the database keeps its amounts in."""
        currency: str = self._db.execute("SELECT currency FROM tracker").fetchone()[0]
        return currency

    def _count(self, sql: str) -> int:
        number: int = self._db.execute(sql).fetchone()[0]
        return number


def _decimal(column: str) -> str:
    return f"CASE WHEN {column} IS NOT NULL THEN {schema.decimal_sql(column)} END"


# Of the indexes this is the smallest that holds them all.
_UNMAPPED = """
    FROM postbacks INDEXED BY postbacks_without_conversion
    WHERE conversion_id IS NULL AND verdict = 'unmapped' AND settled_at IS NULL
        AND NOT EXISTS (SELECT 1 FROM postbacks AS again WHERE again.replay_of = postbacks.id)
"""

# Once each: a network may send the same again and again.
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

# What says nothing of its own word may still name ours; some dozens are read to see.
_MAPPING = """
    SELECT query FROM postbacks
    WHERE id > (SELECT max(id) FROM postbacks) - ?6 AND network IS ?1
        AND verdict NOT IN ('unmapped', 'invalid') AND source <> 'replay'
        AND (original_status = ?2 COLLATE NOCASE OR query LIKE ?3 OR ?5 AND query LIKE ?4)
    ORDER BY id DESC LIMIT 50
"""

# CROSS JOIN: the click ids lead, each a look into the index.
_HELD = f"""
    SELECT clicks.subid, conversions.created_at, network, {CONVERSION_COLUMNS}
    FROM (SELECT DISTINCT value FROM json_each(?))
    CROSS JOIN clicks ON clicks.subid = value
    LEFT JOIN conversions ON conversions.click_id = clicks.id
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
        rate, rate_day, rate_source, {_decimal("cost_micros")}
    FROM conversion_history WHERE conversion_id = ? ORDER BY seq
"""

# The order in which storage looks for a rate: by hand, the newest by today, the newest at all;
# of two sources of one day the one written first.
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
