"""Requests of every kind by the million: `python -m tools.durability.fuzz --requests 1000000`.

A real gunicorn is sent the requests of `garble`, pipelined and in pieces. No answer may be a 500 or
show a traceback or a key; no wrong key may be accepted; every 200 under a right key must have its
row in the postback log; the server must survive, within bounded memory. Exit status 1 otherwise.
"""

import argparse
import itertools
import re
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from tools.durability.garble import PIXEL_KEY, Dice, Kind, Request, make_pipeline
from tools.durability.servers import (
    CLICK_KEY,
    POSTBACK_KEY,
    Home,
    Server,
    Setup,
    fetch_status,
    peak_memory_mib,
    serving,
    wait_until,
)

# The requests of one piece of work, which has a seed of its own.
REQUESTS_A_PIECE = 5000

# No healthy answer takes so long.
PATIENCE_SECONDS = 30.0

# Addresses wait after a connection has ended: one alone would run out of ports.
SOURCE_ADDRESSES = 200

# How much a worker may grow after its first requests: by bounded caches, no more.
GROWTH_LIMIT_MIB = 48.0

FLAWS_SHOWN = 10

KEYS = (POSTBACK_KEY.encode(), CLICK_KEY.encode(), PIXEL_KEY.encode())
_MARK = re.compile(r"(?:^|&)mark=([0-9]+x[0-9]+)(?:&|$)")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)


class Response(NamedTuple):
    """The parts of an answer that the fuzz checks."""

    status: int
    head: bytes
    body: bytes

    @property
    def has_verdict(self) -> bool:
        """Return whether the answer has a verdict on a postback or a click."""
        return self.status == 200 and b"\r\nX-Postback-Result: " in self.head


class Piece(NamedTuple):
    """The result of one piece of work."""

    requests: int
    statuses: Counter[int]
    acknowledged: list[str]
    # Mangled requests that were answered 200: each has a row, though perhaps without a mark.
    unmarked: int
    flaws: list[str]


