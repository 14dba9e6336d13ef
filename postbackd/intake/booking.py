"""The one way of a postback: judge it with the engine, keep it and its effect in one transaction.

A live request, an imported line, a replay and a click's arrival all come through here. The caller
holds the transaction; nothing here commits, but for `settle_all_due_clicks`. What is asked and
changed is on the transaction's shelf (`shelf`), and written when its batch is done.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from postbackd.config.settings import Settings
from postbackd.db.rows import (
    AMOUNT_COLUMNS,
    COST_COLUMNS,
    NO_MONEY,
    Again,
    ClickRow,
    ConversionRow,
    KnownClick,
    MoneyValues,
    ParkedPostback,
    PostbackRow,
    Settled,
    money_values,
    to_json,
    utc_text,
)
from postbackd.intake.currencies import ISO_CODES
from postbackd.intake.query import Postback, read_fields, read_postback, warn_of_query
from rates import Priced, decimal_text, price_at, to_micros
from statuses import (
    MONEY,
    Change,
    Conversion,
    Decision,
    Policy,
    Reason,
    Rule,
    Status,
    Verdict,
    judge,
)
from storage import Storage

# A flood of postbacks for one click id must not make the click's arrival a long transaction.
# So many different ones count; equal ones that come between others are judged anew, up to a bound.
PARKED_PER_CLICK = 100
PARKED_IN_ALL = 1000

# How much the housekeeping does in one transaction, so that postbacks wait some ten milliseconds
# for it, and some 60 where each click has its hundred parked.
DUE_CLICKS_AT_ONCE = 4

# The source of the rate, which is 1, of an amount that was sent in the tracker's own currency.
SAME_CURRENCY = "same"


class BookingOptions(NamedTuple):
    """What of the config bears on money and moves."""

    currency: str
    policy: Policy = Policy()
    park_days: int = 90
    decimal_comma: bool = False
    fallback_encoding: str = ""


def read_booking_options(settings: Settings) -> BookingOptions:
    """Give what of the settings bears on money and moves."""
    return BookingOptions(
        currency=settings.currency,
        policy=Policy(
            accepts_unknown_subid=settings.unknown_subid == "accept",
            updates_on_repeat=settings.repeats == "update",
            allows_rebills=settings.rebills,
            unrejects=settings.unreject,
        ),
        park_days=settings.park_days,
        decimal_comma=settings.decimal_comma,
        fallback_encoding=settings.fallback_encoding,
    )


class Arrival(NamedTuple):
    """A postback as it came: when (`utc_text`), how (`source`), from where, and what it says.

    A replay is booked as received when its original was; the log says when it was put through.
    `is_forced`: an operator overrules the rules about moves. `body` is that of the request, where
    the query does not say all of it.
    """

    received_at: str
    source: str
    method: str | None
    remote_addr: str | None
    query: str
    postback: Postback
    replay_of: int | None = None
    replayed_at: str | None = None
    is_forced: bool = False
    body: bytes | None = None
    body_type: str | None = None


class StoredClicks(NamedTuple):
    """What came of clicks taken in: how many were new, and how many parked postbacks they met."""

    new: int
    settled: int


class Outcome(NamedTuple):
    """What came of an arrival."""

    verdict: Verdict
    reason: Reason
    warnings: tuple[str, ...]
    conversion_id: int | None = None


# What stands for a postback that did what it was sent for.
BOOKED = frozenset({Verdict.RECORDED, Verdict.UPDATED, Verdict.REPEATED})


class Effect(NamedTuple):
    """What a decision's change did: to which conversion, what pricing warned of."""

    conversion_id: int | None
    warnings: tuple[str, ...] = ()


def record(db: Storage, arrival: Arrival, terms: BookingOptions) -> Outcome:
    """Judge a postback and write down both it and its effect."""
    arrival = _know_its_currency(db, arrival, terms)
    decision, known = judge_arrival(db, arrival, terms)
    if _brings_click(decision, known):
        # What was parked for the click came first, and may change what this postback meets.
        _bring_click(db, known, arrival, terms)
        decision, known = judge_arrival(db, arrival, terms)
    effect = _apply(db, decision, known, arrival, terms)
    outcome = Outcome(
        decision.verdict,
        decision.reason,
        arrival.postback.warnings + decision.warnings + effect.warnings,
        effect.conversion_id,
    )
    postback_id = db.add_postback(_postback_row(arrival, outcome))
    _note_change(db, decision, effect.conversion_id, arrival.received_at, postback_id)
    return outcome


