"""The parameters of a query (section 2 of the contract), and its status (section 3)."""

import json
from urllib.parse import parse_qs, quote, urlencode

import pytest
from conftest import (
    Click,
    Client,
    Conversion,
    Conversions,
    Postbacks,
    ReceiverWith,
    Send,
)


def the_conversion(client: Client, query: str, subid: str = "c1") -> Conversion:
    """Send one postback about a fresh click and return the conversion it made."""
    client.click(subid)
    answer = client.send(query)
    assert answer.verdict == "recorded", (answer.verdict, answer.reason)
    [made] = client.conversions(subid)
    return made


# --- Names, as PHP reads them ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_comes_after_a_thousand_parameters_is_kept_and_left_unread(
    client: Client, postbacks: Postbacks, method: str
) -> None:
    many = "&".join(f"x{number}={number}" for number in range(1200))
    query = f"subid=c1&{many}&payout=5"
    client.click("c1")

    answer = client.send(query) if method == "GET" else client.post("", query)

    assert (answer.verdict, answer.reason) == ("recorded", "warnings: 1, see the log")
    assert [c.amount for c in client.conversions("c1")] == [None]
    [kept] = postbacks()
    assert kept.query == query
    assert kept.warnings == ["202 parameters after the first 1000 are left unread, as by PHP"]


def test_what_is_left_unread_is_left_when_a_click_comes_too(client: Client) -> None:
    client.send(f"subid=c1&payout=1&{'x&' * 1200}payout=5")

    client.click("c1")

    assert [c.amount for c in client.conversions("c1")] == ["1"]


@pytest.mark.parametrize(
    "query",
    [
        "subid=c1",
        "sub_id=c1",
        "clickid=c1",
        "click_id=c1",
        "sub.id=c1",
        "sub+id=c1",
        "sub%20id=c1",
        "sub%2Eid=c1",
        "click.id=c1",
        "%73ubid=c1",
        "subid=wrong&subid=c1",
        "sub_id=wrong&sub.id=c1",
        "sub.id=wrong&sub_id=c1",
        "&&subid=c1&",
        "subid=c1&subid[]=wrong",
        "subid=c1&subid[x]=wrong",
        "subid[]=wrong&sub_id=c1",
        "%20subid=c1",
        "SUBID=c1",
        "ClickId=c1",
        "subid=&SubId=c1",
        "SubId=x&click_id=c1",
        "amp;subid=c1",
        "amp;amp;subid=c1",
        "%61mp%3Bsubid=c1",
        "AMP;Subid=c1",
        "subid=c1&subid=",
        "subid=c1&subid=%20",
    ],
)
def test_the_click_is_found_under_every_name_it_goes_by(
    client: Client, conversions: Conversions, query: str
) -> None:
    client.click("c1")

    assert client.send(f"{query}&status=sale").verdict == "recorded"
    assert len(conversions("c1")) == 1


@pytest.mark.parametrize(
    "query",
    [
        "",
        "subid",
        "subid=",
        "subid=%20",
        "subid[]=c1",
        "subid%5B%5D=c1",
        "sub_id[]=c1",
        "subid[0]=c1",
        "sub-id=c1",
        "aff_sub=c1",
        "status=sale;subid=c1",
        "_subid=c1",
    ],
)
def test_any_other_name_leaves_the_postback_without_a_click(client: Client, query: str) -> None:
    client.click("c1")

    assert client.send(query).verdict == "invalid"
    assert client.conversions() == []


@pytest.mark.parametrize(
    "query",
    [
        "subid=c1&sub_id=x&clickid=x&click_id=x",
        "click_id=x&clickid=x&sub_id=x&subid=c1",
        "click_id=x&clickid=x&sub_id=c1",
        "click_id=x&clickid=c1",
        "subid=&sub_id=c1&click_id=x",
        "subid=%20%09&sub_id=c1",
        "subid={subid}&sub_id=c1",
        "subid=REPLACE&clickid=[clickid]&click_id=c1",
    ],
)
def test_of_several_names_the_leftmost_usable_one_of_the_table_wins(
    client: Client, conversions: Conversions, query: str
) -> None:
    client.click("c1")
    client.click("x")

    client.send(query)

    assert (len(conversions("c1")), conversions("x")) == (1, [])


