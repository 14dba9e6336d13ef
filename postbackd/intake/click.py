"""Reads a click from a request or a row of a file."""

import functools
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple

from postbackd.db.rows import SUB_ID_NAMES, ClickRow, utc_text
from postbackd.intake.macros import is_macro
from postbackd.intake.query import (
    PHP_WHITE_SPACE,
    SUBID_NAMES,
    adopt_names,
    quote_value,
    read_cost,
    read_sub_ids,
    read_subid,
    trim,
)
from rates import read_amount
from statuses import COST_MODELS, ID_MAX_CHARACTERS

_NO_SUBID = "The click id is missing: send it as subid=."
NO_QUESTION_MARK = "The ? between the address and its parameters is missing: put it after click."
_LONG_SUBID = f"The click id is longer than {ID_MAX_CHARACTERS} characters: send a shorter one."

_UNIX_SECONDS = re.compile(r"[0-9]{9,11}(?:\.[0-9]{1,6})?")

# Every parameter of a click.
_KNOWN_NAMES = frozenset({*SUBID_NAMES, *SUB_ID_NAMES, *ClickRow._fields} - {"sub_ids"})

# Some megabytes at most: sub ids that never come again must not fill the memory.
REMEMBERED_CELLS = 10_000


class ClickReading(NamedTuple):
    """A click, or the flaw for which there is none; and warnings about unusable values."""

    row: ClickRow | None
    flaw: str = ""
    warnings: tuple[str, ...] = ()


def read_request(
    fields: Mapping[str, str], tracker_currency: str, *, decimal_comma: bool = False
) -> ClickReading:
    """Read a request's parameters, in any case of their names, as a postback's. Never raises."""
    fields, warnings = adopt_names(fields, _KNOWN_NAMES)
    reading = read_click(fields, UTC, tracker_currency, decimal_comma=decimal_comma)
    return reading._replace(warnings=warnings + reading.warnings) if warnings else reading


def read_click(
    fields: Mapping[str, str], zone: tzinfo, tracker_currency: str, *, decimal_comma: bool = False
) -> ClickReading:
    """Read the fields of a click; times without a zone are in `zone`. Never raises.

    A cost without a currency is in the tracker's.
    """
    warnings: list[str] = []
    subid = read_subid(fields, warnings)
    if subid is None:
        return ClickReading(None, _NO_SUBID, tuple(warnings))
    if len(subid) > ID_MAX_CHARACTERS:
        return ClickReading(None, _LONG_SUBID, tuple(warnings))
    cost, currency = read_cost(
        fields, warnings, tracker_currency=tracker_currency, decimal_comma=decimal_comma
    )
    row = ClickRow(
        subid=subid,
        campaign=_read_text(fields, "campaign"),
        offer=_read_text(fields, "offer"),
        clicked_at=_read_clicked_at(fields, zone, warnings),
        cost_model=_read_cost_model(fields, warnings),
        sub_ids=read_sub_ids(fields, warnings),
        external_id=_read_text(fields, "external_id"),
        source=_read_text(fields, "source"),
        cost=cost,
        currency=currency,
    )
    return ClickReading(row, "", tuple(warnings))


