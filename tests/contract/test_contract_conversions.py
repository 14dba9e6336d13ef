"""What a postback does to the conversions of its click (section 4 of the contract)."""

import json
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest
from conftest import NOON, POSTBACK_KEY, Client, Conversions, ReceiverWith
from hypothesis import given, settings
from hypothesis import strategies as st

REBILLS = True
NO_REBILLS = False


def words(postback: str, subid: str = "c1") -> str:
    """Write a short form as a query: `sale T1 5` is status, tid and payout, `-` for none."""
    fields = dict(zip(("status", "tid", "payout"), postback.split(), strict=False))
    return f"subid={subid}" + "".join(
        f"&{name}={value}" for name, value in fields.items() if value != "-"
    )


def prepare(client: Client, rebills: bool, standing: list[str]) -> None:
    """Make the click c1, with the conversions with which the test starts."""
    client.click("c1", offer="O1")
    client.allow_rebills("O1", int(rebills))
    for postback in standing:
        answer = client.send(words(postback))
        assert answer.verdict in {"recorded", "updated"}, (postback, answer.reason)


# One line for each case of a row of the table: whether the offer allows rebills, the earlier
# postbacks, the postback, its verdict, and the (tid, status) of every conversion after it.
MOVES = [
    # nothing for this click
    (NO_REBILLS, [], "lead", "recorded", [("", "lead")]),
    (NO_REBILLS, [], "sale", "recorded", [("", "sale")]),
    (NO_REBILLS, [], "rejected", "recorded", [("", "rejected")]),
    (NO_REBILLS, [], "lead T1", "recorded", [("T1", "lead")]),
    (NO_REBILLS, [], "sale T1", "recorded", [("T1", "sale")]),
    (REBILLS, [], "rejected T1", "recorded", [("T1", "rejected")]),
    (REBILLS, [], "rebill T1", "recorded", [("T1", "rebill")]),
    (REBILLS, [], "rebill", "refused", []),
    (NO_REBILLS, [], "rebill T1", "refused", []),
    (NO_REBILLS, [], "rebill", "refused", []),
    # the click's only conversion is a lead without tid, and a tid comes
    (NO_REBILLS, ["lead"], "sale T1", "updated", [("T1", "sale")]),
    (NO_REBILLS, ["lead"], "rejected T1", "updated", [("T1", "rejected")]),
    (REBILLS, ["lead"], "sale T1", "updated", [("T1", "sale")]),
    (REBILLS, ["lead"], "rejected T1", "updated", [("T1", "rejected")]),
    (NO_REBILLS, ["lead"], "lead T1", "refused", [("", "lead")]),
    (REBILLS, ["lead"], "lead T1", "refused", [("", "lead")]),
    (NO_REBILLS, ["lead"], "rebill T1", "refused", [("", "lead")]),
    (REBILLS, ["lead"], "rebill T1", "recorded", [("", "lead"), ("T1", "sale")]),
    # none with this tid, and there is no sale or rebill: the click's first sale
    (NO_REBILLS, ["lead T1"], "sale T2", "recorded", [("T1", "lead"), ("T2", "sale")]),
    (NO_REBILLS, ["rejected"], "sale T2", "recorded", [("", "rejected"), ("T2", "sale")]),
    (NO_REBILLS, ["rejected T1"], "sale T2", "recorded", [("T1", "rejected"), ("T2", "sale")]),
    (
        NO_REBILLS,
        ["sale T1", "rejected T1"],
        "sale T2",
        "recorded",
        [("T1", "rejected"), ("T2", "sale")],
    ),
    (
        NO_REBILLS,
        ["lead T1", "rejected T2"],
        "sale T3",
        "recorded",
        [("T1", "lead"), ("T2", "rejected"), ("T3", "sale")],
    ),
    (NO_REBILLS, ["lead T1"], "sale T2 -5", "recorded", [("T1", "lead"), ("T2", "sale")]),
    (REBILLS, ["lead T1"], "sale T2", "recorded", [("T1", "lead"), ("T2", "sale")]),
    (REBILLS, ["lead T1"], "rebill T2", "recorded", [("T1", "lead"), ("T2", "sale")]),
    (REBILLS, ["rejected T1"], "sale T2", "recorded", [("T1", "rejected"), ("T2", "sale")]),
    (REBILLS, ["rejected"], "rebill T2", "recorded", [("", "rejected"), ("T2", "sale")]),
    # the opposite amount of the one sale or rebill: it is taken back
    (NO_REBILLS, ["sale T1 9"], "sale T1 -9", "updated", [("T1", "rejected")]),
    (NO_REBILLS, ["sale T1 9"], "sale - -9", "updated", [("T1", "rejected")]),
    (NO_REBILLS, ["sale - 9"], "sale R1 -9", "updated", [("", "rejected")]),
    (NO_REBILLS, ["sale T1 9"], "rebill R1 -9", "updated", [("T1", "rejected")]),
    (NO_REBILLS, ["sale T1 9"], "rejected R1 -9.0", "updated", [("T1", "rejected")]),
    (
        REBILLS,
        ["sale T1 9", "sale T2 3"],
        "rejected R1 -3",
        "updated",
        [("T1", "sale"), ("T2", "rejected")],
    ),
    (
        REBILLS,
        ["sale T1 9", "sale T2 9"],
        "sale R1 -9",
        "recorded",
        [("T1", "sale"), ("T2", "rebill"), ("R1", "rebill")],
    ),
    # this conversion is a lead
    (NO_REBILLS, ["lead"], "sale", "updated", [("", "sale")]),
    (NO_REBILLS, ["lead"], "rejected", "updated", [("", "rejected")]),
    (NO_REBILLS, ["lead T1"], "sale T1", "updated", [("T1", "sale")]),
    (NO_REBILLS, ["lead T1"], "rejected T1", "updated", [("T1", "rejected")]),
    (NO_REBILLS, ["lead T1"], "sale", "updated", [("T1", "sale")]),
    (NO_REBILLS, ["lead T1"], "rejected", "updated", [("T1", "rejected")]),
    (REBILLS, ["lead", "rebill T2"], "sale", "updated", [("", "sale"), ("T2", "sale")]),
    # this conversion is a sale or a rebill, and is rejected
    (NO_REBILLS, ["sale"], "rejected", "updated", [("", "rejected")]),
    (NO_REBILLS, ["sale T1"], "rejected T1", "updated", [("T1", "rejected")]),
    (NO_REBILLS, ["sale T1"], "rejected", "updated", [("T1", "rejected")]),
    (REBILLS, ["rebill T1"], "rejected T1", "updated", [("T1", "rejected")]),
    (REBILLS, ["rebill T1"], "rejected", "updated", [("T1", "rejected")]),
    (
        REBILLS,
        ["sale T1", "sale T2"],
        "rejected T2",
        "updated",
        [("T1", "sale"), ("T2", "rejected")],
    ),
    (
        REBILLS,
        ["sale T1", "sale T2"],
        "rejected T1",
        "updated",
        [("T1", "rejected"), ("T2", "rebill")],
    ),
    (REBILLS, ["sale", "sale T2"], "rejected", "updated", [("", "rejected"), ("T2", "rebill")]),
    # this conversion has that status already
    (NO_REBILLS, ["lead"], "lead", "repeated", [("", "lead")]),
    (NO_REBILLS, ["lead T1"], "lead T1", "repeated", [("T1", "lead")]),
    (NO_REBILLS, ["lead T1"], "lead", "repeated", [("T1", "lead")]),
    (NO_REBILLS, ["sale"], "sale", "repeated", [("", "sale")]),
    (NO_REBILLS, ["sale T1"], "sale T1", "repeated", [("T1", "sale")]),
    (NO_REBILLS, ["sale T1"], "sale", "repeated", [("T1", "sale")]),
    (NO_REBILLS, ["rejected"], "rejected", "repeated", [("", "rejected")]),
    (NO_REBILLS, ["rejected T1"], "rejected", "repeated", [("T1", "rejected")]),
    (REBILLS, ["rebill T1"], "rebill T1", "repeated", [("T1", "rebill")]),
    (REBILLS, ["rebill T1"], "rebill", "repeated", [("T1", "rebill")]),
    (REBILLS, ["rebill T1"], "sale T1", "repeated", [("T1", "rebill")]),
    (REBILLS, ["rebill T1"], "sale", "repeated", [("T1", "rebill")]),
    (REBILLS, ["sale", "sale T2"], "sale T2", "repeated", [("", "sale"), ("T2", "rebill")]),
    (REBILLS, ["sale", "sale T2"], "sale", "repeated", [("", "sale"), ("T2", "rebill")]),
    # any other move of this conversion
    (NO_REBILLS, ["sale"], "lead", "refused", [("", "sale")]),
    (NO_REBILLS, ["sale T1"], "lead T1", "refused", [("T1", "sale")]),
    (REBILLS, ["sale T1"], "rebill T1", "refused", [("T1", "sale")]),
    (REBILLS, ["sale T1"], "rebill", "refused", [("T1", "sale")]),
    (REBILLS, ["lead T1"], "rebill T1", "refused", [("T1", "lead")]),
    (REBILLS, ["lead"], "rebill", "refused", [("", "lead")]),
    (REBILLS, ["rebill T1"], "lead T1", "refused", [("T1", "rebill")]),
    (NO_REBILLS, ["rejected"], "sale", "refused", [("", "rejected")]),
    (NO_REBILLS, ["rejected"], "lead", "refused", [("", "rejected")]),
    (NO_REBILLS, ["rejected T1"], "sale T1", "refused", [("T1", "rejected")]),
    (REBILLS, ["rejected T1"], "rebill T1", "refused", [("T1", "rejected")]),
    (NO_REBILLS, ["lead", "rejected"], "sale", "refused", [("", "rejected")]),
    (NO_REBILLS, ["sale", "rejected"], "lead", "refused", [("", "rejected")]),
    # another tid, and the offer allows rebills
    (REBILLS, ["sale T1"], "sale T2", "recorded", [("T1", "sale"), ("T2", "rebill")]),
    (REBILLS, ["sale T1"], "rebill T2", "recorded", [("T1", "sale"), ("T2", "rebill")]),
    (REBILLS, ["sale"], "sale T2", "recorded", [("", "sale"), ("T2", "rebill")]),
    (REBILLS, ["rebill T1"], "sale T2", "recorded", [("T1", "rebill"), ("T2", "rebill")]),
    (
        REBILLS,
        ["sale T1", "rejected T2"],
        "sale T2",
        "refused",
        [("T1", "sale"), ("T2", "rejected")],
    ),
    (
        REBILLS,
        ["sale T1", "sale T2"],
        "sale T3",
        "recorded",
        [("T1", "sale"), ("T2", "rebill"), ("T3", "rebill")],
    ),
    # a correction, whatever the offer says
    (NO_REBILLS, ["sale T1 9"], "sale C1 -2", "recorded", [("T1", "sale"), ("C1", "rebill")]),
    (NO_REBILLS, ["sale T1 9"], "rebill C1 -2", "recorded", [("T1", "sale"), ("C1", "rebill")]),
    (NO_REBILLS, ["sale - 9"], "sale C1 -2", "recorded", [("", "sale"), ("C1", "rebill")]),
    (REBILLS, ["sale T1 9"], "sale C1 -2", "recorded", [("T1", "sale"), ("C1", "rebill")]),
    # a rejection whose sale may come late, whatever the offer says
    (REBILLS, ["sale T1"], "rejected T2", "recorded", [("T1", "sale"), ("T2", "rejected")]),
    (REBILLS, ["lead T1"], "rejected T2", "recorded", [("T1", "lead"), ("T2", "rejected")]),
    (NO_REBILLS, ["sale T1"], "rejected T2", "recorded", [("T1", "sale"), ("T2", "rejected")]),
    (NO_REBILLS, ["lead T1"], "rejected T2", "recorded", [("T1", "lead"), ("T2", "rejected")]),
    (NO_REBILLS, ["sale"], "rejected T2", "recorded", [("", "sale"), ("T2", "rejected")]),
    # anything else
    (NO_REBILLS, ["sale T1"], "sale T2", "refused", [("T1", "sale")]),
    (NO_REBILLS, ["sale T1"], "rebill T2", "refused", [("T1", "sale")]),
    (NO_REBILLS, ["sale T1"], "lead T2", "refused", [("T1", "sale")]),
    (NO_REBILLS, ["lead T1"], "rebill T2", "refused", [("T1", "lead")]),
    (NO_REBILLS, ["sale"], "sale T2", "refused", [("", "sale")]),
    (NO_REBILLS, ["sale T1 9"], "sale - -2", "repeated", [("T1", "sale")]),
    (REBILLS, ["sale T1"], "lead T2", "refused", [("T1", "sale")]),
    (REBILLS, ["lead T1"], "lead T2", "refused", [("T1", "lead")]),
    *(
        (REBILLS, ["sale T1", "sale T2"], word, "refused", [("T1", "sale"), ("T2", "rebill")])
        for word in ("lead", "sale", "rejected", "rebill")
    ),
]


