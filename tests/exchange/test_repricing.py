"""Another day's rates: shown without a trace, booked with one, and a report stays what it was."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postbackd.db import rate_book
from postbackd.exchange.repricing import (
    DateRange,
    Recomputed,
    book_recomputed,
    fill_in_waiting,
    list_id_chunks,
    recompute,
)
from postbackd.intake.booking import Arrival, BookingOptions, record
from postbackd.intake.query import read_fields, read_postback
from rates import Rate
from statuses import Policy
from storage import Storage, open_database

TERMS = BookingOptions("USD", Policy(accepts_unknown_subid=True))
LATER = datetime(2026, 4, 1, 12, tzinfo=UTC)
ALL = DateRange("2026-01-01")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Storage]:
    with open_database(tmp_path / "postback.db", "USD") as opened:
        yield opened


def rate(db: Storage, currency: str, day: str, value: str) -> None:
    with db.transaction():
        added = Rate(Decimal(value), date.fromisoformat(day), "ecb")
        rate_book.add_rate(db.db, currency, added, LATER)


def receive(db: Storage, day: str, query: str) -> None:
    postback = read_postback(read_fields(query), {}, tracker_currency="USD", decimal_comma=False)
    arrival = Arrival(f"{day}T12:00:00.000Z", "http", "GET", None, query, postback)
    with db.transaction():
        record(db, arrival, TERMS)


def look(db: Storage, span: DateRange) -> list[Recomputed]:
    return [change for part in list_id_chunks(db.db, span) for change in recompute(db, span, part)]


def book(db: Storage, span: DateRange) -> list[Recomputed]:
    changes = []
    for part in list_id_chunks(db.db, span):
        with db.transaction():
            changes += book_recomputed(db, span, part, LATER)
    return changes


def payouts(db: Storage) -> list[tuple[str | None, ...]]:
    return db.db.execute("SELECT subid, payout, rate_day, cost FROM conversions_view").fetchall()


def test_payouts_never_change_because_rates_do(db: Storage) -> None:
    rate(db, "EUR", "2026-03-01", "1.08")
    receive(db, "2026-03-02", "subid=c1&payout=10&currency=eur")
    before = payouts(db)

    rate(db, "EUR", "2026-03-02", "1.10")
    with db.transaction():
        db.add_rate_by_hand("EUR", Decimal(2), LATER)
        fill_in_waiting(db, LATER)

    assert payouts(db) == before
    assert before == [("c1", "10.8", "2026-03-01", None)]


def test_the_rate_of_its_own_day_that_came_later_is_shown_and_not_booked(db: Storage) -> None:
    rate(db, "EUR", "2026-03-01", "1.08")
    receive(db, "2026-03-02", "subid=c1&payout=10&currency=eur")
    rate(db, "EUR", "2026-03-02", "1.10")
    kept = list(db.db.iterdump())

    [change] = look(db, ALL)

    assert (change.old_worth, change.old_rate_day) == ("10.8", "2026-03-01")
    assert (change.worth, change.rate, change.rate_day) == ("11", "1.1", "2026-03-02")
    assert list(db.db.iterdump()) == kept


def test_booked_it_is_a_row_of_history_beside_the_old_ones(db: Storage) -> None:
    rate(db, "EUR", "2026-03-01", "1.08")
    receive(db, "2026-03-02", "subid=c1&payout=10&currency=eur&cost=2")
    rate(db, "EUR", "2026-03-20", "1.20")
    span = DateRange("2026-03-01", day=date(2026, 3, 20))
    shown = look(db, span)

    booked = book(db, span)

    assert booked == shown
    assert payouts(db) == [("c1", "12", "2026-03-20", "2.4")]
    assert db.db.execute(
        "SELECT change, payout_micros, rate, rate_day, cost_micros, cost_rate, postback_id"
        " FROM conversion_history ORDER BY seq"
    ).fetchall() == [
        ("recorded", 10_800_000, "1.08", "2026-03-01", 2_160_000, "1.08", 1),
        ("recomputed", 12_000_000, "1.2", "2026-03-20", 2_400_000, "1.2", None),
    ]
    assert look(db, span) == []
    assert book(db, span) == []


def test_only_what_was_created_in_the_span_is_recomputed(db: Storage) -> None:
    rate(db, "EUR", "2026-03-01", "1.08")
    for day in (2, 3, 4):
        receive(db, f"2026-03-0{day}", f"subid=c{day}&payout=10&currency=eur")
    rate(db, "EUR", "2026-03-20", "1.20")

    changes = look(db, DateRange("2026-03-03", "2026-03-04", date(2026, 3, 20)))

    assert [change.subid for change in changes] == ["c3"]


def test_what_was_sent_in_the_trackers_currency_or_waits_is_left_alone(db: Storage) -> None:
    rate(db, "EUR", "2026-03-01", "1.08")
    for number, currency in enumerate(("usd", "gbp", "{currency}")):
        receive(db, "2026-03-02", f"subid=c{number}&payout=10&currency={currency}")

    assert book(db, ALL) == []


def test_many_conversions_are_recomputed_a_stretch_at_a_time(db: Storage) -> None:
    rate(db, "EUR", "2026-03-01", "1.08")
    for number in range(700):
        receive(db, "2026-03-02", f"subid=c{number}&payout={number}&currency=eur")
    rate(db, "EUR", "2026-03-20", "1.20")
    span = DateRange("2026-03-01", day=date(2026, 3, 20))

    assert [len(part) for part in list_id_chunks(db.db, span)] == [300, 300, 100]
    assert len(book(db, span)) == 700
    assert db.db.execute("SELECT sum(payout_micros) FROM conversions").fetchone() == (
        sum(number * 1_200_000 for number in range(700)),
    )


@settings(max_examples=20)
@given(st.lists(st.decimals("0.5", "2", places=4), min_size=1, max_size=4))
def test_whatever_is_recomputed_the_first_rate_leads_back(
    db: Storage, values: list[Decimal]
) -> None:
    with db.transaction():
        for table in ("conversion_history", "postbacks", "conversions", "clicks", "rates"):
            db.db.execute(f"DELETE FROM {table}")
    rate(db, "EUR", "2026-03-01", "1.08")
    receive(db, "2026-03-01", "subid=c1&payout=12.345678&currency=eur")
    first = payouts(db)
    for number, value in enumerate(values, 10):
        rate(db, "EUR", f"2026-03-{number}", str(value))
        book(db, DateRange("2026-03-01", day=date(2026, 3, number)))

    book(db, ALL)

    assert payouts(db) == first
