"""Reads amounts of files: signs of currency, thousands, any form of a minus.

An amount with one reading is read. One with two readings is refused, and the message names both:
`1,234` may be more than a thousand, or a little more than one. All amounts of a file have one
decimal sign: a point by default, so that `1.500` is one and a half, unless another amount of the
file shows that it has decimal commas.
"""

import re
from collections.abc import Iterable
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from postbackd.intake.currencies import read_mark
from postbackd.intake.query import quote_value
from rates import AMOUNT_LIMIT, read_amount

REMEMBERED_AMOUNTS = 10_000


class Style(Enum):
    """What one amount shows about its file's decimal sign."""

    PLAIN = "nothing"
    POINT = "decimals behind a point, or thousands before a comma"
    COMMA = "decimals behind a comma, or thousands before a point"
    THREE_DIGITS = "three digits behind a point: decimals, or thousands"


class Written(NamedTuple):
    """An amount and the marks of its currency, or the flaw for which there is none.

    All are empty where the text means that there is no amount.
    """

    amount: Decimal | None
    marks: tuple[str, ...] = ()
    flaw: str = ""
    style: Style = Style.PLAIN


# Blanks between thousands, all replaced by a space: no-break, narrow, thin, figure …
_BLANKS = dict.fromkeys(map(ord, "\t\xa0\u2000\u2002\u2003\u2007\u2008\u2009\u200a\u202f"), " ")
# Invisible characters, and a word processor's forms of hyphen and apostrophe.
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff"), None)
_MINUSES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"), "-")
_APOSTROPHES = dict.fromkeys(map(ord, "\u2019\u02bc\u00b4`"), "'")
_SAME = {**_BLANKS, **_UNSEEN, **_MINUSES, **_APOSTROPHES, ord("\uff04"): "$", ord("\uffe5"): "¥"}

# Most amounts of most files: digits, or digits with a point and one or two decimals.
_PLAIN = re.compile(r"[+-]?[0-9]+(?:\.[0-9]{1,2})?")

# A number with the text before and behind it; parentheses are an accountant's minus.
_FRAME = re.compile(
    r"(?P<before>[^0-9.,()]*)(?P<open>\(?)(?P<inner>[^0-9.,()]*)"
    r"(?P<number>[0-9.,][0-9., ']*)"
    r"(?P<behind>(?:[^0-9.,()' ][^0-9(),']*)?)(?P<close>\)?)(?P<after>[^0-9(),]*)"
)
# `Rs.500`: the point belongs to the letters.
_ABBREVIATION = re.compile(r"[^\W\d_][.,]$")
_NOTHING = frozenset({"-", "--", "---", "\u2014", "n/a", "na", "n.a."})

_GROUPS = r"[1-9][0-9]{0,2}(?:%s[0-9]{3})"
# Forms of a number with one reading, and what each shows. Blanks and apostrophes are between
# thousands only, so digits behind another sign after them are decimals. Source: CLDR's patterns for
# decimals; the fourth is India's.
_FORMS: tuple[tuple[re.Pattern[str], str, Style], ...] = (
    (re.compile(r"[0-9]+\.?"), "", Style.PLAIN),
    (re.compile(r"[0-9]*\.[0-9]+"), "", Style.POINT),
    (re.compile(rf"{_GROUPS % ','}+\.[0-9]+|{_GROUPS % ','}{{2,}}"), ",", Style.POINT),
    (re.compile(r"[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?"), ",", Style.POINT),
    (re.compile(rf"{_GROUPS % ' '}+(?:\.[0-9]+)?"), " ", Style.PLAIN),
    (re.compile(rf"{_GROUPS % chr(39)}+(?:\.[0-9]+)?"), "'", Style.PLAIN),
    (re.compile(r"[0-9]*,[0-9]+"), "", Style.COMMA),
    (re.compile(rf"{_GROUPS % '[.]'}+,[0-9]+|{_GROUPS % '[.]'}{{2,}}"), ".", Style.COMMA),
    (re.compile(rf"{_GROUPS % ' '}+,[0-9]+"), " ", Style.COMMA),
    (re.compile(rf"{_GROUPS % chr(39)}+,[0-9]+"), "'", Style.COMMA),
)
# A group and three digits: decimals or thousands.
_THREE_DIGITS = re.compile(r"[1-9][0-9]{0,2}[.,][0-9]{3}")


