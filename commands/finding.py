"""What `postback check` found: the form of it, and how long a time is called."""

from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """How things are: a problem is to be mended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    """What a look at one thing found, and what to do."""

    level: Level
    check: str
    message: str


def say_span(span: timedelta) -> str:
    """Say how long in the largest unit that leaves a number worth reading."""
    for name, length in _SPANS.items():
        number = span / length
        if number >= 1.5:
            return f"{number:,.0f} {name}s"
    return "second" if span.total_seconds() < 1.5 else f"{span.total_seconds():.0f} seconds"


_SPANS = {"day": timedelta(days=1), "hour": timedelta(hours=1), "minute": timedelta(minutes=1)}
