"""What the services' documents say, in the tracker's currency: exact, or a sentence why not."""

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import HTML, cbr_document, ecb_document, er_api_document, openexchangerates_document

from postbackd.exchange.sources import FEEDS, UnreadableDocumentError, read_rate_table
from rates import decimal_text

DAY = date(2026, 3, 2)


def read(source: str, text: str | bytes, tracker: str = "USD", today: date = DAY) -> dict[str, str]:
    table = read_rate_table(
        source, text if isinstance(text, bytes) else text.encode(), tracker, today
    )
    return {currency: decimal_text(rate) for currency, rate in table.rates.items()}


ECB = ecb_document(DAY, {"USD": "1.0876", "GBP": "0.8432", "JPY": "161.05"})


def test_the_ecb_says_what_a_euro_buys() -> None:
    rates = read("ecb", ECB)

    assert rates == {
        "EUR": "1.0876",
        "GBP": "1.28984819734345351",
        "JPY": "0.00675318224153989444",
    }


def test_the_base_itself_may_be_the_trackers_currency() -> None:
    assert read("ecb", ECB, "EUR")["USD"] == "0.919455682236116219"


def test_the_bank_of_russia_says_what_some_units_are_worth_in_roubles() -> None:
    document = cbr_document(
        DAY, {"USD": (1, "81,5000"), "KZT": (100, "16,3000"), "UAH": (10, "20")}
    )

    assert read("cbr", document) == {
        "RUB": "0.0122699386503067485",
        "KZT": "0.002",
        "UAH": "0.0245398773006134969",
    }
    assert read("cbr", document, "RUB") == {"USD": "81.5", "KZT": "0.163", "UAH": "2"}


@pytest.mark.parametrize(
    ("source", "document"),
    [
        ("er-api", er_api_document(DAY, "USD", {"EUR": "0.8", "BTC": "1.25e-05"})),
        (
            "openexchangerates",
            openexchangerates_document(DAY, "USD", {"EUR": "0.8", "BTC": "1.25E-5"}),
        ),
    ],
)
def test_the_two_that_speak_json_say_what_the_base_buys(source: str, document: str) -> None:
    assert read(source, document) == {"EUR": "1.25", "BTC": "80000"}
    assert read(source, document, "EUR") == {"USD": "0.8", "BTC": "64000"}


prices = st.decimals("0.0001", "99999", places=4)


@given(prices, prices)
def test_a_cross_rate_is_right_in_its_first_seventeen_digits(
    dollar: Decimal, pound: Decimal
) -> None:
    crossed = read("ecb", ecb_document(DAY, {"USD": str(dollar), "GBP": str(pound)}))["GBP"]

    exact = Fraction(dollar) / Fraction(pound)
    assert abs(Fraction(crossed) - exact) <= exact / 10**17


def test_a_document_without_the_trackers_currency_has_nothing_for_us_and_is_no_fault() -> None:
    assert read("ecb", ECB, "RUB") == {}


@pytest.mark.parametrize("rate", ["0", "-1.2", "NaN", "Infinity", "", "1,08", "1e5", "9" * 70])
def test_a_number_that_can_be_no_rate_spoils_its_own_currency_only(rate: str) -> None:
    document = ecb_document(DAY, {"USD": "1.0876", "GBP": rate})

    table = read_rate_table("ecb", document.encode(), "USD", DAY)

    assert list(table.rates) == ["EUR"]
    assert "GBP" in table.flaws


@pytest.mark.parametrize("rate", ["0", "-1.2", "NaN", "Infinity", "true", '"1.08"', "null", "[1]"])
@pytest.mark.parametrize("source", ["er-api", "openexchangerates"])
def test_likewise_in_json(source: str, rate: str) -> None:
    write = er_api_document if source == "er-api" else openexchangerates_document
    document = write(DAY, "USD", {"EUR": "0.9", "GBP": rate})

    table = read_rate_table(source, document.encode(), "USD", DAY)

    assert list(table.rates) == ["EUR"]
    assert "GBP" in table.flaws