def test_a_semicolon_separates_nothing(client: Client) -> None:
    made = the_conversion(client, "subid=c1&tid=1;status=lead")

    assert (made.tid, made.status) == ("1;status=lead", "sale")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a+b", "a b"),
        ("a%2Bb", "a+b"),
        ("100%", "100%"),
        ("%zz", "%zz"),
        ("%4", "%4"),
        ("%4%41", "%4A"),
        ("%2541", "%41"),
        ("%D0%96", "Ж"),
        ("Ж", "Ж"),
        ("%ff", "\U0010feff"),
        ("a%ffb", "a\U0010feffb"),
        ("x=y", "x=y"),
        ("==", "=="),
        ("%26", "&"),
        ("a?b", "a?b"),
        ("a/b", "a/b"),
        ("tid", "tid"),
        ("a%00b", "a\ufffdb"),
        ("a%0D%0Ab", "a\r\nb"),
        ("%20%09%0D%0A%0B%00t1%00%0B%0A%0D%09%20", "t1"),
        ("%0Ct1%0C", "\x0ct1\x0c"),
        ("%C2%A0t1", "\xa0t1"),
        ("%1Ft1", "\x1ft1"),
        ("%E2%80%83t1", "\u2003t1"),
    ],
)
def test_a_value_is_read_as_php_reads_it(client: Client, written: str, read: str) -> None:
    raw = written.encode().decode("latin-1")

    assert the_conversion(client, f"subid=c1&tid={raw}").tid == read


@pytest.mark.parametrize("subid", ["c1\xa0", "C1", "ж" * 255, "a b", "<c1>x", "1", "0", "c\ufffd1"])
def test_a_subid_is_exact(client: Client, subid: str) -> None:
    client.click("c1")
    client.click(subid)

    assert client.send(urlencode({"subid": subid})).verdict == "recorded"
    assert client.conversions("c1") == []
    assert [c.subid for c in client.conversions()] == [subid]


@pytest.mark.parametrize("name", ["subid", "tid"])
@pytest.mark.parametrize("letter", ["x", "Ж"])
def test_a_subid_or_tid_has_255_characters_at_most(client: Client, name: str, letter: str) -> None:
    fields = {"subid": "c1", "status": "lead"}
    client.click("c1")
    client.click(letter * 255)

    assert client.send(urlencode({**fields, name: letter * 255})).verdict == "recorded"
    assert client.send(urlencode({**fields, name: letter * 256})).verdict == "invalid"


def test_a_tid_is_exact_in_its_case_too(client: Client) -> None:
    client.click("c1", offer="O1")
    client.allow_rebills("O1")

    for tid in ("ab", "AB", "ab\u0301", "á", "01", "1"):
        assert client.send(urlencode({"subid": "c1", "tid": tid})).verdict == "recorded"

    assert len(client.conversions("c1")) == 6


# --- Cookies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cookie", ["subid=c1", "_subid=c1", "a=b; subid=c1; c=d", "_subid=x; subid=c1"]
)
@pytest.mark.parametrize("address", ["postback", "postback.gif"])
def test_the_cookie_of_a_landing_page_names_the_click(
    client: Client, cookie: str, address: str
) -> None:
    client.click("c1")
    client.click("x")

    client.request(f"/s3cret-key-of-the-tests/{address}?status=lead", headers={"Cookie": cookie})

    assert len(client.conversions("c1")) == 1
    assert client.conversions("x") == []


