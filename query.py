"""What a request says: its query, body and cookies read as PHP reads them, into one value.

The names, aliases and rules are those of the contract's section on parameters; how names and
percent escapes are read was measured with PHP 8.2 (`tests/test_query.py` holds the table).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from rates import read_amount, read_currency
from rows import SUB_ID_NAMES
from statuses import Incoming, WordLists

# Of equal meaning, the leftmost with a usable value wins. Source: Keitaro docs, "Postback".
SUBID_NAMES = ("subid", "sub_id", "clickid", "click_id")
SUBID_COOKIES = ("subid", "_subid")
PAYOUT_NAMES = ("payout", "revenue", "profit")
REJECTED_LIST_NAMES = ("rejected_status", "rejected", "reject_status")
IGNORE_LIST_NAMES = ("ignore", "ignore_status")
LIST_NAMES = (
    "lead_status",
    "sale_status",
    "rebill_status",
    *REJECTED_LIST_NAMES,
    *IGNORE_LIST_NAMES,
)
_SUB_ID_NAMES = frozenset(SUB_ID_NAMES)

# Every parameter that means something to us.
KNOWN_NAMES = (
    *SUBID_NAMES,
    "status",
    *PAYOUT_NAMES,
    "currency",
    "tid",
    "cost",
    *SUB_ID_NAMES,
    *LIST_NAMES,
    "return",
    "from",
)

# How many parameters are read; so many cookies, too. Source: the PHP manual, `max_input_vars`, and
# its default. A postback has some twenty; 64 KiB have room for sixteen thousand, each with a cost.
MAX_INPUT_VARS = 1000

# What PHP's trim() takes off by default.
PHP_WHITE_SPACE = " \t\n\r\0\x0b"

# How much of a hostile value a warning repeats; the whole of it stands in the stored query.
QUOTED_CHARACTERS = 64

_NAME = r"[A-Za-z0-9 _.\-]{1,64}"
# Literal placeholders of affiliate networks, as they arrive when nothing replaced them.
_MACRO = re.compile(
    rf"\{{{_NAME}\}}|\{{\{{{_NAME}\}}\}}|\$\{{{_NAME}\}}|\[{_NAME}\]|\[\[\[{_NAME}\]\]\]"
    rf"|\#{_NAME}\#|\#\#{_NAME}\#\#|%{_NAME}%|%%{_NAME}%%|<{_NAME}>|\[={_NAME}=\]"
)
_BARE_MACROS = frozenset({"replace", "optional"})
_MACRO_STARTS = frozenset("{$[#%<")
_UNPRINTABLE = re.compile(r"[^!-~]")
# Every printable ASCII character: quoting with these left alone touches nothing else.
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class Postback(NamedTuple):
    """One postback, read: what the engine judges, and what is kept or answered beside it."""

    incoming: Incoming
    sub_ids: Mapping[str, str] = {}
    network: str | None = None
    answer: str | None = None
    warnings: tuple[str, ...] = ()


def read_fields(raw: str) -> dict[str, str]:
    """Read a query string or a form body (each character one byte) as PHP does: last name wins."""
    fields = {}
    is_plain = _is_plain(raw)
    for pair in read_pairs(raw):
        name, _, value = pair.partition("=")
        php_name = name if is_plain and name.isidentifier() else _read_name(name)
        if php_name:
            fields[php_name] = value if is_plain else _decode_value(value)
    return fields


def read_pairs(raw: str) -> list[str]:
    """Split a query into its parameters, those that are read: empty ones do not count."""
    pairs = raw.split("&")
    if len(pairs) <= MAX_INPUT_VARS:
        return pairs
    return list(islice(filter(None, pairs), MAX_INPUT_VARS))


def warn_of_unread(raw: str) -> tuple[str, ...]:
    """Say how many parameters of a query are left unread, if any."""
    if raw.count("&") < MAX_INPUT_VARS:
        return ()
    unread = sum(map(bool, raw.split("&"))) - MAX_INPUT_VARS
    if unread <= 0:
        return ()
    return (f"{unread} parameters after the first {MAX_INPUT_VARS} are left unread, as by PHP",)


def read_cookies(header: str) -> dict[str, str]:
    """Read a Cookie header (each character one byte): percent-decoded, the first of a name wins."""
    cookies: dict[str, str] = {}
    for pair in islice(header.split(";"), MAX_INPUT_VARS):
        name, _, value = pair.partition("=")
        cookies.setdefault(_read_name(name), _decode_value(value))
    return cookies


def read_postback(
    fields: Mapping[str, str],
    cookies: Mapping[str, str],
    *,
    tracker_currency: str,
    decimal_comma: bool = False,
) -> Postback:
    """Read what was sent. Never raises: what cannot be used is named in the warnings."""
    warnings: list[str] = []
    word, word_is_macro = _read_word(fields, warnings)
    amount = _read_amount(fields, PAYOUT_NAMES, warnings, decimal_comma=decimal_comma)
    cost = _read_amount(fields, ("cost",), warnings, decimal_comma=decimal_comma)
    incoming = Incoming(
        subid=_read_subid(fields, cookies, warnings),
        word=word,
        word_is_macro=word_is_macro,
        tid=_read_usable(fields, "tid", warnings) or "",
        amount=amount,
        cost=cost,
        currency=_read_currency(fields, tracker_currency, warnings),
        lists=_read_lists(fields),
        sub_ids=read_sub_ids(fields, warnings),
    )
    return Postback(
        incoming=incoming,
        sub_ids=incoming.sub_ids,
        network=_read_usable(fields, "from", warnings),
        answer=_read_value(fields, "return"),
        warnings=tuple(warnings),
    )


def read_subid(fields: Mapping[str, str], warnings: list[str]) -> str | None:
    """Read the click id under the leftmost of its names that holds a usable one."""
    for name in SUBID_NAMES:
        subid = _read_usable(fields, name, warnings)
        if subid is not None:
            return subid
    return None


def read_sub_ids(fields: Mapping[str, str], warnings: list[str]) -> dict[str, str]:
    """Read `sub_id_1` … `sub_id_30`, those that were sent."""
    if _SUB_ID_NAMES.isdisjoint(fields):
        return {}
    return {
        name: value
        for name in SUB_ID_NAMES
        if name in fields and (value := _read_usable(fields, name, warnings)) is not None
    }


def is_macro(text: str) -> bool:
    """Tell whether a value is, as a whole, a network's literal placeholder."""
    if text[:1] in _MACRO_STARTS:
        return _MACRO.fullmatch(text) is not None
    return text.lower() in _BARE_MACROS


