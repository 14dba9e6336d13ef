"""Right values under other names: read, or with a warning in the postback log and the answer.

Each row is one of a kind, from public documents of networks and trackers and from threads.
"""

import pytest
from conftest import CLICK_KEY, POSTBACK_KEY, Client

from postbackd.intake.near_names import NEAR_NAMES
from postbackd.intake.query import KNOWN_NAMES

READ = [
    # D07: HTML's '&amp;', once, twice, escaped, in capitals.
    "subid=C1&amp;status=rejected&amp;payout=10&amp;tid=A1",
    "subid=C1&amp;amp;status=rejected&amp;amp;payout=10&amp;amp;tid=A1",
    "subid=C1&amp%3Bstatus=rejected&amp%3bpayout=10&AMP;tid=A1",
    "amp;subid=C1&status=rejected&payout=10&tid=A1",
    # Names in another case, and both at once.
    "SubID=C1&Status=rejected&Payout=10&TID=A1",
    "clickId=C1&STATUS=rejected&Revenue=10&Tid=A1",
    "subid=C1&amp;Status=rejected&amp;PAYOUT=10&amp;tid=A1",
    # An empty one of ours did not come.
    "subid=C1&status=&Status=rejected&payout=10&tid=A1",
    "subid=C1&status=x&Rejected_Status=x&payout=10&tid=A1",
]


@pytest.mark.parametrize("query", READ)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_can_only_mean_ours_is_read_with_a_warning(
    client: Client, query: str, method: str
) -> None:
    client.click("C1")

    client.send(query) if method == "GET" else client.post("", query)

    [made] = client.conversions("C1")
    assert (made.status, made.amount, made.tid) == ("rejected", "10", "A1")
    [kept] = client.postbacks()
    assert kept.warnings != []
    assert kept.query == query


HELD = [
    ("subid=C1&status=lead&Status=sale", "lead", None),
    ("subid=C1&Status=sale&status=lead", "lead", None),
    ("subid=C1&status=lead&payout=5&Revenue=7", "lead", "5"),
    # D66: an empty repeat changes nothing.
    ("subid=C1&status=lead&payout=5&payout=", "lead", "5"),
    ("subid=C1&status=lead&payout=5&payout=%20", "lead", "5"),
    ("subid=C1&status=lead&payout=5&amp;payout=", "lead", "5"),
    ("subid=C1&status=lead&status=&payout=4&payout=5&payout=", "lead", "5"),
    # The last of equal names, in any spelling.
    ("subid=C1&status=lead&payout=4&amp;payout=5", "lead", "5"),
]


@pytest.mark.parametrize(("query", "status", "amount"), HELD)
def test_ours_counts_where_it_came(
    client: Client, query: str, status: str, amount: str | None
) -> None:
    client.click("C1")

    client.send(query)

    [made] = client.conversions("C1")
    assert (made.status, made.amount) == (status, amount)


def test_an_empty_name_in_the_query_takes_nothing_from_the_body(client: Client) -> None:
    client.click("C1")

    client.post("subid=C1&payout=", "payout=5&subid=C9")

    assert [c.amount for c in client.conversions("C1")] == ["5"]


def test_a_click_id_in_another_case_goes_before_a_cookies(client: Client) -> None:
    client.click("C1")
    client.click("C2")

    client.send("SubId=C1", cookie="subid=C2")
    client.send("status=lead", cookie="subid=C2")

    assert [c.subid for c in client.conversions()] == ["C1", "C2"]
    assert client.postbacks()[0].query == "SubId=C1"


