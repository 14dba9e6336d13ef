"""The rules by themselves: every row, and the properties of any stream of postbacks."""

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
    Past,
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
    *statuses_and_tids: tuple[Status, str], allows_rebills: bool | None = False, **known: Any
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


# The click's conversions, the postback, whether rebills are allowed -> verdict, and the new status
# and tid of a conversion (None: nothing changes). The contract's table, row by row.
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
    ([(SALE, "t1"), (REJECTED, "t2")], ("sale", "t3"), True, "recorded", (REBILL, "t3")),
    # The first sale of the click is a sale, whatever the offer says.
    ([(REJECTED, "t1")], ("sale", "t2"), True, "recorded", (SALE, "t2")),
    ([(REJECTED, "t1")], ("sale", "t2"), False, "recorded", (SALE, "t2")),
    ([(LEAD, "t1")], ("sale", "t2"), False, "recorded", (SALE, "t2")),
    ([(LEAD, "t1")], ("rebill", "t2"), True, "recorded", (SALE, "t2")),
    ([(LEAD, "")], ("rebill", "t2"), True, "recorded", (SALE, "t2")),
    ([(LEAD, "t1")], ("rebill", "t2"), False, "refused", None),
    ([(LEAD, "t1"), (REJECTED, "t2")], ("sale", ""), False, "refused", None),
    ([(LEAD, "t1"), (REJECTED, "t2")], ("sale", "t3"), False, "recorded", (SALE, "t3")),
    ([(SALE, "t1")], ("rejected", "t2"), True, "recorded", (REJECTED, "t2")),
    ([(SALE, "t1")], ("sale", "t2"), False, "refused", None),
    ([(SALE, "t1")], ("rejected", "t2"), False, "recorded", (REJECTED, "t2")),
    ([(LEAD, "t1")], ("rejected", "t2"), False, "recorded", (REJECTED, "t2")),
    ([(SALE, "t1"), (REBILL, "t2")], ("rejected", ""), True, "refused", None),
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


# The verdict of a further sale or rebill with a tid, by the settings for rebills.
@pytest.mark.parametrize(
    ("offer", "of_offer", "by_default", "verdict"),
    [
        (None, None, False, "refused"),
        (None, None, True, "recorded"),
        ("O1", None, False, "refused"),
        ("O1", None, True, "recorded"),
        ("O1", False, True, "refused"),
        ("O1", True, False, "recorded"),
    ],
)
def test_the_setting_counts_where_nothing_was_set_for_the_offer(
    offer: str | None, of_offer: bool | None, by_default: bool, verdict: str
) -> None:
    empty = a_click(allows_rebills=of_offer, offer=offer)
    click = a_click((SALE, "t1"), allows_rebills=of_offer, offer=offer)

    for word in ("sale", "rebill"):
        assert judged(a_postback(word, "t2"), click, allows_rebills=by_default).verdict == verdict
    first = judged(a_postback("rebill", "t2"), empty, allows_rebills=by_default)
    assert first.verdict == verdict


def a_click_worth(*sums: tuple[Status, str, str, str]) -> Click:
    """A click without rebills, its conversions of these statuses, tids, amounts and currencies."""
    return a_click()._replace(
        conversions=tuple(
            Conversion(number, tid, status, Decimal(amount), currency)
            for number, (status, tid, amount, currency) in enumerate(sums, start=1)
        )
    )


SALE_OF_TEN, REBILL_OF_FIVE = (SALE, "t1", "10", "USD"), (REBILL, "t2", "5", "USD")

