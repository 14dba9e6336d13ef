"""Conversions priced later: at the rate they waited for, or anew at another day's rates.

Payouts never change because rates do; only `book_recomputed` changes them, on request, and each
change is a row of the conversion's history. The caller holds the transaction; nothing here commits,
but for `set_rate` and `unset_rate`.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from postbackd.db.rows import cost_worth_columns, payout_columns, utc_text
from rates import Priced, Rate, decimal_text, find_convertible_below, from_micros, price_at
from storage import Storage

# How many ids a transaction looks at: some 20 ms of the write lock, where all of them change.
IDS_AT_ONCE = 300

# How many waiting amounts the housekeeping converts in one transaction: some ten milliseconds of
# the write lock.
WAITING_AT_ONCE = 500


class DateRange(NamedTuple):
    """The conversions in question, by creation, and the day whose rates count (None: their own)."""

    since: str
    until: str | None = None
    day: date | None = None


class Recomputed(NamedTuple):
    """What one amount or cost was worth and would be, in the tracker's currency; decimals."""

    conversion_id: int
    subid: str
    tid: str
    kind: str
    amount: str
    currency: str
    old_rate: str
    old_rate_day: str
    old_worth: str
    rate: str
    rate_day: str
    rate_source: str
    worth: str


class _Amount(NamedTuple):
    """An amount or a cost as it is booked; the fields are columns."""

    micros: int
    currency: str
    day: str
    worth_micros: int
    rate: str
    rate_day: str
    rate_source: str


class _Conversion(NamedTuple):
    """What is converted of a conversion."""

    id: int
    subid: str
    tid: str
    amounts: Mapping[str, _Amount]


_COLUMNS = {"payout": payout_columns, "cost": cost_worth_columns}


def fill_in_waiting(db: Storage, now: datetime, *, limit: int = WAITING_AT_ONCE) -> int:
    """Convert amounts and costs whose rate has come at last; returns how many."""
    filled = 0
    for currency in db.find_waiting_currencies():
        for kind in _COLUMNS:
            for day in db.find_waiting_days(kind, currency):
                filled += _fill_in_day(db, kind, currency, day, now, limit - filled)
                if filled == limit:
                    return filled
    return filled


def _fill_in_day(
    db: Storage, kind: str, currency: str, day: date, now: datetime, limit: int
) -> int:
    rate = db.find_rate(currency, day)
    assert rate is not None
    filled = 0
    # What is too large for this rate waits for another one, and is in nobody's way.
    below = find_convertible_below(rate.value)
    found = db.find_waiting(kind, currency, day, below, limit)
    db.take_conversions(waiting.conversion_id for waiting in found)
    for waiting in found:
        priced = price_at(Priced(waiting.amount, currency, day, None, None), rate)
        if priced.worth is not None:
            _convert_late(db, waiting.conversion_id, _COLUMNS[kind](priced), utc_text(now))
            filled += 1
    return filled


def set_rate(db: Storage, currency: str, rate: Decimal, now: datetime) -> int:
    """Put a rate by hand in force and convert a first batch of what waited; returns how many.

    One transaction of its own. What is left is for `fill_in_waiting`, here or in the service.
    """
    with db.transaction():
        db.add_rate_by_hand(currency, rate, now)
        return fill_in_waiting(db, now)


def unset_rate(db: Storage, currency: str, now: datetime) -> bool:
    """End the rate by hand in a transaction of its own; False where there was none."""
    with db.transaction():
        was_set = db.end_rate_by_hand(currency, now)
        fill_in_waiting(db, now)
    return was_set


def _convert_late(db: Storage, conversion_id: int, values: Mapping[str, Any], at: str) -> None:
    db.change_conversion(conversion_id, {**values, "updated_at": at})
    db.add_history(conversion_id, "converted", at, None)


