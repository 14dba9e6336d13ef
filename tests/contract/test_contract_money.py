"""Money in other currencies (section 5 of the contract), with rates set by hand."""

from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest
from conftest import Client, ReceiverWith

import storage
from postbackd.exchange import repricing

SetRate = Callable[..., None]


@pytest.fixture
def set_rate(client: Client) -> Iterator[SetRate]:
    """Set a rate by hand, or unset it with None: `set_rate("EUR", "1.1")`."""
    client.get("/health")
    opened = storage.open_database(client.database, currency="USD")

    def change(currency: str, rate: str | None) -> None:
        if rate is None:
            repricing.unset_rate(opened, currency, client.clock())
        else:
            repricing.set_rate(opened, currency, Decimal(rate), client.clock())

    yield change
    opened.close()


def test_an_amount_in_another_currency_is_converted_and_kept_as_sent(
    client: Client, set_rate: SetRate
) -> None:
    client.click("c1")
    set_rate("EUR", "1.0876")

    client.send("subid=c1&payout=12.50&currency=eur&cost=2")

    [kept] = client.conversions("c1")
    assert (kept.amount, kept.currency) == ("12.5", "EUR")
    assert (kept.payout, kept.cost) == ("13.595", "2.1752")
    assert kept.rate is not None
    assert Decimal(kept.rate) == Decimal("1.0876")
    assert (kept.rate_day or "").startswith("2026-03-02")
    assert kept.rate_source
    assert client.postbacks()[-1].warnings == []


@pytest.mark.parametrize(
    ("amount", "rate", "payout"),
    [
        ("0.000001", "0.5", "0"),
        ("0.000003", "0.5", "0.000002"),
        ("0.000005", "0.5", "0.000002"),
        ("-0.000003", "0.5", "-0.000002"),
        ("0.000001", "0.500000000001", "0.000001"),
        ("1000000", "0.000123456789", "123.456789"),
        ("999999999.999999", "1.23456789012", "1234567890.119999"),
        ("999999999", "0.987654321098", "987654320.110346"),
        ("0.1", "3", "0.3"),
        ("33.33", "0.010869565217", "0.362283"),
    ],
)
def test_conversion_is_exact_and_rounds_half_even_to_the_micro(
    client: Client, set_rate: SetRate, amount: str, rate: str, payout: str
) -> None:
    client.click("c1")
    set_rate("EUR", rate)

    client.send(f"subid=c1&payout={amount}&currency=EUR")

    [kept] = client.conversions("c1")
    assert (kept.amount, kept.payout) == (amount, payout)
    assert Decimal(kept.rate or "0") == Decimal(rate)


@pytest.mark.parametrize("currency", ["EUR", "SEK", "RUB"])
def test_without_a_rate_the_conversion_is_recorded_but_never_booked_unconverted(
    client: Client, currency: str
) -> None:
    client.click("c1")

    answer = client.send(f"subid=c1&payout=12.5&cost=3&currency={currency}")

    assert answer.verdict == "recorded"
    [kept] = client.conversions("c1")
    assert (kept.amount, kept.currency) == ("12.5", currency)
    assert (kept.payout, kept.cost, kept.rate) == (None, None, None)
    assert client.postbacks()[-1].warnings


@pytest.mark.parametrize("currency", ["EURO", "E1", "€", "12", "643", "LEAD", "ZZZ", "XXX", "null"])
def test_what_is_no_currency_code_books_nothing_either(client: Client, currency: str) -> None:
    client.click("c1")

    answer = client.send(f"subid=c1&payout=12.5&currency={currency}".encode().decode("latin-1"))

    assert answer.verdict == "recorded"
    assert [c.payout for c in client.conversions("c1")] == [None]
    assert client.postbacks()[-1].warnings


def test_what_waited_for_a_rate_is_filled_in_when_it_comes(
    client: Client, set_rate: SetRate
) -> None:
    client.click("c1")
    client.click("c2")
    client.click("c3")
    client.send("subid=c1&payout=10&cost=4&currency=EUR&status=lead")
    client.send("subid=c2&payout=10&currency=GBP")

    set_rate("EUR", "1.25")
    client.send("subid=c3")

    [euros] = client.conversions("c1")
    assert (euros.amount, euros.payout, euros.cost) == ("10", "12.5", "5")
    assert (euros.status, Decimal(euros.rate or "0")) == ("lead", Decimal("1.25"))
    assert [c.payout for c in client.conversions("c2")] == [None]


