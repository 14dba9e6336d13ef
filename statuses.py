"""What may happen to a conversion: the network's word, the moves we accept, the verdict and why.

Everything here is a pure function of its arguments: no clock, no file, no database. `judge` is the
door; `TRANSITIONS` is the table it turns on. The rules are those of Keitaro's classic generation
(versions 8 and 9) as its public documentation states them; where ours goes further, the comment
says so.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import NamedTuple


class Status(StrEnum):
    """What a conversion is worth: a promise, money, money taken back, money again."""

    LEAD = "lead"
    SALE = "sale"
    REJECTED = "rejected"
    REBILL = "rebill"


class Verdict(StrEnum):
    """What came of one postback."""

    RECORDED = "recorded"  # a new conversion
    UPDATED = "updated"  # a conversion moved
    REPEATED = "repeated"  # nothing new: the same was known already
    REFUSED = "refused"  # understood, and against the rules
    IGNORED = "ignored"  # its word is in the URL's ignore list
    PARKED = "parked"  # its click is not known yet; applied when the click comes
    UNMAPPED = "unmapped"  # nobody said what the network's word means
    INVALID = "invalid"  # no usable click id or transaction id


class Reason(NamedTuple):
    """Why: `summary` for the answer (printable ASCII, no stored value), `detail` for the log."""

    summary: str
    detail: str


class WordLists(NamedTuple):
    """The URL's comma lists of the network's words, case-folded, in the order they are asked."""

    sale: frozenset[str] = frozenset()
    lead: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    rebill: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()


class Incoming(NamedTuple):
    """What one postback says. Amounts are in `currency`; None is 'not known' throughout."""

    subid: str | None
    word: str | None = None
    word_is_macro: bool = False
    tid: str = ""
    amount: Decimal | None = None
    cost: Decimal | None = None
    currency: str | None = None
    lists: WordLists = WordLists()
    leads_only: bool = False


class Conversion(NamedTuple):
    """A conversion as it stands. `id` is the storage's own and plays no part in the rules."""

    id: int
    tid: str
    status: Status
    amount: Decimal | None = None
    currency: str | None = None
    cost: Decimal | None = None
    cost_currency: str | None = None


class Click(NamedTuple):
    """What is known about a click: its offer's permission, its cost model, its conversions."""

    offer: str | None = None
    allows_rebills: bool = False
    cost_model: str | None = None
    conversions: tuple[Conversion, ...] = ()


class Policy(NamedTuple):
    """The settings that the rules turn on; the defaults are the contract's."""

    accepts_unknown_subid: bool = False
    updates_on_repeat: bool = False


class Change(NamedTuple):
    """What to do to the conversions: `conversion` None makes a new one, else that one changes."""

    conversion: Conversion | None
    status: Status
    tid: str
    takes_amount: bool
    takes_cost: bool


class Rule(StrEnum):
    """The rows of the rules in words, in the order in which they are asked: the first decides."""

    UNUSABLE = "no usable click id, or an id that is too long: invalid"
    IGNORED = "the word is in the URL's ignore list: ignored"
    UNMAPPED = "the word is in no list of the URL, and none of the four statuses: unmapped"
    PIXEL = "under the pixel's key anything but a lead comes: refused"
    PARKED = "the click is not known: parked"
    FIRST = "nothing stands for this click; a lead, a sale or a rejected comes: recorded"
    FIRST_REBILL = (
        "nothing stands for this click; a rebill comes: recorded if the offer allows rebills and"
        " there is a tid, else refused"
    )
    LATE_TID = (
        "the click's only conversion is a lead without tid; a sale or a rejected comes with one:"
        " updated, and it takes the tid"
    )
    LEAD_MOVES = "this conversion is a lead; a sale or a rejected comes: updated"
    TAKEN_BACK = "this conversion is a sale or a rebill; a rejected comes: updated"
    REPEATED = (
        "this conversion has the status already, or is a rebill and a sale comes: repeated, or"
        " updated where `repeats = update` and the amount is another"
    )
    FORBIDDEN = "this conversion stands; any other move comes: refused"
    REBILL = (
        "the click has conversions, none with this tid, and its offer allows rebills; a sale or a"
        " rebill comes with a tid: recorded as a rebill"
    )
    REJECTED_FIRST = (
        "the click has conversions, none with this tid, and its offer allows rebills; a rejected"
        " comes with a tid: recorded as rejected"
    )
    ANYTHING_ELSE = "the click has conversions; anything else comes: refused"


