"""`postback purge`: delete rows older than a given age."""

import argparse
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from postbackd.bulk.piece_size import PieceSize
from postbackd.cli import output
from postbackd.cli.context import load_keyless, writing
from postbackd.cli.options import (
    Subparsers,
    add_command,
    add_json,
    add_zone,
    check_time,
    settle_times,
)
from postbackd.config.settings import Settings
from postbackd.db.rows import utc_text
from postbackd.db.sqlite import purge as purging
from postbackd.db.sqlite.purge import Age, Purge
from postbackd.zones import write_in_zone
from storage import Storage

# As for an import of clicks: the contract's limit for the write lock is 100 ms.
AIM_SECONDS = 0.03
FIRST_PIECE_ROWS = 200
SMALLEST_PIECE_ROWS = 50
LARGEST_PIECE_ROWS = 10_000
LARGEST_GROWTH = 1.5
PIECE_SIZE = PieceSize(AIM_SECONDS, SMALLEST_PIECE_ROWS, LARGEST_PIECE_ROWS, LARGEST_GROWTH)

# A waiting process tries the lock every 0.3 ms: the service gets it during this pause.
PAUSE_SECONDS = 0.005

# By then the write-ahead log has some two thousand pages, after which SQLite would checkpoint it
# itself.
PIECES_A_CHECKPOINT = 8


def add_parser(subparsers: Subparsers) -> None:
    """Add `purge`."""
    parser = add_command(
        subparsers,
        "purge",
        run,
        "delete old rows of the postback log, and with options conversions and clicks",
        "postback purge --older-than 400d --dry-run",
        more="The service runs meanwhile. Reports and conversions stay as they are, unless"
        " --conversions is given.\nA parked postback that may still find its click stays, and so"
        " does the newest row.\nThe free space in the file is used again; to make the file smaller,"
        " stop the service and run\n`sqlite3 postback.db VACUUM`.",
    )
    parser.add_argument(
        "--older-than",
        type=check_time,
        required=True,
        metavar="AGE",
        help="400d, 60w, or a time: 2026-01-31, 2026-01-31T12:00",
    )
    add_zone(parser)
    parser.add_argument(
        "--conversions",
        action="store_true",
        help="conversions too, with their history, if no later postback was about them; they leave"
        " the reports, and one that a network sends again counts again",
    )
    parser.add_argument(
        "--clicks",
        action="store_true",
        help="clicks without a conversion too; a later postback for one of them is parked",
    )
    parser.add_argument("--dry-run", action="store_true", help="count, and delete nothing")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Delete, or count."""
    settings = load_keyless(args)
    zone = settle_times(args, settings)
    age = _read_age(args, settings)
    chosen = list(_choose(args))
    counts: dict[str, int] = {}
    with writing(settings, makes=False) as db:
        for purge in chosen:
            counts[purge.table] = (
                purge.count_old(db.db, age) if args.dry_run else _purge(db, purge, age)
            )
        free = purging.measure_free(db.db)
    if args.json:
        numbers = {"dry_run": args.dry_run, "before": age.before, **counts, "free_bytes": free}
        output.print_json([numbers])
    else:
        before = write_in_zone(age.before, zone)
        output.print_line(_describe(counts, before, free, is_dry=args.dry_run))
    return 0


def _read_age(args: argparse.Namespace, settings: Settings) -> Age:
    parked_since = datetime.now(UTC) - timedelta(days=settings.park_days)
    return Age(args.older_than, utc_text(parked_since))


def _choose(args: argparse.Namespace) -> Iterator[Purge]:
    # In this order: a conversion can go when its postbacks are gone, a click when it has no
    # conversion.
    yield purging.POSTBACKS
    if args.conversions:
        yield purging.CONVERSIONS
    if args.clicks:
        yield purging.CLICKS


def _purge(db: Storage, purge: Purge, age: Age) -> int:
    """Delete piece by piece; each piece holds the write lock for a moment."""
    rows, deleted, pieces = FIRST_PIECE_ROWS, 0, 0
    last = ("", 0)
    while (chunk := purge.list_old(db.db, age, last, rows)).ids:
        with db.transaction():
            # Measured from here: the wait for the lock delays no other process.
            started = time.monotonic()
            deleted += purge.delete(db.db, age, chunk.ids)
        rows = PIECE_SIZE.adapt(rows, time.monotonic() - started)
        last = chunk.last
        pieces += 1
        if pieces % PIECES_A_CHECKPOINT == 0:
            db.checkpoint()
        time.sleep(PAUSE_SECONDS)
    return deleted


def _describe(counts: dict[str, int], before: str, free: int, *, is_dry: bool) -> str:
    numbers = _join([f"{count} {table}" for table, count in counts.items()])
    if is_dry:
        return f"Before {before} there are {numbers}: nothing was deleted."
    return (
        f"Deleted from before {before}: {numbers}. {free / 1e6:.1f} MB in the file are free"
        " for new rows."
    )


def _join(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
