"""Reads documents of services that publish exchange rates into rates of the tracker's currency.

Each service has its own format and base currency; a document becomes a `RateTable`, or a sentence
that says why it cannot. `download` fetches the documents, `plausibility` compares the rates with
earlier ones.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, DecimalException
from types import MappingProxyType
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from rates import RATE_RANGE, decimal_text, read_currency

# The Bank of Russia sets tomorrow's rates this afternoon; no service sets those of later days.
DAYS_AHEAD = 1

# The longest pause of a working service is the Russian New Year's, eleven days. An older document
# is from a mirror that nobody updates.
DAYS_OLD_AT_MOST = 14

# The largest document has about two hundred currencies; a hostile one must not fill the table.
CURRENCIES_AT_MOST = 1000

# Rates are published with four to six significant digits; cross rates of two such have twelve.
# Eighteen keep all of them, and products with amounts stay exact (`rates.EXACT`).
KEPT = Context(prec=18)
# For the one division of a cross rate; it cuts off far behind the digits that are stored.
CROSSING = Context(prec=60)

# The longest number of any service has some twenty characters.
LONGEST_NUMBER = 60

ONE = Decimal(1)

_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_XML_TROUBLE = (ParseError, DefusedXmlException, ValueError, LookupError)


class UnreadableDocumentError(Exception):
    """The document has no rates; the sentence says why, and what the document is."""


class Quote(NamedTuple):
    """`units` of a currency are worth `worth` in the document's base currency."""

    units: Decimal
    worth: Decimal


class Reading(NamedTuple):
    """A document's own values: day, base currency, quotes, and flaws of unusable quotes."""

    day: date
    base: str
    quotes: Mapping[str, Quote]
    flaws: Mapping[str, str]


class RateTable(NamedTuple):
    """A service's rates of a day in the tracker's currency, and the flaws of unusable quotes."""

    source: str
    day: date
    rates: Mapping[str, Decimal]
    flaws: Mapping[str, str]


class Feed(NamedTuple):
    """A service: its address, its reader, and its times of publication (UTC)."""

    url: str
    read: Callable[[bytes], Reading]
    content_types: tuple[str, ...]
    published: tuple[time, ...]


def read_rate_table(source: str, document: bytes, tracker: str, today: date) -> RateTable:
    """Read a service's document; raises UnreadableDocumentError with a sentence."""
    reading = FEEDS[source].read(document)
    if reading.day > today + timedelta(days=DAYS_AHEAD):
        raise UnreadableDocumentError(f"its document is of {reading.day}, which is yet to come")
    if reading.day < today - timedelta(days=DAYS_OLD_AT_MOST):
        age = (today - reading.day).days
        raise UnreadableDocumentError(f"its document is of {reading.day}, {age} days old")
    return _cross(source, reading, tracker)


def _cross(source: str, reading: Reading, tracker: str) -> RateTable:
    """Convert the quotes to the tracker's currency, through the document's base."""
    quotes = {**reading.quotes, reading.base: Quote(ONE, ONE)}
    if tracker in reading.flaws:
        raise UnreadableDocumentError(
            f"its rate of {tracker}, the tracker's currency, is of no use: {reading.flaws[tracker]}"
        )
    if tracker not in quotes:
        # Not an error: the ECB has no RUB. A later source may have it.
        return RateTable(source, reading.day, MappingProxyType({}), MappingProxyType({}))
    rates, flaws = {}, dict(reading.flaws)
    for currency, quote in quotes.items():
        rate = _cross_rate(quote, quotes[tracker])
        if currency == tracker:
            continue
        if RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
            rates[currency] = rate
        else:
            flaws[currency] = f"it makes 1 {currency} worth {rate:.6g} {tracker}"
    return RateTable(source, reading.day, MappingProxyType(rates), MappingProxyType(flaws))


def _cross_rate(quote: Quote, tracker: Quote) -> Decimal:
    # One division of exact products: equal quotes of two services give equal rates.
    worth = CROSSING.multiply(quote.worth, tracker.units)
    return KEPT.plus(CROSSING.divide(worth, CROSSING.multiply(quote.units, tracker.worth)))


