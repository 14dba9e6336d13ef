"""The status engine by itself: every row of the rules, and what holds for any stream at all."""

import itertools
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statuses import (
    COST_MODELS,
    TRANSITIONS,
    Change,
    Click,
    Conversion,
    Decision,
    Incoming,
    Policy,
    Rule,
    Status,
    Verdict,
    WordLists,
    judge,
)

LEAD, SALE, REJECTED, REBILL = Status.LEAD, Status.SALE, Status.REJECTED, Status.REBILL
TEN = Decimal(10)


def a_click(
    *statuses_and_tids: tuple[Status, str], allows_rebills: bool = False, **known: Any
) -> Click:
    """A click of offer O1 with conversions worth 10 USD each."""
    conversions = tuple(
        Conversion(number, tid, status, TEN, "USD")
        for number, (status, tid) in enumerate(statuses_and_tids, start=1)
    )
    return Click(
        **{"offer": "O1", "allows_rebills": allows_rebills, **known}, conversions=conversions
    )


def a_postback(word: str | None = None, tid: str = "", **said: Any) -> Incoming:
    return Incoming(**{"subid": "c1", "word": word, "tid": tid, "currency": "USD", **said})


def judged(incoming: Incoming, click: Click | None, **policy: bool) -> Decision:
    return judge(incoming, click, Policy(**policy))


@pytest.mark.parametrize(
    ("word", "lists", "status"),
    [
        (None, {}, SALE),
        (None, {"lead": frozenset({""})}, SALE),
        ("lead", {}, LEAD),
        ("SALE", {}, SALE),
        ("Rejected", {}, REJECTED),
        ("rebill", {}, REBILL),
        ("approved", {"sale": frozenset({"approved"})}, SALE),
        ("APPROVED", {"sale": frozenset({"approved"})}, SALE),
        ("lead", {"sale": frozenset({"lead"})}, SALE),
        ("1", {"lead": frozenset({"1"}), "sale": frozenset({"1"})}, SALE),
        ("1", {"lead": frozenset({"1"}), "rejected": frozenset({"1"})}, LEAD),
        ("1", {"rebill": frozenset({"1"}), "rejected": frozenset({"1"})}, REJECTED),
        ("STRASSE", {"lead": frozenset({"straße".casefold()})}, LEAD),
    ],
)
def test_a_word_means_what_the_lists_say_then_what_it_says_itself(
    word: str | None, lists: dict[str, frozenset[str]], status: Status
) -> None:
    offer_with_rebills = a_click(allows_rebills=True)

    decision = judged(a_postback(word, "t1", lists=WordLists(**lists)), offer_with_rebills)

    assert decision.change is not None
    assert decision.change.status is status


@pytest.mark.parametrize(
    ("incoming", "verdict", "reason"),
    [
        (a_postback("sale", subid=None), Verdict.INVALID, "no usable click id"),
        (a_postback("sale", subid=""), Verdict.INVALID, "no usable click id"),
        (a_postback("sale", subid="c" * 256), Verdict.INVALID, "longer than 255"),
        (a_postback("sale", tid="t" * 256), Verdict.INVALID, "transaction id is longer"),
        (
            a_postback("test", lists=WordLists(ignore=frozenset({"test"}))),
            Verdict.IGNORED,
            "'test'",
        ),
        (
            a_postback(
                "sale", lists=WordLists(ignore=frozenset({"sale"}), sale=frozenset({"sale"}))
            ),
            Verdict.IGNORED,
            "ignore list",
        ),
        (a_postback("approved"), Verdict.UNMAPPED, "'approved', and it is none of"),
        (a_postback("approved"), Verdict.UNMAPPED, ": add it to sale_status="),
        (a_postback("{status}", word_is_macro=True), Verdict.UNMAPPED, "did not replace"),
        (a_postback("sale", leads_only=True), Verdict.REFUSED, "send it to the Postback URL"),
        (a_postback("lead", leads_only=True), Verdict.PARKED, "'c1'"),
        (a_postback("sale"), Verdict.PARKED, "'c1'"),
    ],
)
def test_what_is_decided_before_any_click_is_asked_for(
    incoming: Incoming, verdict: Verdict, reason: str
) -> None:
    decision = judged(incoming, None)

    assert decision.verdict is verdict
    assert reason in decision.reason.detail
    assert decision.change is None


