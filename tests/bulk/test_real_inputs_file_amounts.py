"""Amounts in files as people write them: read where they have one reading, else refused."""

import math
from decimal import Decimal

import pytest
from conftest import Client, ReceiverWith
from file_calls import call, kept, set_up
from hypothesis import given
from hypothesis import strategies as st

from postbackd.cli import entry as cli
from postbackd.intake.amounts import AmountReader, read_written
from postbackd.intake.currencies import CODES, read_mark, settle_currency


@pytest.fixture
def tracker(client: Client) -> Client:
    """The clicks and rates of the real inputs."""
    return set_up(client)


# The text, the amount, its currency.
READ = [
    ("$12.50", "12.5", "USD"),  # D36
    ("$1,234.50", "1234.5", "USD"),
    ("US$1,234.50", "1234.5", "USD"),  # D37
    ("US$8", "8", "USD"),
    ("12.50 USD", "12.5", "USD"),  # D37
    ("usd 12.50", "12.5", "USD"),
    ("1,234.50", "1234.5", "USD"),  # D37
    ("1,234,567.89", "1234567.89", "USD"),
    ("1,234,567", "1234567", "USD"),
    ("12,34,567.50", "1234567.5", "USD"),
    ("1.234,50", "1234.5", "USD"),
    ("1.234.567", "1234567", "USD"),
    ("12,50", "12.5", "USD"),
    ("12,5", "12.5", "USD"),
    ("0,125", "0.125", "USD"),
    ("12,50 €", "12.5", "EUR"),
    ("€ 12,50", "12.5", "EUR"),
    ("€1.234,50", "1234.5", "EUR"),
    ("1 234,50", "1234.5", "USD"),
    ("1\xa0234,50", "1234.5", "USD"),
    ("1\u2009234,50", "1234.5", "USD"),
    ("1\u202f234,50\xa0€", "1234.5", "EUR"),
    ("1'234.50", "1234.5", "USD"),
    ("1’234.50 EUR", "1234.5", "EUR"),
    ("500 руб.", "500", "RUB"),
    ("1 500,00 ₽", "1500", "RUB"),
    ("100 RUR", "100", "RUB"),
    ("(5.40)", "-5.4", "USD"),  # D37
    ("($5.40)", "-5.4", "USD"),
    ("$(5.40)", "-5.4", "USD"),
    ("(1.234,50 €)", "-1234.5", "EUR"),
    ("−5.40", "-5.4", "USD"),
    ("–5.40", "-5.4", "USD"),
    ("-$5.40", "-5.4", "USD"),
    ("$-5.40", "-5.4", "USD"),
    ("- 5.40", "-5.4", "USD"),
    ("+5.40", "5.4", "USD"),
    ("1.500", "1.5", "USD"),
    ("0.500", "0.5", "USD"),
    (".5", "0.5", "USD"),
    ("5.", "5", "USD"),
    ("1234,567", "1234.567", "USD"),
    ("\u200e12.50\u200e", "12.5", "USD"),
    ("12.50\xa0", "12.5", "USD"),
    ("US$ 5.40 USD", "5.4", "USD"),
]

# Texts with two readings, or without an amount.
REFUSED = [
    ("1,234", "it may be 1234 or 1.234"),
    ("$1,234", "it may be 1234 or 1.234"),
    ("-1,234 EUR", "it may be 1234 or 1.234"),
    ("5O", "is unreadable"),
    ("12.50.30", "is unreadable"),
    ("1,234,50", "is unreadable"),
    ("1.234.50", "is unreadable"),
    ("1 23,50", "is unreadable"),
    ("0,123.45", "is unreadable"),
    ("12 50", "is unreadable"),
    ("$12.50 - $15", "is unreadable"),
    ("5 (3 pcs)", "is unreadable"),
    ("12.50-", "is unreadable"),
    ("--5", "is unreadable"),
    ("(-5)", "is unreadable"),
    ("(5.40", "is unreadable"),
    ("50%", "is unreadable"),
    ("1e3", "is unreadable"),
    ("0x10", "is unreadable"),
    ("1_000", "is unreadable"),
    ("١٢", "is unreadable"),
    ("12²", "is unreadable"),
    ("12½", "is unreadable"),
    ("Rs.500", "is unreadable"),
    ("kr.500", "is unreadable"),
    ("5 pcs", "is unreadable"),
    ("NaN", "is what a script writes for nothing"),
    ("null", "is what a script writes for nothing"),
    ("∞", "is unreadable"),
    ("1,000,000,000", "amounts are below 1,000,000,000"),
    ("¥500", "may be several: say which with --currency"),
    ("500 kr", "may be several: say which with --currency"),
    ("$5 €", "contradict each other"),
]


