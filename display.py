"""What people and scripts see: tables on a terminal, tab-separated lines in a pipe, JSON, CSV.

Stored values come from anyone who knows a key. Whatever could move a cursor, change a colour or
turn the order of letters is shown as an escape (`\\x1b`), in every form of output.
"""

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple, Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# C0, DEL, C1, what turns the writing direction, line ends of Unicode, what cannot be seen at all,
# lone halves of surrogate pairs. The joiners stay: Persian and emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

# What makes a spreadsheet take a cell for a formula (the wide signs do in East Asian editions), and
# the apostrophe that keeps it from it. A cell that has apostrophes before such a sign gets one
# more, so that `rearm` can take it off.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_DISARMED = re.compile(r"'+[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")

# A column of text squeezed below this is unreadable: the table turns into blocks instead.
NARROWEST = 8
# A sentence squeezed below this goes on a line of its own.
NARROWEST_SENTENCE = 24
GAP = 2

# Enough rows to find good widths, few enough to show the first without delay.
ROWS_AT_ONCE = 500

# The colours of verdicts, statuses and findings: green is money or good, red is to be mended.
COLOURS: Mapping[str, str] = {
    "recorded": "green",
    "updated": "green",
    "repeated": "dim",
    "refused": "yellow",
    "ignored": "dim",
    "parked": "cyan",
    "unmapped": "red",
    "invalid": "red",
    "skipped": "red",
    "sale": "green",
    "rebill": "green",
    "lead": "cyan",
    "rejected": "red",
    "ok": "green",
    "warning": "yellow",
    "problem": "bold red",
}


class Kind(Enum):
    """How a column behaves when room is short, and how its values look on a terminal."""

    TEXT = "text"  # may be folded
    WORD = "word"  # one of few words, coloured, never folded
    TIME = "time"  # to the second on a terminal, in full elsewhere
    MONEY = "money"  # to the right, with two decimals or more
    NUMBER = "number"  # to the right, as it is
    BAR = "bar"  # a length for the eye, on a wide terminal only
    SENTENCE = "sentence"  # goes on a line of its own where room is short


class Column(NamedTuple):
    """A column of a table; the title is what scripts see in the first line.

    `spare`: where room is short, columns go in the order of this, the highest first; 0 stays.
    """

    title: str
    kind: Kind = Kind.TEXT
    spare: int = 0


class Bar(Protocol):
    """Something that can be told how far one has come."""

    def advance_to(self, done: int) -> None:
        """Show that so much is done."""

    def advance(self, done: int, total: int) -> None:
        """Show that so much of so much is done."""

    def complain(self, sentence: str) -> None:
        """Write a sentence to standard error, above the bar where there is one."""


def visible(text: str) -> str:
    """Show what a terminal would obey as an escape such as `\\x1b`."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_terminal() -> bool:
    """Tell whether people read along (FORCE_COLOR says they do)."""
    return _console().is_terminal


def say(line: str) -> None:
    """Write a line as it is, never wrapped: URLs must survive being copied."""
    sys.stdout.write(f"{visible(line)}\n")


def remark(sentence: str) -> None:
    """Write a sentence beneath a table, wrapped."""
    _console().print(Text(visible(sentence), "dim"))


def say_beside(line: str, *, is_alone: bool) -> None:
    """Say a line beneath a table on a terminal, else on standard error.

    `is_alone`: what was written is for programs, and nothing may stand beneath it.
    """
    if is_terminal() and not is_alone:
        say(line)
    else:
        complain(line)


def write(text: str) -> None:
    """Write a text of ours to standard output, line ends included."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def complain(sentence: str) -> None:
    """Write a sentence to standard error."""
    sys.stdout.flush()
    sys.stderr.write(f"postback: {visible(sentence)}\n")
    sys.stderr.flush()


def build_bars(sizes: Sequence[Decimal], width: int) -> list[str]:
    """Give a bar for each size, the largest the whole width; below nothing there is none."""
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
        line = json.dumps(value, ensure_ascii=as_ascii)
        sys.stdout.write(_UNSAFE.sub(_escape_for_json, line) + "\n")


def print_csv(
    names: Sequence[str], rows: Iterable[Sequence[str | None]], exact: frozenset[str]
) -> None:
    """Write RFC 4180: a header, CRLF; cells not named in `exact` can be no formula."""
    CsvPrinter(names, exact).print(rows)


