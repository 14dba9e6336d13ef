"""What a postback, a click and a rate read and write: all SQL of the write path.

Storage decides nothing. What most postbacks ask and change goes by the shelf (`shelf`), which is
read and written here, a statement a table; the other questions are asked of the tables, one method
each. The connection and its transactions are `db/sqlite/connection.py`'s, the tables
`db/sqlite/schema.py`'s, their rows `db/rows.py`'s, what people ask from a terminal
`reports/queries.py`'s.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from functools import cache, lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from postbackd.db.rows import (
    AMOUNT_COLUMNS,
    COST_COLUMNS,
    Again,
    ClickRow,
    ConversionRow,
    KnownClick,
    LastTry,
    ParkedPostback,
    Settled,
    Waiting,
    leave_copies_out,
    sub_ids_json,
    to_json,
    utc_text,
)
from postbackd.db.shelf import Shelf, SubIdPatch
from postbackd.db.sqlite import stop_signals
from postbackd.db.sqlite.connection import (
    WAL_AUTOCHECKPOINT_PAGES,
    Database,
    DatabaseError,
    describe_trouble,
    open_connection,
)
from rates import Rate, decimal_text, from_micros, to_micros
from statuses import Click, Past, Verdict

# An import of clicks with random ids touches a page of the index for every one: with SQLite's own
# 2 MiB they would be written out and read back within one transaction.
BULK_CACHE_KIB = 48 * 1024

# Rows that one INSERT brings: a statement of its own for each took a quarter longer, for each click
# half as long again.
ROWS_A_STATEMENT = (64, 16)

# Ids that one SELECT asks for at most; a smaller list is filled up to a power of two, so that a
# handful of statements is prepared in all.
IDS_A_STATEMENT = 256


def open_database(path: Path, currency: str, *, create: bool = True) -> "Storage":
    """Open the database, made or brought up to date where needed; raises DatabaseError."""
    db = open_connection(path, currency, create=create)
    try:
        return Storage(db, path)
    except (sqlite3.Error, OSError) as error:
        db.close()
        raise DatabaseError(describe_trouble(error, path)) from error


class Storage(Shelf, Database):
    """An open database: the shelf of its present transaction, and what else is asked of it."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        """Take on an open, migrated connection; `open_database` gives one."""
        Database.__init__(self, db, path)
        Shelf.__init__(self)

    @contextmanager
    def transaction(self, about: Iterable[str] = ()) -> Iterator[None]:
        """Make what happens inside one commit, on disk when this returns; any exception undoes it.

        `about`: the click ids that will be asked for, as far as they are known; they are read at
        once, any other when it is asked for. Raises DatabaseError where the commit went into a
        file that is no longer at its path.
        """
        with super().transaction():
            self._is_open = True
            try:
                self._take_readable(about)
                yield
                self.write()
            finally:
                self._is_open = False
                self.clear()

    def _take_readable(self, subids: Iterable[str]) -> None:
        try:
            self.take(subids)
        except UnicodeEncodeError:
            # One of them is no text that a database takes: only the job that asks for it is to
            # fail.
            self.clear()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Make what happens inside undone as a whole where it raises, and nothing beside it."""
        self.write()
        with super().savepoint():
            try:
                yield
                self.write()
            except BaseException:
                self.clear()
                raise

    # The shelf, read

    def _read_clicks(self, subids: Sequence[str]) -> Iterator[tuple[str, KnownClick, bool]]:
        for row in _select(self.db, _find_clicks_sql, subids):
            click_id, subid, campaign_id, offer_id, sub_ids, is_due, has_conversions, *about = row
            click = _make_click(*about)
            known = KnownClick(click_id, campaign_id, offer_id, sub_ids, bool(is_due), click)
            yield subid, known, has_conversions

    def _read_conversions_of(self, click_ids: Sequence[int]) -> Iterator[tuple[ConversionRow, int]]:
        for row in _select(self.db, _find_conversions_of_sql, click_ids):
            yield ConversionRow._make(row[:-1]), row[-1]

    def _read_conversions(
        self, conversion_ids: Sequence[int]
    ) -> Iterator[tuple[ConversionRow, int]]:
        for row in _select(self.db, _find_conversions_sql, conversion_ids):
            yield ConversionRow._make(row[:-1]), row[-1]

    def _read_last_ids(self) -> dict[str, int]:
        row = self.db.execute(_FIND_LAST_IDS).fetchone()
        return dict(zip(("clicks", "conversions", "postbacks"), row, strict=True))

    def _read_has_parked(self, subid: str) -> bool:
        return self.db.execute(_FIND_ONE_PARKED, (subid,)).fetchone() is not None

    def _read_rate(self, currency: str, day: date) -> Rate | None:
        for statement in (_FIND_RATE_BY_HAND, _FIND_RATE_BY_THEN, _FIND_NEWEST_RATE):
            row = self.db.execute(statement, {"currency": currency, "day": str(day)}).fetchone()
            if row is not None:
                return Rate(Decimal(row[0]), date.fromisoformat(row[1]), row[2])
        return None

    # The shelf, written

    def _write(self) -> None:
        changes = self.to_write
        _insert(self.db, _ADD_CLICK, changes.clicks)
        if changes.click_sub_ids:
            self._patch_clicks(changes.click_sub_ids)
        for external_id, click_id, only_missing in changes.external_ids:
            sql = _ADD_EXTERNAL_ID if only_missing else _SET_EXTERNAL_ID
            self.db.execute(sql, (external_id, click_id))
        if changes.changed_conversions:
            self._change_conversions()
        _insert(self.db, _ADD_CONVERSION, self.list_new_conversions())
        patches = [(to_json(sub_ids), row_id) for row_id, sub_ids in changes.conversion_sub_ids]
        self._run_each(_PATCH_CONVERSION, patches)
        _insert(self.db, _ADD_POSTBACK, changes.postbacks)
        _insert(self.db, _ADD_HISTORY, changes.history)
        self._run_each(_SETTLE_POSTBACK, changes.settlements)
        self._run_each(_CLEAR_DUE_CLICK, [(click_id,) for click_id in changes.settled_clicks])

    def _patch_clicks(self, patches: Sequence[SubIdPatch]) -> None:
        # In order: what a click lacks may be what the patch before it brings.
        for only_missing, some in itertools.groupby(patches, attrgetter("only_missing")):
            sql = _ADD_TO_CLICK if only_missing else _PATCH_CLICK
            self._run_each(sql, [(to_json(patch.sub_ids), patch.click_id) for patch in some])

    def _change_conversions(self) -> None:
        changed = self.list_changed_conversions()
        # By itself, since it is in an index, of which a page would be written with every change.
        tids = [(now.tid, now.id) for was, now in changed if was.tid != now.tid]
        self._run_each(_SET_TID, tids)
        self._run_each(_CHANGE_CONVERSION, [_OF_CHANGE(now) for _, now in changed])

    def _run_each(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            self.db.executemany(sql, rows)

    # Clicks

    def put_clicks(self, rows: Iterable[ClickRow], now: str) -> int:
        """Make clicks, or let what is given replace what stands; returns how many are new."""
        campaigns = _Names(self.db, "campaigns")
        offers = _Names(self.db, "offers")
        values = [
            (
                row.subid,
                campaigns.find_or_add(row.campaign),
                offers.find_or_add(row.offer),
                row.clicked_at,
                row.cost_model,
                sub_ids_json(row.sub_ids) if row.sub_ids else "{}",
                now,
                row.external_id,
                row.source,
                None if row.cost is None else to_micros(row.cost),
                row.currency,
            )
            for row in rows
        ]
        if self._changes_clicks:
            self.write()
        before = self._find_last_id("clicks")
        _insert(self.db, _PUT_CLICK, values, _OR_CHANGE_CLICK)
        self._forget_clicks(value[0] for value in values)
        # Ids are given in order and only to new rows, and we hold the write lock.
        last = self._last_ids["clicks"] = self._read_last_ids()["clicks"]
        return last - before

    @contextmanager
    def bulk(self) -> Iterator[None]:
        """Make ready for many transactions in a row: `checkpoint` then stands between them."""
        self.db.execute(f"PRAGMA cache_size = -{BULK_CACHE_KIB}")
        self.db.execute("PRAGMA wal_autocheckpoint = 0")
        yield
        self.checkpoint()
        self.db.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}")

    def checkpoint(self) -> None:
        """Move the log to the database, without a lock that a writer would wait for."""
        # A process stopped within it would let nobody else move the log, which then grows.
        with stop_signals.deferred():
            self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    # Amounts that wait for a rate

    def find_waiting_days(self, kind: str, currency: str) -> list[date]:
        """List the days of which amounts (`kind` "payout") or costs ("cost") wait for a rate."""
        self.write()
        rows = self.db.execute(_FIND_WAITING_DAYS[kind], (currency,))
        return [date.fromisoformat(day) for (day,) in rows]

    def find_waiting(
        self, kind: str, currency: str, day: date, below_micros: int, limit: int
    ) -> list[Waiting]:
        """List those of a day that wait for a rate, and are smaller than so many micros."""
        self.write()
        rows = self.db.execute(_FIND_WAITING[kind], (currency, str(day), below_micros, limit))
        return [Waiting(conversion_id, from_micros(micros)) for conversion_id, micros in rows]

    def find_waiting_currencies(self) -> list[str]:
        """List the currencies whose rate is known by now and that amounts or costs wait for."""
        self.write()
        return [currency for (currency,) in self.db.execute(_FIND_WAITING_CURRENCIES)]

    # Postbacks

    def find_parked(self, subid: str, different: int, in_all: int) -> list[ParkedPostback]:
        """List what is parked for a click id, in the order received: so many different queries.

        One that comes behind its equal is left out, and counted with the first.
        """
        self.write()
        rows = self.db.execute(_FIND_PARKED, (subid, different + 1)).fetchall()
        if len(rows) <= different:
            return leave_copies_out(ParkedPostback(*row) for row in rows)
        limits = {"subid": subid, "different": different, "in_all": in_all}
        return [ParkedPostback(*row) for row in self.db.execute(_FIND_MANY_PARKED, limits)]

    def find_past(self, again: Again) -> Past:
        """Tell what the log knows of a postback that may have come before."""
        self.write()
        row = self.db.execute(_FIND_PAST, again._asdict()).fetchone()
        return Past(*map(bool, row))

    def find_same_request(
        self, subid: str | None, query: str, body: bytes | None, since: str
    ) -> str | None:
        """Tell when the first postback came that said just this, from this moment on."""
        values = {"subid": subid, "query": query, "body": body, "since": since}
        self.write()
        row = self.db.execute(_FIND_SAME_REQUEST, values).fetchone()
        return None if row is None else row[0]

    def find_click_gaps(self, click_id: int) -> frozenset[str]:
        """Tell which columns of a click say nothing yet, by the names of a `ClickRow`."""
        self.write()
        columns = self.db.execute(_FIND_CLICK_GAPS, (click_id,)).fetchone()
        return frozenset(name for name, value in zip(_GAPS, columns, strict=True) if value is None)

    def has_moved_since(self, click_id: int, moment: str) -> bool:
        """Tell whether a conversion of the click was changed after a moment."""
        self.write()
        sql = "SELECT EXISTS (SELECT 1 FROM conversions WHERE click_id = ? AND updated_at > ?)"
        return bool(self.db.execute(sql, (click_id, moment)).fetchone()[0])

    def count_parked(self, subids: Iterable[str]) -> dict[str, int]:
        """Count what is parked for each of these click ids; those without are left out."""
        if self._changes_clicks:
            self.write()
        return dict(_select(self.db, _count_parked_sql, list(dict.fromkeys(subids))))

    def find_last_try(self, postback_id: int) -> LastTry | None:
        """Tell how a postback was put through last: by its newest replay, else as it came."""
        self.write()
        row = self.db.execute(_FIND_LAST_TRY, (postback_id,)).fetchone()
        if row is None:
            return None
        query, verdict, is_replay, lacks_amount = row
        return LastTry(query, Verdict(verdict), bool(is_replay), bool(lacks_amount))

    def brought_older_amount(self, conversion_id: int, received_at: str) -> bool:
        """Tell whether the last change put an amount or a cost in the place of one received later.

        `received_at`: when the postback behind that change was received.
        """
        self.write()
        return any(
            self.db.execute(
                _GIVEN_LATER.format(value=value), (conversion_id, received_at)
            ).fetchone()
            for value in ("amount_micros || coalesce(currency, '')", "cost_micros")
        )

    def withdraw_parked_replays(self, original_id: int, at: str) -> None:
        """End the earlier replays of a postback that wait for a click still."""
        self.write()
        self.db.execute(
            "UPDATE postbacks SET settled_at = ?, settled_verdict = 'refused',"
            " settled_reason = 'put through again otherwise'"
            " WHERE replay_of = ? AND verdict = 'parked' AND settled_at IS NULL",
            (at, original_id),
        )

    def settle_copies(self, parked: ParkedPostback, at: str, settled: Settled) -> None:
        """Write down what came of the parked postbacks that say the very same."""
        self.write()
        self.db.execute(_SETTLE_COPIES, (at, *settled, parked.id, parked.query))

    def refuse_parked(self, subid: str, at: str, reason: str, before: str | None = None) -> None:
        """Refuse all that is parked for a click id, or only what came before a time."""
        self.write()
        self.db.execute(
            "UPDATE postbacks SET settled_at = ?, settled_verdict = 'refused', settled_reason = ?"
            " WHERE subid = ? AND verdict = 'parked' AND settled_at IS NULL AND received_at < ?",
            (at, reason, subid, _BEHIND_EVERY_TIME if before is None else before),
        )

    def find_due_clicks(self, limit: int) -> list[tuple[int, str]]:
        """List clicks (id, subid) that have come and for which postbacks are parked."""
        if self._changes_clicks:
            self.write()
        return self.db.execute(
            "SELECT click_id, subid FROM due_clicks JOIN clicks ON clicks.id = click_id"
            " ORDER BY click_id LIMIT ?",
            (limit,),
        ).fetchall()

    def find_due_clicks_among(self, subids: Iterable[str]) -> list[tuple[int, str]]:
        """List likewise those of these click ids."""
        if not self.find_due_clicks(1):
            return []
        return sorted(_select(self.db, _find_due_sql, list(dict.fromkeys(subids))))

    # Rates

    def has_rate_of(self, currency: str) -> bool:
        """Tell whether any rate names a currency, one set by hand that has not ended or fetched."""
        return self.db.execute(HAS_RATE, (currency,)).fetchone() is not None

    def find_last_rate_id(self) -> int:
        """Tell the id of the rate that was written last, 0 where there is none."""
        last: int = self.db.execute("SELECT coalesce(max(id), 0) FROM rates").fetchone()[0]
        return last

    def add_rate_by_hand(self, currency: str, rate: Decimal, now: datetime) -> None:
        """Put a rate by hand in force, in place of the one before it."""
        self.end_rate_by_hand(currency, now)
        self.db.execute(
            "INSERT INTO rates (currency, day, source, rate, created_at)"
            " VALUES (?, ?, 'hand', ?, ?)",
            (currency, now.date().isoformat(), decimal_text(rate), utc_text(now)),
        )

    def end_rate_by_hand(self, currency: str, now: datetime) -> bool:
        """End the rate by hand in force; False where there was none."""
        # What was asked for before may be another rate now.
        self._rates.clear()
        cursor = self.db.execute(
            "UPDATE rates SET ended_at = ?"
            " WHERE currency = ? AND source = 'hand' AND ended_at IS NULL",
            (utc_text(now), currency),
        )
        return cursor.rowcount > 0

    # Offers, campaigns, health

    def set_offer(self, name: str, *, allow_rebills: bool) -> bool:
        """Say whether an offer allows rebills; True where it was not known yet and is made."""
        self._begin_anew()
        is_new = _is_unknown(self.db, "offers", name)
        self.db.execute(
            "INSERT INTO offers (name, allow_rebills) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET allow_rebills = excluded.allow_rebills",
            (name, int(allow_rebills)),
        )
        return is_new

    def set_campaign(self, name: str, cost_model: str | None) -> bool:
        """Set a campaign's cost model (None: unknown); True where it was not known yet."""
        self._begin_anew()
        is_new = _is_unknown(self.db, "campaigns", name)
        self.db.execute(
            "INSERT INTO campaigns (name, cost_model) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET cost_model = excluded.cost_model",
            (name, cost_model),
        )
        return is_new

    def _begin_anew(self) -> None:
        # What the shelf says of a click's offer and campaign is about to change.
        self.write()
        self.clear()

    def save_health_check(self, now: str) -> None:
        """Write a row, so that its commit proves the database takes writes."""
        self.db.execute("UPDATE tracker SET health_checked_at = ?", (now,))