@pytest.mark.parametrize("query", ["subid=c1", "click_id=c1", "subid=&sub_id=c1"])
def test_cookies_come_last(client: Client, query: str) -> None:
    client.click("c1")
    client.click("x")

    client.send(query, cookie="subid=x; _subid=x")

    assert len(client.conversions("c1")) == 1
    assert client.conversions("x") == []


def test_the_cookie_of_a_post_does_not_count(client: Client) -> None:
    client.click("c1")

    assert client.post("status=sale", "", cookie="subid=c1").verdict == "invalid"


@pytest.mark.parametrize("cookie", ["", "subid", "subid=", "=", ";;;", "subid={subid}", 'subid="'])
def test_a_cookie_that_says_nothing_changes_nothing(client: Client, cookie: str) -> None:
    answer = client.send("status=sale", cookie=cookie)

    assert answer.status == 200
    assert answer.verdict in ({"invalid", "parked"} if cookie == 'subid="' else {"invalid"})


# --- What each parameter means ---------------------------------------------------------------


def test_without_a_status_it_is_a_sale(client: Client) -> None:
    made = the_conversion(client, "subid=c1")

    assert (made.status, made.original_status) == ("sale", None)


@pytest.mark.parametrize("lists", ["ignore=sale", "rejected_status=sale", "lead_status=sale,"])
@pytest.mark.parametrize("status", ["", "&status=", "&status=%20"])
def test_without_a_status_no_list_is_asked(client: Client, lists: str, status: str) -> None:
    assert the_conversion(client, f"subid=c1&{lists}{status}").status == "sale"


@pytest.mark.parametrize(
    "query",
    [
        "payout=5",
        "revenue=5",
        "profit=5",
        "profit=1&revenue=2&payout=5",
        "profit=1&revenue=5",
        "payout=&revenue=5&profit=1",
        "payout={payout}&profit=5",
        "payout=1&payout=5",
    ],
)
def test_the_amount_is_found_under_every_name_it_goes_by(client: Client, query: str) -> None:
    made = the_conversion(client, f"subid=c1&{query}")

    assert (made.amount, made.payout) == ("5", "5")


def test_without_an_amount_it_is_unknown_and_no_warning_is_due(client: Client) -> None:
    made = the_conversion(client, "subid=c1")

    assert (made.amount, made.payout, made.cost) == (None, None, None)
    assert client.postbacks()[-1].warnings == []


def test_an_amount_of_nothing_is_known(client: Client) -> None:
    made = the_conversion(client, "subid=c1&payout=0")

    assert (made.amount, made.payout) == ("0", "0")


@pytest.mark.parametrize("written", ["", "&currency=USD", "&currency=usd", "&currency=%20Usd"])
def test_the_currency_is_the_trackers_or_the_one_sent(client: Client, written: str) -> None:
    made = the_conversion(client, f"subid=c1&payout=5{written}")

    assert (made.amount, made.currency, made.payout) == ("5", "USD", "5")


def test_a_currency_is_kept_in_upper_case(client: Client) -> None:
    assert the_conversion(client, "subid=c1&payout=5&currency=eur").currency == "EUR"


def test_without_a_tid_it_is_empty(client: Client) -> None:
    assert the_conversion(client, "subid=c1").tid == ""


def test_the_network_is_kept_with_postback_and_conversion(client: Client) -> None:
    made = the_conversion(client, "subid=c1&from=Адверт+Гейт".encode().decode("latin-1"))

    assert made.network == "Адверт Гейт"
    assert client.postbacks()[-1].network == "Адверт Гейт"


def test_any_other_parameter_is_kept_with_the_postback(client: Client) -> None:
    the_conversion(client, "subid=c1&ip=1.2.3.4&goal=deposit&sub_id_31=x&sub-id-1=y")

    kept = parse_qs(client.postbacks()[-1].query)
    assert (kept["ip"], kept["goal"]) == (["1.2.3.4"], ["deposit"])
    assert client.conversions("c1")[0].sub_ids == {}


