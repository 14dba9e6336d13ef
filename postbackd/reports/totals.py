"""Totals of clicks, conversions and money by day, campaign, network and so on.

Rows are read in pieces: a day or an hour at a time if times matter, else some thousand rows. The
start of a day is computed from the time zone, so that days of 23 and 25 hours, and zones with half
an hour, are right.
"""

import itertools
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import cache
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from postbackd.db.rows import SUB_ID_NAMES, to_json, utc_text
from postbackd.db.sqlite.connection import connect_to_read
from postbackd.db.sqlite.schema import sum_sql
from rates import from_micros, sum_of_halves
from statuses import Status

TIMES = ("hour", "day")
NAMED = ("campaign", "offer")
# Dimensions that clicks have too, so that clicks can be counted by them.
OF_CLICKS = (*TIMES, *NAMED, *SUB_ID_NAMES)
DIMENSIONS = ("day", "hour", *NAMED, "network", "currency", *SUB_ID_NAMES)

# Some 20 ms of reading; a piece's sub ids fit into the processor's cache.
ROWS_AT_ONCE = 20_000
ROWS_WITH_SUB_IDS_AT_ONCE = 2_000
# Some tenths of a second: SQL adds up one piece, so Python has fewer to add.
CONVERSIONS_AT_ONCE = 200_000

# How often the thread that counts clicks is interrupted until it ends.
INTERRUPT_SECONDS = 0.01

Key = tuple[str | None, ...]
Group = tuple[Any, ...]


class ReportQuery(NamedTuple):
    """The question: the dimensions, the selected conversions and clicks, and the time zone.

    `since` and `until` are times as the database stores them. By click time a conversion counts at
    its click's time, else at its own creation.
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
        """Return whether times matter for the question."""
        is_bounded = self.since is not None or self.until is not None
        return is_bounded or not set(TIMES).isdisjoint(self.dimensions)

    @property
    def counts_clicks(self) -> bool:
        """Return whether clicks have all dimensions and filters of the question."""
        return set(OF_CLICKS).issuperset([*self.dimensions, *self.filters])


_NO_CONVERSIONS = {status.value: 0 for status in Status}


@dataclass(slots=True)
class Figures:
    """The figures of one key; money in micros of the tracker's currency.

    An amount without a rate is in none of the sums, but listed by its own currency ('?': unknown):
    payouts of leads, sales and rebills, and costs.
    """

    clicks: int = 0
    conversions: dict[str, int] = field(default_factory=_NO_CONVERSIONS.copy)
    revenue_micros: int = 0
    hold_micros: int = 0
    cost_micros: int = 0
    unconverted_micros: dict[str, int] = field(default_factory=dict)
    unconverted_cost_micros: dict[str, int] = field(default_factory=dict)

    @property
    def revenue(self) -> Decimal:
        """Payouts of sales and rebills."""
        return from_micros(self.revenue_micros)

    @property
    def hold(self) -> Decimal:
        """Payouts of leads."""
        return from_micros(self.hold_micros)

    @property
    def cost(self) -> Decimal:
        """The costs that postbacks named for conversions, rejected ones too."""
        return from_micros(self.cost_micros)

    @property
    def profit_micros(self) -> int:
        """Revenue less cost."""
        return self.revenue_micros - self.cost_micros

    @property
    def approval_basis_points(self) -> int | None:
        """Sales and rebills among all conversions; None without conversions."""
        approved = self.conversions[Status.SALE] + self.conversions[Status.REBILL]
        return find_basis_points(approved, sum(self.conversions.values()))

    @property
    def roi_basis_points(self) -> int | None:
        """Profit by cost; None without cost."""
        return find_basis_points(self.profit_micros, self.cost_micros)

    def add(self, other: "Figures") -> None:
        """Add another key's figures."""
        self.clicks += other.clicks
        _merge(self.conversions, other.conversions)
        self.revenue_micros += other.revenue_micros
        self.hold_micros += other.hold_micros
        self.cost_micros += other.cost_micros
        if other.unconverted_micros:
            _merge(self.unconverted_micros, other.unconverted_micros)
        if other.unconverted_cost_micros:
            _merge(self.unconverted_cost_micros, other.unconverted_cost_micros)


