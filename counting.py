"""Clicks counted in a process of their own, while the report's adds up conversions.

A million clicks take longer than all the rest of a report, and most machines have a second core.
"""

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from clicks import read_zone
from database import connect_to_read
from reports import Asked, Group, Labels, count_clicks

# With fewer, starting the process takes longer than it spares.
WORTHWHILE_CLICKS = 200_000


@contextmanager
def counting(
    db: sqlite3.Connection, path: Path, asked: Asked
) -> Iterator[Callable[[], Counter[Group]]]:
    """Give what gives the count: begun beside where that is worth it, else counted when called."""
    process = _start(path, asked) if _is_worthwhile(db, asked) else None
    if process is None:
        yield lambda: count_clicks(db, asked)
        return

    def take_over() -> Counter[Group]:
        counts = _read_counts(process)
        return count_clicks(db, asked) if counts is None else counts

    with process:
        try:
            yield take_over
        finally:
            process.kill()


def _is_worthwhile(db: sqlite3.Connection, asked: Asked) -> bool:
    reads_all = asked.counts_clicks and asked.since is None and asked.until is None
    if not reads_all or len(os.sched_getaffinity(0)) < 2:
        return False
    last: int = db.execute("SELECT coalesce(max(id), 0) FROM clicks").fetchone()[0]
    return last >= WORTHWHILE_CLICKS


def _start(path: Path, asked: Asked) -> subprocess.Popen[bytes] | None:
    try:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the report, which ends this one.
            start_new_session=True,
        )
    except OSError:
        # No room for another process: the report has only lost a little time.
        return None
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(write_errand(path, asked))
        process.stdin.close()
    return process


def write_errand(path: Path, asked: Asked) -> bytes:
    """Say what the process is to count."""
    errand = {**asked._asdict(), "zone": str(asked.zone), "filters": dict(asked.filters)}
    return json.dumps([os.fsdecode(path), errand]).encode()


def read_errand(text: bytes) -> tuple[Path, Asked]:
    """Read the same again."""
    path, errand = json.loads(text)
    # Python writes an offset as `UTC+03:00`.
    zone = read_zone(errand["zone"].removeprefix("UTC") or "UTC")
    dimensions = tuple(errand["dimensions"])
    return Path(path), Asked(**{**errand, "zone": zone, "dimensions": dimensions})


def _read_counts(process: subprocess.Popen[bytes]) -> Counter[Group] | None:
    """Read what the process has counted; None where it broke off."""
    assert process.stdout is not None
    counted = process.stdout.read()
    if process.wait() != 0 or not counted:
        return None
    return Counter(
        {(Labels(*labels), *values): clicks for labels, *values, clicks in json.loads(counted)}
    )


def main() -> None:
    """Count what standard input asks for."""
    path, asked = read_errand(sys.stdin.buffer.read())
    with closing(connect_to_read(path)) as db:
        counts = count_clicks(db, asked)
    json.dump([[*group, clicks] for group, clicks in counts.items()], sys.stdout)


if __name__ == "__main__":
    main()