# The parameters, a part of the warning in the postback log, and the answer's reason.
NEAR = [
    # D08, D09
    ("subid=C1&state=rejected&payout=10", "'state' came ('rejected')", "state came, status did"),
    ("subid=C1&conv_status=rejected", "it is sent as status=", "conv_status came, status did not"),
    ("subid=C1&cnv-status=1", "it is sent as status=", "cnv_status came, status did not"),
    # D10
    ("subid=C1&status=sale&amount=5&tid=1", "it is sent as payout=", "amount came, payout did not"),
    (
        "subid=C1&status=sale&transaction_id=T9",
        "it is sent as tid=",
        "transaction_id came, tid did",
    ),
    # D11
    ("subid=C1&status=sale&payout=10&txid=A1", "it is sent as tid=", "txid came, tid did not"),
    ("subid=C1&status=sale&Sum=5", "it is sent as payout=", "sum came, payout did not"),
    ("subid=C1&status=sale&payout=5&cur=EUR", "it is sent as currency=", "cur came, currency"),
    ("cid=C1&status=sale", "it is sent as subid=", "cid came, subid did not"),
    # Any name whose value is a word for a status.
    ("subid=C1&x=rejected", "'x' holds 'rejected', a status word", "unknown here holds a status"),
    ("subid=C1&result=+Approved", "'result' holds", "unknown here holds a status word"),
    ("subid=C1&kind=dep&sale_status=dep", "'kind' holds 'dep'", "unknown here holds a status"),
    ("subid=C1&action=reject", "'action' holds 'reject'", "unknown here holds a status"),
    # Ours with something around them: blanks, line breaks, quotes, a second '?', hyphens.
    ("click-id=C1&status=sale", "it is sent as subid=", "a name like click_id came, subid did not"),
    ("?subid=C1&status=sale", "it is sent as subid=", "a name like subid came, subid did not"),
    ("subid=C1&status%20=2&rejected_status=2", "'status_' came ('2')", "a name like status came"),
    ("subid=C1&%0D%0Apayout=5&status=sale", "it is sent as payout=", "a name like payout came"),
    ("subid=C1&status=sale&%22tid%22=5", "it is sent as tid=", "a name like tid came, tid did"),
    # A Russian keyboard's `р` before `ayout`.
    ("subid=C1&status=sale&%D1%80ayout=5", "it is sent as payout=", "a name like payout came"),
    # Longer names with ours in them, and slips.
    ("subid=C1&status_id=3", "'status_id' came ('3')", "a name with status in it came"),
    ("subid=C1&stauts=2&rejected_status=2", "it is sent as status=", "a name with stauts in it"),
    ("subid=C1&status=sale&payout_amount=5", "it is sent as payout=", "a name with payout in it"),
    ("subid=C1&status=sale&payout=5&iso_currency=EUR", "sent as currency=", "with currency in it"),
    ("external_click_id=C1", "it is sent as subid=", "a name with click_id in it came, subid did"),
    ("uid=C1&status=sale", "it is sent as subid=", "uid came, subid did not"),
    # A flag, and lists that are taken for the status.
    ("subid=C1&payout=10&chargeback=1", "'chargeback' came ('1')", "money is taken back"),
    ("subid=C1&payout=10&is_refund=true", "'is_refund' came ('true')", "money is taken back"),
    (
        "subid=C1&payout=10&rejected=1",
        "rejected is a list",
        "rejected holds what may be the status",
    ),
    ("subid=C1&lead_status=rejected", "lead_status is a list", "lead_status holds what may be"),
    ("subid=C1&sale_status=Hold", "sale_status is a list", "sale_status holds what may be"),
    ("subid=C1&status=&sale_status=approved", "status came empty", "status came empty"),
    # What was escaped as a whole.
    ("subid%3DC1%26status%3Drejected", "percent-encoded as a whole", "encoded as a whole"),
]


@pytest.mark.parametrize(("query", "warning", "notice"), NEAR)
def test_a_name_of_another_tracker_is_said_where_ours_did_not_come(
    client: Client, query: str, warning: str, notice: str
) -> None:
    client.click("C1")

    answer = client.send(query)

    assert notice in answer.reason
    [kept] = client.postbacks()
    assert warning in " ".join(kept.warnings)


# D67 and its kind: a second `?`, an escaped `&`, another sign between parameters.
@pytest.mark.parametrize("sign", ["?", "%26", ";", ",", "%26amp;", "%3F"])
@pytest.mark.parametrize("name", ["subid", "tid"])
def test_parameters_within_an_id_are_said(client: Client, name: str, sign: str) -> None:
    client.click("C1")

    client.send(f"status=lead&subid=C1&{name}=x7{sign}Payout=10")

    [warning] = client.postbacks()[0].warnings
    assert warning.startswith(f"further parameters stand within {name} 'x7")


@pytest.mark.parametrize("subid", ["a=b", "dGVzdA==", "u?x=1", "k=v;w=x", "status=1"])
def test_an_id_with_an_equals_sign_is_an_id(client: Client, subid: str) -> None:
    client.click(subid)

    assert client.send(f"status=lead&subid={subid}").verdict == "recorded"
    assert client.postbacks()[0].warnings == []


def test_a_name_of_the_senders_is_never_in_the_answer(client: Client) -> None:
    answer = client.send("subid=C1&status=sale&my-payout-0123456789=5")

    assert "a name with payout in it came, payout did not" in answer.reason
    assert "0123456789" not in answer.reason


# Status and amount nested beside a click id that is not: a sale of nothing, without a word.
NESTED = [
    (b'{"subid":"C1","data":{"status":"rejected","payout":5}}', ["status", "payout"]),
    (b'{"subid":"C1","status":["rejected"],"payout":5}', ["status"]),
    (b'{"subid":"C1","status":"sale","order":{"Payout":5,"txid":"T1"}}', ["payout", "tid"]),
    (b'{"subid":"C1","event":[{"payout":5}],"status":"sale"}', ["payout"]),
    (b'{"subid":"C1","Status":"lead","order":{"status":"x","id":7}}', []),
    (b'{"subid":"C1","status":"sale","payout":5,"order":{"id":7,"payout":6}}', []),
]


@pytest.mark.parametrize(("body", "ours"), NESTED)
def test_ours_that_came_nested_is_said_where_it_did_not_come_plainly(
    client: Client, body: bytes, ours: list[str]
) -> None:
    client.click("C1")

    client.post("", body, content_type="application/json")

    said = [text for text in client.postbacks()[0].warnings if "came nested" in text]
    assert len(said) == len(ours)
    assert all(f"no {name!r}: nested" in text for name, text in zip(ours, said, strict=True))