def find_basis_points(part: int, whole: int) -> int | None:
    """Return a share in hundredths of a per cent, half to even; None if the whole is 0."""
    if whole <= 0:
        return None
    points, rest = divmod(part * 10_000, whole)
    return points + ((2 * rest, points % 2) > (whole, 0))


def _merge(sums: dict[str, int], others: Mapping[str, int]) -> None:
    for name, number in others.items():
        sums[name] = sums.get(name, 0) + number


def add_up(
    db: sqlite3.Connection, query: ReportQuery, count: Callable[[], Counter[Group]] | None = None
) -> dict[Key, Figures]:
    """Compute the figures by the values of the dimensions (None: not known).

    `count` returns the result of `count_clicks`.
    """
    read_key = _build_key_reader(db, query)
    figures: dict[Key, Figures] = {}
    for group, summed in _sum_conversions(db, query).items():
        _add_to(figures, read_key(group), summed)
    if query.counts_clicks:
        counted = count_clicks(db, query) if count is None else count()
        for group, clicks in counted.items():
            key = read_key(group)
            if key not in figures:
                figures[key] = Figures()
            figures[key].clicks += clicks
    return figures


def add_up_in_threads(db: sqlite3.Connection, path: Path, query: ReportQuery) -> dict[Key, Figures]:
    """Compute the figures; a thread with its own connection counts the clicks meanwhile."""
    if not query.counts_clicks:
        return add_up(db, query)
    with counting(path, query) as count:
        return add_up(db, query, count)


@contextmanager
def counting(path: Path, query: ReportQuery) -> Iterator[Callable[[], Counter[Group]]]:
    """Count clicks in a thread, started here; yields a function that waits for the counts."""
    # SQLite runs without Python's lock: on two cores the longer of the two takes all the time.
    with (
        closing(connect_to_read(path, check_same_thread=False)) as db,
        ThreadPoolExecutor(1) as pool,
    ):
        counts = pool.submit(count_clicks, db, query)
        try:
            yield counts.result
        finally:
            # After Ctrl-C the counts are not needed. An interrupt stops a running statement;
            # between two statements it has no effect, so it is repeated.
            while not counts.done():
                db.interrupt()
                wait([counts], INTERRUPT_SECONDS)


def _add_to(sums: dict[Any, Figures], key: object, figures: Figures) -> None:
    if key in sums:
        sums[key].add(figures)
    else:
        sums[key] = figures


def _list_names(db: sqlite3.Connection, dimension: str) -> dict[Any, str]:
    if dimension not in NAMED:
        return {}
    return dict(db.execute(f"SELECT id, name FROM {dimension}s").fetchall())


# Pieces: by time or by id.


class Labels(NamedTuple):
    """The names of the day and the hour, if they are dimensions and known."""

    day: str | None = None
    hour: str | None = None


class Piece(NamedTuple):
    """Rows that are read at once, and the labels of their common time."""

    condition: str
    values: tuple[object, ...]
    labels: Labels = Labels()


class Bucket(NamedTuple):
    """A day or an hour of a time zone, from its start on and before its end."""

    start: str
    end: str
    labels: Labels


def find_bucket(moment: str, unit: str, zone: tzinfo) -> Bucket:
    """Find the zone's day or hour of a time; the bucket starts at that time.

    A text that is no time (other programs write clicks too) has a bucket of its own, unnamed.
    """
    try:
        at = datetime.fromisoformat(moment).astimezone(UTC)
        end = _find_end(at, unit, zone)
        hour = at.astimezone(zone).replace(minute=0, second=0, microsecond=0)
        labels = Labels(str(hour.date()), hour.isoformat(timespec="minutes"))
    except (ValueError, OverflowError):
        return Bucket(moment, f"{moment} ", Labels())
    return Bucket(moment, utc_text(end), labels)


