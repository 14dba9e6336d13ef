"""deploy/nginx as it is shipped, in Debian's nginx, with a real gunicorn behind it."""

import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from live import PATIENCE_SECONDS, LiveServer, live_server, read_all, wait_until
from tree import ROOT

from postbackd.server.worker import allow_files
from tools.durability.servers import find_free_port

# Debian keeps it where an ordinary user's PATH does not look.
PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="nginx is not installed")

SHIPPED = ROOT / "deploy" / "nginx"

KEY = "s3cret/key-of the-tests"
KEY_IN_URL = "s3cret%2Fkey-of%20the-tests"
# nginx takes any capitals for a method.
METHOD = "A_KEY_OF_CAPITALS"
CONFIG = f"""\
;<?php exit; ?>
[system]
postback_key = "{KEY}"
[postback]
unknown_subid = "accept"
[rates]
source = "none"
"""

# What stands around the server on a Debian machine; the logs of whatever is not ours, more
# talkative than anybody sets them.
AROUND = """\
daemon off;
{user}
pid {here}/nginx.pid;
error_log {here}/error.log info;
events {{
    worker_connections 768;
}}
http {{
    access_log {here}/others.log;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    include {here}/postback*.conf;
}}
"""


class Nginx:
    """nginx with the shipped files, on a free port, before one receiver."""

    def __init__(self, directory: Path, upstream: str, *changes: tuple[str, str]) -> None:
        """Take a directory, where the receiver listens, and what else to put for what.

        Its main file is Debian's, changed as the guide says.
        """
        self.directory = directory
        self.port = find_free_port()
        directory.mkdir(exist_ok=True)
        user = "user root;" if os.geteuid() == 0 else ""
        (directory / "nginx.conf").write_text(AROUND.format(user=user, here=directory))
        obey_the_guide(directory / "nginx.conf")
        here = (
            ("    listen 80 default_server;", f"    listen 127.0.0.1:{self.port} default_server;"),
            ("    listen [::]:80 default_server;", ""),
            ("server 127.0.0.1:8000;", f"server {upstream};"),
            ("/var/log/nginx/access.log", str(directory / "access.log")),
            ("/var/log/nginx/postback-caught.jsonl", str(directory / "postback-caught.jsonl")),
        )
        text = "".join(
            f"# {name}\n{(SHIPPED / name).read_text()}"
            for name in ("postback-upstream.conf", "postback.conf")
        )
        for old, new in (*here, *changes):
            assert old in text, f"the shipped file no longer says {old!r}"
            text = text.replace(old, new)
        (directory / "postback.conf").write_text(text)

    def send(self, request: bytes, source: str = "127.0.0.1") -> bytes:
        """Send bytes on a new connection and read until nginx closes it."""
        with self.connect(source) as connection:
            connection.sendall(request)
            return read_all(connection)

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """Open a connection from an address of this machine."""
        there = ("127.0.0.1", self.port)
        return socket.create_connection(there, PATIENCE_SECONDS, source_address=(source, 0))

    def read_log(self, name: str = "access.log") -> str:
        """Give one of its logs."""
        log = self.directory / name
        return log.read_text(errors="replace") if log.exists() else ""

    def accepts(self) -> bool:
        """Return whether it listens."""
        try:
            self.connect().close()
        except OSError:
            return False
        return True


