"""Addresses, methods and answers (sections 1 and 6 of the contract), through the WSGI callable."""

import io
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from wsgiref.headers import Headers

import pytest
from conftest import (
    CLICK_KEY,
    FORM,
    PIXEL_KEY,
    POSTBACK_KEY,
    Answer,
    Client,
    Conversions,
    Postbacks,
    ReceiverWith,
    Send,
)
from hypothesis import given, settings
from hypothesis import strategies as st

POSTBACK = f"/{POSTBACK_KEY}/postback"
PIXEL = f"/{POSTBACK_KEY}/postback.gif"
METHODS = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"]


def is_the_pixel(answer: Answer) -> bool:
    """Return whether an answer is a transparent 1x1 GIF89a of 43 bytes."""
    gif = answer.body
    transparent = gif[gif.find(b"\x21\xf9\x04") + 3] & 1
    return (
        answer.headers["Content-Type"] == "image/gif"
        and len(gif) == 43
        and gif[:10] == b"GIF89a\x01\x00\x01\x00"
        and transparent == 1
        and gif[-1:] == b";"
    )


def eventually(ask: Callable[[], Answer], status: int) -> Answer:
    """Send again until the answer has that status, for ten seconds at most."""
    give_up_at = time.monotonic() + 10
    answer = ask()
    while answer.status != status and time.monotonic() < give_up_at:
        time.sleep(0.05)
        answer = ask()
    return answer


# --- Address ---------------------------------------------------------------------------------


def test_a_sale_is_recorded(client: Client, conversions: Conversions) -> None:
    client.click("c1")

    answer = client.get(f"{POSTBACK}?subid=c1&status=sale&payout=12.50")

    assert (answer.status, answer.text, answer.verdict) == (200, "Success", "recorded")
    assert [(c.status, c.payout) for c in conversions("c1")] == [("sale", "12.5")]


# Q08
def test_one_trailing_slash_is_allowed(client: Client) -> None:
    client.click("c1")

    assert client.get(f"{POSTBACK}/?subid=c1").verdict == "recorded"


def test_a_plugin_posts_with_everything_in_the_query_and_an_empty_body(
    client: Client, postbacks: Postbacks
) -> None:
    client.click("c1")

    answer = client.request(f"{POSTBACK}?subid=c1&status=lead&tid=T1", method="POST")

    assert answer.verdict == "recorded"
    assert postbacks()[-1].warnings == []


def test_a_form_body_carries_a_postback(client: Client, conversions: Conversions) -> None:
    client.click("c1")

    answer = client.post("", "subid=c1&status=lead&tid=T+1&payout=3")

    assert answer.verdict == "recorded"
    assert [(c.tid, c.status, c.amount) for c in conversions("c1")] == [("T 1", "lead", "3")]


@pytest.mark.parametrize(
    "content_type", [FORM, f"{FORM}; charset=UTF-8", "Application/X-WWW-Form-URLencoded"]
)
def test_a_form_is_a_form_however_its_type_is_written(client: Client, content_type: str) -> None:
    client.click("c1")

    assert client.post("", "subid=c1", content_type=content_type).verdict == "recorded"


def test_the_query_wins_over_the_body(client: Client, conversions: Conversions) -> None:
    client.click("c1")

    client.post("subid=c1&tid=from-query&status=lead", "tid=from-body&status=sale&payout=7")

    [kept] = conversions("c1")
    assert (kept.tid, kept.status, kept.amount) == ("from-query", "lead", "7")


def test_the_query_wins_name_by_name_only(client: Client, conversions: Conversions) -> None:
    client.click("c1")
    client.click("other")

    client.post("click_id=other", "subid=c1")

    assert len(conversions("c1")) == 1
    assert conversions("other") == []


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", '{"tid": "T9", "status": '),
        ("text/xml", "tid=T9&status=lead"),
        ("multipart/form-data; boundary=x", "tid=T9&status=lead"),
    ],
)
def test_another_body_type_is_left_unread_with_a_warning(
    client: Client, content_type: str, body: str
) -> None:
    client.click("c1")

    answer = client.post("subid=c1", body, content_type=content_type)

    assert answer.verdict == "recorded"
    assert [(c.tid, c.status) for c in client.conversions("c1")] == [("", "sale")]
    assert len(client.postbacks()[-1].warnings) == 1


def test_a_body_of_64_kib_is_read(client: Client) -> None:
    client.click("c1")
    fields = "subid=c1&filler="

    assert client.post("", fields + "x" * (64 * 1024 - len(fields))).verdict == "recorded"


def test_a_longer_body_is_a_413(client: Client, conversions: Conversions) -> None:
    client.click("c1")
    fields = "subid=c1&filler="

    answer = client.post("", fields + "x" * (64 * 1024 - len(fields) + 1))

    assert answer.status == 413
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert conversions() == []


