"""The `money` lines of `postback check`: money that was not booked as it came."""

from datetime import UTC, datetime

import pytest
from conftest import Client, ReceiverWith
from public_cases import call, set_up


@pytest.fixture
def tracker(receiver_with: ReceiverWith) -> Client:
    client = set_up(receiver_with)
    client.clock.now = datetime.now(UTC)
    return client


def find_money(client: Client, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    shown = call(client, capsys, "check", "--json").objects
    return [(row["level"], row["message"]) for row in shown if row["check"] == "money"]


# Postbacks of the last day, and how the message begins.
FOUND = [
    pytest.param(
        ["C1&payout=10&tid=1", "C1&payout=20&tid=2", "CN&payout=1&tid=1", "CN&payout=2.5&tid=2"],
        "22.5 USD in 24 hours came with sales or rebills that were refused (2)",
        id="refused",
    ),
    pytest.param(
        ["C1&payout=10&tid=1", "C1&payout=20&tid=2", "C1&payout=20&tid=2"],
        "20 USD in 24 hours came with sales or rebills that were refused (1)",
        id="refused, and sent again",
    ),
    pytest.param(
        ["C1&payout=10&tid=1", "C1&payout=20&tid=2&currency=eur"],
        "20 EUR in 24 hours came with sales or rebills that were refused (1)",
        id="refused, in another currency",
    ),
    pytest.param(
        ["C2&payout=10&tid=1", "C2&payout=9&tid=2", "C2&payout=-4", "C2&payout=3"],
        "-4 USD, 3 USD in 24 hours came with sales or rebills that were refused (2)",
        id="refused, to take away and to add",
    ),
    pytest.param(
        ["C1&payout=10", "C1&payout=12.5", "C1&payout=13"],
        "1 conversions came again in 24 hours with another amount than the stored one"
        " (the difference is 3 USD)",
        id="another amount: the last one",
    ),
    pytest.param(
        ["C1&payout=10", "C1&payout=12&currency=EUR"],
        "1 conversions came again in 24 hours with another amount than the stored one"
        " (the difference is 12 EUR)",
        id="another currency",
    ),
    pytest.param(
        ["C1&payout=10", "C3&tid=x", "C4&payout=5&currency=%3F"],
        "2 of 3 sales and rebills of 24 hours have no amount, or none in a known currency",
        id="no amount",
    ),
]


@pytest.mark.parametrize(("sent", "said"), FOUND)
def test_money_that_is_not_booked_as_it_came_is_named(
    tracker: Client, capsys: pytest.CaptureFixture[str], sent: list[str], said: str
) -> None:
    for query in sent:
        tracker.send(f"subid={query}")

    [(level, message)] = find_money(tracker, capsys)

    assert level == "warning"
    assert message.startswith(said)
    assert "`postback log" in message


# Postbacks without a message.
QUIET = [
    pytest.param(["C1&payout=10", "C1&payout=10.0"], id="the same again"),
    pytest.param(["C1&payout=10&tid=1", "C1&status=lead&payout=3&tid=2"], id="a late lead"),
    pytest.param(["C1&payout=10&tid=1", "C1&tid=2"], id="refused without an amount"),
    pytest.param(["C1&payout=10&tid=1", "C1&payout=0&tid=2"], id="nothing is refused"),
    pytest.param(["C1&status=lead"], id="a lead without an amount"),
    pytest.param(
        ["C1&payout=10&tid=1", "C1&status=rejected&tid=1", "C1&status=rejected&tid=1&payout=4"],
        id="another amount of what is rejected",
    ),
    pytest.param(["C1&tid=1", "C1&tid=1&payout=5"], id="an amount that was filled in"),
]


@pytest.mark.parametrize("sent", QUIET)
def test_what_is_booked_as_it_came_is_not(
    tracker: Client, capsys: pytest.CaptureFixture[str], sent: list[str]
) -> None:
    for query in sent:
        tracker.send(f"subid={query}")

    assert find_money(tracker, capsys) == []


def test_an_unknown_currency_is_not_another_one_when_it_comes_again(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send("subid=C1&payout=10&currency=LEAD")
    tracker.send("subid=C1&payout=10&currency=LEAD")

    [(_, message)] = find_money(tracker, capsys)
    tracker.send("subid=C1&payout=5&tid=2&currency=LEAD")
    [(_, refused), _] = find_money(tracker, capsys)

    assert message.startswith("1 of 1 sales and rebills of 24 hours have no amount")
    assert refused.startswith("5 (currency unknown) in 24 hours came")


def test_a_tracker_whose_networks_send_no_amounts_is_in_order(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for subid in ("C1", "C3"):
        tracker.send(f"subid={subid}")

    [(level, message)] = find_money(tracker, capsys)

    assert (level, message[:6]) == ("ok", "2 of 2")


def test_what_was_refused_and_is_booked_since_is_not_named(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send("subid=C1&payout=10&tid=1")
    tracker.send("subid=C1&payout=20&tid=2")
    assert find_money(tracker, capsys) != []
    tracker.allow_rebills("O1")

    tracker.send("subid=C1&payout=20&tid=2&once=more")

    assert find_money(tracker, capsys) == []


def test_what_is_older_than_a_day_is_not_named(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    now = tracker.clock.now
    tracker.clock.forward(days=-2)
    for query in ("C1&payout=10&tid=1", "C1&payout=20&tid=2", "C1&payout=11&tid=1", "C3&tid=1"):
        tracker.send(f"subid={query}")
    tracker.clock.now = now

    assert find_money(tracker, capsys) == []