# What stands on the click, what comes, whether rebills are allowed -> verdict, and the status and
# tid that a conversion is left with (None: nothing changes). The contract's table, row by row.
ROWS = [
    ([], ("lead", ""), False, "recorded", (LEAD, "")),
    ([], ("sale", "t1"), False, "recorded", (SALE, "t1")),
    ([], ("rejected", ""), False, "recorded", (REJECTED, "")),
    ([], ("rebill", "t1"), True, "recorded", (REBILL, "t1")),
    ([], ("rebill", ""), True, "refused", None),
    ([], ("rebill", "t1"), False, "refused", None),
    ([(LEAD, "")], ("sale", "t1"), False, "updated", (SALE, "t1")),
    ([(LEAD, "")], ("rejected", "t1"), False, "updated", (REJECTED, "t1")),
    ([(LEAD, "")], ("sale", "t1"), True, "updated", (SALE, "t1")),
    ([(LEAD, "")], ("lead", "t1"), False, "refused", None),
    ([(LEAD, "")], ("rebill", "t1"), False, "refused", None),
    ([(LEAD, "t1")], ("sale", "t1"), False, "updated", (SALE, "t1")),
    ([(LEAD, "t1")], ("rejected", "t1"), False, "updated", (REJECTED, "t1")),
    ([(LEAD, "t1")], ("sale", ""), False, "updated", (SALE, "t1")),
    ([(SALE, "t1")], ("rejected", ""), False, "updated", (REJECTED, "t1")),
    ([(REBILL, "t1")], ("rejected", "t1"), False, "updated", (REJECTED, "t1")),
    ([(LEAD, "t1")], ("lead", "t1"), False, "repeated", None),
    ([(SALE, "t1")], ("sale", "t1"), False, "repeated", None),
    ([(REJECTED, "t1")], ("rejected", ""), False, "repeated", None),
    ([(REBILL, "t1")], ("rebill", "t1"), False, "repeated", None),
    ([(REBILL, "t1")], ("sale", "t1"), False, "repeated", None),
    ([(SALE, "t1")], ("lead", "t1"), True, "refused", None),
    ([(SALE, "t1")], ("rebill", "t1"), True, "refused", None),
    ([(LEAD, "t1")], ("rebill", "t1"), True, "refused", None),
    ([(REJECTED, "t1")], ("sale", "t1"), True, "refused", None),
    ([(REJECTED, "t1")], ("lead", ""), True, "refused", None),
    ([(REBILL, "t1")], ("lead", "t1"), True, "refused", None),
    ([(SALE, "t1")], ("sale", "t2"), True, "recorded", (REBILL, "t2")),
    ([(SALE, "t1")], ("rebill", "t2"), True, "recorded", (REBILL, "t2")),
    ([(SALE, "")], ("sale", "t2"), True, "recorded", (REBILL, "t2")),
    ([(REJECTED, "t1")], ("sale", "t2"), True, "recorded", (REBILL, "t2")),
    ([(SALE, "t1")], ("rejected", "t2"), True, "recorded", (REJECTED, "t2")),
    ([(SALE, "t1")], ("sale", "t2"), False, "refused", None),
    ([(SALE, "t1")], ("rejected", "t2"), False, "refused", None),
    ([(SALE, "t1")], ("lead", "t2"), True, "refused", None),
    ([(SALE, "t1"), (REBILL, "t2")], ("sale", ""), True, "refused", None),
    ([(SALE, "t1"), (REBILL, "t2")], ("rejected", "t2"), True, "updated", (REJECTED, "t2")),
    ([(SALE, ""), (REBILL, "t2")], ("rejected", ""), True, "updated", (REJECTED, "")),
]


@pytest.mark.parametrize(("stands", "comes", "allows_rebills", "verdict", "left_with"), ROWS)
def test_each_row_of_the_rules(
    stands: list[tuple[Status, str]],
    comes: tuple[str, str],
    allows_rebills: bool,
    verdict: str,
    left_with: tuple[Status, str] | None,
) -> None:
    click = a_click(*stands, allows_rebills=allows_rebills)

    decision = judged(a_postback(*comes), click)

    assert decision.verdict == verdict
    assert (decision.change and (decision.change.status, decision.change.tid)) == left_with