def test_a_longer_body_under_a_wrong_key_is_still_a_404(client: Client) -> None:
    answer = client.request(
        "/wrong/postback", method="POST", body=b"x" * 70000, headers={"Content-Type": FORM}
    )

    assert answer.status == 404


def test_an_escaped_letter_of_the_path_is_decoded_once(client: Client) -> None:
    client.click("c1")

    assert client.get(f"/%73{POSTBACK_KEY[1:]}/postback?subid=c1").verdict == "recorded"


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("a%2Db", "a%252Db"),
        ("50%25", "50%2525"),
        ("two/parts", "two/parts"),
        ("two/parts", "two%2Fparts"),
        ("ключ", quote("ключ")),
        ("with space", "with%20space"),
        ("plus+plus", "plus+plus"),
    ],
)
def test_a_key_is_compared_with_the_path_decoded_once(
    receiver_with: ReceiverWith, key: str, written: str
) -> None:
    client = receiver_with(postback_key=key)

    assert client.get(f"/{written}/postback?subid=c1").verdict == "parked"


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("a-b", "a%252Db"),
        ("a-b", "a%25252Db"),
        ("a%2Db", "a%2Db"),
        ("plus+plus", "plus%20plus"),
        ("two/parts", "two%252Fparts"),
    ],
)
def test_a_path_is_never_decoded_twice(receiver_with: ReceiverWith, key: str, written: str) -> None:
    client = receiver_with(postback_key=key)

    assert client.get(f"/{written}/postback?subid=c1").status == 404
    assert client.postbacks() == []


WRONG_PATHS = {
    "the root": "/",
    "no key": "/postback",
    "an empty key": "//postback",
    "a wrong key": "/wrong/postback",
    "a key in upper case": f"/{POSTBACK_KEY.upper()}/postback",
    "the beginning of the key": f"/{POSTBACK_KEY[:-1]}/postback",
    "the key and more": f"/{POSTBACK_KEY}x/postback",
    "the key with a space": f"/{POSTBACK_KEY}%20/postback",
    "the key with a NUL": f"/{POSTBACK_KEY}%00/postback",
    "the key alone": f"/{POSTBACK_KEY}",
    "the key and a slash": f"/{POSTBACK_KEY}/",
    "something before the key": f"/x/{POSTBACK_KEY}/postback",
    "an empty part before the key": f"//{POSTBACK_KEY}/postback",
    "an empty part after the key": f"/{POSTBACK_KEY}//postback",
    "two trailing slashes": f"/{POSTBACK_KEY}/postback//",
    "something after": f"/{POSTBACK_KEY}/postback/x",
    "another script": f"/{POSTBACK_KEY}/postback.php",
    "another case": f"/{POSTBACK_KEY}/Postback",
    "a line feed at the end": f"/{POSTBACK_KEY}/postback%0A",
    "a wrong key for the pixel": "/wrong/postback.gif",
    "an empty key for the pixel": "//postback.gif",
    "a wrong key for clicks": "/wrong/click",
    "the postback key for clicks": f"/{POSTBACK_KEY}/click",
    "the click key for postbacks": f"/{CLICK_KEY}/postback",
    "the click key for the pixel": f"/{CLICK_KEY}/postback.gif",
    "the pixel key for postbacks": f"/{PIXEL_KEY}/postback",
    "the pixel key for clicks": f"/{PIXEL_KEY}/click",
}


@pytest.mark.parametrize("path", WRONG_PATHS.values(), ids=WRONG_PATHS.keys())
def test_anything_but_the_right_address_is_the_same_404(client: Client, path: str) -> None:
    elsewhere = client.get("/nowhere")

    for method in METHODS:
        answer = client.request(f"{path}?subid=c1&status=sale", method=method)

        assert answer.status == elsewhere.status == 404, method
        assert answer.body == (b"" if method == "HEAD" else elsewhere.body)

    assert 0 < len(elsewhere.body) < 200
    assert client.postbacks() == []
    assert client.rows("SELECT * FROM clicks") == []


def test_the_404_of_clicks_turned_off_is_the_404_of_a_wrong_key(
    receiver_with: ReceiverWith,
) -> None:
    client = receiver_with(click_key=None, pixel_key="")

    for path in (f"/{CLICK_KEY}/click", "//click", f"/{PIXEL_KEY}/postback.gif", "//postback.gif"):
        answer = client.get(f"{path}?subid=c1&status=lead")

        assert (answer.status, answer.body) == (404, client.get("/nowhere").body)

    assert client.rows("SELECT * FROM clicks") == []


# --- Old keys --------------------------------------------------------------------------------


