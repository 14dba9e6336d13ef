"""Reads the times of files: ISO 8601, days first or months first, Unix time, names of months.

`11/10/2026` is October to one half of the world and November to the other: it is read where an
option says which comes first, or another time of the same file shows it, and never guessed.
The same holds for `24/11/26`, in which the year may come first; `11/24/26` has one reading only.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from postbackd.intake.click import read_moment
from postbackd.intake.query import quote_value
from postbackd.zones import read_zone

REMEMBERED_TIMES = 10_000


class DateOrder(StrEnum):
    """The part that comes first in `11/10/2026`."""

    DAY_FIRST = "day-first"
    MONTH_FIRST = "month-first"


class Moment(NamedTuple):
    """A time, and whether it is a whole day; or the flaw for which there is no time."""

    at: datetime | None
    is_day: bool = False
    flaw: str = ""


class _Clock(NamedTuple):
    """The time of day, and its zone where one is written."""

    hour: int = 0
    minute: int = 0
    second: int = 0
    microsecond: int = 0
    zone: tzinfo | None = None


_CLOCK = r"(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<part>\d{1,6})\d*)?)?"
_HALF = r"(?:\s*(?P<half>[AaPp])\.?[Mm]\.?)?"
# Abbreviations such as EST are not read: EST is Sydney, too.
_ZONE = r"(?:\s*(?P<zone>Z|(?:UTC|GMT)?[+-]\d\d?(?::?\d\d)?|UTC|GMT))?"
_TIME = rf"(?:(?:,?\s+|T|,)(?:at\s+)?{_CLOCK}{_HALF}{_ZONE})?"
_MONTH = r"(?P<name>[A-Za-z]{3,9})\.?"
_DAY, _YEAR = r"(?P<day>\d\d?)(?:st|nd|rd|th)?", r"(?P<year>\d{4})"
_WEEKDAY = r"(?:[A-Za-z]{3,9},?\s+)?"

_BY_NUMBER = re.compile(
    rf"(?P<first>\d{{1,4}})(?P<sign>[./-])(?P<second_>\d\d?)(?P=sign)(?P<third>\d{{1,4}}){_TIME}",
    re.ASCII,
)
_BY_NAME = (
    re.compile(rf"{_WEEKDAY}{_DAY}[\s-]+{_MONTH},?[\s-]+{_YEAR}{_TIME}", re.ASCII),
    re.compile(rf"{_WEEKDAY}{_MONTH}\s+{_DAY},?\s+{_YEAR}{_TIME}", re.ASCII),
)
_MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september"),
    *("october", "november", "december"),
)
_MONTHS: Mapping[str, int] = {
    "sept": 9,
    **{
        spelling: number
        for number, name in enumerate(_MONTH_NAMES, 1)
        for spelling in (name, name[:3])
    },
}

# Today milliseconds have 13 digits and microseconds 16: as seconds they would be no likely year.
_FRACTIONS_OF_A_SECOND = {13: 1000, 16: 1_000_000}
_DIGITS = re.compile(r"[0-9]{13}|[0-9]{16}")
_COMPACT = re.compile(r"(?:19|20)[0-9]{12}")


class MomentReader:
    """Reads the times of one file, all of them in one order."""

    def __init__(self, zone: tzinfo, order: DateOrder | None = None) -> None:
        """Remember the zone of times without one, and the order of dates where it was given."""
        self.zone = zone
        self._order = order
        self._is_said = order is not None

    def learn(self, texts: Iterable[str]) -> None:
        """Find the order of dates from the times of a file."""
        if self._is_said:
            return
        found = {order for text in texts if (order := find_order(text.strip())) is not None}
        # A file with dates of both orders decides nothing.
        self._order = found.pop() if len(found) == 1 else None

    def read(self, text: str) -> Moment:
        """Read a time; never raises."""
        return _read(text.strip(), self.zone, self._order)


def needs_order(text: str) -> bool:
    """Return whether day and month of a date could be exchanged."""
    found = _BY_NUMBER.fullmatch(text.strip())
    if found is None or len(found["first"]) > 2:
        return False
    return len(found["third"]) == 2 or (found["sign"] != "." and len(found["third"]) == 4)


def find_order(text: str) -> DateOrder | None:
    """Return the order of a date with a number above twelve; None for other dates."""
    found = _BY_NUMBER.fullmatch(text)
    if found is None or not needs_order(text):
        return None
    first, second = int(found["first"]), int(found["second_"])
    # With two digits it may be the year that is above twelve.
    if first > 12 >= second and len(found["third"]) == 4:
        return DateOrder.DAY_FIRST
    return DateOrder.MONTH_FIRST if second > 12 >= first else None


@lru_cache(REMEMBERED_TIMES)
def _read(text: str, zone: tzinfo, order: DateOrder | None) -> Moment:
    at = _read_digits(text, zone) or read_moment(text, zone)
    if at is not None:
        is_day = ":" not in text and not text.replace(".", "").isdigit()
        return Moment(at, is_day or (text.isdigit() and len(text) == 8))
    found = _BY_NUMBER.fullmatch(text)
    if found is not None:
        return _read_numbers(text, found, zone, order)
    for form in _BY_NAME:
        found = form.fullmatch(text)
        if found is not None and found["name"].lower() in _MONTHS:
            month = _MONTHS[found["name"].lower()]
            return _build(text, (int(found["year"]), month, int(found["day"])), found, zone)
    return _unreadable(text)


def _read_digits(text: str, zone: tzinfo) -> datetime | None:
    """Read milliseconds and microseconds since 1970, and `20261124180211`."""
    try:
        if _DIGITS.fullmatch(text):
            return datetime.fromtimestamp(int(text) / _FRACTIONS_OF_A_SECOND[len(text)], UTC)
        if _COMPACT.fullmatch(text):
            moment = datetime.strptime(text, "%Y%m%d%H%M%S")  # noqa: DTZ007  # given below
            return moment.replace(tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return None


def _read_numbers(text: str, found: re.Match[str], zone: tzinfo, order: DateOrder | None) -> Moment:
    first, second, third = (int(found[name]) for name in ("first", "second_", "third"))
    if len(found["first"]) == 4:
        return _build(text, (first, second, third), found, zone)
    is_short = len(found["third"]) == 2
    if len(found["third"]) != 4 and not (is_short and len(found["first"]) <= 2):
        return _refuse(text, "write its year with four digits")
    # In dates with points the day comes first everywhere.
    if not is_short and (found["sign"] == "." or first == second):
        return _build(text, (third, second, first), found, zone)
    order = find_order(text) or order
    if order is None:
        return _refuse(text, "choose the order: --dates day-first or month-first")
    third += 2000 * is_short
    day, month = (first, second) if order is DateOrder.DAY_FIRST else (second, first)
    return _build(text, (third, month, day), found, zone)


def _build(text: str, date: tuple[int, int, int], found: re.Match[str], zone: tzinfo) -> Moment:
    try:
        clock = _read_clock(found)
        moment = datetime(*date, *clock[:4], tzinfo=clock.zone or zone)
        return Moment(moment.astimezone(UTC), is_day=found["hour"] is None)
    except (ValueError, OverflowError):
        return _unreadable(text)


def _read_clock(found: re.Match[str]) -> _Clock:
    """Read the time of the day; ValueError where there is no such time."""
    if found["hour"] is None:
        return _Clock()
    hour = int(found["hour"])
    if found["half"]:
        if not 1 <= hour <= 12:
            raise ValueError
        hour = hour % 12 + (12 if found["half"] in "Pp" else 0)
    part = (found["part"] or "").ljust(6, "0")
    return _Clock(
        hour, int(found["minute"]), int(found["second"] or 0), int(part), _read_zone(found["zone"])
    )


def _read_zone(text: str | None) -> tzinfo | None:
    if text is None:
        return None
    offset = text.removeprefix("UTC").removeprefix("GMT")
    if offset in {"", "Z"}:
        return UTC
    sign, digits = offset[0], offset[1:].replace(":", "")
    hours, minutes = (digits, "00") if len(digits) <= 2 else (digits[:-2], digits[-2:])
    zone = read_zone(f"{sign}{hours:0>2}:{minutes}")
    if zone is None:
        raise ValueError
    return zone


def count_span(moment: Moment) -> timedelta:
    """Return how long a time lasts: a date without a time is its whole day."""
    return timedelta(days=1) if moment.is_day else timedelta(seconds=1)


def _refuse(text: str, why: str) -> Moment:
    return Moment(None, flaw=f"{quote_value(text)} is no time yet: {why}")


def _unreadable(text: str) -> Moment:
    return Moment(
        None, flaw=f"{quote_value(text)} is no time: write 2026-01-31T12:00:00Z or Unix seconds"
    )
