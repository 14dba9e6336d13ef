"""The worker as a web server: real gunicorn processes, real sockets, callables made for it."""

import fcntl
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Long enough for any machine; nothing waits for it unless it hangs.
PATIENCE_SECONDS = 60

# The callables under the worker. Limits that would make tests slow are lowered in the worker's
# own process: `LIMITS` holds assignments.
CALLABLES = """\
import itertools, json, os, time
from http import HTTPStatus
from pathlib import Path
from postbackd.server import connection, http_request, http_response, worker
from postbackd.intake.answers import Answer
from postback import application
for name, limit in json.loads(os.environ.get("LIMITS", "{}")).items():
    modules = (http_request, http_response, connection, worker)
    limited = [module for module in modules if hasattr(module, name)]
    assert limited, name
    for module in limited:
        setattr(module, name, limit)

HIDDEN = {"wsgi.input", "wsgi.errors", "wsgi.file_wrapper"}

def echo(environ, start_response):
    seen = {name: value for name, value in environ.items() if name not in HIDDEN}
    seen["body"] = environ["wsgi.input"].read().decode("latin-1")
    return answer(start_response, json.dumps(seen).encode())

def answer(start_response, body, status="200 OK", *headers):
    start_response(status, [("Content-Length", str(len(body))), *headers])
    return [body]

class Closing:
    def __init__(self, parts):
        self.parts = iter(parts)
    def __iter__(self):
        return self.parts
    def close(self):
        Path("closed").touch()

def odd(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raises":
        raise RuntimeError("boom")
    if path == "/silent":
        return [b"no start_response"]
    if path == "/short":
        start_response("200 OK", [("Content-Length", "10")])
        return [b"123"]
    if path == "/splits":
        start_response("200 OK", [("X-Header", "a\\r\\nX-Other: b")])
        return [b""]
    if path == "/text":
        start_response("200 OK", [])
        return ["text"]
    if path == "/parts":
        start_response("200 OK", [("Connection", "close"), ("X-Kept", " value ")])(b"1")
        return Closing([b"2", b"", b"3"])
    if path == "/second":
        start_response("200 OK", [])
        start_response("201 Created", [], (None, None, None))
        return []
    if path == "/endless":
        start_response("200 OK", [])
        return itertools.repeat(b"x" * 100000)
    if path == "/none":
        start_response("204 No Content", [("Content-Length", "4")])
        return [b"text"]
    if path == "/big":
        return answer(start_response, b"x" * int(environ["QUERY_STRING"]))
    if path == "/slow":
        time.sleep(float(environ["QUERY_STRING"]))
        return answer(start_response, b"slow")
    if path == "/reads":
        environ["wsgi.input"].read()
        return answer(start_response, b"read")
    return answer(start_response, path.encode())

class Held:
    # Commits when the file `go` is there; fails to where `fail` is.
    def __call__(self, environ, start_response):
        raise AssertionError("called by itself")
    def answer_all(self, environs):
        Path("called").touch()
        with open("batches", "a") as file:
            print(len(environs), file=file)
        with open("paths", "a") as file:
            print(*(e["PATH_INFO"] for e in environs), file=file)
        if Path("fail").exists():
            raise worker.UnavailableError("the disk is full")
        if Path("break").exists():
            raise ZeroDivisionError
        while not Path("go").exists():
            time.sleep(0.001)
        return [Answer(HTTPStatus.OK, [], e["PATH_INFO"].encode()) for e in environs]

held = Held()
"""


class WorkerServer:
    """gunicorn with the project's settings and the worker, on a port of its own choice."""

    def __init__(self, directory: Path, app: str, *options: str, **limits: float) -> None:
        """Take a directory to run in, the callable, options for gunicorn and lowered limits."""
        self.directory = directory
        self.log = directory / "gunicorn.log"
        (directory / "callables.py").write_text(CALLABLES)
        self.command = [
            *(
                sys.executable,
                "-m",
                "gunicorn",
                "--config",
                "python:postbackd.server.gunicorn_conf",
            ),
            *(
                "--worker-class",
                "postbackd.server.worker.GroupCommitWorker",
                "--bind",
                "127.0.0.1:0",
                *options,
                app,
            ),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "POSTBACK_CONFIG"}
        environment["LIMITS"] = json.dumps(limits)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=directory, env=environment, stdout=log, stderr=log
            )
        self.port = 0
        self.lines: list[Line] = []

    def wait_for_start(self) -> None:
        """Wait until a worker has started; it accepts what comes from then on."""
        wait_until(lambda: "Booting worker" in self.read_log(), "a worker", self.read_log)
        found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", self.read_log())
        self.port = int(found[1]) if found else 0

    def connect(self, receive_buffer: int | None = None) -> "Line":
        """Open a connection, whose receive buffer the kernel would else choose."""
        sock = socket.socket()
        sock.settimeout(PATIENCE_SECONDS)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(("127.0.0.1", self.port))
        self.lines.append(Line(sock))
        return self.lines[-1]

    def send(self, request: bytes) -> bytes:
        """Send bytes on a new connection, and give all that comes until the server closes it."""
        with self.connect() as line:
            line.send(request)
            return line.read_all()

    def get(self, target: str = "/") -> "Reply":
        """Get a page on a new connection."""
        with self.connect() as line:
            return line.get(target, "Connection: close")

    def read_log(self) -> str:
        """Return what was logged so far."""
        return self.log.read_text(errors="replace")

    def tell(self, number: int) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and wait until it is gone; returns its exit status."""
        if self.process.poll() is None:
            self.tell(number)
        return self.process.wait(PATIENCE_SECONDS)

    def worker_pids(self) -> list[int]:
        """List the workers that run now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