def test_an_old_key_is_accepted_until_the_end_of_its_last_day(
    receiver_with: ReceiverWith,
) -> None:
    client = receiver_with(postback_key_old="older-key-1, older-key-2 until 2026-12-31")

    client.clock.now = datetime.fromisoformat("2026-12-31T23:59:59Z")
    assert client.get("/older-key-1/postback?subid=c1").verdict == "parked"
    assert client.get("/older-key-2/postback?subid=c1").verdict == "parked"

    client.clock.now = datetime.fromisoformat("2027-01-01T00:00:00Z")
    assert client.get("/older-key-1/postback?subid=c1").verdict == "parked"
    assert client.get("/older-key-2/postback?subid=c1").status == 404
    assert client.send("subid=c1").verdict == "parked"


# --- Methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [POSTBACK, f"{POSTBACK}/", PIXEL])
@pytest.mark.parametrize("query", ["subid=c1&status=sale", "subid=c1&status=what", "status=sale"])
def test_head_answers_like_get_and_records_nothing(client: Client, path: str, query: str) -> None:
    client.click("c1")

    head = client.request(f"{path}?{query}", method="HEAD")

    assert client.postbacks() == []
    assert client.conversions() == []
    get = client.get(f"{path}?{query}")
    assert head.status == get.status == 200
    assert head.body == b""
    for name in ("Content-Type", "Cache-Control", "Access-Control-Allow-Origin"):
        assert head.headers[name] == get.headers[name]
    assert head.verdict == get.verdict


def test_head_leaves_what_was_parked_alone(client: Client) -> None:
    client.send("subid=c1&status=sale")

    client.request(f"{POSTBACK}?subid=c1&status=sale", method="HEAD")

    assert [p.method for p in client.postbacks()] == ["GET"]


def test_head_of_a_click_makes_no_click(client: Client) -> None:
    answer = client.request(f"/{CLICK_KEY}/click?subid=c1", method="HEAD")

    assert answer.status == 200
    assert client.rows("SELECT * FROM clicks") == []


@pytest.mark.parametrize(
    "path", [POSTBACK, PIXEL, f"/{PIXEL_KEY}/postback.gif", f"/{CLICK_KEY}/click"]
)
def test_options_answers_a_browser_that_asks_first(client: Client, path: str) -> None:
    answer = client.request(
        f"{path}?subid=c1",
        method="OPTIONS",
        headers={"Origin": "https://landing.example", "Access-Control-Request-Method": "POST"},
    )

    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in (answer.headers["Access-Control-Allow-Methods"] or "")
    assert client.postbacks() == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", [POSTBACK, PIXEL, f"/{CLICK_KEY}/click"])
def test_any_other_method_is_a_405_that_names_the_allowed_ones(
    client: Client, path: str, method: str
) -> None:
    answer = client.request(f"{path}?subid=c1", method=method)

    assert answer.status == 405
    allowed = {word.strip() for word in (answer.headers["Allow"] or "").split(",")}
    assert {"GET", "HEAD", "OPTIONS"} <= allowed
    assert method not in allowed
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert client.postbacks() == []
    assert client.rows("SELECT * FROM clicks") == []


def test_post_is_among_the_allowed_methods_of_a_postback(client: Client) -> None:
    assert "POST" in (client.request(POSTBACK, method="PUT").headers["Allow"] or "")


def test_every_answer_under_a_key_may_be_read_by_scripts_of_any_page(client: Client) -> None:
    client.click("c1")

    for path in (
        f"{POSTBACK}?subid=c1",
        f"{POSTBACK}?subid=c1&status=what",
        POSTBACK,
        PIXEL,
        f"/{PIXEL_KEY}/postback.gif?subid=c1",
        f"/{CLICK_KEY}/click?subid=c2",
        f"/{CLICK_KEY}/click",
    ):
        assert client.get(path).headers["Access-Control-Allow-Origin"] == "*", path


# --- Pixel -----------------------------------------------------------------------------------

EVERY_VERDICT = {
    "recorded": "subid=fresh&status=lead",
    "updated": "subid=lead&status=sale&tid=T1",
    "repeated": "subid=sale&status=sale",
    "refused": "subid=sale&status=lead",
    "ignored": "subid=sale&status=noise&ignore=noise",
    "parked": "subid=unknown&status=sale",
    "invalid": "status=sale",
    "unmapped": "subid=sale&status=what",
}


@pytest.fixture
def busy(client: Client) -> Client:
    """A client whose tracker gives every verdict of EVERY_VERDICT."""
    for subid in ("fresh", "lead", "sale"):
        client.click(subid)
    client.send("subid=lead&status=lead")
    client.send("subid=sale&status=sale")
    return client


@pytest.mark.parametrize(("verdict", "query"), EVERY_VERDICT.items())
def test_the_pixel_is_a_gif_whatever_the_verdict(busy: Client, verdict: str, query: str) -> None:
    answer = busy.get(f"{PIXEL}?{query}&return=OK")

    assert (answer.status, answer.verdict) == (200, verdict)
    assert is_the_pixel(answer)
    assert (busy.postbacks()[-1].source, busy.postbacks()[-1].verdict) == ("pixel", verdict)


