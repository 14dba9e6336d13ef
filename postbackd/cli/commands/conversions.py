"""`postback conversions`: the conversions, with their money and history."""

import argparse
from collections.abc import Iterator, Sequence

from postbackd.cli import output
from postbackd.cli.commands import conversion_changes
from postbackd.cli.context import load_keyless, reading
from postbackd.cli.options import (
    FORMATS,
    Subparsers,
    add_command,
    add_json,
    add_limit,
    add_since,
    add_until,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.db.rows import to_json
from postbackd.reports.listing import CONVERSION_NAMES, Row, RowFilter
from postbackd.reports.queries import Questions
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


def add_parser(subparsers: Subparsers) -> None:
    """Add `conversions`."""
    parser = add_command(
        subparsers,
        "conversions",
        run,
        "show conversions, the newest last; set or delete one",
        "postback conversions --status sale --since 2026-01-01 --csv > sales.csv",
        more=f"Amounts are as sent, payout and cost are in the tracker's currency.\n{FORMATS}",
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
    add_since(parser)
    add_until(parser)
    add_limit(parser)
    parser.add_argument(
        "--history", action="store_true", help="show every change beneath its conversion"
    )
    parser.add_argument(
        "--deleted",
        action="store_true",
        help="only those that `conversions delete` has deleted, which are shown nowhere else",
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
    with reading(load_keyless(args)) as questions:
        list_them = (
            questions.list_deleted_conversions if args.deleted else questions.list_conversions
        )
        rows = list_them(read_wanted(args), args.limit)
        if args.csv:
            names = (*CONVERSION_NAMES, *(("deleted_at",) if args.deleted else ()))
            output.print_csv(names, map(_build_csv_row, rows), EXACT_NAMES)
        elif args.json:
            output.print_json(_with_history(questions, rows) if args.history else rows)
        else:
            _print_table(questions, rows, has_history=args.history)
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
    for name in ("subid", "offer", "campaign"):
        if (value := getattr(args, name)) is not None:
            wanted = wanted.where(name, [value])
    return wanted.between("created_at", args.since, args.until)


def _with_history(questions: Questions, rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        yield {**row, "history": questions.list_history(row["id"])}


def _print_table(questions: Questions, rows: Iterator[Row], *, has_history: bool) -> None:
    shown = _with_changes(questions, rows) if has_history else rows
    if output.is_terminal():
        output.print_table(COLUMNS, map(_build_cells, shown), NOTHING)
        return
    names = NAMES_OF_CHANGES if has_history else NAMES
    lines = ([row.get(name) or "" for name in names] for row in shown)
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
    return [
        to_json(value) if isinstance(value, dict) else None if value is None else str(value)
        for value in row.values()
    ]
