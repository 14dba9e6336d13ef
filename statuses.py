"""The rules of conversions: the network's word, the accepted moves, the verdict and its reason.

Everything here is a pure function of its arguments: no clock, no file, no database. Call `judge`;
`Rule` has the rules in words, `TRANSITIONS` and `_ROWS` have them in code. They are the rules of
Keitaro's classic generation (versions 8 and 9) as its public documentation states them; comments
mark where ours go further.
"""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import NamedTuple


class Status(StrEnum):
    """The state of a conversion: a promise, money, money taken back, further money."""

    LEAD = "lead"
    SALE = "sale"
    REJECTED = "rejected"
    REBILL = "rebill"


class Verdict(StrEnum):
    """The result of one postback."""

    RECORDED = "recorded"  # a new conversion
    UPDATED = "updated"  # a conversion moved, or an unknown value of it was filled in
    REPEATED = "repeated"  # nothing new: the same is stored already
    REFUSED = "refused"  # understood, and against the rules
    IGNORED = "ignored"  # its word is in the URL's ignore list
    PARKED = "parked"  # its click is not known yet; applied when the click comes
    UNMAPPED = "unmapped"  # the network's word has no meaning here
    INVALID = "invalid"  # no usable click id or transaction id


class Reason(NamedTuple):
    """Why: `summary` for the answer (printable ASCII, no stored value), `detail` is stored."""

    summary: str
    detail: str


class WordLists(NamedTuple):
    """The URL's comma lists of the network's words, case-folded, in the order of look-up."""

    sale: frozenset[str] = frozenset()
    lead: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    rebill: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()


class Incoming(NamedTuple):
    """The values of one postback. Amounts are in `currency`; None is 'not known' throughout.

    `lacks_question_mark`: the `?` between path and query was missing, so any value may be cut.
    """

    subid: str | None
    word: str | None = None
    word_is_macro: bool = False
    tid: str = ""
    amount: Decimal | None = None
    cost: Decimal | None = None
    currency: str | None = None
    lists: WordLists = WordLists()
    leads_only: bool = False
    sub_ids: Mapping[str, str] = {}
    lacks_question_mark: bool = False


class Conversion(NamedTuple):
    """A stored conversion. `id` is the storage's and plays no part in the rules.

    `is_deleted`, `is_corrected`: an operator has deleted it, or has set something of it.
    """

    id: int
    tid: str
    status: Status
    amount: Decimal | None = None
    currency: str | None = None
    cost: Decimal | None = None
    cost_currency: str | None = None
    previous_status: Status | None = None
    sub_ids: Mapping[str, str] = {}
    is_deleted: bool = False
    is_corrected: bool = False


class Click(NamedTuple):
    """A known click: its offer, its cost model, its conversions.

    `allows_rebills` is the offer's setting; None if there is no offer or it was never set.
    """

    offer: str | None = None
    allows_rebills: bool | None = None
    cost_model: str | None = None
    conversions: tuple[Conversion, ...] = ()


class Policy(NamedTuple):
    """The settings that the rules depend on; the defaults are the contract's.

    `allows_rebills` is used if the click has no setting; `forces`: an operator overrules the rules.
    """

    accepts_unknown_subid: bool = False
    updates_on_repeat: bool = False
    allows_rebills: bool = False
    unrejects: bool = False
    forces: bool = False


class Past(NamedTuple):
    """Facts about the click's earlier postbacks; read from the postback log if a decision needs it.

    `was_sent`: this very query was judged before. `was_overtaken`: that was before the conversion
    in question became what it is (was rejected; was money of this amount), or, for a new one,
    before a conversion of the click was rejected. `took_back`: a postback with this query, or with
    this transaction id, has taken a conversion back, which is rejected still. `was_corrected`: that
    was before an operator corrected the conversion in question.
    """

    was_sent: bool = False
    was_overtaken: bool = False
    took_back: bool = False
    was_corrected: bool = False


class Change(NamedTuple):
    """The change to make: a new conversion if `conversion` is None, else in that one.

    `sub_ids` replace the conversion's. `fills`: only unknown values are filled in; the postback's
    network, and sub ids that the click has, are left out.
    """

    conversion: Conversion | None
    status: Status
    tid: str
    takes_amount: bool
    takes_cost: bool
    sub_ids: Mapping[str, str] = {}
    fills: bool = False