@pytest.mark.parametrize(("verdict", "query"), EVERY_VERDICT.items())
def test_an_img_tag_gets_the_gif_from_the_postback_address_too(
    busy: Client, verdict: str, query: str
) -> None:
    answer = busy.send(query, sec_fetch_dest="image")

    assert (answer.status, answer.verdict) == (200, verdict)
    assert is_the_pixel(answer)


@pytest.mark.parametrize(
    "accept",
    [
        "image/*",
        "image/avif,image/webp,*/*;q=0.8",
        "image/png;q=0.9, text/html",
        "Image/WebP",
    ],
)
def test_a_request_that_wants_an_image_first_is_from_an_img_tag(
    client: Client, accept: str
) -> None:
    assert is_the_pixel(client.send("subid=c1", accept=accept))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"accept": "text/html,application/xhtml+xml,image/avif,image/webp,*/*;q=0.8"},
        {"accept": "*/*"},
        {"accept": "*/*, image/png"},
        {"sec_fetch_dest": "document"},
        {"sec_fetch_dest": "empty", "accept": "*/*"},
    ],
)
def test_any_other_request_gets_text(client: Client, headers: dict[str, str]) -> None:
    assert client.send("subid=c1", **headers).text == "Success"


def test_a_request_with_a_return_gets_text_even_from_an_img_tag(client: Client) -> None:
    answer = client.send("subid=c1&return=OK", sec_fetch_dest="image", accept="image/*")

    assert answer.text == "OK"


def test_the_pixel_key_records_a_lead(client: Client) -> None:
    client.click("c1")

    answer = client.get(f"/{PIXEL_KEY}/postback.gif?subid=c1&status=reg&lead_status=reg")

    assert answer.verdict == "recorded"
    assert is_the_pixel(answer)
    assert [c.status for c in client.conversions("c1")] == ["lead"]


@pytest.mark.parametrize("field", ["", "&status=sale", "&status=rejected", "&status=rebill&tid=T1"])
@pytest.mark.parametrize("standing", ["", "lead", "sale"])
def test_the_pixel_key_is_good_for_nothing_but_leads(
    client: Client, field: str, standing: str
) -> None:
    client.click("c1", offer="O1")
    client.allow_rebills("O1")
    if standing:
        client.send(f"subid=c1&status={standing}")
    before = client.snapshot()

    answer = client.get(f"/{PIXEL_KEY}/postback.gif?subid=c1{field}")

    assert (answer.status, answer.verdict) == (200, "refused")
    assert is_the_pixel(answer)
    assert client.snapshot() == before


def test_a_word_that_maps_to_a_sale_is_no_lead_for_the_pixel_key(client: Client) -> None:
    client.click("c1")

    answer = client.get(f"/{PIXEL_KEY}/postback.gif?subid=c1&status=lead&sale_status=lead")

    assert answer.verdict == "refused"
    assert client.conversions() == []


def test_a_sale_under_the_pixel_key_is_not_even_set_aside(client: Client) -> None:
    answer = client.get(f"/{PIXEL_KEY}/postback.gif?subid=c1&status=sale")

    client.click("c1")

    assert answer.verdict == "refused"
    assert client.conversions("c1") == []


def test_a_lead_under_the_pixel_key_may_wait_for_its_click(client: Client) -> None:
    answer = client.get(f"/{PIXEL_KEY}/postback.gif?subid=c1&status=lead")

    client.click("c1")

    assert answer.verdict == "parked"
    assert [c.status for c in client.conversions("c1")] == ["lead"]


# --- Health, and when nothing can be stored --------------------------------------------------


def test_a_healthy_receiver_says_ok(client: Client) -> None:
    answer = client.get("/health")

    assert (answer.status, answer.text.strip()) == (200, "ok")


def test_health_leaves_no_trace_in_the_log(client: Client) -> None:
    client.get("/health")

    assert client.postbacks() == []


