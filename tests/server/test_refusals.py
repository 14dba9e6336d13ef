"""What is refused before the receiver sees it is counted, and `check` tells of it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cli_calls import call_process
from conftest import POSTBACK_KEY, Client, ReceiverWith, write_config
from live import live_server, wait_until

from postbackd.cli import entry as cli
from postbackd.db.refusals import Kind, Refusals
from storage import Storage, open_database

Told = Callable[..., list[str]]


@pytest.fixture
def tracker(receiver_with: ReceiverWith) -> Client:
    client = receiver_with()
    client.clock.now = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
    return client


@pytest.fixture
def told(tracker: Client, capsys: pytest.CaptureFixture[str]) -> Told:
    """What `check` says of refused requests, a sentence a kind."""

    def told() -> list[str]:
        config = str(tracker.directory / "config.ini.php")
        cli.main(["check", "--json", "--config", config])
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if '"check": "refused"' in line]

    return told


class Counted:
    """One process's counts and a database, with a housekeeping that has its turn when told."""

    def __init__(self, path: Path) -> None:
        """Begin at noon."""
        self.path = path
        self.refusals = Refusals()
        self.now = datetime(2026, 3, 2, 12, tzinfo=UTC)

    def note(self, times: int = 1, address: str = "") -> None:
        """Refuse some requests."""
        for _ in range(times):
            self.refusals.note(Kind(400, "x"), address, self.now)

    def run_housekeeping(self) -> list[tuple[int, str]]:
        """Write what is due; returns what the database holds then."""
        with open_database(self.path, "USD") as db:
            with db.transaction():
                self.refusals.write(db.db, self.now)
            sql = "SELECT requests, last_address FROM refused_requests ORDER BY hour"
            return list(db.db.execute(sql))


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "postback.db")


def test_check_tells_how_often_when_last_and_from_where(tracker: Client, told: Told) -> None:
    tracker.send("subid=c1")
    at = tracker.clock.now
    for number in range(3):
        tracker.receiver.service.note_refusal(431, "the head is too long", f"203.0.113.{number}")
    tracker.receiver.service.note_refusal(400, "malformed chunks", "")
    tracker.receiver.close()

    first, second = told()

    assert '"level": "ok"' in first
    assert (
        "requests answered 431 before they were read as postbacks, in 24 hours: 3 (the head is too"
        f" long), the last at {at:%Y-%m-%d %H:%M} UTC from 203.0.113.2" in first
    )
    assert "answered 400" in second
    assert second.endswith('from a unix socket"}')


def test_check_says_so_where_nothing_was_refused(tracker: Client, told: Told) -> None:
    tracker.send("subid=c1")

    assert "no request in 24 hours" in told()[0]


def test_what_is_older_than_a_day_is_not_told(tracker: Client, told: Told) -> None:
    now = tracker.clock.now
    for days in (2, 0):
        tracker.clock.now = now - timedelta(days=days)
        tracker.receiver.service.note_refusal(414, "too long", f"192.0.2.{days}")
    tracker.receiver.close()
    assert len(tracker.rows("SELECT * FROM refused_requests")) == 2

    (line,) = told()

    assert ": 1 (too long), the last at" in line


def test_what_is_older_than_a_week_goes(counted: Counted) -> None:
    for day in range(10):
        counted.note(address=f"192.0.2.{day}")
        counted.now += timedelta(days=1)

    assert [address for _, address in counted.run_housekeeping()] == [
        f"192.0.2.{d}" for d in range(3, 10)
    ]
    counted.now += timedelta(days=9)
    assert counted.run_housekeeping() == []


def test_a_count_is_written_soon_and_then_once_a_minute(counted: Counted) -> None:
    assert counted.run_housekeeping() == []
    counted.note()
    assert counted.run_housekeeping() == [(1, "")]
    counted.now += timedelta(seconds=59)
    counted.note(1000)
    assert counted.run_housekeeping() == [(1, "")]
    counted.now += timedelta(seconds=1)
    assert counted.run_housekeeping() == [(1001, "")]


def test_the_counts_of_all_processes_and_hours_add_up(
    tracker: Client, receiver_with: ReceiverWith, told: Told
) -> None:
    now = tracker.clock.now
    other = receiver_with(directory=tracker.directory)
    for hours, client in ((2, tracker), (1, other), (0, tracker)):
        client.clock.now = now - timedelta(hours=hours)
        client.receiver.service.note_refusal(400, "x", f"192.0.2.{hours}")
        client.send("subid=c1")
    for client in (other, tracker):
        client.receiver.close()

    (line,) = told()

    assert ": 3 (x), the last at" in line
    assert line.endswith('from 192.0.2.0"}')