@pytest.mark.parametrize(
    ("click", "comes", "names"),
    [
        (a_click((SALE, "t1")), ("sale", "t2"), "the offer O1 does not allow rebills"),
        (a_click((SALE, "t1"), offer=None), ("sale", "t2"), "no offer that allows rebills"),
        (a_click(allows_rebills=True), ("rebill", ""), "needs a transaction id"),
        (
            a_click((SALE, "t1"), (REBILL, "t2"), allows_rebills=True),
            ("sale", ""),
            "needs a transaction id",
        ),
        (a_click((SALE, "t1"), allows_rebills=True), ("lead", "t2"), "lead does not follow"),
        (a_click((SALE, "t1")), ("lead", "t1"), "is sale and cannot become lead"),
    ],
)
def test_a_refusal_names_the_condition_that_failed(
    click: Click, comes: tuple[str, str], names: str
) -> None:
    decision = judged(a_postback(*comes), click)

    assert decision.verdict is Verdict.REFUSED
    assert names in decision.reason.detail


def test_a_rebill_without_any_sale_is_recorded_with_a_warning() -> None:
    decision = judged(a_postback("sale", "t2"), a_click((REJECTED, "t1"), allows_rebills=True))

    assert decision.verdict is Verdict.RECORDED
    assert decision.warnings == ("a rebill, but no sale or rebill stands on the click",)


@pytest.mark.parametrize(
    ("present", "word", "amount", "takes_amount"),
    [
        (LEAD, "sale", Decimal(12), True),
        (LEAD, "sale", None, False),
        (LEAD, "rejected", Decimal(12), False),
        (SALE, "rejected", Decimal(12), False),
    ],
)
def test_only_a_move_to_sale_takes_a_new_amount(
    present: Status, word: str, amount: Decimal | None, takes_amount: bool
) -> None:
    decision = judged(a_postback(word, "t1", amount=amount), a_click((present, "t1")))

    assert decision.change is not None
    assert decision.change.takes_amount is takes_amount


@pytest.mark.parametrize(
    ("present", "said", "policy", "verdict", "reason"),
    [
        (SALE, {"amount": TEN}, False, "repeated", "nothing changed"),
        (SALE, {"amount": Decimal("10.00")}, False, "repeated", "already sale, nothing changed"),
        (SALE, {"amount": Decimal(12)}, False, "repeated", "amount 12 USD was 10 USD"),
        (SALE, {"amount": TEN, "currency": "EUR"}, False, "repeated", "10 EUR was 10 USD"),
        (SALE, {"amount": Decimal(12)}, True, "updated", "amount 12 USD was 10 USD"),
        (SALE, {"cost": Decimal(3)}, True, "updated", "cost 3 USD was unknown"),
        (SALE, {"amount": TEN}, True, "repeated", "nothing changed"),
        (SALE, {}, True, "repeated", "nothing changed"),
        (SALE, {"amount": Decimal(12), "currency": None}, True, "repeated", "currency unknown"),
        (REBILL, {"amount": Decimal(12)}, True, "updated", "amount 12 USD was 10 USD"),
        (REJECTED, {"amount": Decimal(12)}, False, "repeated", "amount 12 USD was 10 USD"),
        (REJECTED, {"amount": Decimal(12)}, True, "repeated", "amount 12 USD was 10 USD"),
    ],
)
def test_a_repeat_with_another_amount_says_so_and_counts_only_where_the_config_says(
    present: Status, said: dict[str, Any], policy: bool, verdict: str, reason: str
) -> None:
    incoming = a_postback(present.value, "t1", **said)

    decision = judged(incoming, a_click((present, "t1")), updates_on_repeat=policy)

    assert decision.verdict == verdict
    assert reason in decision.reason.detail
    assert (decision.change is not None) is (verdict == "updated")
    is_mendable = " was " in decision.reason.detail and not policy and present is not REJECTED
    assert ('repeats = "update"' in decision.reason.detail) is is_mendable


