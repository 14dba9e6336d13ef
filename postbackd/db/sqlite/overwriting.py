"""Detects writes to the database file by anything but SQLite: `cp` over it, `dd`, `truncate`.

While the WAL is in use only checkpoints write to the file, and each is announced in the wal-index
before its first write. If the file's size or time has changed and the index shows no checkpoint,
something else has written. If a checkpoint has begun, the pages that it cannot have written (no
frame of the WAL holds them) must be unchanged: the hashes of some of them are stored.

The Record is stored in the lock file beside the database and written under the lock: all our
processes use the same, and a starting one continues with the last one's.
"""

import hashlib
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import msgspec

from postbackd.db.sqlite.lock_holders import find_descriptor
from postbackd.db.sqlite.wal_index import (
    WAL_HEADER_BYTES,
    Index,
    has_last_frame,
    list_pages,
    read_generation,
    read_index,
)

# Pages whose hashes are stored: some from all over the file, which differ in another database, and
# the last ones, which an older copy does not have.
SPREAD_PAGES = 24
LAST_PAGES = 8

# Larger than any record.
RECORD_BYTES = 4096

OVERWRITTEN = "overwritten"
LOG_OVERWRITTEN = "log overwritten"
LOG_LEFT = "log left"
LOG_OF_ANOTHER = "log of another"
# SQLite has found damage in the file: the record has its words.
DAMAGED = "damaged"

_SENTENCES = {
    OVERWRITTEN: (
        "database {path!r} was overwritten while in use (`cp`, `rsync --inplace`, `dd`, `truncate`,"
        " or a `touch`); its former content is lost, except for the commits in {log!r}. Nothing is"
        " accepted until `postback restore FILE` has put a copy in its place (the service may run,"
        " the present file is kept). FILE may be the database itself, to go on with its new content"
    ),
    LOG_OVERWRITTEN: (
        "{log!r}, the write-ahead log of database {path!r}, was overwritten or truncated while in"
        " use; commits since the last checkpoint are lost. Nothing is accepted until"
        " `postback restore FILE` has put a copy in the database's place (FILE may be the database"
        " itself, to go on with the rest)"
    ),
    LOG_LEFT: (
        "database {path!r} is missing or empty, and its write-ahead log {log!r} is not: put the"
        " database back, or a copy in its place with `postback restore FILE`; for a new database,"
        " move the write-ahead log to another directory"
    ),
    LOG_OF_ANOTHER: (
        "database {path!r} was replaced, and the write-ahead log {log!r} belongs to the former"
        " file: a running service removes it within seconds, try again; else move it to another"
        " directory, or put the copy in place with `postback restore FILE`"
    ),
}

FileId = tuple[int, int]
_Sight = tuple[str, bool, int, int, int, int]


@dataclass(frozen=True)
class Record:
    """The state of a database's files at the last check."""

    # The lock file's own id: a copied lock file says nothing about the files beside it.
    lock: FileId
    file: FileId
    bytes: int = -1
    changed_ns: int = -1
    # Of the wal-index.
    generation: str = ""
    changes: int = -1
    backfilled: int = -1
    attempted: int = -1
    # Hashes of pages of the file at the time when the WAL was begun.
    hashes: dict[int, str] = field(default_factory=dict)
    # The verdict, once there is one: it stays until a restore.
    verdict: str = ""
    # How often damage was found and the last of it, with SQLite's number; empty once checked.
    doubts: int = 0
    damage: str = ""
    damage_code: int = 0

    def doubt(self, damage: str, code: int = 0) -> Self:
        """Return the record of a file in which damage was found, and which must be checked."""
        return replace(
            self, verdict="", doubts=self.doubts + 1, damage=damage[:200], damage_code=code
        )

    def trust(self) -> Self:
        """Return the record of a file that has been checked since."""
        return replace(self, damage="", damage_code=0)

    @property
    def seen(self) -> "_Sight":
        """Return the values that two checks compare."""
        return (
            *(self.generation, self.changes > 0, self.backfilled, self.attempted),
            *(self.bytes, self.changed_ns),
        )


def read_record(lock: int, path: Path) -> Record | None:
    """Read the record of the database at a path from its lock file; None if there is none."""
    record = _decode(lock)
    with suppress(FileNotFoundError):
        return record if record and record.file == _find_id(path) else None
    return None


def _decode(lock: int) -> Record | None:
    """Read the record from a lock file, whichever file it is about."""
    try:
        record = msgspec.json.decode(os.pread(lock, RECORD_BYTES, 0), type=Record)
    except msgspec.MsgspecError:
        # Empty, or written by another version of this program.
        return None
    return record if record.lock == _identify(os.fstat(lock)) else None


def write_record(lock: int, record: Record) -> None:
    """Write a record to the lock file; the caller has the lock."""
    os.pwrite(lock, msgspec.json.encode(record).ljust(RECORD_BYTES), 0)