class AmountReader:
    """Reads the amounts of one file, all with one decimal sign."""

    def __init__(self, *, decimal_comma: bool = False) -> None:
        """Remember whether the option for decimal commas was given."""
        self._has_decimal_comma = decimal_comma
        # The first amount of each style that decides, as written in the file.
        self._seen: dict[Style, str] = {}

    def learn(self, texts: Iterable[str]) -> None:
        """Find the decimal sign from the amounts of a file, before any of them is read."""
        for text in texts:
            if not _PLAIN.fullmatch(text):
                style = read_written(text).style
                if style is Style.COMMA:
                    self._seen.setdefault(style, text)

    def read(self, text: str) -> Written:
        """Read an amount; never raises."""
        if _PLAIN.fullmatch(text):
            return read_written(text)
        written = read_written(text)
        if written.style is Style.THREE_DIGITS:
            return self._read_three_digits(text, written)
        if written.style is Style.COMMA and not self._has_decimal_comma:
            return self._read_comma(text, written)
        return written

    def _read_three_digits(self, text: str, written: Written) -> Written:
        if self._has_decimal_comma:
            return _refuse(text, "with decimal commas it may be a thousand, or not")
        if comma := self._seen.get(Style.COMMA):
            return _refuse(text, f"{comma!r} in the same file shows that commas stand for decimals")
        self._seen.setdefault(Style.THREE_DIGITS, text)
        return written

    def _read_comma(self, text: str, written: Written) -> Written:
        if earlier := self._seen.get(Style.THREE_DIGITS):
            # Only for a pipe, which can be read once: of a file all amounts were seen before.
            return _refuse(text, f"{earlier!r} before it was read with a decimal point")
        self._seen.setdefault(Style.COMMA, text)
        return written


# Cached: offers pay the same amounts over and over.
@lru_cache(REMEMBERED_AMOUNTS)
def read_written(text: str) -> Written:
    """Read an amount by itself, whatever else is in its file; never raises."""
    plain = text.translate(_SAME).strip(" ")
    if plain.casefold() in _NOTHING:
        return Written(None)
    frame = _FRAME.fullmatch(plain)
    marks = None if frame is None else _find_marks(frame)
    if frame is None or marks is None:
        return _unreadable(text)
    signs, currencies = marks
    if _ABBREVIATION.search(plain[: frame.start("number") + 1]):
        return _unreadable(text)
    number = frame["number"].rstrip(" '")
    if _THREE_DIGITS.fullmatch(number) and "," in number:
        whole, decimals = number.replace(",", ""), number.replace(",", ".")
        why = f"it may be {whole} or {decimals}: write it without the comma, or with a point"
        return Written(None, (), f"{quote_value(text)} has two readings: {why}")
    return _read_number(text, number, signs, currencies)


def _find_marks(frame: re.Match[str]) -> tuple[str, tuple[str, ...]] | None:
    """Split the text around a number into signs and marks of currency."""
    if bool(frame["open"]) != bool(frame["close"]):
        return None
    signs = "-" if frame["open"] else ""
    marks = []
    for part in ("before", "inner", "behind", "after"):
        text = frame[part].strip(" ")
        if part in {"before", "inner"}:
            lead = text[:1] if text[:1] in {"+", "-"} else ""
            rest = text[len(lead) :].strip(" ")
            trail = rest[-1:] if rest[-1:] in {"+", "-"} else ""
            signs += lead + trail
            text = rest.removesuffix(trail).strip(" ") if trail else rest
        if text:
            marks.append(read_mark(text))
    if len(signs) > 1 or None in marks or len(marks) > 2:
        return None
    return signs, tuple(mark for mark in marks if mark is not None)


def _read_number(text: str, number: str, signs: str, marks: tuple[str, ...]) -> Written:
    for form, groups, style in _FORMS:
        if form.fullmatch(number):
            plain = (number.replace(groups, "") if groups else number).replace(",", ".")
            amount = read_amount(f"{signs}{plain}")
            if amount is None:
                return _refuse(text, f"amounts are below {AMOUNT_LIMIT:,}")
            if _THREE_DIGITS.fullmatch(number):
                style = Style.THREE_DIGITS  # noqa: PLW2901  # of the same form
            return Written(amount, marks, "", style)
    return _unreadable(text)


def _refuse(text: str, why: str) -> Written:
    return Written(None, (), f"{quote_value(text)} is not taken: {why}")


def _unreadable(text: str) -> Written:
    return Written(
        None,
        (),
        f"{quote_value(text)} is unreadable: send plain digits with a decimal point, such as 12.50",
    )