def preview(db: Storage, arrival: Arrival, terms: BookingOptions) -> Outcome:
    """Say what would come of a postback, and write nothing."""
    known_arrival = _know_its_currency(db, arrival, terms)
    decision, known = judge_arrival(db, known_arrival, terms)
    if _brings_click(decision, known):
        with suppress(_UndoneError), db.savepoint():
            outcome = record(db, arrival, terms)
            raise _UndoneError
        return outcome
    change = decision.change
    money = () if change is None else _price_change(db, change, known_arrival, terms)
    conversion_id = None if decision.conversion is None else decision.conversion.id
    warnings = known_arrival.postback.warnings + decision.warnings + _list_warnings(*money)
    return Outcome(decision.verdict, decision.reason, warnings, conversion_id)


def _brings_click(decision: Decision, known: KnownClick | None) -> bool:
    """Tell whether a click is to be made, or has come, for which postbacks may be parked."""
    return decision.change is not None if known is None else known.is_due


class _UndoneError(Exception):
    """What was done is to be undone."""


def judge_arrival(
    db: Storage, arrival: Arrival, terms: BookingOptions
) -> tuple[Decision, KnownClick | None]:
    """Judge a postback by what the database knows now; the log is asked only where it matters."""
    incoming = arrival.postback.incoming
    known = db.find_click(incoming.subid) if incoming.subid else None
    click = None if known is None else known.click
    policy = terms.policy._replace(forces=True) if arrival.is_forced else terms.policy
    decision = judge(incoming, click, policy)
    if not decision.hinges_on_past:
        return decision, known
    assert known is not None
    assert incoming.subid is not None
    conversion_id = None if decision.conversion is None else decision.conversion.id
    again = Again(
        known.id, incoming.subid, arrival.query, incoming.tid, conversion_id, arrival.replay_of
    )
    return judge(incoming, click, policy, db.find_past(again)), known


class KnowsRates(Protocol):
    """Whoever can say whether a currency has a rate: `Storage`, `Questions`."""

    def has_rate_of(self, currency: str) -> bool:
        """Tell whether any rate at hand names a currency."""


def know_currency(db: KnowsRates, postback: Postback, terms: BookingOptions) -> Postback:
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


def _know_its_currency(db: Storage, arrival: Arrival, terms: BookingOptions) -> Arrival:
    postback = know_currency(db, arrival.postback, terms)
    return arrival if postback is arrival.postback else arrival._replace(postback=postback)


def record_clicks(
    db: Storage, rows: Iterable[ClickRow], now: datetime, terms: BookingOptions
) -> StoredClicks:
    """Take clicks in, with what was parked for them; what others are due is not their business."""
    rows = list(rows)
    new = db.put_clicks(rows, utc_text(now))
    due = db.find_due_clicks_among(row.subid for row in rows)
    if not due:
        return StoredClicks(new, 0)
    parked = db.count_parked(subid for _, subid in due)
    _settle_clicks(db, due, now, terms)
    return StoredClicks(new, sum(parked.values()))


def settle_due_clicks(
    db: Storage, now: datetime, terms: BookingOptions, *, limit: int | None = None
) -> int:
    """Apply what is parked for clicks that have come, whoever wrote them; returns how many."""
    # SQLite takes a negative limit for none.
    due = db.find_due_clicks(-1 if limit is None else limit)
    _settle_clicks(db, due, now, terms)
    return len(due)


def settle_all_due_clicks(
    db: Storage,
    terms: BookingOptions,
    read_clock: Callable[[], datetime],
    at_once: int = DUE_CLICKS_AT_ONCE,
) -> None:
    """Settle whatever is due, some clicks at a time, each time in a transaction of its own."""
    settled = at_once
    while settled == at_once:
        with db.transaction():
            settled = settle_due_clicks(db, read_clock(), terms, limit=at_once)


def _settle_clicks(
    db: Storage, due: Sequence[tuple[int, str]], now: datetime, terms: BookingOptions
) -> None:
    db.take(subid for _, subid in due)
    for click_id, subid in due:
        _settle_parked(db, subid, now, terms)
        db.clear_due_click(click_id, subid)


