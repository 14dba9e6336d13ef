"""Names, values and escapes are read as PHP reads them; what is stored reads back the same."""

import sys
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbackd.intake.query import (
    Postback,
    read_cookies,
    read_fields,
    read_postback,
    rewrite_query,
    store_query,
    warn_of_unread,
)
from postbackd.raw_text import give_bytes

# Measured with parse_str() of PHP 8.2; arrays, which the contract leaves out, are empty here.
MEASURED = [
    ("a.b=1", {"a_b": "1"}),
    ("a b=1", {"a_b": "1"}),
    ("+a=1", {"a": "1"}),
    ("%20a=1", {"a": "1"}),
    ("a%00b=1", {"a": "1"}),
    ("%00a=1", {}),
    ("a[b=1", {"a_b": "1"}),
    ("a[b.c d[e=1", {"a_b_c_d_e": "1"}),
    ("a[=1", {"a_": "1"}),
    ("a.[b=1", {"a__b": "1"}),
    ("a]b=1", {"a]b": "1"}),
    ("a\tb=1", {"a\tb": "1"}),
    ("a[b]=1", {}),
    ("a[]=1", {}),
    ("a%5B%5D=1", {}),
    ("a[b]c=1", {}),
    ("[a]=1", {}),
    ("=1", {}),
    ("", {}),
    ("&&", {}),
    ("a", {"a": ""}),
    ("a=", {"a": ""}),
    ("a==1", {"a": "=1"}),
    ("a=1&a=2", {"a": "2"}),
    ("a=1;b=2", {"a": "1;b=2"}),
    # Unlike PHP: HTML's '&amp;', and an empty repeat.
    ("amp;a=1&AMP%3Bamp;b=2&xamp;c=3", {"a": "1", "b": "2", "xamp;c": "3"}),
    ("a=1&a=&b=&b=%20", {"a": "1", "b": ""}),
    ("a=%zz&b=%4", {"a": "%zz", "b": "%4"}),
    ("a=%u0041", {"a": "%u0041"}),
    ("a%FF=1", {"a\U0010feff": "1"}),
    ("a=%FF%C3%A9", {"a": "\U0010feffé"}),
    ("%61=1&a=2", {"a": "2"}),
    ("sub id=3", {"sub_id": "3"}),
    ("a=b+c%2Bd", {"a": "b c+d"}),
    ("a=\xc3\xa9", {"a": "é"}),
]


@pytest.mark.parametrize(("query", "fields"), MEASURED)
def test_a_query_is_read_as_php_reads_it(query: str, fields: dict[str, str]) -> None:
    assert read_fields(query) == fields


@pytest.mark.parametrize(
    ("header", "cookies"),
    [
        ("subid=c1", {"subid": "c1"}),
        ("a=1; subid=c%201;b=2", {"a": "1", "subid": "c 1", "b": "2"}),
        ("subid=c1; subid=c2", {"subid": "c1"}),
        ("=x; ;", {"": "x"}),
    ],
)
def test_cookies_are_read_as_php_reads_them(header: str, cookies: dict[str, str]) -> None:
    assert read_cookies(header) == cookies


def test_a_percent_macro_whose_start_looks_like_an_escape_is_still_a_macro() -> None:
    fields = read_fields("subid=%aff_sub%&tid=%ad_id%")

    assert fields == {"subid": "%aff_sub%", "tid": "%ad_id%"}


def read(query: str) -> Postback:
    return read_postback(read_fields(query), {}, tracker_currency="USD")


@pytest.mark.parametrize(
    ("query", "warning"),
    [
        ("payout=1$1", "payout '1$1' is unreadable"),
        ("payout={sum}", "payout is '{sum}', a macro"),
        ("currency=dollars!", "currency 'dollars!' is no currency code"),
        ("cost=1e3", "cost '1e3' is unreadable"),
        ("sub_id_7=[x]", "sub_id_7 is '[x]', a macro"),
        ("from=%from%", "from is '%from%', a macro"),
        ("payout=%1B[2J", r"payout '\x1b[2J' is unreadable"),
        ("payout=" + "9" * 70, "payout '" + "9" * 64 + "…' is unreadable"),
    ],
)
def test_what_cannot_be_used_is_named_and_quoted(query: str, warning: str) -> None:
    assert any(text.startswith(warning) for text in read(f"subid=c1&{query}").warnings)