# --- Cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        ("cpa", "1.5"),
        ("revshare", "1.5"),
        ("", "1.5"),
        ("cpc", None),
        ("cpm", None),
        ("none", None),
    ],
)
@pytest.mark.parametrize("owner", ["click", "campaign"])
def test_cost_counts_only_where_conversions_cost_something(
    client: Client, model: str, kept: str | None, owner: str
) -> None:
    client.click("c1", campaign="C1", **({"cost_model": model} if owner == "click" else {}))
    if owner == "campaign":
        client.write("UPDATE campaigns SET cost_model = ? WHERE name = 'C1'", model or None)

    client.send("subid=c1&status=lead&cost=1.5")

    assert [c.cost for c in client.conversions("c1")] == [kept]
    assert len(client.postbacks()[-1].warnings) == (0 if kept else 1)


def test_the_cost_model_of_a_click_beats_the_one_of_its_campaign(client: Client) -> None:
    client.click("c1", campaign="C1", cost_model="cpa")
    client.click("c2", campaign="C1", cost_model="cpc")
    client.write("UPDATE campaigns SET cost_model = 'cpm'")
    client.send("subid=c1&cost=1")

    client.write("UPDATE campaigns SET cost_model = 'cpa'")
    client.send("subid=c2&cost=1")

    assert [c.cost for c in client.conversions()] == ["1", None]


