"""What a line of a file says about a conversion, read by the engine's own reader of queries."""

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

# What Keitaro's import box takes, in its order, and a currency of ours behind it.
# Source: Keitaro docs, "Conversions", on import.
LINE_NAMES = ("subid", "payout", "tid", "status", "currency")

_PLAIN = re.compile(r"[A-Za-z0-9_.,-]+")
# As in most lines: no other reading, no currency in it.
_PLAIN_AMOUNT = re.compile(r"[+-]?[0-9]+(?:\.[0-9]{1,2})?")

IGNORE = "ignore"
# Where a word of `--status-map` goes: the URL's list of each status, and that of what to drop.
LISTS_OF_WORDS: Mapping[str, str] = {
    **{status.value: f"{status.value}_status" for status in Status},
    IGNORE: "ignore",
}


class RawLine(NamedTuple):
    """The text of a line, in the order of `LINE_NAMES`; empty where nothing is said."""

    subid: str = ""
    payout: str = ""
    tid: str = ""
    status: str = ""
    currency: str = ""


class Line(NamedTuple):
    """A numbered line: what it says, the postback that says the same, and why it cannot count."""

    number: int
    said: RawLine
    query: str = ""
    postback: Postback | None = None
    flaw: str = ""


class LineReader:
    """Reads lines as the postbacks that say the same."""

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
        """Take the terms, and what all lines have in common besides what each says."""
        self._terms = terms
        self._currency = currency or ""
        self._mask = KeyMask(secrets)
        self.amounts = AmountReader(decimal_comma=decimal_comma or terms.decimal_comma)
        common = {**({} if network is None else {"from": network}), **lists}
        # Hidden before it is written: writing adds a layer of escapes.
        self._common_query = _write_query(
            (name, self._mask.hide(text)) for name, text in common.items()
        )
        # Read once: splitting the words of each of a million lines took a third of the time.
        self._common = parse_stored(self._common_query, terms)

    def read(self, number: int, said: RawLine, flaw: str = "") -> Line:
        """Read a line; a payout or currency that cannot be read is a flaw. Never raises."""
        said = given = self._hide(RawLine(*(text.strip(PHP_WHITE_SPACE) for text in said)))
        if flaw:
            return Line(number, said, flaw=flaw)
        said, flaw = self._read_money(said)
        warnings: tuple[str, ...] = ()
        if given.payout and not said.payout:
            warnings = (f"payout {quote_value(given.payout)} says that there is no amount",)
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
        # One look for all; nearly every line ends here.
        line = "\n".join(said)
        if self._mask.hide(line) == line:
            return said
        return RawLine(*map(self._mask.hide, said))

    def _read_money(self, said: RawLine) -> tuple[RawLine, str]:
        """Write amount and currency as a postback does, or say why they cannot be."""
        marks: tuple[str, ...] = ()
        if not said.currency and not self._currency and _PLAIN_AMOUNT.fullmatch(said.payout):
            # As most lines are.
            return said, ""
        if said.payout and not _PLAIN_AMOUNT.fullmatch(said.payout):
            # Before macros are looked for: `(5.40)` has the form of one.
            written = self.amounts.read(said.payout)
            if written.flaw:
                # Of a macro the engine's reader says what it is.
                return said, "" if is_macro(said.payout) else f"payout {written.flaw}"
            marks = written.marks
            amount = "" if written.amount is None else _write_amount(written.amount)
            said = said._replace(payout=amount)
        return self._read_currency(said, marks)

    def _read_currency(self, said: RawLine, marks: tuple[str, ...]) -> tuple[RawLine, str]:
        """Find the currency: what the line says of it, else that of all lines."""
        column = said.currency
        if not marks and not column:
            return said._replace(currency=self._currency) if self._currency else said, ""
        mark = read_mark(column)
        if column and mark is None:
            # The engine's reader says what it thinks of it.
            return said, _describe_doubt((*marks, column)) if marks else ""
        own = (*marks, mark) if mark else marks
        code = find_common_currency(own, self._currency, self._terms.currency)
        return (said, _describe_doubt(own)) if code is None else (said._replace(currency=code), "")


def find_common_currency(marks: Sequence[str], likely: str, tracker: str) -> str | None:
    """Find what marks mean where a code is likely but not sure; None where it may be several."""
    return settle_currency(marks, likely or None, tracker) or settle_currency(marks, None, tracker)


def _write_query(pairs: Iterable[tuple[str, str]]) -> str:
    # Most values have nothing to quote, and looking is cheaper than quoting.
    return "&".join(
        f"{name}={text if _PLAIN.fullmatch(text) else quote(text, safe=',')}"
        for name, text in pairs
        if text
    )


def _write_amount(amount: Decimal) -> str:
    text = decimal_text(amount)
    # With three digits behind the point it could be taken for thousands where `decimal_comma` is
    # on by the time that it is read again.
    return f"{text}0" if text[-4:-3] == "." else text


def _describe_doubt(marks: Sequence[str]) -> str:
    seen = " and ".join(map(repr, marks))
    if len(marks) > 1:
        return f"currency {seen} contradict each other"
    return f"currency {seen} may be several: say which with --currency"


def _find_flaw(said: RawLine, postback: Postback) -> str:
    # A live postback is worth keeping without its amount. A line can be mended and read again,
    # and would then only repeat a conversion that stands without one.
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
