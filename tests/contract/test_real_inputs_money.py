"""Amounts and currencies of senders: read where they have one meaning, else with a warning."""

import json
from decimal import Decimal
from urllib.parse import quote

import pytest
from conftest import NOON, POSTBACK_KEY, Client, ReceiverWith
from hypothesis import given
from hypothesis import strategies as st

import storage
from postbackd.cli import entry as cli
from postbackd.intake.currencies import CODES, ISO_CODES
from postbackd.intake.wire_amounts import read_wire_amount
from rates import read_amount, read_currency
from statuses import Rule


def set_rate(client: Client, currency: str, rate: str) -> None:
    client.get("/health")
    opened = storage.open_database(client.database, currency="USD")
    with opened.transaction():
        opened.add_rate_by_hand(currency, Decimal(rate), NOON)
    opened.close()


@pytest.fixture
def tracker(client: Client) -> Client:
    """The setting of the real inputs."""
    for currency, rate in (("EUR", "1.25"), ("RUB", "0.01")):
        set_rate(client, currency, rate)
    client.click("C1")
    return client


# The parameters, and the conversion: the amount, its currency, its worth in dollars.
READ = [
    # D59 and others of its kind.
    ("payout=$12.50", "12.5", "USD", "12.5"),
    ("payout=-$12.50", "-12.5", "USD", "-12.5"),
    ("payout=$-12.50", "-12.5", "USD", "-12.5"),
    ("payout=$ 12.50", "12.5", "USD", "12.5"),
    ("payout=12.50$", "12.5", "USD", "12.5"),
    ("payout=US$5", "5", "USD", "5"),
    ("payout=us$.5", "0.5", "USD", "0.5"),
    ("payout=10 usd", "10", "USD", "10"),
    ("payout=USD10.", "10", "USD", "10"),
    ("payout=€5", "5", "EUR", "6.25"),
    ("payout=5 €", "5", "EUR", "6.25"),
    ("payout=5eur", "5", "EUR", "6.25"),
    ("payout=10₽", "10", "RUB", "0.1"),
    ("payout=10 руб.", "10", "RUB", "0.1"),
    ("payout=10 RUR", "10", "RUB", "0.1"),
    ("payout=€5&currency=eur", "5", "EUR", "6.25"),
    # D57 and others of its kind.
    ("revenue=345&currency=usd&payout_unit=cents", "3.45", "USD", "3.45"),
    ("payout=345&payout_unit=Cents", "3.45", "USD", "3.45"),
    ("payout=-345&currency=EUR&payout_unit=cents", "-3.45", "EUR", "-4.3125"),
    ("payout=€345&payout_unit=cents", "3.45", "EUR", "4.3125"),
    ("payout=0.00005&payout_unit=cents", "0", "USD", "0"),
    ("payout=12345678.9&payout_unit=cents", "123456.789", "USD", "123456.789"),
    ("payout=345&payout_unit=", "345", "USD", "345"),
    # A macro as currency is not replaced by the default, but by a sign.
    ("payout=€5&currency={currency}", "5", "EUR", "6.25"),
    # D29
    ("payout=500&currency=rur", "500", "RUB", "5"),
    ("payout=500&currency=RuR", "500", "RUB", "5"),
    # Q14
    ("payout=5&currency=%20usd+", "5", "USD", "5"),
]


@pytest.mark.parametrize(("query", "amount", "currency", "worth"), READ)
def test_a_sign_or_code_beside_an_amount_is_its_currency(
    tracker: Client, query: str, amount: str, currency: str, worth: str
) -> None:
    tracker.send(f"subid=C1&status=sale&{quote(query, safe='=&%+')}")

    [made] = tracker.conversions("C1")
    assert (made.amount, made.currency, made.payout) == (amount, currency, worth)
    assert [text for text in tracker.postbacks()[0].warnings if "macro" not in text] == []


# The currency is unknown: the amount is stored, and nothing waits for a rate.
UNKNOWN = [
    *("currency=null", "currency=643", "currency=840", "currency=LEAD", "currency=ZZZ"),
    *("currency=XXX", "currency=%24", "currency=USDT", "currency=undefined", "currency=EURO"),
]


@pytest.mark.parametrize("query", UNKNOWN)
def test_what_names_no_currency_is_unknown_with_a_warning(tracker: Client, query: str) -> None:
    tracker.send(f"subid=C1&status=sale&payout=5&cost=1&{query}")

    [made] = tracker.conversions("C1")
    assert (made.amount, made.currency, made.payout, made.cost) == ("5", None, None, None)
    [warning] = tracker.postbacks()[0].warnings
    assert warning.startswith("currency ")


