"""A CSV file of clicks: its encoding, its columns, its rows, and what is wrong with a line."""

import codecs
import csv
import io
import itertools
import queue
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
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
CHUNKS_AHEAD = 8
SWITCH_SECONDS = 0.001

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


class ClickFile:
    """The clicks of a file, line by line; refuses one in another encoding or without click ids."""

    def __init__(self, source: BinaryIO, encoding: str | None, zone: tzinfo) -> None:
        """Take an open file, its encoding (None: UTF-8), and the zone of times without one."""
        # Global, but this program reads no other CSV.
        csv.field_size_limit(LONGEST_CELL_CHARACTERS)
        self._source = source
        self._zone = zone
        self._encoding = encoding
        codec = encoding or "utf-8-sig"
        try:
            _try_decoding(source, codec)
            self._lines = _Lines(io.TextIOWrapper(source, codec, newline=""))
            self.header = read_header(next(self._lines, ""))
        except (UnicodeError, LookupError) as error:
            raise self._wrong_encoding(error) from error
        self._lines.end_record()

    def read(self) -> Iterator[tuple[int, ClickReading]]:
        """Give the clicks, each with its line's number (the first line has 1)."""
        reader = RowReader(self.header.names, self._zone)
        while True:
            try:
                yield from self._read_records(reader)
            except csv.Error as error:
                yield self._lines.number, ClickReading(None, f"this is no CSV: {error}")
                self._lines.give_back()
            except UnicodeError as error:
                raise self._wrong_encoding(error) from error
            else:
                return

    def find_position(self) -> int:
        """Tell how many bytes were read; 0 where the file is none that tells."""
        return self._source.tell() if self._source.seekable() else 0

    def _read_records(self, reader: RowReader) -> Iterator[tuple[int, ClickReading]]:
        lines = self._lines
        width = len(self.header.names)
        # Strict: a quote that is not closed shows at the next one, and swallows no lines.
        for cells in csv.reader(lines, delimiter=self.header.delimiter, strict=True):
            if len(cells) > width and any(cells[width:]):
                flaw = f"{len(cells)} cells under {width} titles: is a value with commas unquoted?"
                yield lines.number, ClickReading(None, flaw)
            elif any(cells):
                yield lines.number, reader.read(cells)
            lines.end_record()

    def _wrong_encoding(self, error: Exception) -> RefusedError:
        name = self._encoding or "UTF-8"
        return RefusedError(
            f"the file is not {name} ({error}): say which encoding it has, such as"
            " --encoding windows-1251 or --encoding utf-16"
        )


class Chunk(NamedTuple):
    """Some lines: their clicks, those there is something to say about, how far they reach."""

    rows: list[ClickRow]
    noted: list[tuple[int, ClickReading]]
    lines: int
    last_line: int
    position: int


def read_ahead(click_file: ClickFile) -> Iterator[Chunk]:
    """Give the lines in chunks, read by a thread of its own while SQLite is at work."""
    chunks: queue.Queue[Chunk | BaseException | None] = queue.Queue(CHUNKS_AHEAD)
    # SQLite's calls let the other thread run; five milliseconds (Python's own) to get the turn
    # back, with the write lock held, would be long.
    sys.setswitchinterval(SWITCH_SECONDS)
    reader = threading.Thread(target=_fill, args=(click_file, chunks), daemon=True)
    reader.start()
    while (chunk := chunks.get()) is not None:
        if isinstance(chunk, BaseException):
            raise chunk
        yield chunk


def _fill(click_file: ClickFile, chunks: "queue.Queue[Chunk | BaseException | None]") -> None:
    try:
        lines = click_file.read()
        while some := list(itertools.islice(lines, CHUNK_LINES)):
            rows = [click.row for _, click in some if click.row is not None]
            noted = [(n, click) for n, click in some if click.row is None or click.warnings]
            chunks.put(Chunk(rows, noted, len(some), some[-1][0], click_file.find_position()))
    except BaseException as error:  # the edge of a thread: raised again where it is read
        chunks.put(error)
    else:
        chunks.put(None)


class _Lines:
    """The lines of a text; those of the record at hand, but for the first, can be given back."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._given_back: deque[str] = deque()
        self._record: list[str] = []
        self.number = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._text)
        self._record.append(line)
        return line

    def end_record(self) -> None:
        """Go on to the next record."""
        self.number += len(self._record)
        self._record.clear()

    def give_back(self) -> None:
        """Go on to the line after the record's first."""
        self._given_back.extendleft(reversed(self._record[1:]))
        del self._record[1:]
        self.end_record()


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
