"""Clicks, offers and campaigns (section 9 of the contract), over HTTP or by other programs."""

import json
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import CLICK_KEY, FORM, POSTBACK_KEY, Client


def the_click(client: Client, subid: str = "c1") -> dict[str, Any]:
    """Read a click from the database, with its campaign and offer by name."""
    [row] = client.rows(
        "SELECT clicks.subid, clicks.clicked_at, clicks.cost_model, clicks.sub_ids,"
        " campaigns.name AS campaign, offers.name AS offer FROM clicks"
        " LEFT JOIN campaigns ON campaigns.id = clicks.campaign_id"
        " LEFT JOIN offers ON offers.id = clicks.offer_id WHERE clicks.subid = ?",
        subid,
    )
    return {**row, "sub_ids": json.loads(row["sub_ids"] or "{}")}


def test_a_new_click_is_recorded_with_all_it_brings(client: Client) -> None:
    answer = client.click(
        "c1",
        campaign="C1",
        offer="O1",
        cost_model="cpa",
        sub_id_1="banner",
        sub_id_30="night",
        clicked_at="2026-01-02T03:04:05Z",
    )

    assert (answer.status, answer.verdict) == (200, "recorded")
    kept = the_click(client)
    assert (kept["campaign"], kept["offer"], kept["cost_model"]) == ("C1", "O1", "cpa")
    assert kept["sub_ids"] == {"sub_id_1": "banner", "sub_id_30": "night"}
    assert datetime.fromisoformat(kept["clicked_at"]) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_click_needs_nothing_but_its_subid(client: Client) -> None:
    assert client.click("c1").verdict == "recorded"

    kept = the_click(client)
    assert (kept["campaign"], kept["offer"], kept["cost_model"]) == (None, None, None)
    assert kept["sub_ids"] == {}


def test_a_click_may_be_posted(client: Client) -> None:
    answer = client.request(
        f"/{CLICK_KEY}/click?campaign=C1",
        method="POST",
        body=b"subid=c1&offer=O1",
        headers={"Content-Type": FORM},
    )

    assert answer.verdict == "recorded"
    assert (the_click(client)["campaign"], the_click(client)["offer"]) == ("C1", "O1")


def test_a_known_click_is_updated(client: Client) -> None:
    client.click("c1")

    assert client.click("c1", offer="O1").verdict == "updated"
    assert the_click(client)["offer"] == "O1"


@pytest.mark.parametrize("query", ["", "subid=", "subid=%20", "campaign=C1", "subid[]=c1"])
def test_a_click_without_subid_is_invalid(client: Client, query: str) -> None:
    answer = client.get(f"/{CLICK_KEY}/click?{query}")

    assert (answer.status, answer.verdict) == (200, "invalid")
    assert client.rows("SELECT * FROM clicks") == []
    assert client.rows("SELECT * FROM campaigns") == []


def test_a_click_is_no_postback_and_is_not_logged_as_one(client: Client) -> None:
    client.click("c1", status="sale", payout="5")

    assert client.postbacks() == []
    assert client.conversions() == []


def test_networks_cannot_make_clicks_with_the_postback_key(client: Client) -> None:
    answer = client.get(f"/{POSTBACK_KEY}/click?subid=c1")

    assert answer.status == 404
    assert client.rows("SELECT * FROM clicks") == []


@pytest.mark.parametrize("subid", ["C1", "c1 x", "Ж" * 255, "a\ufffdb", "<c1>x"])
def test_a_subid_of_a_click_is_exact(client: Client, subid: str) -> None:
    client.click("c1")

    assert client.click(subid).verdict == "recorded"
    assert the_click(client, subid)["subid"] == subid


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05+03:00", datetime(2026, 1, 2, 0, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02 03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("1767323045", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_the_time_of_a_click_is_understood_in_utc(
    client: Client, written: str, moment: datetime
) -> None:
    client.click("c1", clicked_at=written)

    kept = datetime.fromisoformat(the_click(client)["clicked_at"])
    assert kept.replace(tzinfo=kept.tzinfo or UTC) == moment