@pytest.mark.parametrize(
    ("cost_model", "counts"),
    [
        ("cpa", True),
        ("revshare", True),
        (None, True),
        ("cpc", False),
        ("cpm", False),
        ("none", False),
    ],
)
def test_a_cost_counts_only_where_the_conversion_is_what_is_paid(
    cost_model: str | None, counts: bool
) -> None:
    decision = judged(a_postback("sale", cost=Decimal(3)), a_click(cost_model=cost_model))

    assert decision.change is not None
    assert decision.change.takes_cost is counts
    assert bool(decision.warnings) is not counts


def test_a_word_in_two_lists_draws_a_warning() -> None:
    lists = WordLists(sale=frozenset({"1"}), lead=frozenset({"1", "2"}))

    decision = judged(a_postback("2", lists=lists), a_click())

    assert decision.warnings == ("the word '1' is in 2 lists: sale, lead",)


def test_an_unknown_click_is_accepted_where_the_config_says_so() -> None:
    sale = judged(a_postback("sale"), None, accepts_unknown_subid=True)
    rebill = judged(a_postback("rebill", "t1"), None, accepts_unknown_subid=True)

    assert (sale.verdict, rebill.verdict) == (Verdict.RECORDED, Verdict.REFUSED)


def test_every_move_is_in_the_table_or_changes_nothing() -> None:
    for present, wanted in itertools.product(Status, Status):
        decision = judged(a_postback(wanted.value, "t1"), a_click((present, "t1")))

        moved = decision.change is not None
        assert moved is (wanted in TRANSITIONS[present]), (present, wanted)


# Properties

words = st.sampled_from([None, "lead", "sale", "rejected", "rebill", "approved", "x", ""])
tids = st.sampled_from(["", "t1", "t2", "t3"])
amounts = st.sampled_from([None, TEN, Decimal("0.000001"), Decimal(-5)])
currencies = st.sampled_from([None, "USD", "EUR"])
word_sets = st.frozensets(st.sampled_from(["approved", "x", "sale", "lead"]), max_size=2)
lists = st.builds(WordLists, word_sets, word_sets, word_sets, word_sets, word_sets)
postbacks = st.builds(
    Incoming,
    subid=st.sampled_from([None, "", "c1", "c" * 300]) | st.text(max_size=5),
    word=words | st.text(max_size=5),
    word_is_macro=st.booleans(),
    tid=tids | st.text(max_size=300),
    amount=amounts,
    cost=amounts,
    currency=currencies,
    lists=lists,
    leads_only=st.booleans(),
)
conversions = st.builds(
    Conversion,
    id=st.integers(1, 9),
    tid=tids,
    status=st.sampled_from(Status),
    amount=amounts,
    currency=currencies,
    cost=amounts,
    cost_currency=currencies,
)
clicks = st.none() | st.builds(
    Click,
    offer=st.none() | st.just("O1"),
    allows_rebills=st.booleans(),
    cost_model=st.none() | st.sampled_from(COST_MODELS),
    conversions=st.lists(conversions, max_size=4, unique_by=lambda c: c.tid).map(tuple),
)
policies = st.builds(Policy, st.booleans(), st.booleans())


@given(postbacks, clicks, policies)
def test_any_postback_on_any_click_gets_one_decision_and_the_same_one_again(
    incoming: Incoming, click: Click | None, policy: Policy
) -> None:
    decision = judge(incoming, click, policy)

    assert decision == judge(incoming, click, policy)
    assert decision.reason.summary.isascii()
    assert decision.reason.summary.isprintable()
    assert len(decision.reason.summary) <= 200
    changes = decision.verdict in {Verdict.RECORDED, Verdict.UPDATED}
    assert (decision.change is not None) is changes


@given(postbacks, clicks, policies)
def test_nothing_but_the_documented_moves_changes_a_conversion(
    incoming: Incoming, click: Click | None, policy: Policy
) -> None:
    change = judge(incoming, click, policy).change

    if change is None or change.conversion is None:
        return
    before = change.conversion
    assert click is not None
    assert before in click.conversions
    if change.status is before.status:
        assert policy.updates_on_repeat
        assert before.status is not REJECTED
    else:
        assert change.status in TRANSITIONS[before.status]
    if change.tid != before.tid:
        assert (before.tid, before.status, len(click.conversions)) == ("", LEAD, 1)