class Decision(NamedTuple):
    """A verdict, why, by which rule, the conversion it is about, the change to make (or None)."""

    verdict: Verdict
    reason: Reason
    rule: Rule
    conversion: Conversion | None = None
    change: Change | None = None
    warnings: tuple[str, ...] = ()


# Every move we accept, and no other: what is missing here is refused (or, where nothing would
# change, repeated).
# Source: Keitaro docs, "Postback", on statuses: a lead may become a sale or be rejected, a sale or
# a rebill may be rejected, nothing comes back.
TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.LEAD: frozenset({Status.SALE, Status.REJECTED}),
    Status.SALE: frozenset({Status.REJECTED}),
    Status.REBILL: frozenset({Status.REJECTED}),
    Status.REJECTED: frozenset(),
}

# What already is so, and changes nothing. A further sale on a click is booked as a rebill, so the
# network's word for it stays "sale" when it sends that one again.
REPEATS: Mapping[Status, frozenset[Status]] = {
    Status.LEAD: frozenset({Status.LEAD}),
    Status.SALE: frozenset({Status.SALE}),
    Status.REBILL: frozenset({Status.REBILL, Status.SALE}),
    Status.REJECTED: frozenset({Status.REJECTED}),
}

# The order in which the URL's lists are asked, that of `WordLists`; a list beats the built-in
# meaning of a word, since networks do send `sale_status=lead`. Source: Keitaro docs, "Postback",
# on status parameters.
LIST_ORDER = (Status.SALE, Status.LEAD, Status.REJECTED, Status.REBILL)

# The words that need no list. Source: Keitaro docs, "Postback", on statuses.
BUILT_IN_WORDS: Mapping[str, Status] = {status.value: status for status in Status}

# Source: Keitaro docs, "Campaign", on cost models: with the others the cost is known by the click.
COST_MODELS = ("cpc", "cpm", "cpa", "revshare", "none")
COST_MODELS_PAID_BY_CONVERSION = frozenset({"cpa", "revshare", None})

# The longest click id and transaction id. Source: the contract; Keitaro's own columns are shorter.
ID_MAX_CHARACTERS = 255

_NO_SUBID = Reason(
    "The click id is missing: add subid= to the Postback URL with the click id macro of your"
    " network as its value.",
    "no usable click id was sent (as subid, sub_id, clickid, click_id or cookie): the Postback URL"
    " at the network lacks subid= with the network's click id macro",
)
_LONG_SUBID = Reason(
    "The click id is longer than 255 characters: send the subid as the tracker gave it.",
    "the click id is longer than 255 characters: look which macro the Postback URL at the network"
    " has behind subid=",
)
_LONG_TID = Reason(
    "The transaction id is longer than 255 characters: send a shorter tid.",
    "the transaction id is longer than 255 characters: look which macro the Postback URL at the"
    " network has behind tid=",
)
_MACRO_STATUS = Reason(
    "The status is a macro that the network did not replace: use your network's own macro for"
    " the status in the Postback URL.",
    "the status is a macro that the network did not replace: the Postback URL needs the network's"
    " own name for it, or no status= at all where all are sales",
)