# The conversions, the postback (word, tid, amount, currency) -> verdict, rule, status and tid of
# the changed or new conversion.
REFUNDS = [
    ([SALE_OF_TEN], ("sale", "t1", "-10", "USD"), "updated", Rule.REFUND, (REJECTED, "t1")),
    ([SALE_OF_TEN], ("sale", "", "-10", "USD"), "updated", Rule.REFUND, (REJECTED, "t1")),
    ([SALE_OF_TEN], ("sale", "r1", "-10", "USD"), "updated", Rule.REFUND, (REJECTED, "t1")),
    ([SALE_OF_TEN], ("rebill", "r1", "-10", "USD"), "updated", Rule.REFUND, (REJECTED, "t1")),
    ([SALE_OF_TEN], ("rejected", "r1", "-10", "USD"), "updated", Rule.REFUND, (REJECTED, "t1")),
    ([SALE_OF_TEN], ("rejected", "t1", "-10", "USD"), "updated", Rule.REFUND, (REJECTED, "t1")),
    (
        [SALE_OF_TEN, REBILL_OF_FIVE],
        ("sale", "", "-5", "USD"),
        "updated",
        Rule.REFUND,
        (REJECTED, "t2"),
    ),
    (
        [SALE_OF_TEN, REBILL_OF_FIVE],
        ("sale", "r1", "-10", "USD"),
        "updated",
        Rule.REFUND,
        (REJECTED, "t1"),
    ),
    # The conversion's tid decides, even where two are worth the same.
    (
        [SALE_OF_TEN, (REBILL, "t2", "10", "USD")],
        ("sale", "t2", "-10", "USD"),
        "updated",
        Rule.REFUND,
        (REJECTED, "t2"),
    ),
    # Two are worth the same, and the tid is of neither: a correction lowers the revenue as much.
    (
        [SALE_OF_TEN, (REBILL, "t2", "10", "USD")],
        ("sale", "r1", "-10", "USD"),
        "recorded",
        Rule.CORRECTION,
        (REBILL, "r1"),
    ),
    (
        [SALE_OF_TEN, (REBILL, "t2", "10", "USD")],
        ("rejected", "r1", "-10", "USD"),
        "recorded",
        Rule.REJECTED_FIRST,
        (REJECTED, "r1"),
    ),
    # A correction of nothing is a rebill of nothing.
    ([], ("rebill", "r1", "-4", "USD"), "refused", Rule.FIRST_REBILL, None),
    # Another currency or amount, or a conversion that is no money, is not what was paid.
    ([SALE_OF_TEN], ("sale", "r1", "-10", "EUR"), "recorded", Rule.CORRECTION, (REBILL, "r1")),
    ([SALE_OF_TEN], ("sale", "r1", "-10", None), "recorded", Rule.CORRECTION, (REBILL, "r1")),
    ([SALE_OF_TEN], ("rebill", "r1", "-4", "USD"), "recorded", Rule.CORRECTION, (REBILL, "r1")),
    ([SALE_OF_TEN], ("sale", "r1", "10", "USD"), "refused", Rule.ANYTHING_ELSE, None),
    (
        [(LEAD, "t1", "10", "USD")],
        ("rejected", "r1", "-10", "USD"),
        "recorded",
        Rule.REJECTED_FIRST,
        (REJECTED, "r1"),
    ),
    (
        [(REJECTED, "t1", "10", "USD")],
        ("sale", "t1", "-10", "USD"),
        "refused",
        Rule.FORBIDDEN,
        None,
    ),
    ([SALE_OF_TEN], ("sale", "t1", "-4", "USD"), "repeated", Rule.REPEATED, None),
    # A refund with the tid of one conversion is not another one's refund.
    (
        [SALE_OF_TEN, REBILL_OF_FIVE],
        ("sale", "t1", "-5", "USD"),
        "repeated",
        Rule.REPEATED,
        None,
    ),
    ([SALE_OF_TEN, REBILL_OF_FIVE], ("sale", "", "-4", "USD"), "refused", Rule.ANYTHING_ELSE, None),
    # A partial refund with the conversion's tid rejects all of it.
    ([SALE_OF_TEN], ("rejected", "t1", "-4", "USD"), "updated", Rule.TAKEN_BACK, (REJECTED, "t1")),
]


@pytest.mark.parametrize(("stands", "comes", "verdict", "rule", "left_with"), REFUNDS)
def test_a_negative_amount_takes_back_the_one_it_equals_and_else_corrects(
    stands: list[tuple[Status, str, str, str]],
    comes: tuple[str, str, str, str | None],
    verdict: str,
    rule: Rule,
    left_with: tuple[Status, str] | None,
) -> None:
    word, tid, amount, currency = comes

    decision = judged(
        a_postback(word, tid, amount=Decimal(amount), currency=currency), a_click_worth(*stands)
    )

    assert (decision.verdict, decision.rule) == (verdict, rule)
    assert (decision.change and (decision.change.status, decision.change.tid)) == left_with
    assert decision.change is None or decision.change.takes_amount is (verdict == "recorded")
    # Negative amounts that lower no revenue add a warning.
    is_idle = word == "rejected" and rule is not Rule.REFUND
    assert bool(decision.warnings) is is_idle


def test_a_refund_names_what_it_takes_back() -> None:
    refund = a_postback("sale", "r1", amount=-TEN)

    decision = judged(refund, a_click_worth(SALE_OF_TEN))

    detail = "from sale to rejected: -10 USD takes the conversion with tid 't1' back"
    assert decision.reason.detail == detail


