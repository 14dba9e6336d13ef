"""A network's own report: its rows as lines, each with its time."""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from postbackd.bulk.conversion_lines import Line, LineReader
from postbackd.bulk.conversion_table import ConversionTable, Row
from postbackd.bulk.moments import MomentReader, count_span
from postbackd.bulk.titles import PAYOUT, TIME


class ReportRow(NamedTuple):
    """A row: its line, and its time; `end` is the end of that time."""

    line: Line
    at: datetime | None = None
    end: datetime | None = None


class ReportFile:
    """The rows of a report."""

    def __init__(self, table: ConversionTable, lines: LineReader, moments: MomentReader) -> None:
        """Remember the unread table, and the readers of its lines and times."""
        self._table = table
        self._lines = lines
        self._moments = moments
        lines.amounts.learn(table.look_through(PAYOUT))
        moments.learn(table.look_through(TIME))
        # Rows whose time cannot be read, and the flaw of the first.
        self.untimed = 0
        self.first_untimed = ""

    def read(self) -> Iterator[list[ReportRow]]:
        """Yield the rows, some at a time."""
        for rows in self._table.read():
            yield list(map(self._read_row, rows))

    def _read_row(self, row: Row) -> ReportRow:
        line = self._lines.read(row.number, row.said, row.flaw)
        if not row.time:
            return ReportRow(line)
        moment = self._moments.read(row.time)
        if moment.at is None:
            self.untimed += 1
            self.first_untimed = self.first_untimed or f"line {row.number}: {moment.flaw}"
            return ReportRow(line)
        return ReportRow(line, moment.at, moment.at + count_span(moment))
