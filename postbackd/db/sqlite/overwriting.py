"""Was the database file written by anything but SQLite: by `cp` over it, `dd`, `truncate`?

While the log is in use only checkpoints write to the file, and each says so in the wal-index before
its first write. A file whose size or time has changed while the index says that no checkpoint has
begun was written by something else. Where one has begun, pages that it cannot have written (no
frame of the log holds them) must be as they were: some of them are remembered by their hashes.

What is known is kept in the lock file beside the database, by whoever holds the lock: all
processes of ours go by the same, and one that starts goes by what the last one knew.
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

# Pages that are remembered: some from all over the file, which are others in another database, and
# the last, which an older copy does not have.
SPREAD_PAGES = 24
LAST_PAGES = 8

# More than any record takes.
RECORD_BYTES = 4096

OVERWRITTEN = "overwritten"
LOG_OVERWRITTEN = "log overwritten"
LOG_LEFT = "log left"
LOG_OF_ANOTHER = "log of another"
# SQLite has met damage in the file: the record has its words.
DAMAGED = "damaged"

_SENTENCES = {
    OVERWRITTEN: (
        "database {path!r} was overwritten while in use (`cp`, `rsync --inplace`, `dd`, `truncate`,"
        " or a `touch`); what it held is lost but for what is in {log!r}. Nothing is taken until"
        " `postback restore FILE` has put a copy in its place (the service may run, what is there"
        " is kept). FILE may be the database itself, to go on with what was put there"
    ),
    LOG_OVERWRITTEN: (
        "{log!r}, the write-ahead log of database {path!r}, was overwritten or truncated while in"
        " use; what was committed since the last checkpoint is lost. Nothing is taken until"
        " `postback restore FILE` has put a copy in the database's place (FILE may be the database"
        " itself, to go on with what is left)"
    ),
    LOG_LEFT: (
        "database {path!r} is missing or empty, and its write-ahead log {log!r} is not: put the"
        " database back, or a copy in its place with `postback restore FILE`; to begin a new one,"
        " move that log away"
    ),
    LOG_OF_ANOTHER: (
        "database {path!r} was replaced, and {log!r} belongs to the file that was there before: a"
        " service that runs clears that up within seconds, try again; else move that log away, or"
        " put the copy in place with `postback restore FILE`"
    ),
}

FileId = tuple[int, int]
_Sight = tuple[str, bool, int, int, int, int]


@dataclass(frozen=True)
class Record:
    """What was true of a database's files when they were last looked at."""

    # Whose record it is: a lock file that was copied says nothing about the files beside it.
    lock: FileId
    file: FileId
    bytes: int = -1
    changed_ns: int = -1
    # Of the wal-index.
    generation: str = ""
    changes: int = -1
    backfilled: int = -1
    attempted: int = -1
    # Hashes of pages as the file had them when the log was begun.
    hashes: dict[int, str] = field(default_factory=dict)
    # What is wrong for good.
    verdict: str = ""
    # How often damage was met, and the last of it, with SQLite's number, where it is unchecked.
    doubts: int = 0
    damage: str = ""
    damage_code: int = 0

    def doubt(self, damage: str, code: int = 0) -> Self:
        """Give the record of a file in which damage was met, which is to be checked."""
        return replace(
            self, verdict="", doubts=self.doubts + 1, damage=damage[:200], damage_code=code
        )

    def trust(self) -> Self:
        """Give the record of a file that was checked since."""
        return replace(self, damage="", damage_code=0)

    @property
    def seen(self) -> "_Sight":
        """Give what is compared."""
        return (
            *(self.generation, self.changes > 0, self.backfilled, self.attempted),
            *(self.bytes, self.changed_ns),
        )


def read_record(lock: int, path: Path) -> Record | None:
    """Read what a lock file says of the database at a path; None where that is nothing."""
    record = _decode(lock)
    with suppress(FileNotFoundError):
        return record if record and record.file == _find_id(path) else None
    return None


def _decode(lock: int) -> Record | None:
    """Read what a lock file says of whichever file was beside it then."""
    try:
        record = msgspec.json.decode(os.pread(lock, RECORD_BYTES, 0), type=Record)
    except msgspec.MsgspecError:
        # Empty, or as another version of this program writes it.
        return None
    return record if record.lock == _identify(os.fstat(lock)) else None


def write_record(lock: int, record: Record) -> None:
    """Write it down; the caller holds the lock."""
    os.pwrite(lock, msgspec.json.encode(record).ljust(RECORD_BYTES), 0)


def note_verdict(lock: int, record: Record) -> None:
    """Write down what must be known after a power cut, too."""
    # Where that cannot be, this process knows.
    with suppress(OSError):
        write_record(lock, record)
        os.fsync(lock)


def new_record(lock: int, path: Path) -> Record:
    """Begin a record of the file at a path."""
    return Record(_identify(os.fstat(lock)), _find_id(path))


def say(verdict: str, path: Path, log: Path) -> str:
    """Say a verdict in a sentence, with what is to be done."""
    return _SENTENCES[verdict].format(path=str(path), log=str(log))


def judge_unopened(lock: int | None, path: Path, log: Path) -> str:
    """Look at the files before SQLite does: a verdict, or nothing where nothing is wrong.

    Without a lock file nothing is known of them. SQLite removes the log of an empty file, and
    replays one into whatever file is beside it.
    """
    record = None if lock is None else read_record(lock, path)
    if record is not None and record.verdict and os.path.lexists(log):
        # Where somebody has removed the log, the file is meant to be taken as it is.
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
    """Read the header of a log; nothing where there is none."""
    try:
        with open(log, "rb") as file:
            header = file.read(WAL_HEADER_BYTES)
    except FileNotFoundError:
        return b""
    return header if len(header) == WAL_HEADER_BYTES else b""