# Clicks share a few offers and cost models: making each its own took as long as finding it.
@lru_cache(maxsize=1024)
def _make_click(offer: str | None, allows_rebills: int | None, cost_model: str | None) -> Click:
    return Click(offer, None if allows_rebills is None else bool(allows_rebills), cost_model)


def _is_unknown(db: sqlite3.Connection, table: str, name: str) -> bool:
    return db.execute(f"SELECT 1 FROM {table} WHERE name = ?", (name,)).fetchone() is None


class _Names:
    """The ids of campaigns or offers by name, found or made, each asked for once."""

    def __init__(self, db: sqlite3.Connection, table: str) -> None:
        self._db = db
        self._table = table
        self._ids: dict[str, int] = {}

    def find_or_add(self, name: str | None) -> int | None:
        if name is None:
            return None
        if name not in self._ids:
            self._ids[name] = self._ask(name)
        return self._ids[name]

    def _ask(self, name: str) -> int:
        table = self._table
        self._db.execute(f"INSERT OR IGNORE INTO {table} (name) VALUES (?)", (name,))
        row = self._db.execute(f"SELECT id FROM {table} WHERE name = ?", (name,))
        found: int = row.fetchone()[0]
        return found


def _insert(
    db: sqlite3.Connection, sql: str, rows: Sequence[Sequence[Any]], conflict: str = ""
) -> None:
    """Insert rows, many with a statement."""
    start = 0
    for size in ROWS_A_STATEMENT:
        while len(rows) - start >= size:
            some = itertools.chain.from_iterable(rows[start : start + size])
            db.execute(_insert_sql(sql, size, conflict), tuple(some))
            start += size
    if start < len(rows):
        db.executemany(_insert_sql(sql, 1, conflict), rows[start:])


