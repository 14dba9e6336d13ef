"""How much came in, added up: clicks, conversions and money by day, campaign, network and so on.

Read in pieces like everything that takes long: a day or an hour at a time where time plays a part,
else some thousand rows. Where a day begins is computed from the zone, so that days of 23 and 25
hours, and zones that are half an hour off, come out right.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple

from query import SUB_ID_NAMES
from rates import EXACT, sum_of_halves
from schema import sum_sql
from statuses import Status
from storage import utc_text

TIMES = ("hour", "day")
NAMED = ("campaign", "offer")
# What a click has too, so that clicks can be counted by it.
OF_CLICKS = (*TIMES, *NAMED, *SUB_ID_NAMES)
DIMENSIONS = ("day", "hour", *NAMED, "network", "currency", *SUB_ID_NAMES)

# Some 20 ms of reading.
ROWS_AT_ONCE = 20_000

PERCENT_STEP = Decimal("0.01")

Key = tuple[str | None, ...]
Group = tuple[Any, ...]


class Asked(NamedTuple):
    """What is added up: by what, of which conversions and clicks, and whose days count.

    `since` and `until` are moments as the database keeps them. By click time a conversion counts
    where its click does; else by its own creation.
    """

    dimensions: tuple[str, ...]
    zone: tzinfo = UTC
    since: str | None = None
    until: str | None = None
    filters: Mapping[str, str] = {}
    by_click_time: bool = False

    @property
    def plain(self) -> list[str]:
        """The dimensions that are columns."""
        return [name for name in self.dimensions if name not in (*TIMES, *SUB_ID_NAMES)]

    @property
    def sub_ids(self) -> list[str]:
        """The dimensions that are sub ids."""
        return [name for name in self.dimensions if name in SUB_ID_NAMES]

    @property
    def goes_by_time(self) -> bool:
        """Tell whether it matters when something was."""
        is_bounded = self.since is not None or self.until is not None
        return is_bounded or not set(TIMES).isdisjoint(self.dimensions)

    @property
    def counts_clicks(self) -> bool:
        """Tell whether a click has all that is asked for."""
        return set(OF_CLICKS).issuperset([*self.dimensions, *self.filters])


@dataclass
class Figures:
    """What came together under one key; money in the tracker's currency.

    What no rate could convert yet is in none of the sums, but by its own currency ('?': unknown).
    """

    clicks: int = 0
    conversions: Counter[Status] = field(default_factory=Counter)
    revenue: Decimal = Decimal(0)
    hold: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    unconverted: dict[str, Decimal] = field(default_factory=dict)
    unconverted_cost: dict[str, Decimal] = field(default_factory=dict)

    @property
    def profit(self) -> Decimal:
        """Revenue less cost."""
        return EXACT.subtract(self.revenue, self.cost)

    @property
    def approval_percent(self) -> Decimal | None:
        """Sales and rebills among all conversions; None where there is none."""
        approved = self.conversions[Status.SALE] + self.conversions[Status.REBILL]
        return find_percent(Decimal(approved), Decimal(self.conversions.total()))

    @property
    def roi_percent(self) -> Decimal | None:
        """Profit by cost; None where nothing was paid."""
        return find_percent(self.profit, self.cost)

    def add(self, other: "Figures") -> None:
        """Take another's figures in."""
        self.clicks += other.clicks
        self.conversions.update(other.conversions)
        self.revenue = EXACT.add(self.revenue, other.revenue)
        self.hold = EXACT.add(self.hold, other.hold)
        self.cost = EXACT.add(self.cost, other.cost)
        _merge(self.unconverted, other.unconverted)
        _merge(self.unconverted_cost, other.unconverted_cost)


def find_percent(part: Decimal, whole: Decimal) -> Decimal | None:
    """Give a share in per cent with two decimals; None where the whole is nothing."""
    if whole <= 0:
        return None
    share = EXACT.divide(EXACT.multiply(part, Decimal(100)), whole)
    return EXACT.quantize(share, PERCENT_STEP)


def _merge(sums: dict[str, Decimal], others: Mapping[str, Decimal]) -> None:
    for currency, amount in others.items():
        sums[currency] = EXACT.add(sums.get(currency, Decimal(0)), amount)


