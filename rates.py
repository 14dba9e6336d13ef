"""Money and exchange rates: read, store and convert exactly.

Money is `Decimal` in memory and whole micros (10^-6) in the database; a float never touches it.
A rate is what one unit of a currency is worth in the tracker's currency.
"""

import re
from datetime import date
from decimal import ROUND_HALF_EVEN, Context, Decimal, DecimalException
from functools import lru_cache
from typing import NamedTuple

MICRO = Decimal("0.000001")

# Amounts at or above this are unreadable. Source: the contract.
AMOUNT_LIMIT = 10**9

# Wide enough that a product of an amount (15 digits) and a rate is exact before its one rounding:
# the default context of 28 digits would round twice.
EXACT = Context(prec=120, rounding=ROUND_HALF_EVEN)

# Limit of an amount in the tracker's currency: its micros (10^18) fit in SQLite's 64-bit integers
# one by one; sums are computed in halves (`sum_of_halves`). Only a wrong rate leads to more.
WORTH_LIMIT = 10**12

# A rate outside of these is a typing error or a broken feed: the most and the least valuable
# currency unit are about six orders of magnitude apart, coins add five more.
RATE_RANGE = (Decimal("1e-12"), Decimal("1e12"))

# If a rate and its inverse are closer than this, as those of a coin tied to the dollar, an inverted
# rate cannot be told from the rate of another day.
PAR_WITHIN = Decimal("1.02")

REMEMBERED_AMOUNTS = 1024

# Matches in one way only: a pattern that could give digits to either side of a missing point would
# try as many ways as there are digits, each taking as long.
_AMOUNT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_COMMA_AMOUNT = re.compile(r"([+-]?[0-9]*),([0-9]{1,2})")
_THOUSANDS_OR_DECIMALS = re.compile(r"\.[0-9]{3}$")
_FORMER_CODES = {"RUR": "RUB"}
_CODE = re.compile(r"[A-Z0-9]{3,10}")


class Rate(NamedTuple):
    """The worth of one unit of a currency on a day, and the source."""

    value: Decimal
    day: date
    source: str


class Priced(NamedTuple):
    """An amount as it was sent, and in the tracker's currency if a rate was known.

    `day` is the day it was received, whose rate applies, or None where its currency is unknown;
    `worth` and `rate` are None together.
    """

    amount: Decimal
    currency: str | None
    day: date | None
    worth: Decimal | None
    rate: Rate | None


# A network pays in one currency, and whoever sends nonsense is to fill no memory.
REMEMBERED_CODES = 256


class UnreadableRateError(ValueError):
    """A rate that is no positive decimal number in range; the message quotes it."""


# Offers pay the same amounts again and again; the result depends on the arguments only.
@lru_cache(REMEMBERED_AMOUNTS)
def read_amount(text: str, *, decimal_comma: bool = False) -> Decimal | None:
    """Read a decimal amount, rounded half even to the micro; None if it is unreadable.

    Readable: a sign, ASCII digits, a point and digits (`.5` and `5.` too), below 10^9. With
    `decimal_comma`, `12,50` reads as 12.50: one comma, no dot, one or two digits after it; and
    `1.500` is unreadable, for where commas stand before decimals, points stand between thousands.
    """
    if decimal_comma:
        if _THOUSANDS_OR_DECIMALS.search(text):
            return None
        if found := _COMMA_AMOUNT.fullmatch(text):
            text = f"{found[1]}.{found[2]}"
    if not _AMOUNT.fullmatch(text):
        return None
    amount = Decimal(text)
    if not -AMOUNT_LIMIT < amount < AMOUNT_LIMIT:
        return None
    return round_to_micro(amount)


@lru_cache(REMEMBERED_CODES)
def read_currency(text: str) -> str | None:
    """Read a currency code, upper case, RUR as RUB; None if it is no code.

    More than ISO 4217's three letters are allowed, because networks pay in USDT too and `rates set`
    can price it; callers that know the rates check whether the code has one.
    """
    code = text.upper()
    # Not `643`: ISO's numbers are used by banks' machines, and could be any other number.
    if not _CODE.fullmatch(code) or code.isdigit():
        return None
    return _FORMER_CODES.get(code, code)


def read_rate(text: str) -> Decimal:
    """Read a rate set by hand or fetched: a positive plain decimal, with all its digits."""
    try:
        rate = Decimal(text) if _AMOUNT.fullmatch(text) else Decimal("NaN")
    except DecimalException:
        rate = Decimal("NaN")
    if not rate.is_finite() or not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
        raise UnreadableRateError(f"{text!r} is no rate: give a positive number such as 1.0876")
    return rate


def round_to_micro(amount: Decimal) -> Decimal:
    """Round half even to six decimals, without trailing zeros; `-0` becomes `0`."""
    return EXACT.add(EXACT.quantize(amount, MICRO), 0).normalize(EXACT)


def convert(amount: Decimal, rate: Decimal) -> Decimal:
    """Return the amount in the tracker's currency: exact product, one rounding to the micro."""
    return round_to_micro(EXACT.multiply(amount, rate))


def price_at(priced: Priced, rate: Rate) -> Priced:
    """Return an amount with its worth at a rate; without, if it is too large, and so waiting."""
    worth = convert(priced.amount, rate.value)
    if not -WORTH_LIMIT < worth < WORTH_LIMIT:
        return priced
    return priced._replace(worth=worth, rate=rate)


def find_factor(one: Decimal, other: Decimal) -> Decimal:
    """Return the ratio of two positive rates, as a factor of one or more."""
    return EXACT.divide(max(one, other), min(one, other))


def find_slip(value: Decimal, standing: Decimal, max_change: Decimal) -> str | None:
    """Return how a manual rate looks like a typing error beside another one, or None."""
    inverse = EXACT.divide(1, standing)
    is_upside_down = find_factor(value, inverse) < find_factor(value, standing)
    if is_upside_down and find_factor(standing, inverse) > PAR_WITHIN:
        return "looks upside down beside"
    if find_factor(value, standing) > max_change:
        return f"is more than {max_change} times off"
    return None


def find_convertible_below(rate: Decimal) -> int:
    """Return the micros below which an amount can be converted at a rate."""
    below = min(EXACT.divide(WORTH_LIMIT, rate), Decimal(AMOUNT_LIMIT))
    return int(EXACT.scaleb(below, 6)) + 1


@lru_cache(REMEMBERED_AMOUNTS)
def to_micros(amount: Decimal) -> int:
    """Return an amount, rounded to the micro already, as whole micros."""
    return int(EXACT.scaleb(amount, 6))


def from_micros(micros: int) -> Decimal:
    """Return whole micros as an amount."""
    return EXACT.scaleb(Decimal(micros), -6).normalize(EXACT)


def micros_text(micros: int) -> str:
    """Write whole micros as an amount, as `decimal_text` would: `12.5`."""
    if not micros:
        return "0"
    digits = f"{abs(micros):07}"
    decimals = digits[-6:].rstrip("0")
    return f"{'-' if micros < 0 else ''}{digits[:-6]}{'.' if decimals else ''}{decimals}"


def sum_of_halves(units: int | None, micros: int | None) -> int:
    """Return the sum of `schema.sum_sql`'s two columns, exactly, in micros; without rows 0."""
    return (units or 0) * 1_000_000 + (micros or 0)


def decimal_text(amount: Decimal) -> str:
    """Write an amount or a rate without exponent and trailing zeros: `12.5`."""
    return f"{amount.normalize(EXACT):f}"