@cache
def _insert_sql(sql: str, count: int, conflict: str) -> str:
    marks = f"({', '.join('?' * (sql.count(',') + 1))})"
    return f"{sql} VALUES {', '.join([marks] * count)} {conflict}"


def _select(
    db: sqlite3.Connection, write_sql: Callable[[int], str], ids: Sequence[Any]
) -> list[Any]:
    """Select by a list of ids, many with a statement."""
    rows: list[Any] = []
    for start in range(0, len(ids), IDS_A_STATEMENT):
        some = ids[start : start + IDS_A_STATEMENT]
        size = 1 << (len(some) - 1).bit_length()
        # One that stands there twice is looked for once.
        fill = itertools.repeat(some[0], size - len(some))
        rows += db.execute(write_sql(size), (*some, *fill)).fetchall()
    return rows


def _marks(count: int) -> str:
    return ", ".join("?" * count)


@cache
def _find_clicks_sql(count: int) -> str:
    return f"""
    SELECT clicks.id, subid, campaign_id, offer_id, sub_ids,
        EXISTS (SELECT 1 FROM due_clicks WHERE click_id = clicks.id),
        EXISTS (SELECT 1 FROM conversions WHERE click_id = clicks.id),
        offers.name, offers.allow_rebills, coalesce(clicks.cost_model, campaigns.cost_model)
    FROM clicks
    LEFT JOIN offers ON offers.id = offer_id
    LEFT JOIN campaigns ON campaigns.id = campaign_id
    WHERE subid IN ({_marks(count)})
"""


