"""Reads a request's query, body and cookies as PHP reads them, into one `Postback`.

The names, aliases and rules are those of the contract's section on parameters; how names and
percent escapes are read was measured with PHP 8.2 (`tests/intake/test_query.py` holds the table).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from postbackd.db.rows import SUB_ID_NAMES
from postbackd.intake.currencies import settle_currency
from postbackd.intake.macros import holds_macro, is_macro, is_nothing
from postbackd.intake.near_names import (
    STATUS_WORDS,
    find_near_names,
    is_flag,
    is_status_in_list,
)
from postbackd.intake.nested_names import find_in_json, list_in_json, spell_nested
from postbackd.intake.wire_amounts import WireAmount, read_wire_amount
from postbackd.raw_text import give_bytes, has_stand_ins, read_text, show_text
from rates import AMOUNT_LIMIT, EXACT, read_currency, round_to_micro
from statuses import Incoming, WordLists

# Names with one meaning: the leftmost with a usable value wins. Source: Keitaro docs, "Postback".
SUBID_NAMES = ("subid", "sub_id", "clickid", "click_id")
SUBID_COOKIES = ("subid", "_subid")
PAYOUT_NAMES = ("payout", "revenue", "profit")
REJECTED_LIST_NAMES = ("rejected_status", "rejected", "reject_status")
IGNORE_LIST_NAMES = ("ignore", "ignore_status")
# The only value of `payout_unit`: hundredths, whatever their name in the currency.
CENTS = "cents"
LIST_NAMES = (
    "lead_status",
    "sale_status",
    "rebill_status",
    *REJECTED_LIST_NAMES,
    *IGNORE_LIST_NAMES,
)
_LIST_NAMES = frozenset(LIST_NAMES)
_SUB_ID_NAMES = frozenset(SUB_ID_NAMES)

# Every parameter that is read.
KNOWN_NAMES = (
    *SUBID_NAMES,
    "status",
    *PAYOUT_NAMES,
    "payout_unit",
    "currency",
    "tid",
    "cost",
    *SUB_ID_NAMES,
    *LIST_NAMES,
    "return",
    "from",
    "external_id",
)

_KNOWN_NAMES = frozenset(KNOWN_NAMES)
# `C1?payout=`, `C1;status=`, or an `&` that was escaped.
_SWALLOWED = re.compile(rf"[?&;,](?:amp;)?(?:{'|'.join(KNOWN_NAMES)})=", re.IGNORECASE)
# The names with one meaning; a parameter that is not here has one name only.
_ROWS = {name: row for row in (SUBID_NAMES, PAYOUT_NAMES) for name in row}
# The parameters for which other trackers have their own names.
_OFTEN_MISNAMED = ("status", "payout", "currency", "tid")

# The most parameters that are read, and the most cookies. Source: the PHP manual, `max_input_vars`,
# and its default. A postback has some twenty; 64 KiB could have sixteen thousand, each with a cost.
MAX_INPUT_VARS = 1000

# The characters that PHP's trim() removes by default.
PHP_WHITE_SPACE = " \t\n\r\0\x0b"

# The characters of a hostile value that a warning quotes; the stored query has all of them.
QUOTED_CHARACTERS = 64

# Nested fields are searched only in queries up to this length: the search is only for a hint.
LOOKED_THROUGH_CHARACTERS = 8192
NAMES_SHOWN = 5

_UNPRINTABLE = re.compile(r"[^!-~]")
# Every printable ASCII character: quoting leaves them unchanged.
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class Postback(NamedTuple):
    """One postback: the values that are judged, and those that are stored or answered besides."""

    incoming: Incoming
    sub_ids: Mapping[str, str] = {}
    network: str | None = None
    external_id: str | None = None
    answer: str | None = None
    warnings: tuple[str, ...] = ()
    # Warnings for the answer too: they quote nothing that was sent.
    notices: tuple[str, ...] = ()


def read_fields(raw: str, fallback_encoding: str = "") -> dict[str, str]:
    """Read a query string or a form body (each character one byte) as PHP does: last name wins.

    Unlike PHP, `amp;` before a name is dropped, and an empty value does not replace another.
    """
    fields: dict[str, str] = {}
    is_plain = _is_plain(raw)
    for pair in read_pairs(raw):
        name, _, value = pair.partition("=")
        php_name = name
        if not (is_plain and (name in _KNOWN_NAMES or name.isidentifier())):
            php_name = _read_name(name, fallback_encoding)
        if php_name:
            text = value if is_plain else _decode_value(value, fallback_encoding)
            if php_name not in fields or text.strip(PHP_WHITE_SPACE):
                fields[php_name] = text
    return fields


def read_pairs(raw: str) -> list[str]:
    """Split a query into the parameters that are read; empty ones do not count."""
    pairs = raw.split("&")
    if len(pairs) <= MAX_INPUT_VARS:
        return pairs
    return list(islice(filter(None, pairs), MAX_INPUT_VARS))


def warn_of_unread(raw: str) -> tuple[str, ...]:
    """Warn of parameters that are not read."""
    if raw.count("&") < MAX_INPUT_VARS:
        return ()
    unread = sum(map(bool, raw.split("&"))) - MAX_INPUT_VARS
    if unread <= 0:
        return ()
    return (f"{unread} parameters after the first {MAX_INPUT_VARS} are left unread, as by PHP",)


def warn_of_query(raw: str) -> tuple[str, ...]:
    """Warn of parameters that are not read, or are read in another way than PHP's."""
    warnings = warn_of_unread(raw)
    if (";" in raw or "%3" in raw) and _HTML_AND.search(raw):
        return (*warnings, _HTML_AND_WARNING)
    return warnings


