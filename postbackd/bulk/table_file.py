"""A table of any program: its titles found, its rows numbered.

`import`, `reconcile` and `clicks import` read all files through this module. Lines before the
titles are skipped with a message; where such a line may be a row, the command stops and asks.
"""

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import BinaryIO, NamedTuple, Protocol

from postbackd.bulk.csv_file import (
    CHUNK_LINES,
    CsvFile,
    Records,
    UnusableFileError,
    look_ahead,
    split_line,
    strip_line,
)
from postbackd.bulk.file_kinds import HEAD_BYTES, FileKind, find_kind, find_zip_kind, is_zip
from postbackd.bulk.formulas import unguard_formula
from postbackd.bulk.odd_rows import is_total
from postbackd.bulk.titles import squeeze_title
from postbackd.bulk.workbook import read_workbook
from postbackd.intake.amounts import read_written
from postbackd.intake.query import PAYOUT_NAMES, SUBID_NAMES, quote_value

DELIMITERS = ",;\t|"
DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

# Reports have a name, a period, an account and a blank line or two before their titles.
HEAD_LINES = 50
# Titles that a spreadsheet has wrapped are in quotes, on several lines.
TITLE_LINES = 5

# A line of Excel's that names the delimiter.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_NUMBER = re.compile(r"[-+]?[0-9][0-9.,' ]*")
# Invisible characters around values from a page or a chat that PHP does not count as spaces. DOS
# ended a text with the first.
_UNSEEN = "\x1a\xa0\u200b\u200e\u200f\u2060\ufeff\u2009\u202f"
# Quotes as a word processor makes them of plain ones.
_TYPOGRAPHIC = re.compile("[“”„«»](.*)[“”«»]")
_SURE_TITLES = frozenset(map(squeeze_title, (*SUBID_NAMES, *PAYOUT_NAMES, "status", "currency")))
# Words, and no macro: no row has this in the place of its amount.
_WORDS_ONLY = re.compile(r"[^\W\d_][^\d{}\[\]%#<>]*")


class Shape(NamedTuple):
    """The form of a file as given by options; None where it must be found."""

    encoding: str | None = None
    delimiter: str | None = None
    skip_lines: int = 0
    sheet: str | None = None


class Titles(Enum):
    """Whether a file has a line of titles."""

    NEEDED = auto()
    POSSIBLE = auto()
    NONE = auto()


class Vocabulary(Protocol):
    """The known titles."""

    def count(self, titles: Sequence[str]) -> int:
        """Count the cells that are known titles."""

    def has_click_id(self, titles: Sequence[str]) -> bool:
        """Return whether one of them is a known title of click ids."""

    def describe_missing(self, titles: Sequence[str]) -> str:
        """Write what to do where no title is one of click ids."""


class _Head(NamedTuple):
    """A line that may be the titles: its place, delimiter, cells, and number of known ones."""

    place: int
    delimiter: str
    titles: list[str]
    known: int
    has_click_id: bool