def list_id_chunks(db: sqlite3.Connection, span: DateRange) -> Iterator[range]:
    """Cut the ids of the conversions in question into stretches, a transaction each."""
    row = db.execute(
        "SELECT min(id), max(id) FROM conversions WHERE created_at >= ? AND created_at < ?",
        (span.since, span.until or _BEHIND_EVERY_TIME),
    )
    first, last = row.fetchone()
    if first is not None:
        for start in range(first, last + 1, IDS_AT_ONCE):
            yield range(start, min(start + IDS_AT_ONCE, last + 1))


def recompute(db: Storage, span: DateRange, chunk: range) -> list[Recomputed]:
    """Say what a stretch of conversions would be worth; writes nothing."""
    return [
        change
        for conversion in _list_converted(db.db, span, chunk)
        for change, _ in _price_anew(db, conversion, span.day)
    ]


def book_recomputed(db: Storage, span: DateRange, chunk: range, now: datetime) -> list[Recomputed]:
    """Do the same and book it, with a row of history for each conversion that changes."""
    at = utc_text(now)
    changes: list[Recomputed] = []
    found = list(_list_converted(db.db, span, chunk))
    all_priced = [list(_price_anew(db, conversion, span.day)) for conversion in found]
    db.take_conversions(row.id for row, priced in zip(found, all_priced, strict=True) if priced)
    for conversion, priced in zip(found, all_priced, strict=True):
        if not priced:
            continue
        values: dict[str, Any] = {"updated_at": at}
        for change, anew in priced:
            values |= _COLUMNS[change.kind](anew)
        db.change_conversion(conversion.id, values)
        db.add_history(conversion.id, "recomputed", at, None)
        changes += [change for change, _ in priced]
    return changes


def _price_anew(
    db: Storage, conversion: _Conversion, day: date | None
) -> Iterator[tuple[Recomputed, Priced]]:
    for kind, booked in conversion.amounts.items():
        own_day = date.fromisoformat(booked.day)
        rate = db.find_rate(booked.currency, day or own_day)
        if rate is None or rate.value == Decimal(booked.rate):
            continue
        unpriced = Priced(from_micros(booked.micros), booked.currency, own_day, None, None)
        priced = price_at(unpriced, rate)
        # Too large to keep at the other rate: it stays as it is.
        if priced.worth is not None:
            yield _describe(conversion, kind, booked, rate, priced.worth), priced


def _describe(
    conversion: _Conversion, kind: str, booked: _Amount, rate: Rate, worth: Decimal
) -> Recomputed:
    return Recomputed(
        conversion_id=conversion.id,
        subid=conversion.subid,
        tid=conversion.tid,
        kind=kind,
        amount=decimal_text(from_micros(booked.micros)),
        currency=booked.currency,
        old_rate=booked.rate,
        old_rate_day=booked.rate_day,
        old_worth=decimal_text(from_micros(booked.worth_micros)),
        rate=decimal_text(rate.value),
        rate_day=str(rate.day),
        rate_source=rate.source,
        worth=decimal_text(worth),
    )


def _list_converted(db: sqlite3.Connection, span: DateRange, chunk: range) -> Iterator[_Conversion]:
    values = {
        "first": chunk.start,
        "behind": chunk.stop,
        "since": span.since,
        "until": span.until or _BEHIND_EVERY_TIME,
    }
    for conversion_id, subid, tid, *columns in db.execute(_CONVERTED, values).fetchall():
        halves = {"payout": _Amount(*columns[:7]), "cost": _Amount(*columns[7:])}
        amounts = {
            kind: amount
            for kind, amount in halves.items()
            # The tracker's own currency has no rates, and so never another.
            if amount.worth_micros is not None
        }
        yield _Conversion(conversion_id, subid, tid, amounts)


_BEHIND_EVERY_TIME = "~"

_CONVERTED = """
    SELECT conversions.id, subid, tid,
        amount_micros, currency, amount_day, payout_micros, rate, rate_day, rate_source,
        cost_amount_micros, cost_currency, cost_day, cost_micros, cost_rate, cost_rate_day,
        cost_rate_source
    FROM conversions JOIN clicks ON clicks.id = click_id
    WHERE conversions.id >= :first AND conversions.id < :behind
        AND conversions.created_at >= :since AND conversions.created_at < :until
    ORDER BY conversions.id
"""