@pytest.mark.parametrize(("rebills", "standing", "comes", "verdict", "after"), MOVES)
def test_a_postback_moves_the_conversions_of_its_click(
    client: Client,
    rebills: bool,
    standing: list[str],
    comes: str,
    verdict: str,
    after: list[tuple[str, str]],
) -> None:
    prepare(client, rebills, standing)
    before = client.snapshot()
    changes = len(client.history("c1"))
    known = {c.id for c in client.conversions("c1")}

    answer = client.send(words(comes))

    held = client.conversions("c1")
    assert (answer.status, answer.verdict) == (200, verdict), answer.reason
    assert sorted((c.tid, c.status) for c in held) == sorted(after)
    logged = client.postbacks()[-1]
    assert logged.verdict == verdict
    if verdict in {"repeated", "refused"}:
        assert client.snapshot() == before
    else:
        assert len(client.history("c1")) == changes + 1
    if verdict == "recorded":
        assert {logged.conversion_id} == {c.id for c in held} - known
    elif verdict != "refused":
        assert logged.conversion_id in known


@pytest.mark.parametrize(
    ("rebills", "standing", "comes", "named"),
    [
        (NO_REBILLS, ["sale T1"], "sale T2", "rebill"),
        (NO_REBILLS, ["sale T1"], "rebill T2", "rebill"),
        (NO_REBILLS, [], "rebill T1", "rebill"),
        (REBILLS, ["sale T1", "sale T2"], "rejected", "no conversion with this transaction id"),
        (REBILLS, ["sale T1 9", "sale T2 5"], "sale - -2", "tid"),
        (REBILLS, [], "rebill", "tid"),
        (REBILLS, ["sale T1", "sale T2"], "sale", "tid"),
        (REBILLS, ["sale T1"], "lead T2", "lead"),
        (NO_REBILLS, ["sale T1"], "lead T1", "lead"),
        (NO_REBILLS, ["rejected"], "sale", "rejected"),
    ],
)
def test_a_refusal_names_the_condition_that_failed(
    client: Client, rebills: bool, standing: list[str], comes: str, named: str
) -> None:
    prepare(client, rebills, standing)

    answer = client.send(words(comes))

    logged = client.postbacks()[-1]
    assert answer.verdict == logged.verdict == "refused"
    assert named in (logged.reason or "").lower()