def _find_end(at: datetime, unit: str, zone: tzinfo) -> datetime:
    """Find the end of a time's day or hour: always later, whatever the clocks do between.

    Some zones change their clocks by half an hour, or at one minute past midnight, back into the
    day before: what `zone` computes from the next full hour may then be before the time.
    """
    while True:
        end = at + _left_by_the_clock(at.astimezone(zone), unit)
        change = _find_change(at, end, zone)
        if change is None:
            return end
        # The repeated hour counts as two hours; a day remains one.
        if unit == "hour" or change.astimezone(zone).date() != at.astimezone(zone).date():
            return change
        at = change


def _left_by_the_clock(local: datetime, unit: str) -> timedelta:
    begun = local.replace(minute=0, second=0, microsecond=0, tzinfo=None)
    if unit == "day":
        begun = begun.replace(hour=0)
    length = timedelta(days=1) if unit == "day" else timedelta(hours=1)
    return begun + length - local.replace(tzinfo=None)


def _find_change(at: datetime, end: datetime, zone: tzinfo) -> datetime | None:
    """Find the time between two others at which the clocks change; to the second, as in zones."""
    before = at.astimezone(zone).utcoffset()
    if end.astimezone(zone).utcoffset() == before:
        return None
    low, high = 0, math.ceil((end - at) / timedelta(seconds=1))
    begun = at.replace(microsecond=0)
    while high - low > 1:
        middle = (low + high) // 2
        changed = (begun + timedelta(seconds=middle)).astimezone(zone).utcoffset() != before
        low, high = (low, middle) if changed else (middle, high)
    return begun + timedelta(seconds=high)


_CLICK_TIME = "coalesce(clicks.clicked_at, clicks.created_at)"


def _cut_conversions(db: sqlite3.Connection, query: ReportQuery) -> Iterator[Piece]:
    if not query.goes_by_time:
        return _cut_by_id(db, "conversions", CONVERSIONS_AT_ONCE)
    if query.by_click_time:
        return _cut_by_time(db, query, "clicks", _CLICK_TIME, _unit_of(query))
    return _cut_by_time(db, query, "conversions", "conversions.created_at", _unit_of(query))


def _cut_clicks(db: sqlite3.Connection, query: ReportQuery) -> Iterator[Piece]:
    if query.goes_by_time:
        # By the hour for sub ids too: a piece's sub ids are held in memory.
        unit = "hour" if query.sub_ids else _unit_of(query)
        return _cut_by_time(db, query, "clicks", _CLICK_TIME, unit)
    rows = ROWS_WITH_SUB_IDS_AT_ONCE if query.sub_ids else ROWS_AT_ONCE
    return _cut_by_id(db, "clicks", rows)


def _unit_of(query: ReportQuery) -> str:
    return "hour" if "hour" in query.dimensions else "day"


def _cut_by_time(
    db: sqlite3.Connection, query: ReportQuery, table: str, column: str, unit: str
) -> Iterator[Piece]:
    at = query.since or ""
    while (found := _find_next(db, table, column, at)) is not None:
        if query.until is not None and found >= query.until:
            return
        bucket = find_bucket(found, unit, query.zone)
        at = bucket.end if query.until is None else min(bucket.end, query.until)
        labels = Labels(
            bucket.labels.day if "day" in query.dimensions else None,
            bucket.labels.hour if "hour" in query.dimensions else None,
        )
        yield Piece(f"{column} >= ? AND {column} < ?", (bucket.start, at), labels)


def _find_next(db: sqlite3.Connection, table: str, column: str, at: str) -> str | None:
    sql = f"SELECT {column} FROM {table} WHERE {column} >= ? ORDER BY {column} LIMIT 1"
    row = db.execute(sql, (at,)).fetchone()
    return None if row is None else str(row[0])


def _cut_by_id(db: sqlite3.Connection, table: str, rows: int) -> Iterator[Piece]:
    first, last = db.execute(f"SELECT min(id), max(id) FROM {table}").fetchone()
    if first is not None:
        for start in range(first, last + 1, rows):
            yield Piece(f"{table}.id >= ? AND {table}.id < ?", (start, start + rows))


