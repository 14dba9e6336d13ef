"""Calls under no key of ours leave a count, and a former key is told from an unknown one."""

import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from cli_calls import call_process
from conftest import CLICK_KEY, PIXEL_KEY, POSTBACK_KEY, Client, ReceiverWith, write_config
from live import live_server, wait_until

from postbackd.cli import entry as cli
from postbackd.db.stray_calls import DIFFERENT_KEYS, KEY_BYTES
from postbackd.intake import runtime

NEW_KEY = "n3w-key-of-the-tests-0123"
OLD_KEY = "0ld-key-of-the-tests"


@pytest.fixture
def tracker(receiver_with: ReceiverWith) -> Client:
    client = receiver_with()
    client.clock.now = datetime.now(UTC).replace(microsecond=0)
    return client


def count_strays(client: Client) -> dict[str, int]:
    client.receiver.close()
    rows = client.rows("SELECT reason, sum(requests) AS n FROM refused_requests GROUP BY reason")
    return {row["reason"]: row["n"] for row in rows}


def move_on(tracker: Client, receiver_with: ReceiverWith, **settings: str) -> Client:
    """Use the key, then write another one over it in the config, and start anew."""
    tracker.send("subid=c1")
    tracker.receiver.close()
    client = receiver_with(directory=tracker.directory, postback_key=NEW_KEY, **settings)
    client.clock.now = datetime.now(UTC).replace(microsecond=0)
    return client


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        ("/wr0ng/postback?subid=c1", {"an unknown key": 1}),
        ("/wr0ng/postback/", {"an unknown key": 1}),
        ("/wr0ng/postback.gif?subid=c1", {"an unknown key": 1}),
        ("/wr0ng/click?subid=c1", {"an unknown key": 1}),
        ("/wr0ng/postback&subid=c1", {"an unknown key": 1}),
        (f"/{'x' * (KEY_BYTES + 1)}/postback", {"an unknown key": 1}),
        ("/postback?subid=c1", {"no key": 1}),
        (f"/{CLICK_KEY}/postback?subid=c1", {"a key that opens other addresses": 1}),
        (f"/{PIXEL_KEY}/postback?subid=c1", {"a key that opens other addresses": 1}),
        (f"/{POSTBACK_KEY}/click?subid=c1", {"a key that opens other addresses": 1}),
        ("/wp-login.php", {}),
        ("/wr0ng/index.html", {}),
        ("/favicon.ico", {}),
        (f"/{POSTBACK_KEY}/postback?subid=c1", {}),
    ],
)
def test_what_looks_like_ours_is_counted_by_kind(
    tracker: Client, path: str, counted: dict[str, int]
) -> None:
    tracker.send("subid=c1")

    tracker.get(path)

    assert count_strays(tracker) == counted


