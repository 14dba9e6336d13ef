"""A CSV file: opened, decoded, cut into numbered records."""

import codecs
import csv
import io
import itertools
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

# A cell is a name or an id; a longer one has a quote that was never closed.
LONGEST_CELL_CHARACTERS = 16 * 1024

CHUNK_LINES = 1000

_CHUNK_BYTES = 1024 * 1024

# Byte order marks and their encodings. The longer ones first: they begin with the shorter.
# Source: the Unicode standard.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class UnusableFileError(Exception):
    """A file that cannot be read; the sentence says why and what to do."""


class Records(NamedTuple):
    """Some records: the number of each one's first line, its cells, and its text.

    A record with a flaw has no cells.
    """

    numbers: Sequence[int]
    cells: list[list[str]]
    texts: Sequence[str]
    flaws: Mapping[int, str]
    last_line: int


class CsvFile:
    """An open file, read line by line; a file in another encoding than the given one is refused."""

    def __init__(self, source: BinaryIO, encoding: str | None, *, is_known: bool = False) -> None:
        """Remember an open file and its encoding (None: that of its mark, else UTF-8).

        `is_known`: the encoding was checked before.
        """
        # The limit is global, but this program reads no other CSV.
        csv.field_size_limit(LONGEST_CELL_CHARACTERS)
        self._source = source
        codec = _find_mark(look_ahead(source, 4)) or encoding or "utf-8"
        self._encoding = codec
        try:
            if not is_known:
                _try_decoding(source, codec)
            self._lines = _Lines(io.TextIOWrapper(source, codec, newline=""))
        except (UnicodeError, LookupError) as error:
            raise self._wrong_encoding(error) from error

    def take_line(self) -> str | None:
        """Read a line with its end; None at the end of the file."""
        lines = self._take(1)
        self._lines.number += len(lines)
        return lines[0] if lines else None

    def give_back(self, lines: Sequence[str]) -> None:
        """Put back the last lines, to be read again."""
        self._lines.number -= len(lines)
        self._lines.give_back(lines)

    def read(self, delimiter: str) -> Iterator[Records]:
        """Yield the remaining records, some at a time."""
        while lines := self._take(CHUNK_LINES):
            first = self._lines.number
            cells = _parse(lines, delimiter)
            if cells is None:
                self._lines.give_back(lines)
                yield self._read_slowly(len(lines), delimiter)
            else:
                self._lines.number += len(cells)
                numbers = range(first, self._lines.number)
                yield Records(numbers, cells, lines, {}, numbers[-1])

    def leave(self) -> None:
        """Detach from the open file, which stays open."""
        self._lines.leave()

    def find_position(self) -> int:
        """Return the number of bytes read; 0 for a pipe."""
        return self._source.tell() if self._source.seekable() else 0

    def _take(self, count: int) -> list[str]:
        try:
            return self._lines.take(count)
        except UnicodeError as error:
            raise self._wrong_encoding(error) from error

    def _read_slowly(self, count: int, delimiter: str) -> Records:
        """Read `count` lines one by one, and further lines up to the end of the last record."""
        lines = self._lines
        end = lines.number + count
        numbers: list[int] = []
        cells: list[list[str]] = []
        texts: list[str] = []
        flaws: dict[int, str] = {}
        # Strict: an unclosed quote is an error at the next quote, and swallows no lines.
        records = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        while lines.number < end:
            numbers.append(lines.number)
            try:
                cells.append(next(records))
            except csv.Error as error:
                cells.append([])
                flaws[lines.number] = f"this is no CSV: {error}"
                # An unclosed quote may have read lines of other records.
                texts.append(lines.end_record(keep=1))
            except UnicodeError as error:
                raise self._wrong_encoding(error) from error
            else:
                texts.append(lines.end_record())
        return Records(numbers, cells, texts, flaws, lines.number - 1)

    def _wrong_encoding(self, error: Exception) -> UnusableFileError:
        name = self._encoding.upper() if self._encoding == "utf-8" else self._encoding
        return UnusableFileError(
            f"the file is not {name} ({error}): write which encoding it has, such as"
            " --encoding windows-1251 or --encoding utf-16"
        )


class _Lines:
    """The lines of a text, counted; lines beyond the end of a record can be put back."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._given_back: deque[str] = deque()
        self._record: list[str] = []
        # The number of the next line or, while a record is read, of the record's first line.
        self.number = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._text)
        self._record.append(line)
        return line

    def leave(self) -> None:
        """Detach from the file below the text."""
        self._text.detach()

    def take(self, count: int) -> list[str]:
        """Read some lines; fewer at the end of the text."""
        given_back = [self._given_back.popleft() for _ in range(min(count, len(self._given_back)))]
        return given_back + list(itertools.islice(self._text, count - len(given_back)))

    def give_back(self, lines: Sequence[str]) -> None:
        """Put lines back, to be read again."""
        self._given_back.extendleft(reversed(lines))

    def end_record(self, keep: int | None = None) -> str:
        """Continue after the record, or after `keep` of its lines; returns their text."""
        kept = self._record if keep is None else self._record[:keep]
        self.give_back(self._record[len(kept) :])
        self.number += len(kept)
        self._record = []
        return "".join(kept)


def strip_line(line: str) -> str:
    """Remove the line end and a byte order mark."""
    return line.removeprefix("\ufeff").rstrip("\r\n")


def split_line(line: str, delimiter: str) -> list[str]:
    """Split one line into cells; no cells where it is no CSV."""
    try:
        rows = csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True)
        return next(rows, [])
    except csv.Error:
        return []


def _parse(lines: Sequence[str], delimiter: str) -> list[list[str]] | None:
    """Split lines into cells; None where a record has several lines."""
    try:
        # skipinitialspace: a quote behind a delimiter and blanks opens a cell, too.
        rows = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        records = list(rows)
    except csv.Error:
        return None
    return records if len(records) == len(lines) else None


def look_ahead(source: BinaryIO, size: int) -> bytes:
    """Return the first bytes of a file, without reading past them."""
    if source.seekable():
        start = source.tell()
        head = source.read(size)
        source.seek(start)
        return head
    peek = getattr(source, "peek", None)
    return peek(size)[:size] if peek else b""


def _find_mark(head: bytes) -> str | None:
    return next((codec for mark, codec in _MARKS if head.startswith(mark)), None)


def _try_decoding(source: BinaryIO, codec: str) -> None:
    """Decode a file once before any row is imported; a pipe cannot be checked so."""
    if not source.seekable():
        return
    start = source.tell()
    decoder = codecs.getincrementaldecoder(codec)()
    while chunk := source.read(_CHUNK_BYTES):
        decoder.decode(chunk)
    decoder.decode(b"", final=True)
    source.seek(start)


@contextmanager
def open_file(name: str) -> Iterator[BinaryIO]:
    """Open a file by its name, `-` for standard input; raises UnusableFileError."""
    if name == "-":
        # Not sys.stdin: Python could not exit while the thread that reads ahead waits for it.
        with open(sys.stdin.fileno(), "rb", closefd=False) as source:
            yield source
        return
    try:
        source = open(name, "rb")  # noqa: SIM115  # closed below; errors here are its own
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UnusableFileError(f"{name!r} cannot be read: {why}") from error
    with source:
        yield source


def find_size(source: BinaryIO) -> int | None:
    """Return the size of a file in bytes; None for a pipe."""
    if not source.seekable():
        return None
    here = source.tell()
    size = source.seek(0, 2)
    source.seek(here)
    return size
