"""Copies the database while others write to it, and verifies the copy before it gets its name."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from postbackd.db.sqlite.connection import (
    DatabaseError,
    connect_to_file,
    describe_trouble,
    name_beside,
    read_version,
    refuse_to_read,
)
from postbackd.files import Part, give_name, part_beside

# A mebibyte: some milliseconds of copying, then Ctrl-C and the progress are handled.
PAGES_A_STEP = 256

DAMAGE_SHOWN = 3

Advance = Callable[[int, int], None]


class CopyError(Exception):
    """No copy was made; the sentence says why and what to do."""


class Copy(NamedTuple):
    """A verified copy: its size, its schema version, and the number of rows in each table."""

    path: Path
    bytes: int
    version: int
    rows: dict[str, int]
    last_postback_id: int


class Content(NamedTuple):
    """The facts in which a copy must equal its source."""

    version: int
    rows: dict[str, int]
    last_ids: dict[str, int]


def copy_database(source: Path, target: Path, advance: Advance, *, replaces: bool = False) -> Copy:
    """Copy the committed state to a file that is complete when it appears; raises CopyError.

    `advance` is called with the bytes copied and their sum. Writers do not wait for the copy.
    """
    try:
        _refuse_target(source, target, replaces=replaces)
        # A copy of a damaged file must not replace a good one.
        refuse_to_read(source)
        with part_beside(target) as part:
            content = _fill(source, part.path, advance)
            if flaw := find_flaw(part.path, content):
                raise CopyError(
                    f"the copy is damaged and was thrown away ({flaw}): see `postback check`"
                )
            size = part.path.stat().st_size
            give_owner(part, source)
            _give_name(part, target, replaces=replaces)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CopyError(f"{str(target)!r} cannot be written: {why}") from error
    last_id = content.last_ids.get("postbacks", 0)
    return Copy(target, size, content.version, content.rows, last_id)


def _refuse_target(source: Path, target: Path, *, replaces: bool) -> None:
    if not target.parent.is_dir():
        raise CopyError(f"there is no directory {str(target.parent)!r}: make it first")
    for suffix in ("", "-wal", "-shm", "-lock"):
        if _is_same(name_beside(source, suffix), target):
            raise CopyError(f"{str(target)!r} is the database itself: give the copy another name")
    if target.is_dir():
        raise CopyError(f"{str(target)!r} is a directory: name a file in it")
    if os.path.lexists(target) and not replaces:
        raise CopyError(f"{str(target)!r} is there already: --force replaces it")
    if os.path.lexists(f"{target}-wal"):
        # SQLite would take it for the write-ahead log of the new file, and could replay it into
        # that.
        raise CopyError(
            f"{f'{target}-wal'!r} is there: somebody has opened a database of that name; close it,"
            " or give the copy another name"
        )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.absolute() == other.absolute()


def _fill(source: Path, part: Path, advance: Advance) -> Content:
    try:
        with closing(connect_to_file(source, "mode=ro")) as read:
            return fill(read, source, part, advance)
    except sqlite3.Error as error:
        raise DatabaseError(describe_trouble(error, source)) from error


def fill(read: sqlite3.Connection, source: Path, part: Path, advance: Advance) -> Content:
    """Copy the state that a connection to `source` sees into an empty file; return its facts.

    Raises CopyError, DatabaseError, sqlite3.Error.
    """
    # One transaction for the whole copy: SQLite's backup starts again from the beginning when
    # another connection writes between two of its steps, which under load is for ever. A
    # transaction sees one state of the WAL, and writers append to it meanwhile.
    read.execute("BEGIN")
    content = _read_content(read, source)
    _refuse_full_disk(read, part)
    _copy_pages(read, part, advance)
    return content


def _copy_pages(read: sqlite3.Connection, part: Path, advance: Advance) -> None:
    page_bytes: int = read.execute("PRAGMA page_size").fetchone()[0]

    def tell(_: int, remaining: int, total: int) -> None:
        advance((total - remaining) * page_bytes, total * page_bytes)

    with closing(connect_to_file(part, "mode=rw")) as write:
        # The whole file is synced at the end; an incomplete one is deleted.
        write.execute("PRAGMA journal_mode = OFF")
        write.execute("PRAGMA synchronous = OFF")
        try:
            read.backup(write, pages=PAGES_A_STEP, progress=tell)
        except sqlite3.Error as error:
            raise CopyError(
                f"the copy cannot be written to {str(part.parent)!r}: {error}; look for free"
                " space there"
            ) from error


def _refuse_full_disk(read: sqlite3.Connection, part: Path) -> None:
    pages, page_bytes = (
        read.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
    )
    free = shutil.disk_usage(part.parent).free
    if free < pages * page_bytes:
        raise CopyError(
            f"the copy takes {pages * page_bytes / 1e6:.1f} MB, and {str(part.parent)!r} has"
            f" {free / 1e6:.1f} MB free: free some space, or choose another disk"
        )


def find_flaw(part: Path, content: Content) -> str:
    """Return what is wrong with a copy; empty if it is sound and equals its source."""
    # Immutable: SQLite would otherwise create a WAL beside it.
    with closing(connect_to_file(part, "mode=ro&immutable=1")) as copy:
        try:
            found = [line for (line,) in copy.execute(f"PRAGMA integrity_check({DAMAGE_SHOWN})")]
            if found == ["ok"] and _read_content(copy, part) == content:
                return ""
        except (sqlite3.Error, DatabaseError) as error:
            found = [str(error)]
    return "; ".join(found) if found != ["ok"] else "it has not the rows that it should have"


def _read_content(db: sqlite3.Connection, path: Path) -> Content:
    version = read_version(db, path)
    if version == 0:
        raise DatabaseError(f"database {str(path)!r} has no tables of ours: nothing to copy")
    tables = [
        (name, not has_no_rowid)
        for name, has_no_rowid in db.execute(
            "SELECT name, wr FROM pragma_table_list"
            " WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        ).fetchall()
    ]
    rows = {name: _ask(db, f'SELECT count(*) FROM "{name}"') for name, _ in tables}
    last_ids = {
        name: _ask(db, f'SELECT coalesce(max(rowid), 0) FROM "{name}"')
        for name, has_rowid in tables
        if has_rowid
    }
    return Content(version, rows, last_ids)


def _ask(db: sqlite3.Connection, sql: str) -> int:
    number: int = db.execute(sql).fetchone()[0]
    return number


def give_owner(part: Part, source: Path) -> None:
    """Give a part file to the owner of its source, if root makes it."""
    if os.geteuid() == 0:
        # A file that root puts in place must be one that the service's user can open. Not earlier:
        # the rest of a killed command is removed by the user that owns it.
        owner = os.stat(source)
        os.fchown(part.handle, owner.st_uid, owner.st_gid)


def _give_name(part: Part, target: Path, *, replaces: bool) -> None:
    try:
        give_name(part, target, replaces=replaces)
    except FileExistsError:
        raise CopyError(f"{str(target)!r} was created meanwhile: --force replaces it") from None