class Rule(StrEnum):
    """The rules in words, in the order of decision: the first that fits decides."""

    UNUSABLE = "no usable click id, or an id that is too long: invalid"
    IGNORED = "the word is in the URL's ignore list: ignored"
    UNMAPPED = "the word is in no list of the URL, and none of the four statuses: unmapped"
    PIXEL = "under the pixel's key anything but a lead comes: refused"
    PARKED = "the click is not known: parked"
    DELETED = (
        "an operator has deleted the conversion with this tid; or the click's only ones, and no tid"
        " comes; or one of the opposite amount, and none that stands has it: refused"
    )
    CORRECTED = (
        "an operator has corrected the conversion that would change, and this very postback came"
        " before that: repeated"
    )
    FIRST = "nothing stands for this click; a lead, a sale or a rejected comes: recorded"
    FIRST_REBILL = (
        "nothing stands for this click; a rebill comes: recorded if rebills are allowed (by the"
        " offer, or by `[postback] rebills` where the offer was never set) and there is a tid, else"
        " refused"
    )
    LATE_TID = (
        "the click's only conversion is a lead without tid; a sale or a rejected comes with one:"
        " updated, and it takes the tid"
    )
    REFUND_AGAIN = (
        "a negative amount, or a rejected whose tid no conversion has, comes that has taken a"
        " conversion of the click back before: repeated"
    )
    FIRST_SALE = (
        "the click has conversions, none with this tid, and no sale or rebill among them; a sale"
        " comes with a tid, or a rebill where rebills are allowed: recorded as the click's sale, or"
        " refused where this very postback came before"
    )
    REFUND = (
        "one sale or rebill of the click has the opposite amount in the same currency, and this"
        " tid, or no conversion has this tid; a sale, a rebill or a rejected comes with a negative"
        " amount: updated to rejected, or repeated where this postback came before"
    )
    LEAD_MOVES = "this conversion is a lead; a sale or a rejected comes: updated"
    TAKEN_BACK = "this conversion is a sale or a rebill; a rejected comes: updated"
    REPEATED = (
        "this conversion has the status already, or is a rebill and a sale comes: repeated, or"
        " updated where what was unknown is filled in, or where `repeats = update` and the amount"
        " is another"
    )
    UNREJECTED = (
        "this conversion is rejected, and `unreject = yes`; a sale or a rebill comes: updated, or"
        " refused where this very postback came before the rejection"
    )
    FORBIDDEN = "this conversion stands; any other move comes: refused"
    REBILL = (
        "the click has conversions, none with this tid, and rebills are allowed; a sale or a"
        " rebill comes with a tid: recorded as a rebill"
    )
    CORRECTION = (
        "the click has conversions, none with this tid; a sale or a rebill comes with a tid and a"
        " negative amount: recorded as a rebill, whatever the offer says; refused where this very"
        " postback came before"
    )
    REJECTED_FIRST = (
        "the click has conversions, none with this tid; a rejected comes with a tid: recorded as"
        " rejected, whatever the offer says"
    )
    ANYTHING_ELSE = "the click has conversions; anything else comes: refused"
    FORCED = (
        "an operator forces what the rules would refuse or leave (`--force`): this conversion gets"
        " the status and the amount that come: updated"
    )


class Decision(NamedTuple):
    """A verdict, its reason and rule, the conversion in question, the change to make (or None).

    `hinges_on_past`: judge again with the `Past` before the change is made.
    """

    verdict: Verdict
    reason: Reason
    rule: Rule
    conversion: Conversion | None = None
    change: Change | None = None
    warnings: tuple[str, ...] = ()
    hinges_on_past: bool = False


# How a postback is decided
#
# `judge` first checks what needs no conversions: is the click id usable, what does the network's
# word mean, is the click known. Then `decide` takes the first row of `Rule` that fits. A click
# without conversions has two rows of its own; for any other click `_ROWS` has one function for each
# row. "This conversion" is the one with the postback's tid; a postback without tid on a click with
# exactly one conversion is about that one. Rows about this conversion read TRANSITIONS (what it may
# become) and REPEATS (what it is already). The decision is a value; the caller makes its change.
#
# A postback that is sent again must change nothing. Mostly the conversions show that it came
# before. But a refund has no conversion of its own, and a postback refused beside a sale would be a
# first sale once that sale is rejected. Such a decision has `hinges_on_past`: the caller reads the
# `Past` from the postback log and judges again. The promise ends where a setting or an offer
# changes (that is the purpose of the change), with `repeats = update`, and for a rejection sent
# again after `unreject` or an operator has undone it: it rejects again.
#
# An operator's postback (`Policy.forces`) is decided by the same rows, then `_force` overrules.
#
# What an operator did by hand (`postback conversions`) is not undone by what came before it: a
# deleted conversion is out of every row's sight, and what is about it is refused, even by force; a
# change of a corrected one hinges on the past.

# All moves that a network's postback may make: any other is refused (or, if it would change
# nothing, repeated). `unreject = yes` adds the way back from rejected. Source: Keitaro docs,
# "Postback", on statuses: a lead may become a sale or be rejected, a sale or a rebill may be
# rejected, nothing comes back.
TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.LEAD: frozenset({Status.SALE, Status.REJECTED}),
    Status.SALE: frozenset({Status.REJECTED}),
    Status.REBILL: frozenset({Status.REJECTED}),
    Status.REJECTED: frozenset(),
}

# Statuses that a conversion has already, so that nothing changes. A further sale on a click is
# booked as a rebill; its network still sends the word "sale" for it.
REPEATS: Mapping[Status, frozenset[Status]] = {
    Status.LEAD: frozenset({Status.LEAD}),
    Status.SALE: frozenset({Status.SALE}),
    Status.REBILL: frozenset({Status.REBILL, Status.SALE}),
    Status.REJECTED: frozenset({Status.REJECTED}),
}