def _collect(entries: Iterator[tuple[str, Decimal | str, Decimal | str]]) -> dict[str, Any]:
    """Sort entries (code, units, worth) into quotes and flaws; a text is no number, so a flaw."""
    quotes: dict[str, Quote] = {}
    flaws: dict[str, str] = {}
    for code, units, worth in entries:
        # Only codes in capitals: ISO 4217 has no others, and "usd" beside "USD" would be two.
        if read_currency(code) != code:
            continue
        if len(quotes) + len(flaws) >= CURRENCIES_AT_MOST:
            raise UnreadableDocumentError(
                f"its document has more than {CURRENCIES_AT_MOST} currencies"
            )
        flaw = _find_flaw(units) or _find_flaw(worth)
        if flaw is None and code in quotes and quotes[code] != (units, worth):
            flaw = "it is given twice, and not the same"
        if flaw is not None:
            quotes.pop(code, None)
            flaws[code] = flaw
        elif code not in flaws:
            assert isinstance(units, Decimal)
            assert isinstance(worth, Decimal)
            quotes[code] = Quote(units, worth)
    if not quotes:
        flaw = next((f": {code}, {flaw}" for code, flaw in flaws.items()), "")
        raise UnreadableDocumentError(f"its document has no rates of use{flaw}")
    return {"quotes": quotes, "flaws": flaws}


def _find_flaw(number: Decimal | str) -> str | None:
    if isinstance(number, str):
        return f"{number[:LONGEST_NUMBER]!r} is no number"
    if not number.is_finite():
        return f"'{number}' is no number"
    # Outside of these, products would leave Decimal's range of exponents.
    if number <= 0 or not -30 <= number.adjusted() <= 30:
        return f"'{number:.6g}' can be no rate"
    return None


def _read_number(text: str) -> Decimal | str:
    """Read a plain decimal; any other text is returned as it is."""
    is_plain = len(text) <= LONGEST_NUMBER and _PLAIN_NUMBER.fullmatch(text)
    return Decimal(text) if is_plain else text


def _read_day(text: str, layout: str) -> date:
    try:
        return datetime.strptime(text, layout).replace(tzinfo=UTC).date()
    except ValueError:
        raise UnreadableDocumentError(f"its document's day is {text[:40]!r}") from None


# The European Central Bank: an envelope with a cube of cubes, one innermost cube per currency.


def _read_ecb(document: bytes) -> Reading:
    root = _parse_xml(document)
    days = root.findall(".//{*}Cube[@time]")
    if not days:
        raise UnreadableDocumentError(
            f"its document is none of the ECB: a <{_name(root)}> without rates"
        )
    # The bank's longer files have a cube for each day.
    newest = max(days, key=lambda cube: cube.get("time", ""))
    entries = (
        (cube.get("currency", ""), _read_number(cube.get("rate", "")), ONE) for cube in newest
    )
    day = _read_day(newest.get("time", ""), "%Y-%m-%d")
    return Reading(day, "EUR", **_collect(entries))


# The Bank of Russia: `Nominal` units for so many roubles, with a decimal comma.


def _read_cbr(document: bytes) -> Reading:
    root = _parse_xml(document)
    if root.tag != "ValCurs":
        raise UnreadableDocumentError(
            f"its document is none of the Bank of Russia: a <{_name(root)}> without rates"
        )
    entries = (
        (
            valute.findtext("CharCode", ""),
            _read_number(valute.findtext("Nominal", "").strip()),
            _read_number(valute.findtext("Value", "").strip().replace(",", ".", 1)),
        )
        for valute in root.iter("Valute")
    )
    return Reading(_read_day(root.get("Date", ""), "%d.%m.%Y"), "RUB", **_collect(entries))


def _parse_xml(document: bytes) -> Element:
    try:
        # No service has a DTD: it could only declare entities that grow or read files.
        root: Element = fromstring(document, forbid_dtd=True)
    except _XML_TROUBLE as error:
        raise UnreadableDocumentError(
            f"its document is no XML ({_brief(error)}): {_quote_start(document)}"
        ) from None
    return root


def _brief(error: Exception) -> str:
    if isinstance(error, DefusedXmlException):
        return "it declares entities or a DTD"
    return str(error)[:80]


