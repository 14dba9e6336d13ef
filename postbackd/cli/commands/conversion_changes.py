"""`postback conversions set` and `delete`: what an operator knows better than a network."""

import argparse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from postbackd.cli import output
from postbackd.cli.context import RefusedError, load_keyless, writing
from postbackd.cli.options import Subparsers, add_command, add_json, read_code
from postbackd.cli.sanitize import Column, Kind
from postbackd.config.settings import Settings
from postbackd.db.corrections import HeldConversion
from postbackd.db.rows import utc_text
from postbackd.intake import operator_changes
from postbackd.intake.operator_changes import (
    REASON_MAX_CHARACTERS,
    NewValues,
    Planned,
    Target,
    UnclearTargetError,
    find_target,
    plan_delete,
    plan_set,
)
from postbackd.intake.query import PHP_WHITE_SPACE
from postbackd.masking import KeyMask
from rates import micros_text, read_amount
from statuses import Status
from storage import Storage

COLUMNS = (Column("what", Kind.WORD), Column("was"), Column("becomes"))

MORE_OF_SET = """\
What is not said stays. The amount is converted at the rate of the day on which the conversion's own
was received. The rules about moves bind networks, not operators: any status may be set, and one
that was deleted comes back with the --status that it is to have. A row of the conversion's history
(change: operator) and a row of the postback log (source: operator) say what was set, and why.
A postback that came before does not undo it when it is sent again; one that says something new
counts as always. Look with --dry-run first."""

MORE_OF_DELETE = """\
It leaves every report and every list but `postback conversions --deleted`; its history and its
postbacks stay. Whatever a network sends about it from then on is refused, and stands in the
postback log; `postback conversions set` brings it back. Look with --dry-run first."""


def add_parsers(family: Subparsers) -> None:
    """Add `conversions set` and `conversions delete`."""
    setting = add_command(
        family,
        "set",
        run_set,
        "set a conversion's status or amount by hand, with the reason in its history",
        "postback conversions set --subid c1 --tid t1 --status rejected --reason"
        ' "fraud, mail of the network of 24 November" --dry-run',
        more=MORE_OF_SET,
    )
    _add_target(setting)
    setting.add_argument("--status", choices=[status.value for status in Status])
    setting.add_argument("--payout", type=_read_amount, metavar="AMOUNT", help="such as 12.50")
    setting.add_argument(
        "--currency",
        type=read_code,
        help="that of the amount (default: the one it has, else the tracker's)",
    )
    _add_rest(setting)
    deleting = add_command(
        family,
        "delete",
        run_delete,
        "delete a conversion that was none, with the reason in its history",
        'postback conversions delete --subid c1 --reason "our own test" --dry-run',
        more=MORE_OF_DELETE,
    )
    _add_target(deleting)
    _add_rest(deleting)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subid", required=True, help="the click of the conversion")
    parser.add_argument(
        "--tid", help="its transaction id ('': the one without); needed where there are several"
    )


def _add_rest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", type=_read_reason, required=True, help="why; kept for good")
    parser.add_argument(
        "--dry-run", action="store_true", help="only show what would change; write nothing"
    )
    add_json(parser)


def run_set(args: argparse.Namespace) -> int:
    """Set something of a conversion."""
    if args.status is None and args.payout is None and args.currency is None:
        args.parser.error("say what to set: --status, --payout or --currency")
    status = None if args.status is None else Status(args.status)
    new = NewValues(status, args.payout, args.currency)
    settings = load_keyless(args)

    def plan(db: Storage, held: HeldConversion, now: str) -> Planned:
        return plan_set(db, held, new, settings.currency, now)

    return _change(args, settings, plan)


def run_delete(args: argparse.Namespace) -> int:
    """Delete a conversion."""
    return _change(args, load_keyless(args), lambda db, held, now: plan_delete(held, now))


def _change(
    args: argparse.Namespace,
    settings: Settings,
    plan: Callable[[Storage, HeldConversion, str], Planned],
) -> int:
    now = datetime.now(UTC)
    reason = KeyMask(settings.secrets()).hide(args.reason)
    try:
        with writing(settings, makes=False) as db, db.transaction():
            held = find_target(db, Target(args.subid, args.tid))
            planned = plan(db, held, utc_text(now))
            if planned.values and not args.dry_run:
                operator_changes.write(db, planned, reason, now)
    except UnclearTargetError as error:
        raise RefusedError(str(error)) from error
    _show(planned, settings, reason, args)
    return 0


def _show(planned: Planned, settings: Settings, reason: str, args: argparse.Namespace) -> None:
    was, becomes = (_describe(each, settings.currency) for each in (planned.held, planned.becomes))
    if args.json:
        ids = {"id": planned.held.id, "subid": planned.held.subid, "tid": planned.held.tid}
        told = {"was": was, "becomes": becomes, "warnings": list(planned.warnings)}
        is_done = bool(planned.values) and not args.dry_run
        output.print_json([{**ids, "is_written": is_done, "reason": reason, **told}])
        return
    output.print_table(COLUMNS, _list_differences(was, becomes))
    for warning in planned.warnings:
        output.print_error(warning)
    output.print_summary(_summarize(planned, is_dry=args.dry_run), is_alone=False)


def _summarize(planned: Planned, *, is_dry: bool) -> str:
    what = f"Conversion {planned.held.id} of click {planned.held.subid!r}"
    done = "deleted" if planned.values.get("deleted_at") else "changed"
    if not planned.values:
        return f"{what} is so already: there is nothing to change."
    if is_dry:
        return f"{what} would be {done}; nothing was written (--dry-run)."
    return f"{what} was {done}."


def _list_differences(was: dict[str, Any], becomes: dict[str, Any]) -> Iterator[list[str]]:
    for name, value in becomes.items():
        if value != was[name]:
            yield [name, str(was[name] or "-"), str(value or "-")]


def _describe(held: HeldConversion, currency: str) -> dict[str, Any]:
    """Give what people look at; revenue and hold as the report counts them."""
    payout = None if held.payout_micros is None else micros_text(held.payout_micros)
    counts = "0" if payout is None else payout
    return {
        "status": "deleted" if held.deleted_at else held.status,
        "amount": None if held.amount_micros is None else micros_text(held.amount_micros),
        "currency": held.currency,
        "payout": payout,
        "rate": held.rate,
        "rate_day": held.rate_day,
        f"revenue_{currency}": counts if held.status in {"sale", "rebill"} else "0",
        f"hold_{currency}": counts if held.status == "lead" else "0",
        "sale_at": held.sale_at,
    }


def _read_amount(text: str) -> Decimal:
    amount = read_amount(text)
    if amount is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount; write digits such as 12.50")
    return amount


def _read_reason(text: str) -> str:
    reason = text.strip(PHP_WHITE_SPACE)
    if not reason:
        raise argparse.ArgumentTypeError("the reason is empty: say why, for those who ask later")
    if len(reason) > REASON_MAX_CHARACTERS:
        raise argparse.ArgumentTypeError(
            f"the reason has {len(reason)} characters, more than {REASON_MAX_CHARACTERS}"
        )
    return reason