class Reply(NamedTuple):
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    version: str

    @property
    def keeps_alive(self) -> bool:
        """Return whether the server says that it keeps the connection open."""
        return self.headers["connection"] == "keep-alive"

    def json(self) -> Any:
        """Read the body as JSON."""
        return json.loads(self.body)


class Line:
    """A client's side of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a connected socket."""
        self.sock = sock
        self.received = b""

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, request: bytes) -> None:
        """Send bytes."""
        self.sock.sendall(request)

    def get(self, target: str = "/", *headers: str) -> Reply:
        """Get a page."""
        lines = [f"GET {target} HTTP/1.1", "Host: h", *headers, "", ""]
        self.send("\r\n".join(lines).encode("latin-1"))
        return self.read()

    def read(self, *, is_head: bool = False) -> Reply:
        """Read one answer."""
        while b"\r\n\r\n" not in self.received:
            self._receive()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}
        version, status, _ = status_line.split(" ", 2)
        length = 0 if is_head else int(headers.get("content-length", "0"))
        blocks = [self.received]
        missing = length - len(self.received)
        while missing > 0:
            self.received = b""
            self._receive()
            blocks.append(self.received)
            missing -= len(self.received)
        self.received = b"".join(blocks)
        body, self.received = self.received[:length], self.received[length:]
        return Reply(int(status), headers, body, version)

    def read_all(self) -> bytes:
        """Read until the server closes."""
        while block := self.sock.recv(65536):
            self.received += block
        return self.received

    def is_closed(self) -> bool:
        """Return whether the server closes without another word, once it does."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive(self) -> None:
        block = self.sock.recv(65536)
        assert block, f"closed amid an answer: {self.received!r}"
        self.received += block


def wait_until(
    holds: Callable[[], bool], what: str, explain: Callable[[], str] = lambda: ""
) -> None:
    """Wait for a condition, looking often; fail with its name where it does not come."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"waited for {what}; {explain()}"
        time.sleep(0.005)


@contextmanager
def serving(directory: Path, app: str, *options: str, **limits: float) -> Iterator[WorkerServer]:
    """Run a server for the time of a test."""
    server = WorkerServer(directory, app, *options, **limits)
    try:
        server.wait_for_start()
        yield server
    finally:
        for line in server.lines:
            line.sock.close()
        server.stop()