def _name(root: Element) -> str:
    return root.tag.rpartition("}")[2][:40]


# The two services with JSON: so many units of each currency for one of the base.


def _read_er_api(document: bytes) -> Reading:
    table = _parse_json(document)
    if table.get("result") != "success":
        said = table.get("error-type", table.get("result"))
        raise UnreadableDocumentError(f"its document says {_quote(said)} instead of 'success'")
    return _read_table(table, "base_code", "time_last_update_unix")


def _read_openexchangerates(document: bytes) -> Reading:
    table = _parse_json(document)
    if "error" in table:
        raise UnreadableDocumentError(f"its document says {_quote(table.get('message'))}")
    return _read_table(table, "base", "timestamp")


def _read_table(table: Mapping[str, Any], base_name: str, time_name: str) -> Reading:
    base, rates = table.get(base_name), table.get("rates")
    if not isinstance(base, str) or read_currency(base) != base:
        raise UnreadableDocumentError(f"its document's {base_name} is {_quote(base)}")
    if not isinstance(rates, dict):
        raise UnreadableDocumentError("its document has no rates of use")
    entries = (
        (code, number if isinstance(number, Decimal) else str(number), ONE)
        for code, number in rates.items()
    )
    return Reading(_read_stamp(table.get(time_name), time_name), base, **_collect(entries))


def _read_stamp(seconds: object, name: str) -> date:
    # Within the calendar: below the year 5000.
    if isinstance(seconds, Decimal) and seconds.is_finite() and 0 < seconds < 10**11:
        return datetime.fromtimestamp(int(seconds), UTC).date()
    raise UnreadableDocumentError(f"its document's {name} is {_quote(seconds)}")


def _parse_json(document: bytes) -> dict[str, Any]:
    try:
        table = json.loads(
            document, parse_float=_json_number, parse_int=_json_number, parse_constant=_json_number
        )
    # Deeply nested lists raise a RecursionError.
    except (ValueError, RecursionError) as error:
        raise UnreadableDocumentError(
            f"its document is no JSON ({_brief(error)}): {_quote_start(document)}"
        ) from None
    if not isinstance(table, dict):
        raise UnreadableDocumentError("its document is JSON, but no object")
    return table


def _json_number(text: str) -> Decimal:
    try:
        return Decimal(text) if len(text) <= LONGEST_NUMBER else Decimal("NaN")
    except DecimalException:
        return Decimal("NaN")


def _quote_start(document: bytes) -> str:
    return f"it begins with {document[:40].decode('latin-1')!r}"


def _quote(value: object) -> str:
    text = decimal_text(value) if isinstance(value, Decimal) and abs(value) < 10**20 else str(value)
    return repr(text[:60])


_XML_TYPES = ("text/xml", "application/xml")
_JSON_TYPES = ("application/json", "text/json")

# The values of `[rates] source`, with the addresses and formats that the services document; that of
# er-api has the tracker's currency in it. When they publish:
# - ecb: "around 16:00 CET on every working day" (its page on reference rates). 15:00 UTC is then or
#   an hour later, by the season; asked again two hours on, for the days on which it is late.
# - cbr: sets the next day's rates in the afternoon, Moscow time (UTC+3), and names no minute.
# - er-api: once a day, soon after midnight UTC (its documents name the next time).
# - openexchangerates: every hour; the day's last but one has the whole day in it.
FEEDS: Mapping[str, Feed] = {
    "ecb": Feed(
        "https://www.ecb.europa.eu/stats/eurofxref/eurofxref-daily.xml",
        _read_ecb,
        _XML_TYPES,
        (time(15, 10), time(17, 10)),
    ),
    "cbr": Feed(
        "https://www.cbr.ru/scripts/XML_daily.asp",
        _read_cbr,
        _XML_TYPES,
        (time(13, 30), time(16, 0)),
    ),
    "er-api": Feed(
        "https://open.er-api.com/v6/latest/{base}",
        _read_er_api,
        _JSON_TYPES,
        (time(0, 30), time(4, 30)),
    ),
    "openexchangerates": Feed(
        "https://openexchangerates.org/api/latest.json",
        _read_openexchangerates,
        _JSON_TYPES,
        (time(0, 20), time(22, 20)),
    ),
}
