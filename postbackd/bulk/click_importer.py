"""Imports many clicks, piece by piece, beside a running service."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from postbackd.bulk.piece_size import PieceSize
from postbackd.db.rows import ClickRow
from postbackd.intake import booking
from postbackd.intake.booking import PARKED_PER_CLICK, BookingOptions, StoredClicks
from storage import Storage

# A piece may hold the write lock for 100 ms (the contract); the aim is lower, because the next
# piece may be slower than the last.
AIM_SECONDS = 0.045

FIRST_PIECE_ROWS = 500
# Smaller pieces would cost more than they save: where a thousand rows take long, the time is the
# disk's sync, and every commit has that.
SMALLEST_PIECE_ROWS = 1000
LARGEST_PIECE_ROWS = 20_000
# One quick piece must not make the next one much too large.
LARGEST_GROWTH = 1.25
PIECE_SIZE = PieceSize(AIM_SECONDS, SMALLEST_PIECE_ROWS, LARGEST_PIECE_ROWS, LARGEST_GROWTH)

# This number of clicks is sorted by id before it is cut into pieces. Ids are random: each piece of
# an unsorted file would touch and write nearly the whole index, and take twice as long.
SORTED_ROWS = 50_000
# Clicks from a slow pipe are written after this time, without waiting for more.
LONGEST_WAIT_SECONDS = 2.0

# By then the write-ahead log has some two thousand pages, after which SQLite would checkpoint it
# itself.
PIECES_A_CHECKPOINT = 4

# A parked postback that is applied costs as much as some thirty clicks.
PARKED_AT_ONCE = 100
# Due clicks of other programs in one piece: each may have up to PARKED_PER_CLICK postbacks.
DUE_CLICKS_AT_ONCE = 2


class Totals(NamedTuple):
    """The numbers of new clicks, of known clicks, and of parked postbacks that were settled."""

    new: int = 0
    updated: int = 0
    settled: int = 0


class Importer:
    """Stores clicks in pieces that hold the write lock for a moment each."""

    def __init__(
        self, storage: Storage, terms: BookingOptions, read_clock: Callable[[], datetime]
    ) -> None:
        """Remember the database, the options for parked postbacks, and the clock."""
        self._storage = storage
        self._terms = terms
        self._read_clock = read_clock
        self._piece_rows = FIRST_PIECE_ROWS
        self._waiting: list[ClickRow] = []
        self._flushed_at = time.monotonic()
        self._pieces = 0
        self.totals = Totals()

    def settle_due_clicks(self) -> None:
        """Settle the due clicks of other programs first, so that no piece has to."""
        booking.settle_all_due_clicks(
            self._storage, self._terms, self._read_clock, DUE_CLICKS_AT_ONCE
        )

    def take(self, rows: Sequence[ClickRow]) -> bool:
        """Add clicks; True where all clicks so far are on disk now."""
        self._waiting += rows
        is_full = len(self._waiting) >= SORTED_ROWS
        if is_full or time.monotonic() >= self._flushed_at + LONGEST_WAIT_SECONDS:
            self.flush()
            return True
        return False

    def flush(self) -> None:
        """Write the clicks that were added."""
        rows, self._waiting = self._waiting, []
        # The sort is stable: of equal click ids the later line of the file wins.
        rows.sort(key=lambda row: row.subid)
        start = 0
        while start < len(rows):
            end = start + self._piece_rows
            for piece in self._split(rows[start:end]):
                self._put(piece)
            start = end
        self._flushed_at = time.monotonic()

    def _put(self, piece: Sequence[ClickRow]) -> None:
        started, intake = self._commit(piece)
        self._adapt(len(piece), time.monotonic() - started)
        self._count(len(piece), intake)
        self._pieces += 1
        if self._pieces % PIECES_A_CHECKPOINT == 0:
            # Without the write lock, so that no postback's commit has to do it.
            self._storage.checkpoint()

    def _commit(self, piece: Sequence[ClickRow]) -> tuple[float, StoredClicks]:
        with self._storage.transaction():
            # Measured from here: the wait for the lock delays no other process.
            started = time.monotonic()
            intake = booking.record_clicks(self._storage, piece, self._read_clock(), self._terms)
        return started, intake

    def _split(self, rows: Sequence[ClickRow]) -> Iterator[Sequence[ClickRow]]:
        """Cut where the clicks so far have enough parked postbacks."""
        parked = self._storage.count_parked(row.subid for row in rows)
        if not parked:
            yield rows
            return
        start = weight = 0
        for end, row in enumerate(rows, 1):
            weight += min(parked.pop(row.subid, 0), PARKED_PER_CLICK)
            if weight >= PARKED_AT_ONCE or end == len(rows):
                yield rows[start:end]
                start, weight = end, 0

    def _adapt(self, rows: int, seconds: float) -> None:
        if rows < self._piece_rows // 2:
            # The last piece, or one cut because of parked postbacks: its time says little.
            return
        self._piece_rows = PIECE_SIZE.adapt(self._piece_rows, seconds)

    def _count(self, rows: int, intake: StoredClicks) -> None:
        new, updated, settled = self.totals
        self.totals = Totals(
            new + intake.new, updated + rows - intake.new, settled + intake.settled
        )
