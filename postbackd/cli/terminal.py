"""Tables and bars on a terminal, laid out for its width.

It uses rich, which takes long to import: this module is imported only for a terminal.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from postbackd.cli.sanitize import Column, Kind
from postbackd.escapes import escape_controls

# A column of text narrower than this is unreadable: the table becomes blocks instead.
NARROWEST = 8
# A sentence in a narrower column goes on a line of its own.
NARROWEST_SENTENCE = 24
# A query is read by its beginning: narrower than that it only makes rows high.
NARROWEST_QUERY = 40
GAP = 2

# The colours of verdicts, statuses and findings: green for money or good, red for a problem.
COLOURS: Mapping[str, str] = {
    "recorded": "green",
    "updated": "green",
    "forced": "yellow",
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


def is_terminal() -> bool:
    """Return whether standard output is a terminal (FORCE_COLOR counts as one)."""
    return _console().is_terminal


def print_footnote(sentence: str) -> None:
    """Write a sentence beneath a table, wrapped."""
    _console().print(Text(escape_controls(sentence), "dim"))


class TerminalTable:
    """Writes a table piece by piece; the first rows decide the widths."""

    def __init__(self, columns: Sequence[Column], nothing: str, *, head: bool) -> None:
        """Remember the columns, and the sentence where no row comes."""
        self._columns = columns
        self._nothing = nothing
        self._has_head = head
        self._console = _console()
        self._layout: _Layout | None = None

    def print(self, rows: Sequence[Sequence[str]]) -> None:
        """Show some more rows."""
        if not rows:
            return
        shown = [_show_row(self._columns, row) for row in rows]
        if self._layout is None:
            self._layout = _lay_out(self._columns, shown, self._console.width)
            if self._has_head:
                self._layout.print_head(self._console)
        self._layout.print_rows(self._console, shown)

    def close(self) -> None:
        """Finish the table: name the columns that were left out, or say that no row came."""
        if self._layout is None:
            if self._nothing:
                self._console.print(Text(self._nothing))
        elif left_out := self._layout.name_left_out():
            self._console.print(Text(f"Columns left out: {', '.join(left_out)}", "dim"))


@contextmanager
def progress(title: str, total: int | None, hide: Callable[[str], str]) -> Iterator["ProgressBar"]:
    """Show progress in bytes on standard error; `hide` masks keys in sentences."""
    with _show_progress(DownloadColumn(), title, total, hide) as bar:
        yield bar


@contextmanager
def row_progress(
    title: str, total: int | None, hide: Callable[[str], str]
) -> Iterator["ProgressBar"]:
    """Show progress in rows on standard error; `hide` masks keys in sentences."""
    with _show_progress(MofNCompleteColumn(), title, total, hide) as bar:
        yield bar


@contextmanager
def _show_progress(
    done: ProgressColumn, title: str, total: int | None, hide: Callable[[str], str]
) -> Iterator["ProgressBar"]:
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
    is_off = not console.is_terminal
    # Else the library takes what goes into a file for a part of the terminal, and shows it there.
    takes_stdout = sys.stdout.isatty()
    with Progress(
        *columns, console=console, transient=True, disable=is_off, redirect_stdout=takes_stdout
    ) as shown:
        yield ProgressBar(shown, escape_controls(title), total, hide)


class ProgressBar:
    """A progress bar."""

    def __init__(
        self, shown: Progress, title: str, total: int | None, hide: Callable[[str], str]
    ) -> None:
        """Show a bar with its title."""
        self._shown = shown
        self._hide = hide
        self._task = shown.add_task(title, total=total)

    def advance_to(self, done: int) -> None:
        """Show that `done` bytes are done."""
        self._shown.update(self._task, completed=done)

    def advance(self, done: int, total: int) -> None:
        """Show that `done` of `total` is done."""
        self._shown.update(self._task, completed=done, total=total)

    def print_error(self, sentence: str) -> None:
        """Write a sentence to standard error, above the bar."""
        self._shown.console.print(
            Text(f"postback: {escape_controls(self._hide(sentence))}"), soft_wrap=True
        )


class _Layout(Protocol):
    def print_head(self, console: Console) -> None: ...

    def print_rows(self, console: Console, rows: Sequence[Sequence[Text]]) -> None: ...

    def name_left_out(self) -> Sequence[str]: ...


class _Aligned(NamedTuple):
    """Columns side by side; the sentence may be beneath its row."""

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
        return [column.title for column in self.columns if column.yields]

    def print_rows(self, console: Console, rows: Sequence[Sequence[Text]]) -> None:
        for row in rows:
            for column, value in zip(self.columns, row, strict=True):
                if value and column.kind is not Kind.BAR and not column.yields:
                    line = Text.assemble((f"{column.title}: ", "bold"), value)
                    console.print(line, overflow="fold")
            console.print()


def _lay_out(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> _Layout:
    widths = [
        max(cell_len(column.title), *(cell_len(row[place].plain) for row in rows))
        for place, column in enumerate(columns)
    ]
    for spare in sorted({0, *(column.spare for column in columns)}, reverse=True):
        # First with all columns, then without those of the highest `spare`, and so on.
        left_out = frozenset(p for p, column in enumerate(columns) if column.spare > spare)
        kept = [0 if place in left_out else widths[place] for place in range(len(columns))]
        layout = _lay_out_kept(columns, kept, left_out, width + GAP * len(left_out))
        if layout is not None:
            return layout
    return _Blocks(columns)


def _lay_out_kept(
    columns: Sequence[Column], widths: list[int], left_out: frozenset[int], width: int
) -> _Layout | None:
    has_yielding = any(c.yields for place, c in enumerate(columns) if place not in left_out)
    narrowest = _NARROWEST_OF_LONG if has_yielding else _NARROWEST
    fitted = _fit(columns, widths, width, narrowest)
    if fitted is not None:
        return _Aligned(columns, fitted, None, left_out)
    for place, column in enumerate(columns):
        if column.kind is Kind.SENTENCE:
            widths[place] = 0
            fitted = _fit(columns, widths, width + GAP, narrowest)
            if fitted is not None:
                return _Aligned(columns, fitted, place, left_out)
    return None


_NARROWEST_OF_LONG = {Kind.SENTENCE: NARROWEST_SENTENCE, Kind.QUERY: NARROWEST_QUERY}
_NARROWEST = {**_NARROWEST_OF_LONG, Kind.TEXT: NARROWEST}


def _fit(
    columns: Sequence[Column],
    widths: Sequence[int],
    width: int,
    narrowest: Mapping[Kind, int],
) -> list[int] | None:
    """Narrow the widest foldable columns; None where that is not enough."""
    fitted = list(widths)
    excess = sum(fitted) + GAP * (len(fitted) - 1) - width
    while excess > 0:
        spare = [
            (fitted[place] - narrowest.get(column.kind, sys.maxsize), place)
            for place, column in enumerate(columns)
        ]
        most, place = max(spare)
        if most <= 0:
            return None
        fitted[place] -= 1
        excess -= 1
    return fitted


def _show_row(columns: Sequence[Column], row: Sequence[str]) -> list[Text]:
    return [_show(column, value) for column, value in zip(columns, row, strict=True)]


def _show(column: Column, value: str) -> Text:
    if column.kind is Kind.TIME:
        value = value.removesuffix("Z").partition(".")[0].replace("T", " ")
    elif column.kind is Kind.MONEY:
        value = _with_cents(value)
    style = COLOURS.get(value, "") if column.kind is Kind.WORD else ""
    return Text(escape_controls(value), style)


def _with_cents(value: str) -> str:
    """Write an amount, with or without a currency, with two decimals or more: 12.50 EUR."""
    amount, blank, currency = value.partition(" ")
    if not amount:
        return value
    whole, _, decimals = amount.partition(".")
    return f"{whole}.{decimals:0<2}{blank}{currency}"


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)