# The statuses that are money. Source: the contract's section on statuses, on revenue.
MONEY = frozenset({Status.SALE, Status.REBILL})

# The order in which the URL's lists are searched, that of `WordLists`; a list overrides the
# built-in meaning of a word, since networks do send `sale_status=lead`. Source: Keitaro docs,
# "Postback", on status parameters.
LIST_ORDER = (Status.SALE, Status.LEAD, Status.REJECTED, Status.REBILL)

# The words that need no list. Source: Keitaro docs, "Postback", on statuses.
BUILT_IN_WORDS: Mapping[str, Status] = {status.value: status for status in Status}

# Source: Keitaro docs, "Campaign", on cost models: with the other models the click has the cost.
COST_MODELS = ("cpc", "cpm", "cpa", "revshare", "none")
COST_MODELS_PAID_BY_CONVERSION = frozenset({"cpa", "revshare", None})

# The longest click id and transaction id. Source: the contract; Keitaro's own columns are shorter.
ID_MAX_CHARACTERS = 255


def judge(
    incoming: Incoming, click: Click | None, policy: Policy, past: Past | None = None
) -> Decision:
    """Decide what a postback does; `click` is None if its subid is not known. Never raises."""
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
    decision = decide(incoming, meaning, click or Click(), policy, past)
    return decision._replace(warnings=warnings + decision.warnings) if warnings else decision


def find_flaw(incoming: Incoming) -> Reason | None:
    """Return why the postback cannot be booked or found again, or None."""
    if incoming.lacks_question_mark:
        return _NO_QUESTION_MARK
    if not incoming.subid:
        return _NO_SUBID
    if len(incoming.subid) > ID_MAX_CHARACTERS:
        return _LONG_SUBID
    if len(incoming.tid) > ID_MAX_CHARACTERS:
        return _LONG_TID
    return None


def read_word(incoming: Incoming) -> Status | tuple[Verdict, Reason]:
    """Map the network's word to a status; no word is a sale, and no list is searched (Keitaro)."""
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


class _Case(NamedTuple):
    """A postback with a status, and its click; `this` is the conversion that it is about."""

    incoming: Incoming
    status: Status
    click: Click
    policy: Policy
    past: Past
    this: Conversion | None
    has_deleted: bool = False

    @property
    def is_negative(self) -> bool:
        """Whether the amount is negative: money is to go back."""
        return self.incoming.amount is not None and self.incoming.amount < 0

    @property
    def may_be_refund(self) -> bool:
        """Whether this postback may have taken a conversion back before."""
        return self.status is Status.REJECTED or (self.status in MONEY and self.is_negative)

    @property
    def allows_rebills(self) -> bool:
        """The offer's setting, else that of the config."""
        said = self.click.allows_rebills
        return self.policy.allows_rebills if said is None else said

    @property
    def has_money(self) -> bool:
        """Whether the click has a sale or a rebill."""
        return any(c.status in MONEY for c in self.click.conversions)

    @property
    def has_rejected(self) -> bool:
        """Whether one of the click's conversions is rejected, or deleted."""
        return self.has_deleted or any(c.status is Status.REJECTED for c in self.click.conversions)

    @property
    def takes_cost(self) -> bool:
        """Whether a cost was sent that counts."""
        is_paid = self.click.cost_model in COST_MODELS_PAID_BY_CONVERSION
        return self.incoming.cost is not None and is_paid


def decide(
    incoming: Incoming, status: Status, click: Click, policy: Policy, past: Past | None = None
) -> Decision:
    """Return the decision of the first row that fits; the word is mapped, the click known."""
    deleted = tuple(c for c in click.conversions if c.is_deleted)
    if deleted:
        standing = tuple(c for c in click.conversions if not c.is_deleted)
        click = click._replace(conversions=standing)
    this = find_conversion(incoming.tid, click.conversions)
    past = _NO_PAST if past is None else past
    if policy.forces:
        # An operator overrules the past; but a refund taken back before is not taken back twice.
        past = Past(took_back=past.took_back)
    case = _Case(incoming, status, click, policy, past, this, bool(deleted))
    gone = _find_deleted(case, deleted) if deleted else None
    if gone is not None:
        return Decision(Verdict.REFUSED, _DELETED, Rule.DELETED, gone)
    decision = _take_row(case)
    warnings = _cost_warnings(incoming, click)
    return decision._replace(warnings=warnings + decision.warnings) if warnings else decision


_NO_PAST = Past()


def _take_row(case: _Case) -> Decision:
    if not case.click.conversions:
        return _decide_beside_deleted(case) if case.has_deleted else _decide_first(case)
    decision = _take_first_row(case)
    if case.policy.forces:
        return _force(case, decision)
    this = decision.conversion
    if decision.change is None or this is None or not this.is_corrected:
        return decision
    if case.past.was_corrected:
        return Decision(Verdict.REPEATED, _CORRECTED, Rule.CORRECTED, this)
    return decision._replace(hinges_on_past=True)