def apply(click: Click, incoming: Incoming, change: Change | None) -> Click:
    """Make a change, as the storage does."""
    if change is None:
        return click
    kept = change.conversion or Conversion(len(click.conversions) + 1, "", change.status)
    changed = kept._replace(
        tid=change.tid,
        status=change.status,
        amount=incoming.amount if change.takes_amount else kept.amount,
        currency=incoming.currency if change.takes_amount else kept.currency,
        cost=incoming.cost if change.takes_cost else kept.cost,
        cost_currency=incoming.currency if change.takes_cost else kept.cost_currency,
    )
    if change.conversion is None:
        return click._replace(conversions=(*click.conversions, changed))
    return click._replace(
        conversions=tuple(changed if c.id == kept.id else c for c in click.conversions)
    )


streams = st.lists(
    st.builds(
        Incoming,
        subid=st.just("c1"),
        word=words,
        tid=tids,
        amount=amounts,
        cost=amounts,
        currency=currencies,
    ),
    min_size=1,
    max_size=12,
)


@given(streams, st.booleans(), st.data())
def test_sending_an_applied_postback_again_at_any_later_point_changes_nothing(
    stream: list[Incoming], allows_rebills: bool, data: st.DataObject
) -> None:
    click = Click("O1", allows_rebills)
    applied: list[Incoming] = []

    for incoming in stream:
        decision = judge(incoming, click, Policy())
        click = apply(click, incoming, decision.change)
        if decision.change is not None:
            applied.append(incoming)
        if applied:
            again = judge(data.draw(st.sampled_from(applied)), click, Policy())
            assert again.verdict in {Verdict.REPEATED, Verdict.REFUSED}
            assert again.change is None


# What stands, what comes, whether rebills are allowed -> the row that decides.
DECIDED_BY = [
    ([], ("sale", ""), False, Rule.FIRST),
    ([], ("rebill", "t1"), True, Rule.FIRST_REBILL),
    ([], ("rebill", "t1"), False, Rule.FIRST_REBILL),
    ([(LEAD, "")], ("sale", "t1"), False, Rule.LATE_TID),
    ([(LEAD, "")], ("sale", ""), False, Rule.LEAD_MOVES),
    ([(SALE, "t1")], ("rejected", "t1"), False, Rule.TAKEN_BACK),
    ([(REBILL, "t1")], ("rejected", "t1"), False, Rule.TAKEN_BACK),
    ([(REBILL, "t1")], ("sale", "t1"), False, Rule.REPEATED),
    ([(SALE, "t1")], ("lead", "t1"), False, Rule.FORBIDDEN),
    ([(SALE, "t1")], ("sale", "t2"), True, Rule.REBILL),
    ([(SALE, "t1")], ("rejected", "t2"), True, Rule.REJECTED_FIRST),
    ([(SALE, "t1")], ("sale", "t2"), False, Rule.ANYTHING_ELSE),
    ([(SALE, "t1")], ("lead", "t2"), True, Rule.ANYTHING_ELSE),
]


@pytest.mark.parametrize(("stands", "comes", "allows_rebills", "rule"), DECIDED_BY)
def test_a_decision_names_the_row_that_made_it(
    stands: list[tuple[Status, str]], comes: tuple[str, str], allows_rebills: bool, rule: Rule
) -> None:
    decision = judged(a_postback(*comes), a_click(*stands, allows_rebills=allows_rebills))

    assert decision.rule is rule
    assert decision.verdict in rule.rpartition(":")[2]


@pytest.mark.parametrize(
    ("incoming", "rule"),
    [
        (a_postback("sale", subid=None), Rule.UNUSABLE),
        (a_postback("test", lists=WordLists(ignore=frozenset({"test"}))), Rule.IGNORED),
        (a_postback("approved"), Rule.UNMAPPED),
        (a_postback("sale", leads_only=True), Rule.PIXEL),
        (a_postback("sale"), Rule.PARKED),
    ],
)
def test_so_does_one_that_asks_for_no_click(incoming: Incoming, rule: Rule) -> None:
    decision = judged(incoming, None)

    assert decision.rule is rule
    assert decision.verdict in rule.rpartition(":")[2]