def judge(incoming: Incoming, click: Click | None, policy: Policy) -> Decision:
    """Decide what a postback does; `click` is None where its subid is not known. Never raises."""
    warnings = tuple(_list_warnings(incoming.lists)) if any(incoming.lists) else ()
    flaw = find_flaw(incoming)
    if flaw is not None:
        return Decision(Verdict.INVALID, flaw, Rule.UNUSABLE, warnings=warnings)
    meaning = read_word(incoming)
    if not isinstance(meaning, Status):
        verdict, reason = meaning
        rule = Rule.IGNORED if verdict is Verdict.IGNORED else Rule.UNMAPPED
        return Decision(verdict, reason, rule, warnings=warnings)
    if incoming.leads_only and meaning is not Status.LEAD:
        reason = _pixel_reason(meaning)
        return Decision(Verdict.REFUSED, reason, Rule.PIXEL, warnings=warnings)
    if click is None and not policy.accepts_unknown_subid:
        reason = _parked_reason(incoming.subid)
        return Decision(Verdict.PARKED, reason, Rule.PARKED, warnings=warnings)
    decision = decide(incoming, meaning, click or Click(), policy)
    return decision._replace(warnings=warnings + decision.warnings) if warnings else decision


def find_flaw(incoming: Incoming) -> Reason | None:
    """Say why the postback is about nothing we could find again, or None."""
    if not incoming.subid:
        return _NO_SUBID
    if len(incoming.subid) > ID_MAX_CHARACTERS:
        return _LONG_SUBID
    if len(incoming.tid) > ID_MAX_CHARACTERS:
        return _LONG_TID
    return None


def read_word(incoming: Incoming) -> Status | tuple[Verdict, Reason]:
    """Map the network's word to a status; no word is a sale and no list is asked (Keitaro)."""
    if incoming.word_is_macro:
        return Verdict.UNMAPPED, _MACRO_STATUS
    if incoming.word is None:
        return Status.SALE
    word = incoming.word.casefold()
    if any(incoming.lists):
        if word in incoming.lists.ignore:
            return Verdict.IGNORED, _ignored_reason(incoming.word)
        for status, listed in zip(LIST_ORDER, incoming.lists, strict=False):
            if word in listed:
                return status
    if word in BUILT_IN_WORDS:
        return BUILT_IN_WORDS[word]
    return Verdict.UNMAPPED, _unmapped_reason(incoming.word)


def decide(incoming: Incoming, status: Status, click: Click, policy: Policy) -> Decision:
    """Take the first row that fits: first conversion, late tid, this conversion, another one."""
    costs = _takes_cost(incoming, click)
    warnings = _cost_warnings(incoming, click)
    if not click.conversions:
        decision = _decide_first(incoming, status, click, takes_cost=costs)
    elif status in TRANSITIONS[Status.LEAD] and (lead := find_bare_lead(incoming, click)):
        decision = _move(lead, incoming, status, Rule.LATE_TID, takes_cost=costs)
    elif this := find_conversion(incoming.tid, click.conversions):
        decision = _decide_known(this, incoming, status, policy, takes_cost=costs)
    else:
        decision = _decide_another(incoming, status, click, takes_cost=costs)
    return decision._replace(warnings=warnings + decision.warnings) if warnings else decision


def find_bare_lead(incoming: Incoming, click: Click) -> Conversion | None:
    """Find the lead without tid that a postback with one completes: the click's only conversion.

    Ours: many networks send the transaction id with the sale only.
    """
    if not incoming.tid or len(click.conversions) != 1:
        return None
    only = click.conversions[0]
    return only if only.status is Status.LEAD and not only.tid else None


def find_conversion(tid: str, conversions: tuple[Conversion, ...]) -> Conversion | None:
    """Find the conversion a postback is about: by tid, or the only one where no tid was sent."""
    for conversion in conversions:
        if conversion.tid == tid:
            return conversion
    if not tid and len(conversions) == 1:
        return conversions[0]
    return None


def _decide_first(
    incoming: Incoming, status: Status, click: Click, *, takes_cost: bool
) -> Decision:
    rule = Rule.FIRST
    if status is Status.REBILL:
        rule = Rule.FIRST_REBILL
        obstacle = _find_rebill_obstacle(incoming, click)
        if obstacle is not None:
            return Decision(Verdict.REFUSED, obstacle, rule)
    return _record(incoming, status, _FIRST, rule, takes_cost=takes_cost)