class RowReader:
    """Reads the rows of a file as `read_click` reads fields.

    A plain row (nearly every one of a real file) is read without a dictionary of fields, several
    times as fast; every other row goes to `read_click` itself.
    """

    def __init__(
        self, names: Sequence[str | None], zone: tzinfo = UTC, tracker_currency: str = "USD"
    ) -> None:
        """Remember each column's name (None: an ignored column), and the defaults."""
        self._places = {name: place for place, name in enumerate(names) if name is not None}
        self._zone = zone
        self._tracker_currency = tracker_currency
        self._texts = _Texts()
        self._external_id = self._places.get("external_id")
        self._source = self._places.get("source")
        self._cost = self._places.get("cost")
        self._currency = self._places.get("currency")
        self._has_more = not {"external_id", "source", "cost"}.isdisjoint(self._places)
        subids = [place for name, place in self._places.items() if name in SUBID_NAMES]
        self._subid = subids[0] if len(subids) == 1 else None
        self._campaign = self._places.get("campaign")
        self._offer = self._places.get("offer")
        self._clicked_at = self._places.get("clicked_at")
        self._cost_model = self._places.get("cost_model")
        self._sub_ids = [(n, self._places[n]) for n in SUB_ID_NAMES if n in self._places]
        self._width = len(names)

    def read(self, cells: Sequence[str]) -> ClickReading:
        """Read a row; missing cells at its end count as empty. Never raises."""
        row = self.read_plain(cells)
        if row is not None:
            return ClickReading(row)
        fields = {n: cells[place] for n, place in self._places.items() if place < len(cells)}
        return read_click(fields, self._zone, self._tracker_currency)

    def read_plain(self, cells: Sequence[str]) -> ClickRow | None:
        """Read a plain row; None where `read` must read it."""
        if self._subid is None or len(cells) != self._width:
            return None
        subid = trim(cells[self._subid])
        if not 0 < len(subid) <= ID_MAX_CHARACTERS or is_macro(subid):
            return None
        texts = self._texts
        if self._cost_model is not None and texts[cells[self._cost_model]] != "":
            return None
        clicked_at = None
        if self._clicked_at is not None and (time := cells[self._clicked_at]):
            clicked_at = _read_plain_time(time) if self._zone is UTC else None
            if clicked_at is None:
                return None
        sub_ids = {}
        for name, place in self._sub_ids:
            if text := texts[cells[place]]:
                sub_ids[name] = text
            elif text is None:
                return None
        campaign = None if self._campaign is None else texts[cells[self._campaign]] or None
        offer = None if self._offer is None else texts[cells[self._offer]] or None
        more = self._read_plain_more(cells) if self._has_more else ()
        row = None
        if more is not None:
            row = ClickRow(subid, campaign, offer, clicked_at, None, sub_ids, *more)
        return row

    def _read_plain_more(self, cells: Sequence[str]) -> tuple[Any, ...] | None:
        """Read the traffic source's id and name and the cost of a plain row."""
        external_id = "" if self._external_id is None else trim(cells[self._external_id])
        source = None if self._source is None else self._texts[cells[self._source]]
        cost = currency = None
        if self._cost is not None and (written := cells[self._cost]):
            cost = _read_plain_cost(written) if self._has_plain_currency(cells) else None
            if cost is None:
                return None
            currency = self._tracker_currency
        if not external_id or is_macro(external_id):
            return None, source or None, cost, currency
        return external_id, source or None, cost, currency

    def _has_plain_currency(self, cells: Sequence[str]) -> bool:
        said = "" if self._currency is None else self._texts[cells[self._currency]]
        return said in {"", self._tracker_currency}


class _Texts(dict[str, str | None]):
    """A cache of trimmed cells (a macro: None): campaigns and sub ids repeat."""

    def __missing__(self, cell: str) -> str | None:
        if len(self) >= REMEMBERED_CELLS:
            self.clear()
        trimmed = trim(cell)
        text = self[cell] = None if is_macro(trimmed) else trimmed
        return text


@functools.lru_cache(REMEMBERED_CELLS)
def _read_plain_cost(text: str) -> Decimal | None:
    """Read `0.05`, without thousands or a sign; None for any other form."""
    return read_amount(text) if _PLAIN_COST.fullmatch(text) else None


# Not `1.500`, which in some files is one thousand five hundred.
_PLAIN_COST = re.compile(r"(?:[0-9]+|0?\.[0-9]+|[0-9]+\.(?:[0-9]{1,2}|[0-9]{4,}))")


def _read_plain_time(text: str) -> str | None:
    """Read `2026-01-31 12:00:00`, the most common form, as UTC; None for another form."""
    minute = _read_plain_minute(text[:16])
    if minute is None or text[16:] not in _SECONDS:
        return None
    return f"{minute}{text[16:]}.000Z"


@functools.lru_cache(REMEMBERED_CELLS)
def _read_plain_minute(text: str) -> str | None:
    # Other forms of ISO 8601 (weeks, no hyphens) have other signs at these places.
    if len(text) != 16 or (text[4], text[7], text[13]) != ("-", "-", ":"):
        return None
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return None
    return f"{text[:10]}T{text[11:]}"


_SECONDS = frozenset(f":{second:02}" for second in range(60))


def read_moment(text: str, zone: tzinfo) -> datetime | None:
    """Read ISO 8601 (with a space or a T), a date, or Unix seconds; None for other text."""
    try:
        if _UNIX_SECONDS.fullmatch(text):
            return datetime.fromtimestamp(float(text), UTC)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        # A time at the edge of the calendar may have no UTC.
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _read_text(fields: Mapping[str, str], name: str) -> str | None:
    text = trim(fields.get(name, ""))
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
    # `none` is a cost model, though in other parameters it counts as not sent.
    text = fields.get("cost_model", "").strip(PHP_WHITE_SPACE)
    if not text or (is_macro(text) and text.lower() not in COST_MODELS):
        return None
    if text.lower() not in COST_MODELS:
        models = ", ".join(COST_MODELS)
        warnings.append(f"cost_model {quote_value(text)} is none of {models}")
        return None
    return text.lower()
