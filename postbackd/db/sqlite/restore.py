"""Puts a copy in the place of the database while the service runs; the former files are kept."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from postbackd.db.sqlite import integrity, overwriting, schema
from postbackd.db.sqlite.backup import Advance, Content, CopyError, fill, find_flaw, give_owner
from postbackd.db.sqlite.connection import (
    CHECKPOINT_WAIT_SECONDS,
    DatabaseError,
    connect,
    connect_to_file,
    leave_alone,
    locked,
    name_beside,
    refuse_opened,
)
from postbackd.files import Part, give_name, part_beside, sync_directory

# How often the WAL is checkpointed again if another program has written meanwhile.
EMPTYING_TRIES = 3


class RestoreError(Exception):
    """The database is unchanged; the sentence says why and what to do."""


class Restored(NamedTuple):
    """The restored copy, and the new name of the former database."""

    bytes: int
    version: int
    rows: dict[str, int]
    # The time of its newest postback.
    newest_at: str | None
    warnings: list[str]
    kept: Path | None = None
    kept_log: Path | None = None
    # Postbacks of the former database that are newer than the copy; None: it is not sound.
    newer: int | None = None


def restore(
    source: Path, path: Path, currency: str, now: datetime, advance: Advance, *, is_dry: bool
) -> Restored:
    """Verify a copy, migrate it, and put it in the place of the database.

    A dry run verifies only. Raises RestoreError; DatabaseError if the lock stays busy.
    """
    # Beside the file itself if the path is a link.
    target = Path(os.path.realpath(path))
    _refuse_source(source, target)
    try:
        with part_beside(target) as part:
            content = _copy(source, target, part.path, advance)
            restored = _look_into(part.path, source, currency, content)
            if is_dry:
                return restored
            give_owner(part, target if target.exists() else target.parent)
            return _swap(part, target, now, content, restored)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RestoreError(f"{str(target)!r} cannot be replaced: {why}") from error


def _refuse_source(source: Path, target: Path) -> None:
    try:
        state = os.stat(source)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RestoreError(f"{str(source)!r} cannot be read: {why}") from error
    if not stat.S_ISREG(state.st_mode) or not state.st_size:
        raise RestoreError(f"{str(source)!r} is no file, or an empty one: name a backup")
    for suffix in ("-wal", "-shm", "-lock"):
        if _is_same(source, name_beside(target, suffix)):
            raise RestoreError(f"{str(source)!r} belongs to the database: name a backup")
    if _is_same(source, target) and not _find_trouble(target):
        raise RestoreError(
            f"{str(source)!r} is the database itself, and nothing is known to be wrong with it"
        )


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _find_trouble(target: Path) -> str:
    """Return the verdict that keeps the service from using the present file."""
    with locked(target) as lock:
        return _read_trouble(lock, target)


def _read_trouble(lock: int, target: Path) -> str:
    record = overwriting.read_record(lock, target)
    if record is not None and (record.verdict or record.damage):
        return record.verdict or overwriting.DAMAGED
    return overwriting.judge_unopened(lock, target, name_beside(target, "-wal"))


def _copy(source: Path, target: Path, part: Path, advance: Advance) -> Content:
    # If there is no WAL to read SQLite would create one, beside a backup too.
    options = "mode=ro" if _has_log(source, target) else "mode=ro&immutable=1"
    try:
        with closing(connect_to_file(source, options)) as read:
            content = fill(read, source, part, advance)
        flaw = find_flaw(part, content)
    except (sqlite3.Error, DatabaseError, CopyError) as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise RestoreError(f"{str(source)!r} cannot be restored: {error}") from error
        flaw = str(error)
    if flaw:
        raise RestoreError(
            f"{str(source)!r} is damaged, or was copied while it was in use ({flaw}): take another"
            " backup, as `postback backup` makes them"
        )
    return content


def _has_log(source: Path, target: Path) -> bool:
    """Return whether a WAL beside the file belongs to it and has content."""
    # Beside a file that was overwritten the WAL belongs to another.
    if _is_same(source, target) and _find_trouble(target) != overwriting.DAMAGED:
        return False
    log = name_beside(source, "-wal")
    return log.exists() and log.stat().st_size > 0


def _look_into(part: Path, source: Path, currency: str, content: Content) -> Restored:
    """Migrate the copy and read its facts."""
    try:
        with closing(sqlite3.connect(part, isolation_level=None)) as db:
            # No WAL beside it; the whole file is synced at the end.
            db.execute("PRAGMA journal_mode = MEMORY")
            db.execute("PRAGMA synchronous = OFF")
            # Here, because the arbiter would kill a worker that migrates for long.
            schema.migrate(db, currency)
            (kept,) = db.execute("SELECT currency FROM tracker").fetchone()
            (newest_at,) = db.execute("SELECT max(received_at) FROM postbacks").fetchone()
            warnings = list(_find_warnings(db))
    except (sqlite3.Error, schema.SchemaError) as error:
        raise RestoreError(f"{str(source)!r} cannot be restored: {error}") from error
    if kept != currency:
        raise RestoreError(
            f"{str(source)!r} keeps its amounts in {kept}, and the config says currency ="
            f" {currency!r}: take a backup of this tracker, or put {kept} into the config first"
        )
    return Restored(part.stat().st_size, content.version, content.rows, newest_at, warnings)


def _find_warnings(db: sqlite3.Connection) -> Iterator[str]:
    yield from integrity.find_lost_references(db)
    for sentence, count, first in integrity.find_contradictions(db):
        yield f"{count} {sentence}, the first with id {first}"


def _swap(
    part: Part, target: Path, now: datetime, content: Content, restored: Restored
) -> Restored:
    """Give the part the database's name; rename the former file and its WAL."""
    with locked(target) as lock, _quieted(target, lock) as former:
        newer = None if former is None else _count_newer(former, content)
        # The record of the WAL there must survive a power cut.
        os.fsync(lock)
        name = _find_name(target, now)
        kept = name if target.exists() else None
        if kept is not None:
            os.link(target, kept)
        give_name(part, target, replaces=True)
        # SQLite would replay this WAL into the new file. A sound former database finds its WAL
        # under the first name; one that was overwritten must not find it.
        log = Path(f"{name}-wal" if former is not None else f"{name}.log")
        kept_log = log if _put_away(name_beside(target, "-wal"), log) else None
        name_beside(target, "-shm").unlink(missing_ok=True)
        sync_directory(target.parent)
    return restored._replace(kept=kept, kept_log=kept_log, newer=newer)