def test_a_sale_of_a_lead_that_waits_for_its_rate_waits_on_and_is_filled_in(
    client: Client, set_rate: SetRate
) -> None:
    client.click("c1")
    client.send("subid=c1&payout=10&currency=EUR&status=lead")
    client.send("subid=c1&status=sale")

    set_rate("EUR", "2")
    client.send("subid=nobody")

    assert [(c.status, c.payout) for c in client.conversions("c1")] == [("sale", "20")]


def test_a_new_rate_leaves_what_was_booked(client: Client, set_rate: SetRate) -> None:
    client.click("c1")
    client.click("c2")
    set_rate("EUR", "1.1")
    client.send("subid=c1&payout=10&currency=EUR")
    before = client.conversions("c1")

    set_rate("EUR", "1.2")
    client.send("subid=c2&payout=10&currency=EUR")

    assert client.conversions("c1") == before
    assert [c.payout for c in client.conversions("c2")] == ["12"]


def test_a_rate_that_was_taken_away_is_used_no_more(client: Client, set_rate: SetRate) -> None:
    client.click("c1")
    client.click("c2")
    set_rate("EUR", "1.1")
    client.send("subid=c1&payout=10&currency=EUR")

    set_rate("EUR", None)
    client.send("subid=c2&payout=10&currency=EUR")

    assert [c.payout for c in client.conversions()] == ["11", None]


def test_a_move_to_sale_converts_its_new_amount_anew(client: Client, set_rate: SetRate) -> None:
    client.click("c1")
    set_rate("EUR", "1.1")
    client.send("subid=c1&payout=10&currency=EUR&status=lead")
    set_rate("EUR", "1.5")

    client.send("subid=c1&payout=20&currency=EUR&status=sale")

    [kept] = client.conversions("c1")
    assert (kept.amount, kept.payout) == ("20", "30")
    assert Decimal(kept.rate or "0") == Decimal("1.5")


def test_a_move_to_sale_may_change_the_currency(client: Client, set_rate: SetRate) -> None:
    client.click("c1")
    set_rate("EUR", "1.1")
    client.send("subid=c1&payout=10&currency=EUR&status=lead")

    client.send("subid=c1&payout=20&status=sale")

    [kept] = client.conversions("c1")
    assert (kept.amount, kept.currency, kept.payout) == ("20", "USD", "20")


@pytest.mark.parametrize(
    "query", ["status=sale", "status=sale&payout=x", "status=rejected&payout=99&currency=USD"]
)
def test_a_move_without_a_new_amount_keeps_amount_rate_and_payout(
    client: Client, set_rate: SetRate, query: str
) -> None:
    client.click("c1")
    set_rate("EUR", "1.1")
    client.send("subid=c1&payout=10&currency=EUR&status=lead")
    [lead] = client.conversions("c1")
    set_rate("EUR", "1.5")

    client.send(f"subid=c1&{query}")

    [moved] = client.conversions("c1")
    for name in ("amount", "currency", "rate", "rate_day", "rate_source", "payout"):
        assert getattr(moved, name) == getattr(lead, name)


def test_amounts_without_a_currency_are_in_the_trackers(receiver_with: ReceiverWith) -> None:
    client = receiver_with(currency="EUR")
    client.click("c1")
    client.click("c2")

    client.send("subid=c1&payout=5")
    client.send("subid=c2&payout=5&currency=USD")

    assert [(c.currency, c.payout) for c in client.conversions()] == [("EUR", "5"), ("USD", None)]


def test_a_database_refuses_to_run_under_another_currency(receiver_with: ReceiverWith) -> None:
    dollars = receiver_with()
    dollars.send("subid=c1")
    dollars.receiver.close()

    euros = receiver_with(directory=dollars.directory, currency="EUR")

    answer = euros.send("subid=c1")
    assert answer.status == 503
    assert answer.headers["Retry-After"]
    assert len(dollars.postbacks()) == 1


def test_money_in_the_file_is_whole_micros_and_never_a_float(
    client: Client, set_rate: SetRate
) -> None:
    client.click("c1")
    set_rate("EUR", "1.1")
    client.send("subid=c1&payout=12.345678&currency=EUR&cost=0.1")

    tables = [
        row["name"] for row in client.rows("SELECT name FROM sqlite_master WHERE type = 'table'")
    ]
    for table in tables:
        for row in client.rows(f'SELECT * FROM "{table}"'):
            assert not [name for name, value in row.items() if isinstance(value, float)], table
    [stored] = client.rows("SELECT * FROM conversions")
    assert {12345678, 13580246, 110000} <= {v for v in stored.values() if isinstance(v, int)}