def add_up(db: sqlite3.Connection, asked: Asked) -> dict[Key, Figures]:
    """Add up what is asked for, by the values of its dimensions (None: not known)."""
    read_key = _build_key_reader(db, asked)
    figures: dict[Key, Figures] = {}
    for (*group, status, payout_waits, cost_waits), sums in _sum_conversions(db, asked).items():
        whose = figures.setdefault(read_key(group), Figures())
        whose.add(_read_figures(Status(status), payout_waits, cost_waits, sums))
    if asked.counts_clicks:
        for clicked, clicks in _count_clicks(db, asked).items():
            figures.setdefault(read_key(clicked), Figures()).clicks += clicks
    return figures


def _list_names(db: sqlite3.Connection, dimension: str) -> dict[Any, str]:
    if dimension not in NAMED:
        return {}
    return dict(db.execute(f"SELECT id, name FROM {dimension}s").fetchall())


# Pieces: by time or by id.


class Labels(NamedTuple):
    """What the day and the hour are called, where they are asked for and known."""

    day: str | None = None
    hour: str | None = None


class Piece(NamedTuple):
    """Some rows in one read, and the time that all of them have in common."""

    condition: str
    values: tuple[object, ...]
    labels: Labels = Labels()


class Bucket(NamedTuple):
    """A day or an hour of a zone, from one moment on and before another."""

    start: str
    end: str
    labels: Labels


def find_bucket(moment: str, unit: str, zone: tzinfo) -> Bucket:
    """Find the zone's day or hour that a moment falls into; it begins with the moment.

    A text that is no moment (other programs write clicks too) has a bucket of its own, unnamed.
    """
    try:
        local = datetime.fromisoformat(moment).astimezone(zone)
        hour = local.replace(minute=0, second=0, microsecond=0)
        if unit == "day":
            tomorrow = local.date() + timedelta(days=1)
            end = datetime.combine(tomorrow, time(), zone).astimezone(UTC)
        else:
            # In UTC: the hour that is there twice, or not at all, is none of this one's.
            end = hour.astimezone(UTC) + timedelta(hours=1)
    except (ValueError, OverflowError):
        return Bucket(moment, f"{moment} ", Labels())
    labels = Labels(str(local.date()), hour.isoformat(timespec="minutes"))
    return Bucket(moment, utc_text(end), labels)


_CLICK_TIME = "coalesce(clicks.clicked_at, clicks.created_at)"


def _cut_conversions(db: sqlite3.Connection, asked: Asked) -> Iterator[Piece]:
    if not asked.goes_by_time:
        return _cut_by_id(db, "conversions")
    if asked.by_click_time:
        return _cut_by_time(db, asked, "clicks", _CLICK_TIME)
    return _cut_by_time(db, asked, "conversions", "conversions.created_at")


def _cut_clicks(db: sqlite3.Connection, asked: Asked) -> Iterator[Piece]:
    if asked.goes_by_time:
        return _cut_by_time(db, asked, "clicks", _CLICK_TIME)
    return _cut_by_id(db, "clicks")


def _cut_by_time(db: sqlite3.Connection, asked: Asked, table: str, column: str) -> Iterator[Piece]:
    unit = "hour" if "hour" in asked.dimensions else "day"
    at = asked.since or ""
    while (found := _find_next(db, table, column, at)) is not None:
        if asked.until is not None and found >= asked.until:
            return
        bucket = find_bucket(found, unit, asked.zone)
        at = bucket.end if asked.until is None else min(bucket.end, asked.until)
        labels = Labels(
            bucket.labels.day if "day" in asked.dimensions else None,
            bucket.labels.hour if "hour" in asked.dimensions else None,
        )
        yield Piece(f"{column} >= ? AND {column} < ?", (bucket.start, at), labels)


def _find_next(db: sqlite3.Connection, table: str, column: str, at: str) -> str | None:
    sql = f"SELECT {column} FROM {table} WHERE {column} >= ? ORDER BY {column} LIMIT 1"
    row = db.execute(sql, (at,)).fetchone()
    return None if row is None else str(row[0])


def _cut_by_id(db: sqlite3.Connection, table: str) -> Iterator[Piece]:
    first, last = db.execute(f"SELECT min(id), max(id) FROM {table}").fetchone()
    if first is not None:
        for start in range(first, last + 1, ROWS_AT_ONCE):
            yield Piece(f"{table}.id >= ? AND {table}.id < ?", (start, start + ROWS_AT_ONCE))


# What each dimension is in SQL. A group is the labels of its piece and then these columns, as they
# come; only at the end, where there are few, do they become keys.


def _list_columns(asked: Asked, table: str) -> list[str]:
    """Give the columns to group by; the sub ids come in one, so that their JSON is read once."""
    columns = [f"{table}.{name}_id" if name in NAMED else f"{table}.{name}" for name in asked.plain]
    paths = [f"'$.{name}'" for name in asked.sub_ids]
    if paths:
        columns.append(f"json_extract({table}.sub_ids, {', '.join(paths)})")
    return columns


