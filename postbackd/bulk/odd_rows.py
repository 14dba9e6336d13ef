"""Rows of a table that are none: totals, titles again, notes, and ids that a spreadsheet spoilt."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from postbackd.intake.query import quote_value


class Aside(StrEnum):
    """What stands among the rows and is none."""

    TOTALS = "totals"
    TITLES = "titles again"
    RULES = "ruled lines"


class Oddity(NamedTuple):
    """Why a row is set apart, or the flaw for which it cannot be taken."""

    aside: Aside | None = None
    flaw: str = ""


# In the languages that networks write reports in. A click may be called so, but then the row says
# more than an amount.
_TOTALS = re.compile(
    r"(?:grand |sub-?|overall |page )?total(?:s|e|es)?|sum|summary|итого|всего|gesamt(?:summe)?"
    r"|summe|totaal|razem|suma|somme|toplam|合计|总计",
    re.IGNORECASE,
)
_TOTALS_END = re.compile(r"\s*[:=(].*")

# What is drawn beneath titles in a chat and by database clients: `|---|:--|`, `---+---`.
_RULE = re.compile(r"[-=+:|_\s]*[-=+_]{2}[-=+:|_\s]*")

# What a spreadsheet makes of a long number: 1.23457E+18. The digits that are missing are lost.
_SPOILT = re.compile(r"[1-9](?:[.,][0-9]+)?E\+[0-9]{2}")

_PLAIN_ID = re.compile(r"[A-Za-z_-]*[0-9][A-Za-z0-9_-]*")


def find_oddity(
    cells: Sequence[str], places: Mapping[str, int], titles: Sequence[str]
) -> Oddity | None:
    """Tell what is odd about a row, by where its click id, transaction id and status stand."""
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
    """Tell quickly that nothing is odd about a row, by its ids and the title above the click's."""
    # Letters and a digit, no blank and no point: no total, no note, nothing spoilt.
    has_form = (subid.isalnum() and not subid.isalpha()) or _PLAIN_ID.fullmatch(subid)
    return bool(has_form) and subid != title and "E+" not in tid


def describe_aside(aside: Mapping[Aside, int]) -> str:
    """Say how many rows were none; empty where all were some."""
    counted = ", ".join(f"{number} {what}" for what, number in aside.items())
    return f"set apart, since they are no rows: {counted}" if counted else ""


def is_total(cell: str) -> bool:
    """Tell whether a cell is what stands before totals."""
    return _TOTALS.fullmatch(_TOTALS_END.sub("", cell.strip())) is not None


def _is_total(cells: Sequence[str], subid: str) -> bool:
    if subid:
        return is_total(subid)
    first = next((cell for cell in cells if cell.strip()), "")
    return is_total(first)