class CsvPrinter:
    """The same, as rows come."""

    def __init__(self, names: Sequence[str], exact: frozenset[str]) -> None:
        """Write the header."""
        self._lines = io.StringIO()
        self._writer = csv.writer(self._lines)
        self._is_exact = [name in exact for name in names]
        self.print([names])

    def print(self, rows: Iterable[Sequence[str | None]]) -> None:
        """Write some more rows."""
        for row in rows:
            self._writer.writerow(
                [
                    "" if cell is None else cell if plain else disarm(cell)
                    for cell, plain in zip(row, self._is_exact, strict=True)
                ]
            )
            sys.stdout.write(self._lines.getvalue())
            self._lines.seek(0)
            self._lines.truncate()


def disarm(cell: str) -> str:
    """Write a cell so that no spreadsheet takes it for a formula."""
    return f"'{visible(cell)}" if _FORMULA.match(cell) else visible(cell)


def rearm(cell: str) -> str:
    """Take off the apostrophe that `print_csv` put before what looks like a formula."""
    return cell[1:] if _DISARMED.match(cell) else cell


def print_table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    nothing: str = "",
    *,
    head: bool = True,
) -> None:
    """Write a table: laid out on a terminal, tab-separated elsewhere, with a line of titles.

    Rows are taken and shown piece by piece; `nothing` is what a terminal says where there is none.
    """
    printer = TablePrinter(columns, nothing, head=head)
    printer.print_all(rows)
    printer.close()