# The plain heads read by the worker itself; and all of them read by gunicorn's parser, since the
# access log needs its request objects.
@pytest.fixture(scope="module", params=[(), ("--access-logfile", "access.log")])
def echo(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[WorkerServer]:
    """A server that answers with the environ it was called with."""
    directory = tmp_path_factory.mktemp("echo")
    with serving(directory, "callables:echo", *request.param) as server:
        yield server


@pytest.fixture(scope="module")
def odd(tmp_path_factory: Any) -> Iterator[WorkerServer]:
    """A server whose callable does what callables ought not to, and more."""
    with serving(tmp_path_factory.mktemp("odd"), "callables:odd") as server:
        yield server


def path_of(reply: Reply) -> str:
    path: str = reply.json()["PATH_INFO"]
    return path


# --- Connections that are kept, and those that are not ---------------------------------------


def test_a_connection_is_kept_for_further_requests(echo: WorkerServer) -> None:
    with echo.connect() as line:
        replies = [line.get(f"/{number}") for number in range(3)]

    assert [path_of(reply) for reply in replies] == ["/0", "/1", "/2"]
    assert all(reply.keeps_alive and reply.version == "HTTP/1.1" for reply in replies)


CLOSING = [
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: upgrade\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\t,\tCLOSE ,\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: te\r\nX: y\r\nConnection: close\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", CLOSING)
def test_a_connection_is_closed_for_those_who_want_that(
    echo: WorkerServer, request_bytes: bytes
) -> None:
    with echo.connect() as line:
        line.send(request_bytes)
        reply = line.read()

        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert reply.version.encode() in request_bytes
        assert line.is_closed()


@pytest.mark.parametrize(
    "options", [b"Keep-Alive", b"te, keep-alive", b"te\r\nConnection: keep-alive"]
)
def test_an_http_1_0_connection_is_kept_where_it_asks_for_that(
    echo: WorkerServer, options: bytes
) -> None:
    with echo.connect() as line:
        for number in range(2):
            line.send(b"GET /%d HTTP/1.0\r\nConnection: %s\r\n\r\n" % (number, options))
            reply = line.read()

            assert (path_of(reply), reply.keeps_alive) == (f"/{number}", True)
            assert reply.version == "HTTP/1.0"


def test_a_word_that_only_looks_like_close_closes_nothing(echo: WorkerServer) -> None:
    with echo.connect() as line:
        assert line.get("/1", "Connection: closed, x-close").keeps_alive
        assert line.get("/2").status == 200


def test_pipelined_requests_are_answered_in_order(echo: WorkerServer) -> None:
    with echo.connect() as line:
        requests = [b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(100)]
        requests[50] = b"POST /50 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nGET "
        requests[60] = (
            b"POST /60 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\n\r\n\r\r\n0\r\n\r\n"
        )
        line.send(b"".join(requests))
        replies = [line.read() for _ in requests]

    assert [path_of(reply) for reply in replies] == [f"/{number}" for number in range(100)]
    assert (replies[50].json()["body"], replies[60].json()["body"]) == ("GET ", "\r\n\r")


def test_nothing_is_served_behind_a_request_that_closes(echo: WorkerServer) -> None:
    answer = echo.send(
        b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        b"GET /3 HTTP/1.1\r\nHost: h\r\n\r\n"
    )

    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b'"/3"' not in answer


def test_a_kept_connection_is_closed_when_idle_for_too_long(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "callables:echo", "--keep-alive", "1") as server,
        server.connect() as line,
    ):
        # Before the request: the worker counts from its answer, which may have come a while ago.
        began = time.monotonic()
        assert line.get().keeps_alive
        assert line.is_closed()
        # Unasked, it would be kept for 75 seconds.
        assert 1 <= time.monotonic() - began < 20


def test_no_connection_is_kept_where_the_settings_say_so(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "callables:echo", "--keep-alive", "0") as server,
        server.connect() as line,
    ):
        assert not line.get().keeps_alive
        assert line.is_closed()


# --- Clients that are slow, or leave ---------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /slow?x=1 HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n",
        b"\r\nPOST /slow?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\na\r\n\r\n",
        b"POST /slow?x=1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\na\r\n\r\n002;x=y\r\n\r\n\r\n0\r\nX-Trailer: t\r\n\r\n",
    ],
)
def test_a_request_may_come_byte_by_byte(echo: WorkerServer, request_bytes: bytes) -> None:
    with echo.connect() as line:
        line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request_bytes:
            line.send(bytes([byte]))
        reply = line.read()

        assert (reply.status, path_of(reply)) == (200, "/slow")
        assert reply.json()["body"] in {"", "a\r\n\r\n"}
        assert line.get("/next").status == 200


def test_a_client_that_sends_no_more_is_still_answered(echo: WorkerServer) -> None:
    with echo.connect() as line:
        line.send(
            b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\nGET /half HT"
        )
        line.sock.shutdown(socket.SHUT_WR)

        assert [path_of(line.read()), path_of(line.read())] == ["/1", "/2"]
        assert line.read_all() == b""


def test_a_request_must_be_whole_in_time(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "callables:echo", REQUEST_LIMIT_SECONDS=2.0) as server,
        server.connect() as kept,
        server.connect() as begun,
        server.connect() as slow,
        server.connect() as silent,
    ):
        for line in (kept, begun):
            assert line.get().status == 200
        begun.send(b"GET / HTTP")
        slow.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")

        for line in (slow, begun):
            assert line.read().status == 408
            assert line.is_closed()
        assert silent.is_closed()
        # Its limit is that of idle connections.
        assert kept.get().status == 200


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "callables:odd", SEND_LIMIT_SECONDS=2.0) as server,
        server.connect() as deaf,
    ):
        server.get()
        before = memory_kib(server)
        deaf.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            # 8 GB of answers, were they all called for.
            deaf.send(b"GET /big?8000 HTTP/1.1\r\nHost: h\r\n\r\n" * 1_000_000)

        assert server.get("/others").body == b"/others"
        with pytest.raises(OSError, match=r"reset|Broken"):
            read_on_and_on(deaf)
        assert memory_kib(server) - before < 8 * 1024