def _find_name(target: Path, now: datetime) -> Path:
    name = first = Path(f"{target}.before-restore-{now:%Y%m%dT%H%M%SZ}")
    number = 1
    while os.path.lexists(name):
        number += 1
        name = Path(f"{first}-{number}")
    return name


def _put_away(log: Path, name: Path) -> bool:
    """Rename a WAL that has content; True if there was one."""
    if not log.exists():
        return False
    if not log.stat().st_size:
        log.unlink()
        return False
    os.rename(log, name)
    return True


@contextmanager
def _quieted(target: Path, lock: int) -> Iterator[sqlite3.Connection | None]:
    """Checkpoint a sound database and block other programs' writes; None for a damaged one."""
    if not target.exists() or _read_trouble(lock, target):
        yield None
        return
    db = connect(target)
    try:
        yield db if _quieten(db, target, lock) else None
    finally:
        # The file has another name by now: SQLite does not touch the WAL.
        db.close()


def _quieten(db: sqlite3.Connection, target: Path, lock: int) -> bool:
    log = name_beside(target, "-wal")
    try:
        refuse_opened(db, lock, target)
        # A reader may be in the way: then the WAL is kept with the file.
        db.execute(f"PRAGMA busy_timeout = {CHECKPOINT_WAIT_SECONDS * 1000:.0f}")
        for is_last in (*[False] * (EMPTYING_TRIES - 1), True):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            db.execute("BEGIN IMMEDIATE")
            if is_last or not (log.exists() and log.stat().st_size):
                break
            db.execute("ROLLBACK")
    except (sqlite3.Error, DatabaseError, schema.SchemaError, OSError):
        leave_alone(db, target)
        return False
    return True


def _count_newer(former: sqlite3.Connection, content: Content) -> int | None:
    try:
        last_id = content.last_ids.get("postbacks", 0)
        found = former.execute("SELECT count(*) FROM postbacks WHERE id > ?", (last_id,))
        count: int = found.fetchone()[0]
    except sqlite3.Error:
        return None
    return count