def _bring_click(
    db: Storage, known: KnownClick | None, arrival: Arrival, terms: BookingOptions
) -> None:
    """Apply what is parked for a click, which is made where it is accepted unknown."""
    subid = arrival.postback.incoming.subid
    assert subid is not None
    click_id = db.add_bare_click(subid, arrival.received_at) if known is None else known.id
    now = datetime.fromisoformat(arrival.replayed_at or arrival.received_at)
    _settle_parked(db, subid, now, terms)
    db.clear_due_click(click_id, subid)


def _apply(
    db: Storage,
    decision: Decision,
    known: KnownClick | None,
    arrival: Arrival,
    terms: BookingOptions,
) -> Effect:
    """Make the decision's change."""
    change = decision.change
    if change is None:
        return Effect(None if decision.conversion is None else decision.conversion.id)
    assert known is not None
    amount, cost = _price_change(db, change, arrival, terms)
    if change.conversion is None:
        conversion_id = db.next_conversion_id()
        db.add_conversion(_new_conversion(conversion_id, known, change, arrival, amount, cost))
    else:
        conversion_id = change.conversion.id
        db.change_conversion(conversion_id, _list_changes(change, arrival, amount, cost))
    if change.sub_ids:
        db.patch_sub_ids(known.id, conversion_id, change.sub_ids, only_missing=change.fills)
    external_id = arrival.postback.external_id
    if external_id is not None:
        db.set_external_id(known.id, external_id, only_missing=change.fills)
    has_warnings = amount.warning is not None or cost.warning is not None
    return Effect(conversion_id, _list_warnings(amount, cost) if has_warnings else ())


def _new_conversion(
    conversion_id: int,
    known: KnownClick,
    change: Change,
    arrival: Arrival,
    amount: "Valued",
    cost: "Valued",
) -> ConversionRow:
    at = arrival.received_at
    # By position, since names would take longer than all else here; `ConversionRow` has them.
    # `_value_` is what `.value` gives, which is looked up by a method in Python.
    return ConversionRow(
        conversion_id,
        known.id,
        change.tid,
        change.status._value_,
        arrival.postback.incoming.word,
        None,
        *amount.columns,
        *cost.columns,
        known.campaign_id,
        known.offer_id,
        arrival.postback.network,
        known.sub_ids,
        at,
        at,
        at if change.status in MONEY else None,
    )


def _list_changes(
    change: Change, arrival: Arrival, amount: "Valued", cost: "Valued"
) -> dict[str, Any]:
    assert change.conversion is not None
    at = arrival.received_at
    values: dict[str, Any] = {"tid": change.tid, "updated_at": at}
    if amount is not NOTHING:
        values |= zip(AMOUNT_COLUMNS, amount.columns, strict=True)
    if cost is not NOTHING:
        values |= zip(COST_COLUMNS, cost.columns, strict=True)
    if change.status is not change.conversion.status:
        values["status"] = change.status._value_
        values["previous_status"] = change.conversion.status.value
        values["original_status"] = arrival.postback.incoming.word
        values |= _sale_time(change.conversion, change.status, at)
    if arrival.postback.network is not None and not change.fills:
        values["network"] = arrival.postback.network
    return values


def _sale_time(before: Conversion, status: Status, at: str) -> dict[str, str | None]:
    """Give the column that says when a conversion first was money, where that changes."""
    if status is Status.LEAD:
        # An operator says that it never was.
        return {"sale_at": None}
    was_money = before.status in MONEY or (
        before.status is Status.REJECTED and before.previous_status in MONEY
    )
    return {"sale_at": at} if status in MONEY and not was_money else {}


def _note_change(
    db: Storage, decision: Decision, conversion_id: int | None, at: str, postback_id: int
) -> None:
    if conversion_id is None or decision.change is None:
        return
    what: str = decision.verdict._value_
    if decision.change.conversion is None:
        what = "recorded"
    elif decision.rule is Rule.FORCED:
        what = "forced"
    db.add_history(conversion_id, what, at, postback_id)


class Valued(NamedTuple):
    """An amount or a cost as it is booked: its columns, and what there is to be said about it."""

    columns: MoneyValues
    warning: str | None = None


NOTHING = Valued(NO_MONEY)


