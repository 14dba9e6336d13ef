"""A parked postback is parsed again from its stored query, with the same values."""

import logging
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest
from conftest import FORM, PIXEL_KEY, Client
from hypothesis import given, settings
from hypothesis import strategies as st

from postbackd.db.rows import ClickRow
from postbackd.intake import booking
from postbackd.intake.booking import BookingOptions, parse_stored
from storage import open_database

TERMS = BookingOptions("USD")
ANY_BYTES = st.text(alphabet=st.characters(max_codepoint=255), max_size=20)
PLACEHOLDERS = st.sampled_from(
    ["%aff sub%", "%aff+sub%", "%aff%20sub%", "\xe9%", "%\xe9%", "{x y}"]
)
PAIRS = st.lists(
    st.tuples(
        st.sampled_from(["subid", "sub_id", "status", "tid", "sale_status", "payout"]),
        ANY_BYTES | PLACEHOLDERS | st.just("c1"),
    ),
    max_size=6,
)


@settings(max_examples=150)
@given(PAIRS, PAIRS)
def test_what_is_kept_reads_as_what_was_judged(
    client: Client, query: list[tuple[str, str]], body: list[tuple[str, str]]
) -> None:
    in_query, form = ("&".join(f"{n}={v}" for n, v in pairs) for pairs in (query, body))
    in_query = "".join(letter if "!" <= letter <= "~" else "%20" for letter in in_query)
    client.post(in_query, form.encode("latin-1"))

    kept = client.postbacks()[-1]
    read = parse_stored(kept.query, TERMS).incoming
    assert (read.subid, read.tid, read.word) == (kept.subid, kept.tid, kept.original_status)


def test_a_placeholder_in_a_body_parks_nothing_that_cannot_be_settled(client: Client) -> None:
    client.post("", "subid=%aff sub%&sub_id=c1&status=lead&payout=1")

    client.click("c1")

    assert [(c.subid, c.status) for c in client.conversions()] == [("c1", "lead")]
    assert client.rows("SELECT * FROM due_clicks") == []


def test_a_lead_by_the_pixels_key_is_no_sale_when_its_click_comes(client: Client) -> None:
    word = "%EF%BF%BDf+sub%25"
    form = f"subid=v1&status={word}&lead_status={word}&sale_status=%aff sub%&payout=999"
    client.request(
        f"/{PIXEL_KEY}/postback.gif",
        method="POST",
        body=form.encode(),
        headers={"Content-Type": FORM},
    )

    client.click("v1")

    assert "sale" not in [c.status for c in client.conversions()]


def park_under_another_name(client: Client, subid: str) -> None:
    """Store a row as an older program may have: parked for a click that its query does not name."""
    client.send(f"subid={subid}&status=lead")
    with closing(sqlite3.connect(client.database)) as db, db:
        (trigger,) = db.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'postbacks_are_only_appended'"
        ).fetchone()
        db.execute("DROP TRIGGER postbacks_are_only_appended")
        db.execute("UPDATE postbacks SET query = 'subid=other' WHERE subid = ?", (subid,))
        db.execute(trigger)


def test_a_row_that_names_another_click_today_is_settled_and_done_with(client: Client) -> None:
    park_under_another_name(client, "c1")

    click = client.click("c1")
    client.send("subid=c1&status=sale")

    assert click.status == 200
    assert [c.status for c in client.conversions("c1")] == ["sale"]
    assert client.postbacks()[0].settled_verdict == "refused"


def test_an_offer_that_is_no_utf_8_stops_nothing(client: Client) -> None:
    client.send("subid=c1&status=sale&payout=5")
    client.write("INSERT INTO offers (name) VALUES (CAST(x'436166E9' AS TEXT))")
    client.write("INSERT INTO clicks (subid, offer_id) VALUES ('c1', (SELECT id FROM offers))")

    answers = [client.send(query) for query in ("subid=c1&status=sale", "subid=c2&status=sale")]

    assert [answer.verdict for answer in answers] == ["repeated", "parked"]
    assert client.get("/health").text == "ok"


def test_a_click_is_not_kept_waiting_by_what_others_are_due(client: Client) -> None:
    client.send("subid=c1&status=lead")
    client.send("subid=c2&status=lead")
    client.receiver.close()
    client.write("INSERT INTO clicks (subid) VALUES ('c1')")

    with open_database(client.database, "USD") as storage, storage.transaction():
        now = datetime(2026, 3, 2, tzinfo=UTC)
        intake = booking.record_clicks(storage, [ClickRow("c2")], now, TERMS)

        assert intake == booking.StoredClicks(new=1, settled=1)
        assert [subid for _, subid in storage.find_due_clicks(9)] == ["c1"]


def test_a_step_of_the_housekeeping_that_breaks_leaves_the_others_their_turn(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise RuntimeError("boom")

    client.send("subid=c1&status=sale&payout=5&currency=eur")
    client.click("c1")
    monkeypatch.setattr(booking, "settle_due_clicks", broken)
    client.write(
        "INSERT INTO rates (currency, day, source, rate, created_at)"
        " VALUES ('EUR', '2026-01-01', 'ecb', '2', '2026-01-01T00:00:00.000Z')"
    )

    with caplog.at_level(logging.ERROR):
        client.send("subid=c2")

    assert [c.payout for c in client.conversions("c1")] == ["10"]
    assert "housekeeping broke off" in caplog.text