def test_a_later_postback_moves_the_cost_and_one_without_leaves_it(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1&status=lead&cost=1")
    client.send("subid=c1&status=sale")

    [kept] = client.conversions("c1")
    assert kept.cost == "1"

    client.send("subid=c1&status=rejected&cost=2.25")
    [moved] = client.conversions("c1")
    assert moved.cost == "2.25"


@pytest.mark.parametrize("cost", ["1$1", "1e3", "x"])
def test_a_cost_that_cannot_be_read_leaves_it_with_a_warning(client: Client, cost: str) -> None:
    client.click("c1")
    client.send("subid=c1&status=lead&cost=1")

    client.send(f"subid=c1&status=sale&cost={cost}")

    assert [c.cost for c in client.conversions("c1")] == ["1"]
    assert len(client.postbacks()[-1].warnings) == 1


# --- Sub ids ---------------------------------------------------------------------------------


def sub_ids_of_the_click(client: Client, subid: str = "c1") -> dict[str, str]:
    """Read the sub ids that a click has now."""
    [row] = client.rows("SELECT sub_ids FROM clicks WHERE subid = ?", subid)
    return dict(json.loads(row["sub_ids"] or "{}"))


def test_a_conversion_starts_with_the_sub_ids_of_its_click(client: Client) -> None:
    client.click("c1", sub_id_1="banner", sub_id_30="night")

    client.send("subid=c1&status=lead")

    assert client.conversions("c1")[0].sub_ids == {"sub_id_1": "banner", "sub_id_30": "night"}


def test_sub_ids_of_a_postback_replace_those_of_click_and_conversion(client: Client) -> None:
    client.click("c1", sub_id_1="banner", sub_id_2="left")

    client.send("subid=c1&status=lead&sub_id_1=top&sub_id_15=x&sub_id_30=z&sub_id_2=&sub_id_31=n")

    expected = {"sub_id_1": "top", "sub_id_2": "left", "sub_id_15": "x", "sub_id_30": "z"}
    assert client.conversions("c1")[0].sub_ids == expected
    assert sub_ids_of_the_click(client) == expected


@pytest.mark.parametrize("name", ["sub_id_0", "sub_id_31", "sub_id_01", "sub_id_", "sub_id_1x"])
def test_there_are_thirty_sub_ids_and_no_more(client: Client, name: str) -> None:
    assert the_conversion(client, f"subid=c1&{name}=x").sub_ids == {}


def test_sub_ids_move_with_an_update(client: Client) -> None:
    client.click("c1", sub_id_1="banner")
    client.send("subid=c1&status=lead")

    client.send("subid=c1&status=sale&sub_id_1=top")

    assert client.conversions("c1")[0].sub_ids == {"sub_id_1": "top"}
    assert sub_ids_of_the_click(client) == {"sub_id_1": "top"}


@pytest.mark.parametrize(
    ("query", "verdict"),
    [
        ("status=lead", "refused"),
        ("status=noise&ignore=noise", "ignored"),
        ("status=what", "unmapped"),
        (f"tid={'x' * 256}", "invalid"),
    ],
)
def test_sub_ids_stay_with_any_other_verdict(client: Client, query: str, verdict: str) -> None:
    client.click("c1", sub_id_1="banner")
    client.send("subid=c1&status=sale")

    answer = client.send(f"subid=c1&{query}&sub_id_1=top&sub_id_2=new")

    assert answer.verdict == verdict
    assert client.conversions("c1")[0].sub_ids == {"sub_id_1": "banner"}
    assert sub_ids_of_the_click(client) == {"sub_id_1": "banner"}


def test_a_repeat_fills_in_the_sub_ids_that_are_empty(client: Client) -> None:
    client.click("c1", sub_id_1="banner")
    client.send("subid=c1&status=sale")

    answer = client.send("subid=c1&status=sale&sub_id_1=top&sub_id_2=new")

    assert answer.verdict == "updated"
    assert client.conversions("c1")[0].sub_ids == {"sub_id_1": "banner", "sub_id_2": "new"}
    assert sub_ids_of_the_click(client) == {"sub_id_1": "banner", "sub_id_2": "new"}
    assert client.send("subid=c1&status=sale&sub_id_1=top").verdict == "repeated"


def test_the_other_conversions_of_the_click_keep_their_sub_ids(client: Client) -> None:
    client.click("c1", offer="O1", sub_id_1="banner")
    client.allow_rebills("O1")
    client.send("subid=c1&status=sale&tid=T1")

    client.send("subid=c1&status=sale&tid=T2&sub_id_1=top")

    assert [c.sub_ids["sub_id_1"] for c in client.conversions("c1")] == ["banner", "top"]
    assert sub_ids_of_the_click(client) == {"sub_id_1": "top"}


def test_a_conversion_keeps_its_sub_ids_when_its_click_gets_others(client: Client) -> None:
    client.click("c1", sub_id_1="banner")
    client.send("subid=c1&status=sale")

    client.click("c1", sub_id_1="top")

    assert client.conversions("c1")[0].sub_ids == {"sub_id_1": "banner"}


# --- Amounts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("5", "5"),
        ("5.", "5"),
        (".5", "0.5"),
        ("0.5", "0.5"),
        ("12.50", "12.5"),
        ("100", "100"),
        ("+5", "5"),
        ("-5", "-5"),
        ("-.5", "-0.5"),
        ("0", "0"),
        ("-0", "0"),
        ("0.000", "0"),
        ("0012", "12"),
        ("0" * 300 + "7", "7"),
        (" 7\t", "7"),
        ("0.1", "0.1"),
        ("0.000001", "0.000001"),
        ("999999999.999999", "999999999.999999"),
        ("-999999999.999999", "-999999999.999999"),
        ("0.0000005", "0"),
        ("0.0000015", "0.000002"),
        ("0.0000025", "0.000002"),
        ("-0.0000015", "-0.000002"),
        ("0.00000050000000000000000000000000000000001", "0.000001"),
        ("1.2345665", "1.234566"),
        ("1.2345675", "1.234568"),
        ("1.23456750000000000000000000001", "1.234568"),
        ("19.999999499999999999999999999999999999999", "19.999999"),
        ("0." + "3" * 300, "0.333333"),
    ],
)
def test_an_amount_is_exact_to_the_micro(client: Client, written: str, amount: str) -> None:
    made = the_conversion(client, f"subid=c1&payout={quote(written)}&cost={quote(written)}")

    assert (made.amount, made.payout, made.cost) == (amount, amount, amount)
    assert client.postbacks()[-1].warnings == []