def _decide_known(
    this: Conversion, incoming: Incoming, status: Status, policy: Policy, *, takes_cost: bool
) -> Decision:
    if status in TRANSITIONS[this.status]:
        rule = Rule.LEAD_MOVES if this.status is Status.LEAD else Rule.TAKEN_BACK
        return _move(this, incoming, status, rule, takes_cost=takes_cost)
    if status in REPEATS[this.status]:
        return _repeat(this, incoming, policy, takes_cost=takes_cost)
    reason = _forbidden_reason(this.status, status)
    return Decision(Verdict.REFUSED, reason, Rule.FORBIDDEN, this)


def _decide_another(
    incoming: Incoming, status: Status, click: Click, *, takes_cost: bool
) -> Decision:
    if status is Status.LEAD:
        return Decision(Verdict.REFUSED, _LATE_LEAD, Rule.ANYTHING_ELSE)
    obstacle = _find_rebill_obstacle(incoming, click)
    if obstacle is not None:
        return Decision(Verdict.REFUSED, obstacle, Rule.ANYTHING_ELSE)
    if status is Status.REJECTED:
        # Ours: its sale may come late and must find it.
        why = "rejected before its sale was seen"
        return _record(incoming, status, why, Rule.REJECTED_FIRST, takes_cost=takes_cost)
    why = "a further sale of the click"
    decision = _record(incoming, Status.REBILL, why, Rule.REBILL, takes_cost=takes_cost)
    if any(c.status in {Status.SALE, Status.REBILL} for c in click.conversions):
        return decision
    return decision._replace(warnings=(_REBILL_WITHOUT_SALE,))


def _find_rebill_obstacle(incoming: Incoming, click: Click) -> Reason | None:
    if not click.allows_rebills:
        return _no_rebills_reason(click.offer)
    return None if incoming.tid else _REBILL_WITHOUT_TID


def _record(
    incoming: Incoming, status: Status, why: str, rule: Rule, *, takes_cost: bool
) -> Decision:
    change = Change(None, status, incoming.tid, takes_amount=True, takes_cost=takes_cost)
    return Decision(Verdict.RECORDED, _recorded_reason(why, status), rule, change=change)


def _move(
    this: Conversion, incoming: Incoming, status: Status, rule: Rule, *, takes_cost: bool
) -> Decision:
    # A rejected conversion keeps its amount whatever was sent: it no longer counts as revenue.
    takes_amount = status is Status.SALE and incoming.amount is not None
    change = Change(this, status, incoming.tid or this.tid, takes_amount, takes_cost)
    reason = Reason(f"the conversion is {status} now", f"from {this.status} to {status}")
    return Decision(Verdict.UPDATED, reason, rule, this, change)


def _repeat(this: Conversion, incoming: Incoming, policy: Policy, *, takes_cost: bool) -> Decision:
    sent, sent_cost = (incoming.amount, incoming.currency), (incoming.cost, incoming.currency)
    known, known_cost = (this.amount, this.currency), (this.cost, this.cost_currency)
    takes_amount = incoming.amount is not None and sent != known
    takes_cost = takes_cost and sent_cost != known_cost
    differences = []
    if takes_amount:
        differences.append(f"amount {_describe_money(*sent)} was {_describe_money(*known)}")
    if takes_cost:
        differences.append(f"cost {_describe_money(*sent_cost)} was {_describe_money(*known_cost)}")
    if not differences:
        return Decision(Verdict.REPEATED, _repeated_reason(this), Rule.REPEATED, this)
    # Ours: an amount without a known currency could not be booked, so it replaces nothing.
    can_be_taken_over = this.status is not Status.REJECTED and incoming.currency is not None
    if policy.updates_on_repeat and can_be_taken_over:
        change = Change(this, this.status, this.tid, takes_amount, takes_cost)
        reason = _taken_over_reason(this, differences)
        return Decision(Verdict.UPDATED, reason, Rule.REPEATED, this, change)
    reason = _left_alone_reason(this, differences, can_be_taken_over=can_be_taken_over)
    return Decision(Verdict.REPEATED, reason, Rule.REPEATED, this)


