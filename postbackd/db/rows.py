"""What the tables' rows are in Python, and how a value stands in one."""

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
    """A click as it stands: its ids, its sub ids as JSON, and what the engine asks about it.

    `is_due`: postbacks that were parked for it still wait to be applied.
    """

    id: int
    campaign_id: int | None
    offer_id: int | None
    sub_ids: str
    is_due: bool
    click: Click


class ClickRow(NamedTuple):
    """A click on its way in; None changes nothing that stands. `currency` is that of the cost."""

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
    """A postback on its way into the log; the fields are the columns.

    `body` is what came as a body and does not stand in the query.
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
    """What the log is asked about a postback that may have come before; the fields are parameters.

    `conversion_id` is the conversion that it would change, `original_id` what it is a replay of.
    """

    click_id: int
    subid: str
    query: str
    tid: str
    conversion_id: int | None
    original_id: int | None


class ParkedPostback(NamedTuple):
    """A postback that waits for its click, as it was received.

    That of a replay is what it put through again, and was received when the original was.
    `copies`: how many more of the very same query wait.
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
    """What came of a parked postback in the end."""

    verdict: Verdict
    reason: str
    conversion_id: int | None = None

    def repeat(self) -> "Settled":
        """Say what comes of another one that is the very same."""
        return Settled(Verdict.REPEATED, "the very same was parked before it", self.conversion_id)


class LastTry(NamedTuple):
    """How a postback was last put through: as which query, and what has come of it so far.

    `lacks_amount`: it is about a conversion whose amount, or its currency, is unknown.
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
    """Keep of equal queries that follow each other the first, and count how often each came.

    One that comes back behind another query stands anew: with `repeats = update` the last counts.
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
    """Write JSON as the database keeps it: compact, readable in any language."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# An encoder made anew for every click took a tenth of the time of an import.
_encode_json = json.JSONEncoder(ensure_ascii=False).encode


def sub_ids_json(sub_ids: Mapping[str, str]) -> str:
    """Write sub ids as `to_json` would: the names are ours and hold nothing to escape."""
    members = [f'"{name}":{_encode_json(value)}' for name, value in sub_ids.items()]
    return f"{{{','.join(members)}}}"


def utc_text(moment: datetime) -> str:
    """Write an aware moment as the database keeps it: `2026-11-22T10:24:50.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:23] + "Z"


# What the engine sees of a conversion, in the order in which `read_conversion` takes it.
CONVERSION_COLUMNS = (
    "conversions.id, tid, status, amount_micros, currency, cost_amount_micros, cost_currency,"
    " previous_status, conversions.sub_ids, deleted_at, corrected_by"
)


def read_conversion(row: Sequence[Any]) -> Conversion:
    """Read a conversion as the engine sees it, from `CONVERSION_COLUMNS`."""
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


def amount_columns(priced: Priced) -> dict[str, Any]:
    """Give the columns that hold what was sent and what it is worth."""
    return {
        "amount_micros": to_micros(priced.amount),
        "currency": priced.currency,
        "amount_day": None if priced.day is None else priced.day.isoformat(),
        **payout_columns(priced),
    }


def payout_columns(priced: Priced) -> dict[str, Any]:
    """Give the columns of an amount in the tracker's currency, with the rate that made it."""
    return _worth_columns(priced, "payout_micros", "")


def cost_columns(priced: Priced) -> dict[str, Any]:
    """Give the columns that hold a cost as it was sent and what it is worth."""
    return {
        "cost_amount_micros": to_micros(priced.amount),
        "cost_currency": priced.currency,
        "cost_day": None if priced.day is None else priced.day.isoformat(),
        **cost_worth_columns(priced),
    }


def cost_worth_columns(priced: Priced) -> dict[str, Any]:
    """Give the columns of a cost in the tracker's currency, with the rate that made it."""
    return _worth_columns(priced, "cost_micros", "cost_")


def _worth_columns(priced: Priced, worth_name: str, prefix: str) -> dict[str, Any]:
    rate = priced.rate
    return {
        worth_name: None if priced.worth is None else to_micros(priced.worth),
        f"{prefix}rate": None if rate is None else _rate_text(rate.value),
        f"{prefix}rate_day": None if rate is None else rate.day.isoformat(),
        f"{prefix}rate_source": None if rate is None else rate.source,
    }


# A day has a handful of them.
_rate_text = lru_cache(maxsize=256)(decimal_text)
