"""`postback backup`: a consistent copy of the database while the service runs."""

import argparse
import os
from pathlib import Path

from postbackd.cli import output
from postbackd.cli.context import RefusedError, load_keyless
from postbackd.cli.options import Subparsers, add_command, add_json
from postbackd.db.sqlite.backup import Copy, CopyError, copy_database

# The tables whose rows are counted in the message.
TABLES = ("postbacks", "conversions", "clicks")


def add_parser(subparsers: Subparsers) -> None:
    """Add `backup`."""
    parser = add_command(
        subparsers,
        "backup",
        run,
        "copy the database while the service runs",
        'postback backup "/backups/postback-$(date +%F).db"',
        more="The copy has everything that was acknowledged before the command began. It is"
        " verified, and gets its\nname only when it is whole. It has no key, but all revenue: its"
        " mode is 0600.\n`postback restore FILE` puts it back.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the copy; must not be there yet")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Copy the database."""
    source = load_keyless(args).db_path
    if not source.exists():
        raise RefusedError(f"there is no database yet: looked for {str(source)!r}")
    target = Path(os.path.abspath(args.file))
    try:
        with output.progress("backup", None) as bar:
            copy = copy_database(source, target, bar.advance, replaces=args.force)
    except CopyError as error:
        raise RefusedError(str(error)) from error
    _print_copy(copy, as_json=args.json)
    return 0


def _print_copy(copy: Copy, *, as_json: bool) -> None:
    counts = {name: copy.rows.get(name, 0) for name in TABLES}
    if as_json:
        found = {"file": str(copy.path), "bytes": copy.bytes, "schema": copy.version}
        output.print_json([{**found, **counts, "last_postback_id": copy.last_postback_id}])
        return
    numbers = ", ".join(f"{count} {name}" for name, count in counts.items())
    output.print_line(f"{copy.path}: {copy.bytes / 1e6:.1f} MB, {numbers}; verified")
