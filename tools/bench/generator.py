"""The load: each sender waits for its answer before it sends the next postback.

wrk if it is installed; else a generator of our own, one thread over epoll. Both send the same
requests: one for each click number, in order.
"""

import re
import selectors
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from tools.bench.build import SPREAD, subid_of

KEY = "the-key-of-the-bench-1"

# A script for wrk, in two parts: the first takes values, the second has braces of its own.
_LUA_REQUEST = """
local number = {first}
local function spread(n)
    -- n * {spread} modulo 2^32, in two halves: a double holds whole numbers up to 2^53 only.
    local high = math.floor({spread} / 65536)
    local low = {spread} % 65536
    return ((n * high % 65536) * 65536 + n * low) % 4294967296
end
request = function()
    local subid = string.format("%08x%08x", spread(number), number)
    local path = "/{key}/postback?subid=" .. subid ..
        "&status=sale&payout=12.50&currency=usd&tid=t" .. number
    number = number + 1
    return wrk.format("GET", path)
end
"""
_LUA_DONE = """
done = function(summary, latency, requests)
    io.write(string.format("RESULT %d %d %d %f %f %f\\n", summary.requests, summary.errors.status,
        summary.duration, latency:percentile(50), latency:percentile(99),
        latency:percentile(99.9)))
end
"""


class Load(NamedTuple):
    """The result of a run: answers, those that were no 2xx, latencies in ms."""

    answers: int
    refused: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


def run_load(
    port: int, senders: int, seconds: int, first: int, scratch: Path, *, keeps_alive: bool
) -> Load:
    """Send requests to a server on this machine, with click numbers from `first` on."""
    if shutil.which("wrk"):
        return _run_wrk(port, senders, seconds, first, scratch, keeps_alive=keeps_alive)
    return run_bundled(port, senders, seconds, first, keeps_alive=keeps_alive)


def _run_wrk(
    port: int, senders: int, seconds: int, first: int, scratch: Path, *, keeps_alive: bool
) -> Load:
    script = scratch / "postbacks.lua"
    script.write_text(_LUA_REQUEST.format(first=first, spread=SPREAD, key=KEY) + _LUA_DONE)
    command = ["wrk", "-t1", f"-c{senders}", f"-d{seconds}s", "--latency", "-s", str(script)]
    if not keeps_alive:
        command += ["-H", "Connection: close"]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True
    )
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\S+) (\S+) (\S+)", done.stdout)
    assert found is not None, done.stdout
    answers, refused, micros, *latencies = map(float, found.groups())
    p50, p99, p999 = (latency / 1000 for latency in latencies)
    return Load(int(answers), int(refused), micros / 1e6, p50, p99, p999)


def _is_whole(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)", head, re.IGNORECASE)
    return bool(end) and length is not None and len(body) >= int(length[1])


class _Sender:
    """One sender: its connection, and the time of its last postback."""

    def __init__(self) -> None:
        self.connection: socket.socket | None = None
        self.sent_at = 0.0
        self.received = b""


def run_bundled(port: int, senders: int, seconds: int, first: int, *, keeps_alive: bool) -> Load:
    """Send requests with our own generator: one thread, epoll, raw sockets."""
    selector = selectors.DefaultSelector()
    tail = "" if keeps_alive else "Connection: close\r\n"
    latencies: list[float] = []
    refused = 0
    number = first

    def send(sender: _Sender) -> None:
        nonlocal number
        if sender.connection is None:
            sender.connection = socket.create_connection(("127.0.0.1", port), 10)
            selector.register(sender.connection, selectors.EVENT_READ, sender)
        target = (
            f"/{KEY}/postback?subid={subid_of(number)}&status=sale&payout=12.50"
            f"&currency=usd&tid=t{number}"
        )
        number += 1
        sender.received = b""
        sender.sent_at = time.perf_counter()
        sender.connection.sendall(f"GET {target} HTTP/1.1\r\nHost: h\r\n{tail}\r\n".encode())

    begun = time.perf_counter()
    for _ in range(senders):
        send(_Sender())
    while time.perf_counter() - begun < seconds:
        for key, _ in selector.select(0.1):
            sender = key.data
            sender.received += sender.connection.recv(65536)
            if not _is_whole(sender.received):
                continue
            latencies.append(time.perf_counter() - sender.sent_at)
            refused += not sender.received.startswith(b"HTTP/1.1 200")
            if not keeps_alive:
                selector.unregister(sender.connection)
                sender.connection.close()
                sender.connection = None
            send(sender)
    took = time.perf_counter() - begun
    for key in list(selector.get_map().values()):
        key.data.connection.close()
    ordered = sorted(latencies) or [0.0]
    p50, p99, p999 = (ordered[int(len(ordered) * part)] * 1000 for part in (0.5, 0.99, 0.999))
    return Load(len(latencies), refused, took, p50, p99, p999)