def store_query(query: str, body: str = "", cookie_subid: str | None = None) -> str:
    """Write down what was sent as one query in printable ASCII that reads back the same.

    Body fields that the query does not name follow it; so does a click id from a cookie.
    """
    parts = [query] if query else []
    if body:
        parts += _leave_out_named(body, query) if query else [body]
    text = "&".join(parts)
    if cookie_subid is not None:
        text = _add_pairs(text, [f"subid={quote(cookie_subid, safe='')}"])
    if _UNPRINTABLE.search(text):
        return quote(text.encode("latin-1"), safe=_PRINTABLE)
    return text


def _leave_out_named(body: str, query: str) -> list[str]:
    """List the parameters of a body that a query does not name; unread ones as they came."""
    named = read_fields(query)
    room = MAX_INPUT_VARS - len(list(filter(None, read_pairs(query))))
    rest = iter(body.split("&"))
    left = []
    for pair in rest:
        if room <= 0:
            left.append(pair)
            break
        if not pair or _read_name(pair.partition("=")[0]) not in named:
            left.append(pair)
            room -= bool(pair)
    return [*left, *rest]


def _add_pairs(query: str, new: list[str]) -> str:
    """Add parameters at the end, or where the last ones stand that are read."""
    pairs = query.split("&") if query else []
    place = MAX_INPUT_VARS - len(new)
    return "&".join([*pairs[:place], *new, *pairs[place:]])


def mend_query(query: str, renames: Mapping[str, str], values: Mapping[str, str]) -> str:
    """Rename parameters of a stored query (old: new) and give others a value; the rest stays.

    Where a parameter that came with a value gets a new name, what came under that one goes. An
    empty value takes a parameter away.
    """
    fields = read_fields(query)
    moved = {old: new for old, new in renames.items() if _read_value(fields, old) is not None}
    gone = {*moved.values(), *values}
    parts = []
    for pair in query.split("&") if query else ():
        name, _, value = pair.partition("=")
        php_name = _read_name(name)
        if php_name in moved and moved[php_name] not in values:
            parts.append(f"{moved[php_name]}={value}")
        elif php_name not in moved and php_name not in gone:
            parts.append(pair)
    new = [f"{name}={quote(value, safe='')}" for name, value in values.items() if value]
    return _add_pairs("&".join(parts), new)


def quote_value(value: str) -> str:
    """Quote a value for a sentence, escaped, and cut where it is long."""
    if len(value) > QUOTED_CHARACTERS:
        value = value[:QUOTED_CHARACTERS] + "…"
    return repr(value)


