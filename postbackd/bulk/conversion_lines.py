"""Lines of a file read as postbacks, by the reader of queries."""

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple
from urllib.parse import quote

from postbackd.intake.amounts import AmountReader
from postbackd.intake.booking import BookingOptions, parse_stored
from postbackd.intake.currencies import read_mark, settle_currency
from postbackd.intake.macros import is_macro
from postbackd.intake.query import PHP_WHITE_SPACE, Postback, quote_value
from postbackd.masking import KeyMask
from rates import decimal_text
from statuses import Status

# The fields of Keitaro's import, in its order, and our currency behind them.
# Source: Keitaro docs, "Conversions", on import.
LINE_NAMES = ("subid", "payout", "tid", "status", "currency")

_PLAIN = re.compile(r"[A-Za-z0-9_.,-]+")
# An amount as in most lines: one reading, and no currency in it.
_PLAIN_AMOUNT = re.compile(r"[+-]?[0-9]+(?:\.[0-9]{1,2})?")

IGNORE = "ignore"
# The URL's list for a word of `--status-map`, for each status and for `ignore`.
LISTS_OF_WORDS: Mapping[str, str] = {
    **{status.value: f"{status.value}_status" for status in Status},
    IGNORE: "ignore",
}


class RawLine(NamedTuple):
    """The texts of a line, in the order of `LINE_NAMES`; empty where there is none."""

    subid: str = ""
    payout: str = ""
    tid: str = ""
    status: str = ""
    currency: str = ""


class Line(NamedTuple):
    """A numbered line: its texts, its postback, and its flaw."""

    number: int
    said: RawLine
    query: str = ""
    postback: Postback | None = None
    flaw: str = ""


class LineReader:
    """Reads lines as postbacks."""

    def __init__(
        self,
        terms: BookingOptions,
        lists: Mapping[str, str],
        *,
        network: str | None = None,
        currency: str | None = None,
        secrets: Sequence[bytes] = (),
        decimal_comma: bool = False,
    ) -> None:
        """Remember the options, and the parameters that all lines have in common."""
        self._terms = terms
        self._currency = currency or ""
        self._mask = KeyMask(secrets)
        self.amounts = AmountReader(decimal_comma=decimal_comma or terms.decimal_comma)
        common = {**({} if network is None else {"from": network}), **lists}
        # Keys are hidden before the query is written, which adds a layer of escapes.
        self._common_query = _write_query(
            (name, self._mask.hide(text)) for name, text in common.items()
        )
        # Parsed once: splitting the lists of words for each of a million lines took a third of the
        # time.
        self._common = parse_stored(self._common_query, terms)

    def read(self, number: int, said: RawLine, flaw: str = "") -> Line:
        """Read a line; a payout or currency that cannot be read is a flaw. Never raises."""
        said = given = self._hide(RawLine(*(text.strip(PHP_WHITE_SPACE) for text in said)))
        if flaw:
            return Line(number, said, flaw=flaw)
        said, flaw = self._read_money(said)
        warnings: tuple[str, ...] = ()
        if given.payout and not said.payout:
            warnings = (f"payout {quote_value(given.payout)} means that there is no amount",)
        query = _write_query(zip(LINE_NAMES, said, strict=True))
        own = parse_stored(query, self._terms)
        postback = own._replace(
            incoming=own.incoming._replace(lists=self._common.incoming.lists),
            network=self._common.network,
            warnings=own.warnings + self._common.warnings + warnings,
        )
        if self._common_query:
            query = f"{query}&{self._common_query}"
        return Line(number, said, query, postback, flaw or _find_flaw(said, postback))

    def _hide(self, said: RawLine) -> RawLine:
        # One search for all texts; nearly every line has no key.
        line = "\n".join(said)
        if self._mask.hide(line) == line:
            return said
        return RawLine(*map(self._mask.hide, said))

    def _read_money(self, said: RawLine) -> tuple[RawLine, str]:
        """Write amount and currency as in a postback, or return the flaw."""
        marks: tuple[str, ...] = ()
        if not said.currency and not self._currency and _PLAIN_AMOUNT.fullmatch(said.payout):
            # Most lines.
            return said, ""
        if said.payout and not _PLAIN_AMOUNT.fullmatch(said.payout):
            # Before macros are searched: `(5.40)` has the form of one.
            written = self.amounts.read(said.payout)
            if written.flaw:
                # The reader of queries describes a macro itself.
                return said, "" if is_macro(said.payout) else f"payout {written.flaw}"
            marks = written.marks
            amount = "" if written.amount is None else _write_amount(written.amount)
            said = said._replace(payout=amount)
        return self._read_currency(said, marks)

    def _read_currency(self, said: RawLine, marks: tuple[str, ...]) -> tuple[RawLine, str]:
        """Find the currency of the line, else that of all lines."""
        column = said.currency
        if not marks and not column:
            return said._replace(currency=self._currency) if self._currency else said, ""
        mark = read_mark(column)
        if column and mark is None:
            # The reader of queries describes an unknown currency itself.
            return said, _describe_doubt((*marks, column)) if marks else ""
        own = (*marks, mark) if mark else marks
        code = find_common_currency(own, self._currency, self._terms.currency)
        return (said, _describe_doubt(own)) if code is None else (said._replace(currency=code), "")


def find_common_currency(marks: Sequence[str], likely: str, tracker: str) -> str | None:
    """Find the currency of marks where a code is only likely; None where it may be several."""
    return settle_currency(marks, likely or None, tracker) or settle_currency(marks, None, tracker)


def _write_query(pairs: Iterable[tuple[str, str]]) -> str:
    # Most values need no quoting, and matching is cheaper than quoting.
    return "&".join(
        f"{name}={text if _PLAIN.fullmatch(text) else quote(text, safe=',')}"
        for name, text in pairs
        if text
    )


def _write_amount(amount: Decimal) -> str:
    text = decimal_text(amount)
    # Three digits behind the point would be read as thousands if `decimal_comma` is on when the
    # stored query is parsed again.
    return f"{text}0" if text[-4:-3] == "." else text


def _describe_doubt(marks: Sequence[str]) -> str:
    seen = " and ".join(map(repr, marks))
    if len(marks) > 1:
        return f"currency {seen} contradict each other"
    return f"currency {seen} may be several: say which with --currency"


def _find_flaw(said: RawLine, postback: Postback) -> str:
    # A live postback is stored without an unreadable amount. A line can be corrected and imported
    # again, and would then only repeat a conversion that was stored without an amount.
    incoming = postback.incoming
    unusable = [
        name
        for name, text, value in (
            ("payout", said.payout, incoming.amount),
            ("currency", said.currency, incoming.currency),
        )
        if text and value is None
    ]
    return "; ".join(w for w in postback.warnings if w.partition(" ")[0] in unusable)