@pytest.mark.parametrize("word", ["sale", "rebill", "rejected"])
@pytest.mark.parametrize(
    "stands",
    [
        [(REJECTED, "t1", "10", "USD")],
        [(REJECTED, "t1", "10", "USD"), (REBILL, "t2", "10", "USD")],
        [(REJECTED, "t1", "10", "USD"), (REBILL, "t2", "3", "USD")],
    ],
)
@pytest.mark.parametrize("allows_rebills", [True, False])
def test_a_refund_that_took_something_back_takes_nothing_more(
    stands: list[tuple[Status, str, str, str]], word: str, allows_rebills: bool
) -> None:
    click = a_click_worth(*stands)._replace(allows_rebills=allows_rebills)
    refund = a_postback(word, "r1", amount=-TEN)

    first = judge(refund, click, Policy())
    again = judge(refund, click, Policy(), Past(was_sent=True, took_back=True))

    assert first.hinges_on_past or first.change is None
    assert again.change is None
    assert again.verdict in {Verdict.REPEATED, Verdict.REFUSED}


def test_a_positive_sale_under_a_refunds_tid_is_no_refund() -> None:
    click = a_click_worth((REJECTED, "t1", "10", "USD"))

    decision = judge(a_postback("sale", "r1", amount=TEN), click, Policy(), Past(took_back=True))

    assert decision.verdict is Verdict.RECORDED


def test_what_was_refused_beside_a_sale_stays_refused_once_that_is_rejected() -> None:
    click = a_click((REJECTED, "t1"))
    sale = a_postback("sale", "t2")

    assert judge(sale, click, Policy()).hinges_on_past
    assert judge(sale, click, Policy(), Past()).verdict is Verdict.RECORDED
    again = judge(sale, click, Policy(), Past(was_sent=True, was_overtaken=True))
    assert (again.verdict, again.change) == (Verdict.REFUSED, None)
    assert "refused before" in again.reason.summary


# The conversion before its rejection, the other conversions -> its status after the late sale.
@pytest.mark.parametrize(
    ("previous", "others", "word", "status"),
    [
        (SALE, [], "sale", SALE),
        (LEAD, [], "sale", SALE),
        (None, [], "sale", SALE),
        (SALE, [], "rebill", SALE),
        (REBILL, [], "sale", REBILL),
        (REBILL, [(SALE, "t2")], "sale", REBILL),
        (REBILL, [(SALE, "t2")], "rebill", REBILL),
        (SALE, [(REBILL, "t2")], "sale", SALE),
        (SALE, [(SALE, "t2")], "sale", REBILL),
        (None, [(SALE, "t2")], "sale", REBILL),
    ],
)
def test_unreject_makes_a_rejected_conversion_money_again(
    previous: Status | None, others: list[tuple[Status, str]], word: str, status: Status
) -> None:
    click = a_click((REJECTED, "t1"), *others)
    rejected, *rest = click.conversions
    click = click._replace(conversions=(rejected._replace(previous_status=previous), *rest))
    comes = a_postback(word, "t1", amount=Decimal(12))

    decision = judged(comes, click, unrejects=True)

    assert decision.verdict is Verdict.UPDATED
    assert decision.rule is Rule.UNREJECTED
    assert decision.hinges_on_past
    assert decision.change is not None
    assert (decision.change.status, decision.change.takes_amount) == (status, True)
    overtaken = judge(comes, click, Policy(unrejects=True), Past(was_overtaken=True))
    assert (overtaken.verdict, overtaken.change) == (Verdict.REFUSED, None)
    assert judged(comes, click).verdict is Verdict.REFUSED


@pytest.mark.parametrize(("word", "amount"), [("lead", TEN), ("sale", -TEN), ("rebill", -TEN)])
def test_unreject_takes_neither_leads_nor_refunds(word: str, amount: Decimal) -> None:
    click = a_click((REJECTED, "t1"))

    decision = judged(a_postback(word, "t1", amount=amount), click, unrejects=True)

    assert (decision.verdict, decision.rule) == (Verdict.REFUSED, Rule.FORBIDDEN)


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
        (SALE, {"cost": Decimal(3)}, False, "updated", "filled in: cost 3 USD was unknown"),
        (
            SALE,
            {"amount": Decimal(-4)},
            True,
            "repeated",
            "needs a transaction id (tid) of its own",
        ),
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
    is_left = verdict == "repeated" and " was " in decision.reason.detail
    is_mendable = is_left and not policy and present is not REJECTED
    assert ('repeats = "update"' in decision.reason.detail) is is_mendable


