"""The worker's life: stops, reloads, kills, limits; and that no acknowledged postback is lost."""

import http.client
import os
import random
import signal
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from test_worker import (
    PATIENCE_SECONDS,
    Line,
    WorkerServer,
    memory_kib,
    serving,
    unsent_bytes,
    wait_until,
)

from postbackd.server.worker import QUIET_SECONDS, TICK_SECONDS, allow_files

KEY = "s3cret-key-of-the-tests"
CONFIG = f"""\
;<?php exit; ?>
[system]
postback_key = "{KEY}"
[postback]
unknown_subid = "accept"
[rates]
source = "none"
"""
RECEIVER = "postback:application"
# The same, with limits that can be changed.
LIMITED_RECEIVER = "callables:application"
# A sender that is not let run for so long loses its kept connection while a worker stops.
LONG_STALL_SECONDS = 10.0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the receiver's config file."""
    (tmp_path / "config.ini.php").write_text(CONFIG)
    return tmp_path


def subids_in(directory: Path) -> list[str]:
    """Read the subid of every conversion, as another program would."""
    with closing(sqlite3.connect(directory / "postback.db", timeout=PATIENCE_SECONDS)) as db:
        return [subid for (subid,) in db.execute("SELECT subid FROM conversions_view")]


def target_of(subid: str) -> str:
    return f"/{KEY}/postback?subid={subid}&status=sale&payout=1.50"


def alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


