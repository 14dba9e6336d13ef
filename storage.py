"""What a postback, a click and a rate read and write, in the trade's words: one method a question.

Storage decides nothing. The connection and its transactions are `db/sqlite/connection.py`'s, the
tables `db/sqlite/schema.py`'s, their rows `db/rows.py`'s, what people ask from a terminal
`reports/queries.py`'s.
"""

import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from postbackd.db.rows import (
    CONVERSION_COLUMNS,
    Again,
    ClickRow,
    KnownClick,
    LastTry,
    ParkedPostback,
    PostbackRow,
    Settled,
    Waiting,
    leave_copies_out,
    read_conversion,
    sub_ids_json,
    to_json,
    utc_text,
)
from postbackd.db.sqlite import stop_signals
from postbackd.db.sqlite.connection import (
    WAL_AUTOCHECKPOINT_PAGES,
    Database,
    DatabaseError,
    describe_trouble,
    open_connection,
)
from rates import Rate, decimal_text, from_micros, to_micros
from statuses import Click, Conversion, Past, Verdict

# An import of clicks with random ids touches a page of the index for every one: with SQLite's own
# 2 MiB they would be written out and read back within one transaction.
BULK_CACHE_KIB = 48 * 1024

# A statement of its own for each click took half as long again.
CLICKS_A_STATEMENT = 64


def open_database(path: Path, currency: str, *, create: bool = True) -> "Storage":
    """Open the database, made or brought up to date where needed; raises DatabaseError."""
    db = open_connection(path, currency, create=create)
    try:
        return Storage(db, path)
    except (sqlite3.Error, OSError) as error:
        db.close()
        raise DatabaseError(describe_trouble(error, path)) from error


