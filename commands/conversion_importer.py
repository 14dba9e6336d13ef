"""Taking lines of conversions in, piece by piece, beside a running service."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import booking
from booking import Arrival, Terms
from commands.conversion_lines import LINE_NAMES, Line, LineReader, Said
from commands.csv_file import Records
from database import LOCK_POLL_SECONDS
from rearm import rearm
from rows import utc_text
from storage import Storage

# The engine never saw such a line: it is no CSV, or its payout cannot be read.
SKIPPED = "skipped"

# How long lines are kept before the commit, whose sync comes on top: together the write lock is
# held for some 45 ms, and a live postback waits no longer.
WORK_SECONDS = 0.03
# By then the log has some two thousand pages, after which SQLite itself would move them.
PIECES_A_CHECKPOINT = 16


def read_lines(records: Records, reader: LineReader) -> Iterator[Line]:
    """Read records as lines; empty ones are left out."""
    for number, cells in zip(records.numbers, records.cells, strict=True):
        if number in records.flaws:
            yield Line(number, Said(), flaw=records.flaws[number])
        elif any(cells[len(LINE_NAMES) :]):
            flaw = (
                f"{len(cells)} fields, and a line has {','.join(LINE_NAMES)}: is a value with"
                " commas unquoted?"
            )
            yield Line(number, Said(*cells[: len(LINE_NAMES)]), flaw=flaw)
        elif any(map(str.strip, cells)):
            fields = map(rearm, cells[: len(LINE_NAMES)])
            yield reader.read(number, Said(*fields))


class Told(NamedTuple):
    """What came of a line."""

    line: Line
    verdict: str
    reason: str
    warnings: tuple[str, ...] = ()
    conversion_id: int | None = None


class LineImporter:
    """Takes lines in pieces that hold the write lock for a moment each."""

    def __init__(self, storage: Storage, terms: Terms, read_clock: Callable[[], datetime]) -> None:
        """Take the database, the terms of today, and where to read the time."""
        self._storage = storage
        self._terms = terms
        self._read_clock = read_clock
        self._pieces = 0

    def take(self, lines: Sequence[Line]) -> Iterator[list[Told]]:
        """Take lines in; what was given is on disk."""
        start = 0
        while start < len(lines):
            with self._storage.transaction():
                piece = self._keep(lines, start)
            yield piece
            start += len(piece)
            self._let_others_through()

    def _keep(self, lines: Sequence[Line], start: int) -> list[Told]:
        deadline = time.monotonic() + WORK_SECONDS
        at = utc_text(self._read_clock())
        piece: list[Told] = []
        for line in itertools.islice(lines, start, None):
            piece.append(self._keep_line(line, at))
            # Asked behind the line: on a busy machine the time may be over before the first.
            if time.monotonic() >= deadline:
                break
        return piece

    def _keep_line(self, line: Line, at: str) -> Told:
        if line.flaw or line.postback is None:
            return Told(line, SKIPPED, line.flaw)
        arrival = Arrival(at, "import", None, None, line.query, line.postback)
        outcome = booking.keep(self._storage, arrival, self._terms)
        return Told(
            line, outcome.verdict, outcome.reason.detail, outcome.warnings, outcome.conversion_id
        )

    def _let_others_through(self) -> None:
        self._pieces += 1
        if self._pieces % PIECES_A_CHECKPOINT == 0:
            # Beside the lock, so that no postback's commit has to do it.
            self._storage.checkpoint()
        # Those who wait look every LOCK_POLL_SECONDS: without a pause we would win every time.
        time.sleep(2 * LOCK_POLL_SECONDS)