class Sender(threading.Thread):
    """Sends postbacks over kept connections, and notes what was acknowledged."""

    def __init__(self, port: int, name: str) -> None:
        """Take where to send to, and the beginning of the subids."""
        super().__init__(name=name, daemon=True)
        self.port = port
        self.acknowledged: list[str] = []
        self.broken: list[str] = []
        self.refused: list[str] = []
        self.is_stopping = threading.Event()

    def run(self) -> None:
        """Send until told to stop."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        number = 0
        while not self.is_stopping.is_set():
            number += 1
            subid = f"{self.name}-{number}"
            try:
                connection.request("GET", target_of(subid))
                with connection.getresponse() as answer:
                    answer.read()
                    (self.acknowledged if answer.status == 200 else self.refused).append(subid)
            except (OSError, http.client.HTTPException):
                self.broken.append(subid)
                connection.close()
                time.sleep(0.01)
        connection.close()


class Load:
    """Several senders together."""

    def __init__(self, port: int, count: int) -> None:
        """Start them."""
        self.senders = [Sender(port, f"s{number}") for number in range(count)]
        for sender in self.senders:
            sender.start()

    def wait_for(self, count: int) -> None:
        """Wait until so many postbacks more were acknowledged."""
        wanted = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= wanted, f"{wanted} acknowledgements")

    def stop(self) -> None:
        """Let them finish."""
        for sender in self.senders:
            sender.is_stopping.set()
        for sender in self.senders:
            sender.join(PATIENCE_SECONDS)

    @property
    def acknowledged(self) -> list[str]:
        """All that was answered 200."""
        return [subid for sender in self.senders for subid in sender.acknowledged]

    @property
    def broken(self) -> list[str]:
        """All that got no answer."""
        return [subid for sender in self.senders for subid in sender.broken]

    @property
    def refused(self) -> list[str]:
        """All that got another answer."""
        return [subid for sender in self.senders for subid in sender.refused]


@contextmanager
def loaded(port: int, count: int = 8) -> Iterator[Load]:
    """Put a server under load for a while."""
    load = Load(port, count)
    try:
        yield load
    finally:
        load.stop()


# --- Every acknowledged postback counts, once ------------------------------------------------


def test_rows_are_what_was_acknowledged(directory: Path) -> None:
    with serving(directory, RECEIVER) as server:
        with loaded(server.port, 16) as load:
            load.wait_for(600)
        # One thread does it all: no writer's beside the loop's.
        assert len(os.listdir(f"/proc/{server.worker_pids()[0]}/task")) == 1

    assert (load.broken, load.refused) == ([], [])
    assert sorted(subids_in(directory)) == sorted(load.acknowledged)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_acknowledged_postback_dies_with_its_worker(directory: Path, workers: str) -> None:
    with serving(directory, RECEIVER, "--workers", workers) as server, loaded(server.port) as load:
        for _ in range(3):
            load.wait_for(50)
            victim = server.worker_pids()[-1]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda gone=victim: not alive(gone), "its end")  # type: ignore[misc]
        load.wait_for(50)

    kept = subids_in(directory)
    assert set(load.acknowledged) <= set(kept)
    assert len(kept) == len(set(kept))
    assert load.refused == []
    # What was cut off may have been kept or not; nothing else is there.
    assert set(kept) <= set(load.acknowledged) | set(load.broken)


def test_a_sender_that_hangs_up_is_counted_nevertheless(directory: Path) -> None:
    with serving(directory, RECEIVER) as server:
        assert server.get(target_of("first")).status == 200
        for number in range(20):
            with server.connect() as line:
                # Closing resets the connection at once.
                line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                request = f"GET {target_of(f'c{number}')} HTTP/1.1\r\nHost: h\r\n\r\n"
                line.send(request.encode() + request.replace("=c", "=d").encode())

        wait_until(lambda: len(subids_in(directory)) == 41, "the postbacks", server.read_log)
        wait_until(lambda: open_connections(server) == 0, "their connections to be closed")


def test_all_that_was_pipelined_before_a_hang_up_counts(directory: Path) -> None:
    requests = "".join(f"GET {target_of(f'c{n}')} HTTP/1.1\r\nHost: h\r\n\r\n" for n in range(1500))
    # More than one read of the worker.
    assert len(requests) > 100_000
    with serving(directory, RECEIVER) as server:
        assert server.get(target_of("first")).status == 200
        with server.connect() as line:
            line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.send(requests.encode())
            # What has not reached the other kernel by now dies with the connection.
            wait_until(lambda: unsent_bytes(line.sock) == 0, "the requests to arrive")

        wait_until(lambda: len(subids_in(directory)) == 1501, "the postbacks", server.read_log)
        wait_until(lambda: open_connections(server) == 0, "the connection to be closed")


def open_connections(server: WorkerServer) -> int:
    """Count the connections that the worker holds."""
    port = f":{server.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9] for line in lines if line.split()[1].endswith(port)}
    links = []
    for link in Path(f"/proc/{server.worker_pids()[0]}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(os.readlink(link))
    held = [link for link in links if link.removeprefix("socket:[").removesuffix("]") in inodes]
    # The listening socket is one of them.
    return len(held) - 1


def test_a_database_that_fails_is_told_and_worked_around(directory: Path) -> None:
    with serving(directory, RECEIVER) as server, server.connect() as line:
        assert line.get(target_of("c1")).status == 200
        (directory / "postback.db").rename(directory / "elsewhere.db")
        # SQLite would commit into the moved file; its row is not acknowledged.
        refused = line.get(target_of("c2"))
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert refused.keeps_alive
        (directory / "elsewhere.db").rename(directory / "postback.db")

        again = line.get(target_of("c2"))
        assert (again.status, again.body) == (200, b"Success")
    assert sorted(set(subids_in(directory))) == ["c1", "c2"]


def test_a_body_too_long_is_answered_413(directory: Path) -> None:
    head = f"POST /{KEY}/postback?subid=c1 HTTP/1.1\r\nHost: h\r\n".encode()
    form = b"Content-Type: application/x-www-form-urlencoded\r\n"
    with serving(directory, RECEIVER) as server:
        for rest in (
            b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000,
            b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n%s\r\n" % (b"x" * 0x8000) * 90,
        ):
            with server.connect() as line:
                line.send(head + form + rest)
                reply = line.read()
                assert (reply.status, reply.keeps_alive) == (413, False)
        with server.connect() as line:
            line.send(head + form + b"Content-Length: 65536\r\n\r\n" + b"return=" + b"y" * 65529)
            assert line.read().body == b"y" * 65529


def test_housekeeping_goes_on_while_nothing_comes(directory: Path) -> None:
    (directory / "config.ini.php").write_text(CONFIG.replace("accept", "park"))
    with serving(directory, RECEIVER) as server:
        assert server.get(target_of("c1")).headers["x-postback-result"] == "parked"
        with closing(sqlite3.connect(directory / "postback.db", timeout=20)) as db, db:
            db.execute("INSERT INTO clicks (subid, created_at) VALUES ('c1', '2026-01-01T00:00Z')")

        wait_until(lambda: subids_in(directory) == ["c1"], "what was parked")


# --- Stops and reloads -----------------------------------------------------------------------


def test_a_graceful_stop_finishes_what_was_begun(tmp_path: Path) -> None:
    with serving(tmp_path, "callables:echo", STOP_IDLE_SECONDS=4.0) as server:
        with server.connect() as idle, server.connect() as kept, server.connect() as amid:
            idle.get()
            kept.get()
            amid.send(b"POST /amid HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab")
            assert server.get().status == 200
            server.tell(signal.SIGTERM)
            wait_until(lambda: "Handling signal: term" in server.read_log(), "the signal")
            last = kept.get("/late")
            amid.send(b"cde")
            finished = amid.read()

            assert (last.status, last.keeps_alive) == (200, False)
            assert (finished.json()["body"], finished.keeps_alive) == ("abcde", False)
            assert idle.is_closed()
            assert kept.is_closed()
            assert amid.is_closed()
        assert server.process.wait(PATIENCE_SECONDS) == 0
        assert "SIGKILL" not in server.read_log()


def test_a_graceful_stop_ends_in_time(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "callables:echo", "--graceful-timeout", "2") as server,
        server.connect() as amid,
    ):
        amid.send(b"POST /amid HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab")
        assert server.get().status == 200
        server.tell(signal.SIGTERM)

        assert amid.is_closed()
        assert server.process.wait(PATIENCE_SECONDS) == 0
    assert "SIGKILL" not in server.read_log()


def test_a_graceful_stop_waits_for_the_commit(tmp_path: Path) -> None:
    with serving(tmp_path, "callables:held") as server, server.connect() as line:
        line.send(b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_until((tmp_path / "called").exists, "the call")
        server.tell(signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in server.read_log(), "the signal")
        (tmp_path / "go").touch()

        assert line.read().body == b"/held"
        assert server.process.wait(PATIENCE_SECONDS) == 0


def test_a_quick_stop_acknowledges_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, "callables:held") as server, server.connect() as line:
        line.send(b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n")
        wait_until((tmp_path / "called").exists, "the call")
        began = time.monotonic()
        server.tell(signal.SIGQUIT)

        assert line.is_closed()
        assert server.process.wait(PATIENCE_SECONDS) == 0
        # A graceful one would wait for 30 seconds.
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_loses_no_request(directory: Path, workers: str) -> None:
    with (
        serving(
            *(directory, LIMITED_RECEIVER, "--workers", workers),
            STOP_IDLE_SECONDS=LONG_STALL_SECONDS,
        ) as server,
        loaded(server.port) as load,
    ):
        for _ in range(2):
            load.wait_for(50)
            old = server.worker_pids()
            server.tell(signal.SIGHUP)
            wait_until(lambda gone=old: not any(map(alive, gone)), "new workers")  # type: ignore[misc]
        load.wait_for(50)

    assert (load.broken, load.refused) == ([], [])
    assert sorted(subids_in(directory)) == sorted(load.acknowledged)
    assert "Traceback" not in server.read_log()


def test_a_worker_is_replaced_after_its_requests(directory: Path) -> None:
    with serving(
        *(directory, LIMITED_RECEIVER, "--max-requests", "60"),
        STOP_IDLE_SECONDS=LONG_STALL_SECONDS,
    ) as server:
        first = server.worker_pids()
        with loaded(server.port, 4) as load:
            load.wait_for(300)
        assert server.worker_pids() != first

    assert (load.broken, load.refused) == ([], [])
    assert sorted(subids_in(directory)) == sorted(load.acknowledged)


def test_a_worker_without_a_master_leaves(tmp_path: Path) -> None:
    with serving(tmp_path, "callables:echo") as server:
        (worker,) = server.worker_pids()
        server.process.kill()

        wait_until(lambda: not alive(worker), "the worker's end")
    assert "Parent changed, shutting down" in server.read_log()


def test_a_slow_batch_is_no_reason_to_be_killed(tmp_path: Path) -> None:
    # Longer than the limit and the second between two looks of the arbiter. Preloaded: importing
    # the callable is no part of it.
    options = ("--timeout", "2", "--preload")
    with serving(tmp_path, "callables:odd", *options) as server, server.connect() as line:
        line.send(b"GET /slow?0.1 HTTP/1.1\r\nHost: h\r\n\r\n" * 32)

        assert [line.read().body for _ in range(32)] == [b"slow"] * 32
    assert "WORKER TIMEOUT" not in server.read_log()


# --- Many, and more than many ----------------------------------------------------------------


FULL = ("--worker-connections", "4")


def test_more_connections_than_allowed_wait_their_turn(tmp_path: Path) -> None:
    with serving(tmp_path, "callables:echo", *FULL, QUIET_SECONDS=1000) as server:
        lines = [server.connect() for _ in range(4)]
        for line in lines[:3]:
            line.send(b"GET / HTTP/1.1\r\nHost: h\r\n")
        with server.connect() as fifth:
            fifth.send(b"GET /fifth HTTP/1.1\r\nHost: h\r\n\r\n")
            fifth.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                fifth.read()
            fifth.sock.settimeout(PATIENCE_SECONDS)
            # A full server keeps nobody.
            assert not lines[3].get("/fourth").keeps_alive
            assert fifth.read().json()["PATH_INFO"] == "/fifth"
        assert server.get().status == 200


def test_when_all_connections_are_taken_the_longest_silent_goes_first(tmp_path: Path) -> None:
    with serving(tmp_path, "callables:odd", *FULL, QUIET_SECONDS=0) as server:
        deaf, begun, idle, silent = (server.connect(receive_buffer=4096) for _ in range(4))
        deaf.send(b"GET /big?9000000 HTTP/1.1\r\nHost: h\r\n\r\n")
        begun.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n")
        assert idle.get("/first").keeps_alive

        # Each is served at once, and takes the place of one.
        assert server.connect().get("/5", "Connection: close").body == b"/5"
        assert silent.is_closed()
        sixth = server.connect()
        assert sixth.get("/6").body == b"/6"
        seventh = server.connect()
        assert seventh.get("/7").body == b"/7"
        assert idle.is_closed()
        begun.send(b"x")
        # It has been idle for less long than the seventh, then.
        assert sixth.get("/again").body == b"/again"
        assert server.connect().get("/8").body == b"/8"
        assert seventh.is_closed()
        assert server.connect().get("/9").body == b"/9"
        assert sixth.is_closed()
        begun.send(b"y")
        assert begun.read().body == b"/"


def test_half_a_request_that_has_to_go_is_told_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, "callables:echo", *FULL, QUIET_SECONDS=0) as server:
        lines = [server.connect() for _ in range(4)]
        for line in lines:
            line.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nx")
        # The last one's byte has been read once this is answered.
        assert server.get().status == 200

        reply = lines[0].read()
        assert (reply.status, reply.headers["retry-after"], reply.keeps_alive) == (503, "5", False)
        assert lines[0].is_closed()
        assert "all 4 connections are taken" in server.read_log()


TAKING = {
    "silent": b"",
    "slow heads": b"GET / HTTP/1.1\r\nHost: h\r\nX: ",
    "slow bodies": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nx",
    "kept": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "deaf": b"GET /big?2000000 HTTP/1.1\r\nHost: h\r\n\r\n",
}


@pytest.mark.parametrize("how", TAKING)
def test_whoever_takes_all_connections_keeps_no_honest_sender_out(tmp_path: Path, how: str) -> None:
    limits = dict.fromkeys(("REQUEST_LIMIT_SECONDS", "SEND_LIMIT_SECONDS"), 1000.0)
    options = ("--worker-connections", "40", "--keep-alive", "1000")
    with serving(tmp_path, "callables:odd", *options, **limits) as server:
        for _ in range(60):
            server.connect(receive_buffer=4096).send(TAKING[how])
        honest = [server.connect() for _ in range(100)]
        for line in honest:
            line.send(b"GET /honest HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")

        assert [line.read().body for line in honest] == [b"/honest"] * 100
    # Told once a minute, and not for each.
    assert server.read_log().count("connections are taken") <= 1


def test_whoever_sends_a_byte_now_and_then_is_no_newcomer(tmp_path: Path) -> None:
    options = ("--worker-connections", "10")
    with serving(tmp_path, "callables:odd", *options, REQUEST_LIMIT_SECONDS=1000.0) as server:
        slow = [server.connect() for _ in range(10)]
        is_over = threading.Event()
        dribbling = threading.Thread(target=dribble, args=(slow, is_over))
        dribbling.start()
        try:
            assert server.get("/honest").body == b"/honest"
        finally:
            is_over.set()
            dribbling.join(PATIENCE_SECONDS)


def dribble(lines: list[Line], is_over: threading.Event) -> None:
    """Send a head without end, a byte of it on each connection, again and again."""
    for line in lines:
        line.send(b"GET / HTTP/1.1\r\nX: ")
    while not is_over.wait(QUIET_SECONDS / 10):
        for line in lines:
            with suppress(OSError):
                line.send(b"x")


def test_a_thousand_idle_connections_cost_little(tmp_path: Path) -> None:
    # An ordinary user begins with 1,024, this test's own connections among them.
    allow_files(2000)
    with serving(tmp_path, "callables:echo") as server:
        server.get()
        (worker,) = server.worker_pids()
        before = memory_kib(server)
        lines = [server.connect() for _ in range(1000)]
        # All have been accepted once the last was served.
        assert all(line.get().status == 200 for line in (*lines[::100], lines[-1]))
        ticks = cpu_ticks(worker)
        time.sleep(1)
        assert cpu_ticks(worker) - ticks <= 10
        assert memory_kib(server) - before < 8 * 1024


def cpu_ticks(pid: int) -> int:
    """Return the hundredths of seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_worker_that_cannot_open_more_files_goes_on(tmp_path: Path) -> None:
    # The limit is raised as far as the hard one lets it.
    script = tmp_path / "few.py"
    script.write_text(
        "import resource\nfrom postbackd.server.gunicorn_conf import *\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 60))\n"
    )
    with serving(tmp_path, "callables:echo", "--config", "few.py") as server:
        lines = [server.connect() for _ in range(100)]
        wait_until(lambda: "no connection can be accepted" in server.read_log(), "the limit")
        assert lines[20].get().status == 200
        time.sleep(3 * TICK_SECONDS)
        for line in lines:
            line.sock.close()

        assert server.get().status == 200
    # Once, and not with every tick.
    assert server.read_log().count("no connection can be accepted") == 1