def test_no_count_is_lost_with_a_transaction(counted: Counted) -> None:
    counted.note()
    with open_database(counted.path, "USD") as db, pytest.raises(RuntimeError, match="boom"):
        write_and_break(db, counted)
    counted.now += timedelta(minutes=1)

    assert counted.run_housekeeping() == [(1, "")]


def write_and_break(db: Storage, counted: Counted) -> None:
    with db.transaction():
        counted.refusals.write(db.db, counted.now)
        raise RuntimeError("boom")


def test_no_count_is_lost_with_a_database_that_was_replaced(counted: Counted) -> None:
    counted.note()
    counted.run_housekeeping()
    for file in counted.path.parent.glob("postback.db*"):
        file.unlink()
    counted.now += timedelta(minutes=1)

    assert counted.run_housekeeping() == [(1, "")]


def test_no_more_of_an_address_is_kept_than_may_be(receiver_with: ReceiverWith) -> None:
    client = receiver_with(anonymize_ip="yes")
    client.receiver.service.note_refusal(400, "x", "203.0.113.77")
    client.receiver.close()

    assert client.rows("SELECT last_address FROM refused_requests") == [
        {"last_address": "203.0.113.0"}
    ]


REFUSED = {
    b"GET / HTTP/1.1\r\n\r\n": (400, "HTTP/1.1 without a Host field"),
    b"\x16\x03\x01\x02\x00": (400, "TLS, where plain HTTP is spoken"),
    b"SSH-2.0-x\r\n": (400, "SSH, where plain HTTP is spoken"),
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n": (400, "the PROXY protocol, where plain HTTP is spoken"),
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c": (
        400,
        "the PROXY protocol, where plain HTTP is spoken",
    ),
    b"hello": (400, "the first word is no method"),
    # D61: a blank that the sender did not escape.
    b"GET /key/postback?subid=C1&offer=Big Win HTTP/1.1\r\n": (400, "no version of HTTP/1"),
    b"GET /x\r\n": (400, "the first line is no request line"),
    b"GET /" + b"x" * 9000: (414, "the request line is too long"),
    b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * 300 + b"\r\n": (
        431,
        "the head is too long or has too many fields",
    ),
    b"GET / HTTP/1.0\r\nX y\r\n\r\n": (400, "a field of the head is malformed"),
    b"GET / HTTP/1.0\r\nX: y\r\n z\r\n\r\n": (400, "a field of the head is malformed"),
    b"GET / HTTP/1.0\r\nExpect: cake\r\n\r\n": (417, "an unknown expectation"),
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: zip\r\n\r\n": (
        501,
        "an unknown transfer coding",
    ),
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n": (
        400,
        "malformed chunks",
    ),
}


def test_a_running_service_counts_each_kind_and_writes_it_by_itself(tmp_path: Path) -> None:
    write_config(tmp_path, {})
    with live_server(tmp_path) as server:
        for request in REFUSED:
            server.send(request)
        # Of what the receiver itself answers, only this is counted.
        server.get("/wr0ng-key/postback")
        server.get("/favicon.ico")
        wait_until(lambda: "refused_requests" in tables(tmp_path), "the database")
        wait_until(lambda: len(call_check(tmp_path)) > 0, "a count to be written")
    counted = {(status, reason): requests for status, reason, requests in call_check(tmp_path)}

    expected: dict[tuple[int, str], int] = {(404, "an unknown key"): 1}
    for kind in REFUSED.values():
        expected[kind] = expected.get(kind, 0) + 1
    assert counted == expected
    assert "203.0.113" not in server.read_log()
    assert POSTBACK_KEY not in server.read_log()
    shown = call_process(tmp_path, "check", "--json").objects
    told = [found["message"] for found in shown if found["check"] == "refused"]
    assert len(told) == len(expected)
    assert all(" UTC from 127.0.0.1" in message for message in told)


def tables(directory: Path) -> set[str]:
    with closing(sqlite3.connect(directory / "postback.db")) as db:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_master")}


def call_check(directory: Path) -> list[tuple[int, str, int]]:
    with closing(sqlite3.connect(directory / "postback.db")) as db:
        return list(db.execute("SELECT status, reason, requests FROM refused_requests"))
