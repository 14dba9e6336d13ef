"""A workbook of Excel's (.xlsx), read as a CSV file: each sheet's rows, numbered as there."""

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import BinaryIO, NamedTuple

from postbackd.bulk.csv_file import UnusableFileError
from postbackd.bulk.file_kinds import FileKind

# A larger workbook is no report, or a ZIP made to fill the memory.
LARGEST_BYTES = 512 * 1024 * 1024

# A million rows of twenty columns; in memory that is some hundred megabytes.
LARGEST_CELLS = 20_000_000
_SHEET = re.compile(r"xl/worksheets/[^/]+\.xml")
_ROW = re.compile(rb'<(?:row|c)\b[^>]*?\br="[A-Z]{0,9}([0-9]{1,18})"')
_COLUMN = re.compile(rb'<c\b[^>]*?\br="([A-Z]{1,9})[0-9]')

# A spreadsheet stores 15 digits of a number: it has changed a longer id.
_EXACT_BELOW = 10**15

_LINE_END = re.compile(r"\s*[\r\n]\s*")

_Value = str | float | bool | datetime | date | time | timedelta


class Sheet(NamedTuple):
    """A visible sheet: its name, and its rows as CSV."""

    name: str
    text: bytes


def read_workbook(source: BinaryIO, kind: FileKind) -> list[Sheet]:
    """Read the sheets of a workbook; UnusableFileError where that is not possible."""
    try:
        import python_calamine  # noqa: PLC0415  # an extra
    except ImportError:
        raise UnusableFileError(
            f"the file is {kind.name}: {kind.remedy}, or install the extra that reads such files:"
            " pip install 'postback[xlsx]'"
        ) from None
    _refuse_large(source)
    try:
        workbook = python_calamine.load_workbook(source)
        return [
            Sheet(sheet.name, _write_csv(workbook.get_sheet_by_name(sheet.name).iter_rows()))
            for sheet in workbook.sheets_metadata
            if sheet.visible is python_calamine.SheetVisibleEnum.Visible
            and sheet.typ is python_calamine.SheetTypeEnum.WorkSheet
        ]
    except python_calamine.PasswordError as error:
        raise UnusableFileError(
            f"the file is {kind.name} with a password: save it without"
        ) from error
    except (python_calamine.CalamineError, OSError, ValueError) as error:
        raise _unreadable(kind, error) from error


def _unreadable(kind: FileKind, error: BaseException) -> UnusableFileError:
    return UnusableFileError(
        f"the file is {kind.name} that cannot be read ({error}): {kind.remedy}"
    )


def _refuse_large(source: BinaryIO) -> None:
    """Refuse a workbook that would fill the memory: all cells are built, empty ones included."""
    start = source.tell()
    try:
        with zipfile.ZipFile(source) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > LARGEST_BYTES:
                raise UnusableFileError(
                    f"the workbook unpacks to {size:,} bytes, of which {LARGEST_BYTES:,} are read:"
                    " save it as CSV"
                )
            for name in archive.namelist():
                if _SHEET.fullmatch(name):
                    _refuse_scattered(archive.read(name))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, RuntimeError) as error:
        raise UnusableFileError(f"the workbook is broken ({error}): download it again") from error
    source.seek(start)


def _refuse_scattered(sheet: bytes) -> None:
    """Refuse a sheet with a cell far from all others: all cells up to it would be built."""
    rows = max((int(found[1]) for found in _ROW.finditer(sheet)), default=0)
    columns = max((_count_columns(letters) for letters in set(_COLUMN.findall(sheet))), default=0)
    if rows * columns > LARGEST_CELLS:
        raise UnusableFileError(
            f"the sheet extends to row {rows:,} and column {columns:,}, where a cell is by itself:"
            " delete it, or save the sheet as CSV"
        )


def _count_columns(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - ord("A") + 1
    return number


def _write_csv(rows: Iterable[Sequence[_Value]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        writer.writerow([_write_value(value) for value in row])
    return text.getvalue().encode()


def _write_value(value: _Value) -> str:
    """Write a value as in a CSV file."""
    if isinstance(value, str):
        # A row must be one line, so that row numbers are line numbers.
        return _LINE_END.sub(" ", value)
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float | int):
        return _write_number(value)
    if isinstance(value, datetime):
        return value.isoformat(" ")
    return str(value)


def _write_number(value: float) -> str:
    # The shortest digits of the same number: a typed number as it was typed.
    exact = Decimal(repr(value))
    if exact == exact.to_integral_value() and abs(exact) < _EXACT_BELOW:
        return str(int(exact))
    # A longer number in the form in which spreadsheets show that digits are lost.
    return f"{exact:f}" if abs(exact) < _EXACT_BELOW else f"{value:.5E}"