@pytest.mark.parametrize("key", [None, ""])
@pytest.mark.parametrize(
    "path",
    ["/", "/health", "//postback", f"{POSTBACK}?subid=c1", PIXEL, f"/{CLICK_KEY}/click?subid=c1"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_usable_key_every_path_answers_503(
    receiver_with: ReceiverWith, key: str | None, path: str, method: str
) -> None:
    client = receiver_with(postback_key=key, pixel_key=None)

    answer = client.request(path, method=method)

    assert answer.status == 503
    assert answer.headers["Retry-After"]


def test_without_a_config_file_every_path_answers_503(receiver_with: ReceiverWith) -> None:
    client = receiver_with()
    (client.directory / "config.ini.php").unlink()

    for path in ("/health", f"{POSTBACK}?subid=c1", "/nowhere"):
        answer = client.get(path)

        assert answer.status == 503
        assert answer.headers["Retry-After"]


UNUSABLE_DATABASES: dict[str, Callable[[Client], object]] = {
    "a directory in its place": lambda client: client.database.mkdir(),
    "a file that is no database": lambda client: client.database.write_bytes(b"no database" * 999),
    "a database of a newer program": lambda client: client.write("PRAGMA user_version = 9999"),
}


def remove_database(client: Client) -> None:
    """Remove everything at the database's path."""
    if client.database.is_dir():
        client.database.rmdir()
    for suffix in ("", "-wal", "-shm"):
        client.database.with_name(client.database.name + suffix).unlink(missing_ok=True)


@pytest.mark.parametrize("spoil", UNUSABLE_DATABASES.values(), ids=UNUSABLE_DATABASES.keys())
def test_what_cannot_be_kept_is_not_acknowledged_until_it_can(
    receiver_with: ReceiverWith, spoil: Callable[[Client], object]
) -> None:
    client = receiver_with()
    spoil(client)

    for path in (f"{POSTBACK}?subid=c1", f"{PIXEL}?subid=c1", f"/{CLICK_KEY}/click?subid=c1"):
        refused = client.get(path)

        assert refused.status == 503
        assert refused.headers["Retry-After"]
        assert refused.headers["Access-Control-Allow-Origin"] == "*"
        assert POSTBACK_KEY not in refused.text
    health = client.get("/health")
    assert health.status == 503
    assert len(health.text.strip().splitlines()) == 1

    remove_database(client)
    mended = eventually(lambda: client.get(f"{POSTBACK}?subid=c1"), 200)

    assert (mended.status, mended.verdict) == (200, "parked")
    assert [p.subid for p in client.postbacks()] == ["c1"]


def test_a_database_of_a_newer_program_is_left_as_it_is(receiver_with: ReceiverWith) -> None:
    client = receiver_with()
    client.write("CREATE TABLE treasure (gold TEXT)")
    client.write("PRAGMA user_version = 9999")

    client.send("subid=c1")

    assert client.rows("SELECT name FROM sqlite_master") == [{"name": "treasure"}]


def test_a_wrong_key_is_a_404_even_when_nothing_can_be_kept(receiver_with: ReceiverWith) -> None:
    client = receiver_with()
    client.database.mkdir()

    assert client.get("/wrong/postback?subid=c1").status == 404


def copy_database(client: Client) -> Path:
    """Copy the database as it is now to a file of its own."""
    copy = client.directory / "copy.db"
    with closing(sqlite3.connect(client.database)) as live, closing(sqlite3.connect(copy)) as other:
        live.backup(other)
        other.execute("PRAGMA journal_mode = DELETE")
    return copy


def test_nothing_is_acknowledged_into_a_database_that_was_unlinked(client: Client) -> None:
    client.click("c1")
    copy = copy_database(client)
    remove_database(client)

    answer = client.send("subid=c1&status=lead&tid=into-nowhere")
    assert answer.status == 503
    assert answer.headers["Retry-After"]

    copy.rename(client.database)
    again = eventually(lambda: client.send("subid=c1&status=lead&tid=kept"), 200)

    assert (again.status, again.verdict) == (200, "recorded")
    assert [c.tid for c in client.conversions("c1")] == ["kept"]


def test_nothing_is_acknowledged_into_a_database_that_was_replaced(client: Client) -> None:
    client.click("c1")
    copy = copy_database(client)
    client.send("subid=c1&status=lead&tid=lost")
    remove_database(client)
    copy.rename(client.database)

    answer = eventually(lambda: client.send("subid=c1&status=lead&tid=kept"), 200)

    assert answer.status == 200
    assert [c.tid for c in client.conversions("c1")] == ["kept"]


def test_a_directory_that_was_away_for_a_while_heals(receiver_with: ReceiverWith) -> None:
    client = receiver_with(path="data/postback.db")
    home, away = client.database.parent, client.directory / "away"
    home.mkdir()
    client.send("subid=c1")
    home.rename(away)

    answer = client.send("subid=c2")
    away.rename(home)

    assert answer.status == 503
    assert eventually(lambda: client.send("subid=c3"), 200).status == 200
    assert {"c1", "c3"} <= {p.subid for p in client.postbacks()}


# --- Answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [v for v in EVERY_VERDICT if v not in {"invalid", "unmapped"}])
def test_a_postback_that_was_understood_gets_success_or_its_return(
    busy: Client, verdict: str
) -> None:
    answer = busy.send(EVERY_VERDICT[verdict])

    assert (answer.status, answer.verdict, answer.text) == (200, verdict, "Success")


@pytest.mark.parametrize("verdict", EVERY_VERDICT)
def test_return_is_the_body_of_the_answer(busy: Client, verdict: str) -> None:
    answer = busy.send(f"{EVERY_VERDICT[verdict]}&return=OK-7")

    assert (answer.status, answer.verdict, answer.text) == (200, verdict, "OK-7")


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        ("OK", "OK"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("Принято ✓", "Принято ✓"),
        ("{payout}", "{payout}"),
        ("REPLACE", "REPLACE"),
        ('{"status":"ok"}', '{"status":"ok"}'),
        ("two\r\nSet-Cookie: lines=1", "two\r\nSet-Cookie: lines=1"),
        ("0", "0"),
        ("  trimmed\t", "trimmed"),
        ("", "Success"),
        (" \r\n", "Success"),
        ("error", "error"),
    ],
)
def test_return_comes_back_as_it_was_sent(client: Client, asked: str, body: str) -> None:
    client.click("c1")

    answer = client.send(urlencode({"subid": "c1", "return": asked}))

    assert answer.text == body
    assert answer.headers["Set-Cookie"] is None
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("query", "verdict"),
    [
        ("status=sale", "invalid"),
        ("subid=&status=sale", "invalid"),
        (f"subid={'x' * 256}", "invalid"),
        (f"subid=c1&tid={'x' * 256}&return=", "invalid"),
        ("subid={subid}&status=sale", "invalid"),
        ("subid=c1&status=Zaplaceno", "unmapped"),
        ("subid=c1&status={status}", "unmapped"),
        ("subid=c1&status=fail", "unmapped"),
        ("subid=c1&status=error", "unmapped"),
    ],
)
def test_a_postback_that_was_not_understood_gets_one_plain_sentence(
    client: Client, query: str, verdict: str
) -> None:
    client.click("c1")

    answer = client.send(query)

    assert (answer.status, answer.verdict) == (200, verdict)
    assert len(answer.text.strip().splitlines()) == 1
    assert answer.text.strip().endswith(".")
    assert len(answer.text) > 20
    for word in ("error", "fail", "zaplaceno", "xxxx", "c1"):
        assert word not in answer.text.lower()


