"""What an operator says of one conversion: another status, another amount, or that it is none.

The rules about moves bind networks, not operators. The caller holds the transaction.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import urlencode

from postbackd.db.corrections import HeldConversion, is_click_known, list_held, write_correction
from postbackd.db.rows import PostbackRow, amount_columns, utc_text
from postbackd.intake.booking import SAME_CURRENCY
from postbackd.intake.currencies import ISO_CODES
from rates import Priced, Rate, decimal_text, from_micros, price_at
from statuses import MONEY, Status, Verdict
from storage import Storage

# A click of a busy rebill offer has hundreds; a sentence has room for some.
LISTED_AT_MOST = 20

# The reason is a sentence, not a file.
REASON_MAX_CHARACTERS = 500


class Target(NamedTuple):
    """Which conversion is meant; `tid` None: the click's only one."""

    subid: str
    tid: str | None


class NewValues(NamedTuple):
    """What a conversion is to have; None leaves what it has."""

    status: Status | None = None
    amount: Decimal | None = None
    currency: str | None = None


class Planned(NamedTuple):
    """A change that is not written yet: the conversion as it stands, and its new columns."""

    held: HeldConversion
    values: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def becomes(self) -> HeldConversion:
        """The conversion as it would be."""
        seen = {name: self.values[name] for name in self.held._fields if name in self.values}
        return self.held._replace(**seen)


class UnclearTargetError(Exception):
    """The change cannot be made; the sentence says why, and what to say instead."""


def find_target(db: Storage, target: Target) -> HeldConversion:
    """Find the conversion that is meant; UnclearTargetError where it is none or not one."""
    held = list_held(db.db, target.subid)
    if target.tid is not None:
        found = [conversion for conversion in held if conversion.tid == target.tid]
    else:
        found = [conversion for conversion in held if conversion.deleted_at is None] or held
    if len(found) == 1:
        return found[0]
    raise UnclearTargetError(_describe_unclear(db, target, found or held))


def _describe_unclear(db: Storage, target: Target, held: Sequence[HeldConversion]) -> str:
    if not held:
        known = "has no conversion" if is_click_known(db.db, target.subid) else "is not known"
        return f"click {target.subid!r} {known}: `postback import` books what no postback brought"
    listed = ", ".join(map(describe_held, held[:LISTED_AT_MOST]))
    more = f" and {len(held) - LISTED_AT_MOST} more" if len(held) > LISTED_AT_MOST else ""
    if target.tid is None:
        return (
            f"click {target.subid!r} has {len(held)} conversions, say which with --tid:"
            f" {listed}{more}"
        )
    return (
        f"click {target.subid!r} has no conversion with the transaction id {target.tid!r}; it has:"
        f" {listed}{more}"
    )


def describe_held(held: HeldConversion) -> str:
    """Write a conversion in a few words, its transaction id first."""
    state = "deleted" if held.deleted_at else held.status
    amount = "no amount"
    if held.amount_micros is not None:
        amount = f"{decimal_text(from_micros(held.amount_micros))} {held.currency or '?'}"
    return f"{held.tid!r} ({state}, {amount})"


def plan_set(db: Storage, held: HeldConversion, new: NewValues, currency: str, now: str) -> Planned:
    """Say what setting something changes; `currency` is the tracker's, `now` a `utc_text`."""
    if held.deleted_at is not None and new.status is None:
        raise UnclearTargetError(
            f"the conversion {describe_held(held)} of click {held.subid!r} is deleted: say which"
            " --status it has when it comes back"
        )
    values: dict[str, Any] = {}
    if held.deleted_at is not None:
        values["deleted_at"] = None
        if held.cost_currency is not None and held.cost_micros is None:
            values["cost_day"] = held.created_at[:10]
    if new.status is not None and (new.status != held.status or values):
        values |= _move(held, new.status, now)
    money, warnings = _price(db, held, new, currency, is_back=held.deleted_at is not None)
    values |= money
    return Planned(held, _leave_equal_out(held, values), warnings)