def _price_change(
    db: Storage, change: Change, arrival: Arrival, terms: BookingOptions
) -> tuple[Valued, Valued]:
    """Give what the change takes of the postback's amount, and of its cost."""
    incoming, at = arrival.postback.incoming, arrival.received_at
    amount = cost = NOTHING
    if change.takes_amount and incoming.amount is not None:
        amount = _price(db, incoming.amount, incoming.currency, at, terms)
    if change.takes_cost and incoming.cost is not None:
        cost = _price(db, incoming.cost, incoming.currency, at, terms)
    return amount, cost


def _price(
    db: Storage, amount: Decimal, currency: str | None, received_at: str, terms: BookingOptions
) -> Valued:
    """Convert an amount as far as that can be done now, and warn where it cannot."""
    day = received_at[:10]
    if currency == terms.currency:
        micros = to_micros(amount)
        return Valued((micros, currency, day, micros, "1", day, SAME_CURRENCY))
    if currency is None:
        return Valued((to_micros(amount), None, None, None, None, None, None))
    unpriced = Priced(amount, currency, date.fromisoformat(day), None, None)
    rate = db.find_rate(currency, date.fromisoformat(day))
    if rate is None:
        warning = f"no rate for {currency} is at hand: converted as soon as there is one"
        return Valued(money_values(unpriced), warning)
    priced = price_at(unpriced, rate)
    if priced.worth is not None:
        return Valued(money_values(priced))
    what = f"{amount:f} {currency} is too much to convert at its rate {decimal_text(rate.value)}"
    return Valued(money_values(priced), f"{what}: converted as soon as there is another")


def _list_warnings(*valued: Valued) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.warning for one in valued if one.warning is not None))


def _postback_row(arrival: Arrival, outcome: Outcome) -> PostbackRow:
    incoming = arrival.postback.incoming
    # By position, since names would take twice as long.
    return PostbackRow(
        arrival.replayed_at or arrival.received_at,
        arrival.source,
        arrival.method,
        arrival.remote_addr,
        arrival.query,
        incoming.subid,
        incoming.tid,
        incoming.word,
        outcome.verdict._value_,
        outcome.reason.detail,
        to_json(outcome.warnings) if outcome.warnings else "[]",
        outcome.conversion_id,
        arrival.postback.network,
        arrival.replay_of,
        arrival.body,
        arrival.body_type,
    )


def _settle_parked(db: Storage, subid: str, now: datetime, terms: BookingOptions) -> None:
    if not db.has_parked(subid):
        return
    at, oldest = utc_text(now), utc_text(now - timedelta(days=terms.park_days))
    reason = f"parked for more than {terms.park_days} days before its click came"
    db.refuse_parked(subid, at, reason, before=oldest)
    settled = {}
    for parked in db.find_parked(subid, PARKED_PER_CLICK, PARKED_IN_ALL):
        settled[parked.query] = (parked, _settle_one(db, parked, at, terms))
    for parked, came in settled.values():
        if parked.copies:
            db.settle_copies(parked, at, came.repeat() if came.verdict in BOOKED else came)
    reason = f"more than {PARKED_PER_CLICK} different postbacks were parked for this click"
    db.refuse_parked(subid, at, reason)


def _settle_one(db: Storage, parked: ParkedPostback, at: str, terms: BookingOptions) -> Settled:
    arrival = Arrival(
        received_at=parked.received_at,
        source=parked.source,
        method=parked.method,
        remote_addr=parked.remote_addr,
        query=parked.query,
        postback=know_currency(db, parse_stored(parked.query, terms), terms),
        replay_of=parked.replay_of,
    )
    decision, known = judge_arrival(db, arrival, terms)
    if decision.verdict is Verdict.PARKED:
        reason = "its query names another click today"
        db.settle_postback(parked.id, at, Verdict.REFUSED, reason, None)
        return Settled(Verdict.REFUSED, reason)
    effect = _apply(db, decision, known, arrival, terms)
    reason = "; ".join((decision.reason.detail, *effect.warnings))
    db.settle_postback(parked.id, at, decision.verdict, reason, effect.conversion_id)
    _note_change(db, decision, effect.conversion_id, parked.received_at, parked.id)
    return Settled(decision.verdict, reason, effect.conversion_id)


def parse_stored(query: str, terms: BookingOptions) -> Postback:
    """Read a stored query again, under the terms of today."""
    postback = read_postback(
        read_fields(query, terms.fallback_encoding),
        {},
        tracker_currency=terms.currency,
        decimal_comma=terms.decimal_comma,
    )
    more = warn_of_query(query)
    return postback._replace(warnings=more + postback.warnings) if more else postback
