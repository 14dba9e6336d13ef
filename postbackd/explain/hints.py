"""Did you mean: what is probably wrong with a postback that missed, and what puts it right."""

import difflib
import html
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from postbackd.intake.booking import BookingOptions, parse_stored
from postbackd.intake.macros import is_macro
from postbackd.intake.near_names import find_near_names
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

# What network programs put around a click id; a click id itself has none of it.
_TOKEN = re.compile(r"[A-Za-z0-9_.\-]{3,}")
# A hostile query has thousands of parts, and each is asked for.
TOKENS_AT_MOST = 500

# Below this, the beginning of a click id says nothing.
SHORTEST_BEGINNING = 8

# `a.b` and `sub-id` are near; `sum` and `subid` are not.
NEARNESS = 0.8

_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_SECOND_QUERY = re.compile(r"\?[A-Za-z_][A-Za-z0-9_]*=")

# `C1&status=sale` as a value, `subid=C1&status=sale` as a name.
_INNER_PARAMETER = re.compile(r"(?:^|&)([A-Za-z_]\w*)=")

_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?")

# Names of ours that HTML takes for one of its signs, as `&currency` becomes `¤cy`.
_MANGLED = {
    html.unescape(f"&{name}"): name for name in KNOWN_NAMES if html.unescape(f"&{name}")[0] != "&"
}


# What networks mostly mean by these. A guess that is shown to be tried, never one that books.
_USUAL_WORDS = {
    Status.LEAD: "hold new on_hold onhold open pending processing reg registration wait waiting",
    Status.REJECTED: "cancel canceled cancelled chargeback decline declined denied disapproved"
    " double duplicate fail failed fraud invalid refund refunded reject reversed spam trash void",
    Status.SALE: "accepted approve approved complete completed confirm confirmed deposit ftd ok"
    " paid payed purchase success successful",
}
_USUAL = {word: status for status, words in _USUAL_WORDS.items() for word in words.split()}


class Missed(NamedTuple):
    """A postback as it was read, and the row of the rules that decided about it."""

    query: str
    postback: Postback
    rule: Rule


def find_hints(questions: Questions, missed: Missed, terms: BookingOptions) -> list[str]:
    """Look for what a person would see who knows the mistakes that are made."""
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
                f"{sign!r} was '&{name}' before a web page or a mail program took it for HTML: put"
                f" '&{name}=' into the network's URL by hand"
            )
    if re.search(r"&amp;", query, re.IGNORECASE):
        yield (
            "'&amp;' is how HTML writes '&': paste the URL with plain '&'; here the names behind it"
            " are read without 'amp;', elsewhere nobody knows them"
        )


def _find_misnamed(fields: Mapping[str, str]) -> Iterator[str]:
    absent = list_absent(fields)
    for name in fields:
        plain = name.lower().replace("-", "_")
        near = [ours for _, (_, ours) in find_near_names([name]) if ours in absent]
        if name in KNOWN_NAMES:
            continue
        if name.lower() in KNOWN_NAMES:
            yield f"{quote_value(name)} is not {plain!r}: names are in small letters here"
        elif plain in KNOWN_NAMES:
            yield f"{quote_value(name)} is not {plain!r}: names are exact"
        elif near:
            yield from (_advise_renaming(name, ours) for ours in near if fields[name].strip())
        elif name.endswith("_status"):
            yield from _find_strange_list(name)
        elif not plain.startswith("sub_id_"):
            for close in difflib.get_close_matches(plain, KNOWN_NAMES, 1, NEARNESS):
                yield f"{quote_value(name)} is unknown to us; {close!r} is near"


def _advise_renaming(name: str, ours: str) -> str:
    rename = shlex.quote(f"{name}={ours}")
    return (
        f"{quote_value(name)} is what others call {ours!r}, which did not come: if it is, write"
        f" {ours}= in its place in the network's URL, and mend what came with `postback replay"
        f" --since 7d --rename {rename} --dry-run`"
    )


def _find_strange_list(name: str) -> Iterator[str]:
    """Say what takes the place of lists for Keitaro 10's further types of conversions."""
    usual = _USUAL.get(name.removesuffix("_status"), Status.SALE)
    yield (
        f"{quote_value(name)} is no list here: lists are {', '.join(LIST_NAMES)}; use"
        f" {usual}_status for its words"
    )


def _find_separators(fields: Mapping[str, str], word: str) -> Iterator[str]:
    """Find lists that would hold a word if their words stood between other signs than commas."""
    for name in LIST_NAMES:
        for sign in ";|":
            words = [part.strip() for part in fields.get(name, "").split(sign)]
            if len(words) > 1 and word.casefold() in map(str.casefold, words):
                mended = shlex.quote(f"{name}={','.join(words)}")
                yield (
                    f"{name} has {sign!r} between its words: commas stand between them here, as in"
                    f" {mended}"
                )


def _find_second_queries(fields: Mapping[str, str]) -> Iterator[str]:
    for name, value in fields.items():
        if name in KNOWN_NAMES and name != "return" and (found := _SECOND_QUERY.search(value)):
            yield (
                f"a second '?' stands in {name} {quote_value(value)}: one '?' begins a query and"
                f" '&' stands between what is sent, so that it should read"
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
            " stands twice in the network's URL, or gives one amount for each goal; send one"
        )
    elif number := _NUMBER.search(text):
        yield f"{name} {quote_value(text)} would be read as {number[0]} without what is around it"


def _find_macros(postback: Postback) -> Iterator[str]:
    if any("a macro that the network did not replace" in warning for warning in postback.warnings):
        yield (
            "a placeholder came as it was written: look up in the network's help what it calls"
            " this value, and put that into the URL (`postback url --macros …` writes it)"
        )


def _find_clicks(questions: Questions, fields: Mapping[str, str], missed: Missed) -> Iterator[str]:
    tokens = {name: [value.strip(), *_TOKEN.findall(value)] for name, value in fields.items()}
    wanted = [token for found in tokens.values() for token in found if token]
    known = set(questions.find_subids(wanted[:TOKENS_AT_MOST]))
    for name, found in tokens.items():
        for token in [token for token in dict.fromkeys(found) if token in known]:
            held = f"{name} holds the known click {quote_value(token)}"
            if name in SUBID_NAMES:
                yield f"{held} with something around it"
            elif token != fields[name].strip():
                yield f"{held} with something around it: subid= is to have the click id alone"
            else:
                yield (
                    f"{held}: the network's macro stands in the wrong parameter; put it into"
                    f" subid=, and mend what came with {_write_rename(name, missed)}"
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
        f"mend what came with `postback replay --subid {shlex.quote(subid)} --set {mended}"
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
                f" {quote_value(mapping)} into the URL of this one too, and"
                f" {_write_mapping(network, mapping)}"
            )
            return
    usual = _USUAL.get(word.casefold())
    mapping = f"{usual or Status.SALE}_status={word}"
    others = (
        "" if usual else ", lead_status= where it is on hold, rejected_status= where taken back"
    )
    yield (
        f"say what {quote_value(word)} means in the network's URL: where it is"
        f" {_AS_A_NOUN[usual or Status.SALE]}, {shlex.quote(mapping)}{others}; and"
        f" {_write_mapping(network, mapping)}"
    )


_AS_A_NOUN = {Status.LEAD: "a lead", Status.SALE: "a sale", Status.REJECTED: "a rejection"}


def _write_mapping(network: str | None, mapping: str) -> str:
    return (
        f"mend what came with `postback replay --verdict unmapped{_choose_network(network)}"
        f" --set {shlex.quote(mapping)} --dry-run`"
    )