class Storage(Database):
    """An open database and the questions that a postback and a click ask of it."""

    # Clicks

    def find_click(self, subid: str) -> KnownClick | None:
        """Find a click and the conversions that stand on it."""
        row = self.db.execute(_FIND_CLICK, (subid,)).fetchone()
        return self._known_click(row) if row else None

    def _known_click(self, row: tuple[Any, ...]) -> KnownClick:
        click_id, campaign_id, offer_id, sub_ids, is_due, has_conversions, *about = row
        offer, allows_rebills, cost_model = about
        conversions = self._find_conversions(click_id) if has_conversions else ()
        allows_rebills = None if allows_rebills is None else bool(allows_rebills)
        click = Click(offer, allows_rebills, cost_model, conversions)
        return KnownClick(click_id, campaign_id, offer_id, sub_ids, bool(is_due), click)

    def _find_conversions(self, click_id: int) -> tuple[Conversion, ...]:
        rows = self.db.execute(
            f"SELECT {CONVERSION_COLUMNS} FROM conversions WHERE click_id = ? ORDER BY id",
            (click_id,),
        )
        return tuple(map(read_conversion, rows))

    def add_bare_click(self, subid: str, now: str) -> int:
        """Make a click of which only the subid is known; gives its id."""
        cursor = self.db.execute(
            "INSERT INTO clicks (subid, created_at) VALUES (?, ?)", (subid, now)
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

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
        before = self._last_click_id()
        rest = len(values) - len(values) % CLICKS_A_STATEMENT
        for start in range(0, rest, CLICKS_A_STATEMENT):
            some = values[start : start + CLICKS_A_STATEMENT]
            self.db.execute(_PUT_MANY_CLICKS, tuple(itertools.chain.from_iterable(some)))
        self.db.executemany(_PUT_CLICK, values[rest:])
        # Ids are given in order and only to new rows, and we hold the write lock.
        return self._last_click_id() - before

    def _last_click_id(self) -> int:
        last: int = self.db.execute("SELECT coalesce(max(id), 0) FROM clicks").fetchone()[0]
        return last

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

    def patch_click_sub_ids(
        self, click_id: int, sub_ids: Mapping[str, str], *, only_missing: bool = False
    ) -> None:
        """Replace those of a click's sub ids that are given, or only add what it lacks."""
        patched = "json_patch(?, sub_ids)" if only_missing else "json_patch(sub_ids, ?)"
        self.db.execute(
            f"UPDATE clicks SET sub_ids = {patched} WHERE id = ?", (to_json(sub_ids), click_id)
        )

    def set_external_id(
        self, click_id: int, external_id: str, *, only_missing: bool = False
    ) -> None:
        """Replace the traffic source's own id of a click, or only add it where it is not known."""
        kept = " AND external_id IS NULL" if only_missing else ""
        self.db.execute(
            f"UPDATE clicks SET external_id = ? WHERE id = ?{kept}", (external_id, click_id)
        )

    # Conversions

    def add_conversion(self, click: KnownClick, values: Mapping[str, Any]) -> int:
        """Make a conversion of a click; `values` are columns. Gives its id.

        Its history is begun with `begin_history`, once there is a postback to name.
        """
        row = {
            "click_id": click.id,
            "campaign_id": click.campaign_id,
            "offer_id": click.offer_id,
            **values,
        }
        cursor = self.db.execute(_add_conversion_sql(tuple(row)), tuple(row.values()))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def change_conversion(
        self, conversion_id: int, values: Mapping[str, Any], sub_ids: Mapping[str, str]
    ) -> None:
        """Change columns of a conversion, and replace those of its sub ids that are given."""
        changes = "".join(f", {name} = ?" for name in values)
        self.db.execute(
            f"UPDATE conversions SET sub_ids = json_patch(sub_ids, ?){changes} WHERE id = ?",
            (to_json(sub_ids), *values.values(), conversion_id),
        )

    def add_history(
        self, conversion_id: int, change: str, at: str, postback_id: int | None
    ) -> None:
        """Write down what the conversion is from now on."""
        self.db.execute(_ADD_HISTORY, (at, change, postback_id, conversion_id))

    def begin_history(
        self, conversion_id: int, values: Mapping[str, Any], at: str, postback_id: int
    ) -> None:
        """Write down what a new conversion is, by the `values` it was made with.

        The same as `add_history`, which would read them back from the table.
        """
        read = values.get
        about = [read(name) for name in _HISTORY_COLUMNS]
        self.db.execute(_BEGIN_HISTORY, (conversion_id, at, postback_id, *about))

    def find_waiting_days(self, kind: str, currency: str) -> list[date]:
        """List the days of which amounts (`kind` "payout") or costs ("cost") wait for a rate."""
        rows = self.db.execute(_FIND_WAITING_DAYS[kind], (currency,))
        return [date.fromisoformat(day) for (day,) in rows]

    def find_waiting(
        self, kind: str, currency: str, day: date, below_micros: int, limit: int
    ) -> list[Waiting]:
        """List those of a day that wait for a rate, and are smaller than so many micros."""
        rows = self.db.execute(_FIND_WAITING[kind], (currency, str(day), below_micros, limit))
        return [Waiting(conversion_id, from_micros(micros)) for conversion_id, micros in rows]

    def find_waiting_currencies(self) -> list[str]:
        """List the currencies whose rate is known by now and that amounts or costs wait for."""
        return [currency for (currency,) in self.db.execute(_FIND_WAITING_CURRENCIES)]

    # Postbacks

    def add_postback(self, row: PostbackRow) -> int:
        """Append to the log; gives the row's id."""
        # A plain tuple of plain values: any other type is looked up in the adapters first.
        cursor = self.db.execute(_ADD_POSTBACK, tuple(row))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def find_parked(self, subid: str, different: int, in_all: int) -> list[ParkedPostback]:
        """List what is parked for a click id, in the order received: so many different queries.

        One that comes behind its equal is left out, and counted with the first.
        """
        rows = self.db.execute(_FIND_PARKED, (subid, different + 1)).fetchall()
        if len(rows) <= different:
            return leave_copies_out(ParkedPostback(*row) for row in rows)
        limits = {"subid": subid, "different": different, "in_all": in_all}
        return [ParkedPostback(*row) for row in self.db.execute(_FIND_MANY_PARKED, limits)]

    def find_past(self, again: Again) -> Past:
        """Tell what the log knows of a postback that may have come before."""
        row = self.db.execute(_FIND_PAST, again._asdict()).fetchone()
        return Past(*map(bool, row))

    def find_same_request(
        self, subid: str | None, query: str, body: bytes | None, since: str
    ) -> str | None:
        """Tell when the first postback came that said just this, from this moment on."""
        values = {"subid": subid, "query": query, "body": body, "since": since}
        row = self.db.execute(_FIND_SAME_REQUEST, values).fetchone()
        return None if row is None else row[0]

    def find_click_gaps(self, click_id: int) -> frozenset[str]:
        """Tell which columns of a click say nothing yet, by the names of a `ClickRow`."""
        columns = self.db.execute(_FIND_CLICK_GAPS, (click_id,)).fetchone()
        return frozenset(name for name, value in zip(_GAPS, columns, strict=True) if value is None)

    def has_moved_since(self, click_id: int, moment: str) -> bool:
        """Tell whether a conversion of the click was changed after a moment."""
        sql = "SELECT EXISTS (SELECT 1 FROM conversions WHERE click_id = ? AND updated_at > ?)"
        return bool(self.db.execute(sql, (click_id, moment)).fetchone()[0])

    def count_parked(self, subids: Iterable[str]) -> dict[str, int]:
        """Count what is parked for each of these click ids; those without are left out."""
        if self.db.execute(_FIND_ANY_PARKED).fetchone() is None:
            return {}
        return dict(self.db.execute(_COUNT_PARKED, (to_json(list(subids)),)).fetchall())

    def settle_postback(
        self, postback_id: int, at: str, verdict: Verdict, reason: str, conversion_id: int | None
    ) -> None:
        """Write down what came of a parked or replayed postback later.

        What comes of a replay that was parked has come of its original too.
        """
        self.db.execute(
            "UPDATE postbacks SET settled_at = ?1, settled_verdict = ?2, settled_reason = ?3,"
            " conversion_id = ?4"
            " WHERE id IN (?5, (SELECT replay_of FROM postbacks WHERE id = ?5))",
            (at, verdict, reason, conversion_id, postback_id),
        )

    def find_last_try(self, postback_id: int) -> LastTry | None:
        """Tell how a postback was put through last: by its newest replay, else as it came."""
        row = self.db.execute(_FIND_LAST_TRY, (postback_id,)).fetchone()
        if row is None:
            return None
        query, verdict, is_replay, lacks_amount = row
        return LastTry(query, Verdict(verdict), bool(is_replay), bool(lacks_amount))

    def brought_older_amount(self, conversion_id: int, received_at: str) -> bool:
        """Tell whether the last change put an amount or a cost in the place of one received later.

        `received_at`: when the postback behind that change was received.
        """
        return any(
            self.db.execute(
                _GIVEN_LATER.format(value=value), (conversion_id, received_at)
            ).fetchone()
            for value in ("amount_micros || coalesce(currency, '')", "cost_micros")
        )

    def withdraw_parked_replays(self, original_id: int, at: str) -> None:
        """End the earlier replays of a postback that wait for a click still."""
        self.db.execute(
            "UPDATE postbacks SET settled_at = ?, settled_verdict = 'refused',"
            " settled_reason = 'put through again otherwise'"
            " WHERE replay_of = ? AND verdict = 'parked' AND settled_at IS NULL",
            (at, original_id),
        )

    def settle_copies(self, parked: ParkedPostback, at: str, settled: Settled) -> None:
        """Write down what came of the parked postbacks that say the very same."""
        self.db.execute(_SETTLE_COPIES, (at, *settled, parked.id, parked.query))

    def refuse_parked(self, subid: str, at: str, reason: str, before: str | None = None) -> None:
        """Refuse all that is parked for a click id, or only what came before a time."""
        self.db.execute(
            "UPDATE postbacks SET settled_at = ?, settled_verdict = 'refused', settled_reason = ?"
            " WHERE subid = ? AND verdict = 'parked' AND settled_at IS NULL AND received_at < ?",
            (at, reason, subid, _BEHIND_EVERY_TIME if before is None else before),
        )

    def find_due_clicks(self, limit: int) -> list[tuple[int, str]]:
        """List clicks (id, subid) that have come and for which postbacks are parked."""
        return self.db.execute(
            "SELECT click_id, subid FROM due_clicks JOIN clicks ON clicks.id = click_id"
            " ORDER BY click_id LIMIT ?",
            (limit,),
        ).fetchall()

    def find_due_clicks_among(self, subids: Iterable[str]) -> list[tuple[int, str]]:
        """List likewise those of these click ids."""
        if not self.find_due_clicks(1):
            return []
        return self.db.execute(_FIND_DUE_AMONG, (to_json(list(subids)),)).fetchall()

    def clear_due_click(self, click_id: int) -> None:
        """Take a click off the list: nothing is parked for it any more."""
        self.db.execute("DELETE FROM due_clicks WHERE click_id = ?", (click_id,))

    # Rates

    def find_rate(self, currency: str, day: date) -> Rate | None:
        """Find the rate for a day: one set by hand, else the newest by then, else the newest."""
        for statement in (_FIND_RATE_BY_HAND, _FIND_RATE_BY_THEN, _FIND_NEWEST_RATE):
            row = self.db.execute(statement, {"currency": currency, "day": str(day)}).fetchone()
            if row is not None:
                return Rate(Decimal(row[0]), date.fromisoformat(row[1]), row[2])
        return None

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
        cursor = self.db.execute(
            "UPDATE rates SET ended_at = ?"
            " WHERE currency = ? AND source = 'hand' AND ended_at IS NULL",
            (utc_text(now), currency),
        )
        return cursor.rowcount > 0

    # Offers, campaigns, health

    def set_offer(self, name: str, *, allow_rebills: bool) -> bool:
        """Say whether an offer allows rebills; True where it was not known yet and is made."""
        is_new = _is_unknown(self.db, "offers", name)
        self.db.execute(
            "INSERT INTO offers (name, allow_rebills) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET allow_rebills = excluded.allow_rebills",
            (name, int(allow_rebills)),
        )
        return is_new

    def set_campaign(self, name: str, cost_model: str | None) -> bool:
        """Set a campaign's cost model (None: unknown); True where it was not known yet."""
        is_new = _is_unknown(self.db, "campaigns", name)
        self.db.execute(
            "INSERT INTO campaigns (name, cost_model) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET cost_model = excluded.cost_model",
            (name, cost_model),
        )
        return is_new

    def save_health_check(self, now: str) -> None:
        """Write a row, so that its commit proves the database takes writes."""
        self.db.execute("UPDATE tracker SET health_checked_at = ?", (now,))


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


_FIND_CLICK = (
    "SELECT clicks.id, campaign_id, offer_id, sub_ids,"
    " EXISTS (SELECT 1 FROM due_clicks WHERE click_id = clicks.id),"
    " EXISTS (SELECT 1 FROM conversions WHERE click_id = clicks.id),"
    " offers.name, offers.allow_rebills,"
    " coalesce(clicks.cost_model, campaigns.cost_model) FROM clicks"
    " LEFT JOIN offers ON offers.id = offer_id"
    " LEFT JOIN campaigns ON campaigns.id = campaign_id"
    " WHERE clicks.subid = ?"
)


def _put_clicks_sql(count: int) -> str:
    return f"""
    INSERT INTO clicks (subid, campaign_id, offer_id, clicked_at, cost_model, sub_ids, created_at,
        external_id, source, click_cost_micros, click_cost_currency)
    VALUES {", ".join([f"({', '.join('?' * 11)})"] * count)}
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


_PUT_CLICK = _put_clicks_sql(1)
_PUT_MANY_CLICKS = _put_clicks_sql(CLICKS_A_STATEMENT)


# Which columns are given depends on what the postback said: a handful of statements in all.
@lru_cache(maxsize=64)
def _add_conversion_sql(names: tuple[str, ...]) -> str:
    return f"INSERT INTO conversions ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


_ADD_POSTBACK = f"""
    INSERT INTO postbacks ({", ".join(PostbackRow._fields)})
    VALUES ({", ".join("?" * len(PostbackRow._fields))})
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

# CROSS JOIN: the click ids lead, each a look into the index.
_FIND_DUE_AMONG = """
    SELECT clicks.id, subid FROM (SELECT DISTINCT value FROM json_each(?))
    CROSS JOIN clicks ON clicks.subid = value
    WHERE EXISTS (SELECT 1 FROM due_clicks WHERE click_id = clicks.id) ORDER BY clicks.id
"""

_FIND_ANY_PARKED = """
    SELECT 1 FROM postbacks WHERE verdict = 'parked' AND settled_at IS NULL LIMIT 1
"""

# CROSS JOIN: the click ids lead, each a look into the index of what is parked.
_COUNT_PARKED = """
    SELECT value, count(*) FROM (SELECT DISTINCT value FROM json_each(?))
    CROSS JOIN postbacks ON postbacks.subid = value
        AND postbacks.verdict = 'parked' AND postbacks.settled_at IS NULL
    GROUP BY value
"""

# What the history keeps of a conversion, under the same names.
_HISTORY_COLUMNS = (
    "status",
    "original_status",
    "tid",
    "amount_micros",
    "currency",
    "payout_micros",
    "rate",
    "rate_day",
    "rate_source",
    "cost_micros",
    "cost_rate",
    "cost_rate_day",
    "cost_rate_source",
)
_HISTORY = f"""
    INSERT INTO conversion_history (
        conversion_id, seq, at, change, postback_id, {", ".join(_HISTORY_COLUMNS)})
"""
_BEGIN_HISTORY = f"""{_HISTORY}
    VALUES (?, 1, ?, 'recorded', ?{", ?" * len(_HISTORY_COLUMNS)})
"""
_ADD_HISTORY = f"""{_HISTORY}
    SELECT id,
        (SELECT coalesce(max(seq), 0) + 1 FROM conversion_history WHERE conversion_id = c.id),
        ?, ?, ?, {", ".join(_HISTORY_COLUMNS)}
    FROM conversions AS c WHERE id = ?
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
