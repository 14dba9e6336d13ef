"""Rows that are no data: totals, repeated titles, notes, and ids that a spreadsheet rounded."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from postbackd.intake.query import quote_value


class Aside(StrEnum):
    """The kinds of rows that are no data."""

    TOTALS = "totals"
    TITLES = "titles again"
    RULES = "ruled lines"


class Oddity(NamedTuple):
    """The kind of a row that is no data, or the flaw of a row."""

    aside: Aside | None = None
    flaw: str = ""


# In the languages of networks' reports. A click may have such an id, but then the row has more than
# an amount.
_TOTALS = re.compile(
    r"(?:grand |sub-?|overall |page )?total(?:s|e|es)?|sum|summary|итого|всего|gesamt(?:summe)?"
    r"|summe|totaal|razem|suma|somme|toplam|合计|总计",
    re.IGNORECASE,
)
_TOTALS_END = re.compile(r"\s*[:=(].*")

# The line beneath titles in chats and database clients: `|---|:--|`, `---+---`.
_RULE = re.compile(r"[-=+:|_\s]*[-=+_]{2}[-=+:|_\s]*")

# A long number rounded by a spreadsheet: 1.23457E+18. The missing digits are lost.
_SPOILT = re.compile(r"[1-9](?:[.,][0-9]+)?E\+[0-9]{2}")

_PLAIN_ID = re.compile(r"[A-Za-z_-]*[0-9][A-Za-z0-9_-]*")


def find_oddity(
    cells: Sequence[str], places: Mapping[str, int], titles: Sequence[str]
) -> Oddity | None:
    """Find what is odd about a row, by the places of click id, transaction id and status."""
    if titles and [cell.strip() for cell in cells] == list(titles):
        return Oddity(Aside.TITLES)
    if all(map(_RULE.fullmatch, filter(str.strip, cells))):
        return Oddity(Aside.RULES)
    text = {name: cells[place].strip() for name, place in places.items() if place < len(cells)}
    subid = text.get("subid", "")
    if _is_total(cells, subid) and not text.get("tid") and not text.get("status"):
        return Oddity(Aside.TOTALS)
    for name in ("subid", "tid"):
        if _SPOILT.fullmatch(text.get(name, "")):
            return Oddity(
                flaw=f"{name} {quote_value(text[name])} is a number that a spreadsheet has rounded:"
                " take it from the network's own file"
            )
    is_alone = sum(bool(cell.strip()) for cell in cells) == 1 and len(titles) != 1
    if " " in subid and is_alone:
        return Oddity(flaw=f"{quote_value(subid)} alone is a note, and no click id")
    return None


def is_plain(subid: str, title: str, tid: str = "") -> bool:
    """Return quickly whether nothing is odd about a row, by its ids and the click id's title."""
    # Letters and a digit, no blank and no point: no total, no note, nothing spoilt.
    has_form = (subid.isalnum() and not subid.isalpha()) or _PLAIN_ID.fullmatch(subid)
    return bool(has_form) and subid != title and "E+" not in tid


def describe_aside(aside: Mapping[Aside, int]) -> str:
    """Write the number of rows that are no data; empty where there were none."""
    counted = ", ".join(f"{number} {what}" for what, number in aside.items())
    return f"left out, because they are no data: {counted}" if counted else ""


def is_total(cell: str) -> bool:
    """Return whether a cell is the title of a line of totals."""
    return _TOTALS.fullmatch(_TOTALS_END.sub("", cell.strip())) is not None


def _is_total(cells: Sequence[str], subid: str) -> bool:
    if subid:
        return is_total(subid)
    first = next((cell for cell in cells if cell.strip()), "")
    return is_total(first)