def _find_deleted(case: _Case, deleted: tuple[Conversion, ...]) -> Conversion | None:
    """Find the deleted conversion that a postback is about."""
    incoming = case.incoming
    for conversion in deleted:
        if conversion.tid == incoming.tid:
            return conversion
    if not incoming.tid and not case.click.conversions:
        return deleted[-1]
    is_refund = case.is_negative and case.may_be_refund and incoming.currency is not None
    if not is_refund or case.this is not None or _find_opposite(case) is not None:
        return None
    assert incoming.amount is not None
    sent = (-incoming.amount, incoming.currency)
    return next((c for c in deleted if (c.amount, c.currency) == sent), None)


def _decide_beside_deleted(case: _Case) -> Decision:
    """Decide what is about none of a click's conversions, which are all deleted."""
    decision = _decide_first(case)
    if decision.change is None:
        return decision
    if case.past.was_sent:
        # What was refused beside a sale is not recorded because that sale was deleted.
        return Decision(Verdict.REFUSED, _REFUSED_AGAIN, decision.rule)
    return decision._replace(hinges_on_past=True)


def _take_first_row(case: _Case) -> Decision:
    for row in _ROWS:
        decision = row(case)
        if decision is not None:
            return decision
    return _refuse_anything_else(case)


def find_bare_lead(incoming: Incoming, click: Click) -> Conversion | None:
    """Find the lead without tid that a postback with a tid completes: the click's only conversion.

    Ours: many networks send the transaction id with the sale only.
    """
    if not incoming.tid or len(click.conversions) != 1:
        return None
    only = click.conversions[0]
    return only if only.status is Status.LEAD and not only.tid else None


def find_conversion(tid: str, conversions: tuple[Conversion, ...]) -> Conversion | None:
    """Find the conversion of a postback: by tid, or the only one if no tid was sent."""
    for conversion in conversions:
        if conversion.tid == tid:
            return conversion
    if not tid and len(conversions) == 1:
        return conversions[0]
    return None


def _decide_first(case: _Case) -> Decision:
    rule = Rule.FIRST
    if case.status is Status.REBILL:
        rule = Rule.FIRST_REBILL
        obstacle = _find_rebill_obstacle(case)
        if obstacle is not None:
            return Decision(Verdict.REFUSED, obstacle, rule)
    return _record(case, case.status, _FIRST, rule)


# The rows for a click that has conversions: a decision if the row fits, else None.


def _row_late_tid(case: _Case) -> Decision | None:
    lead = find_bare_lead(case.incoming, case.click)
    if lead is None or case.status not in TRANSITIONS[Status.LEAD]:
        return None
    return _move(case, lead, case.status, Rule.LATE_TID)


def _row_first_sale(case: _Case) -> Decision | None:
    if case.this is not None or not case.incoming.tid:
        return None
    is_sale = case.status is Status.SALE or (case.status is Status.REBILL and case.allows_rebills)
    if not is_sale or case.has_money:
        return None
    if case.past.was_overtaken:
        return Decision(Verdict.REFUSED, _REFUSED_AGAIN, Rule.FIRST_SALE)
    decision = _record(case, Status.SALE, "the first sale of the click", Rule.FIRST_SALE)
    # If all are leads no earlier postback can have been refused that would be recorded now.
    return decision._replace(hinges_on_past=case.has_rejected)


def _row_refund_again(case: _Case) -> Decision | None:
    if not case.past.took_back or not case.may_be_refund:
        return None
    if case.this is not None and not case.is_negative:
        return None
    return Decision(Verdict.REPEATED, _REFUND_AGAIN, Rule.REFUND_AGAIN)


def _row_refund(case: _Case) -> Decision | None:
    if not case.is_negative or not case.may_be_refund:
        return None
    sale = _find_opposite(case)
    if sale is None:
        return None
    if case.past.was_overtaken:
        return Decision(Verdict.REPEATED, _IDLE_REFUND_AGAIN, Rule.REFUND)
    decision = _move(case, sale, Status.REJECTED, Rule.REFUND)
    reason = _refund_reason(sale, case.incoming)
    return decision._replace(reason=reason, hinges_on_past=True)


def _row_moves(case: _Case) -> Decision | None:
    this = case.this
    if this is None or case.status not in TRANSITIONS[this.status]:
        return None
    rule = Rule.LEAD_MOVES if this.status is Status.LEAD else Rule.TAKEN_BACK
    decision = _move(case, this, case.status, rule)
    if case.status is not Status.REJECTED or not case.is_negative:
        return decision
    if rule is Rule.TAKEN_BACK and this.amount is not None:
        decision = decision._replace(warnings=(_partial_warning(case.incoming, this),))
    return decision._replace(hinges_on_past=case.has_rejected)


def _row_repeats(case: _Case) -> Decision | None:
    this = case.this
    if this is None or case.status not in REPEATS[this.status]:
        return None
    return _repeat(case, this)


