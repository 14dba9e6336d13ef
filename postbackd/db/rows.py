"""Rows of the tables as Python values, and the text forms of times, JSON and amounts."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from rates import Priced, decimal_text, from_micros, to_micros
from statuses import Click, Conversion, Status, Verdict

# The sub ids of a click and of a conversion. Keitaro documents 15, its newer versions 30.
SUB_ID_NAMES = tuple(f"sub_id_{number}" for number in range(1, 31))


class KnownClick(NamedTuple):
    """A stored click: its ids, its sub ids as JSON, and the columns that the engine reads.

    `is_due`: postbacks parked for it have not been applied yet.
    """

    id: int
    campaign_id: int | None
    offer_id: int | None
    sub_ids: str
    is_due: bool
    click: Click


class ClickRow(NamedTuple):
    """A click to store; None leaves a stored value as it is. `currency` is that of the cost."""

    subid: str
    campaign: str | None = None
    offer: str | None = None
    clicked_at: str | None = None
    cost_model: str | None = None
    sub_ids: Mapping[str, str] = {}
    external_id: str | None = None
    source: str | None = None
    cost: Decimal | None = None
    currency: str | None = None


class PostbackRow(NamedTuple):
    """A postback to store in the postback log; the fields are the columns.

    `body` is the part of a body that is not in the query.
    """

    received_at: str
    source: str
    method: str | None
    remote_addr: str | None
    query: str
    subid: str | None
    tid: str
    original_status: str | None
    verdict: str
    reason: str
    warnings: str
    conversion_id: int | None
    network: str | None
    replay_of: int | None = None
    body: bytes | None = None
    body_type: str | None = None


class ConversionRow(NamedTuple):
    """A conversion; the fields are the columns, in the order of the table."""

    id: int
    click_id: int
    tid: str
    status: str
    original_status: str | None
    previous_status: str | None
    amount_micros: int | None
    currency: str | None
    amount_day: str | None
    payout_micros: int | None
    rate: str | None
    rate_day: str | None
    rate_source: str | None
    cost_amount_micros: int | None
    cost_currency: str | None
    cost_day: str | None
    cost_micros: int | None
    cost_rate: str | None
    cost_rate_day: str | None
    cost_rate_source: str | None
    campaign_id: int | None
    offer_id: int | None
    network: str | None
    sub_ids: str
    created_at: str
    updated_at: str
    sale_at: str | None
    deleted_at: str | None = None
    corrected_by: int | None = None


# What the history keeps of a conversion, under the same names.
HISTORY_COLUMNS = (
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


class Again(NamedTuple):
    """Asks the postback log whether a postback came before; the fields are SQL parameters.

    `conversion_id` is the conversion that it would change, `original_id` the row that it replays.
    """

    click_id: int
    subid: str
    query: str
    tid: str
    conversion_id: int | None
    original_id: int | None


class ParkedPostback(NamedTuple):
    """A postback that waits for its click.

    For a replay, the query is the replayed one and the time the original's. `copies`: how many more
    of the very same query wait.
    """

    id: int
    parked_at: str
    received_at: str
    source: str
    method: str | None
    remote_addr: str | None
    query: str
    replay_of: int | None
    copies: int


class Settled(NamedTuple):
    """The outcome of a parked postback."""

    verdict: Verdict
    reason: str
    conversion_id: int | None = None

    def repeat(self) -> "Settled":
        """Return the outcome of another parked postback with the same query."""
        return Settled(Verdict.REPEATED, "the very same was parked before it", self.conversion_id)


class LastTry(NamedTuple):
    """How a postback was last booked: by which query, and the outcome so far.

    `lacks_amount`: its conversion's amount, or the currency of that, is unknown.
    """

    query: str
    verdict: Verdict
    is_replay: bool
    lacks_amount: bool


class Waiting(NamedTuple):
    """An amount or a cost that waits for a rate of its currency."""

    conversion_id: int
    amount: Decimal


def leave_copies_out(parked: Iterable[ParkedPostback]) -> list[ParkedPostback]:
    """Return the first of equal queries that follow each other, with the number of copies.

    An equal query after another one counts anew: with `repeats = update` the last one wins.
    """
    rows = list(parked)
    if len(rows) < 2:
        return rows
    counts = Counter(row.query for row in rows)
    return [
        row._replace(copies=counts[row.query] - 1)
        for before, row in itertools.pairwise((None, *rows))
        if row is not None and (before is None or before.query != row.query)
    ]


def to_json(value: object) -> str:
    """Write JSON as the database stores it: compact, letters of any language as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# A new encoder for every click took a tenth of the time of an import.
