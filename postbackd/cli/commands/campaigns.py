"""`postback campaigns`: which campaigns there are, and how their traffic is paid."""

import argparse

from postbackd.cli import output
from postbackd.cli.context import load_keyless, reading, writing
from postbackd.cli.options import FORMATS, Subparsers, add_command, add_family, add_json, read_name
from postbackd.cli.sanitize import Column, Kind
from statuses import COST_MODELS

UNKNOWN = "unknown"
COLUMNS = (Column("campaign"), Column("cost_model", Kind.WORD))
NOTHING = "No campaign is known yet: they come with clicks, or with `postback campaigns set`."


def add_parser(subparsers: Subparsers) -> None:
    """Add `campaigns set` and `campaigns list`."""
    family = add_family(subparsers, "campaigns", "campaigns, and how their traffic is paid")
    setting = add_command(
        family,
        "set",
        run_set,
        "say how a campaign's traffic is paid",
        "postback campaigns set Summer --cost-model cpc",
        more="The cost in a postback counts with cpa, revshare and unknown only.\n"
        "An unknown campaign is created.",
    )
    setting.add_argument("name", metavar="NAME", type=read_name)
    setting.add_argument("--cost-model", choices=(*COST_MODELS, UNKNOWN), required=True)
    listing = add_command(
        family, "list", run_list, "show the campaigns", "postback campaigns list", more=FORMATS
    )
    add_json(listing)


def run_set(args: argparse.Namespace) -> int:
    """Set a campaign's cost model."""
    model = None if args.cost_model == UNKNOWN else args.cost_model
    with writing(load_keyless(args)) as storage, storage.transaction():
        is_new = storage.set_campaign(args.name, model)
    made = "new " if is_new else ""
    output.print_line(f"The {made}campaign {args.name!r} has the cost model {args.cost_model} now.")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Show the campaigns."""
    with reading(load_keyless(args)) as questions:
        rows = questions.list_campaigns()
        if args.json:
            output.print_json(rows)
        else:
            cells = ((row["name"], row["cost_model"] or UNKNOWN) for row in rows)
            output.print_table(COLUMNS, cells, NOTHING)
    return 0