def test_a_currency_given_twice_and_not_the_same_is_not_believed() -> None:
    document = ECB.replace(
        "<Cube currency='GBP'", "<Cube currency='GBP' rate='8.432'/>" * 2 + "<Cube currency='GBP'"
    )

    table = read_rate_table("ecb", document.encode(), "USD", DAY)

    assert table.flaws == {"GBP": "it is given twice, and not the same"}


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    + "]><ValCurs Date='02.03.2026'>&a11;</ValCurs>"
)
READS_A_FILE = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    "<ValCurs Date='02.03.2026'>&f;</ValCurs>"
)
OTHER_DAY = ECB.replace(str(DAY), "{}")

UNREADABLE = {
    "cut in half": ("ecb", ECB[: len(ECB) // 2], "is no XML"),
    "an entity bomb": ("cbr", LAUGHS, "declares entities or a DTD"),
    "an entity that reads a file": ("cbr", READS_A_FILE, "declares entities or a DTD"),
    "a DTD elsewhere": (
        "ecb",
        ECB.replace("<gesmes", '<!DOCTYPE e SYSTEM "http://127.0.0.1/e.dtd"><gesmes', 1),
        "declares entities or a DTD",
    ),
    "a page for people": ("ecb", HTML, "it begins with '<!DOCTYPE html>"),
    "a page that is XML too": ("ecb", "<html><body/></html>", "a <html> without rates"),
    "another source's": ("cbr", ECB, "a <Envelope> without rates"),
    "nests without end": ("ecb", "<a>" * 300_000, "is no XML"),
    "an encoding nobody knows": ("ecb", '<?xml version="1.0" encoding="x-none"?><a/>', "is no XML"),
    "no rates": ("ecb", ecb_document(DAY, {}), "has no rates of use"),
    "a day that is none": ("ecb", OTHER_DAY.format("2026-13-40"), "day is '2026-13-40'"),
    "of the future": ("ecb", OTHER_DAY.format(DAY + timedelta(2)), "which is yet to come"),
    "forgotten": ("ecb", OTHER_DAY.format(DAY - timedelta(15)), "15 days old"),
    "no use for us": (
        "ecb",
        ECB.replace("1.0876", "0"),
        "USD, the tracker's currency, is of no use",
    ),
    "too many": (
        "ecb",
        ecb_document(DAY, {f"X{number:04}": "1" for number in range(1001)}),
        "more than 1000 currencies",
    ),
    "XML for JSON": ("er-api", ECB, "is no JSON"),
    "JSON cut in half": ("er-api", er_api_document(DAY, "USD", {"EUR": "1"})[:60], "is no JSON"),
    "lists without end": ("er-api", "[" * 200_000, "is no JSON"),
    "a list": ("er-api", "[]", "no object"),
    "an error of er-api": (
        "er-api",
        '{"result": "error", "error-type": "unsupported-code"}',
        "says 'unsupported-code'",
    ),
    "an error of openexchangerates": (
        "openexchangerates",
        '{"error": true, "status": 401, "message": "invalid_app_id"}',
        "says 'invalid_app_id'",
    ),
    "no base": ("openexchangerates", '{"timestamp": 1, "rates": {"EUR": 1}}', "base is 'None'"),
    "no time": ("openexchangerates", '{"base": "USD", "rates": {"EUR": 1}}', "timestamp is 'None'"),
    "a time beyond the calendar": (
        "openexchangerates",
        '{"base": "USD", "timestamp": 1e30, "rates": {"EUR": 1}}',
        "timestamp is",
    ),
    "no table": ("er-api", '{"result": "success", "base_code": "USD"}', "has no rates of use"),
}


@pytest.mark.parametrize(("source", "document", "sentence"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_document_that_is_none_is_told_in_a_sentence(
    source: str, document: str, sentence: str
) -> None:
    with pytest.raises(UnreadableDocumentError, match=r"^its ") as refusal:
        read(source, document)

    assert sentence in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_tomorrows_rates_of_the_bank_of_russia_are_no_mistake() -> None:
    document = cbr_document(DAY + timedelta(1), {"USD": (1, "81,5")})

    assert read_rate_table("cbr", document, "USD", DAY).day == DAY + timedelta(1)


@given(
    st.binary(max_size=300) | st.text(max_size=300).map(str.encode), st.sampled_from(list(FEEDS))
)
def test_no_document_raises_anything_else(document: bytes, source: str) -> None:
    try:
        table = read_rate_table(source, document, "USD", DAY)
    except UnreadableDocumentError:
        return

    assert all(rate > 0 for rate in table.rates.values())
