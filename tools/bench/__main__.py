"""`python -m tools.bench`: hello world and the receiver under the same server and load, in turn."""

import argparse
import os
import platform
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from postbackd.server import gunicorn_conf
from tools.bench.build import build_database, make_ready
from tools.bench.generator import KEY, Load, run_bundled, run_load

CONFIG = f"""\
;<?php exit; ?>
[system]
postback_key = "{KEY}"
[rates]
source = "none"
"""

# Clicks without a conversion for each run: more than any run can answer.
FRESH_CLICKS_PER_SECOND = 20_000

# A base line that our own worker does not change: hello world under gunicorn's own threads.
STOCK = {"server": "gunicorn", "worker_class": "gthread", "options": ""}


class Figures(NamedTuple):
    """One run: the generator's figures, the server's CPU time, and the number of stored rows."""

    load: Load
    cpu_us: float
    kept: int | None = None


def main() -> int:
    """Build the databases, run, and print the table."""
    args = _read_arguments()
    with _choose_directory(args.directory) as directory:
        for line in _describe_machine(directory):
            print(line)
        for rows in args.rows:
            _measure_size(directory / f"rows-{rows}", rows, args)
    return 0


@contextmanager
def _choose_directory(name: str | None) -> Iterator[Path]:
    if name is not None:
        os.makedirs(name, exist_ok=True)
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        yield Path(scratch)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731 for argparse
    parser.add_argument("--rows", type=numbers, default=[0, 1_000_000], metavar="N,N")
    parser.add_argument("--senders", type=numbers, default=[1, 16, 64, 256], metavar="N,N")
    parser.add_argument("--seconds", type=int, default=8, help="length of a run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--worker-class", default=None, help="default: that of `serve`")
    parser.add_argument("--options", default="", help="further options for gunicorn, in one word")
    parser.add_argument(
        "--server",
        choices=["gunicorn", "granian"],
        default="gunicorn",
        help="granian: if installed",
    )
    parser.add_argument(
        "--directory", help="where databases are kept and used again; default: made anew each time"
    )
    parser.add_argument("--no-keep-alive", action="store_true", help="a connection each postback")
    parser.add_argument("--bundled", action="store_true", help="our generator even if wrk is here")
    return parser.parse_args()


def _describe_machine(scratch: Path) -> Iterator[str]:
    generator = "wrk" if shutil.which("wrk") else "the bundled generator"
    yield (
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version},"
        f" {os.cpu_count()} cores, a sync of 4 KiB takes {_time_sync(scratch):.2f} ms (median),"
        f" load by {generator}."
    )
    yield ""


def _time_sync(scratch: Path) -> float:
    """Time one sync of this disk, which every commit waits for, in ms."""
    times = []
    handle = os.open(scratch / "sync", os.O_WRONLY | os.O_CREAT)
    for _ in range(200):
        begun = time.perf_counter()
        os.write(handle, b"x" * 4096)
        os.fdatasync(handle)
        times.append(time.perf_counter() - begun)
    os.close(handle)
    return sorted(times)[100] * 1000


def _measure_size(directory: Path, rows: int, args: argparse.Namespace) -> None:
    fresh = FRESH_CLICKS_PER_SECOND * args.seconds * len(args.senders)
    database = directory / "postback.db"
    if not database.exists():
        directory.mkdir(exist_ok=True)
        (directory / "config.ini.php").write_text(CONFIG)
        build_database(database, rows)
    first = make_ready(database, fresh)
    before = database.stat().st_size
    kept = 0
    print(f"### {rows:,} clicks and conversions\n")
    print(_HEAD)
    stock = argparse.Namespace(**{**vars(args), **STOCK})
    for senders in args.senders:
        hello = _run("tools.bench.hello:application", directory, senders, 0, args)
        stock_hello = _run("tools.bench.hello:application", directory, senders, 0, stock)
        receiver = _run("postback:application", directory, senders, first, args)
        first += FRESH_CLICKS_PER_SECOND * args.seconds
        kept += receiver.kept or 0
        print(_row(senders, hello, stock_hello, receiver), flush=True)
    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    grown = database.stat().st_size - before
    print(f"\n{grown / max(kept, 1):,.0f} bytes on disk for each of {kept:,} postbacks.\n")