class Watch:
    """Looks at an open database's files. Every look is made while holding the lock."""

    def __init__(self, path: Path, lock: int, log: Path, index: Path) -> None:
        """Take the database's path, its open lock file, and where the other two are.

        SQLite has them open: the database is in WAL mode and was read.
        """
        self._path = path
        # As text, since it is looked at twice with each commit.
        self._name = os.fspath(path)
        self._id = _find_id(path)
        self._lock = lock
        self._index = find_descriptor(index)
        self._file = find_descriptor(path)
        # Unlike the other two this file may be opened beside SQLite, which locks nothing in it.
        self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        # The lock file's content, and what else there was to see, at the last look.
        self._text = b""
        self._seen: _Sight | None = None
        self._last: tuple[Index, os.stat_result] | None = None

    def close(self) -> None:
        """Close what was opened here."""
        os.close(self._log)

    def judge(self) -> str:
        """Give what is wrong with the files, as a verdict; nothing where nothing is."""
        index = self._read_index()
        if index is None:
            # A program that is not ours commits: the next look is ours again.
            return ""
        state = os.stat(self._name)
        if _identify(state) != self._id:
            # Replaced, which is not ours to judge, nor to write down.
            return ""
        text = os.pread(self._lock, RECORD_BYTES, 0)
        is_known = (text, _sight(index, state)) == (self._text, self._seen)
        verdict = ""
        if not (is_known and self._has_frames(index)):
            verdict = self._look_closely(index, state)
            if verdict:
                # What is compared may look sound the next time.
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
                note_verdict(self._lock, replace(known, verdict=verdict))
            return verdict
        record = self._note(known, before, state)
        # A full disk must not stop what can go on: what stands there is still true.
        with suppress(OSError):
            if record != known:
                write_record(self._lock, record)
        self._seen = record.seen
        return ""

    def _compare_begun_afresh(self, index: Index, state: os.stat_result) -> str:
        """Judge what has changed since the last look of ours, where the log was begun afresh."""
        if self._last is None or index.generation == self._last[0].generation:
            return ""
        last, then = self._last
        commits = index.changes - last.changes
        if not last.is_moved or index.attempted or commits != bool(index.frames):
            return ""
        # All was in the file before, and what came since is in the new log only, unless a
        # checkpoint has begun between the looks at the index and at the file.
        if self._read_index() != index:
            return ""
        is_same = (state.st_size, state.st_mtime_ns) == (then.st_size, then.st_mtime_ns)
        return "" if is_same else OVERWRITTEN

    def _compare(self, known: Record, before: Index, state: os.stat_result) -> str:
        """Judge what has changed since the record was written."""
        hashes = self._hash(known.hashes, before.page_bytes)
        # Behind the look at the file: a write that was seen there was announced before.
        after = self._read_index()
        if after is None or known.generation == "":
            return ""
        if not self._is_log_whole():
            return LOG_OVERWRITTEN
        if before == after and before.is_moved and state.st_size < before.pages * before.page_bytes:
            return OVERWRITTEN
        if known.generation != after.generation.hex():
            # Begun afresh since, which only happens once all of it is in the file.
            return ""
        return self._compare_file(known, hashes, after, state)

    def _compare_file(
        self, known: Record, hashes: dict[int, str], after: Index, state: os.stat_result
    ) -> str:
        """Judge what has changed in the file while one log was in use."""
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
        """Tell whether the index was not built anew since: then it forgets what checkpoints did."""
        # An index that is in use is not built anew; of an empty log it knows no generation then.
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
        """Tell whether the log has its last frame, and the one that was the last before."""
        # Behind a commit the last frame is a new one: it says nothing of a file that was cut off.
        former = self._last[0] if self._last else index
        has_former = former.generation == index.generation and former.frames != index.frames
        return has_last_frame(self._log, index) and (
            not has_former or has_last_frame(self._log, former)
        )

    def _are_untouched(self, known: dict[int, str], found: dict[int, str], index: Index) -> bool:
        """Tell whether remembered pages are as they were, but for those that the log holds."""
        changed = {page for page in known if found.get(page) != known[page]}
        # What is beyond the end was cut off by a VACUUM.
        changed = {page for page in changed if page <= index.pages}
        held = self._find_held(index) if changed and found else None
        return held is None or changed <= held

    def _note(self, known: Record, before: Index, state: os.stat_result) -> Record:
        """Say what is true now. The index was read before the file: see `_compare`."""
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
        # What a VACUUM has cut off may be there again with other content, and in no log.
        count = state.st_size // max(before.page_bytes, 1)
        return replace(
            record, hashes={page: found for page, found in hashes.items() if page <= count}
        )

    def _remember(self, index: Index, size: int) -> dict[int, str]:
        """Hash some pages of the file; which of them the log holds is for who compares them."""
        if not index.page_bytes:
            return {}
        count = size // index.page_bytes
        spread = (1 + number * count // SPREAD_PAGES for number in range(SPREAD_PAGES))
        last = range(max(1, count - LAST_PAGES + 1), count + 1)
        return self._hash({*spread, *last}, index.page_bytes)

    def _find_held(self, index: Index) -> set[int] | None:
        """Find the pages that the log holds now; None where it was begun afresh since."""
        now = self._read_index()
        if now is None:
            return None
        assert self._index is not None
        held = set(list_pages(self._index, now.frames))
        # The list is overwritten as the log is.
        after = self._read_index()
        return held if after and after.generation == index.generation else None

    def _hash(self, pages: Collection[int], page_bytes: int) -> dict[int, str]:
        """Hash pages of the file as it is, read through a descriptor of SQLite's."""
        while page_bytes and self._file is not None:
            # It may be another thread's, who has closed it: then its number may be anything's.
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
