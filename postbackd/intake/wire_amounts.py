"""Amounts as postbacks carry them: plain decimals, with one sign or code of a currency at most.

Thousands are never read here: files show by their other rows what `1,234` means, one postback does
not.
"""

import re
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from postbackd.intake.currencies import read_mark
from rates import REMEMBERED_AMOUNTS, read_amount

# `$10`, `-$10`, `$-10`, `10 usd`, `10руб.`; which marks are any is for `read_mark` to say.
_MARK = r"[^\W\d_]{1,5}\.?|[^\W\d_]{0,3}\$|[^\w\s.,+\-]"
_MARKED = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<before>{_MARK})\s?)?(?P<number>[+-]?[0-9.,]+)"
    rf"(?:\s?(?P<after>{_MARK}))?"
)


class WireAmount(NamedTuple):
    """An amount (None: none came), and the sign or code that stood beside it."""

    amount: Decimal | None
    mark: str | None = None


# Offers pay the same over and over, as in `rates`.
@lru_cache(REMEMBERED_AMOUNTS)
def read_wire_amount(text: str, *, decimal_comma: bool = False) -> WireAmount | None:
    """Read an amount that may have one sign or code of a currency; None where it is unreadable."""
    amount = read_amount(text, decimal_comma=decimal_comma)
    if amount is not None:
        return WireAmount(amount)
    found = _MARKED.fullmatch(text)
    if found is None or (found["before"] is None) == (found["after"] is None):
        return None
    mark = read_mark(found["before"] or found["after"])
    amount = read_amount(found["sign"] + found["number"], decimal_comma=decimal_comma)
    return None if mark is None or amount is None else WireAmount(amount, mark)
