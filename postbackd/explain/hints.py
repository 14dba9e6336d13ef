"""Did you mean: what is probably wrong with a postback that failed, and how to correct it."""

import difflib
import html
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from postbackd.intake.booking import BookingOptions, parse_stored
from postbackd.intake.macros import is_macro
from postbackd.intake.near_names import NearName, find_near_names
from postbackd.intake.query import (
    KNOWN_NAMES,
    LIST_NAMES,
    PAYOUT_NAMES,
    SUBID_NAMES,
    Postback,
    list_absent,
    quote_value,
    read_fields,
)
from postbackd.intake.wire_amounts import read_wire_amount
from postbackd.reports.queries import Questions
from rates import read_amount
from statuses import Rule, Status, Verdict, read_word

# A click id without the signs that network programs put around it.
_TOKEN = re.compile(r"[A-Za-z0-9_.\-]{3,}")
# A hostile query has thousands of parts, and the database is asked about each.
TOKENS_AT_MOST = 500

# A shorter beginning of a click id would match too many.
SHORTEST_BEGINNING = 8

# `a.b` and `sub-id` are near; `sum` and `subid` are not.
NEARNESS = 0.8

_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_SECOND_QUERY = re.compile(r"\?[A-Za-z_][A-Za-z0-9_]*=")

# `C1&status=sale` as a value, `subid=C1&status=sale` as a name.
_INNER_PARAMETER = re.compile(r"(?:^|&)([A-Za-z_]\w*)=")

_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?")

# Names of ours that begin like an entity of HTML, as `&currency` becomes `¤cy`.
_MANGLED = {
    html.unescape(f"&{name}"): name for name in KNOWN_NAMES if html.unescape(f"&{name}")[0] != "&"
}


# What networks mostly mean by these words. They are only for hints, never for booking.
_USUAL_WORDS = {
    Status.LEAD: "hold new on_hold onhold open pending processing reg registration wait waiting",
    Status.REJECTED: "cancel canceled cancelled chargeback decline declined denied disapproved"
    " double duplicate fail failed fraud invalid refund refunded reject reversed spam trash void",
    Status.SALE: "accepted approve approved complete completed confirm confirmed deposit ftd ok"
    " paid payed purchase success successful",
}
_USUAL = {word: status for status, words in _USUAL_WORDS.items() for word in words.split()}


class Missed(NamedTuple):
    """A postback as it was read, and the rule that decided about it."""

    query: str
    postback: Postback
    rule: Rule


def find_hints(questions: Questions, missed: Missed, terms: BookingOptions) -> list[str]:
    """Search for the usual mistakes."""
    fields = read_fields(missed.query, terms.fallback_encoding)
    hints = [
        *_find_mangled(missed.query),
        *_find_misnamed(fields),
        *_find_second_queries(fields),
        *_find_encoded_signs(fields),
        *_find_amounts(fields, terms),
        *_find_macros(missed.postback),
    ]
    if missed.rule in {Rule.UNUSABLE, Rule.PARKED}:
        hints += _find_clicks(questions, fields, missed)
    if missed.rule is Rule.UNMAPPED and missed.postback.incoming.word is not None:
        word = missed.postback.incoming.word
        hints += _find_separators(fields, word)
        hints += _find_mapping(questions, missed.postback, word, terms)
    return list(dict.fromkeys(hints))


def _find_mangled(query: str) -> Iterator[str]:
    # ¤ is one byte, or the second of two: both are found.
    text = unquote_to_bytes(query.encode("latin-1")).decode("latin-1")
    for sign, name in _MANGLED.items():
        if sign in text:
            yield (
                f"{sign!r} was '&{name}' before a web page or a mail program read it as HTML: write"
                f" '&{name}=' into the network's URL by hand"
            )
    if re.search(r"&amp;", query, re.IGNORECASE):
        yield (
            "'&amp;' is how HTML writes '&': paste the URL with plain '&'; here the names behind it"
            " are read without 'amp;', by other receivers they are not"
        )


