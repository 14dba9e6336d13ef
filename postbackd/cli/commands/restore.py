"""`postback restore`: put a copy in the database's place while the service runs."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from postbackd.cli import output
from postbackd.cli.commands.backup import TABLES
from postbackd.cli.context import RefusedError, load_keyless
from postbackd.cli.options import Subparsers, add_command, add_json
from postbackd.db.sqlite.restore import Restored, RestoreError, restore


def add_parser(subparsers: Subparsers) -> None:
    """Add `restore`."""
    parser = add_command(
        subparsers,
        "restore",
        run,
        "put a copy in the database's place while the service runs",
        "postback restore /backups/postback-2026-11-22.db --dry-run",
        more="FILE is verified, copied beside the database, brought up to date and renamed over it;"
        " FILE stays\nwhere it is. The previous database stays beside it under a name that is"
        " printed. The service answers\n503 for a moment and continues with the copy. Do not copy a"
        " file over the database by `cp`: a running\nservice notices it and answers 503 from then"
        " on. Where that has happened, FILE may be the database\nitself, to continue with the rows"
        " that are left in it.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a copy written by `backup`")
    parser.add_argument("--dry-run", action="store_true", help="only verify FILE")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Put the copy in place."""
    settings = load_keyless(args)
    source, path = args.file.absolute(), settings.db_path
    try:
        with output.progress("restore", None) as bar:
            restored = restore(
                source,
                path,
                settings.currency,
                datetime.now(UTC),
                bar.advance,
                is_dry=args.dry_run,
            )
    except RestoreError as error:
        raise RefusedError(str(error)) from error
    if args.json:
        _print_json(restored, source, path, is_dry=args.dry_run)
    else:
        _print_restored(restored, source, path, is_dry=args.dry_run)
    return 0


def _print_json(restored: Restored, source: Path, path: Path, *, is_dry: bool) -> None:
    found = {
        "file": str(source),
        "database": str(path),
        "dry_run": is_dry,
        "bytes": restored.bytes,
        "schema": restored.version,
        **{name: restored.rows.get(name, 0) for name in TABLES},
        "newest_postback_at": restored.newest_at,
        "warnings": restored.warnings,
        "kept": restored.kept and str(restored.kept),
        "kept_log": restored.kept_log and str(restored.kept_log),
        "newer_postbacks": restored.newer,
    }
    output.print_json([found])


def _print_restored(restored: Restored, source: Path, path: Path, *, is_dry: bool) -> None:
    for warning in restored.warnings:
        output.print_error(warning)
    counts = ", ".join(f"{restored.rows.get(name, 0)} {name}" for name in TABLES)
    newest = restored.newest_at or "never"
    what = f"{restored.bytes / 1e6:.1f} MB, {counts}, the newest postback of {newest}"
    if is_dry:
        output.print_line(f"{source} can be restored: {what}")
        return
    output.print_line(f"{path} is now a copy of {source}: {what}")
    kept = [str(each) for each in (restored.kept, restored.kept_log) if each]
    if kept:
        newer = f"; {restored.newer} postbacks in it came later" if restored.newer else ""
        output.print_line(f"the previous database is now {' and '.join(kept)}{newer}")