def test_ten_times_too_many_senders_are_served_in_turn(tmp_path: Path) -> None:
    # 2 ms each: 400 senders at once are 0.8 seconds of work.
    limits = ("--worker-connections", "50")
    with serving(tmp_path, "callables:odd", *limits) as server:
        server.get()
        before = memory_kib(server)
        began = time.monotonic()
        lines = [server.connect() for _ in range(400)]
        for line in lines:
            line.send(b"GET /slow?0.002 HTTP/1.1\r\nHost: h\r\n\r\n")

        assert all(line.read().body == b"slow" for line in lines)
        assert time.monotonic() - began < PATIENCE_SECONDS
        assert memory_kib(server) - before < 8 * 1024


def test_garbage_of_any_kind_does_not_stop_it(tmp_path: Path) -> None:
    # Seeded: what fails today fails tomorrow.
    dice = random.Random(20261122)  # noqa: S311
    pieces = [
        *(
            b"GET / HTTP/1.1\r\nHost: h\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\n",
            b"Content-Length: 5\r\n",
            b"\r\n",
            b"\n",
        ),
        *(b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"0\r\n", b"\0\xff", b"hello"),
        *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"x" * 9000, b": ", b"GET "),
    ]
    with serving(tmp_path, "callables:echo") as server:
        for _ in range(200):
            with server.connect() as line:
                for _ in range(dice.randrange(1, 8)):
                    try:
                        line.send(dice.choice(pieces))
                    except OSError:
                        break
                if dice.random() < 0.3:
                    line.sock.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )

        assert server.get().status == 200
        wait_until(lambda: open_connections(server) == 0, "all connections to be closed")
        assert "Traceback" not in server.read_log()
        assert len(server.worker_pids()) == 1