def _takes_cost(incoming: Incoming, click: Click) -> bool:
    return incoming.cost is not None and click.cost_model in COST_MODELS_PAID_BY_CONVERSION


def _cost_warnings(incoming: Incoming, click: Click) -> tuple[str, ...]:
    if incoming.cost is None or click.cost_model in COST_MODELS_PAID_BY_CONVERSION:
        return ()
    return (
        f"cost {incoming.cost} does not count: the click's cost model is {click.cost_model},"
        " and only cpa and revshare are paid by conversion",
    )


def _list_warnings(lists: WordLists) -> Iterator[str]:
    if lists.count(frozenset()) >= len(lists) - 1:
        return
    for word in sorted(frozenset().union(*lists)):
        names = [name for name in lists._fields if word in getattr(lists, name)]
        if len(names) > 1:
            yield f"the word {word!r} is in {len(names)} lists: {', '.join(names)}"


_FIRST = "the first conversion of the click"
_REBILL_WITHOUT_SALE = "a rebill, but no sale or rebill stands on the click"
_LATE_LEAD = Reason(
    "a lead does not follow other conversions of its click",
    "the click has conversions already, and a lead does not follow them",
)
_REBILL_WITHOUT_TID = Reason(
    "a further conversion of the click needs a transaction id: add tid= to the Postback URL",
    "a further conversion of the click needs a transaction id (tid), and none was sent: add tid= to"
    " the Postback URL",
)


# A handful of sentences, one of them said with most postbacks.
@cache
def _recorded_reason(why: str, status: Status) -> Reason:
    return Reason(why, f"{why}, as {status}")


def _no_rebills_reason(offer: str | None) -> Reason:
    if offer is None:
        why = "the click has no offer that allows rebills"
        return Reason(why, f"{why}: bring the click in again with its offer")
    return Reason(
        "the offer does not allow rebills",
        f"the offer {offer} does not allow rebills: `postback offers set` can allow those to come",
    )


def _forbidden_reason(present: Status, wanted: Status) -> Reason:
    return Reason(
        f"the conversion cannot become {wanted} any more",
        f"the conversion is {present} and cannot become {wanted}",
    )


def _pixel_reason(status: Status) -> Reason:
    return Reason(
        "the pixel's key is good for leads only",
        f"the pixel's key is good for leads only, and this is a {status}: send it to the Postback"
        " URL",
    )


def _parked_reason(subid: str | None) -> Reason:
    return Reason(
        "the click is not known yet; the postback is kept and applied when it comes",
        f"no click {subid!r} is known yet; applied when it comes",
    )


def _ignored_reason(word: str) -> Reason:
    return Reason("the status is in the ignore list of the URL", f"{word!r} is in the ignore list")


def _unmapped_reason(word: str) -> Reason:
    return Reason(
        "The status has no meaning yet: add it to lead_status=, sale_status=, rejected_status= or"
        " rebill_status= in the Postback URL, or to ignore=.",
        f"no list of the URL has the status {word!r}, and it is none of"
        f" {', '.join(status.value for status in Status)}: add it to sale_status= or another list"
        " in the Postback URL",
    )


def _repeated_reason(this: Conversion) -> Reason:
    return Reason("known already, nothing changed", f"already {this.status}, nothing changed")


def _left_alone_reason(
    this: Conversion, differences: list[str], *, can_be_taken_over: bool
) -> Reason:
    remedy = ': repeats = "update" in the config takes it over' if can_be_taken_over else ""
    return Reason(
        "known already with another amount, nothing changed",
        f"already {this.status}, nothing changed, though {' and '.join(differences)}{remedy}",
    )


def _taken_over_reason(this: Conversion, differences: list[str]) -> Reason:
    return Reason(
        "known already with another amount, which was taken over",
        f"already {this.status}; taken over: {' and '.join(differences)}",
    )


def _describe_money(amount: Decimal | None, currency: str | None) -> str:
    return "unknown" if amount is None else f"{amount:f} {currency or '(currency unknown)'}"
