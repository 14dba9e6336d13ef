"""What deploy/nginx writes down while the receiver cannot answer, and what becomes of it."""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from cli_calls import Ran, call_process
from live import PATIENCE_SECONDS, LiveServer, wait_until
from test_nginx import KEY, KEY_IN_URL, Nginx, assert_told_to_come_back, running_nginx
from test_nginx import pytestmark as _needs_nginx
from tree import ROOT

from postbackd.bulk.caught_file import Caught, read_lines, tag_key
from tools.durability.servers import find_free_port

pytestmark = _needs_nginx

PIXEL_KEY = "p1xel-key-of-the-tests"
CLICK_KEY = "cl1ck-key-of-the-tests"
CONFIG = f"""\
;<?php exit; ?>
[system]
postback_key = "{KEY}"
pixel_key = "{PIXEL_KEY}"
click_key = "{CLICK_KEY}"
[rates]
source = "none"
"""
LOG = "postback-caught.jsonl"


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx as it is shipped, before nothing."""
    with running_nginx(tmp_path_factory.mktemp("nginx"), "127.0.0.1:1") as running:
        yield running


@pytest.fixture
def tracker(tmp_path: Path) -> Path:
    """A tracker that knows three clicks, and does not run."""
    (tmp_path / "config.ini.php").write_text(CONFIG)
    call_process(tmp_path, "clicks", "import", "-", stdin=b"subid\nc1\nc2\nc3\n")
    return tmp_path


def read_caught_log(nginx: Nginx, lines: int) -> list[Caught]:
    """Wait for so many lines of the log, and read them."""
    log = nginx.directory / LOG
    wait_until(lambda: nginx.read_log(LOG).count("\n") >= lines, "the lines of the log")
    with log.open("rb") as source:
        read = list(read_lines(source))
    assert [line.flaw for line in read if line.flaw] == []
    assert len(read) == lines
    return [line.caught for line in read if line.caught is not None]


def empty_log(nginx: Nginx) -> None:
    """Begin a test with an empty log."""
    (nginx.directory / LOG).write_bytes(b"")


def write_request(target: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    """Write a request down; a body has its length, unless a header says that it comes in chunks."""
    length = () if not body or any("chunked" in h for h in headers) else (len(body),)
    lines = [
        *(f"{method} {target} HTTP/1.1", "Host: h", "Connection: close", *headers),
        *(f"Content-Length: {number}" for number in length),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def write_chunks(body: bytes, size: int) -> bytes:
    """Write a body in chunks of this size."""
    pieces = [body[place : place + size] for place in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


EVERY_BYTE = bytes(range(256))
FORM = "Content-Type: application/x-www-form-urlencoded"
FULL = b"subid=c1&x=".ljust(65536, b"\\")

BODIES = {
    "every byte": (EVERY_BYTE, ()),
    "64 KiB that all need escapes": (FULL, ()),
    "chunks": (EVERY_BYTE, ("Transfer-Encoding: chunked",)),
    "64 KiB in chunks of a byte": (FULL, ("Transfer-Encoding: chunked",)),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_is_written_down_to_the_byte(nginx: Nginx, kind: str) -> None:
    empty_log(nginx)
    body, headers = BODIES[kind]
    sent = write_chunks(body, 1) if headers else body
    target = f'/{KEY_IN_URL}/postback?a=%22"\\%C3%A9\xe9'

    head = (*headers, 'Content-Type: a/b; c="d"', "Content-Encoding: e")
    answer = nginx.send(write_request(target, *head, method="POST", body=sent))

    assert_told_to_come_back(answer)
    [caught] = read_caught_log(nginx, 1)
    assert caught.body.encode("latin-1") == body
    assert (caught.method, caught.content_type, caught.encoding) == ("POST", 'a/b; c="d"', "e")
    assert caught.query == 'a=%22"\\%C3%A9\xc3\xa9'
    assert (caught.address, caught.tag) == ("127.0.0.1", tag_key(KEY.encode()))


# What a key may be, and how its address may be written.
KEYS = {
    "a": "a",
    "abcd": "abcd",
    "0123456789": "0123456789",
    "s3cret/key of": "s3cret%2Fkey%20of",
    "two//slashes": "two//slashes",
    "ключ": "%D0%BA%D0%BB%D1%8E%D1%87",
    "a%2Fb": "a%252Fb",
    "postback": "postback",
    "x" * 200: "x" * 200,
    "~._-!$'()*+,;=:@&": "~._-!$'()*+,;=:@&",
}


def test_a_key_is_known_by_its_tag_and_does_not_stand_in_the_log(nginx: Nginx) -> None:
    empty_log(nginx)
    keys = {**KEYS, **{f"{n * 7919}key{n}": f"{n * 7919}key{n}" for n in range(200)}}

    for written in keys.values():
        nginx.send(write_request(f"/{written}/postback?subid=c1"))

    tags = [caught.tag for caught in read_caught_log(nginx, len(keys))]
    assert tags == [tag_key(key.encode()) for key in keys]
    assert len(set(tags)) == len(keys)
    for key in (*list(keys)[2:], *list(keys.values())[2:]):
        if key != "postback":
            assert key not in nginx.read_log(LOG)


@pytest.mark.parametrize("place", ["query", "body"])
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("r=http://h/{}/postback&x=1", "r=http://h/***/postback&x=1"),
        ("r=http%3A%2F%2Fh%2F{}%2Fpostback&x={}", "r=http%3A%2F%2Fh%2F***%2Fpostback&x=***"),
        ("r=%2F{}%2Fpostback&s=%2F{}%2Fclick", "r=%2F***%2Fpostback&s=%2F***%2Fclick"),
        # Another word, as `masking` sees it.
        ("x=1{}&y={}2", "x=1{}&y={}2"),
    ],
)
def test_a_key_that_the_sender_quotes_is_hidden(
    nginx: Nginx, place: str, said: str, kept: str
) -> None:
    empty_log(nginx)
    key = "Rq-0_key-of-the-tests"
    said, kept = said.replace("{}", key), kept.replace("{}", key)
    target = f"/{key}/postback?{said if place == 'query' else ''}"

    body = said.encode() if place == "body" else b""
    nginx.send(write_request(target, method="POST", body=body))

    [caught] = read_caught_log(nginx, 1)
    assert (caught.query, caught.body) == ((kept, "") if place == "query" else ("", kept))


# A target, and what is read of it: name, tail, query.
TARGETS = {
    f"/{KEY_IN_URL}/postback?subid=c1": ("postback", "", "subid=c1"),
    f"/{KEY_IN_URL}/postback/?subid=c1": ("postback", "", "subid=c1"),
    f"/{KEY_IN_URL}/postback": ("postback", "", ""),
    f"/{KEY_IN_URL}/postback.gif?subid=c1": ("postback.gif", "", "subid=c1"),
    f"/{KEY_IN_URL}/click?subid=c1": ("click", "", "subid=c1"),
    f"/{KEY_IN_URL}/postback&subid=c1": ("postback", "&subid=c1", ""),
    f"/{KEY_IN_URL}/postback&subid=c1?x=/postback": ("postback", "&subid=c1", "x=/postback"),
    f"/{KEY_IN_URL}/postback&x=a/postback": ("postback", "&x=a/postback", ""),
    f"/{KEY_IN_URL}/postback&x=a/postback&y=b": ("postback", "&x=a/postback&y=b", ""),
    f"/{KEY_IN_URL}/postback/subid=c1": ("postback", "/subid=c1", ""),
    f"/{KEY_IN_URL}/postback%3Fsubid=c1": ("postback", "?subid=c1", ""),
}


@pytest.mark.parametrize("target", TARGETS)
def test_an_address_is_read_as_the_receiver_reads_it(nginx: Nginx, target: str) -> None:
    empty_log(nginx)

    nginx.send(write_request(target))

    [caught] = read_caught_log(nginx, 1)
    assert (caught.name, caught.tail, caught.query) == TARGETS[target]
    assert caught.tag == tag_key(KEY.encode())


def test_nothing_else_is_caught(nginx: Nginx) -> None:
    empty_log(nginx)
    key = KEY_IN_URL
    for target in (
        "/",
        "/health",
        "/postback",
        f"/{key}",
        f"/{key}/postbacks",
        f"/{key}/x?/postback",
        f"/{key}/postback;subid=c1",
    ):
        nginx.send(write_request(target))
    for method in ("HEAD", "OPTIONS", "PUT"):
        nginx.send(write_request(f"/{key}/postback?subid=c1", method=method))
    nginx.send(write_request(f"/{key}/postback", method="POST", body=b"x" * 65537))
    nginx.send(write_request(f"/{key}/postback?subid=last"))

    assert [caught.query for caught in read_caught_log(nginx, 1)] == ["subid=last"]


def test_what_the_receiver_answers_is_not_caught_but_for_its_503(tmp_path: Path) -> None:
    statuses = iter([b"200 OK", b"404 Not Found", b"503 Service Unavailable", b"200 OK"])
    with (
        answering(lambda: next(statuses)) as upstream,
        running_nginx(tmp_path, f"127.0.0.1:{upstream}") as nginx,
    ):
        for number in range(4):
            nginx.send(write_request(f"/k/postback?n={number}", method="POST", body=b"a=b"))

        [caught] = read_caught_log(nginx, 1)
    assert (caught.query, caught.body) == ("n=2", "a=b")


@contextmanager
def answering(find_status: Callable[[], bytes]) -> Iterator[int]:
    """Answer each request on a connection of its own; returns the port."""

    def answer() -> None:
        while True:
            try:
                connection, _ = upstream.accept()
            except OSError:
                return
            with connection:
                received = b""
                while not received.endswith(b"a=b"):
                    received += connection.recv(65536)
                head = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                connection.sendall(head % find_status())

    with socket.create_server(("127.0.0.1", 0)) as upstream:
        threading.Thread(target=answer, daemon=True).start()
        yield upstream.getsockname()[1]
        upstream.shutdown(socket.SHUT_RDWR)


def test_what_is_over_the_limit_is_caught_and_a_body_that_was_not_read_is_told(
    tmp_path: Path, tracker: Path
) -> None:
    changes = (("rate=500r/s", "rate=1r/m"), ("burst=5000", "burst=1"))
    target = f"/{KEY_IN_URL}/postback?subid=c"
    with running_nginx(tmp_path / "nginx", "127.0.0.1:1", *changes) as nginx:
        for number in (1, 2, 3):
            nginx.send(write_request(f"{target}{number}"))
        nginx.send(write_request(target, FORM, method="POST", body=b"subid=c1"))
        wait_until(lambda: nginx.read_log(LOG).count("\n") == 4, "the lines of the log")

        ran = import_caught(tracker, nginx)

    assert [told["verdict"] for told in ran.objects] == [*["recorded"] * 3, "skipped"]
    assert "its body was sent and not read" in ran.objects[3]["reason"]
    assert ran.status == 1


CURL = shutil.which("curl")


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
@pytest.mark.parametrize("is_over", [False, True])
def test_a_body_without_a_length_is_written_down_or_told(
    tmp_path: Path, tracker: Path, *, is_over: bool
) -> None:
    """HTTP/2 says neither how long a body is nor that there is one."""
    port = find_free_port()
    spoken = ("#listen 443 ssl http2 default_server;", f"listen 127.0.0.1:{port} http2;")
    limits = (("rate=500r/s", "rate=1r/m"), ("burst=5000 nodelay", "")) if is_over else ()
    with running_nginx(tmp_path / "nginx", "127.0.0.1:1", spoken, *limits) as nginx:
        if is_over:
            nginx.send(write_request("/x"))
        command = f"{CURL} -s --http2-prior-knowledge -X POST -H Content-Type:text/plain -T -"
        address = f"http://127.0.0.1:{port}/{KEY_IN_URL}/postback?subid=c1"
        # Over the limit nginx takes no more of it, which curl calls an error.
        subprocess.run([*command.split(), address], input=b"payout=7", check=False)
        wait_until(lambda: nginx.read_log(LOG).count("\n") == 1, "the line of the log")

        [told] = import_caught(tracker, nginx).objects

    assert (told["verdict"], told.get("amount")) == (
        ("skipped", None) if is_over else ("recorded", "7")
    )


def import_caught(tracker: Path, nginx: Nginx) -> Ran:
    """Import what nginx has caught."""
    return call_process(tracker, "import", "--caught", str(nginx.directory / LOG), "--json")


def test_what_was_caught_is_booked_as_if_it_had_got_through(nginx: Nginx, tracker: Path) -> None:
    empty_log(nginx)
    as_json = json.dumps({"subid": "c2", "payout": 7, "tid": "ä"}).encode()
    base = f"/{KEY_IN_URL}/postback"
    for request in (
        write_request(f"/{CLICK_KEY}/click?subid=c4&offer=O4"),
        write_request(f"{base}?payout=5", "Cookie: x=y; _subid=c1", "Accept: image/gif"),
        write_request(base, "Content-Type: application/json", method="POST", body=as_json),
        write_request(
            base,
            *(FORM, "Content-Encoding: gzip"),
            method="POST",
            body=gzip.compress(b"subid=c3&payout=9"),
        ),
        write_request(f"/{PIXEL_KEY}/postback.gif?subid=c4&status=lead"),
        write_request(f"{base}&subid=c1&status=rejected"),
        write_request("/a-strangers-key/postback?subid=c1&status=rejected"),
    ):
        assert_told_to_come_back(nginx.send(request))
    read_caught_log(nginx, 7)

    ran = import_caught(tracker, nginx)

    assert [told["verdict"] for told in ran.objects] == [*["recorded"] * 5, "invalid", "left"]
    assert {told["subid"]: told["amount"] for told in ran.objects[1:4]} == {
        "c1": "5",
        "c2": "7",
        "c3": "9",
    }
    assert "? between the address and its parameters is missing" in ran.objects[5]["reason"]
    assert "its key is none that the config has" in ran.objects[6]["reason"]
    listed = call_process(tracker, "conversions", "--json").objects
    assert {(c["subid"], c["status"]) for c in listed} == {
        *(("c1", "sale"), ("c2", "sale"), ("c3", "sale"), ("c4", "lead"))
    }
    assert import_caught(tracker, nginx).objects[0]["verdict"] == "repeated"
    assert call_process(tracker, "conversions", "--json").objects == listed


LOGROTATE = shutil.which("logrotate", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed")
def test_the_log_is_rotated_and_written_on_and_is_for_few(tmp_path: Path, tracker: Path) -> None:
    with running_nginx(tmp_path / "nginx", "127.0.0.1:1") as nginx:
        log = nginx.directory / LOG
        text = (ROOT / "deploy" / "logrotate" / "postback-caught").read_text()
        for old, new in (
            (f"/var/log/nginx/{LOG} {{", f"{log} {{"),
            ("create 0640 www-data adm", "create 0640"),
            ("/run/nginx.pid", str(nginx.directory / "nginx.pid")),
        ):
            assert old in text
            text = text.replace(old, new)
        rules = tmp_path / "rules"
        rules.write_text(text)
        rules.chmod(0o644)
        command = [str(LOGROTATE), "--force", "--state", str(tmp_path / "state"), str(rules)]
        for number in (1, 2, 3):
            nginx.send(write_request(f"/{KEY_IN_URL}/postback?subid=c{number}"))
            wait_until(lambda: log.stat().st_size > 0, "the line of the log")
            rotated = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (rotated.returncode, rotated.stdout + rotated.stderr) == (0, "")
            nginx.send(write_request(f"/{KEY_IN_URL}/postback&subid=c{number}"))
            wait_until(lambda: log.stat().st_size > 0, "the first line of the new log")
            assert log.stat().st_mode & 0o777 == 0o640

        files = sorted(map(str, nginx.directory.glob(f"{LOG}*")))
        assert [Path(file).suffix for file in files] == [".jsonl", ".1", ".gz", ".gz"]
        ran = call_process(tracker, "import", "--caught", *files, "--json")
    told = [(line["subid"], line["verdict"]) for line in ran.objects]
    assert told == [
        (f"c{number}", verdict) for number in (1, 2, 3) for verdict in ("recorded", "invalid")
    ]


SENDERS = 4
# Each sender has clicks of its own, and none is sent twice.
CLICKS_EACH = 5000


def test_nothing_is_missing_when_the_receiver_is_stopped_under_load(tmp_path: Path) -> None:
    """Every 503 is in nginx's file, every 200 in the database; after the import all is there."""
    (tmp_path / "config.ini.php").write_text(CONFIG)
    subids = [f"s{sender}n{n}" for sender in range(SENDERS) for n in range(CLICKS_EACH)]
    call_process(tmp_path, "clicks", "import", "-", stdin="\n".join(["subid", *subids]).encode())
    server = LiveServer(tmp_path)
    with running_nginx(tmp_path / "nginx", f"127.0.0.1:{server.port}") as nginx:
        load = Load(nginx.port)
        try:
            for stop_by in (signal.SIGKILL, signal.SIGTERM):
                server.start()
                load.go_on()
                load.wait_for_more(200)
                server.stop(stop_by)
                load.wait_for_more(503)
                load.pause()
        finally:
            load.end()
            server.stop()
        answered = load.answers
        assert set(answered.values()) == {200, 503}
        wait_until(
            lambda: nginx.read_log().count("/postback 503 ") == count(answered, 503), "lines"
        )
        caught = read_caught_log(nginx, count(answered, 503))
        assert {re.findall(r"subid=(\w+)", each.query)[0] for each in caught} == {
            subid for subid, status in answered.items() if status == 503
        }
        before = {c["subid"] for c in list_conversions(tmp_path)}
        assert before >= {subid for subid, status in answered.items() if status == 200}

        ran = import_caught(tmp_path, nginx)
        assert ran.status == 0
        after = list_conversions(tmp_path)
        assert sorted(c["subid"] for c in after) == sorted(answered)
        assert {c["payout"] for c in after} == {"5"}
        assert import_caught(tmp_path, nginx).status == 0
        assert list_conversions(tmp_path) == after
        assert KEY not in nginx.read_log(LOG)
        assert KEY_IN_URL not in nginx.read_log(LOG)


