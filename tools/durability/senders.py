"""Senders of postbacks over real sockets, and the ledger of their answers.

A postback is acknowledged when its sender has read a complete answer 200, and not before.
"""

import random
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple, Self

from tools.durability.servers import CLICK_KEY, POSTBACK_KEY, HarnessError

# No healthy answer takes so long: the receiver gives up after ten seconds.
PATIENCE_SECONDS = 20.0

# How many postbacks of one sender are sent once more later, and at the same time by another sender.
SENT_AGAIN_SHARE = 0.1
TWIN_SHARE = 0.1

# A sender without an acknowledgement goes on after this; real ones wait longer.
RETRY_SECONDS = 0.01

FORM = "application/x-www-form-urlencoded"


class Click(StrEnum):
    """When the click of a postback is stored: before it, never, or later."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    LATE = "late"


class Postback(NamedTuple):
    """One postback to send; the transaction id belongs to its click alone."""

    subid: str
    tid: str
    payout: str
    click: Click

    @property
    def query(self) -> str:
        """Write the query as a network would."""
        return f"subid={self.subid}&tid={self.tid}&status=sale&payout={self.payout}"


class Response(NamedTuple):
    """A complete answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Ack(NamedTuple):
    """An answer to a postback, with the times of request and answer by time.monotonic_ns."""

    postback: Postback
    verdict: str
    asked_at_ns: int
    read_at_ns: int


class BrokenOffError(Exception):
    """The connection ended before a complete answer."""


class Ledger:
    """What was sent and what was answered; appended to by all senders."""

    def __init__(self) -> None:
        """Begin empty."""
        self.sent: list[Postback] = []
        self.acks: list[Ack] = []
        self.unanswered: list[Postback] = []
        self.clicks: set[str] = set()
        self.clicks_unanswered: set[str] = set()
        self.unavailable = 0
        self.latencies: list[float] = []
        self.flaws: list[str] = []

    def read(self, postback: Postback, response: Response, asked_at_ns: int) -> bool:
        """Record an answer; returns whether it acknowledges."""
        if response.status == 200:
            now = time.monotonic_ns()
            self.latencies.append((now - asked_at_ns) / 1e9)
            verdict = response.headers.get("x-postback-result", "")
            self.acks.append(Ack(postback, verdict, asked_at_ns, now))
            if response.body != b"Success":
                self.flaws.append(f"{postback.subid}: 200 with the body {response.body!r}")
            return True
        if response.status == 503:
            self.unavailable += 1
            if "retry-after" not in response.headers:
                self.flaws.append(f"{postback.subid}: 503 without Retry-After")
        else:
            self.flaws.append(f"{postback.subid}: status {response.status}")
        self.unanswered.append(postback)
        return False


class Connection:
    """One sender's connection, opened when needed; kept alive where the sender wants it."""

    def __init__(self, port: int, *, keeps_alive: bool = True) -> None:
        """Open nothing yet."""
        self._port = port
        self._keeps_alive = keeps_alive
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Hang up."""
        self.hang_up()

    def ask(self, method: str, target: str, body: str = "") -> Response:
        """Send a request and read its whole answer; raises BrokenOffError."""
        try:
            response = self._ask(write_request(method, target, body, keeps_alive=self._keeps_alive))
        except (OSError, BrokenOffError) as error:
            self.hang_up()
            raise BrokenOffError(str(error)) from error
        if not self._keeps_alive or response.headers.get("connection", "").lower() == "close":
            self.hang_up()
        return response

    def _ask(self, request: bytes) -> Response:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), PATIENCE_SECONDS)
        self._socket.sendall(request)
        return read_response(self._socket)

    def hang_up(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def write_request(method: str, target: str, body: str, *, keeps_alive: bool) -> bytes:
    """Write a request as a network's program does."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
    if not keeps_alive:
        lines.append("Connection: close")
    if method == "POST":
        lines += [f"Content-Type: {FORM}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", body]).encode()


def read_response(connection: socket.socket) -> Response:
    """Read one whole answer; raises BrokenOffError if it ends early."""
    received = b""
    while (response := parse_response(received)) is None:
        received += _receive(connection)
    return response


