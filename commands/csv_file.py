"""A CSV file that somebody hands us: opened, decoded, cut into numbered records."""

import codecs
import csv
import io
import itertools
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TextIO

DELIMITERS = ",;\t"

# A cell is a name or an id; what is longer is a quote that somebody forgot to close.
LONGEST_CELL_CHARACTERS = 16 * 1024

CHUNK_LINES = 1000

_SEPARATORS = re.compile(r"[\s_/-]+")
_CHUNK_BYTES = 1024 * 1024


class UnusableFileError(Exception):
    """A file that cannot be taken as it is; the sentence says why and what to do."""


class Records(NamedTuple):
    """Some records: the number of each one's first line, its cells, and those that are no CSV.

    A record with a flaw has no cells.
    """

    numbers: Sequence[int]
    cells: Sequence[list[str]]
    flaws: Mapping[int, str]
    last_line: int


class CsvFile:
    """An open file, read line by line; refuses one in another encoding than it is said to have."""

    def __init__(self, source: BinaryIO, encoding: str | None) -> None:
        """Take an open file and its encoding (None: UTF-8, with or without a byte order mark)."""
        # Global, but this program reads no other CSV.
        csv.field_size_limit(LONGEST_CELL_CHARACTERS)
        self._source = source
        self._encoding = encoding
        codec = encoding or "utf-8-sig"
        try:
            _try_decoding(source, codec)
            self._lines = _Lines(io.TextIOWrapper(source, codec, newline=""))
        except (UnicodeError, LookupError) as error:
            raise self._wrong_encoding(error) from error

    def take_first_line(self) -> str:
        """Take the first line, without its end and mark; UnusableFileError for no line."""
        line = "".join(self._take(1))
        if not line:
            raise UnusableFileError("the file is empty")
        self._lines.number += 1
        return strip_line(line)

    def peek_first_line(self) -> str:
        """Show that line, and leave it in the file."""
        lines = self._take(1)
        self._lines.give_back(lines)
        return strip_line("".join(lines))

    def read(self, delimiter: str) -> Iterator[Records]:
        """Give what is left, some records at a time."""
        while lines := self._take(CHUNK_LINES):
            first = self._lines.number
            cells = _parse(lines, delimiter)
            if cells is None:
                self._lines.give_back(lines)
                yield self._read_slowly(len(lines), delimiter)
            else:
                self._lines.number += len(cells)
                numbers = range(first, self._lines.number)
                yield Records(numbers, cells, {}, numbers[-1])

    def find_position(self) -> int:
        """Tell how many bytes were read; 0 where the file is none that tells."""
        return self._source.tell() if self._source.seekable() else 0

    def _take(self, count: int) -> list[str]:
        try:
            return self._lines.take(count)
        except UnicodeError as error:
            raise self._wrong_encoding(error) from error

    def _read_slowly(self, count: int, delimiter: str) -> Records:
        """Read so many lines one by one, and those that end the last of their records."""
        lines = self._lines
        end = lines.number + count
        numbers: list[int] = []
        cells: list[list[str]] = []
        flaws: dict[int, str] = {}
        # Strict: a quote that is not closed shows at the next one, and swallows no lines.
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        while lines.number < end:
            numbers.append(lines.number)
            try:
                cells.append(next(records))
            except csv.Error as error:
                cells.append([])
                flaws[lines.number] = f"this is no CSV: {error}"
                # A quote may have taken lines that are none of its own.
                lines.end_record(keep=1)
            except UnicodeError as error:
                raise self._wrong_encoding(error) from error
            else:
                lines.end_record()
        return Records(numbers, cells, flaws, lines.number - 1)

    def _wrong_encoding(self, error: Exception) -> UnusableFileError:
        name = self._encoding or "UTF-8"
        return UnusableFileError(
            f"the file is not {name} ({error}): say which encoding it has, such as"
            " --encoding windows-1251 or --encoding utf-16"
        )


class _Lines:
    """The lines of a text, counted; what a record took too much can be given back."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._given_back: deque[str] = deque()
        self._record: list[str] = []
        # Of the next line or, while one is read, of the record's first.
        self.number = 1

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


def strip_line(line: str) -> str:
    """Take its end and a byte order mark off a line."""
    return line.removeprefix("\ufeff").rstrip("\r\n")


def split_line(line: str, delimiter: str) -> list[str]:
    """Split one line into cells; none where it is no CSV."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def squeeze_title(title: str) -> str:
    """Reduce a column's title to its letters and digits: `Sub ID 1` and `sub_id_1` are one."""
    return _SEPARATORS.sub("", title.strip().casefold())


def _parse(lines: Sequence[str], delimiter: str) -> list[list[str]] | None:
    """Split lines into cells; None where not each of them is a record of its own."""
    try:
        records = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return records if len(records) == len(lines) else None


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


@contextmanager
def open_file(name: str) -> Iterator[BinaryIO]:
    """Open a file by its name, `-` for standard input; raises UnusableFileError."""
    if name == "-":
        # Not sys.stdin: Python could not end while the thread that reads ahead waits for it.
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
    """Tell how many bytes a file has; None where it is none that tells."""
    if not source.seekable():
        return None
    here = source.tell()
    size = source.seek(0, 2)
    source.seek(here)
    return size
