"""Kinds of columns, and cells guarded so that no spreadsheet computes them."""

import re
from enum import Enum
from typing import NamedTuple

from postbackd.bulk.formulas import FORMULA_SIGNS
from postbackd.escapes import escape_controls

# A cell that a spreadsheet would take for a formula gets an apostrophe before it. A cell that has
# apostrophes before such a sign gets one more, so that `unguard_formula` can remove it.
_FORMULA = re.compile(f"'*[{FORMULA_SIGNS}]")

# A negative amount, with its currency or without: its minus begins no formula.
_AMOUNT = re.compile(r"-[0-9]+(?:\.[0-9]+)?(?: [A-Z0-9]{3,10})?")


class Kind(Enum):
    """How a column is narrowed on a narrow terminal, and how its values look."""

    TEXT = "text"  # may be folded
    WORD = "word"  # one of few words, coloured, never folded
    TIME = "time"  # to the second on a terminal, in full elsewhere
    MONEY = "money"  # right-aligned, with two decimals or more
    NUMBER = "number"  # right-aligned, unchanged
    BAR = "bar"  # a bar, on a wide terminal only
    SENTENCE = "sentence"  # on a line of its own on a narrow terminal
    QUERY = "query"  # long: folded, but not narrower than one can read


class Column(NamedTuple):
    """A column of a table; scripts read the title in the first line.

    `spare`: a narrow terminal leaves columns out in this order, the highest first; 0 stays.
    `yields`: the column is left out before any other is folded.
    """

    title: str
    kind: Kind = Kind.TEXT
    spare: int = 0
    yields: bool = False


def guard_formula(cell: str) -> str:
    """Return the cell so that no spreadsheet takes it for a formula."""
    return f"'{escape_controls(cell)}" if _FORMULA.match(cell) else escape_controls(cell)


def guard_formula_except_amounts(cell: str) -> str:
    """Guard a cell in the same way, but leave negative amounts as they are."""
    return cell if _AMOUNT.fullmatch(cell) else guard_formula(cell)
