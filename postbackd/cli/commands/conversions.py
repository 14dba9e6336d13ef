"""`postback conversions`: the conversions, with their money and history."""

import argparse
import re
from collections.abc import Iterator, Sequence

from postbackd.cli import output
from postbackd.cli.commands import conversion_changes
from postbackd.cli.context import load_keyless, reading
from postbackd.cli.listed import Listed, build_sub_id_cells
from postbackd.cli.options import (
    FORMATS,
    Subparsers,
    add_command,
    add_json,
    add_limit,
    add_since,
    add_until,
    add_zone,
    settle_times,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.db.rows import SUB_ID_NAMES, to_json
from postbackd.reports.listing import CONVERSION_NAMES, Row, RowFilter
from postbackd.reports.queries import Questions
from postbackd.zones import put_in_zone
from statuses import Status

NOTHING = "No such conversion."

# Numbers and times that we wrote: no spreadsheet can take them for a formula.
EXACT_NAMES = frozenset(
    {"id", "amount", "payout", "rate", "rate_day", "cost", "created_at", "updated_at", "sale_at"}
)


# On a terminal the other values are in a sentence: eleven columns fit nowhere.
COLUMNS = (
    Column("time", Kind.TIME),
    Column("subid"),
    Column("tid"),
    Column("status", Kind.WORD),
    Column("amount", Kind.MONEY),
    Column("payout", Kind.MONEY),
    Column("details", Kind.SENTENCE),
)
DETAILS = ("offer", "campaign", "network", "cost")

# In a pipe each value has a column of its own; those of a change have the same titles.
NAMES = (
    "created_at",
    "subid",
    "tid",
    "status",
    "amount",
    "currency",
    "payout",
    "cost",
    "offer",
    "campaign",
    "network",
)
NAMES_OF_CHANGES = ("at", "change", *NAMES[1:], "reason")

_SUB_ID = re.compile(r"(?:sub_id_)?([1-9][0-9]?)=(.*)", re.DOTALL)


def add_parser(subparsers: Subparsers) -> None:
    """Add `conversions`."""
    parser = add_command(
        subparsers,
        "conversions",
        run,
        "show conversions, the newest last; set or delete one",
        "postback conversions --status sale --since 2026-01-01 --csv > sales.csv\n"
        "  postback conversions --network alfa --sub-id 2=banner --since yesterday",
        more="Amounts are as sent, payout and cost are in the tracker's currency. --csv has a"
        f" column for\neach of the sub ids 1 to 30; --json has UTC whatever the zone.\n{FORMATS}",
    )
    parser.add_argument("--subid", help="only conversions of this click")
    parser.add_argument(
        "--status",
        action="append",
        choices=[status.value for status in Status],
        help="only conversions with this status; may be given several times",
    )
    parser.add_argument("--offer", help="only conversions of this offer")
    parser.add_argument("--campaign", help="only conversions of this campaign")
    parser.add_argument("--network", help="only conversions of the network that signs from=NETWORK")
    parser.add_argument(
        "--tid", help="only conversions with this transaction id; '' for those without"
    )
    parser.add_argument(
        "--sub-id",
        dest="sub_ids",
        action="append",
        type=_read_sub_id,
        default=[],
        metavar="N=VALUE",
        help="only conversions whose sub_id_N is VALUE; can be repeated: of one N any VALUE must"
        " fit, of several N all",
    )
    add_since(parser)
    add_until(parser)
    add_zone(parser)
    add_limit(parser)
    parser.add_argument(
        "--history", action="store_true", help="show every change beneath its conversion"
    )
    parser.add_argument(
        "--deleted",
        action="store_true",
        help="only conversions that `conversions delete` has deleted; no other list shows them",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="CSV (RFC 4180) for spreadsheets")
    add_json(form)
    family = parser.add_subparsers(dest="subcommand", metavar="set|delete")
    conversion_changes.add_parsers(family)


def run(args: argparse.Namespace) -> int:
    """Show the conversions."""
    if args.csv and args.history:
        args.parser.error("--history goes with --json or a table, not with --csv")
    settings = load_keyless(args)
    zone = settle_times(args, settings)
    wanted = read_wanted(args)
    with reading(settings) as questions:
        list_them, count_them = (
            (questions.list_deleted_conversions, questions.count_deleted_conversions)
            if args.deleted
            else (questions.list_conversions, questions.count_conversions)
        )
        listed = Listed(args, lambda: count_them(wanted))
        rows = listed.pass_on("conversions", list_them(wanted, listed.limit))
        if args.csv:
            names = (*CONVERSION_NAMES, *(("deleted_at",) if args.deleted else ()), *SUB_ID_NAMES)
            in_zone = (put_in_zone(row, zone) for row in rows)
            output.print_csv(names, map(_build_csv_row, in_zone), EXACT_NAMES)
        elif args.json:
            output.print_json(_with_history(questions, rows) if args.history else rows)
        else:
            shown = _with_changes(questions, rows) if args.history else rows
            _print_table((put_in_zone(row, zone) for row in shown), has_history=args.history)
            listed.print_footnote()
            _mention_deleted(questions, args)
    return 0


def _mention_deleted(questions: Questions, args: argparse.Namespace) -> None:
    """Say on a terminal, to those who ask for one click, that something of it is left out."""
    if args.subid is None or args.deleted or not output.is_terminal():
        return
    if any(questions.list_deleted_conversions(read_wanted(args), 1)):
        output.print_footnote("An operator has deleted some: --deleted --history shows them.")


def read_wanted(args: argparse.Namespace) -> RowFilter:
    """Build the filter that the options ask for."""
    wanted = RowFilter().where("status", args.status)
    for name in ("subid", "tid", "offer", "campaign", "network"):
        if (value := getattr(args, name)) is not None:
            wanted = wanted.where(name, [value])
    for name in dict(args.sub_ids):
        values = [value for other, value in args.sub_ids if other == name]
        # CAST: other programs write numbers into the clicks table, too.
        wanted = wanted.where(f"CAST(sub_ids ->> '{name}' AS TEXT)", values)
    return wanted.between("created_at", args.since, args.until)


def _with_history(questions: Questions, rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        yield {**row, "history": questions.list_history(row["id"])}


def _print_table(rows: Iterator[Row], *, has_history: bool) -> None:
    if output.is_terminal():
        output.print_table(COLUMNS, map(_build_cells, rows), NOTHING)
        return
    names = NAMES_OF_CHANGES if has_history else NAMES
    lines = ([row.get(name) or "" for name in names] for row in rows)
    output.print_table([Column(name) for name in names], lines)


def _with_changes(questions: Questions, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield each conversion, then its changes, the oldest first."""
    for row in rows:
        yield {**row, "at": row["created_at"]}
        for change in questions.list_history(row["id"]):
            yield {**change, "subid": row["subid"], "created_at": change["at"]}


def _build_cells(row: Row) -> Sequence[str]:
    amount = "" if row["amount"] is None else f"{row['amount']} {row['currency'] or '?'}"
    details = [row["change"]] if "change" in row else []
    if row.get("deleted_at"):
        details.append(f"deleted {row['deleted_at']}")
    details += [f"{name} {row[name]}" for name in DETAILS if row.get(name)]
    details += [row["reason"]] if row.get("reason") else []
    return (
        row["created_at"],
        row["subid"],
        row["tid"],
        row["status"],
        amount,
        row["payout"] or "",
        ", ".join(details),
    )


def _build_csv_row(row: Row) -> list[str | None]:
    cells = [
        to_json(value) if isinstance(value, dict) else None if value is None else str(value)
        for value in row.values()
    ]
    return [*cells, *build_sub_id_cells(row)]


def _read_sub_id(text: str) -> tuple[str, str]:
    found = _SUB_ID.fullmatch(text)
    name = found and f"sub_id_{found[1]}"
    if found is None or name not in SUB_ID_NAMES:
        raise argparse.ArgumentTypeError(f"{text!r} is no N=VALUE with N from 1 to 30; write 2=x")
    return name, found[2]
