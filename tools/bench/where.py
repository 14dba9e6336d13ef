"""`python -m tools.bench.where`: the time of each part of a recorded postback, without the server.

Batches of new sales go through `Receiver.answer_all`, each part timed by itself. The figure is the
first decile: the time while nothing else uses the processor.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import postback
import storage
from postbackd.db import shelf
from postbackd.db.sqlite import connection
from postbackd.intake import booking
from tools.bench.__main__ import CONFIG
from tools.bench.build import build_database, make_ready
from tools.bench.requests import make_environ

# Each part reads the clock twice; the total is measured in batches without that.
PARTS: dict[str, tuple[Any, str]] = {
    "read": (postback, "_read"),
    "… of it the query": (postback, "read_postback"),
    "judge": (booking, "judge"),
    "read the clicks of the batch": (shelf.Shelf, "take"),
    "judge and book, in memory": (booking, "record"),
    "write the rows": (storage.Storage, "_write"),
    "answer": (postback, "_finish"),
}


def main() -> int:
    """Take the times and print them."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.where", description=__doc__)
    parser.add_argument("--batch", type=int, default=16, help="postbacks in a commit")
    parser.add_argument("--batches", type=int, default=400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        directory = Path(scratch)
        (directory / "config.ini.php").write_text(CONFIG)
        build_database(directory / "postback.db", 0)
        make_ready(directory / "postback.db", 3 * args.batch * args.batches)
        receiver = postback.Receiver(directory / "config.ini.php")
        clock = _Clock()
        answer_all = clock.time("whole", receiver.answer_all)
        for number in range(args.batches):
            answer_all(_make_batch(number, args.batch))
        whole = clock.first_decile("whole") / args.batch
        _time_parts(clock)
        for number in range(args.batches, 2 * args.batches):
            receiver.answer_all(_make_batch(number, args.batch))
        receiver.close()
    print("| part | µs a postback |\n|---|---|")
    print(f"| the whole, its share of the commit and the sync included | {whole:.1f} |")
    for name, seconds in clock.taken.items():
        # What is done for each postback, for a batch, or for some of a batch at once.
        if len(seconds) >= args.batches and name != "whole":
            times = len(seconds) / args.batches / args.batch
            print(f"| {name} | {clock.first_decile(name) * times:.1f} |")
    return 0


class _Clock:
    """Times calls by name."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a callable."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.taken[name].append(time.perf_counter() - began)

        return timed

    def first_decile(self, name: str) -> float:
        """Return what the quicker calls took, in microseconds."""
        return statistics.quantiles(self.taken[name], n=10)[0] * 1e6


class _TimedConnection:
    """A connection whose statements are timed by how they begin."""

    def __init__(self, db: Any, clock: _Clock) -> None:
        self._db = db
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, *values: Any) -> Any:
        return self._clock.time(_name(sql), self._db.execute)(sql, *values)

    def executemany(self, sql: str, rows: Any) -> Any:
        return self._clock.time(_name(sql), self._db.executemany)(sql, rows)


@cache
def _name(sql: str) -> str:
    table = re.search(r"(?:\bINTO|.*\bFROM)\s+(\w+)", sql, re.DOTALL)
    return f"SQL: {sql.split(maxsplit=1)[0]}{'' if table is None else ' ' + table[1]}"


def _time_parts(clock: _Clock) -> None:
    for name, (owner, function) in PARTS.items():
        setattr(owner, function, clock.time(name, getattr(owner, function)))
    transaction = connection.Database.transaction

    def timed_transaction(self: connection.Database) -> Any:
        if not isinstance(self.db, _TimedConnection):
            self.db = _TimedConnection(self.db, clock)  # type: ignore[assignment]
        return transaction(self)

    connection.Database.transaction = timed_transaction  # type: ignore[method-assign]


def _make_batch(number: int, size: int) -> Sequence[dict[str, Any]]:
    return [make_environ(n) for n in range(number * size, (number + 1) * size)]


if __name__ == "__main__":
    raise SystemExit(main())