def test_a_refused_rebill_names_the_offer_in_the_log(client: Client) -> None:
    prepare(client, NO_REBILLS, ["sale T1"])

    client.send("subid=c1&status=rebill&tid=T2")

    assert "O1" in (client.postbacks()[-1].reason or "")


def test_a_click_without_an_offer_takes_no_rebills(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1&tid=T1")

    assert client.send("subid=c1&tid=T2").verdict == "refused"
    assert client.send("subid=c1&tid=T2&status=rebill").verdict == "refused"
    assert 'rebills = "yes"' in (client.postbacks()[-1].reason or "")


def test_offers_take_no_rebills_unless_told_so(client: Client) -> None:
    client.click("c1", offer="O1")
    client.send("subid=c1&tid=T1")

    refused = client.send("subid=c1&tid=T2")
    client.allow_rebills("O1")

    assert refused.verdict == "refused"
    assert client.send("subid=c1&tid=T2").verdict == "recorded"


@pytest.mark.parametrize(
    ("offer", "allowed", "verdict"),
    [("", None, "recorded"), ("O1", None, "recorded"), ("O1", 0, "refused"), ("O1", 1, "recorded")],
)
def test_the_config_may_allow_rebills_where_nothing_was_set(
    receiver_with: ReceiverWith, offer: str, allowed: int | None, verdict: str
) -> None:
    client = receiver_with(rebills="yes")
    client.click("c1", offer=offer)
    if allowed is not None:
        client.allow_rebills(offer, allowed)
    client.send("subid=c1&tid=T1")

    assert client.send("subid=c1&tid=T2").verdict == verdict
    assert client.send("subid=c1&tid=T3&status=rebill").verdict == verdict


def test_clicks_made_from_postbacks_follow_the_config_too(receiver_with: ReceiverWith) -> None:
    client = receiver_with(unknown_subid="accept", rebills="yes")

    verdicts = [
        client.send(f"subid={query}").verdict
        for query in ("c1&status=rebill&tid=T1", "c2&tid=T1", "c2&tid=T2")
    ]

    assert verdicts == ["recorded"] * 3
    assert [(c.tid, c.status) for c in client.conversions("c2")] == [
        ("T1", "sale"),
        ("T2", "rebill"),
    ]


def test_one_click_knows_nothing_of_the_conversions_of_another(client: Client) -> None:
    client.click("c1")
    client.click("c2")

    client.send("subid=c1&tid=T1&status=sale")
    client.send("subid=c2&tid=T1&status=lead")

    assert [(c.subid, c.status) for c in client.conversions()] == [("c1", "sale"), ("c2", "lead")]


# --- Amounts and dates of a move -------------------------------------------------------------


@pytest.mark.parametrize(
    ("standing", "comes", "amount"),
    [
        ("lead - 5", "sale - 7", "7"),
        ("lead - 5", "sale", "5"),
        ("lead - 5", "sale - 7,00", "5"),
        ("lead - 5", "sale - {payout}", "5"),
        ("lead - 5", "sale - 0", "0"),
        ("lead - 5", "sale T1 7", "7"),
        ("lead - 5", "sale T1", "5"),
        ("lead", "sale - 7", "7"),
        ("lead", "sale", None),
        ("lead - 5", "sale - -7", "-7"),
        ("lead - 5", "sale - 7&currency=null!", "5"),
        ("lead", "sale - 7&currency=null!", None),
        ("lead - 5", "rejected - 7", "5"),
        ("lead - 5", "rejected", "5"),
        ("lead - 5", "rejected T1 7", "5"),
        ("lead", "rejected - 7", None),
        ("sale - 5", "rejected - 7", "5"),
        ("sale - 5", "rejected - 0", "5"),
        ("sale - 5", "rejected - -5", "5"),
        ("sale - 5", "sale - -5", "5"),
    ],
)
def test_a_move_to_sale_takes_a_new_amount_and_a_rejection_keeps_the_old(
    client: Client, standing: str, comes: str, amount: str | None
) -> None:
    client.click("c1")
    client.send(words(standing))

    answer = client.send(words(comes))

    assert answer.verdict == "updated"
    assert [(c.amount, c.payout) for c in client.conversions("c1")] == [(amount, amount)]


def test_a_move_without_a_usable_currency_keeps_amount_rate_and_payout(client: Client) -> None:
    client.click("c1")
    client.write(
        "INSERT INTO rates (currency, day, source, rate, created_at)"
        " VALUES ('EUR', '2026-03-01', 'ecb', '1.25', '')"
    )
    client.send("subid=c1&status=lead&payout=8&currency=eur&cost=2")

    answer = client.send("subid=c1&status=sale&payout=9&currency=%3F%3F&cost=3")

    assert answer.verdict == "updated"
    [kept] = client.conversions("c1")
    assert (kept.status, kept.amount, kept.currency, kept.payout) == ("sale", "8", "EUR", "10")
    assert (kept.rate, kept.rate_day, kept.cost) == ("1.25", "2026-03-01", "2.5")
    told = client.postbacks()[-1].warnings
    assert any(w.startswith("amount 9 (currency unknown) is not taken") for w in told)
    assert any(w.startswith("cost 3 (currency unknown) is not taken") for w in told)


def test_the_previous_status_is_kept(client: Client) -> None:
    client.click("c1")

    seen: list[Any] = []
    for status in ("lead", "sale", "lead", "sale", "rejected"):
        client.send(f"subid=c1&status={status}")
        [kept] = client.conversions("c1")
        seen.append((kept.status, kept.previous_status))

    assert seen == [
        ("lead", None),
        ("sale", "lead"),
        ("sale", "lead"),
        ("sale", "lead"),
        ("rejected", "sale"),
    ]


def test_times_tell_when_each_thing_happened(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1&status=lead")
    client.clock.forward(hours=1)
    client.send("subid=c1&status=sale")
    client.clock.forward(hours=1)
    client.send("subid=c1&status=sale")
    client.clock.forward(hours=1)
    client.send("subid=c1&status=rejected")

    [kept] = client.conversions("c1")
    assert kept.created_at == NOON
    assert kept.sale_at == NOON + timedelta(hours=1)
    assert kept.updated_at == NOON + timedelta(hours=3)


def test_what_never_was_a_sale_has_no_time_of_sale(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1&status=lead")
    client.send("subid=c1&status=rejected")

    assert [c.sale_at for c in client.conversions("c1")] == [None]


def test_every_change_is_one_row_of_the_history_in_order(client: Client) -> None:
    client.click("c1")
    for query in ("status=lead&payout=5", "status=lead", "status=sale&tid=T1", "status=what"):
        client.send(f"subid=c1&{query}")
    client.send("subid=c1&status=lead")
    client.send("subid=c1&status=rejected")

    changes = client.history("c1")

    assert len(changes) == 3
    assert [row["seq"] for row in changes] == sorted({row["seq"] for row in changes})
    assert len({row["conversion_id"] for row in changes}) == 1


@pytest.mark.parametrize(("status", "verdict"), [("sale", "repeated"), ("lead", "refused")])
def test_cost_and_network_stay_with_a_postback_that_changes_nothing(
    client: Client, status: str, verdict: str
) -> None:
    client.click("c1")
    client.send("subid=c1&status=sale&cost=1&from=first")
    before = client.snapshot()

    answer = client.send(f"subid=c1&status={status}&cost=2&from=second")

    assert answer.verdict == verdict
    assert client.snapshot() == before


# --- Repeats ---------------------------------------------------------------------------------


def test_a_repeat_with_another_amount_says_so(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1&payout=5")

    same = client.send("subid=c1&payout=5.00")
    other = client.send("subid=c1&payout=7")

    assert same.verdict == other.verdict == "repeated"
    reasons = [p.reason or "" for p in client.postbacks()]
    assert "amount" in reasons[2] or "payout" in reasons[2]
    assert reasons[2] != reasons[1]
    assert [c.amount for c in client.conversions("c1")] == ["5"]


@pytest.mark.parametrize(
    ("standing", "comes", "verdict", "amount"),
    [
        ("sale T1 5", "sale T1 7", "updated", "7"),
        ("sale T1 5", "sale - 7", "updated", "7"),
        ("lead T1 5", "lead T1 7", "updated", "7"),
        ("lead T1", "lead T1 7", "updated", "7"),
        ("rebill T1 5", "rebill T1 7", "updated", "7"),
        ("rebill T1 5", "sale T1 7", "updated", "7"),
        ("sale T1 5", "sale T1 5.0", "repeated", "5"),
        ("sale T1 5", "sale T1", "repeated", "5"),
        ("sale T1 5", "sale T1 7pcs", "repeated", "5"),
        ("sale T1 5", "lead T1 7", "refused", "5"),
        ("rejected T1 5", "rejected T1 7", "repeated", "5"),
        ("rejected T1 5", "sale T1 7", "refused", "5"),
        ("sale T1 5", "sale T1 -7", "repeated", "5"),
        ("rebill T1 5", "rebill T1 -7", "repeated", "5"),
    ],
)
def test_repeats_may_be_told_to_take_a_new_amount_over(
    receiver_with: ReceiverWith, standing: str, comes: str, verdict: str, amount: str
) -> None:
    client = receiver_with(repeats="update")
    prepare(client, REBILLS, [standing])
    [before] = client.conversions("c1")
    changes = len(client.history("c1"))

    answer = client.send(words(comes))

    assert answer.verdict == verdict
    [after] = client.conversions("c1")
    assert (after.amount, after.payout) == (amount, amount)
    assert (after.status, after.previous_status) == (before.status, before.previous_status)
    assert len(client.history("c1")) == changes + (verdict == "updated")


@pytest.mark.parametrize(
    ("status", "verdict", "cost"), [("sale", "updated", "2"), ("rejected", "repeated", "1")]
)
def test_repeats_may_be_told_to_take_a_new_cost_over(
    receiver_with: ReceiverWith, status: str, verdict: str, cost: str
) -> None:
    client = receiver_with(repeats="update")
    client.click("c1")
    client.send(f"subid=c1&status={status}&cost=1&payout=5")

    answer = client.send(f"subid=c1&status={status}&cost=2")

    assert answer.verdict == verdict
    assert [(c.cost, c.amount) for c in client.conversions("c1")] == [(cost, "5")]
    assert client.send(f"subid=c1&status={status}&cost={cost}").verdict == "repeated"


BOTH = {"sub_id_1": "a", "sub_id_2": "c"}

# The conversion, the postback: the verdict, and the amount, payout, cost and sub ids after it.
GAPS = [
    ("", "payout=5", "updated", ("5", "5", None, {})),
    ("", "payout=0", "updated", ("0", "0", None, {})),
    ("payout={sum}", "payout=5", "updated", ("5", "5", None, {})),
    ("payout=5", "payout=5&cost=2", "updated", ("5", "5", "2", {})),
    ("payout=5", "payout=7&cost=2", "updated", ("5", "5", "2", {})),
    ("payout=5", "payout=5&sub_id_1=a", "updated", ("5", "5", None, {"sub_id_1": "a"})),
    ("sub_id_1=a", "sub_id_1=b&sub_id_2=c", "updated", (None, None, None, BOTH)),
    ("payout=5&currency=%3F", "payout=5", "updated", ("5", "5", None, {})),
    ("payout=5&currency=%3F", "payout=7", "repeated", ("5", None, None, {})),
    ("payout=5", "payout=5&currency=%3F", "repeated", ("5", "5", None, {})),
    ("", "payout=5&currency=%3F", "repeated", (None, None, None, {})),
    ("payout=5", "payout=7", "repeated", ("5", "5", None, {})),
    ("cost=1", "cost=2", "repeated", (None, None, "1", {})),
    ("sub_id_1=a", "sub_id_1=b", "repeated", (None, None, None, {"sub_id_1": "a"})),
    ("", "payout=-5", "repeated", (None, None, None, {})),
]


@pytest.mark.parametrize("status", ["lead", "sale", "rejected"])
@pytest.mark.parametrize(("stands", "comes", "verdict", "after"), GAPS)
def test_a_repeat_fills_in_what_was_unknown_and_nothing_else(
    client: Client,
    status: str,
    stands: str,
    comes: str,
    verdict: str,
    after: tuple[str | None, str | None, str | None, dict[str, str]],
) -> None:
    client.click("c1")
    client.send(f"subid=c1&status={status}&from=N1&{stands}")
    changes = len(client.history("c1"))

    answer = client.send(f"subid=c1&status={status}&from=N2&{comes}")

    assert answer.verdict == verdict
    [kept] = client.conversions("c1")
    assert (kept.amount, kept.payout, kept.cost, kept.sub_ids) == after
    assert (kept.status, kept.network) == (status, "N1")
    assert len(client.history("c1")) == changes + (verdict == "updated")
    assert client.send(f"subid=c1&status={status}&from=N2&{comes}").verdict == "repeated"


def test_another_rejection_with_the_same_tid_fills_in_what_the_first_left_open(
    client: Client,
) -> None:
    prepare(client, NO_REBILLS, ["sale T1", "rejected T1 5"])

    answers = [client.send(words(f"rejected T1 {amount}")).verdict for amount in ("5", "7", "7")]

    # The first is the rejection itself, which left the amount unknown.
    assert answers == ["repeated", "updated", "repeated"]
    assert [(c.status, c.amount) for c in client.conversions("c1")] == [("rejected", "7")]


def test_the_same_postback_fills_a_gap_that_a_setting_has_opened(
    receiver_with: ReceiverWith,
) -> None:
    strict = receiver_with()
    strict.click("c1")
    strict.send("subid=c1&payout=12,50")
    strict.receiver.close()
    client = receiver_with(directory=strict.directory, decimal_comma="yes")

    answer = client.send("subid=c1&payout=12,50")

    assert answer.verdict == "updated"
    assert [c.payout for c in client.conversions("c1")] == ["12.5"]


def test_a_click_gets_only_the_sub_ids_it_lacks_from_a_repeat(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1")
    client.click("c1", sub_id_1="later")

    client.send("subid=c1&sub_id_1=a&sub_id_2=b")

    [row] = client.rows("SELECT sub_ids FROM clicks")
    assert json.loads(row["sub_ids"]) == {"sub_id_1": "later", "sub_id_2": "b"}
    assert client.conversions("c1")[0].sub_ids == {"sub_id_1": "a", "sub_id_2": "b"}


def test_what_is_filled_in_has_the_rate_of_the_day_it_came(client: Client) -> None:
    client.click("c1")
    client.write(
        "INSERT INTO rates (currency, day, source, rate, created_at) VALUES"
        " ('EUR', '2026-03-01', 'ecb', '2', ''), ('EUR', '2026-03-04', 'ecb', '3', '')"
    )
    client.send("subid=c1")
    client.clock.forward(days=2)

    client.send("subid=c1&payout=5&currency=eur")

    [kept] = client.conversions("c1")
    assert (kept.payout, kept.rate_day) == ("15", "2026-03-04")
    assert (kept.created_at, kept.sale_at) == (NOON, NOON)


def test_a_repeat_that_takes_an_amount_over_leaves_the_word_that_gave_the_status(
    receiver_with: ReceiverWith,
) -> None:
    client = receiver_with(repeats="update")
    client.click("c1")
    client.send("subid=c1&status=Paid&sale_status=paid&payout=5")

    client.send("subid=c1&status=sale&payout=7")

    assert [c.original_status for c in client.conversions("c1")] == ["Paid"]


# --- Promise: sending any postback again, at any later point, changes nothing that counts ----

STREAMED = st.fixed_dictionaries(
    {"status": st.sampled_from(["lead", "sale", "rejected", "rebill", ""])},
    optional={
        "tid": st.sampled_from(["T1", "T2", "T3"]),
        "payout": st.sampled_from(["5", "7.25", "-5", "-3", "x"]),
        "currency": st.sampled_from(["USD", "EUR", "?"]),
        "cost": st.sampled_from(["1", "2"]),
        "sub_id_1": st.sampled_from(["a", "b"]),
        "sub_id_2": st.just("c"),
        "from": st.sampled_from(["N1", "N2"]),
    },
).map(lambda fields: "&".join(f"{name}={value}" for name, value in fields.items()))

# Every example has clicks of its own, so that all can use one database.
fresh = count(1)


def a_click(client: Client, rebills: bool) -> str:
    """Make a click that no example has used, with or without rebills."""
    offer = "with rebills" if rebills else "without"
    subid = f"example-{next(fresh)}"
    client.click(subid, offer=offer)
    client.allow_rebills(offer, int(rebills))
    return subid


def of_click(client: Client, subid: str) -> list[dict[str, Any]]:
    """Everything about one click that counts."""
    return client.rows("SELECT * FROM conversions_view WHERE subid = ? ORDER BY id", subid) + (
        client.history(subid)
    )


@settings(max_examples=60)
@given(rebills=st.booleans(), stream=st.lists(STREAMED, min_size=1, max_size=8), later=st.data())
def test_sending_any_postback_again_at_any_later_point_changes_nothing(
    client: Client, rebills: bool, stream: list[str], later: st.DataObject
) -> None:
    subid = a_click(client, rebills)

    for sent, query in enumerate(stream):
        client.send(f"subid={subid}&{query}")
        before = of_click(client, subid)
        again = later.draw(st.sampled_from(stream[: sent + 1]), label="sent again")

        answer = client.send(f"subid={subid}&{again}")

        assert answer.verdict in {"repeated", "refused"}
        assert of_click(client, subid) == before


# Sequences at whose end a postback comes again that the conversions alone do not show.
COMES_AGAIN = [
    # A refund, once another sale is worth the same.
    (REBILLS, ["sale T1 9", "sale R1 -9", "sale T2 9"], "sale R1 -9"),
    (REBILLS, ["sale T1 9", "rejected R1 -9", "sale T2 9"], "rejected R1 -9"),
    (REBILLS, ["sale T1 9", "sale T2 5", "sale - -9", "sale T3 9"], "sale - -9"),
    (NO_REBILLS, ["sale T1 9", "sale R1 -9", "sale T2 9"], "sale R1 -9"),
    # A refund, once there is nothing that it could take back.
    (REBILLS, ["sale T1 9", "sale R1 -9"], "sale R1 -9"),
    (NO_REBILLS, ["sale T1 9", "rejected R1 -9"], "rejected R1 -9"),
    (NO_REBILLS, ["sale T1 9", "rebill R1 -9", "sale T2 7"], "rebill R1 -9"),
    (NO_REBILLS, ["sale T1 9", "sale - -9"], "sale - -9"),
    # A refund, once a sale has come under its transaction id.
    (NO_REBILLS, ["sale - 5", "rejected T3 -5", "sale T3"], "rejected T3 -5"),
    (NO_REBILLS, ["sale - 5", "sale T3 -5&sub_id_1=a", "sale T3"], "sale T3 -5&sub_id_1=a"),
    # The same refund in other words, known by its transaction id.
    (NO_REBILLS, ["sale T1 9", "sale R1 -9", "sale T2 7"], "sale R1 -9.00"),
    (NO_REBILLS, ["sale T1 9", "rejected R1 -9", "sale T2 9"], "rejected R1 -9&from=N1"),
    (NO_REBILLS, ["sale T1 9", "rejected R1 -9"], "rejected R1"),
    # A sale that was refused beside another one, once that is rejected.
    (NO_REBILLS, ["sale T1", "sale T2", "rejected T1"], "sale T2"),
    (NO_REBILLS, ["sale T1 9", "sale T2 5", "sale R1 -9"], "sale T2 5"),
    # A negative amount that found nothing, once something is worth as much.
    (REBILLS, ["sale T1 9", "sale - -5", "sale T2 5"], "sale - -5"),
    (NO_REBILLS, ["sale T1", "sale - -5", "sale T1 5"], "sale - -5"),
    (NO_REBILLS, ["sale T1 5&currency=%3F", "sale - -5", "sale T1 5"], "sale - -5"),
    (REBILLS, ["lead T1 9", "rebill - -9", "sale T1"], "rebill - -9"),
    (NO_REBILLS, ["sale T1 9", "rejected T1", "sale - -9", "sale T1"], "sale - -9"),
    # A correction that was refused as a rebill of nothing.
    (NO_REBILLS, ["rebill C1 -5", "sale T1 9"], "rebill C1 -5"),
    # An amount that came with a rejection, and was not taken then.
    (NO_REBILLS, ["sale T1", "rejected T1 5"], "rejected T1 5"),
    (NO_REBILLS, ["sale T1", "sale T2 5", "rejected T1", "sale T2 -"], "sale T2 5"),
]


@pytest.mark.parametrize("unreject", ["no", "yes"])
@pytest.mark.parametrize(("rebills", "before", "again"), COMES_AGAIN)
def test_what_the_conversions_do_not_know_is_known_by_the_log(
    receiver_with: ReceiverWith, rebills: bool, before: list[str], again: str, unreject: str
) -> None:
    client = receiver_with(unreject=unreject)
    client.click("c1", offer="O1")
    client.allow_rebills("O1", int(rebills))
    for postback in before:
        client.send(words(postback))
    stands = client.snapshot()

    foretold = client.request(f"/{POSTBACK_KEY}/postback?{words(again)}", method="HEAD")
    answers = [client.send(words(again)) for _ in range(2)]

    assert {answer.verdict for answer in answers} <= {"repeated", "refused"}
    assert foretold.verdict == answers[0].verdict
    assert client.snapshot() == stands
    # Whether it comes while its click is known or is parked until then, is the same.
    for postback in [*before, again, again]:
        client.send(words(postback, "late"))
    client.click("late", offer="O1")
    columns = "tid, status, amount, payout, sub_ids"
    here, late = (
        client.rows(f"SELECT {columns} FROM conversions_view WHERE subid = ? ORDER BY id", subid)
        for subid in ("c1", "late")
    )
    assert here == late


# The conversions, and postbacks that an earlier program did not book, and today's rules do.
@pytest.mark.parametrize(
    ("before", "comes", "was", "verdict", "after"),
    [
        (["sale T1 9"], "sale T1 -9", "repeated", "updated", [("T1", "rejected")]),
        (["sale T1 9"], "sale R1 -9", "refused", "updated", [("T1", "rejected")]),
        (["sale T1 9"], "sale C1 -2", "refused", "recorded", [("T1", "sale"), ("C1", "rebill")]),
        (
            ["sale T1 9", "rejected X1"],
            "sale C1 -2",
            "refused",
            "recorded",
            [("T1", "sale"), ("X1", "rejected"), ("C1", "rebill")],
        ),
        (["lead T1"], "sale T2 5", "refused", "recorded", [("T1", "lead"), ("T2", "sale")]),
        (["rejected T1"], "sale T2", "refused", "recorded", [("T1", "rejected"), ("T2", "sale")]),
        (["sale T1"], "sale T1 5", "repeated", "updated", [("T1", "sale")]),
    ],
)
def test_what_an_earlier_program_made_nothing_of_counts_when_it_comes_again(
    client: Client,
    before: list[str],
    comes: str,
    was: str,
    verdict: str,
    after: list[tuple[str, str]],
) -> None:
    prepare(client, NO_REBILLS, before)
    conversion_id = 1 if was == "repeated" else None
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, tid, verdict, reason,"
        " conversion_id) VALUES ('2026-03-02T12:00:00.000Z', 'http', ?, 'c1', '', ?, '', ?)",
        *(words(comes), was, conversion_id),
    )

    answer = client.send(words(comes))

    assert answer.verdict == verdict
    assert sorted((c.tid, c.status) for c in client.conversions("c1")) == sorted(after)


def test_a_sale_that_an_earlier_program_refused_counts_though_a_lead_has_changed_since(
    client: Client,
) -> None:
    prepare(client, NO_REBILLS, ["lead T1", "rejected T2"])
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason)"
        " VALUES ('2026-03-02T12:00:00.000Z', 'http', ?, 'c1', 'refused', '')",
        words("sale T3 5"),
    )
    client.send(words("lead T1 2"))

    assert client.send(words("sale T3 5")).verdict == "recorded"


@pytest.mark.parametrize(
    ("again", "verdict"), [("sale R1 -9", "repeated"), ("sale R1 -9.00", "updated")]
)
def test_a_refund_takes_back_once_more_what_came_back_where_its_words_are_new(
    receiver_with: ReceiverWith, again: str, verdict: str
) -> None:
    client = receiver_with(unreject="yes")
    prepare(client, NO_REBILLS, ["sale T1 9", "sale R1 -9", "sale T1"])
    assert [c.status for c in client.conversions("c1")] == ["sale"]

    assert client.send(words(again)).verdict == verdict


def test_the_same_refund_of_another_click_is_not_known(client: Client) -> None:
    for subid in ("c1", "c2"):
        client.click(subid)
        client.send(words("sale T1 9", subid))

    verdicts = [client.send(words("sale R1 -9", subid)).verdict for subid in ("c1", "c2")]

    assert verdicts == ["updated", "updated"]


@pytest.mark.parametrize(
    ("again", "verdict", "status"),
    [
        ("sale T1 9", "refused", "rejected"),  # came before the rejection
        ("sale T1 9&from=N1", "updated", "sale"),
        ("sale T1 12", "updated", "sale"),
        ("sale T1", "updated", "sale"),
        ("rebill T1", "updated", "sale"),
        ("lead T1", "refused", "rejected"),
        ("sale T1 -9", "refused", "rejected"),
    ],
)
def test_unreject_lets_a_later_sale_undo_a_rejection(
    receiver_with: ReceiverWith, again: str, verdict: str, status: str
) -> None:
    client = receiver_with(unreject="yes")
    prepare(client, NO_REBILLS, ["sale T1 9", "rejected T1"])
    client.clock.forward(days=1)

    answer = client.send(words(again))

    assert answer.verdict == verdict
    [kept] = client.conversions("c1")
    assert kept.status == status
    assert kept.sale_at == NOON
    assert kept.amount == ("12" if "12" in again else "9")
    assert len(client.history("c1")) == 2 + (verdict == "updated")


def test_a_sale_undoes_one_rejection_and_not_the_next(receiver_with: ReceiverWith) -> None:
    client = receiver_with(unreject="yes")
    prepare(client, NO_REBILLS, ["sale T1 9", "rejected T1"])

    seen = []
    for postback in ("sale T1 8", "rejected T1", "sale T1 8", "sale T1 7", "sale T1 7"):
        verdict = client.send(words(postback)).verdict
        seen.append((verdict, client.conversions("c1")[0].status))

    # The limit of the promise: the same rejection comes after the sale that undid the first.
    assert seen == [
        ("updated", "sale"),
        ("updated", "rejected"),
        ("refused", "rejected"),
        ("updated", "sale"),
        ("repeated", "sale"),
    ]


def test_a_sale_that_came_after_the_rejection_counts_once_unreject_is_set(
    receiver_with: ReceiverWith,
) -> None:
    strict = receiver_with()
    prepare(strict, NO_REBILLS, ["sale T1 9", "rejected T1"])
    refused = strict.send(words("sale T1 8"))
    strict.receiver.close()
    client = receiver_with(directory=strict.directory, unreject="yes")

    assert refused.verdict == "refused"
    assert client.send(words("sale T1 9")).verdict == "refused"
    assert client.send(words("sale T1 8")).verdict == "updated"


@settings(max_examples=40)
@given(rebills=st.booleans(), stream=st.lists(STREAMED, min_size=1, max_size=8))
def test_a_whole_stream_sent_again_changes_nothing(
    client: Client, rebills: bool, stream: list[str]
) -> None:
    subid = a_click(client, rebills)
    for query in stream:
        client.send(f"subid={subid}&{query}")
    before = of_click(client, subid)

    for query in [*stream, *reversed(stream)]:
        client.send(f"subid={subid}&{query}")

    assert of_click(client, subid) == before


# The moves of section 4 once more, as pairs: what a conversion may become.
MAY_BECOME = {
    "lead": {"sale", "rejected"},
    "sale": {"rejected"},
    "rebill": {"rejected"},
    "rejected": set(),
}


@settings(max_examples=60)
@given(rebills=st.booleans(), stream=st.lists(STREAMED, min_size=1, max_size=12))
def test_no_stream_takes_a_conversion_anywhere_but_along_the_table(
    client: Client, rebills: bool, stream: list[str]
) -> None:
    subid = a_click(client, rebills)
    held: dict[int, tuple[str, str]] = {}

    for query in stream:
        answer = client.send(f"subid={subid}&{query}")

        now = {c.id: (c.tid, c.status) for c in client.conversions(subid)}
        moved = [each for each in held if now[each] != held[each]]
        made = now.keys() - held.keys()
        # Unknown values may be filled in, which is no move.
        assert len(moved) + len(made) <= (answer.verdict in {"recorded", "updated"})
        assert len(made) == (answer.verdict == "recorded")
        for each in moved:
            assert now[each][1] in MAY_BECOME[held[each][1]]
            assert held[each][0] in {"", now[each][0]}
        assert len({tid for tid, _ in now.values()}) == len(now)
        if not rebills:
            corrections = {c.id for c in client.conversions(subid) if (c.amount or "")[:1] == "-"}
            paid = [each for each, (_, status) in now.items() if status in {"sale", "rebill"}]
            assert len(set(paid) - corrections) <= 1
            assert {e for e in paid if now[e][1] == "rebill"} <= corrections
        held = now


# --- Unknown subid ---------------------------------------------------------------------------


def test_a_postback_about_an_unknown_click_is_set_aside_and_applied_with_the_click(
    client: Client, conversions: Conversions
) -> None:
    answer = client.send("subid=c1&status=sale&payout=12.5&tid=T1&from=N1&cost=2&sub_id_2=x")

    assert (answer.status, answer.text, answer.verdict) == (200, "Success", "parked")
    assert conversions() == []

    client.click("c1", campaign="C1", offer="O1", sub_id_1="banner")

    [made] = conversions("c1")
    assert (made.status, made.payout, made.tid, made.network) == ("sale", "12.5", "T1", "N1")
    assert (made.campaign, made.offer, made.cost) == ("C1", "O1", "2")
    assert made.sub_ids == {"sub_id_1": "banner", "sub_id_2": "x"}


def test_what_came_of_a_parked_postback_is_reported_by_its_row_of_the_log(client: Client) -> None:
    client.send("subid=c1&status=sale")
    client.send("subid=c1&status=lead")
    client.send("subid=other&status=lead")
    client.clock.forward(hours=3)

    client.click("c1")

    applied, refused, waiting = client.postbacks()
    assert (applied.verdict, applied.settled_verdict) == ("parked", "recorded")
    assert applied.settled_at == NOON + timedelta(hours=3)
    assert applied.conversion_id == client.conversions("c1")[0].id
    assert (refused.verdict, refused.settled_verdict) == ("parked", "refused")
    assert refused.settled_reason
    assert (waiting.verdict, waiting.settled_at, waiting.settled_verdict) == ("parked", None, None)


def test_parked_postbacks_are_applied_in_the_order_received(client: Client) -> None:
    for query in ("status=lead&payout=5", "status=sale&tid=T1", "status=lead", "status=sale"):
        client.send(f"subid=c1&{query}")

    client.click("c1")

    assert [(c.tid, c.status, c.payout) for c in client.conversions("c1")] == [("T1", "sale", "5")]
    assert [p.settled_verdict for p in client.postbacks()] == [
        "recorded",
        "updated",
        "refused",
        "repeated",
    ]


def test_a_parked_postback_keeps_the_times_at_which_it_was_received(client: Client) -> None:
    client.send("subid=c1&status=lead")
    client.clock.forward(days=1)
    client.send("subid=c1&status=sale")
    client.clock.forward(days=1)

    client.click("c1")

    [made] = client.conversions("c1")
    assert made.created_at == NOON
    assert made.sale_at == made.updated_at == NOON + timedelta(days=1)


def test_a_parked_postback_is_applied_once(client: Client) -> None:
    client.send("subid=c1&status=sale")
    client.click("c1")
    before = client.snapshot()

    client.click("c1", sub_id_1="later")
    client.send("subid=nobody")

    assert client.snapshot() == before


def test_subids_that_only_look_alike_wait_for_their_own_clicks(client: Client) -> None:
    alike = ["c1", "C1", "c_", "c%25", "c1+x"]
    for subid in alike:
        client.send(f"subid={subid}&status=sale")

    seen = []
    for subid in ("c%", "C1", "c_", "c1 x", "c1"):
        client.click(subid)
        seen.append([c.subid for c in client.conversions()][-1])

    assert seen == ["c%", "C1", "c_", "c1 x", "c1"]
    assert [p.settled_verdict for p in client.postbacks()] == ["recorded"] * len(alike)


@pytest.mark.parametrize(
    ("park_days", "days", "applied"), [(None, 89.9, 1), (None, 90.1, 0), ("2", 1.9, 1), ("2", 3, 0)]
)
def test_what_was_parked_too_long_ago_is_not_applied(
    receiver_with: ReceiverWith, park_days: str | None, days: float, applied: int
) -> None:
    client = receiver_with(park_days=park_days)
    client.send("subid=c1&status=sale")
    client.clock.forward(days=days)

    client.click("c1")

    assert len(client.conversions("c1")) == applied


def test_identical_parked_postbacks_count_once_against_the_hundred(client: Client) -> None:
    for _ in range(150):
        client.send("subid=c1&status=sale&tid=T0&payout=5")
    for number in range(1, 105):
        client.send(f"subid=c1&status=lead&tid=L{number}")
        client.send("subid=c1&status=lead&tid=T0")
        client.send("subid=c1&status=lead&tid=T0")

    client.click("c1")

    settled = client.rows(
        "SELECT query, settled_verdict, settled_reason, conversion_id FROM postbacks ORDER BY id"
    )
    assert [(c.tid, c.payout) for c in client.conversions("c1")] == [("T0", "5")]
    assert {row["conversion_id"] for row in settled[:150]} == {client.conversions("c1")[0].id}
    assert [row["settled_verdict"] for row in settled[:150]] == ["recorded"] + ["repeated"] * 149
    # The sale, the lead of the same tid and 98 others are the hundred.
    copies = {row["settled_reason"] for row in settled[1:150]}
    assert copies == {"the very same was parked before it"}
    leads, same = settled[150::3], settled[151::3] + settled[152::3]
    assert {row["settled_verdict"] for row in same} == {"refused"}
    assert {row["settled_reason"] for row in same} == {
        "the conversion is sale and cannot become lead"
    }
    is_judged = ["more than 100 different" not in row["settled_reason"] for row in leads]
    assert is_judged == [True] * 98 + [False] * 6


def test_the_copies_of_a_parked_postback_are_told_apart_from_what_was_judged(
    client: Client,
) -> None:
    for query in ("payout=5", "payout=5", "status=lead", "status=lead", "payout=5"):
        client.send(f"subid=c1&{query}")

    client.click("c1")

    settled = client.rows("SELECT settled_verdict, settled_reason FROM postbacks ORDER BY id")
    assert [tuple(row.values()) for row in settled] == [
        ("recorded", "the first conversion of the click, as sale"),
        ("repeated", "the very same was parked before it"),
        ("refused", "the conversion is sale and cannot become lead"),
        ("refused", "the conversion is sale and cannot become lead"),
        ("repeated", "already sale, nothing changed"),
    ]


def test_an_identical_parked_postback_behind_another_counts_in_its_order(
    receiver_with: ReceiverWith,
) -> None:
    client = receiver_with(repeats="update")
    for amount in ("5", "7", "7", "5", "5"):
        client.send(f"subid=c1&payout={amount}")

    client.click("c1")

    assert [c.payout for c in client.conversions("c1")] == ["5"]
    assert [row["payout_micros"] for row in client.history("c1")] == [5000000, 7000000, 5000000]


def test_what_is_too_old_takes_no_younger_copy_along(client: Client) -> None:
    client.send("subid=c1&payout=5")
    client.clock.forward(days=60)
    client.send("subid=c1&payout=5")
    client.clock.forward(days=60)

    client.click("c1")

    assert [c.created_at for c in client.conversions("c1")] == [NOON + timedelta(days=60)]
    assert [p.settled_verdict for p in client.postbacks()] == ["refused", "recorded"]


def test_at_most_a_hundred_postbacks_wait_for_one_click(client: Client) -> None:
    client.click("other", offer="O1")
    client.allow_rebills("O1")
    for number in range(105):
        assert client.send(f"subid=c1&status=sale&tid=T{number}").status == 200

    client.click("c1", offer="O1")

    assert [c.tid for c in client.conversions("c1")] == [f"T{number}" for number in range(100)]


@settings(max_examples=30)
@given(rebills=st.booleans(), stream=st.lists(STREAMED, min_size=1, max_size=8))
def test_a_late_click_ends_where_a_click_in_time_would_have(
    client: Client, rebills: bool, stream: list[str]
) -> None:
    in_time = a_click(client, rebills)
    late = f"{in_time}-late"

    for query in stream:
        client.send(f"subid={in_time}&{query}")
        client.send(f"subid={late}&{query}")
    client.click(late, offer="with rebills" if rebills else "without")

    def told(subid: str) -> list[dict[str, Any]]:
        columns = "tid, status, previous_status, original_status, amount, payout, cost, network"
        return client.rows(
            f"SELECT {columns}, sub_ids, created_at, updated_at, sale_at"
            " FROM conversions_view WHERE subid = ? ORDER BY id",
            subid,
        )

    assert told(late) == told(in_time)


def test_those_who_keep_clicks_elsewhere_may_accept_unknown_ones(
    receiver_with: ReceiverWith,
) -> None:
    client = receiver_with(unknown_subid="accept")

    answer = client.send("subid=c1&status=lead&payout=5&cost=1&sub_id_1=x")

    assert answer.verdict == "recorded"
    [made] = client.conversions("c1")
    assert (made.status, made.payout, made.cost, made.offer) == ("lead", "5", "1", None)
    assert made.sub_ids == {"sub_id_1": "x"}
    assert [row["subid"] for row in client.rows("SELECT subid FROM clicks")] == ["c1"]
    assert client.send("subid=c1&status=sale").verdict == "updated"


@pytest.mark.parametrize(
    ("query", "verdict"),
    [
        ("status=rebill&tid=T1", "refused"),
        ("status=what", "unmapped"),
        ("status=x&ignore=x", "ignored"),
        (f"tid={'x' * 256}", "invalid"),
    ],
)
def test_only_a_postback_that_records_makes_the_click(
    receiver_with: ReceiverWith, query: str, verdict: str
) -> None:
    client = receiver_with(unknown_subid="accept")

    assert client.send(f"subid=c1&{query}").verdict == verdict
    assert client.rows("SELECT * FROM clicks") == []
    assert client.conversions() == []


def test_an_accepted_click_takes_no_rebills_until_an_offer_is_filled_in(
    receiver_with: ReceiverWith,
) -> None:
    client = receiver_with(unknown_subid="accept")
    client.send("subid=c1&tid=T1")
    refused = client.send("subid=c1&tid=T2")

    filled_in = client.click("c1", offer="O1")
    client.allow_rebills("O1")

    assert (refused.verdict, filled_in.verdict) == ("refused", "updated")
    assert client.send("subid=c1&tid=T2").verdict == "recorded"


def test_what_was_parked_before_unknown_clicks_were_accepted_comes_first(
    receiver_with: ReceiverWith,
) -> None:
    parking = receiver_with()
    parking.send("subid=c1&status=lead&payout=5")
    parking.receiver.close()
    accepting = receiver_with(directory=parking.directory, unknown_subid="accept")

    accepting.send("subid=c1&status=sale")

    assert [(c.status, c.payout) for c in accepting.conversions("c1")] == [("sale", "5")]
    assert accepting.postbacks()[0].settled_verdict == "recorded"


def test_times_are_iso_8601_in_utc(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1&status=sale")

    [row] = client.rows("SELECT created_at, updated_at, sale_at FROM conversions_view")

    for written in row.values():
        read = datetime.fromisoformat(written)
        assert read == NOON
        assert read.utcoffset() == timedelta(0)