def test_a_coin_is_a_currency_where_a_rate_names_it(tracker: Client) -> None:
    set_rate(tracker, "USDT", "0.999")
    set_rate(tracker, "MYCOIN", "2")
    for subid in ("C2", "C3"):
        tracker.click(subid)

    tracker.send("subid=C1&payout=5&currency=usdt")
    tracker.send("subid=C2&payout=5%20USDT")
    tracker.send("subid=C3&payout=5&currency=mycoin")

    assert [(c.currency, c.payout) for c in tracker.conversions()] == [
        ("USDT", "4.995"),
        ("USDT", "4.995"),
        ("MYCOIN", "10"),
    ]


def test_what_was_parked_learns_of_its_currency_when_its_click_comes(client: Client) -> None:
    client.send("subid=C1&payout=5&currency=LEAD")

    client.click("C1")

    assert [(c.amount, c.currency) for c in client.conversions("C1")] == [("5", None)]


CONFLICTS = [
    ("payout=€5&currency=USD", "5", "USD", "payout has '€', and currency=USD came"),
    ("payout=5 RUB&currency=EUR", "5", "EUR", "payout has 'RUB', and currency=EUR came"),
    # A sign of several currencies agrees with each of them.
    ("payout=$5&currency=CAD", "5", "CAD", "no rate for CAD"),
    ("payout=¥5&currency=CNY", "5", "CNY", "no rate for CNY"),
    ("payout=¥5", "5", None, "payout has '¥', which may mean several currencies"),
    ("payout=5 kr", "5", None, "payout has 'kr', which may mean several currencies"),
    ("payout=€5&cost=$2", "5", "EUR", "cost has '$' and counts as not sent: payout is in EUR"),
    ("payout=5&cost=€2", "5", "USD", "cost has '€' and counts as not sent: payout is in USD"),
]


@pytest.mark.parametrize(("query", "amount", "currency", "warning"), CONFLICTS)
def test_where_signs_disagree_what_was_sent_counts_and_a_warning_says_so(
    tracker: Client, query: str, amount: str, currency: str | None, warning: str
) -> None:
    tracker.send(f"subid=C1&status=sale&{quote(query, safe='=&')}")

    [made] = tracker.conversions("C1")
    assert (made.amount, made.currency, made.cost) == (amount, currency, None)
    [said] = tracker.postbacks()[0].warnings
    assert warning in said


def test_a_cost_by_itself_has_its_own_sign(tracker: Client) -> None:
    tracker.send("subid=C1&status=lead&cost=" + quote("€2"))

    [made] = tracker.conversions("C1")
    assert (made.amount, made.cost) == (None, "2.5")


UNREADABLE = [
    *("$1,234.50", "1,234.50", "1 234.50", "1'234", "$10 USD", "$$10", "10 points", "lead 5"),
    *("$", "usd", "$-", "--$5", "-$-5", "$5-", "5 % 2", "(5.40)", "$(5)", "−5", "5 usd/day"),
    # Q20
    *("5E+2", "1e-05", "12,50", "$12,50", "R5", "Rs.500", "$1.2.3"),
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_thousands_and_guesses_are_never_read(tracker: Client, text: str) -> None:
    tracker.send(f"subid=C1&status=sale&payout={quote(text)}")

    assert [c.amount for c in tracker.conversions("C1")] == [None]
    [warning] = tracker.postbacks()[0].warnings
    assert warning.startswith("payout ")
    assert "is unreadable: send plain digits" in warning


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        *(("12,50", "12.5"), ("€12,5", "12.5"), ("12,50 EUR", "12.5"), ("-3,25", "-3.25")),
        *(("12.50", "12.5"), ("1.5", "1.5"), ("1.2345", "1.2345"), ("$12.50", "12.5")),
        # D38: thousands or a decimal point is not known.
        *(
            ("1.500", None),
            ("1500.000", None),
            ("$1.500", None),
            ("1.234,50", None),
            ("1,500", None),
        ),
    ],
)
def test_with_a_decimal_comma_no_point_is_read_that_may_part_thousands(
    receiver_with: ReceiverWith, text: str, amount: str | None
) -> None:
    client = receiver_with(decimal_comma="yes")
    client.click("C1")

    client.send(f"subid=C1&payout={quote(text)}")

    assert [c.amount for c in client.conversions("C1")] == [amount]


