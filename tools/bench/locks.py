"""`python -m tools.bench.locks`: waiting writers, with our lock file and with SQLite's own lock.

Each process writes one row a transaction, synced, as fast as it gets the lock. Ours is
`Database.transaction`; SQLite's busy handler is used by programs that do not know our lock file.
"""

import argparse
import multiprocessing
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage import open_database

Transaction = Callable[[Any], Any]


def main() -> int:
    """Run the waiting writers, and print their waiting times."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.locks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--processes", default="2,4,8", metavar="N,N")
    parser.add_argument("--rounds", type=int, default=2, help="how often each, in turn")
    args = parser.parse_args()
    print("| processes | who waits | transactions/s | p50 ms | p99 ms | p99.9 ms | longest ms |")
    print("|---|---|---|---|---|---|---|")
    for count in map(int, args.processes.split(",")):
        for _ in range(args.rounds):
            for name, transaction in WAYS.items():
                waits = _contend(transaction, count, args.seconds)
                print(_row(count, name, waits, args.seconds), flush=True)
    return 0


@contextmanager
def _wait_in_sqlite(database: Any) -> Iterator[None]:
    db = database.db
    db.execute("BEGIN IMMEDIATE")
    yield
    db.execute("COMMIT")


def _wait_for_the_lock_file(database: Any) -> Any:
    return database.transaction()


WAYS: dict[str, Transaction] = {
    "lock file": _wait_for_the_lock_file,
    "busy handler": _wait_in_sqlite,
}


def _contend(transaction: Transaction, count: int, seconds: float) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        path = Path(scratch) / "postback.db"
        open_database(path, "USD").close()
        begins_at = time.monotonic() + 1
        with multiprocessing.Pool(count) as pool:
            each = [(transaction, path, begins_at, begins_at + seconds, n) for n in range(count)]
            return sorted(wait for waits in pool.starmap(_write, each) for wait in waits)


def _write(
    transaction: Transaction, path: Path, begins_at: float, ends_at: float, number: int
) -> list[float]:
    """Write until the end; returns the duration of each transaction, in ms."""
    took: list[float] = []
    with open_database(path, "USD") as database:
        time.sleep(max(0.0, begins_at - time.monotonic()))
        while (begun := time.monotonic()) < ends_at:
            name = f"{number}-{len(took)}"
            try:
                with transaction(database):
                    database.db.execute("INSERT INTO offers (name) VALUES (?)", (name,))
            except sqlite3.OperationalError as error:
                print(f"process {number}: {error} after {time.monotonic() - begun:.1f} s")
            took.append((time.monotonic() - begun) * 1000)
    return took


def _row(count: int, name: str, waits: list[float], seconds: float) -> str:
    at = [f"{waits[int(len(waits) * part)]:.1f}" for part in (0.5, 0.99, 0.999)]
    cells = [str(count), name, f"{len(waits) / seconds:,.0f}", *at, f"{waits[-1]:.0f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
