"""`postback clicks import`: clicks taken in from a file, with what was parked for them."""

import argparse
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import display
from booking import read_terms
from clicks import ClickReading
from commands.click_file import ClickFile
from commands.csv_file import find_size, open_file
from commands.exits import INTERRUPTED
from commands.intake import Importer
from commands.line_options import (
    add_shape_options,
    add_time_options,
    build_moments,
    read_shape,
)
from commands.options import Subparsers, add_command, add_json
from commands.tracker import load_keyless, writing
from display import Bar
from odd_rows import describe_aside
from service import read_clock

# More would bury the summary; the number of all is told at the end.
COMPLAINTS_SHOWN = 20


def add_parser(family: Subparsers) -> None:
    """Add `clicks import`."""
    importing = add_command(
        family,
        "import",
        run,
        "take clicks in from a file",
        "postback clicks import clicks.csv --tz Europe/Moscow",
        more="A line of titles names the columns: subid (or clickid), campaign, offer, clicked_at,"
        " cost_model,\nsub_id_1 … sub_id_30, or as the click logs of Keitaro, Voluum, Binom and"
        " RedTrack call them\n(Sub ID, Date/Time, Sub ID 1, Click ID, Visit Timestamp, Click time,"
        " Campaign Name …). Other columns\nare ignored. Cells that are empty change nothing."
        " Postbacks that were parked for these clicks are\napplied. A bad line is reported and"
        " skipped, a time that cannot be read is left out; either makes\nexit status 1.",
    )
    importing.add_argument("file", metavar="FILE", help="the file; - reads standard input")
    add_shape_options(importing)
    add_time_options(importing)
    add_json(importing)


def run(args: argparse.Namespace) -> int:
    """Take the clicks of a file in."""
    settings = load_keyless(args)
    with open_file(args.file) as source, writing(settings) as storage, storage.bulk():
        click_file = ClickFile(source, read_shape(args), build_moments(args))
        importer = Importer(storage, read_terms(settings), read_clock)
        with display.progress("clicks", find_size(source)) as bar:
            complaints = _Complaints(bar)
            for note in click_file.notes:
                bar.complain(note)
            complaints.name_unknown(click_file.unknown)
            journey = _Journey(importer, complaints)
            try:
                with _without_collector():
                    journey.go(click_file, bar)
            except KeyboardInterrupt:
                journey.is_stopped = True
    _tell_file(click_file)
    status = _tell(journey, importer, complaints, as_json=args.json)
    return status or int(click_file.untimed > 0)


def _tell_file(click_file: ClickFile) -> None:
    if aside := describe_aside(click_file.aside):
        display.complain(aside)
    if click_file.untimed:
        display.complain(f"{click_file.untimed} clicks came in without their time")


@contextmanager
def _without_collector() -> Iterator[None]:
    """Let Python not look for cycles among a million clicks: there are none, and it takes long."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Complaints:
    """What is said about lines: the first of it in full, the rest as a number."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._said = 0
        self.skipped = 0
        self.unsaid = 0

    def name_unknown(self, titles: Sequence[str]) -> None:
        if titles:
            names = ", ".join(repr(title) for title in titles)
            self._bar.complain(f"columns that are ignored: {names}")

    def note(self, number: int, click: ClickReading) -> None:
        parts = list(click.warnings)
        if click.row is None:
            self.skipped += 1
            parts.append(f"skipped: {click.flaw}")
        if self._said < COMPLAINTS_SHOWN:
            self._said += 1
            self._bar.complain(f"line {number}: {'; '.join(parts)}")
        else:
            self.unsaid += 1


class _Journey:
    """How far an import has come."""

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


def _tell(journey: _Journey, importer: Importer, complaints: _Complaints, *, as_json: bool) -> int:
    new, updated, settled = importer.totals
    skipped, unsaid = complaints.skipped, complaints.unsaid
    if unsaid:
        display.complain(f"{unsaid} more lines had something of the kind")
    if journey.is_stopped:
        last = journey.last_line_in
        display.complain(f"stopped: the lines through {last} are in, and maybe some after it")
    if as_json:
        counts = {"lines": journey.lines, "new": new, "updated": updated}
        display.print_json([{**counts, "skipped": skipped, "parked_applied": settled}])
    else:
        display.say(
            f"{journey.lines} lines: {new} new clicks, {updated} updated, {skipped} skipped;"
            f" {settled} parked postbacks applied"
        )
    return INTERRUPTED if journey.is_stopped else int(skipped > 0)