def a_gap(status: Status = SALE, **known: Any) -> Click:
    """A click with one conversion t1, with only the given values known."""
    return a_click()._replace(conversions=(Conversion(1, "t1", status, **known),))


# The known values, the postback -> the filled in values (amount, cost, sub ids), or None.
FILLS = [
    ({}, {"amount": TEN}, (True, False, {})),
    ({}, {"amount": Decimal(0)}, (True, False, {})),
    ({"amount": TEN}, {"amount": TEN}, (True, False, {})),
    ({"amount": TEN, "currency": "USD"}, {"cost": TEN}, (False, True, {})),
    ({"cost": TEN}, {"cost": TEN}, (False, True, {})),
    ({}, {"amount": TEN, "cost": TEN}, (True, True, {})),
    ({}, {"sub_ids": {"sub_id_1": "a"}}, (False, False, {"sub_id_1": "a"})),
    (
        {"sub_ids": {"sub_id_1": "a", "sub_id_2": ""}},
        {"sub_ids": {"sub_id_1": "b", "sub_id_2": "c", "sub_id_3": "d"}},
        (False, False, {"sub_id_2": "c", "sub_id_3": "d"}),
    ),
    # Beside a known amount that differs, and stays.
    (
        {"amount": TEN, "currency": "USD"},
        {"amount": Decimal(12), "cost": TEN},
        (False, True, {}),
    ),
    # An amount that nobody could book fills nothing.
    ({}, {"amount": TEN, "currency": None}, None),
    ({"amount": TEN}, {"amount": TEN, "currency": None}, None),
    ({"amount": TEN}, {"amount": Decimal(12)}, None),
    ({"sub_ids": {"sub_id_1": "a"}}, {"sub_ids": {"sub_id_1": "b"}}, None),
    ({}, {}, None),
    # A negative amount is about the sale, and not what it was worth.
    ({}, {"amount": -TEN}, None),
]


@pytest.mark.parametrize("updates", [True, False])
@pytest.mark.parametrize(("known", "said", "filled"), FILLS)
def test_a_repeat_fills_in_what_was_unknown(
    known: dict[str, Any],
    said: dict[str, Any],
    filled: tuple[bool, bool, dict[str, str]] | None,
    updates: bool,
) -> None:
    decision = judged(a_postback("sale", "t1", **said), a_gap(**known), updates_on_repeat=updates)

    if updates and "amount" in known and said.get("amount") == 12:
        return  # Stored, because of `repeats = update`.
    change = decision.change
    assert (decision.verdict is Verdict.UPDATED) is (filled is not None)
    assert (change and (change.takes_amount, change.takes_cost, change.sub_ids)) == filled
    if change is not None:
        assert change.fills
        assert (change.status, change.tid) == (SALE, "t1")
        assert decision.reason.detail.startswith("already sale; filled in: ")


def test_what_is_left_alone_beside_what_is_filled_in_is_reported() -> None:
    click = a_gap(amount=TEN, currency="USD")

    decision = judged(a_postback("sale", "t1", amount=Decimal(12), cost=TEN), click)

    told = "already sale; filled in: cost 10 USD was unknown; left alone: amount 12 USD was 10 USD"
    assert decision.reason.detail == told


def test_a_correction_whose_amount_was_unreadable_may_be_negative() -> None:
    decision = judged(a_postback("sale", "t1", amount=-TEN), a_gap(REBILL))

    assert decision.change is not None
    assert decision.change.takes_amount


@pytest.mark.parametrize(
    ("status", "past"),
    [
        (REJECTED, Past(was_sent=True)),
        (SALE, Past(was_sent=True, was_overtaken=True)),
    ],
)
def test_what_came_before_and_was_not_taken_fills_nothing_in(status: Status, past: Past) -> None:
    comes = a_postback(status.value, "t1", amount=TEN)

    assert judge(comes, a_gap(status), Policy()).hinges_on_past
    assert judge(comes, a_gap(status), Policy(), Past()).verdict is Verdict.UPDATED
    assert judge(comes, a_gap(status), Policy(), past).verdict is Verdict.REPEATED


