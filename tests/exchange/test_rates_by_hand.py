"""Rates that a person sets: slips are refused, wrong ones are found, and what they spoilt mends."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from conftest import Client, ReceiverWith
from hypothesis import given
from hypothesis import strategies as st
from public_cases import call

from postbackd.db.rows import utc_text
from postbackd.exchange import repricing
from rates import RATE_RANGE, find_slip

TODAY = datetime.now(UTC).date()


@pytest.fixture
def tracker(client: Client) -> Client:
    client.clock.now = datetime.now(UTC)
    client.click("c1", offer="O1")
    client.click("c2", offer="O1")
    return client


def add_rate(client: Client, currency: str, rate: str, source: str, days_ago: int = 0) -> None:
    day = TODAY - timedelta(days=days_ago)
    client.write(
        "INSERT INTO rates (currency, day, source, rate, created_at) VALUES (?, ?, ?, ?, ?)",
        *(currency, str(day), source, rate, utc_text(datetime.now(UTC))),
    )


def rate_in_force(client: Client, capsys: pytest.CaptureFixture[str], currency: str) -> str | None:
    rows = call(client, capsys, "rates", "show", "--json").objects
    rates: list[str | None] = [row["rate"] for row in rows if row["currency"] == currency]
    return rates[0] if rates else None


# The fetched rate (None: none), the one by hand before, the one that is set, what the refusal says.
SLIPS = [
    ("1.0876", None, "1.09", None),
    ("1.0876", None, "1.631", None),
    ("1.0876", None, "1.632", "is more than 1.5 times off 1.0876"),
    ("1.0876", None, "108.76", "is more than 1.5 times off 1.0876"),
    ("1.0876", None, "0.9194", "looks upside down beside 1.0876"),
    ("1.0876", None, "0.99", "looks upside down beside 1.0876"),
    ("1.0876", None, "1.001", None),
    ("0.0067", None, "149", "looks upside down beside 0.0067"),
    ("0.0067", None, "0.67", "is more than 1.5 times off 0.0067"),
    # A coin tied to the dollar is on either side of it from day to day.
    ("1.0004", None, "0.9997", None),
    # The fetched one goes before the one by hand, which may have been the slip.
    ("1.0876", "108.76", "1.09", None),
    ("1.0876", "1.09", "2", "is more than 1.5 times off 1.0876"),
    (None, "1.0876", "1.1", None),
    (None, "1.0876", "108.76", "is more than 1.5 times off 1.0876"),
    (None, "1.0876", "0.92", "looks upside down beside 1.0876"),
    (None, None, "108.76", None),
]


@pytest.mark.parametrize(("fetched", "former", "rate", "said"), SLIPS)
def test_a_rate_that_looks_like_a_slip_is_refused_without_force(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    fetched: str | None,
    former: str | None,
    rate: str,
    said: str | None,
) -> None:
    for source, value in (("ecb", fetched), ("hand", former)):
        if value is not None:
            add_rate(tracker, "EUR", value, source, days_ago=1)
    before = rate_in_force(tracker, capsys, "EUR")

    ran = call(tracker, capsys, "rates", "set", "EUR", rate)

    assert ran.status == (0 if said is None else 1)
    if said is not None:
        assert f"1 EUR = {rate} USD {said}" in ran.err
        assert "add --force if it is right" in ran.err
        assert rate_in_force(tracker, capsys, "EUR") == before
        assert call(tracker, capsys, "rates", "set", "EUR", rate, "--force").status == 0
    assert rate_in_force(tracker, capsys, "EUR") == rate


def test_how_far_off_is_what_the_config_says(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with()
    client.click("c1")
    config = client.directory / "config.ini.php"
    config.write_text(config.read_text().replace("[rates]", "[rates]\nmax_change = 3"))
    add_rate(client, "EUR", "1.2", "ecb")

    assert call(client, capsys, "rates", "set", "EUR", "3.5").status == 0
    assert "more than 3 times off 1.2" in call(client, capsys, "rates", "set", "EUR", "3.7").err


rates = st.decimals(*map(str, RATE_RANGE), places=12).filter(bool)


@given(rates, st.decimals("1.01", "1000", places=2))
def test_a_rate_is_no_slip_of_itself_and_its_inverse_mostly_is(
    rate: Decimal, max_change: Decimal
) -> None:
    assert find_slip(rate, rate, max_change) is None
    if not Decimal("0.98") < rate < Decimal("1.02"):
        assert find_slip(1 / rate, rate, max_change) == "looks upside down beside"
    assert find_slip(rate * max_change * 2, rate, max_change) is not None


LARGE = "subid=c1&payout=900000000&currency=IDR&cost=900000000&tid=t1"


def test_an_amount_that_a_wrong_rate_makes_too_large_waits_for_the_right_one(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    call(tracker, capsys, "rates", "set", "IDR", "16000")
    tracker.send(LARGE)
    tracker.send("subid=c2&payout=100&currency=IDR")
    told = tracker.postbacks()[0].warnings
    assert any("is too much to convert at its rate 16000" in warning for warning in told)
    # The housekeeping looks again and again, and gives up nothing.
    tracker.clock.forward(seconds=10)
    tracker.send("subid=nobody")
    assert [c.payout for c in tracker.conversions()] == [None, "1600000"]
    shown = call(tracker, capsys, "check", "--json").objects
    assert any("not converted at its rate 16000 (hand)" in row["message"] for row in shown)

    ran = call(tracker, capsys, "rates", "set", "IDR", "0.00006", "--force")

    assert "converted that waited for a rate: 2." in ran.out
    [large, small] = tracker.conversions()
    assert (large.payout, large.cost, large.rate) == ("54000", "54000", "0.00006")
    assert small.payout == "1600000"
    changes = [row["change"] for row in tracker.history("c1")]
    assert changes == ["recorded", "converted", "converted"]


def test_unsetting_a_wrong_rate_converts_at_the_fetched_one(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    add_rate(tracker, "IDR", "0.00006", "ecb", days_ago=1)
    call(tracker, capsys, "rates", "set", "IDR", "16000", "--force")
    tracker.send(LARGE)

    call(tracker, capsys, "rates", "unset", "IDR")

    assert [(c.payout, c.rate_source) for c in tracker.conversions()] == [("54000", "ecb")]


def add_large(client: Client, number: int) -> None:
    """Add conversions whose amounts are too large for a wrong rate."""
    client.write(
        "INSERT INTO conversions (click_id, tid, status, amount_micros, currency, amount_day,"
        " created_at, updated_at)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)"
        " SELECT 1, i, 'rebill', 900000000000000, 'IDR', '2026-03-02', ?2, ?2 FROM n",
        *(number, utc_text(datetime.now(UTC))),
    )


def test_however_many_are_too_large_they_keep_no_other_waiting(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    number = repricing.WAITING_AT_ONCE + 10
    add_large(tracker, number)
    tracker.write(
        "INSERT INTO conversions (click_id, tid, status, amount_micros, currency, amount_day,"
        " created_at, updated_at) VALUES (2, 't', 'sale', 1000000, 'IDR', '2026-03-02', ?1, ?1)",
        utc_text(datetime.now(UTC)),
    )

    wrong = call(tracker, capsys, "rates", "set", "IDR", "16000")
    unset = call(tracker, capsys, "rates", "unset", "IDR")
    right = call(tracker, capsys, "rates", "set", "IDR", "0.00006")

    assert "waited for a rate: 1." in wrong.out
    assert unset.status == 0
    assert f"waited for a rate: {number}." in right.out
    assert [c for c in tracker.conversions() if c.payout is None] == []


def test_unsetting_converts_more_than_a_batch(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    number = repricing.WAITING_AT_ONCE * 2 + 1
    add_rate(tracker, "IDR", "0.00006", "ecb", days_ago=1)
    call(tracker, capsys, "rates", "set", "IDR", "16000", "--force")
    add_large(tracker, number)

    call(tracker, capsys, "rates", "unset", "IDR")

    assert {c.payout for c in tracker.conversions()} == {"54000"}


def find_messages(
    client: Client, capsys: pytest.CaptureFixture[str], check: str
) -> list[tuple[str, str]]:
    shown = call(client, capsys, "check", "--json").objects
    return [(row["level"], row["message"]) for row in shown if row["check"] == check]


# The rate by hand, its age in days, that of the fetched 1.0876 (None: there is none), what is said.
BY_HAND = [
    ("1.09", 1, 0, None),
    ("1.09", 7, 0, None),
    ("1.09", 8, 0, "set by hand 8 days ago, still takes precedence over 1.0876"),
    ("1.09", 400, None, None),
    ("1.09", 10, 12, None),
    ("10.9", 0, 0, "is more than 1.5 times off 1.0876"),
    ("0.92", 0, 0, "looks upside down beside 1.0876"),
    ("0.92", 40, 60, "looks upside down beside 1.0876"),
]


@pytest.mark.parametrize(("rate", "age", "fetched_age", "said"), BY_HAND)
def test_check_warns_of_rates_by_hand_that_are_old_or_far_off(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    rate: str,
    age: int,
    fetched_age: int | None,
    said: str | None,
) -> None:
    add_rate(tracker, "EUR", rate, "hand", days_ago=age)
    if fetched_age is not None:
        add_rate(tracker, "EUR", "1.0876", "ecb", days_ago=fetched_age)

    found = find_messages(tracker, capsys, "rates")

    warned = [message for level, message in found if level == "warning"]
    assert len(warned) == (said is not None)
    if said is not None:
        assert said in warned[0]
        assert f"1 EUR = {rate} USD" in warned[0]
        assert "`postback rates unset EUR`" in warned[0]
