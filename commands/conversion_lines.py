"""What a line of a file says about a conversion, read by the engine's own reader of queries."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from booking import Terms, reread
from query import PHP_WHITE_SPACE, Postback, hide_secrets, secrets_pattern
from rates import decimal_text, read_amount
from statuses import Status

# What Keitaro's import box takes, in its order, and a currency of ours behind it.
# Source: Keitaro docs, "Conversions", on import.
LINE_NAMES = ("subid", "payout", "tid", "status", "currency")

_PLAIN = re.compile(r"[A-Za-z0-9_.,-]+")

IGNORE = "ignore"
# Where a word of `--status-map` goes: the URL's list of each status, and that of what to drop.
LISTS_OF_WORDS: Mapping[str, str] = {
    **{status.value: f"{status.value}_status" for status in Status},
    IGNORE: "ignore",
}


class Said(NamedTuple):
    """The text of a line, in the order of `LINE_NAMES`; empty where nothing is said."""

    subid: str = ""
    payout: str = ""
    tid: str = ""
    status: str = ""
    currency: str = ""


class Line(NamedTuple):
    """A numbered line: what it says, the postback that says the same, and why it cannot count."""

    number: int
    said: Said
    query: str = ""
    postback: Postback | None = None
    flaw: str = ""


class LineReader:
    """Reads lines as the postbacks that say the same."""

    def __init__(
        self,
        terms: Terms,
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
        self._secrets = secrets_pattern(secrets)
        self._has_decimal_comma = decimal_comma
        common = {**({} if network is None else {"from": network}), **lists}
        self._common_query = hide_secrets(_write_query(common.items()), self._secrets)
        # Read once: splitting the words of each of a million lines took a third of the time.
        self._common = reread(self._common_query, terms)

    def read(self, number: int, said: Said) -> Line:
        """Read a line; a payout or currency that cannot be read is a flaw. Never raises."""
        said = Said(*(text.strip(PHP_WHITE_SPACE) for text in said))
        said = said._replace(currency=said.currency or self._currency)
        query = hide_secrets(self._write_own_query(said), self._secrets)
        own = reread(query, self._terms)
        postback = own._replace(
            incoming=own.incoming._replace(lists=self._common.incoming.lists),
            network=self._common.network,
            warnings=own.warnings + self._common.warnings,
        )
        if self._common_query:
            query = f"{query}&{self._common_query}"
        return Line(number, said, query, postback, _find_flaw(said, postback))

    def _write_own_query(self, said: Said) -> str:
        if self._has_decimal_comma and said.payout:
            # With a point the query reads the same again, whatever the config says by then.
            amount = read_amount(said.payout, decimal_comma=True)
            if amount is not None:
                said = said._replace(payout=decimal_text(amount))
        return _write_query(zip(LINE_NAMES, said, strict=True))


def _write_query(pairs: Iterable[tuple[str, str]]) -> str:
    # Most values have nothing to quote, and looking is cheaper than quoting.
    return "&".join(
        f"{name}={text if _PLAIN.fullmatch(text) else quote(text, safe=',')}"
        for name, text in pairs
        if text
    )


def _find_flaw(said: Said, postback: Postback) -> str:
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