def test_a_key_that_was_edited_away_is_told_by_check(
    tracker: Client, receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = move_on(tracker, receiver_with)
    for number in range(3):
        forwarded = {"X-Forwarded-For": f"198.51.100.{number}"}
        environ = {"REMOTE_ADDR": "127.0.0.1"}
        path = f"/{POSTBACK_KEY}/postback?subid=c1"
        assert client.request(path, environ=environ, headers=forwarded).status == 404
    client.get("/wr0ng/postback")
    client.receiver.close()

    cli.main(["check", "--json", "--config", str(client.directory / "config.ini.php")])
    out = capsys.readouterr().out

    [line] = [line for line in out.splitlines() if "no longer accepted" in line]
    assert '"level": "warning", "check": "key"' in line
    assert "the previous key is no longer accepted: 3 calls in 24 hours" in line
    assert "from 198.51.100.2" in line
    assert "key rotate --keep-old-until" in line
    assert "under no key that opens it, in 24 hours: 1 (an unknown key)" in out


@pytest.mark.parametrize("old", ["", f"{OLD_KEY} until 2026-01-31"])
def test_only_what_was_accepted_once_is_a_former_key(
    tracker: Client, receiver_with: ReceiverWith, old: str
) -> None:
    client = move_on(tracker, receiver_with, postback_key_old=old)

    for key in (POSTBACK_KEY, OLD_KEY, POSTBACK_KEY.upper(), f"{POSTBACK_KEY}x"):
        client.get(f"/{key}/postback?subid=c1")

    former = 2 if old else 1
    assert count_strays(client) == {"a former key": former, "an unknown key": 4 - former}


def test_a_key_that_is_still_accepted_is_no_former_one(
    tracker: Client, receiver_with: ReceiverWith
) -> None:
    client = move_on(tracker, receiver_with, postback_key_old=POSTBACK_KEY)

    assert client.send("subid=c1&tid=t").status == 200

    assert count_strays(client) == {}


def test_the_log_says_it_once_an_hour(
    tracker: Client,
    receiver_with: ReceiverWith,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "TICK_SECONDS", 0.0)
    client = move_on(tracker, receiver_with)
    client.clock.now = client.clock.now.replace(minute=0)

    def told() -> list[str]:
        client.receiver.service.run_housekeeping()
        said = [record.getMessage() for record in caplog.records if "no longer" in record.message]
        caplog.clear()
        return [sentence.partition(": ")[2].partition(" in 24")[0] for sentence in said]

    with caplog.at_level(logging.WARNING, "postback"):
        client.get(f"/{POSTBACK_KEY}/postback?subid=c1")
        first = told()
        client.clock.forward(minutes=30)
        client.get(f"/{POSTBACK_KEY}/postback?subid=c1")
        within_the_hour = told()
        client.clock.forward(minutes=31)
        after_it = told()
        client.clock.forward(minutes=120)
        silent_since = told()

    assert (first, within_the_hour) == (["1 call"], [])
    assert (after_it, silent_since) == (["2 calls"], [])


def test_no_key_that_was_sent_is_written(tracker: Client, receiver_with: ReceiverWith) -> None:
    client = move_on(tracker, receiver_with)
    client.get(f"/{POSTBACK_KEY}/postback?subid=c1")
    client.get(f"/{OLD_KEY}/postback?subid=c1")

    assert count_strays(client) == {"a former key": 1, "an unknown key": 1}
    for path in client.directory.glob("postback.db*"):
        held = path.read_bytes()
        assert POSTBACK_KEY.encode() not in held
        assert OLD_KEY.encode() not in held


def test_who_tries_keys_fills_no_memory_and_hides_no_former_key_for_long(
    tracker: Client, receiver_with: ReceiverWith
) -> None:
    client = move_on(tracker, receiver_with)
    client.get(f"/{'x' * (KEY_BYTES + 1)}/postback")
    for number in range(DIFFERENT_KEYS + 50):
        client.get(f"/guess-{number}/postback")
    seen: Any = client.receiver.service.stray_calls._seen
    assert len(seen) <= DIFFERENT_KEYS + 1
    assert all(key is None or len(key) <= KEY_BYTES for key in seen)

    client.receiver.service.run_housekeeping()
    client.get(f"/{POSTBACK_KEY}/postback?subid=c1")

    assert count_strays(client) == {"an unknown key": DIFFERENT_KEYS + 51, "a former key": 1}


def test_explaining_an_address_counts_nothing(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send("subid=c1")
    config = str(tracker.directory / "config.ini.php")

    status = cli.main(["explain", "/wr0ng-key/postback?subid=c1", "--config", config])

    assert (status, "404" in capsys.readouterr().out) == (0, True)
    assert count_strays(tracker) == {}


def test_a_key_edited_away_under_the_running_service_is_told_at_once(
    receiver_with: ReceiverWith, tracker: Client
) -> None:
    directory = tracker.directory
    tracker.receiver.close()
    with live_server(directory) as server:
        assert b"200 OK" in server.get(f"/{POSTBACK_KEY}/postback?subid=c1")
        write_config(directory, {"postback_key": NEW_KEY, "repeats": "update"})
        wait_until(
            lambda: b"404" in server.get(f"/{POSTBACK_KEY}/postback?subid=c1"), "the new config"
        )
        wait_until(lambda: "no longer accepted: " in server.read_log(), "the count")
    log = server.read_log()

    assert "is in force: [system] postback_key *** -> another; [postback] repeats ignore" in log
    assert "a former key is accepted no more" in log
    assert "--keep-old-until" in log
    assert POSTBACK_KEY not in log
    assert NEW_KEY not in log
    shown = call_process(directory, "check", "--json").objects
    assert any("no longer accepted" in found["message"] for found in shown)