# The SQL of each dimension. A group is its piece's labels and then these columns, unchanged; groups
# become keys at the end, when they are few.


def _list_columns(query: ReportQuery, table: str) -> list[str]:
    return [f"{table}.{name}_id" if name in NAMED else f"{table}.{name}" for name in query.plain]


def _build_key_reader(db: sqlite3.Connection, query: ReportQuery) -> Callable[[Group], Key]:
    names = {name: _list_names(db, name) for name in query.plain if name in NAMED}
    order = [*Labels._fields, *query.plain, *query.sub_ids]
    places = [(order.index(name), names.get(name)) for name in query.dimensions]

    def read(group: Group) -> Key:
        values = (*group[0], *group[1:])
        return tuple(
            [
                values[place] if known is None else known.get(values[place])
                for place, known in places
            ]
        )

    return read


def _filter(query: ReportQuery, table: str, piece: Piece) -> tuple[str, list[object]]:
    conditions, values = [piece.condition], list(piece.values)
    if table == "conversions":
        conditions.append("deleted_at IS NULL")
    for name, value in query.filters.items():
        if name in NAMED:
            conditions.append(f"{table}.{name}_id = (SELECT id FROM {name}s WHERE name = ?)")
        else:
            conditions.append(f"{table}.{name} = ?")
        values.append(value)
    return " AND ".join(conditions), values


def _group(columns: Sequence[str]) -> str:
    return f"GROUP BY {', '.join(map(str, range(1, len(columns) + 1)))}" if columns else ""


Read = tuple[Labels, list[tuple[Any, ...]]]


def count_clicks(db: sqlite3.Connection, query: ReportQuery) -> Counter[Group]:
    """Count clicks by group."""
    counts: Counter[Group] = Counter()
    # First by the labels that pieces have in common, so that only the rest is looked up per click.
    for labels, pieces in itertools.groupby(_read_clicks(db, query), itemgetter(0)):
        for values, clicks in _count_rows(query, (rows for _, rows in pieces)).items():
            counts[labels, *values] += clicks
    return counts


def _read_clicks(db: sqlite3.Connection, query: ReportQuery) -> Iterator[Read]:
    """Read counts by columns; if there are sub ids, lists of them for Python to count.

    SQLite would parse the JSON in twice the time, sort it, and return each row.
    """
    columns = _list_columns(query, "clicks")
    lists = [f"json_group_array({column})" for column in columns]
    if query.sub_ids:
        selected, grouped = [*lists, "group_concat(clicks.sub_ids)"], ""
    else:
        selected, grouped = [*columns, "count(*)"], _group(columns)
    for piece in _cut_clicks(db, query):
        where, values = _filter(query, "clicks", piece)
        sql = f"SELECT {', '.join(selected)} FROM clicks WHERE {where} {grouped}"
        yield piece.labels, db.execute(sql, values).fetchall()


def _count_rows(
    query: ReportQuery, pieces: Iterable[Sequence[tuple[Any, ...]]]
) -> Counter[tuple[Any, ...]]:
    """Count the clicks of some pieces by their columns and sub ids."""
    counts: Counter[tuple[Any, ...]] = Counter()
    if not query.sub_ids:
        for *group, clicks in itertools.chain.from_iterable(pieces):
            # Without columns to group by, SQL returns one row for an empty piece too.
            if clicks:
                counts[*group,] += clicks
        return counts
    # A single sub id is counted in half the time of a tuple with it.
    lone: Counter[str | None] = Counter()
    for ((*plain, texts),) in pieces:
        lists = _read_sub_ids(f"[{texts or ''}]", tuple(query.sub_ids))
        if plain or len(lists) > 1:
            counts.update(zip(*map(json.loads, plain), *lists, strict=True))
        else:
            lone.update(lists[0])
    counts.update({(value,): clicks for value, clicks in lone.items()})
    return counts