# D74: HTML has a sign of that name.
@pytest.mark.parametrize("raw", ["5%C2%A4cy=EUR", "5\u00a4cy=EUR"])
def test_the_sign_that_html_makes_of_a_name_is_said(tracker: Client, raw: str) -> None:
    tracker.send(f"subid=C1&status=sale&payout={raw}".encode().decode("latin-1"))

    assert [c.amount for c in tracker.conversions("C1")] == [None]
    [warning] = tracker.postbacks()[0].warnings
    assert "is what HTML makes of '&currency'" in warning


@pytest.mark.parametrize("text", ["1000000000", "-1000000000.5", "12345678901"])
def test_an_amount_that_is_too_large_is_told_so(tracker: Client, text: str) -> None:
    tracker.send(f"subid=C1&payout={text}")

    assert [c.amount for c in tracker.conversions("C1")] == [None]
    [warning] = tracker.postbacks()[0].warnings
    assert "is unreadable: amounts are below 1,000,000,000" in warning


def test_a_payout_in_a_unit_that_nobody_knows_counts_as_not_sent(tracker: Client) -> None:
    tracker.send("subid=C1&payout=345&cost=2&payout_unit=dimes")

    assert [(c.amount, c.cost) for c in tracker.conversions("C1")] == [(None, "2")]
    [warning] = tracker.postbacks()[0].warnings
    assert warning.startswith("payout_unit 'dimes' is unknown, and the payout counts as not sent")


def test_a_unit_that_was_not_replaced_is_none(tracker: Client) -> None:
    tracker.send("subid=C1&payout=345&payout_unit={unit}")

    assert [c.amount for c in tracker.conversions("C1")] == ["345"]
    assert len(tracker.postbacks()[0].warnings) == 1


def test_a_replay_mends_what_came_in_cents_before_the_url_said_so(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(tracker.directory / "config.ini.php")
    tracker.send("subid=C1&payout=345&tid=1")

    words = ("--id", "1", "--set", "payout_unit=cents", "--force")
    assert cli.main(["replay", *words, "--config", config]) == 0

    assert [(c.amount, c.payout) for c in tracker.conversions("C1")] == [("3.45", "3.45")]


@given(
    st.decimals(-1000, 1000, places=2, allow_nan=False).map(lambda amount: f"{amount:f}"),
    st.sampled_from(sorted(CODES)),
    st.sampled_from(["{m}{a}", "{m} {a}", "{a}{m}", "{a} {m}"]),
)
def test_any_code_on_either_side_is_read(amount: str, code: str, form: str) -> None:
    read = read_wire_amount(form.format(m=code, a=amount))

    assert read == (read_amount(amount), code)


@given(st.text("0123456789.,'$€-+ usd()", max_size=12))
def test_what_is_read_has_the_digits_and_the_point_that_were_sent(text: str) -> None:
    read = read_wire_amount(text)

    if read is not None:
        plain = "".join(sign for sign in text if sign in "0123456789.-")
        assert "," not in text
        assert read.amount == read_amount(plain)


def test_the_codes_are_three_capitals_each() -> None:
    assert {len(code) for code in ISO_CODES} == {3}
    assert len(ISO_CODES) > 170
    assert {"USD", "EUR", "RUB", "XAU", "XCG"} <= ISO_CODES
    assert ISO_CODES.isdisjoint({"RUR", "XXX", "XTS", "BTC"})


def test_a_number_is_no_code_for_whoever_sets_a_rate_either() -> None:
    assert [read_currency(text) for text in ("643", "1000", "rur", "usdt")] == [
        None,
        None,
        "RUB",
        "USDT",
    ]


def test_a_head_says_what_a_get_would_say_of_a_currency(tracker: Client) -> None:
    url = f"/{POSTBACK_KEY}/postback?subid=C1&payout=5&currency=LEAD"

    asked, sent = tracker.request(url, "HEAD"), tracker.get(url)

    assert asked.reason == sent.reason == "warnings: 1, see the log"


def test_explain_names_the_rule_for_a_currency_that_is_known_no_more(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(tracker.directory / "config.ini.php")
    for words in (("set", "MYCOIN", "2"), ("unset", "MYCOIN")):
        assert cli.main(["rates", *words, "--config", config]) == 0
        tracker.send("subid=C1&payout=10&currency=MYCOIN")
    capsys.readouterr()

    query = "subid=C1&payout=-10&currency=MYCOIN"
    assert cli.main(["explain", query, "--json", "--config", config]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["rule"], told["verdict"]) == (Rule.REPEATED.value, "repeated")
