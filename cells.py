"""What a column is, and what a cell may hold: nothing that moves a cursor, nothing that computes.

Stored values come from anyone who knows a key. Whatever could move a cursor, change a colour or
turn the order of letters is shown as an escape (`\\x1b`), in every form of output.
"""

import json
import re
from enum import Enum
from typing import NamedTuple

from rearm import FORMULA_SIGNS

# C0, DEL, C1, what turns the writing direction, line ends of Unicode, what cannot be seen at all,
# lone halves of surrogate pairs. The joiners stay: Persian and emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

# What a spreadsheet takes for a formula, and the apostrophe that keeps it from it. A cell that has
# apostrophes before such a sign gets one more, so that `rearm` can take it off.
_FORMULA = re.compile(f"'*[{FORMULA_SIGNS}]")


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


def visible(text: str) -> str:
    """Show what a terminal would obey as an escape such as `\\x1b`."""
    if text.isprintable():
        # Nearly always, and told in a fifth of the time.
        return text
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_in_json(line: str) -> str:
    """Show the same as the escapes of JSON, in a line of it."""
    return _UNSAFE.sub(_escape_for_json, line)


def _escape_for_json(found: re.Match[str]) -> str:
    # json.dumps has escaped C0 already; the rest is within strings only.
    return json.dumps(found[0])[1:-1] if found[0] != "\x7f" else "\\u007f"


def disarm(cell: str) -> str:
    """Write a cell so that no spreadsheet takes it for a formula."""
    return f"'{visible(cell)}" if _FORMULA.match(cell) else visible(cell)