UNREADABLE = [
    *("$1,0", "10usdx", "12,50", "1e3", "NaN", "nan", "Infinity", "-inf", "1_000", "0x10", "ten"),
    *("--5", "+-5", "- 5", "5-", "1.2.3", "5..", ".", "+", "-", "+.", "1 000", "10%", "5/2"),
    *("1000000000", "-1000000000", "1" + "0" * 500, "1,234.50", "1.234,50", "٥", "５", "²", "1٫5"),
    *("5\x00.5", "€5€", "5\n5", "true", "[]", "1'000", "\ufffd5"),
]


@pytest.mark.parametrize("written", UNREADABLE)
def test_an_amount_that_cannot_be_read_is_as_if_not_sent_with_a_warning(
    client: Client, written: str
) -> None:
    made = the_conversion(client, f"subid=c1&payout={quote(written)}")

    assert (made.amount, made.payout) == (None, None)
    assert len(client.postbacks()[-1].warnings) == 1


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("12,50", "12.5"),
        ("12,5", "12.5"),
        ("-3,25", "-3.25"),
        ("+0,99", "0.99"),
        ("12.50", "12.5"),
        ("12", "12"),
        ("1.2345", "1.2345"),
        ("1.234", None),
        ("1234.567", None),
        ("12,", None),
        ("1,234", None),
        ("1,2,3", None),
        ("1,23,4", None),
        ("1.234,50", None),
        ("1,234.5", None),
        (",", None),
        ("1,5e1", None),
        ("1,٥", None),
    ],
)
def test_a_decimal_comma_is_read_where_asked_for(
    receiver_with: ReceiverWith, written: str, amount: str | None
) -> None:
    client = receiver_with(decimal_comma="yes")

    made = the_conversion(client, f"subid=c1&payout={quote(written)}")

    assert made.amount == amount
    assert len(client.postbacks()[-1].warnings) == (1 if amount is None else 0)


# --- Macros that nobody replaced -------------------------------------------------------------

MACROS = [
    *("{x}", "{{x}}", "${x}", "[x]", "[[[x]]]", "#x#", "##x##", "%x%", "%%x%%", "<x>", "[=x=]"),
    *("{sub_id.1-a b}", "{Z}", "{9}", "{" + "a" * 64 + "}", "REPLACE", "optional", "Replace"),
    *("{}", "{x}{y}", "[[x]]", "(x)", "{a,b}", "{a/b}", "{a:b}", "{{{x}}}", "__X__", "null"),
]
NO_MACROS = [
    *("{x", "x}", "{x}1", "a{x}", "{{x}", "###x###", "x", "%x", "__x__", "nullify", "(5)"),
    *("{" + "a" * 65 + "}", "REPLACED", "REPLACE ME", "$x", "[=x]", "<x", "##", "%%x%", "#x"),
]


@pytest.mark.parametrize("macro", MACROS)
def test_a_macro_left_in_tid_counts_as_not_sent(client: Client, macro: str) -> None:
    made = the_conversion(client, f"subid=c1&tid={quote(macro)}")

    assert made.tid == ""
    [warning] = client.postbacks()[-1].warnings
    assert "tid" in warning


@pytest.mark.parametrize("text", NO_MACROS)
def test_what_only_looks_like_a_macro_is_a_value(client: Client, text: str) -> None:
    made = the_conversion(client, f"subid=c1&tid={quote(text)}")

    assert made.tid == text
    warnings = client.postbacks()[-1].warnings
    # What holds a part of one is said, and taken as it came.
    assert all("stands within tid" in warning for warning in warnings)