_encode_json = json.JSONEncoder(ensure_ascii=False).encode


def sub_ids_json(sub_ids: Mapping[str, str]) -> str:
    """Write sub ids as `to_json` would: the names are ours and need no escapes."""
    members = [f'"{name}":{_encode_json(value)}' for name, value in sub_ids.items()]
    return f"{{{','.join(members)}}}"


def utc_text(moment: datetime) -> str:
    """Write an aware time as the database stores it: `2026-11-22T10:24:50.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:23] + "Z"


# What the engine sees of a conversion, in the order in which `read_conversion` takes it.
SEEN_COLUMNS = (
    "id",
    "tid",
    "status",
    "amount_micros",
    "currency",
    "cost_amount_micros",
    "cost_currency",
    "previous_status",
    "sub_ids",
    "deleted_at",
    "corrected_by",
)
CONVERSION_COLUMNS = ", ".join(f"conversions.{name}" for name in SEEN_COLUMNS)


def read_conversion(row: Sequence[Any]) -> Conversion:
    """Read a conversion as the engine sees it, from `SEEN_COLUMNS`."""
    conversion_id, tid, status, amount, currency, cost, cost_currency, *others = row
    previous, sub_ids, deleted_at, corrected_by = others
    return Conversion(
        conversion_id,
        tid,
        Status(status),
        None if amount is None else from_micros(amount),
        currency,
        None if cost is None else from_micros(cost),
        cost_currency,
        None if previous is None else Status(previous),
        {} if sub_ids == "{}" else json.loads(sub_ids),
        deleted_at is not None,
        corrected_by is not None,
    )


# The columns of an amount and of a cost, in the order of `money_values`.
AMOUNT_COLUMNS = (
    "amount_micros",
    "currency",
    "amount_day",
    "payout_micros",
    "rate",
    "rate_day",
    "rate_source",
)
COST_COLUMNS = (
    "cost_amount_micros",
    "cost_currency",
    "cost_day",
    "cost_micros",
    "cost_rate",
    "cost_rate_day",
    "cost_rate_source",
)
# The first of them say what was sent, the others what it is worth in the tracker's currency.
_SENT = 3

MoneyValues = tuple[
    int | None, str | None, str | None, int | None, str | None, str | None, str | None
]
NO_MONEY: MoneyValues = (None, None, None, None, None, None, None)


def money_values(priced: Priced) -> MoneyValues:
    """Give what was sent and what it is worth, as the columns of an amount or a cost hold it."""
    amount, currency, day, worth, rate = priced
    sent = (to_micros(amount), currency, None if day is None else day.isoformat())
    if worth is None or rate is None:
        return (*sent, None, None, None, None)
    return (*sent, to_micros(worth), _rate_text(rate.value), rate.day.isoformat(), rate.source)


def amount_columns(priced: Priced) -> dict[str, Any]:
    """Give all columns of an amount: what was sent and what it is worth."""
    return dict(zip(AMOUNT_COLUMNS, money_values(priced), strict=True))


def payout_columns(priced: Priced) -> dict[str, Any]:
    """Give the columns of an amount in the tracker's currency, with the rate that made it."""
    return dict(zip(AMOUNT_COLUMNS[_SENT:], money_values(priced)[_SENT:], strict=True))


def cost_worth_columns(priced: Priced) -> dict[str, Any]:
    """Give the columns of a cost in the tracker's currency, with the rate that made it."""
    return dict(zip(COST_COLUMNS[_SENT:], money_values(priced)[_SENT:], strict=True))


# A day has few different rates.
_rate_text = lru_cache(maxsize=256)(decimal_text)
