"""Overload: many senders, slow ones, and ones that hang up before their answer."""

import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from tools.durability.audit import Books, Findings, audit
from tools.durability.senders import (
    Click,
    Ledger,
    Postback,
    Response,
    make_postbacks,
    parse_response,
    percentile,
    write_postback,
    write_request,
)
from tools.durability.servers import HarnessError, Home, Setup, peak_memory_mib, serving, wait_until

# Ten times the 32 requests that gunicorn's threads serve at once by our settings.
CROWD = 320

# How long a slow sender takes for each byte: a request of 150 bytes is never complete in our time.
SLOW_BYTE_SECONDS = 0.1

SLOW = 200
# Each slow sender blocks one of gunicorn's threads; with all 32 taken, nobody is served.
SLOW_FOR_THREADS = 16

HANGING_UP = 100

# A worker that is silent for so long is killed: longer than a slow disk takes for a commit, shorter
# than a slow sender for its request, so that it would happen while we look.
TIMEOUT_SECONDS = 5


class Figures(NamedTuple):
    """The figures of an overload."""

    acknowledged: int
    unavailable: int
    per_second: float
    median_seconds: float
    p99_seconds: float
    worst_seconds: float
    peak_mib: float
    workers_replaced: int
    hung_up_kept: int
    findings: Findings

    def __str__(self) -> str:
        """Describe the overload in a line."""
        return (
            f"{self.acknowledged} acknowledged ({self.per_second:.0f}/s), {self.unavailable} sent"
            f" away with 503, latency {self.median_seconds * 1000:.0f} ms median,"
            f" {self.p99_seconds * 1000:.0f} ms p99, {self.worst_seconds * 1000:.0f} ms at worst;"
            f" worker at most {self.peak_mib:.0f} MiB, {self.workers_replaced} replaced;"
            f" {self.hung_up_kept} of {HANGING_UP} postbacks of senders that hung up kept;"
            f" {'sound' if self.findings.is_sound else self.findings}"
        )


def overload(
    home: Home, setup: Setup, seconds: float, *, crowd: int = CROWD, slow: int = 0
) -> Figures:
    """Start the crowd, slow senders and senders that hang up on a server at once."""
    impatient = setup._replace(options=(*setup.options, "--timeout", str(TIMEOUT_SECONDS)))
    hasty = make_postbacks("hasty", HANGING_UP, [Click.UNKNOWN])
    with serving(home, impatient) as server:
        server.wait_until_healthy()
        workers = server.find_workers()
        with slow_senders(server.port, slow):
            threading.Thread(target=hang_up_early, args=(server.port, hasty), daemon=True).start()
            ledger = Crowd(server.port, crowd).work(seconds)
            wait_until(lambda: count_kept(home, hasty) == len(hasty), 20, "all that hung up count")
        return Figures(
            acknowledged=len(ledger.acks),
            unavailable=ledger.unavailable,
            per_second=len(ledger.acks) / seconds,
            median_seconds=percentile(ledger.latencies, 0.5),
            p99_seconds=percentile(ledger.latencies, 0.99),
            worst_seconds=percentile(ledger.latencies, 1.0),
            peak_mib=max(map(peak_memory_mib, server.find_workers())),
            workers_replaced=len(set(workers) - set(server.find_workers())),
            hung_up_kept=count_kept(home, hasty),
            findings=audit(home.database, ledger.acks)._replace(lost=ledger.flaws),
        )


def slow_senders_for(setup: Setup) -> int:
    """Return how many slow senders a worker class must endure."""
    return SLOW_FOR_THREADS if setup.worker_class == "gthread" else SLOW


def count_kept(home: Home, postbacks: list[Postback]) -> int:
    """Count the postbacks in the postback log, each once."""
    rows = Books(home.database).rows
    return sum(len(rows.get((each.subid, each.tid), ())) == 1 for each in postbacks)


def hang_up_early(port: int, postbacks: list[Postback]) -> None:
    """Send each postback on a connection of its own, and close it without reading the answer."""
    for postback in postbacks:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(write_request(*write_postback(postback, 2), keeps_alive=False))


@contextmanager
def slow_senders(port: int, count: int) -> Iterator[None]:
    """Run senders that send a request byte by byte and never end it, during the block."""
    is_over = threading.Event()
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(count)
        ]
        thread = threading.Thread(target=_dribble, args=(connections, is_over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def _dribble(connections: Sequence[socket.socket], is_over: threading.Event) -> None:
    (postback,) = make_postbacks("slow", 1, [Click.UNKNOWN])
    request = write_request(*write_postback(postback, 2), keeps_alive=True)
    for byte in request[:-1]:
        for connection in connections:
            # The server may have closed such a connection.
            with suppress(OSError):
                connection.send(bytes([byte]))
        if is_over.wait(SLOW_BYTE_SECONDS):
            return


class _Sender:
    """One of the crowd: a kept-alive connection and its unanswered postback."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.settimeout(0)
        self.received = b""
        self.postback: Postback | None = None
        self.asked_at_ns = 0

    def send(self, postback: Postback) -> None:
        self.postback, self.received = postback, b""
        self.asked_at_ns = time.monotonic_ns()
        self.socket.send(write_request(*write_postback(postback, 2), keeps_alive=True))

    def receive(self) -> Response | None:
        """Read from the connection; returns the answer once it is complete."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionResetError("the server hung up")
        self.received += chunk
        return parse_response(self.received)


class Crowd:
    """Many senders in one thread: each sends its next postback when it has its answer."""

    def __init__(self, port: int, count: int) -> None:
        """Connect all senders."""
        self.ledger = Ledger()
        self._selector = selectors.DefaultSelector()
        self._postbacks: Iterator[Postback] = iter(make_postbacks("c", 200_000, [Click.UNKNOWN]))
        self._waiting = count
        for _ in range(count):
            sender = _Sender(port)
            self._selector.register(sender.socket, selectors.EVENT_READ, sender)

    def work(self, seconds: float) -> Ledger:
        """Send for a while, read the outstanding answers, and return the ledger."""
        end = time.monotonic() + seconds
        for key in list(self._selector.get_map().values()):
            self._send_next(key.data)
        while self._waiting:
            if time.monotonic() > end + 20:
                raise HarnessError(f"{self._waiting} of the crowd get no answer")
            for key, _ in self._selector.select(timeout=1):
                self._attend(key.data, goes_on=time.monotonic() < end)
        self._selector.close()
        return self.ledger

    def _send_next(self, sender: _Sender) -> None:
        postback = next(self._postbacks)
        self.ledger.sent.append(postback)
        sender.send(postback)

    def _attend(self, sender: _Sender, *, goes_on: bool) -> None:
        assert sender.postback is not None
        try:
            response = sender.receive()
        except OSError as error:
            self.ledger.flaws.append(f"{sender.postback.subid}: {error}")
            self._let_go(sender)
            return
        if response is None:
            return
        self.ledger.read(sender.postback, response, sender.asked_at_ns)
        if goes_on:
            self._send_next(sender)
        else:
            self._let_go(sender)

    def _let_go(self, sender: _Sender) -> None:
        self._waiting -= 1
        self._selector.unregister(sender.socket)
        sender.socket.close()