def test_a_raw_percent_macro_is_a_macro_too(client: Client) -> None:
    assert the_conversion(client, "subid=c1&tid=%tid%&from=%%network%%").tid == ""


@pytest.mark.parametrize("name", ["subid", "payout", "currency", "cost", "sub_id_7", "from"])
def test_a_macro_left_anywhere_else_is_named_by_a_warning(client: Client, name: str) -> None:
    client.click("c1")

    answer = client.send(urlencode({"subid": "c1", name: "{x}"}))

    assert answer.verdict == ("invalid" if name == "subid" else "recorded")
    [warning] = client.postbacks()[-1].warnings
    assert name in warning
    for kept in client.conversions():
        assert (kept.amount, kept.cost, kept.sub_ids, kept.network) == (None, None, {}, None)


def test_a_macro_left_in_place_of_a_status_is_unmapped(client: Client) -> None:
    client.click("c1")

    for macro in ("{status}", "REPLACE", "[status]", "%status%"):
        answer = client.send(f"subid=c1&status={quote(macro)}")

        assert answer.verdict == "unmapped"
    assert client.conversions("c1") == []


def test_a_macro_left_in_place_of_a_currency_makes_it_unknown(client: Client) -> None:
    made = the_conversion(client, "subid=c1&payout=5&cost=2&currency={currency}")

    assert (made.amount, made.currency, made.payout, made.cost) == ("5", None, None, None)


def test_a_macro_left_in_a_sub_id_leaves_it(client: Client) -> None:
    client.click("c1", sub_id_1="banner")

    client.send("subid=c1&sub_id_1={sub1}")

    assert client.conversions("c1")[0].sub_ids == {"sub_id_1": "banner"}


# --- From the network's word to a status (section 3) -----------------------------------------


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("status=lead", "lead"),
        ("status=sale", "sale"),
        ("status=rejected", "rejected"),
        ("status=SALE", "sale"),
        ("status=%20Lead%20", "lead"),
        ("status=approved&sale_status=approved", "sale"),
        ("status=Approved&sale_status=paid,APPROVED", "sale"),
        ("status=paid&sale_status=approved%20,%20paid%09", "sale"),
        ("status=1&lead_status=1,2", "lead"),
        ("status=0&lead_status=0", "lead"),
        ("status=Одобрен&sale_status=ожидание,ОДОБРЕН", "sale"),
        ("status=two+words&sale_status=one,two+words", "sale"),
        ("status=hold&lead_status=hold&sale_status=approved&rejected_status=trash", "lead"),
        ("status=trash&lead_status=hold&sale_status=approved&rejected_status=trash", "rejected"),
        ("status=a&rejected_status=a&rejected=b&reject_status=c", "rejected"),
        ("status=b&rejected_status=a&rejected=b&reject_status=c", "rejected"),
        ("status=c&rejected_status=a&rejected=b&reject_status=c", "rejected"),
        ("status=lead&sale_status=lead", "sale"),
        ("status=sale&rejected_status=sale", "rejected"),
        ("status=rejected&lead_status=rejected", "lead"),
        ("status=rebill&sale_status=rebill", "sale"),
        ("status=w&sale_status=w&lead_status=w&rejected_status=w&rebill_status=w", "sale"),
        ("status=w&lead_status=w&rejected_status=w&rebill_status=w", "lead"),
        ("status=w&rejected_status=w&rebill_status=w", "rejected"),
        ("status=sale&sale_status=approved", "sale"),
        ("status=lead&ignore=noise", "lead"),
    ],
)
def test_a_word_means_what_the_lists_say_then_what_it_says_itself(
    client: Client, query: str, status: str
) -> None:
    assert the_conversion(client, f"subid=c1&{query}".encode().decode("latin-1")).status == status