_CONVERSIONS = """
    SELECT id, click_id, tid, status, original_status, previous_status,
        amount_micros, currency, amount_day, payout_micros, rate, rate_day, rate_source,
        cost_amount_micros, cost_currency, cost_day, cost_micros, cost_rate, cost_rate_day,
        cost_rate_source, campaign_id, offer_id, network, sub_ids, created_at, updated_at, sale_at,
        deleted_at, corrected_by,
        (SELECT coalesce(max(seq), 0) FROM conversion_history WHERE conversion_id = conversions.id)
    FROM conversions
"""


@cache
def _find_conversions_of_sql(count: int) -> str:
    return f"{_CONVERSIONS} WHERE click_id IN ({_marks(count)}) ORDER BY id"


@cache
def _find_conversions_sql(count: int) -> str:
    return f"{_CONVERSIONS} WHERE id IN ({_marks(count)})"


_FIND_LAST_IDS = """
    SELECT (SELECT coalesce(max(id), 0) FROM clicks),
        (SELECT coalesce(max(id), 0) FROM conversions),
        (SELECT coalesce(max(id), 0) FROM postbacks)
"""

# What is inserted is written whole, with every column; `_insert` adds the marks. The order is that
# of the rows.

_PUT_CLICK = """
    INSERT INTO clicks (
        subid, campaign_id, offer_id, clicked_at, cost_model, sub_ids, created_at,
        external_id, source, click_cost_micros, click_cost_currency)
"""
_OR_CHANGE_CLICK = """
    ON CONFLICT (subid) DO UPDATE SET
        campaign_id = coalesce(excluded.campaign_id, campaign_id),
        offer_id = coalesce(excluded.offer_id, offer_id),
        clicked_at = coalesce(excluded.clicked_at, clicked_at),
        cost_model = coalesce(excluded.cost_model, cost_model),
        external_id = coalesce(excluded.external_id, external_id),
        source = coalesce(excluded.source, source),
        click_cost_micros = coalesce(excluded.click_cost_micros, click_cost_micros),
        click_cost_currency = coalesce(excluded.click_cost_currency, click_cost_currency),
        sub_ids = json_patch(sub_ids, excluded.sub_ids)
"""

