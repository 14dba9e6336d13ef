"""Several paid and unpaid events of one click, each with a transaction id of its own.

Shapes of public documentation: a registration before a first deposit, goals with `{tid}_{goal}`,
offerwalls, subscriptions. The ids D18 … are those of the list of public cases.
"""

import pytest
from conftest import Client, ReceiverWith
from public_cases import add_up, call, held, set_up

# The click, its postbacks, the verdicts, the conversions in the end (tid, status, amount).
EVENTS = [
    pytest.param(
        "C1",
        [
            "status=reg&tid=991_1&lead_status=reg",
            "status=approved&payout=40&tid=992_2&sale_status=approved",
        ],
        ["recorded", "recorded"],
        [("991_1", "lead", None), ("992_2", "sale", "40")],
        id="D18",
    ),
    pytest.param(
        "C2",
        [
            "status=reg&tid=991_1&lead_status=reg",
            "status=approved&payout=40&tid=992_2&sale_status=approved",
        ],
        ["recorded", "recorded"],
        [("991_1", "lead", None), ("992_2", "sale", "40")],
        id="D19",
    ),
    pytest.param(
        "C2",
        [
            "status=ftm&tid=4&lead_status=ftm,reg",
            "status=reg&tid=5&lead_status=ftm,reg",
            "status=sale&payout=100&tid=6",
            "status=dep&payout=200&tid=7&sale_status=dep",
        ],
        ["recorded", "refused", "recorded", "recorded"],
        [("4", "lead", None), ("6", "sale", "100"), ("7", "rebill", "200")],
        id="D20",
    ),
    pytest.param(
        "C1",
        ["status=lead&tid=reg-1", "payout=40&tid=dep-1", "payout=25&tid=dep-2"],
        ["recorded", "recorded", "refused"],
        [("reg-1", "lead", None), ("dep-1", "sale", "40")],
        id="a second deposit where rebills are not allowed",
    ),
    pytest.param(
        "C2",
        ["status=lead&tid=trial", "status=rebill&payout=9&tid=m1", "status=rebill&payout=9&tid=m2"],
        ["recorded", "recorded", "recorded"],
        [("trial", "lead", None), ("m1", "sale", "9"), ("m2", "rebill", "9")],
        id="a subscription whose payments are all called rebill",
    ),
    pytest.param(
        "C1",
        ["payout=40&tid=dep-1", "status=lead&tid=reg-1"],
        ["recorded", "refused"],
        [("dep-1", "sale", "40")],
        id="the deposit comes before the registration",
    ),
    pytest.param(
        "C1",
        ["status=rejected&tid=reg-1", "payout=40&tid=dep-1"],
        ["recorded", "recorded"],
        [("reg-1", "rejected", None), ("dep-1", "sale", "40")],
        id="the registration was rejected, the deposit is paid",
    ),
    pytest.param(
        "C1",
        ["status=lead&tid=reg-1", "status=rejected&tid=kyc-1", "payout=40&tid=dep-1"],
        ["recorded", "recorded", "recorded"],
        [("reg-1", "lead", None), ("kyc-1", "rejected", None), ("dep-1", "sale", "40")],
        id="an event between them is rejected under an id of its own",
    ),
    pytest.param(
        "C1",
        ["status=lead", "payout=40&tid=dep-1"],
        ["recorded", "updated"],
        [("dep-1", "sale", "40")],
        id="the registration has no id, and becomes the sale",
    ),
    pytest.param(
        "C1",
        ["status=lead&tid=a1", "payout=40&tid=A1"],
        ["recorded", "recorded"],
        [("a1", "lead", None), ("A1", "sale", "40")],
        id="ids that differ in their letters' case only",
    ),
    pytest.param(
        "C1",
        ["payout=40&tid=o1", "status=rejected&tid=o1", "payout=35&tid=o2"],
        ["recorded", "updated", "recorded"],
        [("o1", "rejected", "40"), ("o2", "sale", "35")],
        id="the order was cancelled, and the buyer came back",
    ),
    pytest.param(
        "C1",
        ["status=lead&payout=0.10&tid=install", "payout=0&tid=level_10", "payout=3&tid=level_50"],
        ["recorded", "recorded", "refused"],
        [("install", "lead", "0.1"), ("level_10", "sale", "0")],
        id="goals of an offerwall where rebills are not allowed",
    ),
]


@pytest.mark.parametrize(("subid", "sent", "verdicts", "stands"), EVENTS)
def test_the_first_paid_event_of_a_click_is_its_sale(
    receiver_with: ReceiverWith,
    subid: str,
    sent: list[str],
    verdicts: list[str],
    stands: list[tuple[str, str, str | None]],
) -> None:
    client = set_up(receiver_with)

    answers = [client.send(f"subid={subid}&{query}") for query in sent]

    assert [answer.verdict for answer in answers] == verdicts
    assert held(client, subid) == stands
    assert client.postbacks()[-1].warnings == []


