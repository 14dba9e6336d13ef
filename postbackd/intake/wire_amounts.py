"""Reads amounts of postbacks: plain decimals, with one sign or code of a currency at most.

Thousands are never read here: a file's other rows show what `1,234` means, one postback does not.
"""

import re
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from postbackd.intake.currencies import read_mark
from rates import REMEMBERED_AMOUNTS, read_amount

# `$10`, `-$10`, `$-10`, `10 usd`, `10руб.`; `read_mark` decides whether it is a mark.
_MARK = r"[^\W\d_]{1,5}\.?|[^\W\d_]{0,3}\$|[^\w\s.,+\-]"
_MARKED = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<before>{_MARK})\s?)?(?P<number>[+-]?[0-9.,]+)"
    rf"(?:\s?(?P<after>{_MARK}))?"
)


class WireAmount(NamedTuple):
    """An amount (None: none came), and the sign or code beside it."""

    amount: Decimal | None
    mark: str | None = None


# Cached: offers pay the same amounts over and over.
@lru_cache(REMEMBERED_AMOUNTS)
def read_wire_amount(text: str, *, decimal_comma: bool = False) -> WireAmount | None:
    """Read an amount with at most one sign or code of a currency; None where it is unreadable."""
    amount = read_amount(text, decimal_comma=decimal_comma)
    if amount is not None:
        return WireAmount(amount)
    found = _MARKED.fullmatch(text)
    if found is None or (found["before"] is None) == (found["after"] is None):
        return None
    mark = read_mark(found["before"] or found["after"])
    amount = read_amount(found["sign"] + found["number"], decimal_comma=decimal_comma)
    return None if mark is None or amount is None else WireAmount(amount, mark)