@pytest.mark.parametrize(
    "query",
    [
        # Offerwalls repeat until they read the value of `return`.
        # D58
        *("status=sale&return=OK", "subid=&return=OK", f"subid={'x' * 256}&return=OK"),
        *(f"subid=c1&tid={'x' * 256}&return=OK", "subid={subid}&return=OK"),
        *("subid=c1&status=%7Bstatus%7D&return=OK", "subid=c1&status=Zaplaceno&return=OK"),
    ],
)
def test_return_is_the_body_whatever_was_not_understood(client: Client, query: str) -> None:
    client.click("c1")

    answer = client.send(query)

    assert (answer.status, answer.text) == (200, "OK")
    assert answer.verdict in {"invalid", "unmapped"}
    assert answer.reason != ""


@pytest.mark.parametrize(("verdict", "query"), EVERY_VERDICT.items())
def test_every_answer_carries_its_headers(busy: Client, verdict: str, query: str) -> None:
    answer = busy.send(query)

    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Postback-Result"] == verdict
    assert busy.get(f"{PIXEL}?{query}").headers["Cache-Control"] == "no-store"


def test_answers_that_are_not_about_a_postback_are_not_stored_either(client: Client) -> None:
    for answer in (
        client.get("/nowhere"),
        client.get("/health"),
        client.request(POSTBACK, method="PUT"),
        client.request(POSTBACK, method="OPTIONS"),
        client.get(f"/{CLICK_KEY}/click?subid=c1"),
    ):
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("verdict", ["refused", "invalid", "unmapped"])
def test_a_postback_that_changed_nothing_says_why(busy: Client, verdict: str) -> None:
    assert busy.send(EVERY_VERDICT[verdict]).reason


@pytest.mark.parametrize(
    ("coming", "verdict", "stored"),
    [
        ("status=sale&tid=T-other", "refused", "Offer-Q"),
        ("status=sale&payout=7", "repeated", "123.45"),
    ],
)
def test_the_log_names_stored_values_and_the_answer_does_not(
    client: Client, coming: str, verdict: str, stored: str
) -> None:
    client.click("c1", offer="Offer-Q", campaign="Campaign-Q")
    client.send("subid=c1&tid=T-standing&status=sale&payout=123.45")

    answer = client.send(f"subid=c1&{coming}")

    assert answer.verdict == verdict
    assert answer.reason
    for value in ("Offer-Q", "Campaign-Q", "T-standing", "123.45"):
        assert value not in answer.reason
    assert stored in (client.postbacks()[-1].reason or "")


@pytest.mark.parametrize("value", ["Ж" * 255, "x" * 255, "line\r\nInjected: yes", "\x7f\x01é☃"])
def test_the_reason_is_short_printable_ascii_whatever_was_sent(client: Client, value: str) -> None:
    client.click(value, offer=value, campaign=value)
    client.send(urlencode({"subid": value, "tid": "T1", "status": "sale", "payout": "3"}))

    for fields in (
        {"tid": value, "status": "sale"},
        {"tid": "T1", "status": value},
        {"tid": "T1", "status": "lead", "from": value},
        {"tid": "T1", "status": "sale", "payout": value},
        {"tid": "T1", "status": value, "ignore": value},
    ):
        answer = client.send(urlencode({"subid": value, **fields}))

        assert answer.status == 200
        assert len(answer.reason) <= 200
        assert answer.reason.isascii()
        assert answer.reason == "" or answer.reason.isprintable()