_ADD_CLICK = "INSERT INTO clicks (id, subid, created_at)"

_ADD_CONVERSION = """
    INSERT INTO conversions (
        id, click_id, tid, status, original_status, previous_status,
        amount_micros, currency, amount_day, payout_micros, rate, rate_day, rate_source,
        cost_amount_micros, cost_currency, cost_day, cost_micros, cost_rate, cost_rate_day,
        cost_rate_source, campaign_id, offer_id, network, sub_ids, created_at, updated_at, sale_at,
        deleted_at, corrected_by)
"""

_ADD_POSTBACK = """
    INSERT INTO postbacks (
        id, received_at, source, method, remote_addr, query, subid, tid, original_status,
        verdict, reason, warnings, conversion_id, network, replay_of, body, body_type)
"""

_ADD_HISTORY = """
    INSERT INTO conversion_history (
        conversion_id, seq, at, change, postback_id, status, original_status, tid,
        amount_micros, currency, payout_micros, rate, rate_day, rate_source,
        cost_micros, cost_rate, cost_rate_day, cost_rate_source)
"""

_PATCH_CLICK = "UPDATE clicks SET sub_ids = json_patch(sub_ids, ?) WHERE id = ?"
_ADD_TO_CLICK = "UPDATE clicks SET sub_ids = json_patch(?, sub_ids) WHERE id = ?"
_PATCH_CONVERSION = "UPDATE conversions SET sub_ids = json_patch(sub_ids, ?) WHERE id = ?"

