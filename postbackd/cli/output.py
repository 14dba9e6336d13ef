"""The output of commands: tables on a terminal, tab-separated lines in a pipe, JSON, CSV."""

import csv
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Protocol, TextIO

from postbackd.cli.sanitize import Column, guard_formula, guard_formula_except_amounts
from postbackd.escapes import escape_controls, escape_controls_in_json
from postbackd.masking import NO_KEYS, KeyMask

# Enough rows to find good widths, few enough to show the first without delay.
ROWS_AT_ONCE = 500


class Bar(Protocol):
    """Shows the progress of a command."""

    def advance_to(self, done: int) -> None:
        """Show that `done` bytes are done."""

    def advance(self, done: int, total: int) -> None:
        """Show that `done` of `total` is done."""

    def print_error(self, sentence: str) -> None:
        """Write a sentence to standard error, above the bar if one is shown."""


# Every text that this module writes goes through this mask.
_mask = NO_KEYS

# A cell that is a number is never masked: a key of digits must not hide an amount.
_NUMBER = r"-?[0-9.]+"


def hide_keys(mask: KeyMask) -> None:
    """Hide these keys in all output from now on."""
    global _mask  # noqa: PLW0603 one for the process, as standard output is
    _mask = mask


def reveal_keys() -> None:
    """Show keys from now on: for commands that print keys."""
    hide_keys(NO_KEYS)


def hide(text: str) -> str:
    """Hide keys in a text."""
    return _mask.hide(text)


def _hide_in_cell(cell: str) -> str:
    return cell if re.fullmatch(_NUMBER, cell) else hide(cell)


def _hide_in_cells(row: Sequence[str]) -> Sequence[str]:
    # One search for all cells; nearly every row has no key.
    line = "\t".join(row)
    return row if hide(line) == line else [_hide_in_cell(cell) for cell in row]


def _hide_in_line(value: Mapping[str, Any]) -> Any:
    parts = [part if isinstance(part, str) else repr(part) for part in value.values()]
    line = "\t".join(parts)
    return value if hide(line) == line else _hide_in_object(value)


