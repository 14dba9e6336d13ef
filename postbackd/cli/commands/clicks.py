"""`postback clicks`: clicks imported from a file, and listed."""

import argparse

from postbackd.cli import output
from postbackd.cli.commands import click_import
from postbackd.cli.context import load_keyless, reading
from postbackd.cli.options import (
    FORMATS,
    Subparsers,
    add_command,
    add_family,
    add_json,
    add_limit,
    add_since,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.reports.listing import Row, RowFilter

COLUMNS = (
    Column("time", Kind.TIME),
    Column("subid"),
    Column("campaign"),
    Column("offer"),
    Column("cost_model", Kind.WORD),
    Column("source"),
    Column("external_id"),
    Column("cost", Kind.MONEY),
    Column("sub_ids"),
)
NOTHING = "No such click."


def add_parser(subparsers: Subparsers) -> None:
    """Add `clicks import` and `clicks list`."""
    family = add_family(subparsers, "clicks", "clicks, which postbacks refer to")
    click_import.add_parser(family)
    listing = add_command(
        family,
        "list",
        run_list,
        "show clicks, the newest last",
        "postback clicks list --since 2h",
        more=f"The time is the click's own, else the time at which it was stored; UTC.\n{FORMATS}",
    )
    listing.add_argument("--subid", help="only this click")
    add_since(listing)
    add_limit(listing)
    add_json(listing)


def run_list(args: argparse.Namespace) -> int:
    """Show the clicks."""
    with reading(load_keyless(args)) as questions:
        wanted = RowFilter() if args.subid is None else RowFilter().where("subid", [args.subid])
        wanted = wanted.between("coalesce(clicked_at, created_at)", args.since, None)
        rows = questions.list_clicks(wanted, args.limit)
        if args.json:
            output.print_json(rows)
        else:
            output.print_table(COLUMNS, map(_build_cells, rows), NOTHING)
    return 0


def _build_cells(row: Row) -> list[str]:
    return [
        row["clicked_at"] or row["created_at"],
        row["subid"],
        row["campaign"] or "",
        row["offer"] or "",
        row["cost_model"] or "",
        row["source"] or "",
        row["external_id"] or "",
        "" if row["cost"] is None else f"{row['cost']} {row['cost_currency']}",
        " ".join(f"{name}={value}" for name, value in row["sub_ids"].items()),
    ]