_SET_EXTERNAL_ID = "UPDATE clicks SET external_id = ? WHERE id = ?"
_ADD_EXTERNAL_ID = f"{_SET_EXTERNAL_ID} AND external_id IS NULL"

_SET_TID = "UPDATE conversions SET tid = ? WHERE id = ?"

# All that may change of a conversion, but for `tid` and `sub_ids`.
_CHANGE_CONVERSION = """
    UPDATE conversions SET status = ?, original_status = ?, previous_status = ?,
        amount_micros = ?, currency = ?, amount_day = ?,
        payout_micros = ?, rate = ?, rate_day = ?, rate_source = ?,
        cost_amount_micros = ?, cost_currency = ?, cost_day = ?,
        cost_micros = ?, cost_rate = ?, cost_rate_day = ?, cost_rate_source = ?,
        network = ?, updated_at = ?, sale_at = ?
    WHERE id = ?
"""
_OF_CHANGE = attrgetter(
    *("status", "original_status", "previous_status"),
    *AMOUNT_COLUMNS,
    *COST_COLUMNS,
    *("network", "updated_at", "sale_at"),
    "id",
)

_SETTLE_POSTBACK = """
    UPDATE postbacks SET settled_at = ?1, settled_verdict = ?2, settled_reason = ?3,
        conversion_id = ?4
    WHERE id IN (?5, (SELECT replay_of FROM postbacks WHERE id = ?5))
"""

_CLEAR_DUE_CLICK = "DELETE FROM due_clicks WHERE click_id = ?"

_FIND_ONE_PARKED = """
    SELECT 1 FROM postbacks
    WHERE subid = ? AND verdict = 'parked' AND settled_at IS NULL LIMIT 1
"""

_FIND_PARKED = """
    SELECT id, received_at, coalesce(
            (SELECT received_at FROM postbacks AS original WHERE original.id = postbacks.replay_of),
            received_at),
        source, method, remote_addr, query, replay_of, 0
    FROM postbacks
    WHERE subid = ? AND verdict = 'parked' AND settled_at IS NULL ORDER BY id LIMIT ?
"""