def _hide_in_object(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {hide(name): _hide_in_object(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_hide_in_object(part) for part in value]
    return _hide_in_cell(value) if isinstance(value, str) else value


def is_terminal() -> bool:
    """Return whether standard output is a terminal (FORCE_COLOR counts as one)."""
    if not _may_be_terminal(sys.stdout):
        return False
    from postbackd.cli import terminal  # noqa: PLC0415

    return terminal.is_terminal()


# Environment variables by which rich decides whether a stream is a terminal.
_SAYING_SO = ("FORCE_COLOR", "TTY_COMPATIBLE")


def _may_be_terminal(stream: TextIO) -> bool:
    # `terminal` is not imported for a pipe: importing rich takes as long as everything else.
    return stream.isatty() or any(name in os.environ for name in _SAYING_SO)


def print_footnote(sentence: str) -> None:
    """Write a sentence beneath a table, wrapped."""
    from postbackd.cli import terminal  # noqa: PLC0415

    terminal.print_footnote(hide(sentence))


def print_line(line: str) -> None:
    """Write a line as it is, never wrapped: URLs must survive being copied."""
    sys.stdout.write(f"{escape_controls(hide(line))}\n")


def print_summary(line: str, *, is_alone: bool) -> None:
    """Write a line beneath a table on a terminal, else to standard error.

    `is_alone`: standard output is for programs, and must not have this line.
    """
    if is_terminal() and not is_alone:
        print_line(line)
    else:
        print_error(line)


def write(text: str) -> None:
    """Write a text of this package to standard output, with its line ends."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def print_error(sentence: str) -> None:
    """Write a sentence to standard error."""
    sys.stdout.flush()
    sys.stderr.write(f"postback: {escape_controls(hide(sentence))}\n")
    sys.stderr.flush()


def build_bars(sizes: Sequence[Decimal], width: int) -> list[str]:
    """Build a bar for each size, the largest over the whole width; none for a negative size."""
    knows_blocks = "utf" in (sys.stdout.encoding or "").lower()
    eighths = "▏▎▍▌▋▊▉█" if knows_blocks else "#"
    largest = max([Decimal(0), *sizes])
    bars = []
    for size in sizes:
        steps = int(size / largest * width * len(eighths)) if size > 0 else 0
        whole, rest = divmod(steps, len(eighths))
        bars.append(eighths[-1] * whole + (eighths[rest - 1] if rest else ""))
    return bars


def print_json(values: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    as_ascii = "utf" not in (sys.stdout.encoding or "").lower()
    for value in values:
        # Letters unescaped: `escape_controls` then escapes the invisible ones.
        text = json.dumps(_hide_in_line(value), ensure_ascii=False)
        line = escape_controls_in_json(text)
        sys.stdout.write((json.dumps(json.loads(line)) if as_ascii else line) + "\n")


def print_csv(
    names: Sequence[str], rows: Iterable[Sequence[str | None]], exact: frozenset[str]
) -> None:
    """Write CSV (RFC 4180) with a header; formulas are guarded but in the columns of `exact`."""
    CsvPrinter(names, exact).print(rows)


class CsvPrinter:
    """Writes the same CSV piece by piece."""

    def __init__(self, names: Sequence[str], exact: frozenset[str]) -> None:
        """Write the header."""
        self._lines = io.StringIO()
        self._writer = csv.writer(self._lines)
        self._is_exact = [name in exact for name in names]
        self.print([names])

    def print(self, rows: Iterable[Sequence[str | None]]) -> None:
        """Write some more rows."""
        for row in rows:
            cells = _hide_in_cells([cell or "" for cell in row])
            self._writer.writerow(
                [
                    cell if plain else guard_formula(cell)
                    for cell, plain in zip(cells, self._is_exact, strict=True)
                ]
            )
            sys.stdout.write(self._lines.getvalue())
            self._lines.seek(0)
            self._lines.truncate()


def print_table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    nothing: str = "",
    *,
    head: bool = True,
) -> None:
    """Write a table: laid out on a terminal, tab-separated elsewhere, with a line of titles.

    Rows are read and shown piece by piece; a terminal shows `nothing` where there are no rows.
    """
    printer = TablePrinter(columns, nothing, head=head)
    printer.print_all(rows)
    printer.close()


class TablePrinter:
    """Writes a table piece by piece."""

    def __init__(self, columns: Sequence[Column], nothing: str = "", *, head: bool = True) -> None:
        """Remember the columns, and the sentence for a terminal where no row comes."""
        self._table = _choose_table(columns, nothing, head=head)

    def print(self, rows: Sequence[Sequence[str]]) -> None:
        """Show some more rows."""
        self._table.print([_hide_in_cells(row) for row in rows])
        sys.stdout.flush()

    def print_all(self, rows: Iterable[Sequence[str]]) -> None:
        """Show rows as they come, `ROWS_AT_ONCE` at a time."""
        for some in _pieces(rows):
            self.print(some)

    def close(self) -> None:
        """Finish the table: name the columns that were left out, or say that no row came."""
        self._table.close()


def _pieces(rows: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    iterator = iter(rows)
    while some := list(itertools.islice(iterator, ROWS_AT_ONCE)):
        yield some


class _Table(Protocol):
    def print(self, rows: Sequence[Sequence[str]]) -> None: ...

    def close(self) -> None: ...


def _choose_table(columns: Sequence[Column], nothing: str, *, head: bool) -> _Table:
    if not is_terminal():
        return _TabSeparated(columns, head=head)
    from postbackd.cli import terminal  # noqa: PLC0415

    return terminal.TerminalTable(columns, nothing, head=head)


class _TabSeparated:
    def __init__(self, columns: Sequence[Column], *, head: bool) -> None:
        if head:
            sys.stdout.write("\t".join(column.title for column in columns) + "\n")

    def print(self, rows: Sequence[Sequence[str]]) -> None:
        for row in rows:
            sys.stdout.write("\t".join(map(guard_formula_except_amounts, row)) + "\n")

    def close(self) -> None:
        pass


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Bar]:
    """Show progress in bytes on standard error; nothing where that is no terminal."""
    if not _may_be_terminal(sys.stderr):
        yield _NoBar()
        return
    from postbackd.cli import terminal  # noqa: PLC0415

    with terminal.progress(title, total, hide) as bar:
        yield bar


@contextmanager
def row_progress(title: str, count: Callable[[], int | None]) -> Iterator[Bar]:
    """Show on standard error how far a long output has come, in rows, while it goes elsewhere.

    Only then is asked how many there are.
    """
    if is_terminal() or not _may_be_terminal(sys.stderr):
        yield _NoBar()
        return
    from postbackd.cli import terminal  # noqa: PLC0415

    with terminal.row_progress(title, count(), hide) as bar:
        yield bar


class _NoBar:
    def advance_to(self, done: int) -> None:
        pass

    def advance(self, done: int, total: int) -> None:
        pass

    def print_error(self, sentence: str) -> None:
        print_error(sentence)