def _read_sub_ids(text: str, names: tuple[str, ...]) -> list[list[str | None]]:
    """Read the sub ids of some names from a JSON list of objects, a list for each name."""
    try:
        clicks = _build_decoder(names).decode(text)
    except msgspec.MsgspecError:
        # Another program wrote a value that is no text.
        clicks = json.loads(text)
        return [[_as_text(click.get(name)) for click in clicks] for name in names]
    return [list(map(attrgetter(name), clicks)) for name in names]


@cache
def _build_decoder(names: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
    # This takes half the time of a parser that builds whole objects.
    fields = [(name, str | None, None) for name in names]
    return msgspec.json.Decoder(list[msgspec.defstruct("SubIds", fields, gc=False)])  # type: ignore[misc]


def _as_text(value: Any) -> str | None:
    """Return a sub id as text, whatever another program wrote."""
    return value if value is None or value.__class__ is str else to_json(value)


# A rejected conversion's payout does not count, so it does not wait for a rate.
_PAYOUT_WAITS = f"""
    CASE WHEN payout_micros IS NULL AND amount_micros IS NOT NULL AND status <> '{Status.REJECTED}'
        THEN coalesce(conversions.currency, '?') END"""
_COST_WAITS = """
    CASE WHEN cost_micros IS NULL AND cost_amount_micros IS NOT NULL
        THEN coalesce(cost_currency, '?') END"""


# The columns that `_read_figures` reads, in its order.
_COUNTED = (Status.LEAD, Status.SALE, Status.REJECTED, Status.REBILL)
_SUMS = ", ".join(
    [
        *(f"count(*) FILTER (WHERE status = '{status}')" for status in _COUNTED),
        sum_sql("payout_micros", f"status IN ('{Status.SALE}', '{Status.REBILL}')"),
        sum_sql("payout_micros", f"status = '{Status.LEAD}'"),
        *map(sum_sql, ("cost_micros", "amount_micros", "cost_amount_micros")),
    ]
)


def _sum_conversions(db: sqlite3.Connection, query: ReportQuery) -> dict[Group, Figures]:
    plain, width = len(query.plain), len(query.plain) + len(query.sub_ids)
    sums: dict[Group, Figures] = {}
    for labels, rows in _read_conversions(db, query):
        for row in rows:
            group = (labels, *row[:plain], *map(_as_text, row[plain:width]))
            _add_to(sums, group, _read_figures(*row[width:]))
    return sums


def _read_conversions(db: sqlite3.Connection, query: ReportQuery) -> Iterator[Read]:
    sub_ids = [f"json_extract(conversions.sub_ids, '$.{name}')" for name in query.sub_ids]
    columns = [*_list_columns(query, "conversions"), *sub_ids, _PAYOUT_WAITS, _COST_WAITS]
    tables = "conversions"
    if query.by_click_time and query.goes_by_time:
        # CROSS: from the clicks of the piece to their conversions, never the other way round.
        tables = "clicks CROSS JOIN conversions ON conversions.click_id = clicks.id"
    selected, grouped = ", ".join([*columns, _SUMS]), _group(columns)
    for piece in _cut_conversions(db, query):
        where, values = _filter(query, "conversions", piece)
        sql = f"SELECT {selected} FROM {tables} WHERE {where} {grouped}"
        yield piece.labels, db.execute(sql, values).fetchall()


def _read_figures(  # a row, in the order of its columns
    payout_waits: str | None,
    cost_waits: str | None,
    leads: int,
    sales: int,
    rejected: int,
    rebills: int,
    *halves: int | None,
) -> Figures:
    """Read a row of `_SUMS` about conversions whose payouts, and whose costs, wait for one rate."""
    revenue, hold, cost = map(sum_of_halves, halves[:6:2], halves[1:6:2])
    counts = {"lead": leads, "sale": sales, "rejected": rejected, "rebill": rebills}
    figures = Figures(0, counts, revenue, hold, cost)
    if payout_waits is not None:
        figures.unconverted_micros[payout_waits] = sum_of_halves(*halves[6:8])
    if cost_waits is not None:
        figures.unconverted_cost_micros[cost_waits] = sum_of_halves(*halves[8:])
    return figures
