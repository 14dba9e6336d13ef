"""Describes how each parameter of a query was read, and why some do not count.

Each parameter is read by itself with the reader of postbacks. Only that reader reads them together.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from postbackd.db.rows import SUB_ID_NAMES
from postbackd.intake.booking import BookingOptions, parse_stored
from postbackd.intake.query import (
    IGNORE_LIST_NAMES,
    PAYOUT_NAMES,
    PHP_WHITE_SPACE,
    REJECTED_LIST_NAMES,
    SUBID_NAMES,
    Postback,
    find_adopted,
    read_fields,
    read_pairs,
    warn_of_unread,
)
from statuses import Status, read_word


class Parameter(NamedTuple):
    """A parameter (`value` None: it did not come), and how it was read."""

    name: str
    value: str | None
    meaning: str


class _Use(NamedTuple):
    """A use of parameters: their names, of which the first usable one counts, and its meaning.

    `read` returns None where a value does not count; `absent` is the meaning when none came.
    """

    names: Sequence[str]
    meaning: str
    read: Callable[[Postback], Any]
    absent: str = ""


_USES = (
    _Use(SUBID_NAMES, "the click id", lambda postback: postback.incoming.subid, "no click id"),
    _Use(
        ("status",),
        "the network's word",
        lambda postback: postback.incoming.word,
        "a sale, and no list is asked",
    ),
    _Use(
        PAYOUT_NAMES,
        "the amount",
        lambda postback: postback.incoming.amount,
        "the amount is unknown",
    ),
    _Use(("currency",), "the currency", lambda postback: postback.incoming.currency),
    _Use(
        ("tid",),
        "the transaction id",
        lambda postback: postback.incoming.tid or None,
        "one conversion a click",
    ),
    _Use(("cost",), "the cost", lambda postback: postback.incoming.cost),
    _Use(("from",), "the network's name", lambda postback: postback.network),
    _Use(("external_id",), "the traffic source's id of the click", lambda p: p.external_id),
    _Use(("return",), "the body to answer", lambda postback: postback.answer),
    *(
        _Use((name,), "a sub id", lambda postback: postback.sub_ids or None)
        for name in SUB_ID_NAMES
    ),
)
_LISTS = {
    "sale_status": "words that mean sale",
    "lead_status": "words that mean lead",
    "rebill_status": "words that mean rebill",
    **dict.fromkeys(REJECTED_LIST_NAMES, "words that mean rejected"),
    **dict.fromkeys(IGNORE_LIST_NAMES, "words to ignore"),
}
# Lists, and a parameter that is read with another one: by themselves they have no value.
_MEANINGS = {**_LISTS, "payout_unit": "the unit of the payout"}


def read_parts(query: str, terms: BookingOptions) -> list[Parameter]:
    """Describe each parameter of a query, then the meaning of those that did not come.

    The query is one of the postback log or of an address: each character one byte.
    """
    pairs = [pair for pair in read_pairs(query) if pair]
    counting = _find_counting(pairs, terms)
    adopted = find_adopted(read_fields(query, terms.fallback_encoding))
    parts = []
    for place, pair in enumerate(pairs):
        own = read_fields(pair, terms.fallback_encoding)
        if not own:
            parts.append(Parameter(pair, None, "left out: no plain parameter, as PHP reads names"))
        for name, value in own.items():
            if counting[name] == place:
                meaning = _read_meaning(adopted.get(name, name), pair, query, terms)
                meaning += f", read as {adopted[name]}" if name in adopted else ""
            elif place > counting[name]:
                meaning = "left out: empty, and the name came before with a value"
            else:
                meaning = "left out: the name comes again, and the last one counts"
            parts.append(Parameter(name, value, meaning))
    parts += [Parameter("…", None, warning) for warning in warn_of_unread(query)]
    return [*parts, *_describe_absent(query, terms)]


def _find_counting(pairs: Sequence[str], terms: BookingOptions) -> dict[str, int]:
    """Find the place of each name's counting parameter: the last that is not empty."""
    counting: dict[str, int] = {}
    for place, pair in enumerate(pairs):
        for name, value in read_fields(pair, terms.fallback_encoding).items():
            if name not in counting or value.strip(PHP_WHITE_SPACE):
                counting[name] = place
    return counting


def describe_word(postback: Postback) -> str:
    """Write the meaning of the network's word, and where it is defined."""
    incoming = postback.incoming
    status = read_word(incoming)
    if not isinstance(status, Status):
        return str(status[1].detail)
    if incoming.word is None:
        return "no word came: a sale"
    listed = getattr(incoming.lists, status.value)
    says = (
        f"{status}_status= in the URL" if incoming.word.casefold() in listed else "the word itself"
    )
    return f"{incoming.word!r} means {status}, by {says}"


def _read_meaning(name: str, pair: str, query: str, terms: BookingOptions) -> str:
    if name in _MEANINGS:
        return _MEANINGS[name]
    use = next((use for use in _USES if name in use.names), None)
    if use is None:
        return "an unknown name; stored with the postback"
    postback = _reread_as(name, pair, terms)
    value = use.read(postback)
    if postback.warnings and not value:
        return f"counts as not sent: {postback.warnings[0]}"
    if value is None:
        return "empty: counts as not sent"
    winner = _find_winner(use, query, terms)
    if winner not in {name, None}:
        return f"not asked: {winner} counts before it"
    return use.meaning if name == use.names[0] else f"{use.meaning}, as {use.names[0]}"


def _reread_as(name: str, pair: str, terms: BookingOptions) -> Postback:
    """Read a parameter by itself, under its name in lower case."""
    return parse_stored(f"{name}={pair.partition('=')[2]}", terms)


def _find_winner(use: _Use, query: str, terms: BookingOptions) -> str | None:
    """Find the name that counts: the first that has a usable value by itself."""
    # Names in another case count only where none of these came.
    pairs = [pair for pair in read_pairs(query) if pair]
    counting = _find_counting(pairs, terms)
    for name in use.names:
        if (
            name in counting
            and use.read(_reread_as(name, pairs[counting[name]], terms)) is not None
        ):
            return name
    return None


def _describe_absent(query: str, terms: BookingOptions) -> Iterator[Parameter]:
    fields = read_fields(query, terms.fallback_encoding)
    came = {*fields, *find_adopted(fields).values()}
    for use in _USES:
        if use.absent and came.isdisjoint(use.names):
            yield Parameter(use.names[0], None, f"did not come: {use.absent}")
    if "currency" not in came and parse_stored(query, terms).incoming.amount is not None:
        yield Parameter("currency", None, f"did not come: the tracker's, {terms.currency}")
