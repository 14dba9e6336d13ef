"""What a click says, from a request or a line of a CSV file."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from query import PHP_WHITE_SPACE, is_macro, quote_value, read_sub_ids, read_subid
from statuses import COST_MODELS, ID_MAX_CHARACTERS
from storage import ClickRow, utc_text

_NO_SUBID = "The click id is missing: send it as subid=."
_LONG_SUBID = f"The click id is longer than {ID_MAX_CHARACTERS} characters: send a shorter one."

_UNIX_SECONDS = re.compile(r"[0-9]{9,11}(?:\.[0-9]{1,6})?")


class ClickReading(NamedTuple):
    """A click that was read, or the flaw for which there is none; and what could not be used."""

    row: ClickRow | None
    flaw: str = ""
    warnings: tuple[str, ...] = ()


def read_click(fields: Mapping[str, str], zone: tzinfo = UTC) -> ClickReading:
    """Read the fields of a click; times without a zone are in `zone`. Never raises."""
    warnings: list[str] = []
    subid = read_subid(fields, warnings)
    if subid is None:
        return ClickReading(None, _NO_SUBID, tuple(warnings))
    if len(subid) > ID_MAX_CHARACTERS:
        return ClickReading(None, _LONG_SUBID, tuple(warnings))
    row = ClickRow(
        subid=subid,
        campaign=_read_text(fields, "campaign"),
        offer=_read_text(fields, "offer"),
        clicked_at=_read_clicked_at(fields, zone, warnings),
        cost_model=_read_cost_model(fields, warnings),
        sub_ids=read_sub_ids(fields, warnings),
    )
    return ClickReading(row, "", tuple(warnings))


def read_moment(text: str, zone: tzinfo) -> datetime | None:
    """Read ISO 8601 (a space for the T will do), a date, or Unix seconds; None where it is none."""
    try:
        if _UNIX_SECONDS.fullmatch(text):
            return datetime.fromtimestamp(float(text), UTC)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        # A moment at the edge of the calendar may have no UTC.
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _read_text(fields: Mapping[str, str], name: str) -> str | None:
    text = fields.get(name, "").strip(PHP_WHITE_SPACE)
    return text if text and not is_macro(text) else None


def _read_clicked_at(fields: Mapping[str, str], zone: tzinfo, warnings: list[str]) -> str | None:
    text = _read_text(fields, "clicked_at")
    if text is None:
        return None
    moment = read_moment(text, zone)
    if moment is None:
        warnings.append(
            f"clicked_at {quote_value(text)} is no time: send 2026-01-31T12:00:00Z or Unix seconds"
        )
        return None
    return utc_text(moment)


def _read_cost_model(fields: Mapping[str, str], warnings: list[str]) -> str | None:
    text = _read_text(fields, "cost_model")
    if text is None:
        return None
    if text.lower() not in COST_MODELS:
        models = ", ".join(COST_MODELS)
        warnings.append(f"cost_model {quote_value(text)} is none of {models}")
        return None
    return text.lower()