@pytest.mark.parametrize(
    ("known", "replaced"),
    [("10", False), ("0", False), ("-3", True)],
)
def test_repeats_update_puts_no_negative_amount_in_the_place_of_a_positive(
    known: str, replaced: bool
) -> None:
    click = a_gap(REBILL, amount=Decimal(known), currency="USD")

    comes = a_postback("rebill", "t1", amount=Decimal(-4))
    decision = judged(comes, click, updates_on_repeat=True)

    assert (decision.change is not None) is replaced


@pytest.mark.parametrize(
    ("amount", "cost", "warned"),
    [
        (Decimal(12), None, ["amount 12 (currency unknown) is not taken: the conversion keeps"]),
        (None, Decimal(2), ["cost 2 (currency unknown) is not taken: the conversion keeps"]),
        (None, None, []),
    ],
)
def test_a_move_keeps_what_stands_where_the_currency_is_unknown(
    amount: Decimal | None, cost: Decimal | None, warned: list[str]
) -> None:
    comes = a_postback("sale", "t1", amount=amount, cost=cost, currency=None)

    decision = judged(comes, a_click((LEAD, "t1")))

    assert decision.change is not None
    assert not decision.change.takes_amount
    assert not decision.change.takes_cost
    assert len(decision.warnings) == len(warned)
    assert all(told.startswith(said) for told, said in zip(decision.warnings, warned, strict=True))


# The conversion, the postback -> the forced status, and the reason; None: not forced.
FORCED = [
    (SALE, "lead", {}, LEAD, "forced: from sale to lead"),
    (REJECTED, "sale", {}, SALE, "forced: from rejected to sale"),
    (REJECTED, "lead", {}, LEAD, "forced: from rejected to lead"),
    (REJECTED, "rebill", {}, REBILL, "forced: from rejected to rebill"),
    (SALE, "rebill", {}, REBILL, "forced: from sale to rebill"),
    (REBILL, "sale", {}, SALE, "forced: from rebill to sale"),
    (LEAD, "rebill", {}, REBILL, "forced: from lead to rebill"),
    (
        SALE,
        "rejected",
        {"amount": Decimal(4)},
        REJECTED,
        "forced: from sale to rejected, amount 4 USD was 10 USD",
    ),
    (
        SALE,
        "sale",
        {"amount": Decimal(4), "cost": TEN},
        SALE,
        "forced: from sale to sale, amount 4 USD was 10 USD, cost 10 USD was unknown",
    ),
    (SALE, "sale", {"amount": Decimal(-4)}, SALE, "forced: from sale to sale, amount -4 USD was"),
    (REJECTED, "rejected", {"amount": Decimal(4)}, REJECTED, "forced: from rejected to rejected"),
    (SALE, "rejected", {}, None, "from sale to rejected"),
    (LEAD, "sale", {"amount": Decimal(4)}, None, "from lead to sale"),
    (SALE, "sale", {"amount": TEN}, None, "nothing changed"),
    (SALE, "sale", {"cost": TEN}, None, "filled in"),
    (SALE, "sale", {"amount": -TEN}, None, "-10 USD takes the conversion"),
]


@pytest.mark.parametrize(("stands", "word", "said", "forced_to", "detail"), FORCED)
def test_an_operator_may_force_any_move_and_only_what_is_forced_says_so(
    stands: Status, word: str, said: dict[str, Any], forced_to: Status | None, detail: str
) -> None:
    decision = judged(a_postback(word, "t1", **said), a_click((stands, "t1")), forces=True)

    assert decision.reason.detail.startswith(detail) or detail in decision.reason.detail
    assert (decision.rule is Rule.FORCED) is (forced_to is not None)
    if forced_to is not None:
        assert decision.verdict is Verdict.UPDATED
        assert decision.change is not None
        assert decision.change.status is forced_to


def test_a_cost_may_be_forced_beside_an_amount_that_is_filled_in() -> None:
    click = a_gap(cost=TEN, cost_currency="USD")
    comes = a_postback("sale", "t1", amount=TEN, cost=Decimal(4))

    decision = judged(comes, click, forces=True)

    assert decision.rule is Rule.FORCED
    assert decision.change is not None
    assert (decision.change.takes_amount, decision.change.takes_cost) == (True, True)


def test_force_makes_no_conversion_that_the_rules_refuse() -> None:
    decision = judged(a_postback("sale", "t2"), a_click((SALE, "t1")), forces=True)

    assert (decision.verdict, decision.rule) == (Verdict.REFUSED, Rule.ANYTHING_ELSE)


def test_force_leaves_a_rebill_beside_a_sale_what_it_is() -> None:
    click = a_click((SALE, "t1"), (REBILL, "t2"))

    assert judged(a_postback("sale", "t2"), click, forces=True).verdict is Verdict.REPEATED