def save_verdict(lock: int, record: Record) -> None:
    """Write and sync a record that must survive a power cut."""
    # If that fails, this process still knows the verdict.
    with suppress(OSError):
        write_record(lock, record)
        os.fsync(lock)


def new_record(lock: int, path: Path) -> Record:
    """Return a first record of the file at a path."""
    return Record(_identify(os.fstat(lock)), _find_id(path))


def describe_verdict(verdict: str, path: Path, log: Path) -> str:
    """Return the sentence of a verdict, with the remedy."""
    return _SENTENCES[verdict].format(path=str(path), log=str(log))


def judge_unopened(lock: int | None, path: Path, log: Path) -> str:
    """Check the files before SQLite opens them: a verdict, or an empty text.

    Without a lock file nothing is known of them. SQLite removes the WAL of an empty file, and
    replays a WAL into whatever file is beside it.
    """
    record = None if lock is None else read_record(lock, path)
    if record is not None and record.verdict and os.path.lexists(log):
        # If the WAL was removed by hand, the file is to be used as it is.
        return record.verdict
    header = _read_start(log)
    if not header:
        return ""
    if not (path.exists() and path.stat().st_size):
        return LOG_LEFT
    former = None if record or lock is None else _decode(lock)
    is_of_another = former is not None and former.generation == read_generation(header).hex()
    return LOG_OF_ANOTHER if is_of_another else ""


def _read_start(log: Path) -> bytes:
    """Read the header of a WAL; empty if there is none."""
    try:
        with open(log, "rb") as file:
            header = file.read(WAL_HEADER_BYTES)
    except FileNotFoundError:
        return b""
    return header if len(header) == WAL_HEADER_BYTES else b""


