"""What a column is, and what a cell may hold: nothing that a spreadsheet would compute."""

import re
from enum import Enum
from typing import NamedTuple

from postbackd.bulk.rearm import FORMULA_SIGNS
from postbackd.escapes import escape_controls

# What a spreadsheet takes for a formula, and the apostrophe that keeps it from it. A cell that has
# apostrophes before such a sign gets one more, so that `rearm` can take it off.
_FORMULA = re.compile(f"'*[{FORMULA_SIGNS}]")

# An amount, with its currency or without: a sign before it is one of arithmetic.
_AMOUNT = re.compile(r"-[0-9]+(?:\.[0-9]+)?(?: [A-Z0-9]{3,10})?")


class Kind(Enum):
    """How a column behaves when room is short, and how its values look on a terminal."""

    TEXT = "text"  # may be folded
    WORD = "word"  # one of few words, coloured, never folded
    TIME = "time"  # to the second on a terminal, in full elsewhere
    MONEY = "money"  # to the right, with two decimals or more
    NUMBER = "number"  # to the right, as it is
    BAR = "bar"  # a length for the eye, on a wide terminal only
    SENTENCE = "sentence"  # goes on a line of its own where room is short
    QUERY = "query"  # long: folded, but not below what one can read


class Column(NamedTuple):
    """A column of a table; the title is what scripts see in the first line.

    `spare`: where room is short, columns go in the order of this, the highest first; 0 stays.
    `yields`: it goes before any other column is folded.
    """

    title: str
    kind: Kind = Kind.TEXT
    spare: int = 0
    yields: bool = False


def guard_formula(cell: str) -> str:
    """Write a cell so that no spreadsheet takes it for a formula."""
    return f"'{escape_controls(cell)}" if _FORMULA.match(cell) else escape_controls(cell)


def disarm_but_amounts(cell: str) -> str:
    """Write a cell of any column in the same way, but leave amounts below zero as they are."""
    return cell if _AMOUNT.fullmatch(cell) else guard_formula(cell)