def test_force_overrules_what_came_before_but_takes_no_refund_twice() -> None:
    click = a_click((REJECTED, "t1"))
    sale, refund = a_postback("sale", "t2"), a_postback("sale", "r1", amount=-TEN)
    past = Past(was_sent=True, was_overtaken=True, took_back=True)

    assert judge(sale, click, Policy(forces=True), past).verdict is Verdict.RECORDED
    assert judge(refund, click, Policy(forces=True), past).verdict is Verdict.REPEATED


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


DELETED = Conversion(1, "t1", REJECTED, TEN, "USD", is_deleted=True, is_corrected=True)
DELETED_BARE = DELETED._replace(id=3, tid="")
LIVE = Conversion(2, "t2", SALE, Decimal(7), "USD")
LIVE_LEAD = Conversion(2, "t2", LEAD, Decimal(7), "USD")

# What stands, what comes, the verdict, and by which rule.
BESIDE_DELETED = [
    ([DELETED], ("sale", "t1", TEN), "refused", Rule.DELETED),
    ([DELETED], ("rejected", "t1", None), "refused", Rule.DELETED),
    ([DELETED], ("lead", "", None), "refused", Rule.DELETED),
    ([DELETED], ("sale", "r1", -TEN), "refused", Rule.DELETED),
    ([DELETED], ("rejected", "r1", -TEN), "refused", Rule.DELETED),
    ([DELETED], ("sale", "t3", TEN), "recorded", Rule.FIRST),
    ([DELETED], ("rebill", "t3", TEN), "refused", Rule.FIRST_REBILL),
    ([DELETED, LIVE], ("sale", "t1", TEN), "refused", Rule.DELETED),
    ([DELETED, LIVE], ("rejected", "", None), "updated", Rule.TAKEN_BACK),
    ([DELETED, LIVE], ("sale", "r1", -TEN), "refused", Rule.DELETED),
    ([DELETED, LIVE], ("sale", "r1", Decimal(-7)), "updated", Rule.REFUND),
    ([DELETED, LIVE], ("sale", "t2", -TEN), "repeated", Rule.REPEATED),
    ([DELETED, LIVE], ("sale", "r1", Decimal(-3)), "recorded", Rule.CORRECTION),
    ([DELETED, LIVE_LEAD], ("sale", "", Decimal(9)), "updated", Rule.LEAD_MOVES),
    ([DELETED_BARE, LIVE_LEAD], ("sale", "", Decimal(9)), "refused", Rule.DELETED),
    ([DELETED, LIVE_LEAD._replace(tid="")], ("sale", "t3", TEN), "updated", Rule.LATE_TID),
]


@pytest.mark.parametrize(("stands", "comes", "verdict", "rule"), BESIDE_DELETED)
def test_a_deleted_conversion_is_final_and_in_no_other_s_way(
    stands: list[Conversion], comes: tuple[str, str, Decimal | None], verdict: str, rule: Rule
) -> None:
    word, tid, amount = comes
    click = Click("O1", allows_rebills=False, conversions=tuple(stands))

    decision = judged(a_postback(word, tid, amount=amount), click, unrejects=True)

    assert (decision.verdict, decision.rule) == (verdict, rule), decision.reason


# Properties

words = st.sampled_from([None, "lead", "sale", "rejected", "rebill", "approved", "x", ""])
tids = st.sampled_from(["", "t1", "t2", "t3"])
amounts = st.sampled_from([None, TEN, Decimal("0.000001"), Decimal(-5)])
currencies = st.sampled_from([None, "USD", "EUR"])
word_sets = st.frozensets(st.sampled_from(["approved", "x", "sale", "lead"]), max_size=2)
lists = st.builds(WordLists, word_sets, word_sets, word_sets, word_sets, word_sets)
sub_ids = st.dictionaries(st.sampled_from(["sub_id_1", "sub_id_2"]), st.sampled_from(["a", "b"]))
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
    sub_ids=sub_ids,
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
    previous_status=st.none() | st.sampled_from(Status),
    sub_ids=sub_ids,
    is_deleted=st.booleans(),
    is_corrected=st.booleans(),
).map(lambda c: c._replace(status=REJECTED) if c.is_deleted else c)
clicks = st.none() | st.builds(
    Click,
    offer=st.none() | st.just("O1"),
    allows_rebills=st.none() | st.booleans(),
    cost_model=st.none() | st.sampled_from(COST_MODELS),
    conversions=st.lists(conversions, max_size=4, unique_by=lambda c: c.tid).map(tuple),
)
policies = st.builds(Policy, *[st.booleans()] * len(Policy._fields))
pasts = st.none() | st.builds(Past, *[st.booleans()] * len(Past._fields))


