"""Imports lines of conversions, piece by piece, beside a running service."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from postbackd.bulk.conversion_lines import Line
from postbackd.db.rows import utc_text
from postbackd.db.sqlite.connection import LOCK_POLL_SECONDS
from postbackd.intake import booking
from postbackd.intake.booking import Arrival, BookingOptions, Outcome
from postbackd.intake.sandbox import LAST_REAL_ID, Rehearsal
from postbackd.reports.queries import Questions
from rates import decimal_text
from statuses import OTHER_AMOUNT, Incoming, Verdict
from storage import Storage

# The line was not judged: it is no CSV, or its payout cannot be read.
SKIPPED = "skipped"

# How long lines are booked before a commit. With the commit's sync the write lock is held for some
# 45 ms, and no live postback waits longer.
WORK_SECONDS = 0.03
# By then the write-ahead log has some two thousand pages, after which SQLite would checkpoint it
# itself.
PIECES_A_CHECKPOINT = 16

# `ignored` is not among them: the user has asked for it.
NOT_TAKEN = (Verdict.REFUSED, Verdict.UNMAPPED, Verdict.INVALID)


class ImportedLine(NamedTuple):
    """The verdict of a line; `is_taken` where it is stored, or was stored before unchanged."""

    line: Line
    verdict: str
    reason: str
    warnings: tuple[str, ...] = ()
    conversion_id: int | None = None
    is_taken: bool = True


class LineImporter:
    """Books lines in pieces that hold the write lock for a moment each."""

    def __init__(
        self,
        storage: Storage,
        terms: BookingOptions,
        read_clock: Callable[[], datetime],
        *,
        forces: bool = False,
    ) -> None:
        """Remember the database, today's options, the clock, and whether lines are forced."""
        self._storage = storage
        self._terms = terms
        self._read_clock = read_clock
        self._forces = forces
        self._pieces = 0
        # The lines of the last piece: for the next one as many click ids are read at once.
        self._lines_a_piece = 100

    def find_known(self, subids: Sequence[str]) -> Sequence[str]:
        """Tell which of these click ids are known."""
        return Questions(self._storage.db).find_subids(subids)

    def take(self, lines: Sequence[Line]) -> Iterator[list[ImportedLine]]:
        """Book lines; yielded ones are on disk."""
        start = 0
        while start < len(lines):
            with self._storage.transaction(self._list_subids(lines, start)):
                piece = self._keep(lines, start)
            yield piece
            start += len(piece)
            self._lines_a_piece = len(piece)
            self._let_others_through()

    def _list_subids(self, lines: Sequence[Line], start: int) -> Iterator[str]:
        for line in lines[start : start + self._lines_a_piece]:
            if line.postback is not None and line.postback.incoming.subid:
                yield line.postback.incoming.subid

    def _keep(self, lines: Sequence[Line], start: int) -> list[ImportedLine]:
        deadline = time.monotonic() + WORK_SECONDS
        at = utc_text(self._read_clock())
        piece: list[ImportedLine] = []
        for line in itertools.islice(lines, start, None):
            piece.append(self._keep_line(line, at))
            # After the line: on a busy machine the time may be over before the first one.
            if time.monotonic() >= deadline:
                break
        return piece

    def _keep_line(self, line: Line, at: str) -> ImportedLine:
        if line.flaw or line.postback is None:
            return ImportedLine(line, SKIPPED, line.flaw, is_taken=False)
        postback = booking.know_currency(self._storage, line.postback, self._terms)
        if postback is not line.postback:
            # Treated like an unreadable line: once a rate makes it a currency, the line can be
            # imported again, whereas now it would be stored without its currency.
            return ImportedLine(line, SKIPPED, postback.warnings[-1], is_taken=False)
        arrival = Arrival(at, "import", None, None, line.query, postback, is_forced=self._forces)
        outcome = booking.record(self._storage, arrival, self._terms)
        return ImportedLine(
            line,
            outcome.verdict,
            outcome.reason.detail,
            outcome.warnings + self._find_warnings(line.postback.incoming, outcome),
            outcome.conversion_id,
            _is_taken(outcome),
        )

    def _find_warnings(self, incoming: Incoming, outcome: Outcome) -> tuple[str, ...]:
        """Warn of a refund for a click that has no revenue."""
        if outcome.verdict is not Verdict.RECORDED or (incoming.amount or 0) >= 0:
            return ()
        assert incoming.amount is not None
        known = self._storage.find_click(incoming.subid or "")
        if known is None or len(known.click.conversions) != 1:
            return ()
        return (
            f"the click's first conversion is worth {decimal_text(incoming.amount)}: the click has"
            " no conversion that this could take back; to take one back, import it as rejected",
        )

    def _let_others_through(self) -> None:
        self._pieces += 1
        if self._pieces % PIECES_A_CHECKPOINT == 0:
            # Without the write lock, so that no postback's commit has to do it.
            self._storage.checkpoint()
        # Waiting processes try the lock every LOCK_POLL_SECONDS: without a pause we would get it
        # each time.
        time.sleep(2 * LOCK_POLL_SECONDS)


class RehearsedImporter(LineImporter):
    """Books lines into a sandbox, a throw-away copy of the rows that they touch."""

    def __init__(
        self,
        rehearsal: Rehearsal,
        terms: BookingOptions,
        read_clock: Callable[[], datetime],
        *,
        forces: bool = False,
    ) -> None:
        """Remember the sandbox, and the rest as `LineImporter` does."""
        super().__init__(rehearsal.storage, terms, read_clock, forces=forces)
        self._rehearsal = rehearsal

    def take(self, lines: Sequence[Line]) -> Iterator[list[ImportedLine]]:
        """Yield the verdicts that lines would get."""
        self._rehearsal.take([line.query for line in lines if line.postback is not None])
        booking.settle_all_due_clicks(self._storage, self._terms, self._read_clock)
        for piece in super().take(lines):
            yield [_without_copied_id(told) for told in piece]


def _without_copied_id(told: ImportedLine) -> ImportedLine:
    is_copied = told.conversion_id is not None and told.conversion_id > LAST_REAL_ID
    return told._replace(conversion_id=None) if is_copied else told


def _is_taken(outcome: Outcome) -> bool:
    if outcome.verdict is Verdict.REPEATED:
        return not outcome.reason.summary.startswith(OTHER_AMOUNT)
    return outcome.verdict not in NOT_TAKEN
