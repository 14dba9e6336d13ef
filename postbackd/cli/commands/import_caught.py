"""`postback import --caught`: what nginx wrote down while the receiver could not answer, booked."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, tzinfo
from itertools import islice
from typing import Any

from postbackd.bulk.caught_file import open_plain, read_lines
from postbackd.bulk.caught_importer import (
    LEFT,
    SKIPPED,
    BookedRequest,
    CaughtImporter,
    Entry,
    RehearsedImporter,
)
from postbackd.bulk.csv_file import find_size, open_file
from postbackd.cli import output
from postbackd.cli.context import INTERRUPTED, RefusedError, load_settings, writing
from postbackd.cli.options import add_zone, settle_times
from postbackd.cli.output import Bar
from postbackd.cli.sanitize import Column, Kind
from postbackd.config.settings import Settings
from postbackd.db.rows import utc_text
from postbackd.intake.booking import read_booking_options, settle_all_due_clicks
from postbackd.intake.runtime import read_clock
from postbackd.intake.sandbox import rehearse
from postbackd.zones import write_in_zone
from rates import decimal_text
from statuses import Incoming, Verdict

COLUMNS = (
    Column("line"),
    Column("time", Kind.TIME),
    Column("subid"),
    Column("status"),
    Column("amount", Kind.MONEY),
    Column("verdict", Kind.WORD),
    Column("reason", Kind.SENTENCE),
)
NOTHING = "There is nothing in the file that is not in the database."

VERDICTS = (*(verdict.value for verdict in Verdict), LEFT, SKIPPED)

# Requests of up to 64 KiB: some megabytes.
LINES_AT_ONCE = 200

# The options that apply with --caught; all others are about lines of conversions.
_MEANT = frozenset(
    {
        "command",
        "rest",
        "caught",
        "park",
        "dry_run",
        "verbose",
        "json",
        "config",
        "tz",
        "file",
        "more_files",
    }
)

MORE = """
With --caught the files are those in which nginx stored requests while the receiver could not answer
(/var/log/nginx/postback-caught.jsonl; gzip, too). Postbacks whose click is known are booked at the
time when they came, clicks are stored, and the other requests are listed. A request that the sender
has sent again since, or that an earlier import has booked, changes nothing. Exit status 1 where a
request is not in the database."""
EXAMPLE = "\n  postback import --caught --dry-run - < /var/log/nginx/postback-caught.jsonl"


def add_caught_options(parser: argparse.ArgumentParser) -> None:
    """Add `--caught` and the options that belong to it."""
    parser.description = f"{parser.description}\n{MORE}"
    parser.epilog = f"{parser.epilog}{EXAMPLE}"
    parser.add_argument(
        "more_files", metavar="FILE", nargs="*", help="with --caught: more such files"
    )
    parser.add_argument(
        "--caught",
        action="store_true",
        help="the files are nginx's logs of requests that the receiver could not answer",
    )
    parser.add_argument(
        "--park",
        action="store_true",
        help="with --caught: also park postbacks whose click is not known, as the receiver does",
    )

    add_zone(parser, ", with --caught")


def refuse_caught_options(args: argparse.Namespace) -> None:
    """Refuse options that apply only with `--caught`."""
    if args.more_files or args.park or args.tz:
        what = "--park goes" if args.park else "--tz goes" if args.tz else "several files go"
        args.parser.error(f"{what} with --caught only")


def run_caught(args: argparse.Namespace) -> int:
    """Book the requests of the files."""
    _refuse_other_options(args)
    settings = load_settings(args)
    settle_times(args, settings)
    files = _put_in_order([args.file, *args.more_files])
    with ExitStack() as stack:
        importer = _open_importer(args, settings, stack)
        bar = stack.enter_context(output.progress("requests", _measure(files)))
        printer = _RequestPrinter(args)
        is_stopped = _import_files(files, importer, printer, bar)
    printer.close()
    return INTERRUPTED if is_stopped else int(printer.not_in > 0)


def _refuse_other_options(args: argparse.Namespace) -> None:
    for name, value in vars(args).items():
        if name not in _MEANT and value != args.parser.get_default(name):
            args.parser.error(f"--{name.replace('_', '-')} cannot be used with --caught")


def _open_importer(
    args: argparse.Namespace, settings: Settings, stack: ExitStack
) -> CaughtImporter:
    terms = read_booking_options(settings)
    if args.dry_run:
        rehearsal = stack.enter_context(rehearse(settings.db_path, terms))
        return RehearsedImporter(rehearsal, settings, read_clock, parks=args.park)
    storage = stack.enter_context(writing(settings))
    # Postbacks parked for clicks of other programs came earlier.
    settle_all_due_clicks(storage, terms, read_clock)
    stack.enter_context(storage.bulk())
    return CaughtImporter(storage, settings, parks=args.park)


def _put_in_order(files: Sequence[str]) -> Sequence[str]:
    """Sort files by their first requests: a shell's pattern lists the newest first."""
    if len(files) == 1:
        return files
    if "-" in files:
        raise RefusedError(
            "standard input cannot be combined with files:"
            " `zcat -f FILES | postback import --caught -`"
        )
    return sorted(files, key=_find_begin)