def _row_unrejected(case: _Case) -> Decision | None:
    this = case.this
    if this is None or this.status is not Status.REJECTED or not case.policy.unrejects:
        return None
    # A negative amount takes money back: from a rejected conversion it would be taken twice.
    if case.status not in MONEY or case.is_negative:
        return None
    if case.past.was_overtaken:
        return Decision(Verdict.REFUSED, _OVERTAKEN, Rule.UNREJECTED, this)
    # A click has one sale; a conversion that comes back beside another sale is a rebill.
    has_sale = any(c.status is Status.SALE for c in case.click.conversions)
    is_rebill = has_sale or this.previous_status is Status.REBILL
    status = Status.REBILL if is_rebill else Status.SALE
    return _move(case, this, status, Rule.UNREJECTED)._replace(hinges_on_past=True)


def _row_forbidden(case: _Case) -> Decision | None:
    if case.this is None:
        return None
    reason = _forbidden_reason(case.this.status, case.status)
    return Decision(Verdict.REFUSED, reason, Rule.FORBIDDEN, case.this)


def _row_rebill(case: _Case) -> Decision | None:
    if case.status not in MONEY or _find_rebill_obstacle(case) is not None:
        return None
    if not case.allows_rebills:
        # As a rebill it may have been refused while the click had no conversion.
        is_rebill = case.status is Status.REBILL
        if is_rebill and case.past.was_sent:
            return Decision(Verdict.REFUSED, _REFUSED_AGAIN, Rule.CORRECTION)
        why = "a correction of the click"
        decision = _record(case, Status.REBILL, why, Rule.CORRECTION)
        return decision._replace(hinges_on_past=is_rebill or case.has_rejected)
    decision = _record(case, Status.REBILL, "a further sale of the click", Rule.REBILL)
    return decision._replace(hinges_on_past=case.is_negative and case.has_rejected)


def _row_rejected_first(case: _Case) -> Decision | None:
    if case.status is not Status.REJECTED or not case.incoming.tid:
        return None
    # Ours: the conversion's sale may come late, and must find it.
    why = "rejected before its sale was seen"
    decision = _record(case, case.status, why, Rule.REJECTED_FIRST)
    warnings: tuple[str, ...] = ()
    if case.is_negative:
        warnings = (_idle_refund_warning(case.incoming),)
    elif case.has_money:
        warnings = (_untouched_warning(case.click),)
    return decision._replace(warnings=warnings, hinges_on_past=case.has_rejected)


def _refuse_anything_else(case: _Case) -> Decision:
    if case.status is Status.LEAD:
        return Decision(Verdict.REFUSED, _LATE_LEAD, Rule.ANYTHING_ELSE)
    if case.status is Status.REJECTED:
        return Decision(Verdict.REFUSED, _NOTHING_TO_REJECT, Rule.ANYTHING_ELSE)
    if not case.has_money and not case.incoming.tid and case.status is Status.SALE:
        return Decision(Verdict.REFUSED, _SALE_WITHOUT_TID, Rule.ANYTHING_ELSE)
    obstacle = _find_rebill_obstacle(case)
    assert obstacle is not None
    return Decision(Verdict.REFUSED, obstacle, Rule.ANYTHING_ELSE)


# In the order of the contract's table, except for the refund that is sent again.
_ROWS = (
    _row_late_tid,
    _row_refund_again,
    _row_first_sale,
    _row_refund,
    _row_moves,
    _row_repeats,
    _row_unrejected,
    _row_forbidden,
    _row_rebill,
    _row_rejected_first,
)


def _find_opposite(case: _Case) -> Conversion | None:
    """Find the sale or rebill that a negative amount takes back: this one, or the only one."""
    incoming = case.incoming
    if incoming.amount is None or incoming.currency is None:
        return None
    sent = (-incoming.amount, incoming.currency)
    equal = [
        c for c in case.click.conversions if c.status in MONEY and (c.amount, c.currency) == sent
    ]
    if case.this is not None:
        # A tid names the conversion, even if others have the same amount.
        return case.this if case.this in equal else None
    return equal[0] if len(equal) == 1 else None


def _find_rebill_obstacle(case: _Case) -> Reason | None:
    """Return the condition of a further conversion that fails; a correction needs none."""
    is_correction = case.is_negative and bool(case.click.conversions)
    if not case.allows_rebills and not is_correction:
        return _no_rebills_reason(case.click)
    return None if case.incoming.tid else _REBILL_WITHOUT_TID


def _record(case: _Case, status: Status, why: str, rule: Rule) -> Decision:
    incoming = case.incoming
    takes_amount, takes_cost = True, case.takes_cost
    # By position, as nearly every postback comes here, and names take twice as long.
    change = Change(None, status, incoming.tid, takes_amount, takes_cost, incoming.sub_ids)
    return Decision(Verdict.RECORDED, _recorded_reason(why, status), rule, None, change)


def _move(case: _Case, this: Conversion, status: Status, rule: Rule) -> Decision:
    incoming = case.incoming
    # A rejected conversion keeps its amount, whatever was sent: it no longer counts as revenue.
    wants_amount = status in MONEY and incoming.amount is not None
    # An amount without a known currency cannot replace a stored one.
    is_usable = incoming.currency is not None
    takes_amount, takes_cost = wants_amount and is_usable, case.takes_cost and is_usable
    # A conversion with a tid keeps it: a refund has another one.
    tid = this.tid or (incoming.tid if rule is Rule.LATE_TID else "")
    change = Change(this, status, tid, takes_amount, takes_cost, incoming.sub_ids)
    reason = Reason(f"the conversion is {status} now", f"from {this.status} to {status}")
    warnings = () if is_usable else tuple(_unusable_warnings(case, this, status))
    return Decision(Verdict.UPDATED, reason, rule, this, change, warnings)


