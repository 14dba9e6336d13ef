"""Reports held against a plain reading of every row, and their arithmetic against fractions."""

import json
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbackd.db.rows import utc_text
from postbackd.reports import totals
from postbackd.reports.totals import (
    Figures,
    Group,
    ReportQuery,
    add_up,
    add_up_in_threads,
    count_clicks,
    find_basis_points,
)
from statuses import Status
from storage import open_database

START = datetime(2026, 3, 27, tzinfo=UTC)
DAYS = 4
SEED = 20261122

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Some clicks and conversions of all kinds, around the night when summer time begins."""
    path = tmp_path_factory.mktemp("reports") / "postback.db"
    with open_database(path, "USD") as storage:
        dice = random.Random(SEED)  # noqa: S311  no secret
        _fill(storage.db, dice)
        yield storage.db


def _fill(db: sqlite3.Connection, dice: random.Random) -> None:
    for table, name in (("campaigns", "C"), ("offers", "O")):
        db.executemany(
            f"INSERT INTO {table} (name) VALUES (?)", [(f"{name}{n}",) for n in range(3)]
        )
    for number in range(300):
        _insert(db, "clicks", {**_draw(dice), "subid": f"c{number}", "clicked_at": _time(dice)})
    for number in range(400):
        values = {**_draw(dice), **_draw_money(dice), "network": dice.choice(["n1", "n2", None])}
        ids = {"click_id": dice.randint(1, 300), "tid": str(number)}
        times = {"created_at": _time(dice), "updated_at": _time(dice)}
        status = dice.choice(list(Status)).value
        _insert(db, "conversions", {**values, **ids, **times, "status": status})


def _time(dice: random.Random) -> str:
    return utc_text(START + timedelta(minutes=dice.randrange(DAYS * 24 * 60)))


def _draw(dice: random.Random) -> dict[str, Any]:
    sub_ids = {f"sub_id_{n}": f"v{dice.randrange(3)}" for n in (1, 2) if dice.random() < 0.8}
    return {
        "campaign_id": dice.choice([1, 2, 3, None]),
        "offer_id": dice.choice([1, 2, 3, None]),
        "sub_ids": json.dumps(sub_ids),
    }


def _draw_money(dice: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for amount, currency, worth, rate in (
        ("amount_micros", "currency", "payout_micros", "rate"),
        ("cost_amount_micros", "cost_currency", "cost_micros", "cost_rate"),
    ):
        if dice.random() < 0.8:
            values[amount] = dice.randint(-(10**18) + 1, 10**18 - 1)
            values[currency] = dice.choice(["EUR", "PLN", None])
            if dice.random() < 0.6:
                values[worth] = dice.randint(-(10**18) + 1, 10**18 - 1)
                values[rate] = "1.5"
    return values


def _insert(db: sqlite3.Connection, table: str, values: dict[str, Any]) -> None:
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))


def read_all(db: sqlite3.Connection, query: ReportQuery) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Add up row by row, in the plainest way there is."""
    clicks = [_read_row(db, "clicks", id_) for (id_,) in db.execute("SELECT id FROM clicks")]
    times = {click["id"]: click["clicked_at"] for click in clicks}
    sums: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (id_,) in db.execute("SELECT id FROM conversions").fetchall():
        row = _read_row(db, "conversions", id_)
        moment = times[row["click_id"]] if query.by_click_time else row["created_at"]
        if _is_wanted(row, moment, query):
            _take(sums.setdefault(_key(row, moment, query), asdict(Figures())), row)
    if query.counts_clicks:
        for click in clicks:
            moment = click["clicked_at"]
            if _is_wanted(click, moment, query):
                sums.setdefault(_key(click, moment, query), asdict(Figures()))["clicks"] += 1
    return sums


def _read_row(db: sqlite3.Connection, table: str, id_: int) -> dict[str, Any]:
    cursor = db.execute(
        f"SELECT t.*, c.name AS campaign, o.name AS offer FROM {table} AS t"
        " LEFT JOIN campaigns AS c ON c.id = campaign_id LEFT JOIN offers AS o ON o.id = offer_id"
        " WHERE t.id = ?",
        (id_,),
    )
    row = dict(zip([about[0] for about in cursor.description], cursor.fetchone(), strict=True))
    return {**row, **json.loads(row["sub_ids"])}


def _is_wanted(row: dict[str, Any], moment: str, query: ReportQuery) -> bool:
    is_in_time = (query.since or "") <= moment < (query.until or "9")
    return is_in_time and all(row[name] == value for name, value in query.filters.items())


def _key(row: dict[str, Any], moment: str, query: ReportQuery) -> tuple[Any, ...]:
    local = datetime.fromisoformat(moment).astimezone(query.zone)
    times = {
        "day": local.date().isoformat(),
        "hour": local.replace(minute=0, second=0).isoformat(timespec="minutes"),
    }
    return tuple(times[name] if name in times else row.get(name) for name in query.dimensions)