def _read_name(raw: str) -> str:
    """Read a field's name; empty where PHP would make no plain variable of it."""
    if not raw:
        # A body of nothing but '&' holds 65,000 of them.
        return ""
    if raw.isidentifier() and raw.isascii():
        return raw
    name = _decode(raw).partition("\0")[0].lstrip(" ")
    head, bracket, rest = name.partition("[")
    if bracket and (not head or "]" in rest):
        return ""
    return name.replace(".", "_").replace(" ", "_").replace("[", "_")


def _decode_value(raw: str) -> str:
    value = _decode(raw)
    # "%aff_sub%" is a placeholder whose first three characters happen to be an escape.
    # A space comes raw in a body and is kept as an escape: both are to read the same.
    if "\ufffd" in value and is_macro(spaced := raw.replace("+", " ").replace("%20", " ")):
        return spaced
    return value


def _is_plain(raw: str) -> bool:
    """Tell whether decoding would change nothing, which it seldom does."""
    return raw.isascii() and "%" not in raw and "+" not in raw


def _decode(raw: str) -> str:
    if _is_plain(raw):
        return raw
    return _decode_bytes(raw).encode("latin-1").decode("utf-8", "replace")


def _decode_bytes(raw: str) -> str:
    spaced = raw.replace("+", " ")
    if _BAD_ESCAPE.search(spaced):
        return _ESCAPES.sub(_decode_escapes, spaced)
    return unquote_to_bytes(spaced.encode("latin-1")).decode("latin-1")


def _decode_escapes(found: re.Match[str]) -> str:
    return bytes.fromhex(found[0].replace("%", "")).decode("latin-1")


# The standard library raises and catches an exception for each escape that is none, which takes ten
# times as long: 65,000 bare percent signs were 30 ms.
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_ESCAPES = re.compile("(?:%[0-9A-Fa-f]{2})+")


def _read_value(fields: Mapping[str, str], name: str) -> str | None:
    value = fields.get(name)
    return (value.strip(PHP_WHITE_SPACE) or None) if value else None


def _read_usable(fields: Mapping[str, str], name: str, warnings: list[str]) -> str | None:
    value = _read_value(fields, name)
    if value is not None and is_macro(value):
        warnings.append(_macro_warning(name, value))
        return None
    return value


def _macro_warning(name: str, value: str) -> str:
    return f"{name} is {quote_value(value)}, a macro that the network did not replace"


def _read_subid(
    fields: Mapping[str, str], cookies: Mapping[str, str], warnings: list[str]
) -> str | None:
    subid = read_subid(fields, warnings)
    return read_cookie_subid(cookies) if subid is None and cookies else subid


def read_cookie_subid(cookies: Mapping[str, str]) -> str | None:
    """Read the click id that a visitor's browser brings along."""
    for name in SUBID_COOKIES:
        subid = _read_value(cookies, name)
        if subid is not None and not is_macro(subid):
            return subid
    return None


def _read_word(fields: Mapping[str, str], warnings: list[str]) -> tuple[str | None, bool]:
    word = _read_value(fields, "status")
    if word is None or not is_macro(word):
        return word, False
    warnings.append(_macro_warning("status", word))
    return word, True


def _read_amount(
    fields: Mapping[str, str], names: Sequence[str], warnings: list[str], *, decimal_comma: bool
) -> Decimal | None:
    for name in names:
        text = _read_usable(fields, name, warnings) if name in fields else None
        if text is None:
            continue
        amount = read_amount(text, decimal_comma=decimal_comma)
        if amount is not None:
            return amount
        warnings.append(
            f"{name} {quote_value(text)} is unreadable: send plain digits with a decimal point,"
            " such as 12.50"
        )
    return None


def _read_currency(
    fields: Mapping[str, str], tracker_currency: str, warnings: list[str]
) -> str | None:
    text = _read_value(fields, "currency")
    if text is None:
        return tracker_currency
    if is_macro(text):
        warnings.append(_macro_warning("currency", text))
        return None
    currency = read_currency(text)
    if currency is None:
        warnings.append(f"currency {quote_value(text)} is no currency code such as EUR")
    return currency


_NO_LISTS = WordLists()


def _read_lists(fields: Mapping[str, str]) -> WordLists:
    if fields.keys().isdisjoint(LIST_NAMES):
        return _NO_LISTS
    return WordLists(
        sale=frozenset(_read_words(fields, ("sale_status",))),
        lead=frozenset(_read_words(fields, ("lead_status",))),
        rejected=frozenset(_read_words(fields, REJECTED_LIST_NAMES)),
        rebill=frozenset(_read_words(fields, ("rebill_status",))),
        ignore=frozenset(_read_words(fields, IGNORE_LIST_NAMES)),
    )


def _read_words(fields: Mapping[str, str], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        for word in fields.get(name, "").split(","):
            if trimmed := word.strip(PHP_WHITE_SPACE).casefold():
                yield trimmed
