"""A file of clicks: its columns, its rows, and what is wrong with a line."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from clicks import ClickReading, RowReader
from commands.csv_file import Records
from commands.table_file import Shape, TableFile, Titles
from moments import MomentReader, needs_order
from odd_rows import Aside, find_oddity, is_plain
from query import SUBID_NAMES
from rows import ClickRow, utc_text
from titles import find_click_names

CLICKED_AT = "clicked_at"
# Whether dates have to be looked through shows in so many: a second for a million of them.
SAMPLE_ROWS = 1000


class Chunk:
    """Some lines: their clicks, and those lines that there is something to say about."""

    def __init__(self) -> None:
        """Begin with nothing."""
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
    """The titles that clicks have."""

    def count(self, titles: Sequence[str]) -> int:
        """Tell how many of some cells are titles that are known."""
        return sum(name is not None for name in find_click_names(titles))

    def has_click_id(self, titles: Sequence[str]) -> bool:
        """Tell whether one of them is known to stand over click ids."""
        return any(name in SUBID_NAMES for name in find_click_names(titles))

    def describe_missing(self, titles: Sequence[str]) -> str:
        """Say what to do where none of some titles stands over click ids."""
        return "no column is known to hold the click id: call its column 'subid'"


class ClickFile:
    """The clicks of a file; refuses one without click ids."""

    def __init__(self, source: BinaryIO, shape: Shape, moments: MomentReader) -> None:
        """Take an open file, what is said of it, and who reads its times."""
        self._file = TableFile(source, shape, ClickTitles(), Titles.NEEDED)
        self.notes = self._file.notes
        self.titles = self._file.titles
        self.names = find_click_names(self.titles)
        self.unknown = [
            t for t, name in zip(self.titles, self.names, strict=True) if t and name is None
        ]
        self._reader = RowReader(self.names, moments.zone)
        self._moments = moments
        self._places = {name: place for place, name in enumerate(self.names) if name is not None}
        self._subid = next(p for p, name in enumerate(self.names) if name in SUBID_NAMES)
        self._time = self._places.get(CLICKED_AT)
        if self._time is not None:
            sample = list(self._file.look_through(self._time, SAMPLE_ROWS))
            if any(map(needs_order, sample)):
                moments.learn(self._file.look_through(self._time))
        self.find_position = self._file.find_position
        # How many rows were none, by what they are; how many clicks lost their time.
        self.aside: Counter[Aside] = Counter()
        self.untimed = 0

    def read(self) -> Iterator[Chunk]:
        """Give the lines in chunks."""
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
        place = self._time
        time = cells[place].strip() if place is not None and place < len(cells) else ""
        if place is None or not time:
            return self._reader.read(cells)
        moment = self._moments.read(time)
        if moment.at is not None:
            return self._reader.read([*cells[:place], utc_text(moment.at), *cells[place + 1 :]])
        click = self._reader.read([*cells[:place], "", *cells[place + 1 :]])
        if click.row is None:
            return click
        self.untimed += 1
        return click._replace(warnings=(*click.warnings, f"{CLICKED_AT} {moment.flaw}"))