@pytest.mark.parametrize(("written", "amount", "currency"), READ)
def test_an_amount_with_one_reading_is_read(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    written: str,
    amount: str,
    currency: str,
) -> None:
    ran = call(tracker, capsys, "import", f'C1,"{written}",T1,sale\n')

    assert (ran.status, kept(tracker)) == (0, [("C1", "T1", "sale", amount, currency)]), ran.out
    # And the same again in a report.
    again = call(tracker, capsys, "reconcile", f'subid,tid,payout\nC1,T1,"{written}"\n')
    assert (again.status, again.rows) == (0, [])


@pytest.mark.parametrize(("written", "sentence"), REFUSED)
def test_an_amount_with_none_or_two_is_refused_with_a_sentence(
    tracker: Client, capsys: pytest.CaptureFixture[str], written: str, sentence: str
) -> None:
    ran = call(tracker, capsys, "import", f'C3,1,T3\nC1,"{written}",T1,sale\n', "--json")

    told = ran.objects[1]
    assert (ran.status, told["verdict"]) == (1, "skipped")
    assert sentence in told["reason"]
    assert [subid for subid, *_ in kept(tracker)] == ["C3"]
    again = call(tracker, capsys, "reconcile", f'subid,tid,payout\nC1,T1,"{written}"\n', "--json")
    assert again.objects[0]["differences"] == ["unreadable"]


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("12,50", "12.5"),
        ("1.234,50", "1234.5"),
        ("12.50", "12.5"),
        ("1,234.50", "1234.5"),
        ("0,125", "0.125"),
        ("0.500", "0.5"),
        ("1234.500", "1234.5"),
        ("1500", "1500"),
        ("1.500", None),
        ("1,500", None),
        ("-1.500", None),
        ("€ 1.500", None),
        ("12.345", None),
    ],
)
@pytest.mark.parametrize("how", ["option", "config"])
def test_with_decimal_commas_three_last_digits_are_ambiguous(
    receiver_with: ReceiverWith,
    capsys: pytest.CaptureFixture[str],
    how: str,
    written: str,
    amount: str | None,
) -> None:
    tracker = set_up(receiver_with(decimal_comma="yes" if how == "config" else "no"))
    words = ("--decimal-comma",) if how == "option" else ()

    ran = call(tracker, capsys, "import", f'C1,"{written}",T1,sale\n', *words)

    assert ran.status == int(amount is None)
    assert [found[3] for found in kept(tracker)] == ([] if amount is None else [amount])


@pytest.mark.parametrize(
    ("amounts", "read"),
    [
        (["1.500", "12.50"], ["1.5", "12.5"]),
        (["1.500", "12,50"], [None, "12.5"]),
        (["12,50", "1.500"], ["12.5", None]),
        (["1.500", "1.234,50", "2.000"], [None, "1234.5", None]),
        (["1.500", "2.000"], ["1.5", "2"]),
        (["1,234.50", "1.500"], ["1234.5", "1.5"]),
    ],
)
def test_what_an_amount_is_shows_in_the_others_of_its_file(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    amounts: list[str],
    read: list[str | None],
) -> None:
    rows = "".join(f"C2;T{n};{amount}\n" for n, amount in enumerate(amounts))

    ran = call(tracker, capsys, "import", f"subid;tid;payout\n{rows}", "--json")

    assert [told["amount"] for told in ran.objects] == read
    assert ran.status == int(None in read)


