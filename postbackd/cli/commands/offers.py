"""`postback offers`: which offers there are, and which of them allow rebills."""

import argparse

from postbackd.cli import output
from postbackd.cli.context import load_keyless, reading, writing
from postbackd.cli.options import FORMATS, Subparsers, add_command, add_family, add_json, read_name
from postbackd.cli.sanitize import Column, Kind
from postbackd.config.settings import Settings
from postbackd.reports.listing import Row

COLUMNS = (Column("offer"), Column("rebills", Kind.WORD))
NOTHING = "No offer is known yet: they come with clicks, or with `postback offers set`."


def add_parser(subparsers: Subparsers) -> None:
    """Add `offers set` and `offers list`."""
    family = add_family(subparsers, "offers", "offers, and whether they allow rebills")
    setting = add_command(
        family,
        "set",
        run_set,
        "say whether further sales of an offer's clicks count as rebills",
        'postback offers set "Slim Tea" --allow-rebills',
        more="An unknown offer is created. Offers that were never set follow `rebills` below"
        " [postback] in the\nconfig.",
    )
    setting.add_argument("name", metavar="NAME", type=read_name)
    setting.add_argument(
        "--allow-rebills",
        action=argparse.BooleanOptionalAction,
        required=True,
        help="whether further sales with a tid of their own are recorded",
    )
    listing = add_command(
        family, "list", run_list, "show the offers", "postback offers list", more=FORMATS
    )
    add_json(listing)


def run_set(args: argparse.Namespace) -> int:
    """Set an offer's permission."""
    with writing(load_keyless(args)) as storage, storage.transaction():
        is_new = storage.set_offer(args.name, allow_rebills=args.allow_rebills)
    permission = "allows rebills" if args.allow_rebills else "does not allow rebills"
    output.print_line(f"The {'new ' if is_new else ''}offer {args.name!r} {permission} now.")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Show the offers."""
    settings = load_keyless(args)
    with reading(settings) as questions:
        rows = questions.list_offers()
        if args.json:
            output.print_json(
                {**row, "allow_rebills": _find_permission(row, settings)} for row in rows
            )
        else:
            cells = ((row["name"], _describe_permission(row, settings)) for row in rows)
            output.print_table(COLUMNS, cells, NOTHING)
    return 0


def _find_permission(offer: Row, settings: Settings) -> bool:
    said: bool | None = offer["allow_rebills"]
    return settings.rebills if said is None else said


def _describe_permission(offer: Row, settings: Settings) -> str:
    permission = "yes" if _find_permission(offer, settings) else "no"
    return f"{permission} (not set)" if offer["allow_rebills"] is None else permission