def _find_misnamed(fields: Mapping[str, str]) -> Iterator[str]:
    absent = list_absent(fields)
    for name in fields:
        plain = name.lower().replace("-", "_")
        near = [each for _, each in find_near_names([name]) if each.ours in absent]
        if name in KNOWN_NAMES:
            continue
        if name.lower() in KNOWN_NAMES:
            yield f"{quote_value(name)} is not {plain!r}: names are in lower case here"
        elif near:
            yield from (_advise_renaming(name, each) for each in near if fields[name].strip())
        elif plain in KNOWN_NAMES:
            yield f"{quote_value(name)} is not {plain!r}: names are exact"
        elif name.endswith("_status"):
            yield from _find_strange_list(name)
        elif not plain.startswith("sub_id_"):
            for close in difflib.get_close_matches(plain, KNOWN_NAMES, 1, NEARNESS):
                yield f"{quote_value(name)} is unknown to us; {close!r} is near"


def _advise_renaming(name: str, near: NearName) -> str:
    rename = shlex.quote(f"{name}={near.ours}")
    guess = "is what others call" if near.is_known else "is unknown to us, and may be"
    return (
        f"{quote_value(name)} {guess} {near.ours!r}, which did not come: if it is, write"
        f" {near.ours}= in its place in the network's URL, and correct what came with"
        f" `postback replay --since 7d --rename {rename} --dry-run`"
    )


def _find_strange_list(name: str) -> Iterator[str]:
    """Write which list replaces those of Keitaro 10's further types of conversions."""
    usual = _USUAL.get(name.removesuffix("_status"), Status.SALE)
    yield (
        f"{quote_value(name)} is no list here: lists are {', '.join(LIST_NAMES)}; use"
        f" {usual}_status for its words"
    )


def _find_separators(fields: Mapping[str, str], word: str) -> Iterator[str]:
    """Find lists that would have a word if their words were separated by another sign."""
    for name in LIST_NAMES:
        for sign in ";|":
            words = [part.strip() for part in fields.get(name, "").split(sign)]
            if len(words) > 1 and word.casefold() in map(str.casefold, words):
                mended = shlex.quote(f"{name}={','.join(words)}")
                yield (
                    f"{name} has {sign!r} between its words: write commas between them, as in"
                    f" {mended}"
                )


def _find_second_queries(fields: Mapping[str, str]) -> Iterator[str]:
    for name, value in fields.items():
        if name in KNOWN_NAMES and name != "return" and (found := _SECOND_QUERY.search(value)):
            yield (
                f"a second '?' is in {name} {quote_value(value)}: one '?' begins the query and"
                f" '&' separates parameters, so that it should read"
                f" {quote_value(f'{name}={value[: found.start()]}&{value[found.start() + 1 :]}')}"
            )


def _find_encoded_signs(fields: Mapping[str, str]) -> Iterator[str]:
    """Find parameters within a name or a value: `subid=C1%26status=sale`, `subid%3DC1%26…`."""
    for name, value in fields.items():
        text = value if name in KNOWN_NAMES and name != "return" else name
        inner = next((found[1] for found in _INNER_PARAMETER.finditer(text)), "")
        if inner.lower() in KNOWN_NAMES:
            yield (
                f"{inner}= stands within {quote_value(text)}: what parts parameters came"
                " percent-encoded ('%26', '%3D'), and parts nothing; put plain '&' and '=' into the"
                " network's URL"
            )


def _find_amounts(fields: Mapping[str, str], terms: BookingOptions) -> Iterator[str]:
    for name in (*PAYOUT_NAMES, "cost"):
        text = fields.get(name, "").strip()
        if text and "¤" not in text and not is_macro(text) and not _is_readable(text, terms):
            yield from _read_otherwise(name, text)


def _is_readable(text: str, terms: BookingOptions) -> bool:
    return read_wire_amount(text, decimal_comma=terms.decimal_comma) is not None


def _read_otherwise(name: str, text: str) -> Iterator[str]:
    amounts = text.split(",")
    joined = len(amounts) > 1 and all(
        read_amount(part.strip(), decimal_comma=False) is not None for part in amounts
    )
    if _THOUSANDS.fullmatch(text):
        yield (
            f"{name} {quote_value(text)} has commas between thousands: the network should send"
            f" {text.replace(',', '')}"
        )
    elif read_amount(text, decimal_comma=True) is not None:
        yield (
            f"{name} {quote_value(text)} has a decimal comma: the network should send"
            f" {text.replace(',', '.')}, or set decimal_comma = yes in the config; what was booked"
            " without its amount gets it then with `postback replay --since 7d --dry-run`"
        )
    elif joined:
        yield (
            f"{name} {quote_value(text)} is {len(amounts)} amounts joined by a comma: the macro"
            " is twice in the network's URL, or has one amount for each goal; send one"
        )
    elif number := _NUMBER.search(text):
        yield f"{name} {quote_value(text)} would be read as {number[0]} without the text around it"


