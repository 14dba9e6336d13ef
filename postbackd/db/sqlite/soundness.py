"""Checks the whole database after damage was found: nothing is accepted until it has passed."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from postbackd.db.sqlite import integrity, overwriting
from postbackd.db.sqlite.connection import (
    DatabaseError,
    DoubtedError,
    connect_to_file,
    describe_damage,
    describe_flaws,
    locked,
    name_beside,
)

# A change of these shows that the file was repaired or replaced.
_State = tuple[tuple[int, ...], ...]


class Recheck:
    """One process's check, in a thread that only reads: requests are answered 503 meanwhile."""

    def __init__(self) -> None:
        """Begin without one."""
        self._thread: threading.Thread | None = None
        self._doubt: tuple[overwriting.FileId, int] | None = None
        self._state: _State = ()
        self._flaws: list[str] = []

    def settle(self, path: Path) -> None:
        """Trust the file once a check has passed; raises DatabaseError until then."""
        doubt = _read_doubt(path)
        if doubt is None:
            return
        if not self._is_running() and self._is_to_begin(path, doubt):
            self._begin(path, doubt)
        if self._is_running():
            raise DoubtedError(describe_damage(doubt, path))
        if self._flaws:
            raise DatabaseError(describe_flaws(doubt, path, self._flaws))
        _forget_doubt(path, doubt.doubts)

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _is_to_begin(self, path: Path, doubt: overwriting.Record) -> bool:
        # A check counts for the damage that it was started for, and for no other.
        is_new = self._doubt != (doubt.file, doubt.doubts)
        return is_new or (bool(self._flaws) and self._state != _read_state(path))

    def _begin(self, path: Path, doubt: overwriting.Record) -> None:
        def check() -> None:
            self._flaws = find_flaws(path, is_thorough=doubt.doubts > 1)

        self._doubt = (doubt.file, doubt.doubts)
        self._state = _read_state(path)
        self._thread = threading.Thread(target=check, name="recheck", daemon=True)
        self._thread.start()


def settle_now(path: Path) -> None:
    """Check a damaged file, however long it takes; raises DatabaseError."""
    doubt = _read_doubt(path)
    if doubt is None:
        return
    if flaws := find_flaws(path, is_thorough=doubt.doubts > 1):
        raise DatabaseError(describe_flaws(doubt, path, flaws))
    _forget_doubt(path, doubt.doubts)


def describe_doubt(path: Path) -> str:
    """Return the damage that is still to be checked, if this user may read it; empty: none."""
    try:
        with open(name_beside(path, "-lock"), "rb") as lock:
            record = overwriting.read_record(lock.fileno(), path)
    except OSError:
        return ""
    return describe_damage(record, path) if record and record.damage else ""


def find_flaws(path: Path, *, is_thorough: bool) -> list[str]:
    """Read a whole database, and return its flaws.

    First the structure of the pages; if thorough, also every index against its table.
    """
    try:
        with closing(connect_to_file(path, "mode=ro")) as db:
            return integrity.find_all_damage(db) if is_thorough else integrity.find_broken_pages(db)
    except (sqlite3.Error, DatabaseError) as error:
        return [str(error)]


def _read_doubt(path: Path) -> overwriting.Record | None:
    with locked(path) as lock:
        record = overwriting.read_record(lock, path)
        return record if record and record.damage else None


def _forget_doubt(path: Path, doubts: int) -> None:
    with locked(path) as lock:
        record = overwriting.read_record(lock, path)
        # Not if damage was found again meanwhile.
        if record and record.doubts == doubts:
            overwriting.save_verdict(lock, record.trust())


def _read_state(path: Path) -> _State:
    states = (each.stat() for each in (path, name_beside(path, "-wal")) if each.exists())
    return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)