class TablePrinter:
    """A table that goes on as rows come; the first rows decide the widths."""

    def __init__(self, columns: Sequence[Column], nothing: str = "", *, head: bool = True) -> None:
        """Take the columns, and what to say on a terminal where no row comes."""
        self._columns = columns
        self._nothing = nothing
        self._has_head = head
        self._has_rows = False
        self._console = _console()
        self._layout: _Layout | None = None
        if not self._console.is_terminal and head:
            sys.stdout.write("\t".join(column.title for column in columns) + "\n")

    def print(self, rows: Sequence[Sequence[str]]) -> None:
        """Show some more rows."""
        if not self._console.is_terminal:
            for row in rows:
                sys.stdout.write("\t".join(map(visible, row)) + "\n")
        elif rows:
            shown = [_show_row(self._columns, row) for row in rows]
            if self._layout is None:
                self._layout = _lay_out(self._columns, shown, self._console.width)
                if self._has_head:
                    self._layout.print_head(self._console)
            self._layout.print_rows(self._console, shown)
        self._has_rows = self._has_rows or bool(rows)
        sys.stdout.flush()

    def print_all(self, rows: Iterable[Sequence[str]]) -> None:
        """Show rows piece by piece, as they come."""
        for some in _pieces(rows):
            self.print(some)

    def close(self) -> None:
        """Say so where nothing came, and which columns had no room."""
        if not self._has_rows and self._nothing and self._console.is_terminal:
            self._console.print(Text(self._nothing))
        left_out = self._layout.name_left_out() if self._layout else ()
        if left_out:
            self._console.print(Text(f"No room for: {', '.join(left_out)}", "dim"))


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Bar]:
    """Show on standard error how far one has come, in bytes; silent where no terminal is."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    is_off = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=is_off) as shown:
        yield _Progress(shown, visible(title), total)


class _Progress:
    def __init__(self, shown: Progress, title: str, total: int | None) -> None:
        self._shown = shown
        self._task = shown.add_task(title, total=total)

    def advance_to(self, done: int) -> None:
        self._shown.update(self._task, completed=done)

    def advance(self, done: int, total: int) -> None:
        self._shown.update(self._task, completed=done, total=total)

    def complain(self, sentence: str) -> None:
        self._shown.console.print(Text(f"postback: {visible(sentence)}"), soft_wrap=True)


class _Layout(Protocol):
    def print_head(self, console: Console) -> None: ...

    def print_rows(self, console: Console, rows: Sequence[Sequence[Text]]) -> None: ...

    def name_left_out(self) -> Sequence[str]: ...


class _Aligned(NamedTuple):
    """Columns side by side; a sentence may go beneath its row."""

    columns: Sequence[Column]
    widths: Sequence[int]
    beneath: int | None = None
    left_out: frozenset[int] = frozenset()

    def name_left_out(self) -> Sequence[str]:
        return [
            column.title
            for place, column in enumerate(self.columns)
            if place in self.left_out and column.kind is not Kind.BAR
        ]

    def print_head(self, console: Console) -> None:
        self._print(console, [[Text(column.title, "bold") for column in self.columns]], None)

    def print_rows(self, console: Console, rows: Sequence[Sequence[Text]]) -> None:
        if self.beneath is None:
            self._print(console, rows, None)
            return
        for row in rows:
            self._print(console, [row], self.beneath)
            if row[self.beneath]:
                console.print(Padding(Text(row[self.beneath].plain, "dim"), (0, 0, 0, GAP)))

    def _print(self, console: Console, rows: Sequence[Sequence[Text]], beneath: int | None) -> None:
        table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        beneath = self.beneath if beneath is None else beneath
        places = [p for p in range(len(self.columns)) if p != beneath and p not in self.left_out]
        for place in places:
            is_number = self.columns[place].kind in {Kind.MONEY, Kind.NUMBER}
            table.add_column(
                width=self.widths[place],
                overflow="fold",
                justify="right" if is_number else "left",
            )
        for row in rows:
            table.add_row(*(row[place] for place in places))
        console.print(table)


class _Blocks(NamedTuple):
    """One value a line, for terminals too narrow for columns."""

    columns: Sequence[Column]

    def print_head(self, console: Console) -> None:
        pass

    def name_left_out(self) -> Sequence[str]:
        return ()

    def print_rows(self, console: Console, rows: Sequence[Sequence[Text]]) -> None:
        for row in rows:
            for column, value in zip(self.columns, row, strict=True):
                if value and column.kind is not Kind.BAR:
                    line = Text.assemble((f"{column.title}: ", "bold"), value)
                    console.print(line, overflow="fold")
            console.print()


def _lay_out(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> _Layout:
    widths = [
        max(cell_len(column.title), *(cell_len(row[place].plain) for row in rows))
        for place, column in enumerate(columns)
    ]
    for spare in sorted({0, *(column.spare for column in columns)}, reverse=True):
        # First with all, then without the most dispensable, and so on.
        left_out = frozenset(p for p, column in enumerate(columns) if column.spare > spare)
        kept = [0 if place in left_out else widths[place] for place in range(len(columns))]
        layout = _lay_out_kept(columns, kept, left_out, width + GAP * len(left_out))
        if layout is not None:
            return layout
    return _Blocks(columns)


def _lay_out_kept(
    columns: Sequence[Column], widths: list[int], left_out: frozenset[int], width: int
) -> _Layout | None:
    fitted = _fit(columns, widths, width)
    if fitted is not None:
        return _Aligned(columns, fitted, None, left_out)
    for place, column in enumerate(columns):
        if column.kind is Kind.SENTENCE:
            widths[place] = 0
            fitted = _fit(columns, widths, width + GAP)
            if fitted is not None:
                return _Aligned(columns, fitted, place, left_out)
    return None


def _fit(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int] | None:
    """Narrow the widest of the columns that may be folded; None where that is not enough."""
    fitted = list(widths)
    excess = sum(fitted) + GAP * (len(fitted) - 1) - width
    while excess > 0:
        spare = [
            (fitted[place] - _narrowest(column), place) for place, column in enumerate(columns)
        ]
        most, place = max(spare)
        if most <= 0:
            return None
        fitted[place] -= 1
        excess -= 1
    return fitted


def _narrowest(column: Column) -> int:
    narrowest = {Kind.TEXT: NARROWEST, Kind.SENTENCE: NARROWEST_SENTENCE}
    return narrowest.get(column.kind, sys.maxsize)


def _show_row(columns: Sequence[Column], row: Sequence[str]) -> list[Text]:
    return [_show(column, value) for column, value in zip(columns, row, strict=True)]


def _show(column: Column, value: str) -> Text:
    if column.kind is Kind.TIME:
        value = value.removesuffix("Z").partition(".")[0].replace("T", " ")
    elif column.kind is Kind.MONEY:
        value = _with_cents(value)
    style = COLOURS.get(value, "") if column.kind is Kind.WORD else ""
    return Text(visible(value), style)


def _with_cents(value: str) -> str:
    """Give an amount (a currency may follow it) two decimals at least: 12.5 EUR, 12.50 EUR."""
    amount, blank, currency = value.partition(" ")
    if not amount:
        return value
    whole, _, decimals = amount.partition(".")
    return f"{whole}.{decimals:0<2}{blank}{currency}"


def _escape_for_json(found: re.Match[str]) -> str:
    # json.dumps has escaped C0 already; the rest is within strings only.
    return json.dumps(found[0])[1:-1] if found[0] != "\x7f" else "\\u007f"


def _pieces(rows: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    iterator = iter(rows)
    while some := list(itertools.islice(iterator, ROWS_AT_ONCE)):
        yield some


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)