def parse_response(received: bytes) -> Response | None:
    """Parse the bytes of an answer; None while it is not complete."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if len(body) < int(headers.get("content-length", "0")):
        return None
    return Response(int(first.split()[1]), headers, body)


def _receive(connection: socket.socket) -> bytes:
    received = connection.recv(65536)
    if not received:
        raise BrokenOffError("the server hung up")
    return received


def write_postback(postback: Postback, style: int) -> tuple[str, str, str]:
    """Write method, target and body in one of the three styles networks have."""
    address = f"/{POSTBACK_KEY}/postback"
    if style == 0:
        return "POST", address, postback.query
    return "POST" if style == 1 else "GET", f"{address}?{postback.query}", ""


class Load:
    """Several senders at once, until they are stopped or nothing is left to send.

    Half of them keep their connections alive. Some postbacks are sent again later, some at the same
    time by two senders; those with a late click are followed by it.
    """

    def __init__(self, port: int, postbacks: Iterable[Postback], seed: str, senders: int) -> None:
        """Set the postbacks to send; `start` begins."""
        self.ledger = Ledger()
        self._port = port
        self._left = deque(postbacks)
        self._twins: deque[Postback] = deque()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number, f"{seed}-{number}"), daemon=True)
            for number in range(senders)
        ]

    def start(self) -> None:
        """Start all senders."""
        for thread in self._threads:
            thread.start()

    @property
    def is_busy(self) -> bool:
        """Return whether any sender is still running."""
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> Ledger:
        """Let every sender finish its present request, and return the ledger."""
        self._stopped.set()
        return self.wait()

    def wait(self) -> Ledger:
        """Wait until everything is sent, and return the ledger."""
        for thread in self._threads:
            thread.join(2 * PATIENCE_SECONDS)
            if thread.is_alive():
                raise HarnessError("a sender does not come to an end")
        return self.ledger

    def _work(self, number: int, seed: str) -> None:
        chance = random.Random(seed)  # noqa: S311 a seeded run can be repeated
        with Connection(self._port, keeps_alive=number % 2 == 0) as connection:
            while not self._stopped.is_set() and (postback := self._choose(chance)) is not None:
                if self._send(connection, postback, chance) and postback.click is Click.LATE:
                    send_click(connection, postback.subid, self.ledger)

    def _choose(self, chance: random.Random) -> Postback | None:
        if chance.random() < SENT_AGAIN_SHARE and self.ledger.acks:
            return chance.choice(self.ledger.acks).postback
        try:
            if self._twins:
                return self._twins.popleft()
            postback = self._left.popleft()
        except IndexError:
            return None
        if chance.random() < TWIN_SHARE:
            self._twins.append(postback)
        return postback

    def _send(self, connection: Connection, postback: Postback, chance: random.Random) -> bool:
        ledger = self.ledger
        ledger.sent.append(postback)
        asked_at_ns = time.monotonic_ns()
        try:
            response = connection.ask(*write_postback(postback, chance.randrange(8)))
        except BrokenOffError:
            ledger.unanswered.append(postback)
            self._stopped.wait(RETRY_SECONDS)
            return False
        if ledger.read(postback, response, asked_at_ns):
            return True
        self._stopped.wait(RETRY_SECONDS)
        return False


def send_click(connection: Connection, subid: str, ledger: Ledger) -> None:
    """Send the click of a postback that was sent before it."""
    try:
        response = connection.ask("GET", f"/{CLICK_KEY}/click?subid={subid}")
    except BrokenOffError:
        ledger.clicks_unanswered.add(subid)
        return
    if response.status == 200:
        ledger.clicks.add(subid)
    else:
        ledger.unavailable += response.status == 503
        ledger.clicks_unanswered.add(subid)


def send_once(port: int, postback: Postback, ledger: Ledger) -> int | None:
    """Send one postback on a new connection; returns the status, None without an answer."""
    ledger.sent.append(postback)
    asked_at_ns = time.monotonic_ns()
    with Connection(port, keeps_alive=False) as connection:
        try:
            response = connection.ask(*write_postback(postback, 2))
        except BrokenOffError:
            ledger.unanswered.append(postback)
            return None
    ledger.read(postback, response, asked_at_ns)
    return response.status


def resend(port: int, ledger: Ledger, seconds: float = 30.0) -> int:
    """Send unanswered postbacks again, as networks do, until answered; returns how many."""
    deadline = time.monotonic() + seconds
    waiting = list(ledger.unanswered)
    late = {postback.subid for postback in waiting if postback.click is Click.LATE}
    ledger.clicks_unanswered |= late - ledger.clicks
    count = len(waiting) + len(ledger.clicks_unanswered)
    ledger.unanswered.clear()
    with Connection(port) as connection:
        while waiting:
            waiting = [each for each in waiting if not _resend(connection, each, ledger)]
            if waiting and time.monotonic() > deadline:
                raise HarnessError(f"{len(waiting)} postbacks get no answer, {waiting[0]} first")
        for subid in sorted(ledger.clicks_unanswered):
            send_click(connection, subid, ledger)
    ledger.unanswered.clear()
    ledger.clicks_unanswered -= ledger.clicks
    if ledger.clicks_unanswered:
        raise HarnessError(f"{len(ledger.clicks_unanswered)} clicks get no answer")
    return count


def _resend(connection: Connection, postback: Postback, ledger: Ledger) -> bool:
    ledger.sent.append(postback)
    asked_at_ns = time.monotonic_ns()
    try:
        response = connection.ask(*write_postback(postback, 2))
    except BrokenOffError:
        time.sleep(RETRY_SECONDS)
        return False
    if not ledger.read(postback, response, asked_at_ns):
        time.sleep(RETRY_SECONDS)
        return False
    return True


def make_postbacks(label: str, count: int, clicks: Sequence[Click]) -> list[Postback]:
    """Make new postbacks, with the kinds of clicks in turn."""
    return [
        Postback(f"{label}-{n}", f"t{n}", f"{n % 90 + 1}.{n % 9 + 1}5", clicks[n % len(clicks)])
        for n in range(count)
    ]


def percentile(latencies: Iterable[float], share: float) -> float:
    """Return the latency (seconds) below which a share of the requests stayed."""
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