@given(postbacks, clicks, policies, pasts)
def test_any_postback_on_any_click_gets_one_decision_and_the_same_one_again(
    incoming: Incoming, click: Click | None, policy: Policy, past: Past | None
) -> None:
    decision = judge(incoming, click, policy, past)

    assert decision == judge(incoming, click, policy, past)
    assert decision == judge(incoming, click, policy, past or Past())
    assert decision.change is not None or not decision.hinges_on_past
    assert decision.reason.summary.isascii()
    assert decision.reason.summary.isprintable()
    assert len(decision.reason.summary) <= 200
    changes = decision.verdict in {Verdict.RECORDED, Verdict.UPDATED}
    assert (decision.change is not None) is changes


@given(postbacks, clicks, policies, pasts)
def test_what_an_operator_did_is_undone_by_nothing_that_came_before_it(
    incoming: Incoming, click: Click | None, policy: Policy, past: Past | None
) -> None:
    change = judge(incoming, click, policy, past).change

    if change is not None and change.conversion is not None:
        assert not change.conversion.is_deleted
        is_corrected = change.conversion.is_corrected and not policy.forces
        assert not (is_corrected and past is not None and past.was_corrected)
    taken = () if click is None else [c.tid for c in click.conversions if c.is_deleted]
    assert change is None or change.conversion is not None or change.tid not in taken


@given(postbacks, clicks, policies, pasts)
def test_the_past_takes_changes_away_and_brings_none(
    incoming: Incoming, click: Click | None, policy: Policy, past: Past
) -> None:
    conversions = () if click is None else click.conversions
    if all(conversion.status is not Status.REJECTED for conversion in conversions):
        # A conversion that was taken back is rejected: there is no other past.
        past = past._replace(took_back=False) if past else past
    decision = judge(incoming, click, policy)

    then = judge(incoming, click, policy, past)

    if not decision.hinges_on_past:
        assert then == decision
    assert then.change is None or decision.change is not None


@given(postbacks, clicks, policies, pasts)
def test_nothing_but_the_documented_moves_changes_a_conversion(
    incoming: Incoming, click: Click | None, policy: Policy, past: Past | None
) -> None:
    decision = judge(incoming, click, policy, past)

    change = decision.change
    if change is None or change.conversion is None:
        return
    before = change.conversion
    assert click is not None
    assert before in click.conversions
    if decision.rule is Rule.FORCED:
        assert policy.forces
    elif change.status is before.status:
        assert change.fills or (policy.updates_on_repeat and before.status is not REJECTED)
    elif decision.rule is Rule.UNREJECTED:
        assert policy.unrejects
        assert (before.status, change.status in {SALE, REBILL}) == (REJECTED, True)
    else:
        assert change.status in TRANSITIONS[before.status]
    if change.tid != before.tid:
        assert (before.tid, before.status, len(click.conversions)) == ("", LEAD, 1)


@given(postbacks, clicks, pasts)
def test_a_repeat_takes_nothing_away_that_is_known(
    incoming: Incoming, click: Click | None, past: Past | None
) -> None:
    change = judge(incoming, click, Policy(), past).change

    if click is None or change is None or change.conversion is None or not change.fills:
        return
    before = change.conversion
    [after] = [c for c in apply(click, incoming, change).conversions if c.id == before.id]
    for name, known in before._asdict().items():
        assert name == "sub_ids" or known is None or getattr(after, name) == known
    assert all(after.sub_ids[name] == value for name, value in before.sub_ids.items() if value)


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
        previous_status=kept.status if change.status is not kept.status else kept.previous_status,
        sub_ids={**kept.sub_ids, **change.sub_ids},
    )
    if change.conversion is None:
        return click._replace(conversions=(*click.conversions, changed))
    return click._replace(
        conversions=tuple(changed if c.id == kept.id else c for c in click.conversions)
    )