@contextmanager
def running_nginx(directory: Path, upstream: str, *changes: tuple[str, str]) -> Iterator[Nginx]:
    """Run nginx for the time of a test."""
    nginx = Nginx(directory, upstream, *changes)
    command = [str(PROGRAM), "-p", str(directory), "-c", str(directory / "nginx.conf")]
    with (directory / "stderr.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or nginx.accepts(), "nginx")
        assert process.poll() is None, nginx.read_log("stderr.log")
        yield nginx
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One receiver for all the tests here."""
    directory = tmp_path_factory.mktemp("receiver")
    (directory / "config.ini.php").write_text(CONFIG)
    with live_server(directory) as server:
        yield server


@pytest.fixture(scope="module")
def nginx(receiver: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx before that receiver, as it is shipped."""
    with running_nginx(tmp_path_factory.mktemp("nginx"), f"127.0.0.1:{receiver.port}") as running:
        yield running


def write_get(subid: str, *headers: str, more: str = "", connection: str = "close") -> bytes:
    """Write a postback down."""
    lines = (
        f"GET /{KEY_IN_URL}/postback?subid={subid}{more} HTTP/1.1",
        *("Host: track.example.com", f"Connection: {connection}", *headers),
    )
    return "\r\n".join([*lines, "", ""]).encode()


GUIDE = (ROOT / "docs" / "operations.md").read_text()


def obey_the_guide(nginx_conf: Path) -> None:
    """Type what docs/operations.md says about nginx's main file."""
    lines = [line for line in GUIDE.splitlines() if line.endswith("/etc/nginx/nginx.conf")]
    assert len(lines) == 2
    for line in lines:
        command = line.replace("/etc/nginx/nginx.conf", str(nginx_conf))
        subprocess.run(["/bin/sh", "-ec", command], check=True)


def find_rows(directory: Path, sql: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(directory / "postback.db", timeout=10)) as db:
        return list(db.execute(sql))


def count_kept(receiver: LiveServer, prefix: str) -> int:
    """Count the conversions whose click begins so."""
    sql = f"SELECT subid FROM conversions_view WHERE subid GLOB '{prefix}*'"
    return len(find_rows(receiver.directory, sql))


def count_connections(port: int) -> int:
    """Count the connections to a port, those included that were closed within the last minute."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Columns 1 and 2 are the two ends; state 0A is the listener.
    return sum(row[3] != "0A" and f":{port:04X}" in row[1][-5:] + row[2][-5:] for row in rows)


def assert_told_to_come_back(answer: bytes) -> None:
    assert answer.startswith(b"HTTP/1.1 503 ")
    for header in (
        b"Retry-After: 5",
        b"Cache-Control: no-store",
        b"Access-Control-Allow-Origin: *",
    ):
        assert b"\r\n" + header + b"\r\n" in answer
    assert answer.endswith(b"Not accepted at present: send it again.")


def test_a_postback_is_kept_with_the_address_that_nginx_saw(
    nginx: Nginx, receiver: LiveServer
) -> None:
    # So long that one more address in it would be too much for the receiver.
    long = f"X-Forwarded-For: {'198.51.100.7, ' * 600}198.51.100.8"
    forged = (long.ljust(8185, "0"), "X-Real-IP: 198.51.100.9")

    answer = nginx.send(write_get("c1", *forged), source="127.0.0.7")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nX-Postback-Result: recorded\r\n" in answer
    assert answer.endswith(b"\r\n\r\nSuccess")
    sql = "SELECT remote_addr FROM postbacks WHERE subid = 'c1'"
    assert find_rows(receiver.directory, sql) == [("127.0.0.7",)]


def test_a_postback_with_much_that_means_nothing_is_kept(
    nginx: Nginx, receiver: LiveServer
) -> None:
    much = (
        *(f"X-{number}: y" for number in range(150)),
        *("X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl", "User-Agent: a\x01b"),
        *(f"Cookie: subid=much; a={'x' * 12000}", f"Referer: http://h/{'x' * 12000}"),
    )

    assert b"Success" in nginx.send(write_get("", *much))
    assert count_kept(receiver, "much") == 1


def test_only_what_the_receiver_reads_is_passed_on(tmp_path: Path) -> None:
    """Each field that the receiver asks for, and no other."""
    fields = (
        *("Cookie: a=b", "Cookie: subid=c1", "Accept: image/*", "Sec-Fetch-Dest: image"),
        *("Content-Type: text/x", "Content-Encoding: gzip", "X-Forwarded-For: 198.51.100.7"),
        *("User-Agent: a\x01b", "X-Forwarded-Ssl: on", "Expect: 100-continue", "X-A: b", "TE: x"),
        *("Transfer-Encoding: chunked", "Origin: http://h", f"Referer: http://h/{'x' * 16000}"),
    )
    passed: list[str] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as upstream,
        running_nginx(tmp_path, f"127.0.0.1:{upstream.getsockname()[1]}") as nginx,
    ):
        taking = threading.Thread(target=take_fields, args=(upstream, passed), daemon=True)
        taking.start()
        lines = ("POST /x HTTP/1.1", "Host: track.example.com", "Connection: close", *fields)
        answer = nginx.send("\r\n".join([*lines, "", "3", "a=b", "0", "", ""]).encode())
        taking.join(PATIENCE_SECONDS)

    assert b" 204 " in answer
    assert sorted(passed) == sorted(
        [
            *("host: track.example.com", "content-length: 3", "x-forwarded-for: 127.0.0.1"),
            *("accept: image/*", "cookie: a=b; subid=c1", "sec-fetch-dest: image"),
            *("content-type: text/x", "content-encoding: gzip"),
        ]
    )


def take_fields(upstream: socket.socket, passed: list[str]) -> None:
    """Answer one request, and note its fields."""
    upstream.settimeout(PATIENCE_SECONDS)
    connection, _ = upstream.accept()
    with connection:
        received = b""
        while not received.endswith(b"a=b"):
            received += connection.recv(65536)
        head = received.partition(b"\r\n\r\n")[0].decode()
        for line in head.split("\r\n")[1:]:
            name, _, value = line.partition(": ")
            passed.append(f"{name.lower()}: {value}")
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


def test_each_field_that_the_receiver_asks_for_is_passed_on() -> None:
    shipped = (SHIPPED / "postback.conf").read_text()
    modules = [*ROOT.glob("*.py"), *ROOT.glob("postbackd/**/*.py")]
    asked = {name for path in modules for name in re.findall(r"\bHTTP_([A-Z_]+)", path.read_text())}
    # nginx puts chunks together and writes their length.
    asked -= {"TRANSFER_ENCODING"}

    assert asked >= {"COOKIE", "ACCEPT", "X_FORWARDED_FOR"}
    for name in (*asked, "CONTENT_TYPE"):
        field = name.replace("_", "-")
        assert re.search(rf"(?mi)^ *proxy_set_header {field} ", shipped), field


def test_connections_to_the_receiver_are_kept(nginx: Nginx, receiver: LiveServer) -> None:
    before = count_connections(receiver.port)

    for number in range(40):
        assert b" 200 OK\r\n" in nginx.send(write_get(f"kept{number}"))

    # Two ends each; one connection would do, a second may have begun meanwhile.
    assert count_connections(receiver.port) - before <= 4


def test_a_burst_from_one_address_gets_through(tmp_path: Path, receiver: LiveServer) -> None:
    sent = b"".join(write_get(f"burst{n}", connection="keep-alive") for n in range(799))

    # The burst alone, whatever the rate adds meanwhile.
    slow = ("rate=500r/s", "rate=1r/m")
    with running_nginx(tmp_path, f"127.0.0.1:{receiver.port}", slow) as nginx:
        answers = nginx.send(sent + write_get("burst799"))

    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 800
    assert count_kept(receiver, "burst") == 800


def test_what_is_over_the_limit_is_told_to_come_back(tmp_path: Path, receiver: LiveServer) -> None:
    changes = (("rate=500r/s", "rate=1r/m"), ("burst=5000", "burst=3"))
    with running_nginx(tmp_path, f"127.0.0.1:{receiver.port}", *changes) as nginx:
        answers = [nginx.send(write_get(f"over{number}")) for number in range(10)]

        for answer in answers[4:]:
            assert_told_to_come_back(answer)
    assert all(b" 200 OK\r\n" in answer for answer in answers[:4])
    assert count_kept(receiver, "over") == 4
    assert KEY_IN_URL not in read_all_logs(nginx)
    assert nginx.read_log().count("limit=REJECTED") == 6
    assert nginx.read_log().count("GET /***/postback 503 bytes=") == 6


def read_all_logs(nginx: Nginx) -> str:
    return "".join(log.read_text(errors="replace") for log in nginx.directory.glob("*.log"))


def test_a_receiver_that_is_not_there_is_a_503_until_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.ini.php").write_text(CONFIG)
    server = LiveServer(tmp_path)
    with running_nginx(tmp_path / "nginx", f"127.0.0.1:{server.port}") as nginx:
        assert_told_to_come_back(nginx.send(write_get("c1")))
        server.start()
        try:
            assert b" 200 OK\r\n" in nginx.send(write_get("c1"))
            server.stop()
            assert_told_to_come_back(nginx.send(write_get("c2")))
        finally:
            server.stop()

    assert "/***/postback 503" in nginx.read_log()
    assert "upstream=502" in nginx.read_log()
    assert KEY_IN_URL not in read_all_logs(nginx)


REQUEST_LINE = f"GET /{KEY_IN_URL}/postback?subid=long&x={{}} HTTP/1.1"
LONGEST_TARGET = 8190 - len(REQUEST_LINE.format(""))


@pytest.mark.parametrize(
    ("length", "status"), [(LONGEST_TARGET, b"200 OK"), (LONGEST_TARGET + 1, b"414 URI Too Long")]
)
def test_a_request_line_may_have_8190_bytes(nginx: Nginx, length: int, status: bytes) -> None:
    line = REQUEST_LINE.format("x" * length)

    answer = nginx.send(f"{line}\r\nHost: h\r\nConnection: close\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")


# What the receiver said: nginx alone refuses the long one, and does not trouble it.
@pytest.mark.parametrize(("length", "status", "asked"), [(65536, 200, "200"), (65537, 413, "-")])
def test_a_body_may_have_64_kib(nginx: Nginx, length: int, status: int, asked: str) -> None:
    body = b"x=".ljust(length, b"x")
    head = (
        f"POST /{KEY_IN_URL}/postback?subid=body{length} HTTP/1.1\r\nHost: h\r\n"
        "Connection: close\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n"
    )

    answer = nginx.send(head.encode() + body)

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    size = str(len(head) + length) if status == 200 else r"\d+"
    line = re.compile(rf" {status} bytes={size} time=\S+ upstream={asked} ")
    wait_until(lambda: line.search(nginx.read_log()) is not None, "the line of the log")


# Heads and bodies that come a byte at a time, of one who knows no key.
SLOW = {
    "heads": b"GET /x HTTP/1.1\r\nHost: h\r\nX: ",
    "bodies": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n",
}


class Stranger:
    """Opens slow connections, opens them again when they are closed, and feeds them."""

    def __init__(self, nginx: Nginx, begin: bytes, count: int) -> None:
        """Take where, how each begins, and how many there are to be."""
        self._nginx, self._begin, self._count = nginx, begin, count
        self.connections: list[socket.socket] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._feed)

    def __enter__(self) -> "Stranger":
        self._thread.start()
        wait_until(lambda: len(self.connections) == self._count, "the stranger's connections")
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(PATIENCE_SECONDS)
        for connection in self.connections:
            connection.close()

    def _feed(self) -> None:
        while not self._is_over.wait(0.05):
            open_ones = []
            for connection in self.connections:
                try:
                    connection.send(b"x")
                    open_ones.append(connection)
                except OSError:
                    connection.close()
            while len(open_ones) < self._count:
                open_ones.append(self._nginx.connect("127.0.0.9"))
                open_ones[-1].settimeout(0)
                open_ones[-1].send(self._begin)
            self.connections = open_ones


@pytest.mark.parametrize("what", SLOW)
def test_slow_connections_of_a_stranger_shut_nobody_out(
    nginx: Nginx, receiver: LiveServer, what: str
) -> None:
    # Both ends of the connections are files here, and 1,024 is a usual limit.
    allow_files(4000)
    with Stranger(nginx, SLOW[what], 1000):
        honest = [nginx.connect() for _ in range(50)]
        for number, connection in enumerate(honest):
            connection.settimeout(10)
            connection.sendall(write_get(f"{what}{number}"))
        answers = [read_all(connection) for connection in honest]
        for connection in honest:
            connection.close()

    assert {answer[:15] for answer in answers} == {b"HTTP/1.1 200 OK"}
    assert count_kept(receiver, what) == 50


def test_one_address_has_a_bounded_number_of_requests_under_way(
    tmp_path: Path, receiver: LiveServer
) -> None:
    few = ("limit_conn postback_connections 1024;", "limit_conn postback_connections 3;")
    with (
        running_nginx(tmp_path, f"127.0.0.1:{receiver.port}", few) as nginx,
        Stranger(nginx, SLOW["bodies"], 3),
    ):
        crowded = write_get("crowded")
        wait_until(lambda: b" 503 " in nginx.send(crowded, "127.0.0.9")[:13], "the limit")
        told = nginx.send(crowded, "127.0.0.9")

        assert b" 200 OK\r\n" in nginx.send(write_get("elsewhere"), "127.0.0.8")
        assert_told_to_come_back(told)
        wait_until(lambda: "connections=REJECTED" in nginx.read_log(), "the line of the log")
    assert KEY_IN_URL not in read_all_logs(nginx)


@pytest.mark.parametrize("what", SLOW)
def test_a_slow_sender_is_let_go(tmp_path: Path, receiver: LiveServer, what: str) -> None:
    sooner = (
        ("client_header_timeout 5s", "client_header_timeout 1s"),
        ("client_body_timeout 10s", "client_body_timeout 1s"),
    )
    with (
        running_nginx(tmp_path, f"127.0.0.1:{receiver.port}", *sooner) as nginx,
        nginx.connect() as connection,
    ):
        connection.sendall(SLOW[what])

        # nginx says nothing to one whose head is not whole.
        assert read_all(connection)[:13] in {b"", b"HTTP/1.1 408 "}


def test_the_image_of_nginx_gets_the_same_limits(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "docker" / "nginx.conf").read_text()
    (tmp_path / "debian.conf").write_text(AROUND.format(user="", here=tmp_path))
    obey_the_guide(tmp_path / "debian.conf")
    debian = (tmp_path / "debian.conf").read_text()
    for name in ("worker_connections", "worker_rlimit_nofile"):
        limit = re.compile(rf"^ *{name} +\d+;$", re.MULTILINE)
        assert limit.findall(text)[0].strip() == limit.findall(debian)[0].strip()

    text = text.replace("user nginx;", "").replace("/var/run/", f"{tmp_path}/")
    text = re.sub(r"/var/log/nginx|/etc/nginx/conf\.d", str(tmp_path), text)
    (tmp_path / "nginx.conf").write_text(text.replace("*.conf", "*.none"))
    ran = subprocess.run(
        [str(PROGRAM), "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_what_the_guide_says_of_the_main_file_may_be_typed_twice(tmp_path: Path) -> None:
    path = tmp_path / "debian.conf"
    path.write_text(AROUND.format(user="", here=tmp_path))
    obey_the_guide(path)
    once = path.read_text()

    obey_the_guide(path)

    assert path.read_text() == once
    assert once.count("worker_connections 8192;") == once.count("worker_rlimit_nofile 20000;") == 1


def test_who_hangs_up_early_has_sent_a_postback(nginx: Nginx, receiver: LiveServer) -> None:
    for number in range(50):
        with nginx.connect() as connection:
            connection.sendall(write_get(f"gone{number}"))

    wait_until(lambda: count_kept(receiver, "gone") == 50, "what was sent before hanging up")


def test_a_reload_behind_nginx_fails_no_sender(nginx: Nginx, receiver: LiveServer) -> None:
    answers: list[bytes] = []
    is_over = threading.Event()

    def send_on() -> None:
        while not is_over.is_set():
            answers.append(nginx.send(write_get("reloaded")))

    senders = [threading.Thread(target=send_on) for _ in range(4)]
    for sender in senders:
        sender.start()
    old = set(receiver.worker_pids())
    assert receiver.process is not None
    receiver.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not old & set(receiver.worker_pids()), "new workers")
    is_over.set()
    for sender in senders:
        sender.join(PATIENCE_SECONDS)

    assert len(answers) > 4
    assert {answer[:15] for answer in answers} == {b"HTTP/1.1 200 OK"}


def test_a_kept_connection_that_breaks_fails_no_sender(tmp_path: Path) -> None:
    """A receiver that restarts closes a connection just as nginx writes into it: a POST, too."""
    asked: list[int] = []
    post = (
        f"POST /{KEY_IN_URL}/postback?subid=c1 HTTP/1.1\r\nHost: h\r\n"
        "Connection: close\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    with (
        socket.create_server(("127.0.0.1", 0)) as upstream,
        running_nginx(tmp_path, f"127.0.0.1:{upstream.getsockname()[1]}") as nginx,
    ):
        breaking = threading.Thread(target=answer_once_each, args=(upstream, asked, 2), daemon=True)
        breaking.start()
        answers = [nginx.send(post) for _ in range(2)]
        breaking.join(1)

    assert {answer[:15] for answer in answers} == {b"HTTP/1.1 200 OK"}
    # The first connection was asked twice, and the second question again on the next.
    assert asked == [1, 2, 1]


def answer_once_each(upstream: socket.socket, asked: list[int], connections: int) -> None:
    """Answer the first request of a connection, and close it without a word at the second."""
    upstream.settimeout(PATIENCE_SECONDS)
    for left in reversed(range(connections)):
        connection, _ = upstream.accept()
        with connection:
            for number in (1, 2) if left else (1,):
                assert connection.recv(65536)
                asked.append(number)
                if number == 1:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


# Everything about a request that nginx writes into an error log, at `info` at the least.
BROKEN = {
    "no version": f"GET /{KEY_IN_URL}/postback?subid=c1 nothing at all\r\n\r\n",
    "a method that is none": f"G=T /{KEY_IN_URL}/postback HTTP/1.1\r\nHost: h\r\n\r\n",
    "no host": f"GET /{KEY_IN_URL}/postback HTTP/1.1\r\n\r\n",
    "a host that is none": f"GET /{KEY_IN_URL}/postback HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a host of others": f"GET /{KEY_IN_URL}/postback HTTP/1.0\r\nHost: other.example\r\n\r\n",
    "a line too long": f"GET /{KEY_IN_URL}/postback?x={'y' * 17000} HTTP/1.1\r\n\r\n",
    "a header too long": f"GET /{KEY_IN_URL}/postback HTTP/1.1\r\nX: {'y' * 17000}\r\n\r\n",
    "a length that is none": f"POST /{KEY_IN_URL}/postback HTTP/1.0\r\nContent-Length: x\r\n\r\n",
    "a body too long": f"POST /{KEY_IN_URL}/postback HTTP/1.0\r\nContent-Length: 99999\r\n\r\n",
    "a chunk that is none": f"POST /{KEY_IN_URL}/postback HTTP/1.1\r\nHost: h\r\n"
    "Transfer-Encoding: chunked\r\n\r\nnone\r\n",
    "a slash in disguise": f"GET /{KEY_IN_URL}%2Fpostback?subid=c1 HTTP/1.0\r\n\r\n",
    "a slash at the end": f"GET /{KEY_IN_URL}/postback/?subid=c1 HTTP/1.0\r\n\r\n",
    "two slashes": f"GET //{KEY_IN_URL}//postback HTTP/1.0\r\n\r\n",
    "the key and no more": f"GET /{KEY_IN_URL} HTTP/1.0\r\n\r\n",
    "a whole address": f"GET http://h/{KEY_IN_URL}/postback HTTP/1.0\r\n\r\n",
    "up and out": f"GET /../{KEY_IN_URL}/postback HTTP/1.0\r\n\r\n",
    "an address in the query": f"GET /x?ref=http://h/{KEY_IN_URL}/postback HTTP/1.0\r\n\r\n",
    "an address as referer": f"GET / HTTP/1.0\r\nReferer: http://h/{KEY_IN_URL}/postback\r\n\r\n",
    "the key as a program": f"GET / HTTP/1.0\r\nUser-Agent: {KEY}\r\n\r\n",
    "the key in a browser": f"GET / HTTP/1.0\r\nUser-Agent: Mozilla/5.0 {KEY}\r\n\r\n",
    "the key as a click id": f"GET /x/postback?subid={KEY_IN_URL} HTTP/1.0\r\n\r\n",
    "the key as a method": f"{METHOD} / HTTP/1.0\r\n\r\n",
}


def test_no_log_of_nginx_shows_the_key_whatever_comes(tmp_path: Path, receiver: LiveServer) -> None:
    with running_nginx(tmp_path, f"127.0.0.1:{receiver.port}") as nginx:
        for request in BROKEN.values():
            with nginx.connect() as connection:
                connection.sendall(request.encode())
                assert connection.recv(1).startswith(b"H")
        with nginx.connect() as connection:
            connection.sendall(f"POST /{KEY_IN_URL}/postback HTTP/1.1\r\nHost: h\r\n".encode())
            connection.sendall(b"Content-Length: 10\r\n\r\n123")
        lines = len(BROKEN) + 1
        wait_until(lambda: nginx.read_log().count("\n") >= lines, "the lines of the log")

    # The statuses prove that what was meant to go wrong did.
    statuses = set(re.findall(r"/\S* ([0-9]{3}) bytes=", nginx.read_log()))
    assert statuses >= {"200", "400", "404", "413", "414"}
    for spelling in (KEY, KEY_IN_URL, KEY.replace(" ", "%20"), "s3cret", METHOD):
        assert spelling not in read_all_logs(nginx)
    assert re.findall(r"agent=(\w+)$", nginx.read_log(), re.MULTILINE).count("browser") == 1
    assert " *** / " in nginx.read_log()


def test_a_unix_socket_is_as_good(tmp_path: Path) -> None:
    (tmp_path / "config.ini.php").write_text(CONFIG)
    # Relative: a socket's path may have 107 bytes, and the directory's is long.
    with (
        live_server(tmp_path, "--bind", "unix:postback.sock"),
        running_nginx(
            tmp_path / "nginx",
            "127.0.0.1:1",
            ("server 127.0.0.1:1;", ""),
            ("#server unix:/run/postback/postback.sock;", f"server unix:{tmp_path}/postback.sock;"),
        ) as nginx,
    ):
        answer = nginx.send(write_get("c1", "X-Forwarded-For: 198.51.100.7"), source="127.0.0.7")

    assert b" 200 OK\r\n" in answer
    assert find_rows(tmp_path, "SELECT remote_addr FROM postbacks") == [("127.0.0.7",)]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_lines_for_tls_are_good(tmp_path: Path, receiver: LiveServer) -> None:
    certificate, key = make_certificate(tmp_path)
    there = "/etc/letsencrypt/live/track.example.com"
    port = find_free_port()
    changes = (
        ("#listen 443 ssl http2 default_server;", f"listen 127.0.0.1:{port} ssl default_server;"),
        (f"#ssl_certificate     {there}/fullchain.pem", f"ssl_certificate {certificate}"),
        (f"#ssl_certificate_key {there}/privkey.pem", f"ssl_certificate_key {key}"),
    )
    trusting = ssl.create_default_context(cafile=str(certificate))
    with (
        running_nginx(tmp_path / "nginx", f"127.0.0.1:{receiver.port}", *changes),
        socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as plain,
        trusting.wrap_socket(plain, server_hostname="track.example.com") as connection,
    ):
        connection.sendall(write_get("tls"))
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def make_certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -subj /CN=track.example.com -addext subjectAltName=DNS:track.example.com"
    )
    command = f"{command} -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key