def count(answered: dict[str, int], status: int) -> int:
    return sum(each == status for each in answered.values())


def list_conversions(tracker: Path) -> list[dict[str, str]]:
    return call_process(tracker, "conversions", "--limit", "0", "--json").objects


class Load:
    """Senders that send while they are let, each postback for a click of its own."""

    def __init__(self, port: int) -> None:
        """Take where to send to."""
        self.answers: dict[str, int] = {}
        self._may_send = threading.Event()
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._send, args=(port, sender)) for sender in range(SENDERS)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for_more(self, status: int) -> None:
        """Wait for some more answers of this kind."""
        wanted = count(dict(self.answers), status) + 50
        wait_until(lambda: count(dict(self.answers), status) >= wanted, f"answers of {status}")

    def go_on(self) -> None:
        """Let the senders send."""
        self._may_send.set()

    def pause(self) -> None:
        """Have them wait: without a receiver they would be through in a moment."""
        self._may_send.clear()

    def end(self) -> None:
        """Have each sender finish its request."""
        self._is_over = True
        self._may_send.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def _send(self, port: int, sender: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        for number in range(CLICKS_EACH):
            self._may_send.wait(PATIENCE_SECONDS)
            if self._is_over:
                break
            subid = f"s{sender}n{number}"
            connection.request("GET", f"/{KEY_IN_URL}/postback?subid={subid}&payout=5")
            answer = connection.getresponse()
            answer.read()
            self.answers[subid] = answer.status
        connection.close()
