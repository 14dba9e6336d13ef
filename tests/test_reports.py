"""Reports held against a plain reading of every row, and their arithmetic against fractions."""

import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

import counting
from reports import Asked, Figures, add_up, count_clicks, find_basis_points
from rows import utc_text
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


def read_all(db: sqlite3.Connection, asked: Asked) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Add up row by row, in the plainest way there is."""
    clicks = [_read_row(db, "clicks", id_) for (id_,) in db.execute("SELECT id FROM clicks")]
    times = {click["id"]: click["clicked_at"] for click in clicks}
    sums: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (id_,) in db.execute("SELECT id FROM conversions").fetchall():
        row = _read_row(db, "conversions", id_)
        moment = times[row["click_id"]] if asked.by_click_time else row["created_at"]
        if _is_wanted(row, moment, asked):
            _take(sums.setdefault(_key(row, moment, asked), asdict(Figures())), row)
    if asked.counts_clicks:
        for click in clicks:
            moment = click["clicked_at"]
            if _is_wanted(click, moment, asked):
                sums.setdefault(_key(click, moment, asked), asdict(Figures()))["clicks"] += 1
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


def _is_wanted(row: dict[str, Any], moment: str, asked: Asked) -> bool:
    is_in_time = (asked.since or "") <= moment < (asked.until or "9")
    return is_in_time and all(row[name] == value for name, value in asked.filters.items())


def _key(row: dict[str, Any], moment: str, asked: Asked) -> tuple[Any, ...]:
    local = datetime.fromisoformat(moment).astimezone(asked.zone)
    times = {
        "day": local.date().isoformat(),
        "hour": local.replace(minute=0, second=0).isoformat(timespec="minutes"),
    }
    return tuple(times[name] if name in times else row.get(name) for name in asked.dimensions)


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
    "asked",
    [
        Asked(("day",)),
        Asked(("day", "hour"), BERLIN),
        Asked(("hour", "sub_id_1"), BERLIN),
        Asked(("sub_id_1",)),
        Asked(("sub_id_2", "day")),
        Asked(("sub_id_2", "sub_id_1"), since=SINCE, until=UNTIL),
        Asked(("campaign", "offer")),
        Asked(("offer", "sub_id_1"), filters={"campaign": "C1"}),
        Asked(("network", "currency")),
        Asked(("currency", "day"), BERLIN, filters={"network": "n1", "offer": "O2"}),
        Asked(("campaign",), by_click_time=True),
        Asked(("day", "sub_id_1"), BERLIN, by_click_time=True),
        Asked(("network",), by_click_time=True, since=SINCE, until=UNTIL),
        Asked(("sub_id_30",), since=SINCE, until=UNTIL, filters={"campaign": "C0"}),
    ],
    ids=str,
)
def test_a_report_says_what_the_rows_say(db: sqlite3.Connection, asked: Asked) -> None:
    found = {key: asdict(figures) for key, figures in add_up(db, asked).items()}

    assert found == read_all(db, asked)
    assert any(sum(each["conversions"].values()) for each in found.values())


BESIDE = [
    Asked(("day", "sub_id_1"), BERLIN),
    Asked(("campaign", "sub_id_2"), filters={"offer": "O1"}),
]


@pytest.mark.parametrize("asked", BESIDE, ids=str)
def test_a_process_beside_counts_the_same(
    db: sqlite3.Connection, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "WORTHWHILE_CLICKS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    wanted = count_clicks(db, asked)
    # Whoever asks must not have counted it itself.
    monkeypatch.setattr(counting, "count_clicks", None)

    with counting.counting(db, find_path(db), asked) as count:
        assert count() == wanted


@pytest.mark.parametrize(
    "zone",
    [
        UTC,
        ZoneInfo("UTC"),
        BERLIN,
        timezone(timedelta(hours=5, minutes=30)),
        timezone(-timedelta(hours=3)),
    ],
    ids=str,
)
def test_that_process_is_told_all_that_is_asked(zone: tzinfo) -> None:
    asked = Asked(("day", "offer"), zone, None, "2026-03-02", {"campaign": "C\u0161 \udcff"}, True)

    path, found = counting.read_errand(counting.write_errand(Path("/a \udcff/b.db"), asked))

    assert path == Path("/a \udcff/b.db")
    assert found._replace(zone=UTC) == asked._replace(zone=UTC)
    assert found.zone.utcoffset(START) == zone.utcoffset(START)


@pytest.mark.parametrize("program", ["/bin/false", "/bin/true", "/nowhere/python"])
def test_where_that_process_breaks_off_the_clicks_are_counted_all_the_same(
    db: sqlite3.Connection, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "WORTHWHILE_CLICKS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(sys, "executable", program)

    with counting.counting(db, find_path(db), BESIDE[0]) as count:
        assert count() == count_clicks(db, BESIDE[0])


@pytest.mark.parametrize(
    ("cores", "clicks", "asked"),
    [
        ({0}, 1, BESIDE[0]),
        ({0, 1}, 301, BESIDE[0]),
        ({0, 1}, 1, Asked(("network",))),
        ({0, 1}, 1, Asked(("day",), since=SINCE)),
    ],
)
def test_no_process_is_started_where_it_spares_nothing(
    db: sqlite3.Connection,
    cores: set[int],
    clicks: int,
    asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counting, "WORTHWHILE_CLICKS", clicks)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    monkeypatch.setattr(subprocess, "Popen", None)

    with counting.counting(db, find_path(db), asked) as count:
        assert not asked.counts_clicks or count() == count_clicks(db, asked)


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