@pytest.mark.parametrize(
    "query", ["status[]=rejected", "status%5B0%5D=rejected", "a[status]=2&rejected_status=2"]
)
def test_a_status_in_brackets_is_said(client: Client, query: str) -> None:
    client.click("C1")

    client.send(f"subid=C1&payout=5&{query}")

    assert "came nested and no 'status'" in " ".join(client.postbacks()[0].warnings)


@pytest.mark.parametrize("path", ["postback.gif", "postback"])
def test_a_pixel_says_it_too(client: Client, path: str) -> None:
    answer = client.get(f"/{POSTBACK_KEY}/{path}?subid=C1&state=sale", accept="image/png")

    assert "state came, status did not" in answer.reason


@pytest.mark.parametrize(
    "query",
    [
        "subid=C1&status=sale&payout=5&currency=EUR&tid=1&amount=6&sum=7&txid=8&state=x&cid=y",
        "subid=C1&status=lead&x=sale",
        "subid=C1&status=lead&chargeback=1&rejected=1&status_id=3",
        "subid=C1&chargeback=0&is_refund=false&refund=",
        "subid=C1&lead_status=hold,pending&sale_status=approved&rejected_status=trash,rejected",
        "subid=C1&status=x&lead_status=rejected,x&trash_status=a&deposit_status=b",
        "subid=C1&trash_status=a&deposit_status=b&sub_id_x=1",
        "subid=C1&a%3Db=c&" + "status" * 20 + "=5",
        "subid=C1&amount=&state=&x=",
        "subid=C1&x=1&sale_status=1",
        "subid=C1&goal=7&offer=Big&ip=1.2.3.4&sub_id_1=sale",
        # Q06: parameters for other interfaces.
        "subid=C1&status=sale&em=a%40example.com&fn=John&ph=%2B71234567890",
    ],
)
def test_where_ours_came_or_nothing_is_near_nothing_is_said(client: Client, query: str) -> None:
    client.click("C1")

    client.send(query)

    assert [text for text in client.postbacks()[0].warnings if "no rate" not in text] == []


def test_the_cookies_click_is_a_click_that_came(client: Client) -> None:
    client.click("C1")

    client.send("cid=C9&status=sale", cookie="subid=C1")

    assert client.postbacks()[0].warnings == []


def test_no_name_of_ours_is_in_the_table_of_others() -> None:
    assert NEAR_NAMES.keys().isdisjoint(KNOWN_NAMES)
    assert {ours for names in NEAR_NAMES.values() for ours in names} <= set(KNOWN_NAMES)
    assert [name for name in NEAR_NAMES if name != name.lower() or "-" in name] == []


# Q04, Q05: other lists and numbers as words.
@pytest.mark.parametrize(
    ("query", "status"),
    [
        (
            "status=trash&trash_status=trash&rejected_status=rejected,trash&sale_status=approved",
            "rejected",
        ),
        ("status=0&lead_status=0&sale_status=1&rejected_status=3&payout=3", "lead"),
    ],
)
def test_other_lists_and_numbers_as_words_hold(client: Client, query: str, status: str) -> None:
    client.click("C1")

    client.send(f"subid=C1&{query}")

    assert [c.status for c in client.conversions("C1")] == [status]


CLICKS = [
    "SubID=c7&Campaign=Winter&OFFER=O7&Sub_ID_3=x&Clicked_At=1764000000&Cost_Model=CPA",
    "ClickID=c7&campaign=&Campaign=Winter&offer=O7&sub_id_3=x&clicked_at=1764000000&cost_model=cpa",
    "amp;subid=c7&amp;Campaign=Winter&offer=O7&sub_id_3=x&clicked_at=1764000000&cost_model=cpa",
]


@pytest.mark.parametrize("query", CLICKS)
def test_names_of_a_click_in_another_case_are_read_with_a_warning(
    client: Client, query: str
) -> None:
    answer = client.get(f"/{CLICK_KEY}/click?{query}")

    [kept] = client.rows(
        "SELECT clicks.subid, campaigns.name AS campaign, offers.name AS offer, clicked_at,"
        " clicks.cost_model, sub_ids FROM clicks JOIN campaigns ON campaigns.id = campaign_id"
        " JOIN offers ON offers.id = offer_id"
    )
    assert (kept["subid"], kept["campaign"], kept["offer"]) == ("c7", "Winter", "O7")
    assert (kept["clicked_at"][:10], kept["cost_model"]) == ("2025-11-24", "cpa")
    assert kept["sub_ids"] == '{"sub_id_3":"x"}'
    assert "is read as 'campaign'" in answer.reason


def test_a_clicks_own_names_count_where_they_came(client: Client) -> None:
    answer = client.get(f"/{CLICK_KEY}/click?subid=c7&SubID=c8&Offer=O8&offer=O7")

    assert [row["subid"] for row in client.rows("SELECT subid FROM clicks")] == ["c7"]
    assert [row["name"] for row in client.rows("SELECT name FROM offers")] == ["O7"]
    assert not answer.reason