_HEAD = (
    "| senders | hello/s | gthread hello/s | receiver/s | of hello | of gthread hello | p50 ms |"
    " p99 ms | p99.9 ms | hello p99 ms | gthread hello p99 ms | CPU µs | hello CPU µs | 200s |"
    " rows |\n"
    f"|{'---|' * 15}"
)


def _row(senders: int, hello: Figures, stock_hello: Figures, receiver: Figures) -> str:
    load = receiver.load
    cells = [
        str(senders),
        f"{hello.load.per_second:,.0f}",
        f"{stock_hello.load.per_second:,.0f}",
        f"{load.per_second:,.0f}",
        f"{load.per_second / hello.load.per_second:.2f}",
        f"{load.per_second / stock_hello.load.per_second:.2f}",
        *(f"{latency:.1f}" for latency in (load.p50_ms, load.p99_ms, load.p999_ms)),
        f"{hello.load.p99_ms:.1f}",
        f"{stock_hello.load.p99_ms:.1f}",
        f"{receiver.cpu_us:.0f}",
        f"{hello.cpu_us:.0f}",
        f"{load.answers - load.refused:,}",
        f"{receiver.kept:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _run(
    application: str, directory: Path, senders: int, first: int, args: argparse.Namespace
) -> Figures:
    kept_before = _count_recorded(directory)
    with _serve(application, directory, args) as (port, pid):
        cpu_before = _cpu_seconds(pid)
        keeps_alive = not args.no_keep_alive
        if args.bundled:
            load = run_bundled(port, senders, args.seconds, first, keeps_alive=keeps_alive)
        else:
            load = run_load(port, senders, args.seconds, first, directory, keeps_alive=keeps_alive)
        cpu = _cpu_seconds(pid) - cpu_before
    kept = _count_recorded(directory) - kept_before
    # The last postback of each sender may be stored although its answer was not read.
    if (
        application.startswith("postback")
        and not 0 <= kept - (load.answers - load.refused) <= senders
    ):
        print(f"\n**{load.answers - load.refused} answers, but {kept} rows**\n")
    return Figures(load, cpu / max(load.answers, 1) * 1e6, kept)


def _count_recorded(directory: Path) -> int:
    with closing(sqlite3.connect(directory / "postback.db")) as db:
        row = db.execute("SELECT coalesce(max(id), 0) FROM conversions").fetchone()
        return int(row[0])


@contextmanager
def _serve(
    application: str, directory: Path, args: argparse.Namespace
) -> Iterator[tuple[int, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *_server_words(port, args), application]
    environment = {**os.environ, "POSTBACK_CONFIG": str(directory / "config.ini.php")}
    process = subprocess.Popen(command, env=environment)
    try:
        _wait_for(port)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _server_words(port: int, args: argparse.Namespace) -> list[str]:
    workers = ("--workers", str(args.workers))
    if args.server == "granian":
        # Its threads wait for the commit of their request, as those of gthread do.
        threads = ("--blocking-threads", str(gunicorn_conf.threads), "--backpressure", "1024")
        words = ["granian", "--interface", "wsgi", "--port", str(port), "--log-level", "warning"]
        return [*words, *workers, *threads, *args.options.split()]
    words = [
        "gunicorn",
        "--config",
        "python:postbackd.server.gunicorn_conf",
        "--bind",
        f"127.0.0.1:{port}",
    ]
    chosen = ("--worker-class", args.worker_class) if args.worker_class else ()
    return [*words, *workers, "--log-level", "warning", *chosen, *args.options.split()]


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                if connection.recv(1):
                    return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"no server came up on port {port}")


def _cpu_seconds(pid: int) -> float:
    """Add up the CPU time of a server's processes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = 0
    for process in (str(pid), *children):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(main())