def test_in_a_pipe_the_later_of_two_styles_is_refused() -> None:
    reader = AmountReader()

    first, second = reader.read("1.500"), reader.read("12,50")

    assert first.amount == Decimal("1.5")
    assert second.amount is None
    assert "'1.500' before it was read with a decimal point" in second.flaw


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("C1,12,50,T1,sale", ("--decimal-comma",)),
        ("C1,12,50", ("--decimal-comma",)),
        ("C1,-12,5,T1", ("--decimal-comma",)),
        ("C1,€12,50", ("--decimal-comma",)),
        ("C1,1,234.50", ()),
        ("C1,$1,234.50", ()),
        ("C1,1,234.50,T1", ("--decimal-comma",)),
    ],
)
def test_an_amount_that_its_own_comma_cuts_is_refused(
    tracker: Client, capsys: pytest.CaptureFixture[str], line: str, words: tuple[str, ...]
) -> None:
    ran = call(tracker, capsys, "import", f"C3,1,T3\n{line}\n", "--json", *words)

    assert (ran.status, ran.objects[1]["verdict"]) == (1, "skipped")
    assert "has no quotes: put it in quotes" in ran.objects[1]["reason"]
    assert [subid for subid, *_ in kept(tracker)] == ["C3"]


def test_the_same_under_titles(tracker: Client, capsys: pytest.CaptureFixture[str]) -> None:
    content = "subid,payout,tid\nC1,12,50\nC3,12,T3\n"

    ran = call(tracker, capsys, "import", content, "--decimal-comma", "--json")

    assert [told["verdict"] for told in ran.objects] == ["skipped", "recorded"]


@pytest.mark.parametrize(
    ("title", "column", "amount", "words", "currency"),
    [
        ("payout", "EUR", "12.50", (), "EUR"),
        ("payout", "eur", "12.50", (), "EUR"),
        ("payout", "€", "12.50", (), "EUR"),
        ("payout", "US$", "12.50", (), "USD"),
        ("payout", "CAD", "$12.50", (), "CAD"),
        ("payout", "EUR", "$12.50", (), None),
        ("payout", "", "$12.50", ("--currency", "EUR"), "USD"),
        ("payout", "", "$12.50", ("--currency", "CAD"), "CAD"),
        ("payout", "", "¥500", ("--currency", "JPY"), "JPY"),
        ("payout", "", "12.50 €", ("--currency", "USD"), "EUR"),
        ("payout", "", "12.50", ("--currency", "EUR"), "EUR"),
        ("Payout (EUR)", "", "12.50", (), "EUR"),
        ("Commission €", "", "12.50", (), "EUR"),
        ("payout_eur", "", "12.50", (), "EUR"),
        ("Payout ($)", "", "12.50", (), "USD"),
        ("Payout ($)", "", "12.50", ("--currency", "CAD"), "CAD"),
        ("Payout (EUR)", "GBP", "12.50", (), "GBP"),
        ("payout", "GBP", "12.50 EUR", (), None),
    ],
)
def test_the_currency_is_the_columns_then_the_amounts_then_that_of_all(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    title: str,
    column: str,
    amount: str,
    words: tuple[str, ...],
    currency: str | None,
) -> None:
    content = f"subid,currency,{title}\nC1,{column},{amount}\n"

    ran = call(tracker, capsys, "import", content, *words)

    assert ran.status == int(currency is None), ran.out
    assert [found[4] for found in kept(tracker)] == ([] if currency is None else [currency])