def _build_key_reader(db: sqlite3.Connection, asked: Asked) -> Callable[[Sequence[Any]], Key]:
    names = {name: _list_names(db, name) for name in asked.plain if name in NAMED}

    def read(group: Sequence[Any]) -> Key:
        labels, *columns = group
        values = {**labels._asdict(), **dict(zip(asked.plain, columns, strict=False))}
        values |= {name: known.get(values[name]) for name, known in names.items()}
        if asked.sub_ids:
            found = json.loads(columns[-1]) if len(asked.sub_ids) > 1 else [columns[-1]]
            values |= {
                name: None if value is None else str(value)
                for name, value in zip(asked.sub_ids, found, strict=True)
            }
        return tuple(values[name] for name in asked.dimensions)

    return read


def _filter(asked: Asked, table: str, piece: Piece) -> tuple[str, list[object]]:
    conditions, values = [piece.condition], list(piece.values)
    for name, value in asked.filters.items():
        if name in NAMED:
            conditions.append(f"{table}.{name}_id = (SELECT id FROM {name}s WHERE name = ?)")
        else:
            conditions.append(f"{table}.{name} = ?")
        values.append(value)
    return " AND ".join(conditions), values


def _group(columns: Sequence[str]) -> str:
    return f"GROUP BY {', '.join(map(str, range(1, len(columns) + 1)))}" if columns else ""


def _count_clicks(db: sqlite3.Connection, asked: Asked) -> Counter[Group]:
    columns = _list_columns(asked, "clicks")
    selected = ", ".join([*columns, "count(*)"])
    counts: Counter[Group] = Counter()
    for piece in _cut_clicks(db, asked):
        where, values = _filter(asked, "clicks", piece)
        sql = f"SELECT {selected} FROM clicks WHERE {where} {_group(columns)}"
        for *group, clicks in db.execute(sql, values):
            # Without columns to group by, SQL counts the nothing of an empty piece too.
            if clicks:
                counts[piece.labels, *group] += clicks
    return counts


_PAYOUT_WAITS = """
    CASE WHEN payout_micros IS NULL AND amount_micros IS NOT NULL
        THEN coalesce(conversions.currency, '?') END"""
_COST_WAITS = """
    CASE WHEN cost_micros IS NULL AND cost_amount_micros IS NOT NULL
        THEN coalesce(cost_currency, '?') END"""


def _sum_conversions(db: sqlite3.Connection, asked: Asked) -> dict[Group, list[int]]:
    """Sum by group, status and what waits for a rate: how many, and the halves of four sums."""
    columns = [*_list_columns(asked, "conversions"), "status", _PAYOUT_WAITS, _COST_WAITS]
    halves = map(sum_sql, ("payout_micros", "amount_micros", "cost_micros", "cost_amount_micros"))
    selected = ", ".join([*columns, "count(*)", *halves])
    tables = "conversions"
    if asked.by_click_time and asked.goes_by_time:
        # CROSS: from the clicks of the piece to their conversions, never the other way round.
        tables = "clicks CROSS JOIN conversions ON conversions.click_id = clicks.id"
    sums: dict[Group, list[int]] = {}
    for piece in _cut_conversions(db, asked):
        where, values = _filter(asked, "conversions", piece)
        sql = f"SELECT {selected} FROM {tables} WHERE {where} {_group(columns)}"
        for row in db.execute(sql, values):
            group = (piece.labels, *row[: len(columns)])
            known = sums.get(group, _NOTHING)
            sums[group] = [a + (b or 0) for a, b in zip(known, row[len(columns) :], strict=True)]
    return sums


_NOTHING = [0] * 9


def _read_figures(
    status: Status, payout_waits: str | None, cost_waits: str | None, sums: Sequence[int]
) -> Figures:
    payout, amount, cost, cost_amount = (
        sum_of_halves(*sums[place : place + 2]) for place in range(1, 9, 2)
    )
    figures = Figures(conversions=Counter({status: sums[0]}), cost=cost)
    if cost_waits is not None:
        figures.unconverted_cost[cost_waits] = cost_amount
    if status is Status.REJECTED:
        return figures
    if payout_waits is not None:
        figures.unconverted[payout_waits] = amount
    if status is Status.LEAD:
        figures.hold = payout
    else:
        figures.revenue = payout
    return figures