@pytest.mark.parametrize(
    ("query", "stored"),
    [
        ("subid=c1&payout=10", "subid=c1&payout=10"),
        ("subid=\xe9 \n", "subid=%E9%20%0A"),
        ("subid=%E9", "subid=%E9"),
    ],
)
def test_a_stored_query_is_printable(query: str, stored: str) -> None:
    assert store_query(query) == stored


def test_body_fields_and_a_cookies_subid_follow_the_query() -> None:
    with_body = store_query("subid=c1&status=sale", "status=lead&payout=10&sta%74us=x")
    with_cookie = store_query("status=sale", cookie_subid="c 1&x")

    assert with_body == "subid=c1&status=sale&payout=10"
    assert with_cookie == "status=sale&subid=c%201%26x"


bytes_as_text = st.binary(max_size=60).map(lambda raw: raw.decode("latin-1"))
queries = bytes_as_text | st.lists(
    st.sampled_from(["subid=c1", "a[]=1", "a.b=%E9", "%", "+", "x=%00", "status=", "=", "&&"]),
    max_size=6,
).map("&".join)


@given(queries, queries)
def test_a_stored_query_reads_back_as_what_was_sent(query: str, body: str) -> None:
    stored = store_query(query, body)

    assert stored.isascii()
    assert stored.isprintable()
    sent = {name: value for name, value in read_fields(query).items() if value.strip(" \t\n\r\0\v")}
    assert read_fields(stored) == {**read_fields(query), **read_fields(body), **sent}


@given(queries, queries)
def test_no_bytes_raise_and_every_value_is_text_that_can_be_stored(
    query: str, cookies: str
) -> None:
    postback = read_postback(read_fields(query), read_cookies(cookies), tracker_currency="USD")

    repr(postback).encode()
    (postback.incoming.subid or "").encode()


# --- More parameters than anybody sends ---------------------------------------------------------

# Source: the PHP manual, `max_input_vars`.
READ = 1000


def write_many(count: int, first: int = 0) -> str:
    return "&".join(f"x{number}=y" for number in range(first, first + count))


def test_php_reads_a_thousand_parameters_and_no_more() -> None:
    query = f"{write_many(READ - 1)}&subid=c1&payout=5"

    fields = read_fields(query)

    assert (len(fields), fields["subid"], fields.get("payout")) == (READ, "c1", None)
    assert warn_of_unread(query) == (
        "1 parameters after the first 1000 are left unread, as by PHP",
    )


def test_empty_parameters_do_not_count() -> None:
    query = f"&&{write_many(READ - 1)}{'&' * 5000}subid=c1"

    assert read_fields(query)["subid"] == "c1"
    assert warn_of_unread(query) == ()
    assert warn_of_unread(f"{query}&x&y")[0].startswith("2 parameters after")


def test_what_is_left_unread_is_kept_as_it_came() -> None:
    query, body = write_many(600), f"{write_many(600, 300)}&payout=5&&%41[="

    stored = store_query(query, body)

    # Of the body, 300 are in the query already.
    assert stored == f"{query}&{write_many(300, 600)}&payout=5&&%41[="
    assert read_fields(stored)["payout"] == "5"
    assert store_query(write_many(1200), body) == f"{write_many(1200)}&{body}"


def test_a_body_that_names_too_much_is_kept_whole() -> None:
    body = write_many(1500)

    assert store_query("", body) == body
    # The first 999 that the query does not name are read; the rest is not.
    assert store_query("x5=z", body) == f"x5=z&{write_many(5)}&{write_many(1494, 6)}"
    assert store_query("x1200=z", body) == f"x1200=z&{body}"


