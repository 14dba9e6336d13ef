"""The one way of a postback: judge it with the engine, keep it and its effect in one transaction.

A live request, an imported line, a replay and a click's arrival all come through here. The caller
holds the transaction; nothing here commits, but for `settle_all_due_clicks`.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from config import Settings
from currencies import ISO_CODES
from query import Postback, read_fields, read_postback, warn_of_query
from rates import Priced, Rate, price_at
from rows import (
    ClickRow,
    KnownClick,
    ParkedPostback,
    PostbackRow,
    amount_columns,
    cost_columns,
    to_json,
    utc_text,
)
from statuses import Change, Decision, Policy, Reason, Status, Verdict, judge
from storage import Storage

# A flood of postbacks for one click id must not make the click's arrival a long transaction.
PARKED_PER_CLICK = 100

# How much the housekeeping does in one transaction, so that postbacks wait some ten milliseconds
# for it, and some 60 where each click has its hundred parked.
DUE_CLICKS_AT_ONCE = 4

# The source of the rate of an amount that was sent in the tracker's own currency.
SAME_CURRENCY = "same"
_ONE = Decimal(1)


class Terms(NamedTuple):
    """What of the config bears on money and moves."""

    currency: str
    policy: Policy = Policy()
    park_days: int = 90
    decimal_comma: bool = False
    fallback_encoding: str = ""


def read_terms(settings: Settings) -> Terms:
    """Give what of the settings bears on money and moves."""
    return Terms(
        currency=settings.currency,
        policy=Policy(
            accepts_unknown_subid=settings.unknown_subid == "accept",
            updates_on_repeat=settings.repeats == "update",
        ),
        park_days=settings.park_days,
        decimal_comma=settings.decimal_comma,
        fallback_encoding=settings.fallback_encoding,
    )


class Arrival(NamedTuple):
    """A postback as it came: when (`utc_text`), how (`source`), from where, and what it says.

    A replay is booked as received when its original was; the log says when it was put through.
    """

    received_at: str
    source: str
    method: str | None
    remote_addr: str | None
    query: str
    postback: Postback
    replay_of: int | None = None
    replayed_at: str | None = None


class Intake(NamedTuple):
    """What came of clicks taken in: how many were new, and how many parked postbacks they met."""

    new: int
    settled: int


class Outcome(NamedTuple):
    """What came of an arrival."""

    verdict: Verdict
    reason: Reason
    warnings: tuple[str, ...]
    conversion_id: int | None = None


class Effect(NamedTuple):
    """What a decision's change did: to which conversion, what pricing warned of.

    `made_with` are a new conversion's columns; None where none was made.
    """

    conversion_id: int | None
    warnings: tuple[str, ...] = ()
    made_with: Mapping[str, Any] | None = None


def keep(db: Storage, arrival: Arrival, terms: Terms) -> Outcome:
    """Judge a postback and write down both it and its effect."""
    arrival = arrival._replace(postback=_know_currency(db, arrival.postback, terms))
    decision, known = _judge(db, arrival.postback, terms)
    if (known is None and decision.change is not None) or (known is not None and known.is_due):
        # What was parked for the click came first, and may change what this postback meets.
        _bring_click(db, known, arrival, terms)
        decision, known = _judge(db, arrival.postback, terms)
    effect = _apply(db, decision, known, arrival, terms)
    outcome = Outcome(
        decision.verdict,
        decision.reason,
        arrival.postback.warnings + decision.warnings + effect.warnings,
        effect.conversion_id,
    )
    postback_id = db.add_postback(_postback_row(arrival, outcome))
    _note_change(db, decision, effect, arrival.received_at, postback_id)
    return outcome


def preview(db: Storage, postback: Postback, terms: Terms) -> Outcome:
    """Say what would come of a postback, and write nothing."""
    postback = _know_currency(db, postback, terms)
    decision, _ = _judge(db, postback, terms)
    conversion_id = None if decision.conversion is None else decision.conversion.id
    return Outcome(
        decision.verdict, decision.reason, postback.warnings + decision.warnings, conversion_id
    )


def _know_currency(db: Storage, postback: Postback, terms: Terms) -> Postback:
    """Make a currency unknown that neither ISO 4217 nor a rate at hand names, with a warning.

    An amount in `LEAD` would wait for its rate for ever, and be in a currency to who reads it.
    """
    code = postback.incoming.currency
    if code is None or code == terms.currency or code in ISO_CODES or db.has_rate_of(code):
        return postback
    warning = f"currency {code!r} is no code of ISO 4217, and no rate set by hand names it: unknown"
    return postback._replace(
        incoming=postback.incoming._replace(currency=None),
        warnings=(*postback.warnings, warning),
    )


def keep_clicks(db: Storage, rows: Iterable[ClickRow], now: datetime, terms: Terms) -> Intake:
    """Take clicks in, with what was parked for them; what others are due is not their business."""
    rows = list(rows)
    new = db.put_clicks(rows, utc_text(now))
    due = db.find_due_clicks_among(row.subid for row in rows)
    parked = db.count_parked(subid for _, subid in due)
    _settle_clicks(db, due, now, terms)
    return Intake(new, sum(parked.values()))


def settle_due_clicks(db: Storage, now: datetime, terms: Terms, *, limit: int | None = None) -> int:
    """Apply what is parked for clicks that have come, whoever wrote them; returns how many."""
    # SQLite takes a negative limit for none.
    due = db.find_due_clicks(-1 if limit is None else limit)
    _settle_clicks(db, due, now, terms)
    return len(due)


def settle_all_due_clicks(
    db: Storage,
    terms: Terms,
    read_clock: Callable[[], datetime],
    at_once: int = DUE_CLICKS_AT_ONCE,
) -> None:
    """Settle whatever is due, some clicks at a time, each time in a transaction of its own."""
    settled = at_once
    while settled == at_once:
        with db.transaction():
            settled = settle_due_clicks(db, read_clock(), terms, limit=at_once)


def _settle_clicks(
    db: Storage, due: Iterable[tuple[int, str]], now: datetime, terms: Terms
) -> None:
    for click_id, subid in due:
        _settle_parked(db, subid, now, terms)
        db.clear_due_click(click_id)


def _judge(db: Storage, postback: Postback, terms: Terms) -> tuple[Decision, KnownClick | None]:
    subid = postback.incoming.subid
    known = db.find_click(subid) if subid else None
    click = None if known is None else known.click
    return judge(postback.incoming, click, terms.policy), known


def _bring_click(db: Storage, known: KnownClick | None, arrival: Arrival, terms: Terms) -> None:
    """Apply what is parked for a click, which is made where it is accepted unknown."""
    subid = arrival.postback.incoming.subid
    assert subid is not None
    click_id = db.add_bare_click(subid, arrival.received_at) if known is None else known.id
    now = datetime.fromisoformat(arrival.replayed_at or arrival.received_at)
    _settle_parked(db, subid, now, terms)
    db.clear_due_click(click_id)


def _apply(
    db: Storage, decision: Decision, known: KnownClick | None, arrival: Arrival, terms: Terms
) -> Effect:
    """Make the decision's change."""
    change = decision.change
    if change is None:
        return Effect(None if decision.conversion is None else decision.conversion.id)
    money, warnings = _price_change(db, change, arrival, terms)
    assert known is not None
    made_with = None
    if change.conversion is None:
        made_with = _new_conversion(known, change, arrival, money)
        conversion_id = db.add_conversion(known, made_with)
        if arrival.postback.sub_ids:
            db.change_conversion(conversion_id, {}, arrival.postback.sub_ids)
    else:
        conversion_id = change.conversion.id
        _change_conversion(db, change, arrival, money)
    if arrival.postback.sub_ids:
        db.patch_click_sub_ids(known.id, arrival.postback.sub_ids)
    return Effect(conversion_id, warnings, made_with)