class Log:
    """A click, the results of its postbacks so far, and the past in the postback log."""

    def __init__(self, click: Click, policy: Policy) -> None:
        """Begin with a click and no postback."""
        self.click = click
        self.policy = policy
        self.rows: list[tuple[Incoming, Decision]] = []
        # By conversion: the number of postbacks before its last change.
        self.became_at: dict[int, int] = {}
        self.unrejected: set[int] = set()

    def judge(self, incoming: Incoming) -> Decision:
        """Decide, with the past where the decision depends on it."""
        decision = judge(incoming, self.click, self.policy)
        if decision.hinges_on_past:
            past = self.find_past(incoming, decision.conversion)
            decision = judge(incoming, self.click, self.policy, past)
        return decision

    def find_past(self, incoming: Incoming, this: Conversion | None) -> Past:
        """Describe what has come before, as the storage does."""
        same = [at for at, (sent, _) in enumerate(self.rows) if sent == incoming]
        rejected = {c.id for c in self.click.conversions if c.status is REJECTED}
        asked = rejected if this is None else {this.id}
        became_at = max((self.became_at[number] for number in asked), default=-1)
        return Past(
            was_sent=bool(same),
            was_overtaken=any(at < became_at for at in same),
            took_back=any(
                came.verdict is Verdict.UPDATED
                and came.conversion is not None
                and came.conversion.id in rejected
                for sent, came in self.rows
                if sent == incoming or sent.tid == incoming.tid != ""
            ),
        )

    def send(self, incoming: Incoming) -> Decision:
        """Decide, make the change, and record it."""
        decision = self.judge(incoming)
        change = decision.change
        before = {c.id: c for c in self.click.conversions}
        self.click = apply(self.click, incoming, change)
        for now in self.click.conversions:
            was = before.get(now.id)
            if was is None or state_of(was) != state_of(now):
                self.became_at[now.id] = len(self.rows)
            if was is not None and was.status is REJECTED is not now.status:
                self.unrejected.add(now.id)
        self.rows.append((incoming, decision))
        return decision


def state_of(conversion: Conversion) -> tuple[object, ...]:
    """Return what a conversion is: rejected, or a lead or money of an amount."""
    if conversion.status is REJECTED:
        return (REJECTED,)
    return (conversion.status is LEAD, conversion.amount, conversion.currency)


sent_amounts = st.sampled_from([None, TEN, Decimal(5), -TEN, Decimal(-5)])
streams = st.lists(
    st.builds(
        Incoming,
        subid=st.just("c1"),
        word=words,
        tid=tids,
        amount=sent_amounts,
        cost=st.sampled_from([None, Decimal(1), Decimal(2)]),
        currency=currencies,
        sub_ids=st.sampled_from([{}, {"sub_id_1": "a"}, {"sub_id_1": "b", "sub_id_2": "c"}]),
    ),
    min_size=1,
    max_size=12,
)
permissions = st.sampled_from([None, False, True])


@given(streams, permissions, st.booleans(), st.booleans(), st.data())
def test_sending_any_postback_again_at_any_later_point_changes_nothing(
    stream: list[Incoming],
    of_offer: bool | None,
    by_default: bool,
    unrejects: bool,
    data: st.DataObject,
) -> None:
    policy = Policy(allows_rebills=by_default, unrejects=unrejects)
    log = Log(Click("O1", of_offer), policy)

    for sent, incoming in enumerate(stream):
        log.send(incoming)
        again = data.draw(st.sampled_from(stream[: sent + 1]), label="sent again")
        change = log.judge(again).change
        if change is None:
            continue
        # The limit of the promise: an un-rejected conversion is rejected by the same words again.
        assert unrejects
        assert change.conversion is not None
        assert change.conversion.id in log.unrejected
        assert change.status is REJECTED


@given(streams, permissions, st.booleans())
def test_a_whole_stream_sent_again_changes_nothing(
    stream: list[Incoming], of_offer: bool | None, by_default: bool
) -> None:
    log = Log(Click("O1", of_offer), Policy(allows_rebills=by_default))
    for incoming in stream:
        log.send(incoming)
    before = log.click

    for incoming in [*stream, *reversed(stream)]:
        log.send(incoming)

    assert log.click == before


# The conversions, the postback, whether rebills are allowed -> the rule that decides.
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
    ([(REJECTED, "t1")], ("sale", "t2"), False, Rule.FIRST_SALE),
    ([(LEAD, "t1")], ("rebill", "t2"), True, Rule.FIRST_SALE),
    ([(SALE, "t1")], ("sale", "t2"), True, Rule.REBILL),
    ([(SALE, "t1")], ("rejected", "t2"), True, Rule.REJECTED_FIRST),
    ([(SALE, "t1")], ("rejected", "t2"), False, Rule.REJECTED_FIRST),
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
