"""`postback clicks import`: clicks imported from a file, and the postbacks parked for them."""

import argparse
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from postbackd.bulk.click_file import ClickFile
from postbackd.bulk.click_importer import Importer
from postbackd.bulk.csv_file import find_size, open_file
from postbackd.bulk.odd_rows import describe_aside
from postbackd.cli import output
from postbackd.cli.context import INTERRUPTED, load_keyless, writing
from postbackd.cli.line_options import (
    add_shape_options,
    add_time_options,
    build_moments,
    read_shape,
    settle_file_times,
)
from postbackd.cli.options import Subparsers, add_command, add_json
from postbackd.cli.output import Bar
from postbackd.intake.amounts import AmountReader
from postbackd.intake.booking import read_booking_options
from postbackd.intake.click import ClickReading
from postbackd.intake.runtime import read_clock

MORE = """\
A line of titles names the columns: subid (or clickid), campaign, offer, clicked_at, cost_model,
external_id, source, cost, currency, sub_id_1 … sub_id_30, or as the click logs of Keitaro, Voluum,
Binom and RedTrack call them (Sub ID, Date/Time, Sub ID 1, Click ID, Visit Timestamp, Click time,
Campaign Name …). Other columns are ignored. Cells that are empty change nothing. A cost without
a currency is in the tracker's. Postbacks that were parked for these clicks are applied. A bad
line is reported and skipped, a time or cost that cannot be read is left out; each makes exit
status 1."""

# More would hide the summary; their number is in it.
COMPLAINTS_SHOWN = 20


def add_parser(family: Subparsers) -> None:
    """Add `clicks import`."""
    importing = add_command(
        family,
        "import",
        run,
        "import clicks from a file",
        "postback clicks import clicks.csv --tz Europe/Moscow",
        more=MORE,
    )
    importing.add_argument("file", metavar="FILE", help="the file; - reads standard input")
    add_shape_options(importing)
    add_time_options(importing)
    add_json(importing)


def run(args: argparse.Namespace) -> int:
    """Import the clicks of a file."""
    settings = load_keyless(args)
    zone_notes = settle_file_times(args, settings)
    with open_file(args.file) as source, writing(settings) as storage, storage.bulk():
        amounts = AmountReader(decimal_comma=settings.decimal_comma)
        click_file = ClickFile(
            source, read_shape(args), build_moments(args), amounts, settings.currency
        )
        importer = Importer(storage, read_booking_options(settings), read_clock)
        with output.progress("clicks", find_size(source)) as bar:
            complaints = _Complaints(bar)
            for note in (*click_file.notes, *zone_notes):
                bar.print_error(note)
            complaints.name_unknown(click_file.unknown)
            import_run = _Run(importer, complaints)
            try:
                with _without_collector():
                    import_run.go(click_file, bar)
            except KeyboardInterrupt:
                import_run.is_stopped = True
    _print_skipped(click_file)
    status = _print_totals(import_run, importer, complaints, as_json=args.json)
    return status or int(click_file.untimed + click_file.uncosted > 0)


def _print_skipped(click_file: ClickFile) -> None:
    if aside := describe_aside(click_file.aside):
        output.print_error(aside)
    if click_file.untimed:
        output.print_error(f"{click_file.untimed} clicks were imported without their time")
    if click_file.uncosted:
        output.print_error(f"{click_file.uncosted} clicks were imported without their cost")


@contextmanager
def _without_collector() -> Iterator[None]:
    """Turn off the garbage collector: a million clicks have no cycles, and searching takes long."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Complaints:
    """Messages about lines: the first are printed, the rest counted."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._printed = 0
        self.skipped = 0
        self.unprinted = 0

    def name_unknown(self, titles: Sequence[str]) -> None:
        if titles:
            names = ", ".join(repr(title) for title in titles)
            self._bar.print_error(f"ignored columns: {names}")

    def note(self, number: int, click: ClickReading) -> None:
        parts = list(click.warnings)
        if click.row is None:
            self.skipped += 1
            parts.append(f"skipped: {click.flaw}")
        if self._printed < COMPLAINTS_SHOWN:
            self._printed += 1
            self._bar.print_error(f"line {number}: {'; '.join(parts)}")
        else:
            self.unprinted += 1


class _Run:
    """Runs an import, and counts its lines."""

    def __init__(self, importer: Importer, complaints: _Complaints) -> None:
        self._importer = importer
        self._complaints = complaints
        self.lines = 0
        self.last_line_in = 1
        self.is_stopped = False

    def go(self, click_file: ClickFile, bar: Bar) -> None:
        self._importer.settle_due_clicks()
        for chunk in click_file.read():
            for number, click in chunk.noted:
                self._complaints.note(number, click)
            skipped = sum(click.row is None for _, click in chunk.noted)
            self.lines += len(chunk.rows) + skipped
            if self._importer.take(chunk.rows):
                self.last_line_in = chunk.last_line
            bar.advance_to(click_file.find_position())
        self._importer.flush()


def _print_totals(
    import_run: _Run, importer: Importer, complaints: _Complaints, *, as_json: bool
) -> int:
    new, updated, settled = importer.totals
    skipped, unprinted = complaints.skipped, complaints.unprinted
    if unprinted:
        output.print_error(f"{unprinted} more lines had such a message")
    if import_run.is_stopped:
        last = import_run.last_line_in
        output.print_error(f"stopped: the lines up to {last} are imported, and maybe some after it")
    if as_json:
        counts = {"lines": import_run.lines, "new": new, "updated": updated}
        output.print_json([{**counts, "skipped": skipped, "parked_applied": settled}])
    else:
        output.print_line(
            f"{import_run.lines} lines: {new} new clicks, {updated} updated, {skipped} skipped;"
            f" {settled} parked postbacks applied"
        )
    return INTERRUPTED if import_run.is_stopped else int(skipped > 0)