def _new_conversion(
    known: KnownClick, change: Change, arrival: Arrival, money: Mapping[str, Any]
) -> dict[str, Any]:
    at = arrival.received_at
    return {
        "tid": change.tid,
        "status": change.status.value,
        "original_status": arrival.postback.incoming.word,
        "network": arrival.postback.network,
        "sub_ids": known.sub_ids,
        "created_at": at,
        "updated_at": at,
        "sale_at": at if change.status in _MONEY else None,
        **money,
    }


# The statuses that are money. Source: the contract's section on statuses, on revenue.
_MONEY = frozenset({Status.SALE, Status.REBILL})


def _change_conversion(
    db: Storage, change: Change, arrival: Arrival, money: Mapping[str, Any]
) -> None:
    assert change.conversion is not None
    postback = arrival.postback
    at = arrival.received_at
    values = {"tid": change.tid, "updated_at": at, **money}
    if change.status is not change.conversion.status:
        values["status"] = change.status
        values["previous_status"] = change.conversion.status
        values["original_status"] = postback.incoming.word
        if change.status is Status.SALE:
            values["sale_at"] = at
    if postback.network is not None:
        values["network"] = postback.network
    db.change_conversion(change.conversion.id, values, postback.sub_ids)


def _note_change(
    db: Storage, decision: Decision, effect: Effect, at: str, postback_id: int
) -> None:
    if effect.conversion_id is None or decision.change is None:
        return
    if effect.made_with is None:
        db.add_history(effect.conversion_id, decision.verdict, at, postback_id)
    else:
        db.begin_history(effect.conversion_id, effect.made_with, at, postback_id)