def test_a_time_without_a_zone_is_utc_wherever_the_server_stands(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        client.click("c1", clicked_at="2026-01-02 03:04:05")
    finally:
        monkeypatch.undo()
        time.tzset()

    kept = datetime.fromisoformat(the_click(client)["clicked_at"])
    assert kept == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


# --- What a second click changes -------------------------------------------------------------


def test_what_is_sent_replaces_what_stands_and_what_is_empty_changes_nothing(
    client: Client,
) -> None:
    client.click("c1", campaign="C1", offer="O1", sub_id_1="banner", sub_id_2="left")

    client.click("c1", campaign="", offer="O2", cost_model="cpc", sub_id_1="", sub_id_2="right")

    kept = the_click(client)
    assert (kept["campaign"], kept["offer"], kept["cost_model"]) == ("C1", "O2", "cpc")
    assert kept["sub_ids"] == {"sub_id_1": "banner", "sub_id_2": "right"}


def test_offers_and_campaigns_are_made_once_and_shared(client: Client) -> None:
    for subid in ("c1", "c2", "c3"):
        client.click(subid, campaign="C1", offer="O1")
    client.click("c4", campaign="C2", offer="O1")

    assert [o["name"] for o in client.rows("SELECT name FROM offers")] == ["O1"]
    assert [c["name"] for c in client.rows("SELECT name FROM campaigns ORDER BY id")] == [
        "C1",
        "C2",
    ]
    # Its rebills were never set.
    assert client.rows("SELECT allow_rebills FROM offers") == [{"allow_rebills": None}]


def test_conversions_keep_the_offer_and_campaign_they_were_made_with(client: Client) -> None:
    client.click("c1", campaign="C1", offer="O1")
    client.send("subid=c1&status=lead")

    client.click("c1", campaign="C2", offer="O2")
    client.send("subid=c1&status=sale")

    assert [(c.status, c.campaign, c.offer) for c in client.conversions("c1")] == [
        ("sale", "C1", "O1")
    ]


@pytest.mark.parametrize(("second", "verdict"), [("yes", "recorded"), ("no", "refused")])
def test_rebill_permission_follows_the_present_offer_of_the_click(
    client: Client, second: str, verdict: str
) -> None:
    first = "no" if second == "yes" else "yes"
    client.click("c1", offer=first)
    client.click("other", offer=second)
    client.allow_rebills("yes")
    client.send("subid=c1&tid=T1")

    client.click("c1", offer=second)

    assert client.send("subid=c1&tid=T2").verdict == verdict


def test_a_new_conversion_has_the_present_offer_and_campaign(client: Client) -> None:
    client.click("c1", campaign="C1", offer="O1")
    client.send("subid=c1&tid=T1")
    client.click("c1", campaign="C2", offer="O2")
    client.allow_rebills("O2")

    client.send("subid=c1&tid=T2")

    assert [(c.campaign, c.offer) for c in client.conversions("c1")] == [("C1", "O1"), ("C2", "O2")]


# --- Clicks that other programs write --------------------------------------------------------

OTHERS_WRITE = "INSERT INTO clicks (subid) VALUES (?)"


def test_a_click_that_another_program_wrote_takes_postbacks_at_once(client: Client) -> None:
    client.get("/health")

    client.write(OTHERS_WRITE, "c1")

    assert client.send("subid=c1&status=sale").verdict == "recorded"


def test_what_was_parked_for_such_a_click_is_applied_with_the_next_postback(
    client: Client,
) -> None:
    client.send("subid=c1&status=lead&payout=5")
    client.send("subid=c1&status=sale")
    client.clock.forward(hours=1)
    client.write(OTHERS_WRITE, "c1")

    client.send("subid=someone-else")

    assert [(c.status, c.payout) for c in client.conversions("c1")] == [("sale", "5")]
    assert [p.settled_verdict for p in client.postbacks()] == ["recorded", "updated", None]


def test_the_next_postback_about_such_a_click_comes_after_what_was_parked(client: Client) -> None:
    client.send("subid=c1&status=lead&payout=5")
    client.write(OTHERS_WRITE, "c1")

    answer = client.send("subid=c1&status=sale")

    assert answer.verdict == "updated"
    assert [(c.status, c.payout) for c in client.conversions("c1")] == [("sale", "5")]


def test_no_click_of_many_is_overtaken_by_its_next_postback(client: Client) -> None:
    subids = [f"c{number}" for number in range(60)]
    for subid in subids:
        client.send(f"subid={subid}&status=lead&payout=5")
    with closing(sqlite3.connect(client.database)) as db, db:
        db.executemany(OTHERS_WRITE, [(subid,) for subid in subids])

    answer = client.send(f"subid={subids[-1]}&status=sale")

    assert answer.verdict == "updated"
    assert [(c.status, c.payout) for c in client.conversions(subids[-1])] == [("sale", "5")]


def test_without_a_next_postback_it_is_applied_within_five_seconds(client: Client) -> None:
    client.send("subid=c1&status=sale&payout=5")
    client.write(OTHERS_WRITE, "c1")

    give_up_at = time.monotonic() + 5
    while not client.conversions("c1") and time.monotonic() < give_up_at:
        time.sleep(0.05)

    assert [c.payout for c in client.conversions("c1")] == ["5"]


def test_a_click_made_with_odd_fields_is_still_answered(client: Client) -> None:
    for fields in (
        {"clicked_at": "yesterday"},
        {"cost_model": "barter"},
        {"clicked_at": "9" * 40},
        {"offer": "x" * 5000},
        {"campaign": "a\x00b"},
        {"sub_id_1": "Ж" * 3000},
    ):
        answer = client.get(f"/{CLICK_KEY}/click?{urlencode({'subid': 'c1', **fields})}")

        assert answer.status == 200
        assert answer.verdict in {"recorded", "updated", "invalid"}