# What `leave_copies_out` does, for a flood: in SQL, so that the copies are not read. For the one
# postback that most clicks have it would take three times as long.
_FIND_MANY_PARKED = """
    WITH parked AS (
        SELECT id, received_at, source, method, remote_addr, query, replay_of,
            first_value(id) OVER same AS first, count(*) OVER same - 1 AS copies,
            lag(query) OVER (ORDER BY id) AS before
        FROM postbacks WHERE subid = :subid AND verdict = 'parked' AND settled_at IS NULL
        WINDOW same AS (PARTITION BY query ORDER BY id
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING))
    SELECT id, received_at, coalesce(
            (SELECT received_at FROM postbacks AS original WHERE original.id = parked.replay_of),
            received_at),
        source, method, remote_addr, query, replay_of, copies
    FROM parked
    WHERE before IS NOT query
        AND first IN (SELECT DISTINCT first FROM parked ORDER BY first LIMIT :different)
    ORDER BY id LIMIT :in_all
"""

_BEHIND_EVERY_TIME = "~"

# Those of replays have come of their originals too.
_SETTLE_COPIES = """
    WITH copies AS (
        SELECT id, replay_of FROM postbacks WHERE query = ?6 AND verdict = 'parked'
            AND settled_at IS NULL AND subid = (SELECT subid FROM postbacks WHERE id = ?5))
    UPDATE postbacks SET settled_at = ?1, settled_verdict = ?2, settled_reason = ?3,
        conversion_id = ?4
    WHERE id IN (SELECT id FROM copies UNION SELECT replay_of FROM copies)
"""

# Whether a row of history says of a conversion what it is now: rejected, or money of this amount.
_SAME_STATE = """(
    CASE WHEN c.status = 'rejected' THEN other.status = 'rejected'
    ELSE other.status <> 'rejected' AND (other.status = 'lead') = (c.status = 'lead')
        AND other.amount_micros IS c.amount_micros AND other.currency IS c.currency END)"""

# What was judged: a parked postback counts once it is settled.
_FIND_PAST = f"""
    WITH earlier AS MATERIALIZED (
        SELECT id, query, tid, conversion_id, coalesce(settled_verdict, verdict) AS came
        FROM postbacks WHERE coalesce(settled_verdict, verdict)
                IN ('recorded', 'updated', 'repeated', 'refused')
            AND (query = :query OR (tid = :tid AND tid <> '') OR id = :original_id)
            AND conversion_id IN (SELECT id FROM conversions WHERE click_id = :click_id)
        UNION ALL
        SELECT id, query, tid, NULL, coalesce(settled_verdict, verdict)
        FROM postbacks INDEXED BY postbacks_without_conversion
        WHERE conversion_id IS NULL AND subid = :subid AND query = :query
            AND coalesce(settled_verdict, verdict) IN ('repeated', 'refused'))
    SELECT
        EXISTS (SELECT 1 FROM earlier WHERE query = :query),
        EXISTS (SELECT 1 FROM earlier WHERE (query = :query OR id = :original_id) AND id < (
            SELECT max(postback_id) FROM conversions AS c
            JOIN conversion_history AS became ON became.conversion_id = c.id
                AND became.seq = 1 + coalesce((
                    SELECT max(seq) FROM conversion_history AS other
                    WHERE other.conversion_id = c.id AND NOT {_SAME_STATE}), 0)
            WHERE c.click_id = :click_id AND (c.id = :conversion_id
                OR (:conversion_id IS NULL AND c.status = 'rejected')))),
        EXISTS (SELECT 1 FROM earlier WHERE came = 'updated'
            AND (query = :query OR (tid = :tid AND tid <> '') OR id = :original_id)
            AND conversion_id IN (
                SELECT id FROM conversions WHERE click_id = :click_id AND status = 'rejected')),
        EXISTS (SELECT 1 FROM earlier WHERE (query = :query OR id = :original_id)
            AND id < (SELECT corrected_by FROM conversions WHERE id = :conversion_id))
"""

_GAPS = ("campaign", "offer", "clicked_at", "cost_model", "external_id", "source", "cost")
_FIND_CLICK_GAPS = """
    SELECT campaign_id, offer_id, clicked_at, cost_model, external_id, source, click_cost_micros
    FROM clicks WHERE id = ?
"""

_FIND_SAME_REQUEST = """
    SELECT received_at FROM (
        SELECT received_at, query, body FROM postbacks WHERE conversion_id IN (
            SELECT conversions.id FROM conversions JOIN clicks ON clicks.id = click_id
            WHERE clicks.subid = :subid)
        UNION ALL
        SELECT received_at, query, body
        FROM postbacks INDEXED BY postbacks_without_conversion
        WHERE conversion_id IS NULL AND subid IS :subid)
    WHERE received_at >= :since AND query = :query AND body IS :body
    ORDER BY received_at LIMIT 1
"""