def _find_begin(file: str) -> datetime:
    with open_file(file) as source, open_plain(source) as plain:
        times = (line.caught.received_at for line in read_lines(plain) if line.caught is not None)
        return next(times, datetime.max.replace(tzinfo=UTC))


def _measure(files: Sequence[str]) -> int | None:
    total = 0
    for file in files:
        if file == "-":
            return None
        with open_file(file) as source:
            total += find_size(source) or 0
    return total


def _import_files(
    files: Sequence[str], importer: CaughtImporter, printer: "_RequestPrinter", bar: Bar
) -> bool:
    """Import all files; True where Ctrl-C ended it."""
    try:
        for entries in _read_files(files, bar):
            for piece in importer.take(entries):
                printer.print(piece)
        for piece in importer.finish():
            printer.print(piece)
    except KeyboardInterrupt:
        bar.print_error("stopped; what is listed is done: import the files again for the rest")
        return True
    return False


def _read_files(files: Sequence[str], bar: Bar) -> Iterator[list[Entry]]:
    done = 0
    for file in files:
        with open_file(file) as source, open_plain(source) as plain:
            lines = read_lines(plain)
            while some := list(islice(lines, LINES_AT_ONCE)):
                yield [Entry(file, line) for line in some]
                if source.seekable():
                    bar.advance_to(done + source.tell())
            done += find_size(source) or 0


class _RequestPrinter:
    """Counts and prints requests: in a pipe all, on a terminal those not in the database."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._is_json = args.json
        self._zone = args.tz
        self._is_dry = args.dry_run
        self._prints_all = args.verbose or args.json or not output.is_terminal()
        self._table = None if args.json else output.TablePrinter(COLUMNS, NOTHING)
        self._counts: Counter[str] = Counter()
        self.not_in = 0

    def print(self, piece: Sequence[BookedRequest]) -> None:
        """Count and print requests that are on disk."""
        self._counts.update(booked.verdict for booked in piece)
        self.not_in += sum(not booked.is_in for booked in piece)
        shown = [
            booked for booked in piece if self._prints_all or not booked.is_in or booked.warnings
        ]
        if self._table is None:
            output.print_json(map(build_object, shown))
        elif shown:
            self._table.print([build_cells(told, self._zone) for told in shown])

    def close(self) -> None:
        """Print the number of requests by verdict."""
        if self._table is not None:
            self._table.close()
            if output.is_terminal() and self._counts:
                output.print_footnote(f"Times in {self._zone}.")
        counted = [f"{self._counts[name]} {name}" for name in VERDICTS if self._counts[name]]
        written = "; nothing was written" if self._is_dry else ""
        sentence = (
            f"{self._counts.total()} requests: {', '.join(counted) or 'nothing in the files'};"
            f" {self.not_in} not in the database{written}"
        )
        output.print_summary(sentence, is_alone=self._is_json)


def build_cells(booked: BookedRequest, zone: tzinfo) -> Sequence[str]:
    """Build the cells of a request."""
    row = build_object(booked)
    amount = "" if row["amount"] is None else f"{row['amount']} {row['currency'] or '?'}"
    return (
        f"{row['file']}:{row['line']}",
        write_in_zone(row["received_at"], zone),
        row["subid"] or "",
        row["original_status"] or "",
        amount,
        booked.verdict,
        "; ".join((booked.reason, *booked.warnings)),
    )


def build_object(booked: BookedRequest) -> dict[str, Any]:
    """Build the JSON object of a request, with the names of a postback."""
    caught, arrival = booked.entry.line.caught, booked.arrival
    incoming = Incoming(None) if arrival is None else arrival.postback.incoming
    return {
        "file": booked.entry.file,
        "line": booked.entry.line.number,
        "received_at": None if caught is None else utc_text(caught.received_at),
        "remote_addr": None if arrival is None else arrival.remote_addr,
        "query": None if arrival is None else arrival.query,
        "subid": incoming.subid,
        "tid": incoming.tid,
        "original_status": incoming.word,
        "amount": None if incoming.amount is None else decimal_text(incoming.amount),
        "currency": None if incoming.amount is None else incoming.currency,
        "verdict": booked.verdict,
        "reason": booked.reason,
        "warnings": list(booked.warnings),
        "conversion_id": booked.conversion_id,
    }
