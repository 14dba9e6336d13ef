"""The newest rows of a listing: how many are shown, how far they have come, how many there are."""

import argparse
from collections.abc import Callable, Iterator

from postbackd.cli import output
from postbackd.cli.options import DEFAULT_LIMIT
from postbackd.db.rows import SUB_ID_NAMES
from postbackd.reports.listing import PAGE_ROWS, Row


class Listed:
    """What `--limit` lets through of what was asked for."""

    def __init__(self, args: argparse.Namespace, count: Callable[[], int | None]) -> None:
        """Take the options, and how to count all that was asked for (None: that takes too long)."""
        self.limit = find_limit(args)
        self._zone = args.tz
        self._count = count
        self._shown = 0

    def pass_on(self, title: str, rows: Iterator[Row]) -> Iterator[Row]:
        """Give the rows on, with progress on standard error where they go into a file or a pipe."""
        with output.row_progress(title, self._count_wanted) as bar:
            for row in rows:
                yield row
                self._shown += 1
                if self._shown % PAGE_ROWS == 0:
                    bar.advance_to(self._shown)
            bar.advance_to(self._shown)

    def print_footnote(self) -> None:
        """Say beneath a table on a terminal that it is cut, and in which zone its times are."""
        if self._shown and output.is_terminal():
            output.print_footnote(f"{self._describe_cut()}Times in {self._zone}.")

    def _count_wanted(self) -> int | None:
        total = self._count()
        return total if total is None or not self.limit else min(total, self.limit)

    def _describe_cut(self) -> str:
        if self._shown != self.limit:
            return ""
        total = self._count()
        if total is None:
            return f"Shown: newest {self._shown}, there may be more (--limit 0 shows all). "
        more = f"Shown: newest {self._shown} of {total} (--limit 0 shows all). "
        return more if total > self._shown else ""


def build_sub_id_cells(row: Row) -> list[str | None]:
    """Give a cell for each sub id there can be: a spreadsheet's formulas count on places."""
    values = (row["sub_ids"].get(name) for name in SUB_ID_NAMES)
    # Other programs write numbers into the clicks table, too.
    return [None if value is None else str(value) for value in values]


def find_limit(args: argparse.Namespace) -> int:
    """Tell how many rows are wanted, 0: all, as programs and files want them."""
    if args.limit is not None:
        limit: int = args.limit
        return limit
    is_for_people = output.is_terminal() and not (args.json or getattr(args, "csv", False))
    # Whoever watches what comes in wants no more of what came than a screenful.
    return DEFAULT_LIMIT if is_for_people or getattr(args, "follow", False) else 0