_FIND_LAST_TRY = """
    SELECT query, coalesce(settled_verdict, verdict), replay_of IS NOT NULL,
        (SELECT currency IS NULL FROM conversions WHERE id = conversion_id) FROM (
        SELECT * FROM postbacks WHERE replay_of = ?1
        UNION ALL
        SELECT * FROM postbacks WHERE id = ?1)
    ORDER BY id DESC LIMIT 1
"""

# The row that gave the value before the last one: the first of those that have it, from there back.
_GIVEN_LATER = """
    WITH rows AS (
        SELECT seq, status, postback_id, {value} AS value FROM conversion_history
        WHERE conversion_id = ?1),
    now AS (SELECT * FROM rows ORDER BY seq DESC LIMIT 1),
    was AS (SELECT * FROM rows ORDER BY seq DESC LIMIT 1 OFFSET 1),
    given AS (
        SELECT postback_id FROM rows WHERE value = (SELECT value FROM was)
            AND seq < (SELECT seq FROM now) AND seq > coalesce((
                SELECT max(seq) FROM rows WHERE value IS NOT (SELECT value FROM was)
                    AND seq < (SELECT seq FROM was)), 0)
        ORDER BY seq LIMIT 1)
    SELECT 1 FROM now, was, given, postbacks AS giver
    WHERE now.status = was.status AND now.value <> was.value AND giver.id = given.postback_id
        AND ?2 < coalesce(
            (SELECT received_at FROM postbacks WHERE id = giver.replay_of), giver.received_at)
"""


@cache
def _find_due_sql(count: int) -> str:
    return f"""
    SELECT id, subid FROM clicks
    WHERE subid IN ({_marks(count)}) AND EXISTS (SELECT 1 FROM due_clicks WHERE click_id = id)
"""


@cache
def _count_parked_sql(count: int) -> str:
    return f"""
    SELECT subid, count(*) FROM postbacks
    WHERE subid IN ({_marks(count)}) AND verdict = 'parked' AND settled_at IS NULL
    GROUP BY subid
"""


HAS_RATE = """
    SELECT 1 FROM rates WHERE currency = ? AND (source <> 'hand' OR ended_at IS NULL) LIMIT 1
"""
_FIND_RATE_BY_HAND = """
    SELECT rate, day, source FROM rates
    WHERE currency = :currency AND source = 'hand' AND ended_at IS NULL
"""
# Of two sources of one day the one written first: the config asks its sources in order.
_FIND_RATE_BY_THEN = """
    SELECT rate, day, source FROM rates
    WHERE currency = :currency AND source <> 'hand' AND day <= :day ORDER BY day DESC, id LIMIT 1
"""
_FIND_NEWEST_RATE = """
    SELECT rate, day, source FROM rates
    WHERE currency = :currency AND source <> 'hand' ORDER BY day DESC, id LIMIT 1
"""

_FIND_WAITING_DAYS = {
    "payout": """
        SELECT DISTINCT amount_day FROM conversions
        WHERE payout_micros IS NULL AND amount_day IS NOT NULL AND currency = ?
        ORDER BY amount_day
    """,
    "cost": """
        SELECT DISTINCT cost_day FROM conversions
        WHERE cost_micros IS NULL AND cost_day IS NOT NULL AND cost_currency = ?
        ORDER BY cost_day
    """,
}
_FIND_WAITING = {
    "payout": """
        SELECT id, amount_micros FROM conversions
        WHERE payout_micros IS NULL AND currency = ? AND amount_day = ?
            AND abs(amount_micros) < ? ORDER BY id LIMIT ?
    """,
    "cost": """
        SELECT id, cost_amount_micros FROM conversions
        WHERE cost_micros IS NULL AND cost_currency = ? AND cost_day = ?
            AND abs(cost_amount_micros) < ? ORDER BY id LIMIT ?
    """,
}

_FIND_WAITING_CURRENCIES = """
    SELECT currency FROM conversions WHERE payout_micros IS NULL AND amount_day IS NOT NULL
        AND EXISTS (SELECT 1 FROM rates WHERE rates.currency = conversions.currency
            AND ended_at IS NULL)
    UNION SELECT cost_currency FROM conversions WHERE cost_micros IS NULL AND cost_day IS NOT NULL
        AND EXISTS (SELECT 1 FROM rates WHERE rates.currency = cost_currency AND ended_at IS NULL)
"""
