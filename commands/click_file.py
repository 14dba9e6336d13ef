"""A CSV file of clicks: its columns, its rows, and what is wrong with a line."""

from collections.abc import Iterator
from datetime import tzinfo
from typing import BinaryIO, NamedTuple

from clicks import ClickReading, RowReader
from commands.csv_file import (
    DELIMITERS,
    CsvFile,
    Records,
    UnusableFileError,
    split_line,
    squeeze_title,
    strip_line,
)
from query import SUB_ID_NAMES, SUBID_NAMES, quote_value
from rows import ClickRow

OUR_NAMES = (*SUBID_NAMES, "campaign", "offer", "clicked_at", "cost_model", *SUB_ID_NAMES)

# Names by their letters and digits, so that `Sub ID 1` is sub_id_1 and `Sub ID` the click's id.
# Source: Keitaro docs, "Clicks log", on its columns; its time is `Date/Time` or `Datetime`.
_NAMES_BY_LETTERS = {
    **{squeeze_title(name): name for name in reversed(OUR_NAMES)},
    "datetime": "clicked_at",
}


class Header(NamedTuple):
    """The first line: the delimiter, our name for each column (None: unknown), the unknown."""

    delimiter: str
    names: tuple[str | None, ...]
    unknown: tuple[str, ...]


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


class ClickFile:
    """The clicks of a file; refuses one in another encoding or without click ids."""

    def __init__(self, source: BinaryIO, encoding: str | None, zone: tzinfo) -> None:
        """Take an open file, its encoding (None: UTF-8), and the zone of times without one."""
        self._file = CsvFile(source, encoding)
        self.header = read_header(self._file.take_first_line())
        self._reader = RowReader(self.header.names, zone)
        self.find_position = self._file.find_position

    def read(self) -> Iterator[Chunk]:
        """Give the lines in chunks."""
        for records in self._file.read(self.header.delimiter):
            chunk = Chunk()
            self._read_records(chunk, records)
            chunk.last_line = records.last_line
            yield chunk

    def _read_records(self, chunk: Chunk, records: Records) -> None:
        keep, read_plain = chunk.rows.append, self._reader.read_plain
        for number, cells in zip(records.numbers, records.cells, strict=True):
            row = read_plain(cells)
            if row is not None:
                keep(row)
            elif number in records.flaws:
                chunk.add(number, ClickReading(None, records.flaws[number]))
            else:
                self._read_record(chunk, number, cells)

    def _read_record(self, chunk: Chunk, number: int, cells: list[str]) -> None:
        width = len(self.header.names)
        if len(cells) > width and any(cells[width:]):
            flaw = f"{len(cells)} cells under {width} titles: is a value with commas unquoted?"
            chunk.add(number, ClickReading(None, flaw))
        elif any(cells):
            chunk.add(number, self._reader.read(cells))


def read_header(line: str) -> Header:
    """Find the delimiter and what the columns are; raises UnusableFileError without a click id."""
    line = strip_line(line)
    headers = [_read_header(line, delimiter) for delimiter in DELIMITERS]
    # max() gives the first of equals: a comma, where one column tells nothing.
    header = max(headers, key=lambda header: sum(name is not None for name in header.names))
    if not any(name in SUBID_NAMES for name in header.names):
        seen = quote_value(line)
        raise UnusableFileError(
            f"no column of the first line is the click id: call one 'subid' (the line is {seen})"
        )
    return header


def _read_header(line: str, delimiter: str) -> Header:
    names: list[str | None] = []
    unknown = []
    for title in split_line(line, delimiter):
        name = find_name(title)
        if name is None or name in names:
            unknown.append(title)
            name = None
        names.append(name)
    return Header(delimiter, tuple(names), tuple(unknown))


def find_name(title: str) -> str | None:
    """Find our name for a column's title, or None."""
    title = title.strip().lower()
    return title if title in OUR_NAMES else _NAMES_BY_LETTERS.get(squeeze_title(title))