def plan_delete(held: HeldConversion, now: str) -> Planned:
    """Say what deleting changes."""
    if held.deleted_at is not None:
        raise UnclearTargetError(
            f"the conversion {describe_held(held)} of click {held.subid!r} was deleted at"
            f" {held.deleted_at} already"
        )
    values: dict[str, Any] = {"deleted_at": now}
    if held.status != Status.REJECTED:
        values |= _move(held, Status.REJECTED, now)
    # What counts nowhere waits for no rate.
    if held.payout_micros is None:
        values["amount_day"] = None
    if held.cost_micros is None:
        values["cost_day"] = None
    return Planned(held, _leave_equal_out(held, values))


def _leave_equal_out(held: HeldConversion, values: Mapping[str, Any]) -> dict[str, Any]:
    missing = object()
    return {name: value for name, value in values.items() if getattr(held, name, missing) != value}


def _move(held: HeldConversion, status: Status, now: str) -> dict[str, Any]:
    values: dict[str, Any] = {"status": status.value}
    if status != held.status:
        values["previous_status"] = held.status
        # No network's word gave it this status.
        values["original_status"] = None
    if status is Status.LEAD:
        values["sale_at"] = None
    elif status in MONEY and held.sale_at is None:
        values["sale_at"] = now
    return values


def _price(
    db: Storage, held: HeldConversion, new: NewValues, tracker_currency: str, *, is_back: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Convert the amount at the rate of the day on which the conversion's own was received."""
    waits_again = is_back and held.payout_micros is None and held.currency is not None
    if new.amount is None and new.currency is None and not waits_again:
        return {}, ()
    amount = new.amount
    if amount is None:
        if held.amount_micros is None:
            raise UnclearTargetError("the conversion has no amount: say --payout with --currency")
        amount = from_micros(held.amount_micros)
    code = new.currency or held.currency or tracker_currency
    day = date.fromisoformat(held.amount_day or held.created_at[:10])
    if code == tracker_currency:
        rate: Rate | None = Rate(Decimal(1), day, SAME_CURRENCY)
    elif code in ISO_CODES or db.has_rate_of(code):
        rate = db.find_rate(code, day)
    else:
        raise UnclearTargetError(
            f"currency {code!r} is no code of ISO 4217, and no rate set by hand names it:"
            f" `postback rates set {code} RATE` first"
        )
    unpriced = Priced(amount, code, day, None, None)
    priced = unpriced if rate is None else price_at(unpriced, rate)
    if priced.worth is None:
        what = "is at hand" if rate is None else "fits so large an amount"
        return amount_columns(priced), (f"no rate for {code} {what}: converted when there is one",)
    return amount_columns(priced), ()


def write(db: Storage, planned: Planned, reason: str, now: datetime) -> None:
    """Write a change: a row of the log, the conversion, and a row of its history."""
    is_deletion = planned.values.get("deleted_at") is not None
    at, held = utc_text(now), planned.held
    done = "deleted" if is_deletion else "corrected"
    row = PostbackRow(
        received_at=at,
        source="operator",
        method=None,
        remote_addr=None,
        query=_build_query(planned, done),
        subid=held.subid,
        tid=held.tid,
        original_status=None,
        verdict=Verdict.UPDATED.value,
        reason=f"{done} by an operator: {reason}",
        warnings="[]",
        conversion_id=held.id,
        network=None,
    )
    change = "deleted" if is_deletion else "operator"
    write_correction(db.db, row, {**planned.values, "updated_at": at}, change, reason)


def _build_query(planned: Planned, done: str) -> str:
    """Write what was said as a query; `operator=` makes it none that a network sends."""
    becomes = planned.becomes
    fields = {"subid": becomes.subid, "tid": becomes.tid, "operator": done}
    if done == "corrected":
        fields["status"] = becomes.status
        if "amount_micros" in planned.values or "currency" in planned.values:
            assert becomes.amount_micros is not None
            fields["payout"] = decimal_text(from_micros(becomes.amount_micros))
            fields["currency"] = becomes.currency or ""
    return urlencode({name: value for name, value in fields.items() if value})
