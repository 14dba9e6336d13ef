"""A network's own CSV report: its columns, found by name or given, and its rows as lines."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import BinaryIO, NamedTuple

from clicks import read_moment
from commands.conversion_lines import LINE_NAMES, Line, LineReader, Said
from commands.csv_file import (
    DELIMITERS,
    CsvFile,
    Records,
    UnusableFileError,
    split_line,
    squeeze_title,
)
from query import quote_value

TIME = "time"
COLUMN_NAMES = (*LINE_NAMES, TIME)

# What networks call their columns, by letters and digits alone; of two that a report has, the one
# named first here is taken. A network hands the click id back under whatever name it gave it.
SYNONYMS: Mapping[str, Sequence[str]] = {
    "subid": (
        *("subid", "clickid", "affsub", "affclickid", "externalid", "clickref", "sub1", "subid1"),
        *("affsub1", "s1", "aff1", "dv1", "cid"),
    ),
    "tid": (
        *("tid", "transactionid", "txid", "txnid", "transaction", "orderid", "order"),
        *("conversionid", "actionid", "leadid", "saleid"),
    ),
    "payout": (
        *("payout", "amount", "commission", "revenue", "profit", "earnings", "reward", "sum"),
        *("payoutamount", "conversionpayout"),
    ),
    "status": ("status", "state", "conversionstatus", "actionstatus", "leadstatus"),
    "currency": ("currency", "currencycode", "payoutcurrency", "cur"),
    TIME: (
        *("time", "datetime", "date", "conversiontime", "conversiondate", "createdat", "created"),
        *("timestamp", "actiondate", "orderdate"),
    ),
}


_SECOND, _DAY = timedelta(seconds=1), timedelta(days=1)


class Columns(NamedTuple):
    """Where each of our names stands in a row (None: nowhere), and the titles."""

    delimiter: str
    places: Mapping[str, int]
    titles: Sequence[str]

    def describe(self) -> str:
        """Say which column is read as what."""
        return "columns: " + ", ".join(
            f"{name} {self.titles[place] if self.titles else place + 1!r}"
            for name, place in self.places.items()
        )


class ReportRow(NamedTuple):
    """A row: what it says, and when it says that it happened; `end` is where that is over."""

    line: Line
    at: datetime | None = None
    end: datetime | None = None


class ReportFile:
    """The rows of a report; refuses a file in another encoding or without click ids."""

    def __init__(self, source: BinaryIO, args: argparse.Namespace, reader: LineReader) -> None:
        """Take an open file, the options of `add_report_options`, and the reader of lines."""
        self._file = CsvFile(source, args.encoding)
        line = self._file.peek_first_line() if args.no_titles else self._file.take_first_line()
        self.columns = find_columns(line, args)
        self._reader = reader
        self._zone: tzinfo = args.tz
        self.find_position = self._file.find_position

    def read(self) -> Iterator[list[ReportRow]]:
        """Give the rows, some at a time; empty ones are left out."""
        for records in self._file.read(self.columns.delimiter):
            yield list(self._read_records(records))

    def _read_records(self, records: Records) -> Iterator[ReportRow]:
        for number, cells in zip(records.numbers, records.cells, strict=True):
            if number in records.flaws:
                yield ReportRow(Line(number, Said(), flaw=records.flaws[number]))
            elif any(map(str.strip, cells)):
                yield self._read_row(number, cells)

    def _read_row(self, number: int, cells: Sequence[str]) -> ReportRow:
        width = len(self.columns.titles)
        if width and any(cells[width:]):
            flaw = f"{len(cells)} cells under {width} titles: is a value with commas unquoted?"
            return ReportRow(Line(number, Said(), flaw=flaw))
        text = {
            name: cells[place] for name, place in self.columns.places.items() if place < len(cells)
        }
        time = text.pop(TIME, "").strip()
        at = read_moment(time, self._zone) if time else None
        line = self._reader.read(number, Said(**text))
        if at is None:
            return ReportRow(line)
        # A bare date is its whole day.
        return ReportRow(line, at, at + (_SECOND if ":" in time or time.isdigit() else _DAY))


def find_columns(line: str, args: argparse.Namespace) -> Columns:
    """Find the columns in the line of titles; UnusableFileError without a click id."""
    given = {name: text for name in COLUMN_NAMES if (text := getattr(args, f"{name}_column"))}
    signs = DELIMITERS if args.delimiter is None else args.delimiter.replace("tab", "\t")
    found = [_find_columns(line, sign, given, has_titles=not args.no_titles) for sign in signs]
    # max() gives the first of equals: a comma, where one column tells nothing.
    columns = max(found, key=lambda columns: (len(columns.places), len(columns.titles)))
    for name, text in given.items():
        if name not in columns.places:
            raise UnusableFileError(
                f"no column is {text!r} (the first line is {quote_value(line)})"
            )
    if "subid" not in columns.places:
        raise UnusableFileError(
            f"no column is known to hold the click id (the first line is {quote_value(line)}):"
            " name it with --subid-column, or, where that line is a row already, give the columns"
            " by number with --no-titles"
        )
    return columns


def _find_columns(
    line: str, delimiter: str, given: Mapping[str, str], *, has_titles: bool
) -> Columns:
    cells = split_line(line, delimiter)
    squeezed = [squeeze_title(cell) for cell in cells] if has_titles else []
    places = {}
    for name in COLUMN_NAMES:
        if name in given:
            place = _find_given(given[name], squeezed, len(cells))
        else:
            known = (squeezed.index(synonym) for synonym in SYNONYMS[name] if synonym in squeezed)
            place = next(known, None)
        if place is not None:
            places[name] = place
    return Columns(delimiter, places, [cell.strip() for cell in cells] if has_titles else [])


def _find_given(text: str, squeezed: Sequence[str], width: int) -> int | None:
    if squeeze_title(text) in squeezed:
        return squeezed.index(squeeze_title(text))
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= width:
        return int(text) - 1
    return None