@pytest.mark.parametrize("line", ["C1,5,T1,sale,MYCOIN", "C1,5,T1,sale,mycoin"])
def test_a_currency_without_a_meaning_waits_in_the_file_until_a_rate_names_it(
    tracker: Client, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    ran = call(tracker, capsys, "import", f"{line}\n", "--json")
    foretold = call(tracker, capsys, "import", f"{line}\n", "--json", "--dry-run")
    config = str(tracker.directory / "config.ini.php")
    assert cli.main(["rates", "set", "MYCOIN", "2", "--config", config]) == 0
    again = call(tracker, capsys, "import", f"{line}\n", "--json", "--dry-run")
    taken = call(tracker, capsys, "import", f"{line}\n")

    assert (ran.status, foretold.status) == (1, 1)
    assert [told["verdict"] for told in (*ran.objects, *foretold.objects)] == ["skipped"] * 2
    assert "currency 'MYCOIN' is no code of ISO 4217" in ran.objects[0]["reason"]
    assert (again.objects[0]["verdict"], taken.status) == ("recorded", 0)
    assert kept(tracker) == [("C1", "T1", "sale", "5", "MYCOIN")]


def test_a_title_with_a_sign_that_may_be_several_is_asked_about(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = call(tracker, capsys, "import", "subid,Payout (¥)\nC1,500\n")

    assert (ran.status, tracker.postbacks()) == (1, [])
    assert "may be several currencies: say which with --currency" in ran.err


def test_a_dollar_is_not_taken_for_the_trackers_own_nor_for_another(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = receiver_with(currency="CAD")
    tracker.click("C1")

    ran = call(tracker, capsys, "import", "C1,$5\n", "--json")
    said = call(tracker, capsys, "import", "C1,$5\n", "--currency", "USD")

    assert "may be several: say which with --currency" in ran.objects[0]["reason"]
    assert (ran.status, said.status) == (1, 0)
    assert kept(tracker)[0][4] == "USD"


def test_what_was_read_stands_in_the_log_as_a_postback_says_it(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = set_up(receiver_with(decimal_comma="yes"))
    call(tracker, capsys, "import", 'C1,"€ 1.234,50",T1\nC3,"0,125",T3\n')

    assert [logged.query for logged in tracker.postbacks()] == [
        "subid=C1&payout=1234.5&tid=T1&currency=EUR",
        "subid=C3&payout=0.1250&tid=T3",
    ]
    before = tracker.snapshot()
    for logged in tracker.postbacks():
        assert tracker.send(logged.query).verdict == "repeated"
    assert tracker.snapshot() == before


def test_every_code_is_a_mark_and_what_is_none_is_none() -> None:
    assert {read_mark(code.lower()) for code in CODES} == CODES
    assert [read_mark(text) for text in ("", "XYZ", "643", "null", "LEAD", "¤")] == [None] * 6
    assert settle_currency((), "EUR", "USD") == "EUR"


# How a number is written: the sign between thousands, the sign before the decimals.
STYLES = [
    ("", "."),
    ("", ","),
    (",", "."),
    (".", ","),
    (" ", ","),
    (" ", "."),
    ("\xa0", ","),
    ("\u202f", ","),
    ("'", "."),
    ("’", "."),
    ("'", ","),
]
MARKS = ["", "$", "€ ", "US$", " USD", "USD ", " €", " руб."]
MONEY = st.decimals(
    min_value=Decimal("-999999999"), max_value=Decimal("999999999"), places=6
) | st.integers(-2_000_000, 2_000_000).map(Decimal)


def write(amount: Decimal, style: tuple[str, str], mark: str, minus: str, places: int) -> str:
    """Write an amount in this style."""
    group, point = style
    text = f"{abs(amount):,.{places}f}".replace(",", "G").replace(".", "P")
    text = text.replace("G", group).replace("P", point)
    text = f"{text}{mark}" if mark.startswith(" ") else f"{mark}{text}"
    if amount >= 0:
        return text
    return f"({text})" if minus == "(" else f"{minus}{text}"


@given(
    amount=MONEY,
    style=st.sampled_from(STYLES),
    mark=st.sampled_from(MARKS),
    minus=st.sampled_from(["-", "−", "–", "(", "- "]),
    places=st.integers(0, 6),
    decimal_comma=st.booleans(),
)
def test_an_amount_reads_back_to_itself_or_is_refused(
    amount: Decimal,
    style: tuple[str, str],
    mark: str,
    minus: str,
    places: int,
    decimal_comma: bool,
) -> None:
    amount = round(amount, places)
    reader = AmountReader(decimal_comma=decimal_comma)
    if not decimal_comma and style == (".", ","):
        # Whole thousands with a point have two readings by themselves: the file has others.
        reader.learn([write(Decimal("12.50"), style, mark, minus, 2)])

    read = reader.read(write(amount, style, mark, minus, places))

    assert read.amount in {amount, None}
    assert (read.amount is None) == bool(read.flaw)


@given(
    amount=st.decimals(min_value=0, max_value=Decimal("999999.99"), places=2),
    style=st.sampled_from(STYLES),
)
def test_with_two_decimals_every_style_is_read(amount: Decimal, style: tuple[str, str]) -> None:
    assert AmountReader().read(write(amount, style, "", "-", 2)).amount == amount


@given(st.text(st.sampled_from("0123456789.,'- ()$€+USDkr\xa0−%eE"), max_size=12))
def test_no_text_is_read_as_another_number_than_its_digits_say(text: str) -> None:
    read = read_written(text)

    if read.amount is not None:
        digits = "".join(filter(str.isdigit, text))
        seen = f"{abs(read.amount):f}".replace(".", "")
        assert seen.strip("0") == digits.strip("0")
        assert math.copysign(1, read.amount) == (
            -1 if read.amount and ("(" in text or "-" in text or "−" in text) else 1
        )