class _Sum(NamedTuple):
    """An amount or a cost as it was sent, and the stored one; each with its currency."""

    name: str
    sent: tuple[Decimal | None, str | None]
    known: tuple[Decimal | None, str | None]

    @classmethod
    def of_amount(cls, incoming: Incoming, this: Conversion) -> "_Sum":
        """Return the sent amount and the conversion's."""
        return cls("amount", (incoming.amount, incoming.currency), (this.amount, this.currency))

    @classmethod
    def of_cost(cls, incoming: Incoming, this: Conversion) -> "_Sum":
        """Return the sent cost and the conversion's."""
        return cls("cost", (incoming.cost, incoming.currency), (this.cost, this.cost_currency))

    @property
    def differs(self) -> bool:
        """Whether a sent value differs from the stored one."""
        return self.sent[0] is not None and self.sent != self.known

    @property
    def is_news(self) -> bool:
        """Whether it differs and can be booked: without a known currency it replaces nothing."""
        return self.differs and self.sent[1] is not None

    @property
    def fills(self) -> bool:
        """Whether it fills in an unknown value: all of it, or the currency of the same amount."""
        amount, currency = self.known
        return self.is_news and (amount is None or (currency is None and amount == self.sent[0]))

    def describe(self) -> str:
        """Write both for people."""
        sent, known = _describe_money(*self.sent), _describe_money(*self.known)
        return f"{self.name} {sent} was {known}"


class _Repeat(NamedTuple):
    """The differing values of a repeat: those that fill a gap, those that replace, the rest."""

    filled: tuple[_Sum, ...]
    replaced: tuple[_Sum, ...]
    left: tuple[_Sum, ...]
    sub_ids: Mapping[str, str]


def _compare(case: _Case, this: Conversion, *, replaces: bool) -> _Repeat:
    incoming = case.incoming
    sums = [_Sum.of_amount(incoming, this)]
    if case.takes_cost:
        sums.append(_Sum.of_cost(incoming, this))
    filled = tuple(each for each in sums if each.fills and not _is_misplaced(each, this))
    others = [each for each in sums if each.differs and each not in filled]
    replaced = tuple(each for each in others if replaces and _may_replace(each, this))
    left = tuple(each for each in others if each not in replaced)
    missing = {n: value for n, value in incoming.sub_ids.items() if not this.sub_ids.get(n)}
    return _Repeat(filled, replaced, left, missing)


def _may_replace(each: _Sum, this: Conversion) -> bool:
    return this.status is not Status.REJECTED and each.is_news and not _is_misplaced(each, this)


def _is_misplaced(each: _Sum, this: Conversion) -> bool:
    """Return whether a negative amount was sent as a refund of the stored one, not in its place."""
    sent, known = each.sent[0], each.known[0]
    if each.name != "amount" or sent is None or sent >= 0:
        return False
    # A correction is a rebill of its own; if its amount could not be read, it may be negative.
    return this.status is not Status.REBILL if known is None else known >= 0


def _takes_back(each: _Sum) -> bool:
    """Tell whether the opposite of the amount that stands was sent."""
    sent, known = each.sent, each.known
    return each.name == "amount" and sent[0] is not None and sent == (_negate(known[0]), known[1])


def _negate(amount: Decimal | None) -> Decimal | None:
    return None if amount is None else -amount


def _repeat(case: _Case, this: Conversion) -> Decision:
    incoming = case.incoming
    says_no_more = incoming.cost is None and not incoming.sub_ids
    if says_no_more and not _Sum.of_amount(incoming, this).differs:
        return Decision(Verdict.REPEATED, _known_reason(this.status), Rule.REPEATED, this)
    found = _compare(case, this, replaces=case.policy.updates_on_repeat)
    fills = bool(found.filled or found.sub_ids) and not _was_passed_over(case, this)
    if not fills and not found.replaced:
        reason = _repeated_reason(this, found.left, case.policy)
        return Decision(Verdict.REPEATED, reason, Rule.REPEATED, this)
    taken = found.replaced + (found.filled if fills else ())
    names = {each.name for each in taken}
    sub_ids = incoming.sub_ids if found.replaced else found.sub_ids
    change = Change(
        this, this.status, this.tid, "amount" in names, "cost" in names, sub_ids, not found.replaced
    )
    reason = _taken_over_reason(this, taken, found)
    return Decision(Verdict.UPDATED, reason, Rule.REPEATED, this, change, hinges_on_past=fills)


def _was_passed_over(case: _Case, this: Conversion) -> bool:
    """Return whether the same postback came before, and its values were not booked then."""
    # A rejection does not book the amount that comes with it.
    was_rejection = this.status is Status.REJECTED and case.past.was_sent
    return case.past.was_overtaken or was_rejection