@pytest.mark.parametrize("query", ["status=rebill", "status=prolonged&rebill_status=x,prolonged"])
def test_a_word_may_mean_a_rebill(client: Client, query: str) -> None:
    client.click("c1", offer="O1")
    client.allow_rebills("O1")

    client.send(f"subid=c1&tid=T1&{query}")

    assert [c.status for c in client.conversions("c1")] == ["rebill"]


@pytest.mark.parametrize(
    "query",
    [
        "status=noise&ignore=noise",
        "status=NOISE&ignore=a,%20noise",
        "status=noise&ignore_status=noise",
        "status=b&ignore=a&ignore_status=b",
        "status=a&ignore=a&ignore_status=b",
        "status=sale&ignore=sale",
        "status=w&sale_status=w&ignore=w",
    ],
)
@pytest.mark.parametrize("subid", ["c1", "unknown"])
def test_an_ignored_word_does_nothing(client: Client, query: str, subid: str) -> None:
    client.click("c1")

    answer = client.send(f"subid={subid}&{query}")

    assert (answer.verdict, answer.text) == ("ignored", "Success")
    assert client.conversions() == []
    client.click("unknown")
    assert client.conversions() == []


@pytest.mark.parametrize(
    "query",
    [
        "status=what",
        "status=approved&sale_status=approve",
        "status=approved&sale_status=",
        "status=sales",
        "status=,&sale_status=,",
        "status=a,b&sale_status=a,b",
        "status=hold&lead_status[]=hold",
        "status=trash&rejected_statuses=trash",
    ],
)
@pytest.mark.parametrize("subid", ["c1", "unknown"])
def test_an_unknown_word_is_unmapped(client: Client, query: str, subid: str) -> None:
    client.click("c1")

    assert client.send(f"subid={subid}&{query}").verdict == "unmapped"
    client.click("unknown")
    assert client.conversions() == []


@pytest.mark.parametrize("query", ["status=x&ignore=x", "status={status}", "status=what", ""])
def test_a_postback_without_a_click_is_invalid_before_anything_else(
    client: Client, query: str
) -> None:
    assert client.send(query).verdict == "invalid"


@pytest.mark.parametrize(
    ("query", "warned"),
    [
        ("status=w&sale_status=w&lead_status=w", True),
        ("status=W&rejected_status=x,w&rebill_status=w", True),
        ("status=w&sale_status=w&lead_status=x", False),
        ("status=w&rejected_status=w&rejected=w", False),
    ],
)
def test_a_word_in_two_lists_draws_a_warning(client: Client, query: str, warned: bool) -> None:
    the_conversion(client, f"subid=c1&{query}")

    assert bool(client.postbacks()[-1].warnings) is warned


def test_the_original_status_is_the_raw_word_that_gave_the_present_status(client: Client) -> None:
    client.click("c1")

    seen = []
    for query in (
        "status=HOLD&lead_status=hold",
        "status=Wait&lead_status=wait",
        "status=Approved&sale_status=approved",
        "status=PAID&sale_status=paid",
        "status=lead",
        "status=what",
        "status=rejected",
        "",
    ):
        client.send(f"subid=c1&{query}")
        seen.append(client.conversions("c1")[0].original_status)

    assert (
        seen == ["HOLD", "HOLD", "Approved", "Approved", "Approved", "Approved"] + ["rejected"] * 2
    )


def test_the_log_keeps_the_word_of_every_postback(
    send: Send, click: Click, postbacks: Postbacks
) -> None:
    click("c1")
    for query in ("status=Paid&sale_status=paid", "status=lead", "status=What", ""):
        send(f"subid=c1&{query}")

    assert [p.original_status for p in postbacks()] == ["Paid", "lead", "What", None]


def test_a_move_without_a_word_leaves_no_word_behind(client: Client) -> None:
    client.click("c1")
    client.send("subid=c1&status=lead")

    client.send("subid=c1")

    [kept] = client.conversions("c1")
    assert (kept.status, kept.original_status) == ("sale", None)
