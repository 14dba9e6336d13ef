"""Money: read, rounded and converted to the micro, held against fractions."""

import sqlite3
from contextlib import closing
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbackd.db.sqlite import schema
from rates import (
    EXACT,
    UnreadableRateError,
    convert,
    decimal_text,
    from_micros,
    micros_text,
    read_amount,
    read_currency,
    read_rate,
    sum_of_halves,
    to_micros,
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("10", "10"),
        ("+10", "10"),
        ("-10.50", "-10.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("007", "7"),
        ("0", "0"),
        ("-0.00", "0"),
        ("0.0000005", "0"),
        ("0.0000015", "0.000002"),
        ("0.0000025", "0.000002"),
        ("999999999.999999", "999999999.999999"),
        ("-999999999", "-999999999"),
        ("1." + "3" * 5000, "1.333333"),
    ],
)
def test_plain_decimals_are_read_and_rounded_half_even_to_the_micro(text: str, amount: str) -> None:
    read = read_amount(text)

    assert read is not None
    assert decimal_text(read) == amount


@pytest.mark.parametrize(
    "text",
    [
        *("", "$10", "10usd", "12,50", "1e3", "NaN", "Infinity", "{payout}", " 5", "5 ", "1_000"),
        *("٣", "--5", "+", ".", "-.", "1.2.3", "0x10", "1000000000", "-1000000000.0", "5\n", "½"),
    ],
)
def test_anything_else_is_unreadable(text: str) -> None:
    assert read_amount(text) is None


@pytest.mark.parametrize(
    ("text", "amount"),
    [("12,50", "12.5"), ("12,5", "12.5"), ("-3,07", "-3.07"), ("12.50", "12.5"), ("7", "7")],
)
def test_a_decimal_comma_is_read_where_the_config_allows_it(text: str, amount: str) -> None:
    assert read_amount(text, decimal_comma=True) == Decimal(amount)


@pytest.mark.parametrize("text", ["1,234", "1,234.50", "1.234,50", "12,", "1,2,3", ","])
def test_a_comma_that_could_part_thousands_stays_unreadable(text: str) -> None:
    assert read_amount(text, decimal_comma=True) is None


@pytest.mark.parametrize(
    ("text", "code"),
    [("eur", "EUR"), ("USD", "USD"), ("usdt", "USDT"), ("€", None), ("us", None), ("U S", None)],
)
def test_a_currency_is_a_code(text: str, code: str | None) -> None:
    assert read_currency(text) == code


@pytest.mark.parametrize("text", ["0", "-1", "abc", "", "1e5", "NaN", "0.0000000000001", "1" * 14])
def test_a_rate_that_is_none_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(UnreadableRateError, match="is no rate") as refusal:
        read_rate(text)

    assert repr(text) in str(refusal.value)


micros = st.integers(-(10**15) + 1, 10**15 - 1)
rates = st.decimals("0.000001", "100000", allow_nan=False, places=14)


@given(micros, rates)
def test_conversion_is_exact_to_the_micro(amount: int, rate: Decimal) -> None:
    converted = convert(from_micros(amount), rate)

    # round() of a Fraction rounds half to even.
    assert to_micros(converted) == round(Fraction(amount) * Fraction(rate))


@given(micros)
def test_micros_and_text_lead_back_to_the_same_amount(amount: int) -> None:
    text = decimal_text(from_micros(amount))
    back = read_amount(text)

    assert back is not None
    assert to_micros(back) == amount
    assert not (("." in text) and text.endswith("0"))


@given(st.text(max_size=20) | st.from_regex(r"[+-]?[0-9]{0,12}\.?[0-9]{0,9}", fullmatch=True))
def test_no_text_raises_and_what_is_read_is_whole_micros_below_the_limit(text: str) -> None:
    amount = read_amount(text, decimal_comma=True)

    assert amount is None or abs(to_micros(amount)) <= 10**15


@given(st.lists(micros, max_size=30), st.randoms())
def test_a_sum_is_the_same_in_any_order(amounts: list[int], random: "object") -> None:
    shuffled = list(amounts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert sum(map(from_micros, amounts)) == sum(map(from_micros, shuffled))


signed_rates = st.decimals("0.000001", "1000000", allow_nan=False, places=12)


@given(micros, signed_rates)
def test_there_and_back_is_off_by_no_more_than_the_two_roundings_allow(
    amount: int, rate: Decimal
) -> None:
    there = convert(from_micros(amount), rate)
    back_rate = EXACT.divide(Decimal(1), rate)

    back = to_micros(convert(there, back_rate))

    # Half a micro there, worth half a micro times the way back, and half a micro back. The way
    # back itself is cut off after 120 digits.
    allowed = Fraction(1, 2) / Fraction(rate) + Fraction(1, 2) + Fraction(1, 10**60)
    assert abs(back - amount) <= allowed


@pytest.mark.parametrize("micros", [10**15 - 1, -(10**15) + 1, 10**18 - 1, -(10**18) + 1])
def test_a_sum_of_a_million_amounts_near_the_limit_does_not_overflow(micros: int) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        question = (
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)"
            f" SELECT {schema.sum_sql('micros')} FROM (SELECT ? AS micros FROM n)"
        )
        halves = db.execute(question, (micros,)).fetchone()

    assert sum_of_halves(*halves) == micros * 1_000_000
    assert sum([from_micros(micros)] * 1000) == Fraction(micros) / 1000


@given(st.integers(-(10**22), 10**22) | st.integers(-(10**13), 10**13).map(lambda n: n * 1000))
def test_micros_are_written_like_the_decimal_that_they_are(micros: int) -> None:
    assert micros_text(micros) == decimal_text(from_micros(micros))


@given(st.lists(st.integers(-(10**18) + 1, 10**18 - 1), max_size=30))
def test_a_sum_in_halves_is_the_sum(amounts: list[int]) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE t (micros INTEGER)")
        db.executemany("INSERT INTO t VALUES (?)", ((amount,) for amount in amounts))
        halves = db.execute(f"SELECT {schema.sum_sql('micros')} FROM t").fetchone()

    assert sum_of_halves(*halves) == sum(amounts)