def _find_macros(postback: Postback) -> Iterator[str]:
    if any("a macro that the network did not replace" in warning for warning in postback.warnings):
        yield (
            "a macro came unreplaced: look up the network's macro for this value, and write it"
            " into the URL (`postback url --macros …` does so)"
        )


def _find_clicks(questions: Questions, fields: Mapping[str, str], missed: Missed) -> Iterator[str]:
    tokens = {name: [value.strip(), *_TOKEN.findall(value)] for name, value in fields.items()}
    wanted = [token for found in tokens.values() for token in found if token]
    known = set(questions.find_subids(wanted[:TOKENS_AT_MOST]))
    for name, found in tokens.items():
        for token in [token for token in dict.fromkeys(found) if token in known]:
            held = f"{name} contains the known click {quote_value(token)}"
            if name in SUBID_NAMES:
                yield f"{held} with something around it"
            elif token != fields[name].strip():
                yield f"{held} with something around it: subid= must have the click id alone"
            else:
                yield (
                    f"{held}: the network's macro is in the wrong parameter; write it into"
                    f" subid=, and correct what came with {_write_rename(name, missed)}"
                )
    subid = missed.postback.incoming.subid
    if subid is not None and subid not in known:
        yield from _find_similar(questions, subid)


def _write_rename(name: str, missed: Missed) -> str:
    verdict = Verdict.PARKED if missed.rule is Rule.PARKED else Verdict.INVALID
    chosen = f"--verdict {verdict}{_choose_network(missed.postback.network)}"
    return f"`postback replay {chosen} --rename {shlex.quote(f'{name}=subid')} --dry-run`"


def _choose_network(network: str | None) -> str:
    return f" --network {shlex.quote(network)}" if network else ""


def _find_similar(questions: Questions, subid: str) -> Iterator[str]:
    for other in questions.find_subids_in_other_case(subid, 2):
        yield (
            f"click {quote_value(other)} is known, and differs in upper and lower case only: the"
            f" network must send the click id as it got it; {_write_subid(subid, other)}"
        )
    if len(subid) >= SHORTEST_BEGINNING:
        longer = questions.find_subids_beginning(subid, 2)
        if len(longer) == 1:
            yield (
                f"click {quote_value(longer[0])} is known, and begins so: the network cuts it off;"
                f" {_write_subid(subid, longer[0])}"
            )


def _write_subid(subid: str, right: str) -> str:
    mended = shlex.quote(f"subid={right}")
    return (
        f"correct what came with `postback replay --subid {shlex.quote(subid)} --set {mended}"
        " --dry-run`"
    )


def _find_mapping(
    questions: Questions, postback: Postback, word: str, terms: BookingOptions
) -> Iterator[str]:
    network = postback.network
    sent = "this network" if network else "a network without a name (from=)"
    for query in questions.find_mapping_queries(network, word):
        status = read_word(
            parse_stored(query, terms).incoming._replace(word=word, word_is_macro=False)
        )
        if isinstance(status, Status):
            mapping = f"{status}_status={word}"
            yield (
                f"another postback of {sent} had {quote_value(word)} mapped to {status}: put"
                f" {quote_value(mapping)} into this one's URL too, and"
                f" {_write_mapping(network, mapping)}"
            )
            return
    usual = _USUAL.get(word.casefold())
    mapping = f"{usual or Status.SALE}_status={word}"
    others = "" if usual else ", for one on hold lead_status=, for one taken back rejected_status="
    yield (
        f"write what {quote_value(word)} means into the network's URL: for"
        f" {_AS_A_NOUN[usual or Status.SALE]}, {shlex.quote(mapping)}{others}; and"
        f" {_write_mapping(network, mapping)}"
    )


_AS_A_NOUN = {Status.LEAD: "a lead", Status.SALE: "a sale", Status.REJECTED: "a rejection"}


def _write_mapping(network: str | None, mapping: str) -> str:
    return (
        f"correct what came with `postback replay --verdict unmapped{_choose_network(network)}"
        f" --set {shlex.quote(mapping)} --dry-run`"
    )