_HTML_AND = re.compile("(?:^|&)amp(?:;|%3b)", re.IGNORECASE)
_HTML_AND_WARNING = "'&amp;' came in the place of '&': the names behind it are read without 'amp;'"


def adopt_names(
    fields: Mapping[str, str], known: frozenset[str]
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Read names in another case as known ones that did not come; the fields, and warnings."""
    adopted = find_adopted(fields, known)
    if not adopted:
        return fields, ()
    warnings = (
        f"{quote_value(name)} is read as {ours!r}: names are in lower case here"
        for name, ours in adopted.items()
    )
    return {**fields, **{ours: fields[name] for name, ours in adopted.items()}}, tuple(warnings)


def find_adopted(fields: Mapping[str, str], known: frozenset[str] = _KNOWN_NAMES) -> dict[str, str]:
    """Find the names in another case that are read as known ones: the sent name, and ours."""
    return {
        name: ours
        for name, value in fields.items()
        if name not in known
        and (ours := name.lower()) in known
        and value.strip(PHP_WHITE_SPACE)
        and not _came(fields, ours)
    }


def _came(fields: Mapping[str, str], name: str) -> bool:
    """Return whether a parameter came with a value, under any of its names."""
    return any(_read_value(fields, other) is not None for other in _ROWS.get(name, (name,)))


def names_click(fields: Mapping[str, str]) -> bool:
    """Return whether the fields have a usable click id."""
    return read_subid(adopt_names(fields, _KNOWN_NAMES)[0], []) is not None


def read_cookies(header: str, fallback_encoding: str = "") -> dict[str, str]:
    """Read a Cookie header (each character one byte): percent-decoded, the first of a name wins."""
    cookies: dict[str, str] = {}
    for pair in islice(header.split(";"), MAX_INPUT_VARS):
        name, _, value = pair.partition("=")
        name = _read_name(name, fallback_encoding)
        cookies.setdefault(name, _decode_value(value, fallback_encoding))
    return cookies


def read_postback(
    fields: Mapping[str, str],
    cookies: Mapping[str, str],
    *,
    tracker_currency: str,
    decimal_comma: bool = False,
) -> Postback:
    """Read the fields of a postback. Never raises: unusable values are named in the warnings."""
    warnings: list[str] = []
    strangers = () if _KNOWN_NAMES.issuperset(fields) else _list_strangers(fields)
    if strangers and not _KNOWN_NAMES.isdisjoint(map(str.lower, strangers)):
        fields, adopted = adopt_names(fields, _KNOWN_NAMES)
        warnings += adopted
    word, word_is_macro = _read_word(fields, warnings)
    payout = _read_amount(fields, PAYOUT_NAMES, warnings, decimal_comma=decimal_comma)
    if payout.amount is not None and "payout_unit" in fields:
        payout = _read_in_unit(fields, payout, warnings)
    cost = _read_amount(fields, ("cost",), warnings, decimal_comma=decimal_comma)
    currency = _read_currency(fields, warnings)
    if payout.mark or cost.mark:
        currency, cost = _settle_marks(payout, cost, currency, tracker_currency, warnings)
    # By position, here and below, since names would take twice as long.
    incoming = Incoming(
        _read_subid(fields, cookies, warnings),
        word,
        word_is_macro,
        _read_usable(fields, "tid", warnings) or "",
        payout.amount,
        cost.amount,
        tracker_currency if currency == "" else currency,
        _read_lists(fields),
        sub_ids=read_sub_ids(fields, warnings),
    )
    for name, text in (("subid", incoming.subid), ("tid", incoming.tid)):
        if text and holds_macro(text):
            warnings.append(_part_warning(name, text))
        if text and "=" in text and (swallowed := _SWALLOWED.search(text)):
            warnings.append(
                f"further parameters stand within {name} {quote_value(text)}, such as"
                f" {quote_value(swallowed[0][1:])}: '?' comes once in a URL, and plain '&' between"
                " parameters"
            )
    network = _read_usable(fields, "from", warnings)
    notices = _notice_strangers(fields, strangers, incoming, warnings) if strangers else ()
    if word is None and not word_is_macro and (incoming.lists is not _NO_LISTS):
        notices += _notice_unasked_lists(fields, warnings)
    return Postback(
        incoming,
        incoming.sub_ids,
        network,
        _read_usable(fields, "external_id", warnings),
        _read_value(fields, "return"),
        tuple(warnings),
        notices,
    )


def _notice_strangers(
    fields: Mapping[str, str], strangers: Sequence[str], incoming: Incoming, warnings: list[str]
) -> tuple[str, ...]:
    """Warn of values under other trackers' names; the notices quote no value."""
    near_names = list(find_near_names(strangers))
    notices: dict[str, None] = {}
    absent = list_absent(fields) if near_names else []
    if incoming.subid is not None and "subid" in absent:
        # The click id came in a cookie.
        absent.remove("subid")
    for name, near in near_names:
        if near.ours not in absent:
            continue
        if (value := _read_value(fields, name)) is not None:
            why = "other trackers call it so, here" if near.is_known else "where that is meant,"
            warnings.append(
                f"{quote_value(name)} came ({quote_value(value)}) and no {near.ours!r}: {why} it is"
                f" sent as {near.ours}="
            )
            notices[f"{near.name} came, {near.ours} did not"] = None
    if any(map(_is_whole_query, strangers)):
        notices["the parameters came percent-encoded as a whole"] = None
        warnings.append(
            "a name holds '=' and '&': what came was percent-encoded as a whole, and is no list of"
            " parameters; the sender is to encode the values alone"
        )
    if incoming.word is None and not incoming.word_is_macro:
        warnings += _find_status_words(fields, strangers, incoming.lists, notices)
    return tuple(notices)


def _is_whole_query(name: str) -> bool:
    first, sign, rest = name.partition("=")
    return bool(sign) and "&" in rest and first in _KNOWN_NAMES


def _list_strangers(fields: Mapping[str, str]) -> list[str]:
    return [name for name in fields if name not in _KNOWN_NAMES]


def list_absent(fields: Mapping[str, str]) -> list[str]:
    """List the often misnamed parameters that did not come."""
    return [name for name in ("subid", *_OFTEN_MISNAMED) if not _came(fields, name)]


def _find_status_words(
    fields: Mapping[str, str],
    strangers: Sequence[str],
    lists: WordLists,
    notices: dict[str, None],
) -> Iterator[str]:
    for name in strangers:
        value = fields[name]
        if any(near.ours == "status" for _, near in find_near_names([name])):
            # Said already.
            continue
        if is_flag(name, value):
            notices["a parameter unknown here says that money is taken back"] = None
            yield _flag_warning(name, value)
            continue
        word = value.strip(PHP_WHITE_SPACE).casefold()
        # Not `1`, which may be any number.
        if word in STATUS_WORDS or (not word.isdecimal() and _is_listed(word, lists)):
            notices["a parameter unknown here holds a status word, and status did not come"] = None
            yield (
                f"{quote_value(name)} holds {quote_value(value)}, a status word, and no 'status'"
                " came, which makes it a sale: send the word as status="
            )


def _flag_warning(name: str, value: str) -> str:
    return (
        f"{quote_value(name)} came ({quote_value(value)}) and no 'status', which makes it a sale:"
        " where money is taken back, send status=rejected"
    )


def _notice_unasked_lists(fields: Mapping[str, str], warnings: list[str]) -> tuple[str, ...]:
    """Warn of lists that are no lists, or that nothing is looked up in: without status, a sale."""
    notices: dict[str, None] = {}
    if "status" in fields:
        notices["status came empty"] = None
        warnings.append("status came empty, which makes it a sale: no list is asked without a word")
    for name in LIST_NAMES:
        words = _read_value(fields, name)
        if words is not None and is_status_in_list(name, words):
            notices[f"{name} holds what may be the status, and status did not come"] = None
            warnings.append(
                f"{name} is a list of the network's words, it holds {quote_value(words)}, and no"
                " 'status' came, which makes it a sale: send the word as status="
            )
    return tuple(notices)


def _is_listed(word: str, lists: WordLists) -> bool:
    return any(word in words for words in lists)


def read_subid(fields: Mapping[str, str], warnings: list[str]) -> str | None:
    """Read the click id from the leftmost of its names with a usable value."""
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


def store_query(query: str, body: str = "", cookie_subid: str | None = None) -> str:
    """Write the request as one query in printable ASCII, which is read back as the same values.

    Body fields that the query does not name are added, and so is a click id from a cookie.
    """
    parts = [query] if query else []
    if body:
        parts += _leave_out_named(body, query) if query else [body]
    text = "&".join(parts)
    if cookie_subid is not None:
        text = _add_pairs(text, [f"subid={quote(give_bytes(cookie_subid), safe='')}"])
    if _UNPRINTABLE.search(text):
        return quote(text.encode("latin-1"), safe=_PRINTABLE)
    return text


def says_all_of(stored: str, query: str, body: str) -> bool:
    """Return whether the stored query has everything of the body."""
    return not query or stored.count("&") == query.count("&") + body.count("&") + 1


def _leave_out_named(body: str, query: str) -> list[str]:
    """List the parameters of a body that the query does not name; unread ones as they came."""
    named = {name for name, value in read_fields(query).items() if value.strip(PHP_WHITE_SPACE)}
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
    """Add parameters at the end, or in place of the last ones that are read."""
    pairs = query.split("&") if query else []
    place = MAX_INPUT_VARS - len(new)
    return "&".join([*pairs[:place], *new, *pairs[place:]])


def rewrite_query(query: str, renames: Mapping[str, str], values: Mapping[str, str]) -> str:
    """Rename parameters of a stored query (old: new) and set others; the rest stays.

    A renamed parameter with a value replaces those that came under the new name. An empty value
    removes a parameter. An old name may be that of a nested field, and lead into JSON that is the
    value of a field.
    """
    pairs = query.split("&") if query else []
    names = _spell_names(pairs, renames)
    fields = _read_named(pairs, names)
    moved = {old: new for old, new in renames.items() if _read_value(fields, old) is not None}
    dug_up = {
        new: value
        for old, new in renames.items()
        if old not in moved and (value := find_in_json(fields, old)) is not None
    }
    gone = {*moved.values(), *dug_up, *values}
    parts = []
    for name, pair in zip(names, pairs, strict=True):
        if name in moved and moved[name] not in values:
            parts.append(f"{moved[name]}={pair.partition('=')[2]}")
        elif name not in moved and name not in gone:
            parts.append(pair)
    new = [
        f"{name}={quote(give_bytes(value), safe='')}"
        for name, value in {**dug_up, **values}.items()
        if value
    ]
    return _add_pairs("&".join(parts), new)


def warn_of_nested(query: str, fields: Mapping[str, str], *, has_click: bool) -> tuple[str, ...]:
    """Name the nested fields of a query: all of them where it names no click, else what we lack."""
    if not _NESTED.search(query) or len(query) > LOOKED_THROUGH_CHARACTERS:
        return ()
    names = [name for name in list_field_names(query) if "[" in name]
    if has_click:
        return tuple(_find_missed(names, fields))
    if not names:
        return ()
    shown = ", ".join(map(quote_value, names[:NAMES_SHOWN]))
    return (f"fields came nested: `postback replay --rename` takes their names, such as {shown}",)


# Brackets of a name, and what JSON begins with.
_NESTED = re.compile(r"\[|\{|%5[Bb]|%7[Bb]")
_INDEX = re.compile(r"\[[0-9]*\]")


def _find_missed(names: Iterable[str], fields: Mapping[str, str]) -> Iterator[str]:
    """Find nested fields that are named as parameters which did not come."""
    absent = list_absent(adopt_names(fields, _KNOWN_NAMES)[0])
    found: dict[str, None] = {}
    for name in names:
        last = _INDEX.sub("", name).rpartition("[")[2]
        for _, near in find_near_names([last]):
            if near.ours in absent and near.ours != "subid":
                found[
                    f"{quote_value(name)} came nested and no {near.ours!r}: nested fields are not"
                    f" read, `postback replay --rename` takes their names"
                ] = None
    yield from islice(found, NAMES_SHOWN)


def has_field(query: str, name: str) -> bool:
    """Return whether `rewrite_query` finds a field with this name in a stored query."""
    pairs = query.split("&") if query else []
    fields = _read_named(pairs, _spell_names(pairs, [name]))
    return _read_value(fields, name) is not None or find_in_json(fields, name) is not None


def list_field_names(query: str) -> list[str]:
    """List the names of a stored query's fields, nested ones too, in `rewrite_query`'s spelling."""
    pairs = query.split("&") if query else []
    fields = _read_named(pairs, _spell_names(pairs, ["["]))
    return [*fields, *(name for field in fields for name in list_in_json(field, fields[field]))]


def _spell_names(pairs: Sequence[str], wanted: Iterable[str]) -> list[str]:
    """Return each pair's name; that of a nested field only where one is wanted."""
    raw_names = [pair.partition("=")[0] for pair in pairs]
    names = list(map(_read_name, raw_names))
    if any("[" in name for name in wanted):
        numbers: dict[str, int] = {}
        for place, raw in enumerate(raw_names):
            if raw and not names[place]:
                names[place] = spell_nested(_decode(raw, ""), numbers)
    return names


def _read_named(pairs: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Read values by the names of their pairs, by the rules of `read_fields`."""
    fields: dict[str, str] = {}
    came = ((name, pair) for name, pair in zip(names, pairs, strict=True) if pair)
    for name, pair in islice(came, MAX_INPUT_VARS):
        value = _decode_value(pair.partition("=")[2], "")
        if name and (name not in fields or value.strip(PHP_WHITE_SPACE)):
            fields[name] = value
    return fields


def trim(value: str) -> str:
    """Trim as PHP's trim(); a NUL within, which PostgreSQL cannot store, becomes U+FFFD."""
    value = value.strip(PHP_WHITE_SPACE)
    return value.replace("\0", "\ufffd") if "\0" in value else value


def quote_value(value: str) -> str:
    """Quote a value for a sentence, escaped, and cut where it is long."""
    value = show_text(value)
    if len(value) > QUOTED_CHARACTERS:
        value = value[:QUOTED_CHARACTERS] + "…"
    return repr(value)


def _read_name(raw: str, fallback_encoding: str = "") -> str:
    """Read a field's name; empty where PHP would make no plain variable of it."""
    if not raw:
        # A body of '&' alone has 65,000 empty fields.
        return ""
    if raw.isidentifier() and raw.isascii():
        return raw
    name = _decode(raw, fallback_encoding).partition("\0")[0].lstrip(" ")
    if name[:4].lower() == "amp;":
        name = _AMPS.sub("", name)
    head, bracket, rest = name.partition("[")
    if bracket and (not head or "]" in rest):
        return ""
    return name.replace(".", "_").replace(" ", "_").replace("[", "_")


# HTML escaped once or more: `&amp;amp;status=`.
_AMPS = re.compile("(?:amp;)+", re.IGNORECASE)


def _decode_value(raw: str, fallback_encoding: str) -> str:
    value = _decode(raw, "")
    # "%aff_sub%" is a macro whose first three characters happen to be an escape.
    # A space is raw in a body and an escape in the stored query: both must be read the same.
    if not has_stand_ins(value):
        return value
    if is_macro(spaced := raw.replace("+", " ").replace("%20", " ")):
        return spaced
    return _decode(raw, fallback_encoding)


def _is_plain(raw: str) -> bool:
    """Return whether decoding would change nothing, as for most values."""
    return raw.isascii() and "%" not in raw and "+" not in raw


def _decode(raw: str, fallback_encoding: str) -> str:
    if _is_plain(raw):
        return raw
    return read_text(_decode_bytes(raw).encode("latin-1"), fallback_encoding)


def _decode_bytes(raw: str) -> str:
    spaced = raw.replace("+", " ")
    if _BAD_ESCAPE.search(spaced):
        return _ESCAPES.sub(_decode_escapes, spaced)
    return unquote_to_bytes(spaced.encode("latin-1")).decode("latin-1")


def _decode_escapes(found: re.Match[str]) -> str:
    return bytes.fromhex(found[0].replace("%", "")).decode("latin-1")


# The standard library raises and catches an exception for each bare percent sign, which takes ten
# times as long: 30 ms for 65,000 of them.
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_ESCAPES = re.compile("(?:%[0-9A-Fa-f]{2})+")


def _read_value(fields: Mapping[str, str], name: str) -> str | None:
    value = fields.get(name)
    if not value:
        return None
    value = value.strip(PHP_WHITE_SPACE)
    # As in `trim`, without a call for each value.
    return (value.replace("\0", "\ufffd") if "\0" in value else value) or None


def _read_usable(fields: Mapping[str, str], name: str, warnings: list[str]) -> str | None:
    if name not in fields:
        return None
    value = _read_value(fields, name)
    if value is not None and is_macro(value):
        warnings.append(_macro_warning(name, value))
        return None
    return value


def _part_warning(name: str, value: str) -> str:
    return f"a macro that the network did not replace stands within {name} {quote_value(value)}"


def _macro_warning(name: str, value: str) -> str:
    if is_nothing(value):
        return f"{name} is {quote_value(value)}, which is what a script writes for nothing"
    return f"{name} is {quote_value(value)}, a macro that the network did not replace"


def _read_subid(
    fields: Mapping[str, str], cookies: Mapping[str, str], warnings: list[str]
) -> str | None:
    subid = read_subid(fields, warnings)
    return read_cookie_subid(cookies) if subid is None and cookies else subid


def read_cookie_subid(cookies: Mapping[str, str]) -> str | None:
    """Read the click id from a visitor's cookies."""
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


_NO_AMOUNT = WireAmount(None)


def _read_amount(
    fields: Mapping[str, str], names: Sequence[str], warnings: list[str], *, decimal_comma: bool
) -> WireAmount:
    for name in names:
        text = _read_usable(fields, name, warnings)
        if text is None:
            continue
        amount = read_wire_amount(text, decimal_comma=decimal_comma)
        if amount is not None:
            return amount
        warnings.append(_unreadable_warning(name, text))
    return _NO_AMOUNT


def _read_in_unit(fields: Mapping[str, str], payout: WireAmount, warnings: list[str]) -> WireAmount:
    """Apply the unit that the URL names to a payout; without one it stays as it is."""
    unit = _read_usable(fields, "payout_unit", warnings)
    if unit is None:
        return payout
    if unit.lower() != CENTS:
        warnings.append(
            f"payout_unit {quote_value(unit)} is unknown, and the payout counts as not sent: the"
            f" only unit is {CENTS!r}"
        )
        return _NO_AMOUNT
    assert payout.amount is not None
    return payout._replace(amount=round_to_micro(EXACT.scaleb(payout.amount, -2)))


def _unreadable_warning(name: str, text: str) -> str:
    if "\xa4cy=" in text:
        return (
            f"{name} {quote_value(text)} is unreadable: '\xa4cy' is what HTML makes of '&currency',"
            " so write that into the network's URL by hand"
        )
    if _LARGE.fullmatch(text):
        return f"{name} {quote_value(text)} is unreadable: amounts are below {AMOUNT_LIMIT:,}"
    return (
        f"{name} {quote_value(text)} is unreadable: send plain digits with a decimal point, such as"
        " 12.50"
    )


_LARGE = re.compile(r"[+-]?0*[1-9][0-9]{9,}(?:\.[0-9]*)?")


def _read_currency(fields: Mapping[str, str], warnings: list[str]) -> str | None:
    """Read the currency's code, empty where none was sent; None for an unknown currency."""
    text = _read_value(fields, "currency")
    if text is None:
        return ""
    if is_macro(text):
        warnings.append(_macro_warning("currency", text))
        return None
    currency = read_currency(text)
    if currency is None:
        warnings.append(f"currency {quote_value(text)} is no currency code such as EUR")
    return currency


def _settle_marks(
    payout: WireAmount,
    cost: WireAmount,
    sent: str | None,
    tracker_currency: str,
    warnings: list[str],
) -> tuple[str | None, WireAmount]:
    """Find the currency of a postback whose amounts have signs; drop a cost in another one."""
    name, first = ("payout", payout) if payout.amount is not None else ("cost", cost)
    currency = sent or _read_mark(name, first, sent, tracker_currency, warnings)
    for each, money in (("payout", payout), ("cost", cost)):
        if currency is None or _can_mean(money, currency, tracker_currency):
            continue
        if sent:
            warnings.append(f"{each} has {money.mark!r}, and currency={sent} came: that counts")
        elif money is not first:
            warnings.append(
                f"{each} has {money.mark!r} and counts as not sent: {name} is in {currency}, and a"
                " postback has one currency"
            )
            cost = _NO_AMOUNT
    return currency, cost


def read_cost(
    fields: Mapping[str, str],
    warnings: list[str],
    *,
    tracker_currency: str,
    decimal_comma: bool = False,
) -> tuple[Decimal, str] | tuple[None, None]:
    """Read the cost of a click and its currency; None for both where one is unknown."""
    cost = _read_amount(fields, ("cost",), warnings, decimal_comma=decimal_comma)
    if cost.amount is None:
        return None, None
    currency = _read_currency(fields, warnings)
    if cost.mark:
        currency, _ = _settle_marks(_NO_AMOUNT, cost, currency, tracker_currency, warnings)
    currency = tracker_currency if currency == "" else currency
    if currency is None:
        warnings.append("cost counts as not sent: its currency is not known")
        return None, None
    return cost.amount, currency


def _read_mark(
    name: str, money: WireAmount, sent: str | None, tracker_currency: str, warnings: list[str]
) -> str | None:
    if money.mark is None:
        return None if sent is None else tracker_currency
    currency = settle_currency([money.mark], None, tracker_currency)
    if currency is None:
        warnings.append(
            f"{name} has {money.mark!r}, which may mean several currencies: send currency="
            " beside it"
        )
    return currency


def _can_mean(money: WireAmount, currency: str, tracker_currency: str) -> bool:
    if money.mark is None:
        return True
    return settle_currency([money.mark], currency, tracker_currency) == currency


_NO_LISTS = WordLists()


def _read_lists(fields: Mapping[str, str]) -> WordLists:
    if _LIST_NAMES.isdisjoint(fields):
        return _NO_LISTS
    return WordLists(
        sale=_read_words(fields, ("sale_status",)),
        lead=_read_words(fields, ("lead_status",)),
        rejected=_read_words(fields, REJECTED_LIST_NAMES),
        rebill=_read_words(fields, ("rebill_status",)),
        ignore=_read_words(fields, IGNORE_LIST_NAMES),
    )


_NO_WORDS: frozenset[str] = frozenset()


def _read_words(fields: Mapping[str, str], names: Iterable[str]) -> frozenset[str]:
    # Most URLs have one of the five lists.
    words = _NO_WORDS
    for name in names:
        if name in fields:
            words |= {trim(word).casefold() for word in fields[name].split(",")} - {""}
    return words