def _force(case: _Case, planned: Decision) -> Decision:
    """Overrule the rules for an operator: a refused move, an amount or a cost left alone."""
    this, incoming = case.this, case.incoming
    if this is None or planned.rule not in _OVERRULED:
        return planned
    change = Change(
        this,
        _read_forced_status(case, this),
        this.tid,
        takes_amount=_Sum.of_amount(incoming, this).is_news,
        takes_cost=case.takes_cost and _Sum.of_cost(incoming, this).is_news,
        sub_ids=incoming.sub_ids,
    )
    if not _goes_further(change, planned.change, this):
        return planned
    reason = _forced_reason(this, incoming, change)
    usable = incoming.currency is not None
    warnings = () if usable else tuple(_unusable_warnings(case, this, change.status))
    return Decision(Verdict.UPDATED, reason, Rule.FORCED, this, change, warnings)


def _goes_further(change: Change, planned: Change | None, this: Conversion) -> bool:
    """Return whether a forced change does more than the rules would."""
    if planned is None:
        return change.status is not this.status or change.takes_amount or change.takes_cost
    return (
        change.status is not planned.status
        or (change.takes_amount and not planned.takes_amount)
        or (change.takes_cost and not planned.takes_cost)
    )


# Without a conversion to move there is nothing to force: rebills have their own switch.
_OVERRULED = frozenset(
    {Rule.LEAD_MOVES, Rule.TAKEN_BACK, Rule.REPEATED, Rule.UNREJECTED, Rule.FORBIDDEN}
)


def _read_forced_status(case: _Case, this: Conversion) -> Status:
    # The network's word for a rebill is "sale" still; it means a sale if the click has no other.
    if case.status is Status.SALE and this.status is Status.REBILL:
        has_sale = any(c.status is Status.SALE for c in case.click.conversions)
        return Status.REBILL if has_sale else Status.SALE
    return case.status


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


# --- Sentences ------------------------------------------------------------------------------------
# Of each `Reason` the first text is the sender's answer, the second is for the postback log.

