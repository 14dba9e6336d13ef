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


# The columns of a conversion that the engine reads, in the order of `read_conversion`.
CONVERSION_COLUMNS = (
    "conversions.id, tid, status, amount_micros, currency, cost_amount_micros, cost_currency,"
    " previous_status, conversions.sub_ids"
)


def read_conversion(row: Sequence[Any]) -> Conversion:
    """Build a Conversion from a row of `CONVERSION_COLUMNS`."""
    conversion_id, tid, status, amount, currency, cost, cost_currency, previous, sub_ids = row
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
    )


def amount_columns(priced: Priced) -> dict[str, Any]:
    """Return the columns of an amount as sent, and of its value in the tracker's currency."""
    return {
        "amount_micros": to_micros(priced.amount),
        "currency": priced.currency,
        "amount_day": None if priced.day is None else priced.day.isoformat(),
        **payout_columns(priced),
    }


def payout_columns(priced: Priced) -> dict[str, Any]:
    """Return the columns of an amount in the tracker's currency, and of the rate used."""
    return _worth_columns(priced, "payout_micros", "")


def cost_columns(priced: Priced) -> dict[str, Any]:
    """Return the columns of a cost as sent, and of its value in the tracker's currency."""
    return {
        "cost_amount_micros": to_micros(priced.amount),
        "cost_currency": priced.currency,
        "cost_day": None if priced.day is None else priced.day.isoformat(),
        **cost_worth_columns(priced),
    }


def cost_worth_columns(priced: Priced) -> dict[str, Any]:
    """Return the columns of a cost in the tracker's currency, and of the rate used."""
    return _worth_columns(priced, "cost_micros", "cost_")


def _worth_columns(priced: Priced, worth_name: str, prefix: str) -> dict[str, Any]:
    rate = priced.rate
    return {
        worth_name: None if priced.worth is None else to_micros(priced.worth),
        f"{prefix}rate": None if rate is None else _rate_text(rate.value),
        f"{prefix}rate_day": None if rate is None else rate.day.isoformat(),
        f"{prefix}rate_source": None if rate is None else rate.source,
    }


# A day has few different rates.
_rate_text = lru_cache(maxsize=256)(decimal_text)
