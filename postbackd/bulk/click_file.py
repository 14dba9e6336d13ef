"""A file of clicks: its columns, its rows, and the flaws of its lines."""

from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import BinaryIO

from postbackd.bulk.csv_file import Records
from postbackd.bulk.moments import MomentReader, needs_order
from postbackd.bulk.odd_rows import Aside, find_oddity, is_plain
from postbackd.bulk.table_file import Shape, TableFile, Titles
from postbackd.bulk.titles import find_click_names
from postbackd.db.rows import ClickRow, utc_text
from postbackd.intake.amounts import AmountReader
from postbackd.intake.click import ClickReading, RowReader
from postbackd.intake.currencies import settle_currency
from postbackd.intake.macros import is_macro
from postbackd.intake.query import SUBID_NAMES, quote_value
from rates import read_currency

CLICKED_AT = "clicked_at"
COST = "cost"
# If none of these rows has an ambiguous date, the file is not searched: that takes a second for a
# million rows.
SAMPLE_ROWS = 1000


class Chunk:
    """Some lines: their clicks, and the lines with a flaw or a warning."""

    def __init__(self) -> None:
        """Begin without lines."""
        self.rows: list[ClickRow] = []
        self.noted: list[tuple[int, ClickReading]] = []
        self.last_line = 0

    def add(self, number: int, click: ClickReading) -> None:
        """Add a line."""
        if click.row is not None:
            self.rows.append(click.row)
        if click.row is None or click.warnings:
            self.noted.append((number, click))


class ClickTitles:
    """The titles of columns of clicks."""

    def count(self, titles: Sequence[str]) -> int:
        """Count the cells that are known titles."""
        return sum(name is not None for name in find_click_names(titles))

    def has_click_id(self, titles: Sequence[str]) -> bool:
        """Return whether one of them is a known title of click ids."""
        return any(name in SUBID_NAMES for name in find_click_names(titles))

    def describe_missing(self, titles: Sequence[str]) -> str:
        """Write what to do where no title is one of click ids."""
        return "no column is known to have the click id: call its column 'subid'"


class ClickFile:
    """The clicks of a file; refuses one without click ids."""

    def __init__(
        self,
        source: BinaryIO,
        shape: Shape,
        moments: MomentReader,
        amounts: AmountReader,
        tracker_currency: str,
    ) -> None:
        """Read the titles of an open file; keep the readers of its times and costs."""
        self._file = TableFile(source, shape, ClickTitles(), Titles.NEEDED)
        self.notes = self._file.notes
        self.titles = self._file.titles
        self.names = find_click_names(self.titles)
        self.unknown = [
            t for t, name in zip(self.titles, self.names, strict=True) if t and name is None
        ]
        self._reader = RowReader(self.names, moments.zone, tracker_currency)
        self._moments = moments
        self._amounts = amounts
        self._tracker_currency = tracker_currency
        self._places = {name: place for place, name in enumerate(self.names) if name is not None}
        self._subid = next(p for p, name in enumerate(self.names) if name in SUBID_NAMES)
        self._time = self._places.get(CLICKED_AT)
        if self._time is not None:
            sample = list(self._file.look_through(self._time, SAMPLE_ROWS))
            if any(map(needs_order, sample)):
                moments.learn(self._file.look_through(self._time))
        self._cost = self._places.get(COST)
        if self._cost is not None:
            amounts.learn(self._file.look_through(self._cost, SAMPLE_ROWS))
        self.find_position = self._file.find_position
        # Rows that are no clicks, by kind; clicks without their time or cost.
        self.aside: Counter[Aside] = Counter()
        self.untimed = 0
        self.uncosted = 0

    def read(self) -> Iterator[Chunk]:
        """Yield the lines in chunks."""
        for records in self._file.read():
            chunk = Chunk()
            self._read_records(chunk, records)
            chunk.last_line = records.last_line
            yield chunk

    def _read_records(self, chunk: Chunk, records: Records) -> None:
        keep, read_plain = chunk.rows.append, self._reader.read_plain
        subid, title = self._subid, self.titles[self._subid]
        for number, cells in zip(records.numbers, records.cells, strict=True):
            row = read_plain(cells)
            if row is not None and (is_plain(cells[subid], title) or not self._is_odd(cells)):
                keep(row)
            elif number in records.flaws:
                chunk.add(number, ClickReading(None, records.flaws[number]))
            elif any(map(str.strip, cells)):
                self._read_record(chunk, number, cells)

    def _is_odd(self, cells: list[str]) -> bool:
        return find_oddity(cells, {"subid": self._subid}, self.titles) is not None

    def _read_record(self, chunk: Chunk, number: int, cells: list[str]) -> None:
        width = len(self.titles)
        oddity = find_oddity(cells, {"subid": self._subid}, self.titles)
        if oddity is not None and oddity.aside is not None:
            self.aside[oddity.aside] += 1
        elif oddity is not None:
            chunk.add(number, ClickReading(None, oddity.flaw))
        elif any(cells[width:]):
            flaw = f"{len(cells)} cells under {width} titles: is a value with commas unquoted?"
            chunk.add(number, ClickReading(None, flaw))
        else:
            chunk.add(number, self._read_click(cells))

    def _read_click(self, cells: list[str]) -> ClickReading:
        """Read a row in which at least one cell is not plain."""
        cells, time_flaw = self._rewrite_time(cells)
        cells, cost, cost_flaw = self._take_cost(cells)
        click = self._reader.read(cells)
        if click.row is None:
            return click
        self.untimed += bool(time_flaw)
        self.uncosted += bool(cost_flaw)
        flaws = [
            f"{name} {flaw}" for name, flaw in ((CLICKED_AT, time_flaw), (COST, cost_flaw)) if flaw
        ]
        row = click.row
        if cost is not None:
            row = row._replace(cost=cost[0], currency=cost[1])
        return ClickReading(row, "", (*click.warnings, *flaws))

    def _rewrite_time(self, cells: list[str]) -> tuple[list[str], str]:
        """Rewrite the time in ISO 8601, or remove it and return the flaw."""
        time = _find_cell(cells, self._time)
        if self._time is None or not time:
            return cells, ""
        moment = self._moments.read(time)
        written = "" if moment.at is None else utc_text(moment.at)
        flaw = moment.flaw if moment.at is None else ""
        return [*cells[: self._time], written, *cells[self._time + 1 :]], flaw

    def _take_cost(self, cells: list[str]) -> tuple[list[str], tuple[Decimal, str] | None, str]:
        """Remove the cost from the cells and read it with its currency, or return the flaw."""
        text = _find_cell(cells, self._cost)
        if self._cost is None or not text or is_macro(text):
            return cells, None, ""
        rest = [*cells[: self._cost], "", *cells[self._cost + 1 :]]
        written = self._amounts.read(text)
        if written.amount is None:
            return rest, None, written.flaw
        said = _find_cell(cells, self._places.get("currency"))
        code = read_currency(said) if said else None
        currency = settle_currency(written.marks, code, self._tracker_currency)
        if (said and code is None) or (written.marks and currency is None):
            shown = quote_value(" ".join(filter(None, (text, said))))
            return rest, None, f"{shown} has no known currency: it is left out"
        return rest, (written.amount, currency or self._tracker_currency), ""


def _find_cell(cells: list[str], place: int | None) -> str:
    return cells[place].strip() if place is not None and place < len(cells) else ""
