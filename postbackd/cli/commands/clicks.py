"""`postback clicks`: clicks imported from a file, and listed."""

import argparse
from datetime import tzinfo

from postbackd.cli import output
from postbackd.cli.commands import click_import
from postbackd.cli.context import load_keyless, reading
from postbackd.cli.listed import Listed, build_sub_id_cells
from postbackd.cli.options import (
    FORMATS,
    Subparsers,
    add_command,
    add_family,
    add_json,
    add_limit,
    add_since,
    add_until,
    add_zone,
    settle_times,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.db.rows import SUB_ID_NAMES, to_json
from postbackd.reports.listing import CLICK_NAMES, Row, RowFilter
from postbackd.zones import put_in_zone, write_in_zone

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

CSV_NAMES = (*CLICK_NAMES, *SUB_ID_NAMES)
# `clicked_at` may be written by other programs.
EXACT_NAMES = frozenset({"id", "created_at", "cost"})


def add_parser(subparsers: Subparsers) -> None:
    """Add `clicks import` and `clicks list`."""
    family = add_family(subparsers, "clicks", "clicks, which postbacks refer to")
    click_import.add_parser(family)
    listing = add_command(
        family,
        "list",
        run_list,
        "show clicks, the newest last",
        "postback clicks list --since 2h\n"
        "  postback clicks list --since yesterday --csv > clicks.csv",
        more="The time is the click's own, else the time at which it was stored. --csv has a column"
        f" for each\nof the sub ids 1 to 30; --json has UTC whatever the zone.\n{FORMATS}",
    )
    listing.add_argument("--subid", help="only this click")
    add_since(listing)
    add_until(listing)
    add_zone(listing)
    add_limit(listing)
    form = listing.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="CSV (RFC 4180) for spreadsheets")
    add_json(form)


def run_list(args: argparse.Namespace) -> int:
    """Show the clicks."""
    settings = load_keyless(args)
    zone = settle_times(args, settings)
    wanted = RowFilter() if args.subid is None else RowFilter().where("subid", [args.subid])
    wanted = wanted.between("coalesce(clicked_at, created_at)", args.since, args.until)
    with reading(settings) as questions:
        listed = Listed(args, lambda: questions.count_clicks(wanted))
        rows = listed.pass_on("clicks", questions.list_clicks(wanted, listed.limit))
        if args.json:
            output.print_json(rows)
        elif args.csv:
            output.print_csv(CSV_NAMES, (_build_csv_row(row, zone) for row in rows), EXACT_NAMES)
        else:
            output.print_table(COLUMNS, (_build_cells(row, zone) for row in rows), NOTHING)
            listed.print_footnote()
    return 0


def _build_csv_row(row: Row, zone: tzinfo) -> list[str | None]:
    known = {**put_in_zone(row, zone), "id": str(row["id"]), "sub_ids": to_json(row["sub_ids"])}
    return [*known.values(), *build_sub_id_cells(row)]


def _build_cells(row: Row, zone: tzinfo) -> list[str]:
    return [
        write_in_zone(row["clicked_at"] or row["created_at"], zone),
        row["subid"],
        row["campaign"] or "",
        row["offer"] or "",
        row["cost_model"] or "",
        row["source"] or "",
        row["external_id"] or "",
        "" if row["cost"] is None else f"{row['cost']} {row['cost_currency']}",
        " ".join(f"{name}={value}" for name, value in row["sub_ids"].items()),
    ]
