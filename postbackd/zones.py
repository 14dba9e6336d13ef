"""Time zones: found by name or offset, and stored moments written in one."""

import difflib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

_OFFSET = re.compile(r"([+-])([0-9]{2}):?([0-9]{2})")


def read_zone(text: str) -> tzinfo | None:
    """Read an IANA name or an offset such as +03:00; None where it is neither."""
    if found := _OFFSET.fullmatch(text):
        offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
        if offset < timedelta(hours=24):
            return timezone(-offset if found[1] == "-" else offset)
    try:
        return UTC if text.upper() in {"UTC", "Z"} else ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def describe_strange_zone(text: str) -> str:
    """Say that a text names no zone, and which name is nearest to it."""
    near = _find_nearest(text)
    hint = f"; the nearest is {near!r}" if near else ""
    return f"{text!r} is no time zone{hint}; write Europe/Moscow or +03:00"


def _find_nearest(text: str) -> str | None:
    names = {name.casefold(): name for name in sorted(available_timezones())}
    wanted = text.strip().casefold().replace(" ", "_")
    # `moscow`: people know the city, and leave the continent out.
    cities = [name for name in names if name.rpartition("/")[2] == wanted]
    near = cities or difflib.get_close_matches(wanted, names, 1, 0.75)
    return names[near[0]] if near else None


def write_in_zone(text: str | None, zone: tzinfo) -> str:
    """Write a stored UTC time with the offset of a zone; what is no such time stays as it is."""
    if text is None:
        return ""
    if zone is UTC:
        return text
    try:
        return datetime.fromisoformat(text).astimezone(zone).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        # Other programs write the clicks table, and a calendar ends.
        return text


def put_in_zone(row: Mapping[str, Any], zone: tzinfo) -> dict[str, Any]:
    """Write the times of a row in a zone: what is called `at`, `created_at` and so on."""
    times = () if zone is UTC else [name for name in row if name == "at" or name.endswith("_at")]
    return {**row, **{name: write_in_zone(row[name], zone) for name in times if row[name]}}