@pytest.mark.parametrize("count", [0, 1, READ - 1, READ, READ + 1, 3 * READ])
def test_a_click_id_of_a_cookie_is_read_again_however_much_came(count: int) -> None:
    query = write_many(count)

    stored = store_query(query, cookie_subid="c1")

    assert read_fields(stored)["subid"] == "c1"
    others = [pair for pair in stored.split("&") if pair != "subid=c1"]
    assert "&".join(others) == query


def test_what_a_replay_sets_is_read_however_much_came() -> None:
    query = rewrite_query(write_many(3 * READ), {}, {"sale_status": "ok", "tid": "t1"})

    fields = read_fields(query)

    assert (fields["sale_status"], fields["tid"], len(fields)) == ("ok", "t1", READ)


def test_a_thousand_cookies_are_read_and_no_more() -> None:
    header = ";".join(f"x{number}=y" for number in range(2000))

    assert len(read_cookies(header)) == READ


DEAR = {
    "names that end at once": "%00&" * 16_250,
    "names that are escaped": "%41=&" * 13_000,
    "bare percent signs": "subid=" + "%" * 65_000,
    "raw bytes": "\xe9&" * 32_500,
    "nothing but plus signs": "+&" * 32_500,
    "nothing but &": "&" * 65_000,
    "one field after the other": "a=1&" * 16_250,
}


@pytest.mark.parametrize("what", DEAR)
def test_the_dearest_body_takes_a_bounded_number_of_steps(what: str) -> None:
    steps = 0

    def count(_frame: object, event: str, _function: object) -> None:
        nonlocal steps
        steps += event == "call"

    sys.setprofile(count)
    try:
        fields = read_fields(store_query("subid=c1", DEAR[what]))
        read_postback(fields, {}, tracker_currency="USD")
    finally:
        sys.setprofile(None)

    # Functions of Python's that were called: some ten for each of a thousand names, read twice.
    # With all sixteen thousand read they would be a quarter of a million.
    assert steps < 25_000


@given(st.text(st.sampled_from("%%%%%04afAFgz+\xe9 "), max_size=20))
def test_escapes_are_read_as_the_standard_library_reads_them(raw: str) -> None:
    decoded = unquote_to_bytes(raw.replace("+", " ").encode("latin-1"))

    # The letter before it: a value that is a macro as a whole is read otherwise.
    assert give_bytes(read_fields(f"x=a{raw}")["x"]) == b"a" + decoded


@pytest.mark.parametrize(
    ("query", "renames", "values", "mended"),
    [
        ("subid=c1&status=ok", {}, {"sale_status": "ok"}, "subid=c1&status=ok&sale_status=ok"),
        ("", {}, {"subid": "c1"}, "subid=c1"),
        ("payout=1&payout=2&x", {}, {"payout": "3"}, "x&payout=3"),
        ("payout=1&x=%zz", {}, {"payout": ""}, "x=%zz"),
        ("x=1", {}, {"from": "a&b Ж"}, "x=1&from=a%26b%20%D0%96"),
        ("aff=c1&x=1", {"aff": "subid"}, {}, "subid=c1&x=1"),
        ("subid=junk&aff=c%201", {"aff": "subid"}, {}, "subid=c%201"),
        # The new name's value stays where no old name came.
        ("subid=c1&x=1", {"aff": "subid"}, {}, "subid=c1&x=1"),
        ("subid=c1&aff=", {"aff": "subid"}, {}, "subid=c1&aff="),
        ("a.b=c1", {"a_b": "subid"}, {}, "subid=c1"),
        ("subid=1&tid=2", {"subid": "tid", "tid": "subid"}, {}, "tid=1&subid=2"),
        ("aff=c1&x=1", {"aff": "subid"}, {"subid": "c2"}, "x=1&subid=c2"),
    ],
)
def test_a_stored_query_is_corrected_where_it_is_wrong_and_nowhere_else(
    query: str, renames: dict[str, str], values: dict[str, str], mended: str
) -> None:
    assert rewrite_query(query, renames, values) == mended