def test_the_report_counts_it_as_a_sale(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = set_up(receiver_with)
    client.send("subid=C2&status=reg&tid=991_1&lead_status=reg")
    client.send("subid=C2&status=approved&payout=40&tid=992_2&sale_status=approved")

    total = add_up(client, capsys)

    assert (total["leads"], total["sales"], total["rebills"]) == (1, 1, 0)
    assert total["revenue"] == "40"


def test_events_that_were_parked_come_to_the_same(receiver_with: ReceiverWith) -> None:
    client = set_up(receiver_with)
    client.send("subid=late&status=reg&tid=1&lead_status=reg")
    client.send("subid=late&status=sale&payout=40&tid=2")

    client.click("late", offer="O1")

    assert held(client, "late") == [("1", "lead", None), ("2", "sale", "40")]


FREE_THEN_PAID = [
    "status=approved&payout=0&tid=E1&sale_status=approved",
    "status=approved&payout=2.5&tid=E2&sale_status=approved",
]
A_SUBSCRIPTION = ["status=sale&payout=30&tid=R1", "status=rebill&payout=10&tid=R1-B002"]

# Clicks whose rebills were never set: the postbacks, and the revenue.
UNSET = [
    pytest.param("CN", FREE_THEN_PAID, "2.5", id="D21"),
    pytest.param("CN", A_SUBSCRIPTION, "40", id="D22"),
    pytest.param("C3", A_SUBSCRIPTION, "40", id="an offer that was never set"),
    pytest.param("C2", A_SUBSCRIPTION, "40", id="an offer that allows them"),
    pytest.param("CN", ["status=rebill&payout=10&tid=B2"], "10", id="nothing but a rebill"),
]


@pytest.mark.parametrize(("subid", "sent", "revenue"), UNSET)
def test_a_setting_allows_further_payments_where_nothing_was_set(
    receiver_with: ReceiverWith,
    capsys: pytest.CaptureFixture[str],
    subid: str,
    sent: list[str],
    revenue: str,
) -> None:
    client = set_up(receiver_with, rebills="yes")

    verdicts = [client.send(f"subid={subid}&{query}").verdict for query in sent]

    assert verdicts == ["recorded"] * len(sent)
    assert add_up(client, capsys)["revenue"] == revenue


@pytest.mark.parametrize("sent", [FREE_THEN_PAID, A_SUBSCRIPTION])
@pytest.mark.parametrize("unknown_subid", ["park", "accept"])
def test_without_the_setting_the_refusal_names_it(
    receiver_with: ReceiverWith, sent: list[str], unknown_subid: str
) -> None:
    client = set_up(receiver_with, unknown_subid=unknown_subid)
    subid = "CN" if unknown_subid == "park" else "elsewhere"

    first, second = (client.send(f"subid={subid}&{query}").verdict for query in sent)

    assert (first, second) == ("recorded", "refused")
    assert '`[postback] rebills = "yes"`' in (client.postbacks()[-1].reason or "")


def test_clicks_that_are_kept_elsewhere_have_further_payments_too(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = set_up(receiver_with, unknown_subid="accept", rebills="yes")

    for query in A_SUBSCRIPTION:
        client.send(f"subid=elsewhere&{query}")

    assert add_up(client, capsys)["revenue"] == "40"


def test_an_offer_that_was_set_to_no_goes_before_the_setting(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = set_up(receiver_with, rebills="yes")
    client.allow_rebills("O1", 0)

    verdicts = [client.send(f"subid=C1&{query}").verdict for query in A_SUBSCRIPTION]

    assert verdicts == ["recorded", "refused"]
    assert "`[postback]" not in (client.postbacks()[-1].reason or "")
    assert add_up(client, capsys)["revenue"] == "30"


@pytest.fixture
def offers(receiver_with: ReceiverWith) -> Client:
    return set_up(receiver_with, rebills="yes")


def test_the_list_of_offers_tells_what_was_set(
    offers: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    call(offers, capsys, "offers", "set", "O3", "--no-allow-rebills")

    shown = call(offers, capsys, "offers", "list")
    objects = call(offers, capsys, "offers", "list", "--json").objects

    assert shown.rows == [["O1", "yes (not set)"], ["O2", "yes"], ["O3", "no"]]
    assert [row["allow_rebills"] for row in objects] == [True, True, False]


def test_a_sale_without_id_among_several_conversions_is_told_to_need_one(
    receiver_with: ReceiverWith,
) -> None:
    tracker = set_up(receiver_with)
    for query in ("status=lead&tid=1", "status=rejected&tid=2"):
        tracker.send(f"subid=C1&{query}")

    answer = tracker.send("subid=C1&status=sale&payout=5")

    # Not for want of rebills: it would be the click's first sale.
    assert answer.verdict == "refused"
    assert (
        answer.reason
        == "the click has several conversions and no sale: add tid= to the Postback URL"
    )
    assert tracker.send("subid=C1&status=sale&payout=5&tid=3").verdict == "recorded"


def test_a_second_amount_without_id_is_a_repeat_and_told(receiver_with: ReceiverWith) -> None:
    # Q17: the network's macro for the transaction id came empty, twice.
    tracker = set_up(receiver_with)

    tracker.send("subid=C1&payout=12.54&tid=")
    answer = tracker.send("subid=C1&payout=1.31&tid=")

    assert (answer.verdict, held(tracker, "C1")) == ("repeated", [("", "sale", "12.54")])
    assert "known already with another amount" in answer.reason