def _take(figures: dict[str, Any], row: dict[str, Any]) -> None:
    figures["conversions"][row["status"]] += 1
    figures["cost_micros"] += row["cost_micros"] or 0
    if row["cost_micros"] is None and row["cost_amount_micros"] is not None:
        _add(figures["unconverted_cost_micros"], row["cost_currency"], row["cost_amount_micros"])
    if row["status"] == "rejected":
        return
    if row["payout_micros"] is None and row["amount_micros"] is not None:
        _add(figures["unconverted_micros"], row["currency"], row["amount_micros"])
    name = "hold_micros" if row["status"] == "lead" else "revenue_micros"
    figures[name] += row["payout_micros"] or 0


def _add(sums: dict[str, int], currency: str | None, micros: int) -> None:
    sums[currency or "?"] = sums.get(currency or "?", 0) + micros


SINCE = utc_text(START + timedelta(hours=7))
UNTIL = utc_text(START + timedelta(days=3))


@pytest.mark.parametrize(
    "query",
    [
        ReportQuery(("day",)),
        ReportQuery(("day", "hour"), BERLIN),
        ReportQuery(("hour", "sub_id_1"), BERLIN),
        ReportQuery(("sub_id_1",)),
        ReportQuery(("sub_id_2", "day")),
        ReportQuery(("sub_id_2", "sub_id_1"), since=SINCE, until=UNTIL),
        ReportQuery(("campaign", "offer")),
        ReportQuery(("offer", "sub_id_1"), filters={"campaign": "C1"}),
        ReportQuery(("network", "currency")),
        ReportQuery(("currency", "day"), BERLIN, filters={"network": "n1", "offer": "O2"}),
        ReportQuery(("campaign",), by_click_time=True),
        ReportQuery(("day", "sub_id_1"), BERLIN, by_click_time=True),
        ReportQuery(("network",), by_click_time=True, since=SINCE, until=UNTIL),
        ReportQuery(("sub_id_30",), since=SINCE, until=UNTIL, filters={"campaign": "C0"}),
    ],
    ids=str,
)
def test_a_report_says_what_the_rows_say(db: sqlite3.Connection, query: ReportQuery) -> None:
    found = {key: asdict(figures) for key, figures in add_up(db, query).items()}

    assert found == read_all(db, query)
    assert any(sum(each["conversions"].values()) for each in found.values())


BESIDE = [
    ReportQuery(("day", "sub_id_1"), BERLIN),
    ReportQuery(("campaign", "sub_id_2"), filters={"offer": "O1"}),
]


@pytest.mark.parametrize("query", BESIDE, ids=str)
def test_a_thread_counts_the_same_clicks(
    db: sqlite3.Connection, query: ReportQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = add_up(db, query)
    threads: list[int] = []

    def count(own: sqlite3.Connection, query: ReportQuery) -> Counter[Group]:
        threads.append(threading.get_ident())
        return count_clicks(own, query)

    monkeypatch.setattr(totals, "count_clicks", count)

    assert add_up_in_threads(db, find_path(db), query) == wanted
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


def test_clicks_are_not_counted_by_what_they_lack(db: sqlite3.Connection) -> None:
    query = ReportQuery(("network",))

    assert add_up_in_threads(db, find_path(db), query) == add_up(db, query)


def test_an_error_of_the_counting_thread_is_the_reports(
    db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(own: sqlite3.Connection, query: ReportQuery) -> Counter[Group]:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(totals, "count_clicks", break_off)

    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        add_up_in_threads(db, find_path(db), BESIDE[0])


ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
ONCE = "SELECT 1"


@pytest.mark.parametrize("statement", [ENDLESS, ONCE], ids=["endless", "short ones"])
def test_ctrl_c_ends_the_counting_thread(
    db: sqlite3.Connection, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun = threading.Event()

    def count_for_ever(own: sqlite3.Connection, query: ReportQuery) -> Counter[Group]:
        has_begun.set()
        while True:
            own.execute(statement).fetchall()

    monkeypatch.setattr(totals, "count_clicks", count_for_ever)
    before = threading.active_count()

    def press_ctrl_c() -> None:
        with totals.counting(find_path(db), BESIDE[0]):
            has_begun.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()

    assert threading.active_count() == before


def find_path(db: sqlite3.Connection) -> Path:
    return Path(db.execute("PRAGMA database_list").fetchone()[2])


@given(st.integers(-(10**24), 10**24), st.integers(1, 10**24))
def test_a_share_is_rounded_once_half_to_even(part: int, whole: int) -> None:
    assert find_basis_points(part, whole) == round(Fraction(part * 10_000, whole))


@pytest.mark.parametrize(
    ("part", "whole", "points"), [(1, 20_000, 0), (3, 20_000, 2), (-1, 20_000, 0), (1, 0, None)]
)
def test_a_half_goes_to_the_even_side(part: int, whole: int, points: int | None) -> None:
    assert find_basis_points(part, whole) == points
