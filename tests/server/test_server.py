"""Through a real gunicorn with the project's settings: logs, keys, stops and restarts."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from live import PATIENCE_SECONDS, LiveServer, live_server, read_all, wait_until
from tree import ROOT

KEY = "s3cret/key-of the-tests"
KEY_IN_URL = "s3cret%2Fkey-of%20the-tests"
CONFIG = f"""\
;<?php exit; ?>
[system]
postback_key = "{KEY}"
click_key = "cl1ck-key-of-the-tests"
[postback]
unknown_subid = "accept"
[rates]
source = "none"
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.ini.php").write_text(CONFIG)
    return tmp_path


def count(directory: Path, table: str) -> int:
    with closing(sqlite3.connect(directory / "postback.db")) as db:
        rows: int = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return rows


def test_a_postback_is_answered_and_on_disk(directory: Path) -> None:
    with live_server(directory) as server:
        answer = server.get(f"/{KEY_IN_URL}/postback?subid=c1&payout=10")

        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nX-Postback-Result: recorded\r\n" in answer
        assert answer.endswith(b"\r\n\r\nSuccess")
        assert count(directory, "conversions") == 1


def test_a_head_is_told_what_a_get_would_be(directory: Path) -> None:
    with live_server(directory) as server:
        told = [
            server.send(
                f"{method} /{KEY_IN_URL}/postback HTTP/1.1\r\nHost: h\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            for method in ("HEAD", "GET")
        ]

    head, get = (re.sub(rb"Date: .*\r\n", b"", answer).partition(b"\r\n\r\n") for answer in told)
    assert head[0] == get[0]
    assert (head[2], get[2][:12]) == (b"", b"The click id")


@pytest.mark.parametrize("options", [(), ("--access-logfile", "-")])
def test_a_query_that_was_not_escaped_is_a_postback(
    directory: Path, options: tuple[str, ...]
) -> None:
    request = f"GET /{KEY_IN_URL}/postback?subid=c1&status=одобрен&sale_status=ОДОБРЕН"
    with live_server(directory, *options) as server:
        answer = server.send(f"{request} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())

        assert b"\r\nX-Postback-Result: recorded\r\n" in answer
        with closing(sqlite3.connect(directory / "postback.db")) as db:
            kept = db.execute("SELECT original_status, query FROM postbacks").fetchone()
    assert kept[0] == "одобрен"
    assert kept[1].startswith("subid=c1&status=%D0%BE")


# Q07: what old senders and hasty scripts write.
OLD_SENDERS = [
    "GET /{key}/postback?subid=c1&status=lead HTTP/1.0\r\n\r\n",
    "GET http://t.example/{key}/postback?subid=c1&status=lead HTTP/1.1\r\n{host}",
    "GET /{key}/postback?subid=c1&status=lead#top HTTP/1.1\r\n{host}",
    "GET /{key}/postback?subid=c1&status=lead&x={{|}}^\"'é HTTP/1.1\r\n{host}",
]


def test_what_old_senders_write_is_a_postback(directory: Path) -> None:
    host = "Host: h\r\nConnection: close\r\n\r\n"
    with live_server(directory) as server:
        answers = [
            server.send(written.format(key=KEY_IN_URL, host=host).encode())
            for written in OLD_SENDERS
        ]

    verdicts = [re.search(rb"X-Postback-Result: (\w+)", answer) for answer in answers]
    assert [found and found[1] for found in verdicts] == [b"recorded"] + [b"repeated"] * 3
    assert count(directory, "postbacks") == len(OLD_SENDERS)


def test_a_blank_within_an_address_is_a_400_that_the_service_log_names(directory: Path) -> None:
    # D61: nginx refuses it as well; what is not HTTP never reaches the postback log.
    with live_server(directory) as server:
        line = f"GET /{KEY_IN_URL}/postback?subid=c1&offer=Big Win HTTP/1.1"
        answer = server.send(f"{line}\r\nHost: h\r\n\r\n".encode())
        log = server.log.read_text()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "Invalid request" in log
    assert KEY_IN_URL not in log


def test_gunicorn_by_itself_finds_the_settings_of_the_project() -> None:
    shown = [
        subprocess.run(
            [sys.executable, "-m", "gunicorn", *options, "--print-config", "postback:application"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for options in ([], ["--config", "python:postbackd.server.gunicorn_conf"])
    ]

    settings = [re.sub(r"(?m)^config +=.*$", "", text) for text in shown]
    # Functions and classes are shown with their addresses.
    by_itself, by_serve = (re.sub(r"0x[0-9a-f]+", "", text) for text in settings)
    assert by_itself == by_serve
    assert "postbackd.server.worker.GroupCommitWorker" in by_itself


MALFORMED = {
    "a version that is none": f"GET /{KEY_IN_URL}/postback?subid=c1 HTTP/9.9 x\r\n\r\n",
    "no version": f"GET /{KEY_IN_URL}/postback?subid=c1 nothing at all\r\n\r\n",
    "a method that is none": f"G=T /{KEY_IN_URL}/postback?subid=c1 HTTP/1.1\r\nHost: h\r\n\r\n",
    "the key in a header's name": f"GET / HTTP/1.1\r\n{KEY_IN_URL} x: y\r\n\r\n",
    "the key in a broken header": f"GET / HTTP/1.1\r\nReferer /{KEY_IN_URL}/postback\r\n\r\n",
    "a request line too long": f"GET /{KEY_IN_URL}/postback?x={'y' * 9000} HTTP/1.1\r\n\r\n",
    "a header too long": f"GET /{KEY_IN_URL}/postback HTTP/1.1\r\nX: /{KEY}/{'y' * 66000}\r\n\r\n",
    "too many headers": f"GET /{KEY_IN_URL}/postback HTTP/1.1\r\nHost: h\r\n"
    + "".join(f"X-{number}: {KEY_IN_URL}\r\n" for number in range(300))
    + "\r\n",
    "a length that is none": f"POST /{KEY_IN_URL}/postback HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    "a coding that is none": f"POST /{KEY_IN_URL}/postback HTTP/1.1\r\nHost: h\r\n"
    "Transfer-Encoding: zip\r\n\r\n",
    "a chunk that is none": f"POST /{KEY_IN_URL}/postback HTTP/1.1\r\nHost: h\r\n"
    "Content-Type: application/x-www-form-urlencoded\r\n"
    f"Transfer-Encoding: chunked\r\n\r\n{KEY_IN_URL}\r\n",
}


@pytest.mark.parametrize(
    "worker_class", ["postbackd.server.worker.GroupCommitWorker", "gthread", "sync"]
)
def test_no_log_shows_the_key_whatever_comes(directory: Path, worker_class: str) -> None:
    options = ("--worker-class", worker_class, "--access-logfile", "-", "--log-level", "debug")
    with live_server(directory, *options) as server:
        for request in MALFORMED.values():
            server.send(request.encode() + b"\r\n")
        server.get(f"/{KEY_IN_URL}/postback?subid=c1", f"Referer: http://h/{KEY_IN_URL}/postback")
        server.get("/a-key-that-was-rotated-away/postback?subid=c1")
    log = server.read_log()

    assert "Invalid request from ip=127.0.0.1: LimitRequestLine" in log
    assert "/***/postback?subid=c1" in log
    for spelling in (KEY, KEY_IN_URL, KEY.replace(" ", "%20"), "a-key-that-was-rotated-away"):
        assert spelling not in log


def test_without_a_config_every_path_is_503_and_the_log_names_the_file(tmp_path: Path) -> None:
    with live_server(tmp_path) as server:
        answers = [server.get(target) for target in ("/", "/health", "/key/postback?subid=c1")]

        for answer in answers:
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: " in answer
        assert str(tmp_path / "config.ini.php") in server.read_log()

        (tmp_path / "config.ini.php").write_text(CONFIG)
        wait_until(
            lambda: server.get("/health").startswith(b"HTTP/1.1 200 "), "the config to be found"
        )


def test_a_stop_answers_what_was_taken(directory: Path) -> None:
    """SIGTERM while the database is held: the postback waits, is committed, and is answered."""
    with live_server(directory) as server:
        server.get(f"/{KEY_IN_URL}/postback?subid=c0")
        with closing(sqlite3.connect(directory / "postback.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            connection = server.connect()
            connection.sendall(
                f"GET /{KEY_IN_URL}/postback?subid=c1 HTTP/1.1\r\nHost: h\r\n\r\n".encode()
            )
            wait_until(lambda: has_read_all(server), "the request to be taken")
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            other.execute("ROLLBACK")
        with connection:
            answer = read_all(connection)
        assert server.stop() == 0

    assert answer.startswith(b"HTTP/1.1 200")
    assert count(directory, "conversions") == 2


def has_read_all(server: LiveServer) -> bool:
    """Return whether a connection stands and the server has read all that was sent to it."""
    port = f":{server.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Column 1 is the local address, 3 the state (01: established), 4 what waits to be read.
    queues = [row[4] for row in rows if row[1].endswith(port) and row[3] == "01"]
    return bool(queues) and all(queue.endswith(":00000000") for queue in queues)


def test_a_reload_loses_no_postback(directory: Path) -> None:
    answered: list[str] = []
    is_over = threading.Event()

    def send_on() -> None:
        number = 0
        while not is_over.is_set():
            subid = f"c{threading.get_ident()}-{number}"
            if server.get(f"/{KEY_IN_URL}/postback?subid={subid}").startswith(b"HTTP/1.1 200"):
                answered.append(subid)
            number += 1

    with live_server(directory, "--workers", "2") as server:
        senders = [threading.Thread(target=send_on) for _ in range(4)]
        for sender in senders:
            sender.start()
        for _ in range(2):
            old = set(server.worker_pids())
            assert server.process is not None
            server.process.send_signal(signal.SIGHUP)
            wait_until(
                lambda old=old: not old & set(server.worker_pids()),  # type: ignore[misc]
                "new workers",
            )
        is_over.set()
        for sender in senders:
            sender.join(PATIENCE_SECONDS)

    with closing(sqlite3.connect(directory / "postback.db")) as db:
        kept = {subid for (subid,) in db.execute("SELECT subid FROM conversions_view")}
    assert len(answered) > 0
    assert set(answered) <= kept


def test_a_click_that_another_program_writes_gets_its_parked_postbacks_within_five_seconds(
    directory: Path,
) -> None:
    (directory / "config.ini.php").write_text(CONFIG.replace('"accept"', '"park"'))
    with live_server(directory) as server:
        server.get(f"/{KEY_IN_URL}/postback?subid=c1&payout=10")
        assert count(directory, "conversions") == 0

        with closing(sqlite3.connect(directory / "postback.db", timeout=10)) as other, other:
            other.execute("INSERT INTO clicks (subid) VALUES ('c1')")

        wait_until(lambda: count(directory, "conversions") == 1, "the parked postback", seconds=5)


def test_many_clicks_of_another_program_get_theirs_within_five_seconds_too(
    directory: Path,
) -> None:
    (directory / "config.ini.php").write_text(CONFIG.replace('"accept"', '"park"'))
    with live_server(directory) as server:
        began = time.monotonic()
        with server.connect() as connection:
            for number in range(200):
                target = f"/{KEY_IN_URL}/postback?subid=c{number}"
                connection.sendall(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
                assert b"Success" in connection.recv(65536)
        took = time.monotonic() - began

        with closing(sqlite3.connect(directory / "postback.db", timeout=10)) as other, other:
            other.executemany(
                "INSERT INTO clicks (subid) VALUES (?)", ((f"c{n}",) for n in range(200))
            )

        # Where it took seconds to receive them, booking them may take as long.
        wait_until(lambda: count(directory, "conversions") == 200, "all of them", 5 + took)


def test_a_bare_gunicorn_works_in_any_directory_that_holds_a_config(directory: Path) -> None:
    with live_server(directory, "--worker-class", "sync", "--config", os.devnull) as server:
        answer = server.get(f"/{KEY_IN_URL}/postback?subid=c1&payout=10")

    assert answer.endswith(b"\r\n\r\nSuccess")
    assert count(directory, "conversions") == 1