def test_200_means_that_the_log_row_and_its_effect_are_in_the_file(client: Client) -> None:
    client.click("c1")

    for number in range(20):
        answer = client.send(f"subid=c1&tid=T{number}&status=sale")

        assert answer.status == 200
        assert len(client.postbacks()) == number + 1
    assert len(client.conversions("c1")) == 1


def test_readers_of_the_database_do_not_hold_postbacks_up(client: Client) -> None:
    client.click("c1")

    with closing(sqlite3.connect(client.database)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("key", [POSTBACK_KEY, CLICK_KEY, PIXEL_KEY, "older-key-of-the-tests"])
def test_no_key_shows_in_a_table_an_answer_or_a_log(
    receiver_with: ReceiverWith,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    key: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    client = receiver_with(postback_key_old="older-key-of-the-tests")
    answers = [client.click("c1", offer="O1")]
    for path in ("postback", "postback/", "postback.gif", "click", "Postback"):
        for method in METHODS:
            answers += [
                client.request(f"/{key}/{path}?subid=c1&status={word}&tid={word}", method=method)
                for word in ("lead", "sale", "what", "")
            ]
    answers.append(client.send("subid=c1&status=sale&return=OK"))

    for answer in answers:
        assert key.encode() not in answer.body
        assert key not in str(answer.headers)
    remove_database(client)
    client.database.mkdir()
    broken = client.get(f"/{key}/postback?subid=c1&status=sale")
    assert key.encode() not in broken.body
    assert key not in str(broken.headers)
    said = capfd.readouterr()
    assert key not in said.out + said.err + caplog.text


def test_no_key_shows_in_the_database_even_where_the_query_quotes_it(client: Client) -> None:
    client.click("c1")
    answer = client.request(
        f"{POSTBACK}?" + urlencode({"subid": "c1", "seen_at": f"https://t.example{POSTBACK}"}),
        headers={"Referer": f"https://t.example{POSTBACK}"},
    )
    client.request(POSTBACK, headers={"Cookie": f"subid={POSTBACK_KEY}"})

    assert answer.verdict == "recorded"
    for path in client.directory.glob("postback.db*"):
        assert POSTBACK_KEY.encode() not in path.read_bytes()


# --- Anything at all -------------------------------------------------------------------------

# Bytes as in WSGI: strings of Latin-1 characters.
wire = st.binary(max_size=60).map(lambda sent: sent.decode("latin-1"))
header_line = wire.map(lambda sent: sent.replace("\r", "").replace("\n", ""))

NAMES = [
    *("subid", "sub_id", "clickid", "click_id", "status", "payout", "revenue", "profit", "tid"),
    *("currency", "cost", "sub_id_1", "sub_id_30", "lead_status", "sale_status", "rejected"),
    *("ignore", "return", "from", "sub.id", "subid[]", "", "\x00"),
]
WORDS = ["c1", "lead", "sale", "rejected", "rebill", "5.5", "-1", "1e3", "{x}", "EUR", "T1", "a,b"]

field_value = st.one_of(
    st.sampled_from(WORDS),
    st.binary(max_size=20).map(quote),
    wire,
    st.text(max_size=20).map(lambda text: quote(text, errors="replace")),
)
pairs = st.tuples(st.sampled_from(NAMES), field_value).map("=".join)
queries = st.one_of(wire, st.lists(pairs, max_size=8).map("&".join))
paths = st.one_of(
    st.sampled_from([POSTBACK, f"{POSTBACK}/", PIXEL, f"/{PIXEL_KEY}/postback.gif"]),
    st.sampled_from([POSTBACK, f"/{CLICK_KEY}/click", "/health", "/", ""]),
    wire.map(lambda sent: f"/{sent}"),
    wire.map(lambda sent: f"/{POSTBACK_KEY}/{sent}"),
    wire.map(lambda sent: f"/{POSTBACK_KEY}{sent}/postback"),
    wire.map(lambda sent: f"{POSTBACK}{sent}"),
)
methods = st.one_of(
    st.sampled_from(["GET", "POST"]), st.sampled_from(METHODS), st.just("BREW"), wire
)
bodies = st.one_of(st.binary(max_size=80), queries.map(lambda sent: sent.encode("latin-1")))
content_types = st.one_of(st.just(FORM), st.just("application/json"), st.just(""), header_line)


def raw_environ(body: bytes = b"", **variables: str) -> dict[str, Any]:
    """Make the environ of a bare server: a postback, except for the given variables."""
    return {
        "REQUEST_METHOD": "POST" if body else "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": POSTBACK,
        "QUERY_STRING": "",
        "SERVER_NAME": "tracker.example",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": FORM,
        "CONTENT_LENGTH": str(len(body)),
        "REMOTE_ADDR": "203.0.113.9",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        **variables,
    }


@st.composite
def environs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a request, well formed or not."""
    optional = {
        "CONTENT_LENGTH": st.sampled_from(["", "-1", "x", "0", "3", "99999999999", "\xb2", "1_0"]),
        "HTTP_COOKIE": st.one_of(header_line, header_line.map(lambda sent: f"subid={sent}; a=b")),
        "HTTP_X_FORWARDED_FOR": st.one_of(
            header_line, st.sampled_from(["198.51.100.7", "1.2.3.4, ::1", ",", "[::1]:80"])
        ),
        "HTTP_ACCEPT": st.one_of(header_line, st.just("image/*")),
        "HTTP_SEC_FETCH_DEST": st.one_of(header_line, st.just("image")),
        "HTTP_USER_AGENT": header_line,
        "HTTP_X_REAL_IP": header_line,
        "HTTP_HOST": header_line,
    }
    chosen = {name: draw(values) for name, values in optional.items() if draw(st.booleans())}
    return raw_environ(
        draw(bodies),
        REQUEST_METHOD=draw(methods),
        PATH_INFO=draw(paths),
        QUERY_STRING=draw(queries),
        CONTENT_TYPE=draw(content_types),
        REMOTE_ADDR=draw(st.one_of(st.sampled_from(["127.0.0.1", "::1", ""]), header_line)),
        **chosen,
    )


def call(client: Client, environ: Mapping[str, Any]) -> Answer:
    """Call the receiver as a bare WSGI server would, without WebTest."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: object = None
    ) -> Callable[[bytes], object]:
        assert exc_info is None
        started.append((status, headers))
        return lambda _: None

    returned = client.receiver(dict(environ), start_response)
    body = b"".join(returned)
    close = getattr(returned, "close", None)
    if close is not None:
        close()
    [(status, headers)] = started
    return Answer(int(status.split()[0]), body, Headers(headers))


# All examples use one click, and no example depends on the others.
@settings(max_examples=300)
@given(environ=environs())
def test_whatever_bytes_come_the_answer_is_one_of_ours(
    client: Client, environ: dict[str, Any]
) -> None:
    answer = call(client, environ)

    # 503 would be our answer to an exception: with a sound database there is none. A body that
    # breaks off may be asked for again, though.
    declared = environ["CONTENT_LENGTH"]
    broken_off = declared.isdecimal() and int(declared) > len(environ["wsgi.input"].getvalue())
    assert answer.status in {200, 204, 404, 405, 413} | ({503} if broken_off else set())
    for name, value in answer.headers.items():
        assert f"{name}: {value}".isascii()
        assert f"{name}: {value}".isprintable()
    if answer.verdict in {"invalid", "unmapped"} and "image" not in str(answer.headers):
        assert b"error" not in answer.body.lower()
        assert b"fail" not in answer.body.lower()
    if environ["REQUEST_METHOD"] == "HEAD":
        assert answer.body == b""


@settings(max_examples=150)
@given(query=queries, body=queries, cookie=header_line)
def test_whatever_a_network_sends_is_logged_with_the_verdict_of_the_answer(
    client: Client, query: str, body: str, cookie: str
) -> None:
    client.click("c1")
    before = len(client.postbacks())
    environ = raw_environ(body.encode("latin-1"), QUERY_STRING=query, HTTP_COOKIE=cookie)

    answer = call(client, environ)

    assert answer.status == 200
    logged = client.postbacks()
    assert len(logged) == before + 1
    assert logged[-1].verdict == answer.verdict


def test_a_request_that_is_no_form_at_all_still_reaches_the_log(
    send: Send, postbacks: Postbacks
) -> None:
    send("%%%&&&===&%00=%ff&;;;")

    assert [p.verdict for p in postbacks()] == ["invalid"]


def test_a_form_that_comes_in_chunks_is_read_too(client: Client) -> None:
    client.click("c1")
    environ = raw_environ(
        b"subid=c1&status=lead", CONTENT_LENGTH="", HTTP_TRANSFER_ENCODING="chunked"
    )

    # So a server says that its input ends where the body does, whatever its length.
    answer = call(client, environ | {"wsgi.input_terminated": True})

    assert answer.verdict == "recorded"


@pytest.mark.parametrize("path", [POSTBACK[1:], f"x{POSTBACK}", "*", ""])
def test_a_path_that_does_not_begin_with_a_slash_is_a_404(client: Client, path: str) -> None:
    assert call(client, raw_environ(PATH_INFO=path, QUERY_STRING="subid=c1")).status == 404