class TableFile:
    """A file of rows; another kind of file, or one without the needed titles, is refused."""

    def __init__(
        self, source: BinaryIO, shape: Shape, vocabulary: Vocabulary, wanted: Titles
    ) -> None:
        """Read the head of an open file, with its given form and the known titles."""
        self._vocabulary = vocabulary
        self._wanted = wanted
        self._delimiter = shape.delimiter
        self._source = _open_table(source, shape, vocabulary)
        self._is_sheet = self._source is not source
        self._encoding = "utf-8" if self._is_sheet else shape.encoding
        if self._is_sheet:
            self._delimiter = ","
        self._start = self._source.tell() if self._source.seekable() else None
        self._csv = CsvFile(self._source, self._encoding)
        # The skipped lines, in sentences.
        self.notes: list[str] = []
        self.titles: list[str] = []
        # The first row, where there are no titles.
        self.first: list[str] = []
        self._passed = self._skip(shape.skip_lines)
        self._find_titles()

    @property
    def delimiter(self) -> str:
        """The character between the cells."""
        return self._delimiter or ","

    def read(self) -> Iterator[Records]:
        """Yield the rows, some at a time, their cells without a spreadsheet's quotes and signs."""
        for records in self._csv.read(self.delimiter):
            if _may_be_dirty("".join(records.texts)):
                for place, text in enumerate(records.texts):
                    if _may_be_dirty(text):
                        records.cells[place] = [_clean(cell) for cell in records.cells[place]]
            yield records

    def look_through(self, place: int, rows: int | None = None) -> Iterator[str]:
        """Yield the cells of a column before the rows are read, of all rows or the first `rows`.

        No cells where a file can be read only once.
        """
        if self._start is None:
            return
        self._begin_anew()
        records = itertools.islice(self._csv.read(self.delimiter), rows and -(-rows // CHUNK_LINES))
        try:
            for cells in itertools.chain.from_iterable(some.cells for some in records):
                if place < len(cells):
                    yield _clean(cells[place])
        finally:
            self._begin_anew()

    def find_position(self) -> int:
        """Return the number of bytes read; 0 for a pipe."""
        return 0 if self._is_sheet else self._csv.find_position()

    def _begin_anew(self) -> None:
        assert self._start is not None
        self._csv.leave()
        self._source.seek(self._start)
        self._csv = CsvFile(self._source, self._encoding, is_known=True)
        self._skip(self._passed)

    def _skip(self, count: int) -> int:
        for _ in range(count):
            if self._csv.take_line() is None:
                raise UnusableFileError(f"the file has no more than {count} lines to skip")
        return count

    def _find_titles(self) -> None:
        lines = self._take_head()
        texts = [strip_line(line) for line in lines]
        if not any(text.strip() for text in texts) and self._wanted is not Titles.POSSIBLE:
            raise UnusableFileError("the file is empty")
        if self._wanted is Titles.NONE:
            self._begin_rows(lines, self._pass_separator(texts))
            return
        heads = [head for place in range(len(texts)) if (head := self._read_head(place, texts))]
        best = max(heads, key=lambda head: (head.has_click_id, head.known), default=None)
        if best is not None and (best.has_click_id or self._wanted is Titles.POSSIBLE):
            self._take_titles(best, lines, texts)
        elif self._wanted is Titles.NEEDED:
            raise UnusableFileError(self._describe_missing(best, texts))
        else:
            self._begin_titleless(lines, texts)

    def _take_head(self) -> list[str]:
        """Read the records that may come before the titles, or one from a pipe."""
        records: list[str] = []
        while len(records) < HEAD_LINES and (line := self._take_record()):
            records.append(line)
            if self._start is None and self._is_enough(strip_line(line)):
                break
        return records

    def _take_record(self) -> str:
        """Read a line, with further lines where a quote continues over them; empty at the end."""
        first = self._csv.take_line() or ""
        more: list[str] = []
        while "".join((first, *more)).count('"') % 2 and len(more) < TITLE_LINES:
            line = self._csv.take_line()
            if line is None:
                break
            more.append(line)
        if "".join((first, *more)).count('"') % 2:
            # The quote is never closed: the lines are separate.
            self._csv.give_back(more)
            return first
        return "".join((first, *more))

    def _is_enough(self, text: str) -> bool:
        # A person who types into a pipe does not write fifty lines first.
        if self._wanted is Titles.NONE:
            return bool(text.strip()) and not _SEPARATOR_LINE.fullmatch(text)
        head = self._read_head(0, [text])
        if head is not None and head.has_click_id:
            return head.known > 1 or len(head.titles) == 1
        return self._wanted is Titles.POSSIBLE and looks_like_row(self._split(text))

    def _read_head(self, place: int, texts: Sequence[str]) -> _Head | None:
        """Read a line as titles; None where it cannot be titles."""
        text = texts[place]
        given = self._delimiter or self._find_separator(texts)
        heads = []
        for delimiter in given or DELIMITERS:
            titles = split_line(text, delimiter)
            if known := self._vocabulary.count(titles):
                has_click_id = self._vocabulary.has_click_id(titles)
                heads.append(_Head(place, delimiter, titles, known, has_click_id))
        # max() returns the first of equals: the comma, where there is only one column.
        best = max(heads, key=lambda head: (head.known, len(head.titles)), default=None)
        if best is None or any(_NUMBER.fullmatch(title.strip()) for title in best.titles):
            return None
        is_sure = self._wanted is Titles.NEEDED or _are_sure(best.titles, best.known)
        return best if is_sure else None

    def _take_titles(self, head: _Head, lines: Sequence[str], texts: Sequence[str]) -> None:
        if not head.has_click_id:
            raise UnusableFileError(self._describe_missing(head, texts))
        self.titles = [title.strip() for title in head.titles]
        self._delimiter = head.delimiter
        before = [n for n in range(head.place) if texts[n].strip() and not _is_separator(texts[n])]
        for place in before:
            if self._wanted is Titles.POSSIBLE and looks_like_row(self._split(texts[place])):
                titles = self._number(lines, head.place)
                raise UnusableFileError(
                    f"line {self._number(lines, place)} looks like a row"
                    f" ({quote_value(texts[place])}), but line {titles} names columns: if it is no"
                    f" row, add --skip-lines {titles - 1}"
                )
        if before:
            self.notes.append(_describe_skipped([self._number(lines, place) for place in before]))
        self._begin_rows(lines, head.place + 1)

    def _begin_titleless(self, lines: Sequence[str], texts: Sequence[str]) -> None:
        start = self._pass_separator(texts)
        first = next((text for text in texts[start:] if text.strip()), "")
        if self._delimiter is None:
            self._delimiter = _choose_delimiter(first)
        self.first = cells = split_line(first, self.delimiter)
        if len(cells) > 1 and _WORDS_ONLY.fullmatch(cells[1].strip()) and cells[0].strip():
            written = read_written(cells[1].strip())
            if written.flaw:
                raise UnusableFileError(
                    f"the first line is no row, since {quote_value(cells[1].strip())} is no amount,"
                    f" and its titles are not known ({quote_value(first)}): name the columns with"
                    " --subid-column and the like, or skip the line with --skip-lines 1"
                )
        self._begin_rows(lines, start)

    def _begin_rows(self, lines: Sequence[str], start: int) -> None:
        self._csv.give_back(_cut(lines[start:]))
        self._passed += len(_cut(lines[:start]))

    def _pass_separator(self, texts: Sequence[str]) -> int:
        """Read Excel's `sep=` line; returns the place of the line behind it."""
        for place, text in enumerate(texts):
            if _is_separator(text):
                self._delimiter = self._delimiter or self._find_separator(texts)
                return place + 1
            if text.strip():
                break
        return 0

    @staticmethod
    def _find_separator(texts: Sequence[str]) -> str | None:
        first = next((text.strip() for text in texts if text.strip()), "")
        found = _SEPARATOR_LINE.fullmatch(first)
        return found[1] if found else None

    def _describe_missing(self, head: _Head | None, texts: Sequence[str]) -> str:
        first = next((text for text in texts if text.strip()), "")
        what = self._vocabulary.describe_missing([] if head is None else head.titles)
        if head is None:
            return f"{what} (the first line is {quote_value(first)})"
        return (
            f"{what} (line {self._number(texts, head.place)} is {quote_value(texts[head.place])})"
        )

    def _number(self, lines: Sequence[str], place: int) -> int:
        """Return the number in the file of a record's first line."""
        return self._passed + sum(max(1, len(_LINE.findall(text))) for text in lines[:place]) + 1

    def _split(self, text: str) -> list[str]:
        return split_line(text, self._delimiter or max(DELIMITERS, key=text.count))


def _are_sure(titles: Sequence[str], known: int) -> bool:
    """Return whether cells are surely titles, and no row: a click id may be s1 or order."""
    if known == 1:
        return len(titles) == 1 and squeeze_title(titles[0]) in _SURE_TITLES
    # A row may have empty fields between others, titles have none.
    return all(",".join(title.strip() for title in titles).strip(",").split(","))


def looks_like_row(cells: Sequence[str]) -> bool:
    """Return whether cells are a click id and an amount, and neither a title nor a total."""
    if len(cells) < 2 or not cells[0].strip() or " " in cells[0].strip() or is_total(cells[0]):
        return False
    return read_written(cells[1].strip()).amount is not None


def _cut(records: Sequence[str]) -> list[str]:
    """Cut records into their lines."""
    return [line for record in records for line in _LINE.findall(record)]


def _is_separator(text: str) -> bool:
    return _SEPARATOR_LINE.fullmatch(text.strip()) is not None


def _may_be_dirty(text: str) -> bool:
    return "'" in text or '="' in text or "\x1a" in text or not text.isascii()


def _clean(cell: str) -> str:
    """Remove what spreadsheets and pages add around a value: `="C1"`, `'=x`, no-break blanks."""
    cell = cell.strip(_UNSEEN)
    if quoted := _TYPOGRAPHIC.fullmatch(cell.strip()):
        return quoted[1]
    if cell.startswith('="') and cell.endswith('"') and len(cell) > 2:
        return cell[2:-1].replace('""', '"')
    return unguard_formula(cell)


def _choose_delimiter(line: str) -> str:
    """Find the delimiter of a row; UnusableFileError where it may be one of two."""
    other = max(DELIMITERS, key=line.count)
    if other == "," or not line.count(other):
        return ","
    if "," in line:
        name = "tab" if other == "\t" else other
        raise UnusableFileError(
            f"the first line has more {DELIMITER_NAMES[other]} than commas ({quote_value(line)}):"
            f" if they are the delimiters, add --delimiter {name!r}"
        )
    return other


def _describe_skipped(numbers: Sequence[int]) -> str:
    span = (
        f"line {numbers[0]} is"
        if len(numbers) == 1
        else (f"lines {numbers[0]} to {numbers[-1]} are")
    )
    return f"{span} before the titles and {'is' if len(numbers) == 1 else 'are'} skipped"


def _open_table(source: BinaryIO, shape: Shape, vocabulary: Vocabulary) -> BinaryIO:
    """Return the source itself where it is text, else the sheet that has the titles."""
    head = look_ahead(source, HEAD_BYTES)
    kind = find_kind(head)
    if is_zip(head):
        source = source if source.seekable() else io.BytesIO(source.read())
        start = source.tell()
        kind = find_zip_kind(source)
        source.seek(start)
    if kind is None or (kind.name.startswith("no text") and shape.encoding):
        return source
    if not kind.is_workbook:
        raise UnusableFileError(f"the file is {kind.name}: {kind.remedy}")
    source = source if source.seekable() else io.BytesIO(source.read())
    return _choose_sheet(source, kind, shape, vocabulary)


def _choose_sheet(
    source: BinaryIO, kind: FileKind, shape: Shape, vocabulary: Vocabulary
) -> BinaryIO:
    sheets = read_workbook(source, kind)
    names = ", ".join(repr(sheet.name) for sheet in sheets)
    if shape.sheet is not None:
        sheets = [sheet for sheet in sheets if sheet.name == shape.sheet]
        if not sheets:
            raise UnusableFileError(f"no sheet is {shape.sheet!r}: there are {names}")
    if len(sheets) > 1:
        sheets = [sheet for sheet in sheets if _has_titles(sheet.text, vocabulary)] or sheets
    sheets = [sheet for sheet in sheets if sheet.text.strip(b'", \r\n')] or sheets
    if len(sheets) != 1:
        raise UnusableFileError(
            f"the file is {kind.name} with several sheets: say which, --sheet with one of {names}"
        )
    return io.BytesIO(sheets[0].text)


def _has_titles(text: bytes, vocabulary: Vocabulary) -> bool:
    lines = text.decode().splitlines()[:HEAD_LINES]
    return any(vocabulary.has_click_id(split_line(line, ",")) for line in lines)