_NO_SUBID = Reason(
    "The click id is missing: add subid= to the Postback URL with the click id macro of your"
    " network as its value.",
    "no usable click id was sent (as subid, sub_id, clickid, click_id or cookie): the Postback URL"
    " at the network lacks subid= with the network's click id macro",
)
_NO_QUESTION_MARK = Reason(
    "The ? between the address and its parameters is missing: put it behind postback in the"
    " Postback URL.",
    "the ? between the address and its parameters is missing: mend the Postback URL at the network,"
    " then book what came so with `postback replay`",
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

# The beginning of the reason of a repeat with another amount; `import` compares it.
OTHER_AMOUNT = "known already with another amount"

_FIRST = "the first conversion of the click"
_LATE_LEAD = Reason(
    "a lead does not follow other conversions of its click",
    "the click has conversions already, and a lead does not follow them",
)
_NOTHING_TO_REJECT = Reason(
    "no conversion with this transaction id: the click has several, add tid= to the Postback URL",
    "no conversion with this transaction id: the click has several, and none was sent (tid) that"
    " says which of them is rejected",
)
_SALE_WITHOUT_TID = Reason(
    "the click has several conversions and no sale: add tid= to the Postback URL",
    "the click has several conversions, none of them a sale, and no transaction id (tid) came that"
    " says which becomes one: add tid= to the Postback URL",
)
_REBILL_WITHOUT_TID = Reason(
    "a further conversion of the click needs a transaction id: add tid= to the Postback URL",
    "a further conversion of the click needs a transaction id (tid), and none was sent: add tid= to"
    " the Postback URL",
)
_REFUSED_AGAIN = Reason(
    "sent again: this very postback was refused before",
    "this very postback came before and was refused: sent again it changes nothing"
    " (`postback replay --force` puts it through)",
)
_REFUND_AGAIN = Reason(
    "sent again: this refund is known already, nothing changed",
    "this refund came before: what it took back is rejected already, nothing changed",
)
_IDLE_REFUND_AGAIN = Reason(
    "sent again: this refund took nothing back before, nothing changed",
    "this very postback came before, when nothing stood that it takes back: sent again it changes"
    " nothing (`postback replay --force` puts it through)",
)
_DELETED = Reason(
    "an operator has deleted this conversion",
    "an operator has deleted the conversion that this is about: `postback conversions --deleted"
    " --history` says why, `postback conversions set` brings it back",
)
_CORRECTED = Reason(
    "sent again: an operator has corrected the conversion since",
    "this very postback came before an operator corrected the conversion: sent again it changes"
    " nothing (`postback conversions --history` says what was corrected, and why)",
)
_OVERTAKEN = Reason(
    "sent again: the conversion was rejected since",
    "the conversion is rejected, and this very postback came before the rejection: only one that"
    " comes after it can undo it (or `postback replay --force`)",
)


# Few different sentences, one of them with most postbacks.
@cache
def _recorded_reason(why: str, status: Status) -> Reason:
    return Reason(why, f"{why}, as {status}")


def _no_rebills_reason(click: Click) -> Reason:
    setting = '`[postback] rebills = "yes"`'
    if click.offer is None:
        why = "the click has no offer that allows rebills"
        return Reason(
            why,
            f"{why}: bring the click in again with its offer, or let {setting} allow rebills for"
            " clicks without one",
        )
    others = f", {setting} for all offers never set" if click.allows_rebills is None else ""
    return Reason(
        "the offer does not allow rebills",
        f"the offer {click.offer} does not allow rebills: `postback offers set` can allow those to"
        f" come{others}",
    )


def _forbidden_reason(present: Status, wanted: Status) -> Reason:
    summary = f"the conversion cannot become {wanted} any more"
    detail = f"the conversion is {present} and cannot become {wanted}"
    if present is Status.REJECTED and wanted in MONEY:
        detail += (
            ': `[postback] unreject = "yes"` lets later ones do so, `postback replay --force` this'
        )
    return Reason(summary, detail)


def _refund_reason(sale: Conversion, incoming: Incoming) -> Reason:
    sent = _describe_money(incoming.amount, incoming.currency)
    tid = f"the conversion with tid {sale.tid!r}" if sale.tid else "the conversion without tid"
    return Reason(
        "taken back: the conversion of the opposite amount is rejected now",
        f"from {sale.status} to rejected: {sent} takes {tid} back",
    )


def _forced_reason(this: Conversion, incoming: Incoming, change: Change) -> Reason:
    parts = [f"from {this.status} to {change.status}"]
    if change.takes_amount:
        parts.append(_Sum.of_amount(incoming, this).describe())
    if change.takes_cost:
        parts.append(_Sum.of_cost(incoming, this).describe())
    return Reason(f"forced: the conversion is {change.status} now", f"forced: {', '.join(parts)}")


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


@cache
def _known_reason(status: Status) -> Reason:
    return Reason("known already, nothing changed", f"already {status}, nothing changed")


def _repeated_reason(this: Conversion, left: tuple[_Sum, ...], policy: Policy) -> Reason:
    if not left:
        return _known_reason(this.status)
    if this.status is Status.REJECTED and any(_takes_back(each) for each in left):
        return _REFUND_AGAIN
    remedy = ""
    if any(_is_misplaced(each, this) for each in left):
        remedy = ": a correction needs a transaction id (tid) of its own"
    elif any(_may_replace(each, this) for each in left) and not policy.updates_on_repeat:
        remedy = ': repeats = "update" in the config takes it over'
    differences = _describe_sums(left)
    return Reason(
        f"{OTHER_AMOUNT}, nothing changed",
        f"already {this.status}, nothing changed, though {differences}{remedy}",
    )


def _taken_over_reason(this: Conversion, taken: tuple[_Sum, ...], found: _Repeat) -> Reason:
    if found.replaced:
        summary = f"{OTHER_AMOUNT}, which was taken over"
        return Reason(summary, f"already {this.status}; taken over: {_describe_sums(taken)}")
    filled = ", ".join((*(each.describe() for each in taken), *found.sub_ids))
    left = f"; left alone: {_describe_sums(found.left)}" if found.left else ""
    return Reason(
        "known already; what was unknown of it was filled in",
        f"already {this.status}; filled in: {filled}{left}",
    )


def _describe_sums(sums: Iterable[_Sum]) -> str:
    return " and ".join(each.describe() for each in sums)


def _unusable_warnings(case: _Case, this: Conversion, status: Status) -> Iterator[str]:
    is_wanted = status in MONEY or case.policy.forces
    if is_wanted and case.incoming.amount is not None:
        sent = _describe_money(case.incoming.amount, None)
        known = _describe_money(this.amount, this.currency)
        yield f"amount {sent} is not taken: the conversion keeps its own, {known}"
    if case.takes_cost:
        sent = _describe_money(case.incoming.cost, None)
        known = _describe_money(this.cost, this.cost_currency)
        yield f"cost {sent} is not taken: the conversion keeps its own, {known}"


def _idle_refund_warning(incoming: Incoming) -> str:
    sent = _describe_money(incoming.amount, incoming.currency)
    return (
        f"{sent} takes nothing back: it is not the opposite of exactly one sale or rebill of the"
        " click (a correction comes as a sale with its negative amount)"
    )


def _untouched_warning(click: Click) -> str:
    money = [c for c in click.conversions if c.status in MONEY]
    shown = ", ".join(
        f"{c.status} {c.tid!r} of {_describe_money(c.amount, c.currency)}" for c in money[:3]
    )
    return (
        f"no conversion has this transaction id, and the click's money stays as it is ({shown}):"
        " where one of them is meant, its own tid takes it back, or the negative of its amount"
    )


def _partial_warning(incoming: Incoming, this: Conversion) -> str:
    sent = _describe_money(incoming.amount, incoming.currency)
    known = _describe_money(this.amount, this.currency)
    return f"the whole conversion of {known} is rejected, though {sent} came with it"


def _describe_money(amount: Decimal | None, currency: str | None) -> str:
    return "unknown" if amount is None else f"{amount:f} {currency or '(currency unknown)'}"
