"""Did you mean: what is probably wrong with a postback that missed, and what puts it right."""

import difflib
import html
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from booking import Terms, reread
from query import (
    KNOWN_NAMES,
    PAYOUT_NAMES,
    SUBID_NAMES,
    Postback,
    is_macro,
    quote_value,
    read_fields,
)
from questions import Questions
from rates import read_amount
from statuses import Rule, Status, read_word

# What network programs put around a click id; a click id itself has none of it.
_TOKEN = re.compile(r"[A-Za-z0-9_.\-]{3,}")
# A hostile query has thousands of parts, and each is asked for.
TOKENS_AT_MOST = 500

# Below this, the beginning of a click id says nothing.
SHORTEST_BEGINNING = 8

# `a.b` and `sub-id` are near; `sum` and `subid` are not.
NEARNESS = 0.8

_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?")

# Names of ours that HTML takes for one of its signs, as `&currency` becomes `¤cy`.
_MANGLED = {
    html.unescape(f"&{name}"): name for name in KNOWN_NAMES if html.unescape(f"&{name}")[0] != "&"
}


class Missed(NamedTuple):
    """A postback as it was read, and the row of the rules that decided about it."""

    query: str
    postback: Postback
    rule: Rule


def find_hints(questions: Questions, missed: Missed, terms: Terms) -> list[str]:
    """Look for what a person would see who knows the mistakes that are made."""
    fields = read_fields(missed.query)
    hints = [
        *_find_mangled(missed.query),
        *_find_misnamed(fields),
        *_find_amounts(fields, terms),
        *_find_macros(missed.postback),
    ]
    if missed.rule in {Rule.UNUSABLE, Rule.PARKED}:
        hints += _find_clicks(questions, fields, missed.postback.incoming.subid)
    if missed.rule is Rule.UNMAPPED and missed.postback.incoming.word is not None:
        hints += _find_mapping(questions, missed.postback, missed.postback.incoming.word, terms)
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
            "'&amp;' is how HTML writes '&': paste the URL with plain '&', or the network sends"
            " parameters that nobody knows"
        )


def _find_misnamed(fields: Mapping[str, str]) -> Iterator[str]:
    for name in fields:
        plain = name.removeprefix("amp;").lower().replace("-", "_")
        if name in KNOWN_NAMES or name.startswith("amp;"):
            continue
        if plain in KNOWN_NAMES:
            yield f"{quote_value(name)} is not {plain!r}: names are exact, case too"
        elif not plain.startswith("sub_id_"):
            for near in difflib.get_close_matches(plain, KNOWN_NAMES, 1, NEARNESS):
                yield f"{quote_value(name)} is unknown to us; {near!r} is near"


def _find_amounts(fields: Mapping[str, str], terms: Terms) -> Iterator[str]:
    for name in (*PAYOUT_NAMES, "cost"):
        text = fields.get(name, "").strip()
        if text and "¤" not in text and not is_macro(text) and not _is_readable(text, terms):
            yield from _read_otherwise(name, text)


def _is_readable(text: str, terms: Terms) -> bool:
    return read_amount(text, decimal_comma=terms.decimal_comma) is not None


def _read_otherwise(name: str, text: str) -> Iterator[str]:
    amounts = text.split(",")
    joined = len(amounts) > 1 and all(
        read_amount(part.strip(), decimal_comma=False) is not None for part in amounts
    )
    if read_amount(text, decimal_comma=True) is not None:
        yield (
            f"{name} {quote_value(text)} has a decimal comma: the network should send"
            f" {text.replace(',', '.')}, or set decimal_comma = yes in the config"
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


def _find_clicks(
    questions: Questions, fields: Mapping[str, str], subid: str | None
) -> Iterator[str]:
    tokens = {name: [value.strip(), *_TOKEN.findall(value)] for name, value in fields.items()}
    wanted = [token for found in tokens.values() for token in found if token]
    known = set(questions.find_subids(wanted[:TOKENS_AT_MOST]))
    for name, found in tokens.items():
        for token in [token for token in dict.fromkeys(found) if token in known]:
            if name in SUBID_NAMES:
                yield f"{name} holds the known click {quote_value(token)} with something around it"
            else:
                yield (
                    f"{name} holds the known click {quote_value(token)}: the network's macro stands"
                    " in the wrong parameter; put it into subid=, and mend what came with"
                    f" `postback replay --rename {shlex.quote(f'{name}=subid')} …`"
                )
    if subid is not None and subid not in known:
        yield from _find_similar(questions, subid)


def _find_similar(questions: Questions, subid: str) -> Iterator[str]:
    for other in questions.find_subids_in_other_case(subid, 2):
        yield (
            f"click {quote_value(other)} is known, and differs in upper and lower case only: the"
            " network must send the click id as it got it"
        )
    if len(subid) >= SHORTEST_BEGINNING:
        longer = questions.find_subids_beginning(subid, 2)
        if len(longer) == 1:
            yield f"click {quote_value(longer[0])} is known, and begins so: the network cuts it off"


def _find_mapping(
    questions: Questions, postback: Postback, word: str, terms: Terms
) -> Iterator[str]:
    network = postback.network
    chosen = f" --network {shlex.quote(network)}" if network else ""
    sent = "this network" if network else "a network without a name (from=)"
    for query in questions.find_mapped_queries(network, word, 1):
        status = read_word(reread(query, terms).incoming)
        if isinstance(status, Status):
            mapping = f"{status}_status={word}"
            yield (
                f"another postback of {sent} had {quote_value(word)} mapped to {status}: put"
                f" {quote_value(mapping)} into the URL of this one too, and mend what came with"
                f" `postback replay --verdict unmapped{chosen} --set {shlex.quote(mapping)}"
                " --dry-run`"
            )
            return
    mapping = shlex.quote(f"sale_status={word}")
    yield (
        f"say what {quote_value(word)} means in the network's URL: where it is a sale,"
        f" {mapping}; and mend what came with `postback replay --verdict unmapped{chosen}"
        f" --set {mapping} --dry-run`"
    )