def _price_change(
    db: Storage, change: Change, arrival: Arrival, terms: Terms
) -> tuple[dict[str, Any], tuple[str, ...]]:
    incoming = arrival.postback.incoming
    values: dict[str, Any] = {}
    warnings: dict[str, None] = {}
    if change.takes_amount and incoming.amount is not None:
        priced = _price(db, incoming.amount, incoming.currency, arrival.received_at, terms)
        values |= amount_columns(priced)
        warnings |= dict.fromkeys(_price_warnings(priced))
    if change.takes_cost and incoming.cost is not None:
        priced = _price(db, incoming.cost, incoming.currency, arrival.received_at, terms)
        values |= cost_columns(priced)
        warnings |= dict.fromkeys(_price_warnings(priced))
    return values, tuple(warnings)


def _price(
    db: Storage, amount: Decimal, currency: str | None, received_at: str, terms: Terms
) -> Priced:
    if currency is None:
        return Priced(amount, None, None, None, None)
    day = date.fromisoformat(received_at[:10])
    if currency == terms.currency:
        return Priced(amount, currency, day, amount, Rate(_ONE, day, SAME_CURRENCY))
    unpriced = Priced(amount, currency, day, None, None)
    rate = db.find_rate(currency, day)
    return unpriced if rate is None else price_at(unpriced, rate)


def _price_warnings(priced: Priced) -> Iterable[str]:
    if priced.worth is not None or priced.currency is None:
        return ()
    if priced.day is None:
        return (f"{priced.amount:f} {priced.currency} is too much to convert at its rate",)
    return (f"no rate for {priced.currency} is at hand: converted as soon as there is one",)


def _postback_row(arrival: Arrival, outcome: Outcome) -> PostbackRow:
    incoming = arrival.postback.incoming
    return PostbackRow(
        received_at=arrival.replayed_at or arrival.received_at,
        source=arrival.source,
        method=arrival.method,
        remote_addr=arrival.remote_addr,
        query=arrival.query,
        subid=incoming.subid,
        tid=incoming.tid,
        original_status=incoming.word,
        verdict=outcome.verdict.value,
        reason=outcome.reason.detail,
        warnings=to_json(outcome.warnings) if outcome.warnings else "[]",
        conversion_id=outcome.conversion_id,
        network=arrival.postback.network,
        replay_of=arrival.replay_of,
    )


def _settle_parked(db: Storage, subid: str, now: datetime, terms: Terms) -> None:
    oldest = utc_text(now - timedelta(days=terms.park_days))
    for parked in db.find_parked(subid, PARKED_PER_CLICK):
        if parked.parked_at < oldest:
            reason = f"parked for more than {terms.park_days} days before its click came"
            db.settle_postback(parked.id, utc_text(now), Verdict.REFUSED, reason, None)
        else:
            _settle_one(db, parked, utc_text(now), terms)
    reason = f"more than {PARKED_PER_CLICK} postbacks were parked for this click"
    db.settle_parked(subid, utc_text(now), Verdict.REFUSED, reason)


def _settle_one(db: Storage, parked: ParkedPostback, at: str, terms: Terms) -> None:
    postback = _know_currency(db, reread(parked.query, terms), terms)
    arrival = Arrival(
        parked.received_at, parked.source, parked.method, parked.remote_addr, parked.query, postback
    )
    decision, known = _judge(db, postback, terms)
    if decision.verdict is Verdict.PARKED:
        reason = "its query names another click today"
        db.settle_postback(parked.id, at, Verdict.REFUSED, reason, None)
        return
    effect = _apply(db, decision, known, arrival, terms)
    reason = "; ".join((decision.reason.detail, *effect.warnings))
    db.settle_postback(parked.id, at, decision.verdict, reason, effect.conversion_id)
    _note_change(db, decision, effect, parked.received_at, parked.id)


def reread(query: str, terms: Terms) -> Postback:
    """Read a stored query again, under the terms of today."""
    postback = read_postback(
        read_fields(query, terms.fallback_encoding),
        {},
        tracker_currency=terms.currency,
        decimal_comma=terms.decimal_comma,
    )
    more = warn_of_query(query)
    return postback._replace(warnings=more + postback.warnings) if more else postback