def read_on_and_on(line: Line) -> None:
    line.sock.settimeout(PATIENCE_SECONDS)
    wait_until(lambda: has_hung_up(line), "the other side to hang up")
    while line.sock.recv(65536):
        pass


def has_hung_up(line: Line) -> bool:
    poll = select.poll()
    poll.register(line.sock, 0)
    return bool(poll.poll(0))


def test_the_kernel_holds_little_for_those_who_pipeline_and_never_read(tmp_path: Path) -> None:
    with serving(tmp_path, "callables:odd", SEND_LIMIT_SECONDS=1000.0) as server:
        for _ in range(10):
            line = server.connect(receive_buffer=4096)
            line.sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                line.send(b"GET /big?8000 HTTP/1.1\r\nHost: h\r\n\r\n" * 1_000_000)
        held = kernel_bytes(server.port)

        assert server.get("/others").body == b"/others"
    assert len(held) == 10
    # Twice 64 KiB each way. Without a bound there are 2.6 MB to be sent, on a long way more.
    assert max(held) <= 256 * 1024


def kernel_bytes(port: int) -> list[int]:
    """Tell what the kernel holds for each connection of a server, unsent and unread."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Column 1 is the local address, 3 the state (0A: the listener), 4 the two queues.
    queues = [row[4] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"]
    return [sum(int(part, 16) for part in queue.split(":")) for queue in queues]


def test_who_sends_faster_than_is_served_is_held_up(tmp_path: Path) -> None:
    request = b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 80 + b"\r\n\r\n"
    with serving(tmp_path, "callables:odd") as server, server.connect() as line:
        server.get()
        before = memory_kib(server)
        line.sock.settimeout(0.5)
        reader = threading.Thread(target=read_until_reset, args=(line.sock.dup(),))
        reader.start()
        with pytest.raises(TimeoutError):
            line.send(request * 400_000)
        line.sock.shutdown(socket.SHUT_RDWR)
        reader.join(PATIENCE_SECONDS)

        assert server.get("/others").body == b"/others"
        assert memory_kib(server) - before < 4 * 1024


def read_until_reset(sock: socket.socket) -> None:
    sock.settimeout(PATIENCE_SECONDS)
    with sock, suppress(OSError):
        while sock.recv(65536):
            pass


def memory_kib(server: WorkerServer) -> int:
    """Return the most memory that the worker has had."""
    status = Path(f"/proc/{server.worker_pids()[0]}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_a_big_answer_reaches_a_slow_reader_whole(odd: WorkerServer) -> None:
    with odd.connect() as line:
        line.send(
            b"GET /big?15000000 HTTP/1.1\r\nHost: h\r\n\r\nGET /next HTTP/1.1\r\nHost: h\r\n\r\n"
        )
        # More than the kernel holds: the worker keeps the rest, and serves others.
        assert odd.get("/others").body == b"/others"

        assert line.read().body == b"x" * 15_000_000
        assert line.read().body == b"/next"


# --- Bodies ----------------------------------------------------------------------------------


def test_an_expectant_client_is_told_to_go_on(echo: WorkerServer) -> None:
    with echo.connect() as line:
        line.send(
            b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        assert line.read().status == 100
        line.send(b"abc")
        reply = line.read()

        assert (reply.status, reply.json()["body"]) == (200, "abc")
        assert line.get("/2").status == 200


def test_an_expectant_client_is_not_told_what_it_did_not_wait_for(echo: WorkerServer) -> None:
    with echo.connect() as line:
        line.send(
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc"
        )

        assert line.read().json()["body"] == "abc"


def test_an_http_1_0_client_is_never_told_to_go_on(echo: WorkerServer) -> None:
    with echo.connect() as line:
        line.send(b"POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nab")
        line.send(b"c")

        assert line.read().json()["body"] == "abc"


TOO_LONG = [
    b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000,
    b"Transfer-Encoding: chunked\r\n\r\n" + b"4000\r\n%s\r\n" % (b"x" * 0x4000) * 60,
]


@pytest.mark.parametrize("rest", TOO_LONG)
def test_a_callable_never_takes_a_part_for_the_whole(odd: WorkerServer, rest: bytes) -> None:
    with odd.connect() as line:
        line.send(b"POST /reads HTTP/1.1\r\nHost: h\r\n" + rest)
        reply = line.read()

        assert (reply.status, reply.keeps_alive) == (500, False)


def test_a_long_expected_body_is_not_asked_for(odd: WorkerServer) -> None:
    with odd.connect() as line:
        line.send(
            b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n\r\n"
        )
        reply = line.read()

        assert (reply.status, reply.keeps_alive) == (200, False)
        assert line.is_closed()


# --- What is refused -------------------------------------------------------------------------

POST = b"POST / HTTP/1.1\r\nHost: h\r\n"
# Refused as gunicorn's own workers do.
REFUSED = {
    "no request at all": (400, b"hello\r\n\r\n"),
    "an empty line too many": (400, b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    "no version": (400, b"GET /\r\n\r\n"),
    "another version": (400, b"GET / HTTP/3.0\r\n\r\n"),
    "a method in lower case": (400, b"get / HTTP/1.1\r\nHost: h\r\n\r\n"),
    "a control character in the target": (400, b"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n"),
    "a space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n"),
    "a letter beyond ASCII in the version": (400, b"GET / HTTP/1.1\xe9\r\n\r\n"),
    "lines that end without CR": (400, b"GET / HTTP/1.1\nHost: h\n\n"),
    "a header line that ends without CR": (400, b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n"),
    "a header without a name": (400, b"GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n"),
    "a header without a colon": (400, b"GET / HTTP/1.1\r\nHost: h\r\nhost\r\n\r\n"),
    "a space before the colon": (400, POST + b"Content-Length : 1\r\n\r\nx"),
    "a folded header": (400, b"GET / HTTP/1.1\r\nHost: h\r\nX: y\r\n z\r\n\r\n"),
    "a CR in a value": (400, b"GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n"),
    "a control character in a length": (400, POST + b"Content-Length: \x0b1\r\n\r\nx"),
    "a control character in a coding": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n"),
    "a control character in a host": (400, b"GET / HTTP/1.1\r\nHost: a\x0bb\r\n\r\n"),
    "a control character in a name": (400, POST + b"X\x0b: y\r\n\r\n"),
    "a NUL in a value": (400, b"GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n"),
    "no host in HTTP/1.1": (400, b"GET / HTTP/1.1\r\nX: y\r\n\r\n"),
    "no host, with a body": (400, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "two lengths": (400, POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
    "two lengths in one": (400, POST + b"Content-Length: 1, 1\r\n\r\nx"),
    "a signed length": (400, POST + b"Content-Length: +1\r\n\r\nx"),
    "a negative length": (400, POST + b"Content-Length: -1\r\n\r\nx"),
    "length and chunks": (
        400,
        POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunked, but not last": (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "a coding without chunks": (400, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "an unknown coding": (501, POST + b"Transfer-Encoding: zip\r\n\r\n"),
    "chunks in HTTP/1.0": (
        400,
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "a chunk size that is none": (400, POST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n"),
    "a signed chunk size": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n"),
    "a chunk longer than it says": (
        400,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
    ),
    "a chunk line without end": (
        400,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 5000,
    ),
    "a length in the trailers": (
        400,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 1\r\n\r\n",
    ),
    "trailers without end": (
        431,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 5000,
    ),
    "an unknown expectation": (417, POST + b"Expect: cake\r\n\r\n"),
    "a line too long": (414, b"GET /" + b"x" * 8200 + b" HTTP/1.1\r\n\r\n"),
    "a line too long, without end": (414, b"GET /" + b"x" * 8200),
    "a header too long": (431, b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 65536 + b"\r\n\r\n"),
    "too many headers": (431, b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 256 + b"\r\n"),
    "a head too long": (
        431,
        b"GET / HTTP/1.1\r\nHost: h\r\n" + (b"X: " + b"x" * 8000 + b"\r\n") * 9 + b"\r\n",
    ),
    "a head too long, without end": (
        431,
        b"GET / HTTP/1.1\r\nHost: h\r\n" + (b"X: " + b"x" * 8000) * 9,
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_malformed_request_is_refused_and_the_connection_closed(
    echo: WorkerServer, what: str
) -> None:
    status, request_bytes = REFUSED[what]
    with echo.connect() as line:
        line.send(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n" + request_bytes)

        assert path_of(line.read()) == "/first"
        reply = line.read()
        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert line.is_closed()


# Good requests, whatever stands in fields that nobody here reads.
MEANINGLESS: dict[str, tuple[str, ...]] = {
    "another word for https": ("X-Forwarded-Ssl: on",),
    "one more word for https": ("X-Forwarded-Protocol: ssl",),
    "words that contradict each other": ("X-Forwarded-Proto: http", "X-Forwarded-Ssl: on"),
    "a word for https twice": ("X-Forwarded-Proto: https", "X-Forwarded-Proto: http"),
    "a control character": ("User-Agent: a\x01b\x7f", "X-A: \x1b[31m", "X-B: \x0b"),
    "letters beyond ASCII": ("User-Agent: \xd0\xb6", "X-A: \x80\xff"),
    "a long Cookie": (f"Cookie: a={'x' * 30000}",),
    "a long Referer": (f"Referer: http://h/{'x' * 60000}",),
    "many fields": tuple(f"X-{number}: y" for number in range(250)),
    "another SCRIPT_NAME": ("SCRIPT_NAME: /x", "PATH_INFO: /x"),
}


@pytest.mark.parametrize("what", MEANINGLESS)
def test_nothing_is_refused_for_fields_that_mean_nothing(echo: WorkerServer, what: str) -> None:
    with echo.connect() as line:
        reply = line.get("/here", *MEANINGLESS[what])

        assert (reply.status, path_of(reply)) == (200, "/here")
        seen = reply.json()
        assert (seen["wsgi.url_scheme"], seen["SCRIPT_NAME"]) == ("http", "")
        assert line.get("/next").status == 200


def test_control_characters_of_a_field_become_spaces(echo: WorkerServer) -> None:
    with echo.connect() as line:
        seen = line.get("/", "User-Agent: a\x01b\x0bc", "Cookie: subid=c1\x7f; x=y").json()

    assert (seen["HTTP_USER_AGENT"], seen["HTTP_COOKIE"]) == ("a b c", "subid=c1 ; x=y")


def test_control_characters_of_a_trailer_are_no_reason_to_refuse(echo: WorkerServer) -> None:
    with echo.connect() as line:
        line.send(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: \x01\r\n\r\n")

        assert line.read().json()["body"] == "a"


# How clients of other protocols begin; they wait for our turn then, and not for a line's end.
OTHER_PROTOCOLS = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "one byte of TLS": b"\x16",
    "PROXY, version 1": b"PROXY TCP4 203.0.113.9 127.0.0.1 5000 80\r\n",
    "PROXY, version 1, cut short": b"PROXY ",
    "PROXY, version 2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "SSH, cut short": b"SSH-",
    "HTTP/2": b"PRI * HTTP/2.0\r\n",
    "SMTP": b"EHLO mail.example\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "letters that are no method": b"hello",
    "a word too long for a method": b"A" * 21,
    "an empty line, then nonsense": b"\r\nnonsense",
}


@pytest.mark.parametrize("what", OTHER_PROTOCOLS)
def test_another_protocol_is_refused_at_its_first_bytes(echo: WorkerServer, what: str) -> None:
    with echo.connect() as line:
        line.send(OTHER_PROTOCOLS[what])
        reply = line.read()

        # After 20 seconds of silence it would be a 408.
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        assert line.is_closed()


@pytest.mark.parametrize(
    "begin",
    [
        b"nonsense\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 999999\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 999999\r\n\r\n",
    ],
)
def test_who_is_not_read_on_may_finish_sending_and_reads_the_answer(
    odd: WorkerServer, begin: bytes
) -> None:
    with odd.connect() as line:
        line.send(begin)
        reply = line.read()
        for _ in range(20):
            # Were the connection closed, the first of these would be answered with a reset.
            line.send(b"x" * 1000)
            time.sleep(0.005)

        assert reply.headers["connection"] == "close"
        assert line.is_closed()


def test_what_was_refused_is_told_without_quoting_it(tmp_path: Path) -> None:
    with serving(tmp_path, "callables:echo") as server:
        answer = server.send(b"GET /s3cret-key/postback\r\n\r\n")

        assert b"s3cret" not in answer
        wait_until(lambda: "Invalid request from" in server.read_log(), "the log")
        assert "Invalid request from ip=127.0.0.1: InvalidRequestLine\n" in server.read_log()
        assert "s3cret" not in server.read_log()


def test_a_name_with_an_underscore_is_dropped(echo: WorkerServer) -> None:
    with echo.connect() as line:
        seen = line.get("/", "X_Forwarded_For: evil", "X-Forwarded-For: good").json()

    assert seen["HTTP_X_FORWARDED_FOR"] == "good"


REFUSED_OPTIONS: dict[tuple[str, ...], str] = {
    ("--certfile", __file__): "does not do TLS (certfile, keyfile): let nginx",
    ("--proxy-protocol", "auto"): "does not do proxy_protocol: let nginx",
    ("--http-parser", "fast"): "does not use http_parser = 'fast', it has a quick reader",
}


@pytest.mark.parametrize("options", REFUSED_OPTIONS)
def test_what_the_worker_does_not_do_is_refused_with_a_sentence(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "gunicorn_h1c.py").write_text(OTHER_PARSER)
    server = WorkerServer(tmp_path, "callables:echo", *options)
    try:
        assert server.process.wait(PATIENCE_SECONDS) == 1
    finally:
        server.stop()
    assert f"Error: GroupCommitWorker {REFUSED_OPTIONS[options]}" in server.read_log()


# What `pip install 'gunicorn[fast]'` brings, as far as gunicorn looks at it; it refuses all.
OTHER_PARSER = """\
class ParseError(Exception): ...
class IncompleteError(ParseError): ...
class LimitRequestLine(ParseError): ...
class LimitRequestHeaders(ParseError): ...
class InvalidRequestMethod(ParseError): ...
class InvalidHTTPVersion(ParseError): ...
class InvalidHeaderName(ParseError): ...
class InvalidHeader(ParseError): ...
def parse_request(*_, **__): raise LimitRequestHeaders
"""


@pytest.mark.parametrize("options", [(), ("--http-parser", "auto")])
def test_another_parser_that_is_installed_changes_no_answer(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "gunicorn_h1c.py").write_text(OTHER_PARSER)
    with serving(tmp_path, "callables:echo", *options) as server:
        # Left to gunicorn's parser.
        reply = server.send(b"PUT / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")

        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        with server.connect() as line:
            line.send(b"GET /" + b"x" * 8200)
            assert line.read().status == 414


# --- What the callable answers ---------------------------------------------------------------


@pytest.mark.parametrize("path", ["/raises", "/silent", "/short", "/splits", "/text"])
def test_a_callable_that_fails_fails_alone(odd: WorkerServer, path: str) -> None:
    with odd.connect() as line:
        line.send(
            b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET %s HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode()
        )
        line.send(b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
        replies = [line.read() for _ in range(3)]

    assert [reply.status for reply in replies] == [200, 500, 200]
    assert f"Error handling request GET {path}\n    Traceback" in odd.read_log()


def test_an_answer_may_come_in_parts(odd: WorkerServer) -> None:
    with odd.connect() as line:
        reply = line.get("/parts")

    assert (reply.body, reply.headers["x-kept"]) == (b"123", "value")
    # The callable has no say in the connection.
    assert reply.keeps_alive
    assert (odd.directory / "closed").exists()


def test_an_answer_may_be_taken_back_before_it_is_sent(odd: WorkerServer) -> None:
    assert odd.get("/second").status == 201


def test_an_answer_without_body_has_none(odd: WorkerServer) -> None:
    with odd.connect() as line:
        line.send(b"HEAD /path HTTP/1.1\r\nHost: h\r\n\r\n")
        head = line.read(is_head=True)
        none = line.get("/none")
        get = line.get("/path")

    assert head.headers["content-length"] == get.headers["content-length"] == "5"
    assert (none.status, "content-length" in none.headers) == (204, False)
    assert get.body == b"/path"


def test_an_answer_tells_server_and_date(odd: WorkerServer) -> None:
    reply = odd.get("/path")

    assert reply.headers["server"] == "gunicorn"
    told = time.strptime(reply.headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
    assert abs(time.mktime(told) - time.mktime(time.gmtime())) < 5


def test_an_answer_without_end_is_not_held(odd: WorkerServer) -> None:
    assert odd.get("/endless").status == 500


def test_a_unix_socket_has_no_address(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "callables:echo", "--bind", "unix:sock"),
        socket.socket(socket.AF_UNIX) as sock,
    ):
        sock.settimeout(PATIENCE_SECONDS)
        sock.connect(str(tmp_path / "sock"))
        seen = Line(sock).get("/", "X-Forwarded-Proto: https").json()

    assert seen["REMOTE_ADDR"] == ""
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("h", "80")
    assert seen["wsgi.url_scheme"] == "http"


def test_the_access_log_and_the_hooks_are_served(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(
        "from postbackd.server.gunicorn_conf import *\n"
        "def pre_request(worker, req): worker.log.info('before %s', req.path)\n"
        "def post_request(worker, req, environ, resp):\n"
        "    worker.log.info('after %s %s %s', req.path, environ['PATH_INFO'], resp.status)\n"
    )
    options = ("--config", "hooks.py", "--access-logfile", "-")
    with serving(tmp_path, "callables:odd", *options) as server:
        server.get("/path?x=y")
        wait_until(lambda: "after" in server.read_log(), "the hook")

    log = server.read_log()
    assert '"GET /path?x=y HTTP/1.1" 200 5 "-" "-"' in log
    assert "before /path\n" in log
    assert "after /path /path 200 OK\n" in log


# --- One commit for all ----------------------------------------------------------------------


def test_nothing_is_sent_before_the_commit(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "callables:held") as server,
        server.connect() as one,
        server.connect() as other,
    ):
        one.send(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_until((tmp_path / "called").exists, "the call")
        other.send(b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\n\r\n")
        one.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            one.sock.recv(1)
        one.sock.settimeout(PATIENCE_SECONDS)
        (tmp_path / "go").touch()

        assert one.read().body == b"/1"
        assert [other.read().body, other.read().body] == [b"/2", b"/3"]
        assert (tmp_path / "batches").read_text().split() == ["1", "2"]


@pytest.mark.parametrize("trouble", ["fail", "break"])
def test_every_answer_of_a_failed_commit_is_a_503(tmp_path: Path, trouble: str) -> None:
    (tmp_path / "go").touch()
    (tmp_path / trouble).touch()
    with serving(tmp_path, "callables:held") as server, server.connect() as line:
        line.send(
            b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nHEAD /2 HTTP/1.1\r\nHost: h\r\n\r\nhello\r\n\r\n"
        )
        first, second, third = line.read(), line.read(is_head=True), line.read()

        assert [first.status, second.status, third.status] == [503, 503, 400]
        assert first.headers["retry-after"] == second.headers["retry-after"] == "5"
        assert first.body == b"Not accepted at present: send it again."
        (tmp_path / trouble).unlink()
        assert server.get("/again").body == b"/again"
        assert ("ZeroDivisionError" in server.read_log()) == (trouble == "break")


def test_a_hook_that_fails_fails_its_own_request_alone(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    (tmp_path / "hooks.py").write_text(
        "from postbackd.server.gunicorn_conf import *\n"
        "def pre_request(worker, req): 1 / (req.path != '/2')\n"
    )
    options = ("--config", "hooks.py")
    with serving(tmp_path, "callables:held", *options) as server, server.connect() as line:
        line.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in (1, 2, 3)))
        replies = [line.read() for _ in range(3)]

    assert [reply.status for reply in replies] == [200, 503, 200]
    assert "Exception in pre_request hook" in server.read_log()


def test_a_commit_is_shared_by_a_bounded_number(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with serving(tmp_path, "callables:held") as server:
        lines = [server.connect() for _ in range(300)]
        # Held up by the first, all others are ready together.
        (tmp_path / "go").unlink()
        (tmp_path / "called").unlink(missing_ok=True)
        lines[0].send(b"GET /0 HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_until((tmp_path / "called").exists, "the call")
        for number, line in enumerate(lines[1:], 1):
            line.send(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
        (tmp_path / "go").touch()

        bodies = [line.read().body for line in lines]

        assert bodies == [b"/%d" % number for number in range(300)]
        assert (tmp_path / "batches").read_text().split() == ["1", "256", "43"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_commit_is_shared_by_a_bounded_number_of_bytes(tmp_path: Path, is_chunked: bool) -> None:
    body = b"x" * 60_000
    length = b"Content-Length: 60000\r\n\r\n"
    if is_chunked:
        body = b"ea60\r\n" + body + b"\r\n0\r\n\r\n"
        length = b"Transfer-Encoding: chunked\r\n\r\n"
    with serving(tmp_path, "callables:held") as server:
        first, *lines = [server.connect() for _ in range(22)]
        first.send(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_until((tmp_path / "called").exists, "the call")
        for line in lines[:20]:
            line.send(b"POST /long HTTP/1.1\r\nHost: h\r\n" + length + body)
        lines[20].send(b"GET /short HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_until(lambda: not any(unsent_bytes(line.sock) for line in lines), "their arrival")
        (tmp_path / "go").touch()

        assert [line.read().status for line in lines] == [200] * 21
        _, *batches = [line.split() for line in (tmp_path / "paths").read_text().splitlines()]
    # 256 KiB: five of them fill it. Who sends little does not wait for the rest.
    assert max(batch.count("/long") for batch in batches) <= 5
    assert "/short" in batches[0]
    assert sum(batch.count("/long") for batch in batches) == 20


def unsent_bytes(sock: socket.socket) -> int:
    """Tell how many bytes the other side's kernel has not acknowledged."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def test_one_that_pipelines_lets_others_through(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with serving(tmp_path, "callables:held") as server:
        with server.connect() as greedy, server.connect() as modest:
            modest.get("/here")
            (tmp_path / "go").unlink()
            greedy.send(b"GET /greedy HTTP/1.1\r\nHost: h\r\n\r\n" * 1000)
            modest.send(b"GET /modest HTTP/1.1\r\nHost: h\r\n\r\n")
            (tmp_path / "go").touch()

            assert modest.read().body == b"/modest"
            assert all(greedy.read().body == b"/greedy" for _ in range(1000))
        batches = [int(size) for size in (tmp_path / "batches").read_text().split()]
        assert max(batches) <= 33


def test_who_waited_too_long_is_told_to_send_again(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "callables:held", WAIT_LIMIT_SECONDS=0.0, BATCH_LIMIT=1) as server,
        server.connect() as one,
        server.connect() as other,
        server.connect() as third,
    ):
        one.send(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_until((tmp_path / "called").exists, "the call")
        other.send(b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
        third.send(b"GET /3 HTTP/1.1\r\nHost: h\r\n\r\n")
        (tmp_path / "go").touch()

        assert one.read().status == 200
        # Of the two read together the first is served at once; the second has waited.
        assert sorted([other.read().status, third.read().status]) == [200, 503]
