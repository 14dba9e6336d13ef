"""A CSV file of clicks: its encoding, its columns, its rows, and what is wrong with a line."""

import codecs
import csv
import io
import itertools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import tzinfo
from typing import BinaryIO, NamedTuple, TextIO

from clicks import ClickReading, RowReader
from commands.tracker import RefusedError
from query import SUB_ID_NAMES, SUBID_NAMES, quote_value
from storage import ClickRow

DELIMITERS = ",;\t"

# A cell is a name or an id; what is longer is a quote that somebody forgot to close.
LONGEST_CELL_CHARACTERS = 16 * 1024

OUR_NAMES = (*SUBID_NAMES, "campaign", "offer", "clicked_at", "cost_model", *SUB_ID_NAMES)

CHUNK_LINES = 1000

_SEPARATORS = re.compile(r"[\s_/-]+")
_CHUNK_BYTES = 1024 * 1024


def _squeeze(name: str) -> str:
    return _SEPARATORS.sub("", name.strip().casefold())


# Names by their letters and digits, so that `Sub ID 1` is sub_id_1 and `Sub ID` the click's id.
# Source: Keitaro docs, "Clicks log", on its columns; its time is `Date/Time` or `Datetime`.
_NAMES_BY_LETTERS = {
    **{_squeeze(name): name for name in reversed(OUR_NAMES)},
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
        # Global, but this program reads no other CSV.
        csv.field_size_limit(LONGEST_CELL_CHARACTERS)
        self._source = source
        self._encoding = encoding
        codec = encoding or "utf-8-sig"
        try:
            _try_decoding(source, codec)
            text = io.TextIOWrapper(source, codec, newline="")
            self.header = read_header(text.readline())
        except (UnicodeError, LookupError) as error:
            raise self._wrong_encoding(error) from error
        self._reader = RowReader(self.header.names, zone)
        self._lines = _Lines(text)

    def read(self) -> Iterator[Chunk]:
        """Give the lines in chunks."""
        try:
            while lines := self._lines.take(CHUNK_LINES):
                chunk = Chunk()
                records = self._parse_lines(lines)
                if records is None:
                    self._lines.give_back(lines)
                    self._read_slowly(chunk, len(lines))
                else:
                    self._read_quickly(chunk, records)
                chunk.last_line = self._lines.number - 1
                yield chunk
        except UnicodeError as error:
            raise self._wrong_encoding(error) from error

    def find_position(self) -> int:
        """Tell how many bytes were read; 0 where the file is none that tells."""
        return self._source.tell() if self._source.seekable() else 0

    def _parse_lines(self, lines: Sequence[str]) -> list[list[str]] | None:
        """Split lines into cells; None where not each of them is a record of its own."""
        try:
            # Strict: a quote that is not closed shows at the next one, and swallows no lines.
            records = list(csv.reader(lines, delimiter=self.header.delimiter, strict=True))
        except csv.Error:
            return None
        return records if len(records) == len(lines) else None

    def _read_quickly(self, chunk: Chunk, records: Sequence[list[str]]) -> None:
        keep, read_plain = chunk.rows.append, self._reader.read_plain
        first = self._lines.number
        for place, cells in enumerate(records):
            row = read_plain(cells)
            if row is None:
                self._read_record(chunk, first + place, cells)
            else:
                keep(row)
        self._lines.number += len(records)

    def _read_slowly(self, chunk: Chunk, count: int) -> None:
        """Read so many lines one by one, and those that end the last of their records."""
        end = self._lines.number + count
        records = csv.reader(self._lines, delimiter=self.header.delimiter, strict=True)
        while self._lines.number < end:
            try:
                cells = next(records)
            except csv.Error as error:
                chunk.add(self._lines.number, ClickReading(None, f"this is no CSV: {error}"))
                # A quote may have taken lines that are none of its own.
                self._lines.end_record(keep=1)
            else:
                self._read_record(chunk, self._lines.number, cells)
                self._lines.end_record()

    def _read_record(self, chunk: Chunk, number: int, cells: Sequence[str]) -> None:
        width = len(self.header.names)
        if len(cells) > width and any(cells[width:]):
            flaw = f"{len(cells)} cells under {width} titles: is a value with commas unquoted?"
            chunk.add(number, ClickReading(None, flaw))
        elif any(cells):
            chunk.add(number, self._reader.read(cells))

    def _wrong_encoding(self, error: Exception) -> RefusedError:
        name = self._encoding or "UTF-8"
        return RefusedError(
            f"the file is not {name} ({error}): say which encoding it has, such as"
            " --encoding windows-1251 or --encoding utf-16"
        )


class _Lines:
    """The lines of a text, counted; what a record took too much can be given back."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._given_back: deque[str] = deque()
        self._record: list[str] = []
        # Of the next line or, while one is read, of the record's first. The header was line 1.
        self.number = 2

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._text)
        self._record.append(line)
        return line

    def take(self, count: int) -> list[str]:
        """Take some lines; fewer where the text ends."""
        given_back = [self._given_back.popleft() for _ in range(min(count, len(self._given_back)))]
        return given_back + list(itertools.islice(self._text, count - len(given_back)))

    def give_back(self, lines: Sequence[str]) -> None:
        """Take lines back, to give them again."""
        self._given_back.extendleft(reversed(lines))

    def end_record(self, keep: int | None = None) -> None:
        """Go on after the record, or after so many of its lines."""
        kept = len(self._record) if keep is None else keep
        self.give_back(self._record[kept:])
        self.number += min(kept, len(self._record))
        self._record.clear()


def read_header(line: str) -> Header:
    """Find the delimiter and what the columns are; raises RefusedError without a click id."""
    line = line.removeprefix("\ufeff").rstrip("\r\n")
    headers = [_read_header(line, delimiter) for delimiter in DELIMITERS]
    # max() gives the first of equals: a comma, where one column tells nothing.
    header = max(headers, key=lambda header: sum(name is not None for name in header.names))
    if not any(name in SUBID_NAMES for name in header.names):
        seen = quote_value(line)
        raise RefusedError(
            f"no column of the first line is the click id: call one 'subid' (the line is {seen})"
        )
    return header


def _read_header(line: str, delimiter: str) -> Header:
    try:
        titles = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        titles = []
    names: list[str | None] = []
    unknown = []
    for title in titles:
        name = find_name(title)
        if name is None or name in names:
            unknown.append(title)
            name = None
        names.append(name)
    return Header(delimiter, tuple(names), tuple(unknown))


def find_name(title: str) -> str | None:
    """Find our name for a column's title, or None."""
    title = title.strip().lower()
    return title if title in OUR_NAMES else _NAMES_BY_LETTERS.get(_squeeze(title))


def _try_decoding(source: BinaryIO, codec: str) -> None:
    """Read a file through before anything of it is taken; what comes from a pipe is not."""
    if not source.seekable():
        return
    start = source.tell()
    decoder = codecs.getincrementaldecoder(codec)()
    while chunk := source.read(_CHUNK_BYTES):
        decoder.decode(chunk)
    decoder.decode(b"", final=True)
    source.seek(start)