class Verdict(NamedTuple):
    """The result of a whole run."""

    requests: int
    statuses: Counter[int]
    acknowledged: int
    rows: int
    growth_mib: float
    seconds: float
    flaws: list[str]

    def __str__(self) -> str:
        """Describe the run in a few lines."""
        answers = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        lines = [
            f"{self.requests} requests in {self.seconds:.0f} s; answers {answers}",
            f"{self.acknowledged} acknowledged, {self.rows} rows in the postback log;"
            f" the largest worker grew by {self.growth_mib:.0f} MiB",
            f"{len(self.flaws)} flaws",
        ]
        return "\n".join([*lines, *self.flaws[:FLAWS_SHOWN]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.durability.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--senders", type=int, default=2, help="processes that send (%(default)s)")
    parser.add_argument("--worker-class", default="postbackd.server.worker.GroupCommitWorker")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    setup = Setup(asked.worker_class, asked.workers)
    sys.stdout.write(f"{setup}, seed {asked.seed}, in {directory}\n")
    sys.stdout.flush()
    verdict = fuzz(directory, setup, asked.requests, asked.seed, asked.senders)
    sys.stdout.write(f"{verdict}\n")
    if verdict.flaws:
        return 1
    shutil.rmtree(directory)
    return 0


def fuzz(directory: Path, setup: Setup, requests: int, seed: int, senders: int) -> Verdict:
    """Send so many requests to a new server, and compare its postback log with the answers."""
    home = Home(directory, unknown_subid="accept")
    home.config.write_text(
        home.config.read_text().replace("[db]", f'pixel_key = "{PIXEL_KEY}"\n[db]')
    )
    share = min(REQUESTS_A_PIECE, -(-requests // senders))
    with serving(home, setup) as server:
        server.wait_until_healthy()
        enough = f"{setup.workers} workers"
        wait_until(lambda: len(server.find_workers()) == setup.workers, PATIENCE_SECONDS, enough)
        workers = server.find_workers()
        began = time.monotonic()
        running = send_pieces(
            partial(send_piece, server.port, seed, share), -(-requests // share), senders
        )
        first = next(running)
        before = max(map(peak_memory_mib, workers))
        pieces = [first, *running]
        seconds = time.monotonic() - began
        flaws = list(_look_at_server(server, workers))
        growth = 0.0 if flaws else max(map(peak_memory_mib, workers)) - before
    rows = list(_read_marks(home.database))
    flaws += [flaw for piece in pieces for flaw in piece.flaws]
    flaws += _compare(pieces, rows)
    if growth > GROWTH_LIMIT_MIB:
        flaws.append(f"a worker grew by {growth:.0f} MiB")
    return Verdict(
        sum(piece.requests for piece in pieces),
        sum((piece.statuses for piece in pieces), Counter()),
        sum(len(piece.acknowledged) + piece.unmarked for piece in pieces),
        len(rows),
        growth,
        seconds,
        flaws,
    )


Send = Callable[[int], Piece]


def send_pieces(send: Send, count: int, senders: int) -> Iterator[Piece]:
    """Send so many pieces from so many processes; yields each as it is done.

    Over pipes: an executor's queues need semaphores in /dev/shm, which not everybody may write.
    """
    spawning = get_context("spawn")
    numbers = iter(range(count))
    links: list[Connection] = []
    for number in itertools.islice(numbers, senders):
        link, end = spawning.Pipe()
        spawning.Process(target=_be_sender, args=(send, end), daemon=True).start()
        end.close()
        link.send(number)
        links.append(link)
    while links:
        ready = wait(links)
        for link in [link for link in links if link in ready]:
            # EOFError: the sender broke off, and has printed why.
            piece: Piece = link.recv()
            following = next(numbers, None)
            link.send(following)
            if following is None:
                links.remove(link)
            yield piece


def _be_sender(send: Send, link: Connection) -> None:
    while (number := link.recv()) is not None:
        link.send(send(number))


def send_piece(port: int, seed: int, share: int, number: int) -> Piece:
    """Send one piece of work, `share` requests, one connection after the other."""
    dice = Dice(f"{seed}-{number}")
    marks = (f"{number}x{count}" for count in itertools.count())
    piece = Piece(0, Counter(), [], 0, [])
    while piece.requests < share:
        requests = make_pipeline(dice, marks)
        try:
            received = _send(dice, port, requests)
        except TimeoutError:
            piece.flaws.append(f"piece {number}: no end after {requests[-1].raw[:200]!r}")
            received = b""
        found = _judge(requests, received)
        piece = Piece(
            piece.requests + len(requests),
            piece.statuses + found.statuses,
            piece.acknowledged + found.acknowledged,
            piece.unmarked + found.unmarked,
            piece.flaws + [f"piece {number}: {flaw}" for flaw in found.flaws],
        )
    return piece


def _send(dice: Dice, port: int, requests: Sequence[Request]) -> bytes:
    """Send the requests in random pieces, shut down writing, and read all answers."""
    source = (f"127.0.0.{dice.randint(1, SOURCE_ADDRESSES)}", 0)
    everything = b"".join(request.raw for request in requests)
    cuts = sorted(dice.randrange(len(everything)) for _ in range(dice.choice((0, 0, 1, 3, 20))))
    received = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS, source) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for start, end in itertools.pairwise((0, *cuts, len(everything))):
                connection.sendall(everything[start:end])
            connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            # Refused before all was sent; the answer is there to be read.
            pass
        try:
            while block := connection.recv(1 << 16):
                received += block
        except ConnectionResetError:
            pass
    return received


def _judge(requests: Sequence[Request], received: bytes) -> Piece:
    """Compare the answers, in their order, with the requests."""
    found = Piece(len(requests), Counter(), [], 0, [])
    if b"Traceback" in received or any(key in received for key in KEYS):
        found.flaws.append(f"a traceback or a key was sent: {received[:500]!r}")
    unmarked = 0
    asked: Iterable[Request | None] = itertools.chain(requests, itertools.repeat(None))
    for request in asked:
        response, received = _take_response(received, request)
        if response is None:
            if received:
                found.flaws.append(f"no HTTP answer: {received[:200]!r}")
            if request is not None and request.kind is Kind.SOUND:
                found.flaws.append(f"a sound postback was not answered: {request.raw[:300]!r}")
            break
        found.statuses[response.status] += 1
        flaw = _find_flaw(request, response)
        if flaw:
            raw = b"" if request is None else request.raw
            found.flaws.append(f"{flaw}: {raw[:300]!r} was answered {response.head[:300]!r}")
        if response.has_verdict and request is not None and request.mark:
            found.acknowledged.append(request.mark)
        elif response.has_verdict and (request is None or request.kind is Kind.MANGLED):
            unmarked += 1
    return found._replace(unmarked=unmarked)


def _take_response(received: bytes, request: Request | None) -> tuple[Response | None, bytes]:
    head, end, rest = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100 "):
        return _take_response(rest, request)
    words = head.split(b" ", 2)
    if not end or not head.startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
        return None, received
    status = int(words[1])
    length = _LENGTH.search(head + b"\r\n")
    size = int(length[1]) if length and status != 204 else 0
    if request is not None and request.method == "HEAD" and status < 400:
        size = 0
    return Response(status, head, rest[:size]), rest[size:]


def _find_flaw(request: Request | None, response: Response) -> str | None:
    if response.status >= 500 and response.status not in {501, 503}:
        return "a server's error"
    if request is None:
        return None
    if request.kind is Kind.SOUND and not response.has_verdict:
        return "a sound postback was not acknowledged"
    if request.kind is Kind.STRANGER and response.status < 400:
        return "a wrong key opened"
    return None


def _look_at_server(server: Server, workers: Sequence[int]) -> Iterator[str]:
    if server.find_workers() != list(workers):
        yield f"workers {workers} became {server.find_workers()}"
    if fetch_status(server.port, "/health") != 200:
        yield "/health is not ok"
    log = server.read_log()
    for word in ("Traceback", "Error handling", "broke off", *(key.decode() for key in KEYS)):
        if word in log:
            place = log.index(word)
            yield f"the service log has {log[max(0, place - 200) : place + 500]!r}"


def _read_marks(path: Path) -> Iterator[str | None]:
    with closing(sqlite3.connect(path, timeout=PATIENCE_SECONDS)) as db:
        for (query,) in db.execute("SELECT query FROM postbacks"):
            found = _MARK.search(query)
            yield found[1] if found else None


def _compare(pieces: Sequence[Piece], rows: Sequence[str | None]) -> Iterator[str]:
    kept = Counter(rows)
    told = Counter(mark for piece in pieces for mark in piece.acknowledged)
    for mark, count in told.items():
        if kept[mark] < count:
            yield f"{mark} was answered 200 and is not in the postback log"
    answered = told.total() + sum(piece.unmarked for piece in pieces)
    if len(rows) < answered:
        yield f"{answered} were answered 200, the postback log has {len(rows)} rows"


if __name__ == "__main__":
    sys.exit(main())