class Watch:
    """Checks an open database's files; each check is made under the lock."""

    def __init__(self, path: Path, lock: int, log: Path, index: Path) -> None:
        """Set the database's path, its open lock file, and the paths of WAL and wal-index.

        SQLite has them open: the database is in WAL mode and was read.
        """
        self._path = path
        # As text, since it is looked at twice with each commit.
        self._name = os.fspath(path)
        self._id = _find_id(path)
        self._lock = lock
        self._index = find_descriptor(index)
        self._file = find_descriptor(path)
        # Unlike the other two the WAL may be opened beside SQLite, which holds no locks on it.
        self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        # The lock file's content, and the values compared, at the last check.
        self._text = b""
        self._seen: _Sight | None = None
        self._last: tuple[Index, os.stat_result] | None = None

    def close(self) -> None:
        """Close the file opened here."""
        os.close(self._log)

    def judge(self) -> str:
        """Check the files; return a verdict, or an empty text."""
        index = self._read_index()
        if index is None:
            # Another program is committing: the next check will see the result.
            return ""
        state = os.stat(self._name)
        if _identify(state) != self._id:
            # The file was replaced: not to be judged here, nor written down.
            return ""
        text = os.pread(self._lock, RECORD_BYTES, 0)
        is_known = (text, _sight(index, state)) == (self._text, self._seen)
        verdict = ""
        if not (is_known and self._has_frames(index)):
            verdict = self._look_closely(index, state)
            if verdict:
                # The next check must not find the values unchanged.
                self._seen = None
            self._text = os.pread(self._lock, RECORD_BYTES, 0)
        self._last = (index, state)
        return verdict

    def _read_index(self) -> Index | None:
        return None if self._index is None else read_index(self._index)

    def _look_closely(self, before: Index, state: os.stat_result) -> str:
        known = read_record(self._lock, self._path) or new_record(self._lock, self._path)
        if known.damage:
            return DAMAGED
        verdict = (
            known.verdict
            or self._compare_begun_afresh(before, state)
            or self._compare(known, before, state)
        )
        if verdict:
            if not known.verdict:
                save_verdict(self._lock, replace(known, verdict=verdict))
            return verdict
        record = self._build_record(known, before, state)
        # A full disk must not stop the service: the record that is there is still true.
        with suppress(OSError):
            if record != known:
                write_record(self._lock, record)
        self._seen = record.seen
        return ""

    def _compare_begun_afresh(self, index: Index, state: os.stat_result) -> str:
        """Compare with this process's last check, if the WAL was begun anew since."""
        if self._last is None or index.generation == self._last[0].generation:
            return ""
        last, then = self._last
        commits = index.changes - last.changes
        if not last.is_moved or index.attempted or commits != bool(index.frames):
            return ""
        # At the last check the whole WAL was in the file, and commits since are in the new WAL
        # only, unless a checkpoint has begun between reading the index and the file's state.
        if self._read_index() != index:
            return ""
        is_same = (state.st_size, state.st_mtime_ns) == (then.st_size, then.st_mtime_ns)
        return "" if is_same else OVERWRITTEN

    def _compare(self, known: Record, before: Index, state: os.stat_result) -> str:
        """Compare with the record."""
        hashes = self._hash(known.hashes, before.page_bytes)
        # Read after the file: a write seen there was announced in the index before.
        after = self._read_index()
        if after is None or known.generation == "":
            return ""
        if not self._is_log_whole():
            return LOG_OVERWRITTEN
        if before == after and before.is_moved and state.st_size < before.pages * before.page_bytes:
            return OVERWRITTEN
        if known.generation != after.generation.hex():
            # The WAL was begun anew, which happens only once all of it is in the file.
            return ""
        return self._compare_file(known, hashes, after, state)

    def _compare_file(
        self, known: Record, hashes: dict[int, str], after: Index, state: os.stat_result
    ) -> str:
        """Compare the file with the record while one WAL has been in use."""
        has_begun = (
            (after.backfilled, after.attempted) != (known.backfilled, known.attempted)
            or after.is_under_way
            or not self._is_of_same_index(known, after)
        )
        is_same = (state.st_size, state.st_mtime_ns) == (known.bytes, known.changed_ns)
        if is_same and not has_begun:
            return ""
        is_sound = has_begun and self._are_untouched(known.hashes, hashes, after)
        return "" if is_sound else OVERWRITTEN

    def _is_of_same_index(self, known: Record, index: Index) -> bool:
        """Return whether the index was not rebuilt: a rebuilt one forgets what checkpoints did."""
        # An index in use is not rebuilt; that of an empty WAL has no generation.
        is_in_use = self._seen is not None or (not index.frames and any(index.generation))
        return is_in_use or 0 < known.changes <= index.changes

    def _is_log_whole(self) -> bool:
        while (index := self._read_index()) is not None:
            if self._has_frames(index):
                return True
            if index == self._read_index():
                return False
        return True

    def _has_frames(self, index: Index) -> bool:
        """Return whether the WAL has its last frame, and the one that was last before."""
        # After a commit the last frame is a new one: it says nothing of a file that was truncated.
        former = self._last[0] if self._last else index
        has_former = former.generation == index.generation and former.frames != index.frames
        return has_last_frame(self._log, index) and (
            not has_former or has_last_frame(self._log, former)
        )

    def _are_untouched(self, known: dict[int, str], found: dict[int, str], index: Index) -> bool:
        """Return whether the stored pages are unchanged, except those that the WAL holds."""
        changed = {page for page in known if found.get(page) != known[page]}
        # Pages after the end were cut off by a VACUUM.
        changed = {page for page in changed if page <= index.pages}
        held = self._find_held(index) if changed and found else None
        return held is None or changed <= held

    def _build_record(self, known: Record, before: Index, state: os.stat_result) -> Record:
        """Return the present record; the index was read before the file, as in `_compare`."""
        record = replace(
            known,
            bytes=state.st_size,
            changed_ns=state.st_mtime_ns,
            generation=before.generation.hex(),
            changes=before.changes,
            backfilled=before.backfilled,
            attempted=before.attempted,
        )
        hashes = known.hashes
        if record.generation != known.generation or not hashes:
            hashes = self._remember(before, state.st_size)
        # Pages that a VACUUM has cut off may come back with other content, and in no WAL.
        count = state.st_size // max(before.page_bytes, 1)
        return replace(
            record, hashes={page: found for page, found in hashes.items() if page <= count}
        )

    def _remember(self, index: Index, size: int) -> dict[int, str]:
        """Hash some pages of the file; `_are_untouched` leaves out those that the WAL holds."""
        if not index.page_bytes:
            return {}
        count = size // index.page_bytes
        spread = (1 + number * count // SPREAD_PAGES for number in range(SPREAD_PAGES))
        last = range(max(1, count - LAST_PAGES + 1), count + 1)
        return self._hash({*spread, *last}, index.page_bytes)

    def _find_held(self, index: Index) -> set[int] | None:
        """Find the pages that the WAL holds now; None if it was begun anew since."""
        now = self._read_index()
        if now is None:
            return None
        assert self._index is not None
        held = set(list_pages(self._index, now.frames))
        # The list is overwritten together with the WAL.
        after = self._read_index()
        return held if after and after.generation == index.generation else None

    def _hash(self, pages: Collection[int], page_bytes: int) -> dict[int, str]:
        """Hash pages of the file as it is, through a descriptor of SQLite's."""
        while page_bytes and self._file is not None:
            # Another thread may have closed the descriptor: its number may now be any file's.
            with suppress(OSError):
                hashes = {
                    page: _hash(os.pread(self._file, page_bytes, (page - 1) * page_bytes))
                    for page in pages
                }
                if os.path.samestat(os.fstat(self._file), os.stat(self._path)):
                    return hashes
            self._file = find_descriptor(self._path)
        return {}


def _hash(page: bytes) -> str:
    return hashlib.blake2b(page, digest_size=8).hexdigest()


def _sight(index: Index, state: os.stat_result) -> _Sight:
    return (
        *(index.generation.hex(), index.changes > 0, index.backfilled, index.attempted),
        *(state.st_size, state.st_mtime_ns),
    )


def _identify(state: os.stat_result) -> FileId:
    return (state.st_dev, state.st_ino)


def _find_id(path: Path) -> FileId:
    return _identify(os.stat(path))
