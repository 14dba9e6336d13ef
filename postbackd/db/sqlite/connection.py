"""The SQLite file: opened, migrated, committed to durably, checked for being replaced.

"WAL" is SQLite's write-ahead log, the file `-wal` beside the database.
"""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Self
from urllib.parse import quote

from postbackd.db.sqlite import lock_holders, overwriting, schema, stop_signals
from postbackd.db.sqlite.lock_holders import Holder
from postbackd.db.sqlite.overwriting import Record
from postbackd.files import open_or_make, sync_directory

LOG = logging.getLogger("postback.database")

# Other programs may write any bytes: an offer's name that is no UTF-8 must not stop all postbacks,
# nor hide the other rows from a reader.
READ_TEXT = partial(str, encoding="utf-8", errors="replace")

# How long SQLite waits for a writer that does not use our lock file (another program's). Longer
# than any commit; shorter than a sender waits.
BUSY_TIMEOUT_SECONDS = 5.0

# How often a busy lock is tried again: well below the time of a commit, so that its end is not
# missed by much; only waiting processes pay for it.
LOCK_POLL_SECONDS = 0.0003

# How long a checkpoint waits for readers of the WAL: longer than our own reads, and no longer,
# since every postback waits with it. A replicator reads without end.
CHECKPOINT_WAIT_SECONDS = 0.2

# Pages of 4 KiB in the WAL before SQLite moves them to the database: a larger number makes one
# commit wait longer, a smaller one makes more commits wait; 1000 to 4000 measured best.
WAL_AUTOCHECKPOINT_PAGES = 2000

# What one connection keeps of the file's pages: the clicks of the last hours, and the index over
# click ids, are read again with every batch. With SQLite's own 2 MiB a postback took a twentieth
# longer.
CACHE_KIB = 16 * 1024

# Every statement of the write path stays prepared; preparing them anew took a third of the time.
CACHED_STATEMENTS = 256


class DatabaseError(Exception):
    """The database cannot be used now; the sentence says why and what to do."""


class DoubtedError(DatabaseError):
    """Damage was found: nothing is accepted until a check of the whole file has passed."""


def open_connection(path: Path, currency: str, *, create: bool = True) -> sqlite3.Connection:
    """Open the file, created or migrated if needed; raises DatabaseError."""
    try:
        return _open(path, currency, create=create)
    except (sqlite3.Error, OSError, schema.SchemaError) as error:
        raise DatabaseError(describe_trouble(error, path)) from error


def describe_trouble(error: Exception, path: Path | None) -> str:
    """Return a sentence about a database error and its remedy."""
    if isinstance(error, DatabaseError):
        return str(error)
    name = f"database {str(path)!r}"
    if path is not None and path.is_dir():
        return f"{name} is a directory: give [db] path the name of a file"
    if isinstance(error, sqlite3.Error):
        return f"{name}: {error}; {_find_remedy(error, path)}"
    if isinstance(error, PermissionError):
        # The error is about the lock file, or about creating the database.
        return f"{name}: {error.strerror}; {_REMEDIES[sqlite3.SQLITE_READONLY]}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{name}: {str(error.filename)!r}: {error.strerror}"
    return f"{name}: {error}"


def _find_remedy(error: sqlite3.Error, path: Path | None) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_BUSY and path is not None:
        return _describe_holder(path)
    return _REMEDIES.get(code, "see `postback check`")


def find_holder(path: Path) -> Holder | None:
    """Find another process that has the write lock of a database."""
    return lock_holders.find_holder(name_beside(path, "-lock"), name_beside(path, "-shm"))


def _describe_holder(path: Path) -> str:
    holder = find_holder(path)
    if holder is None:
        return _REMEDIES[sqlite3.SQLITE_BUSY]
    if holder.is_stopped:
        return describe_stopped(holder)
    return f"{holder} holds a write lock: end it, or wait"


def describe_stopped(holder: Holder) -> str:
    """Return a sentence about a stopped process that has the write lock, and the remedy."""
    return (
        f"{holder} holds the write lock and is stopped (Ctrl-Z, or a debugger): `kill -CONT"
        f" {holder.pid}` lets it go on, `kill -9 {holder.pid}` ends it and what it had not"
        " committed is undone"
    )


_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another program holds a write lock: end it, or wait",
    sqlite3.SQLITE_LOCKED: "another program holds a write lock: end it, or wait",
    sqlite3.SQLITE_CANTOPEN: "check that the directory exists and that this user may write there",
    sqlite3.SQLITE_READONLY: "give this user write permission for the file and its directory",
    sqlite3.SQLITE_PERM: "give this user write permission for the file and its directory",
    sqlite3.SQLITE_FULL: "free some disk space",
    sqlite3.SQLITE_IOERR: "check the disk (`dmesg`) and the free space",
    sqlite3.SQLITE_CORRUPT: "put the latest backup in its place with `postback restore FILE`",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database: check [db] path, or put a backup in"
    " its place with `postback restore FILE`",
}


def _open(path: Path, currency: str, *, create: bool) -> sqlite3.Connection:
    # When workers start at once, SQLite answers "locked" without waiting to the second one that
    # switches a new file to WAL mode.
    with locked(path) as lock:
        _refuse_unopened(lock, path)
        is_new = not path.exists()
        # An empty file was emptied by somebody, or is a placeholder: our own files never are empty.
        if not create and (is_new or not path.stat().st_size):
            what = "is not there" if is_new else "is empty"
            raise DatabaseError(
                f"database {str(path)!r} {what}: put it back, or restart to begin a new one"
            )
        if is_new:
            # Only the file's owner may read earnings; SQLite gives -wal and -shm the same mode.
            os.close(open_or_make(path)[0])
        _refuse_second_names(path)
        db = connect(path)
        try:
            refuse_opened(db, lock, path)
            _make_ready(db, path, currency)
            if is_new:
                sync_directory(path.parent)
        except BaseException as error:
            leave_alone(db, path)
            if isinstance(error, sqlite3.Error) and is_damage(error):
                raise _doubt(error, lock, path) from error
            raise
    return db


def connect(path: Path) -> sqlite3.Connection:
    """Connect to a file for writing; nothing is checked yet."""
    db = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT_SECONDS,
        isolation_level=None,
        cached_statements=CACHED_STATEMENTS,
        # Whichever thread commits uses it, one at a time.
        check_same_thread=False,
    )
    db.text_factory = READ_TEXT
    return db


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the write lock; yield the open lock file. Stop signals wait meanwhile."""
    lock = _open_lock(path)
    try:
        with stop_signals.deferred():
            _take_lock(lock, path)
            yield lock
    finally:
        # Closing the file releases the lock.
        os.close(lock)


def _refuse_unopened(lock: int, path: Path) -> None:
    """Refuse files that SQLite must not open, and damaged ones that are not checked yet."""
    _refuse(overwriting.judge_unopened(lock, path, name_beside(path, "-wal")), lock, path)
    record = overwriting.read_record(lock, path)
    if record is None:
        return
    if record.verdict:
        # The WAL was removed by hand, so the file is to be used as it is now.
        record = record.doubt("its write-ahead log was removed after it was overwritten")
        overwriting.save_verdict(lock, record)
    if record.damage:
        _refuse(overwriting.DAMAGED, lock, path)


def refuse_opened(db: sqlite3.Connection, lock: int, path: Path) -> None:
    """Raise DatabaseError if the file or its WAL was overwritten; the caller has the lock."""
    # A read makes SQLite open the WAL and its index; it writes nothing.
    schema.read_version(db)
    log, index = name_beside(path, "-wal"), name_beside(path, "-shm")
    if not (log.exists() and index.exists()):
        # Not in WAL mode yet: a new file, or one made by another program.
        return
    watch = overwriting.Watch(path, lock, log, index)
    try:
        _refuse(watch.judge(), lock, path)
    finally:
        watch.close()


def _refuse(verdict: str, lock: int, path: Path) -> None:
    """Raise the error of a verdict, if there is one."""
    if verdict == overwriting.DAMAGED:
        record = overwriting.read_record(lock, path)
        raise DoubtedError(describe_damage(record or overwriting.new_record(lock, path), path))
    if verdict:
        raise DatabaseError(overwriting.describe_verdict(verdict, path, name_beside(path, "-wal")))


def leave_alone(db: sqlite3.Connection, path: Path) -> None:
    """Close the connection without a checkpoint."""
    # The last connection that closes moves the WAL into the file, which may not be the one that the
    # WAL belongs to: so a read-only connection closes last.
    with suppress(sqlite3.Error):
        keeper = _open_keeper(path)
        db.close()
        keeper.close()
    db.close()


def _open_keeper(path: Path) -> sqlite3.Connection:
    # Closed by whichever thread closes the connection beside it.
    keeper = connect_to_file(path, "mode=ro", check_same_thread=False)
    try:
        # SQLite locks the file from the first read on.
        keeper.execute("PRAGMA user_version").fetchone()
    except BaseException:
        keeper.close()
        raise
    return keeper


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error means that the file is damaged, or no SQLite database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def _doubt(error: sqlite3.Error, lock: int, path: Path) -> DoubtedError:
    """Record damage, so that no process accepts anything unchecked; return the error to raise."""
    record = overwriting.read_record(lock, path) or overwriting.new_record(lock, path)
    record = record.doubt(str(error), error.sqlite_errorcode & 0xFF)
    overwriting.save_verdict(lock, record)
    return DoubtedError(describe_damage(record, path))


def describe_damage(record: Record, path: Path) -> str:
    """Return a sentence about damage that was found, and its consequence."""
    sentence = describe_flaws(record, path, [record.damage])
    return f"{sentence}. Nothing is accepted until a check of the whole file has passed"


def describe_flaws(record: Record, path: Path, flaws: Sequence[str]) -> str:
    """Return a sentence about the flaws that a check has found, and the remedy."""
    remedy = _REMEDIES.get(record.damage_code, _REMEDIES[sqlite3.SQLITE_CORRUPT])
    return f"database {str(path)!r}: {'; '.join(flaws)}; {remedy}"


def _make_ready(db: sqlite3.Connection, path: Path, currency: str) -> None:
    _configure(db)
    before = schema.read_version(db)
    schema.migrate(db, currency)
    if 0 < before < len(schema.MIGRATIONS):
        LOG.info("%s: from schema %s to %s", path, before, len(schema.MIGRATIONS))
    _refuse_other_currency(db, path, currency)


def _configure(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    # FULL: a commit returns after the WAL was synced. With NORMAL a power cut loses postbacks that
    # were answered 200.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    db.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}")


def _refuse_other_currency(db: sqlite3.Connection, path: Path, currency: str) -> None:
    (kept,) = db.execute("SELECT currency FROM tracker").fetchone()
    if kept != currency:
        raise DatabaseError(
            f"database {str(path)!r} keeps its amounts in {kept}, and the config says currency ="
            f" {currency!r}: put {kept} back, or give [db] path a new file"
        )


def connect_to_read(path: Path, *, check_same_thread: bool = True) -> sqlite3.Connection:
    """Connect read-only to an existing database of ours.

    Raises DatabaseError, sqlite3.Error.
    """
    refuse_to_read(path)
    db = connect_to_file(path, "mode=ro", check_same_thread=check_same_thread)
    try:
        db.text_factory = READ_TEXT
        _refuse_other_version(db, path)
    except BaseException:
        db.close()
        raise
    return db


def refuse_to_read(path: Path) -> None:
    """Raise DatabaseError if the file holds no state that the database ever had."""
    log, lock = name_beside(path, "-wal"), None
    with suppress(OSError):
        lock = os.open(name_beside(path, "-lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if verdict := overwriting.judge_unopened(lock, path, log):
            raise DatabaseError(overwriting.describe_verdict(verdict, path, log))
    finally:
        if lock is not None:
            os.close(lock)


def connect_to_file(
    path: Path, options: str, *, check_same_thread: bool = True
) -> sqlite3.Connection:
    """Connect to an existing file; `options` are those of SQLite's URIs, such as `mode=ro`."""
    _refuse_second_names(path)
    return sqlite3.connect(
        f"file:{quote(str(path))}?{options}",
        uri=True,
        timeout=BUSY_TIMEOUT_SECONDS,
        isolation_level=None,
        check_same_thread=check_same_thread,
    )


def read_version(db: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of a file, 0: no tables; DatabaseError if it is not ours."""
    try:
        return schema.read_version(db)
    except schema.SchemaError as error:
        raise DatabaseError(f"database {str(path)!r}: {error}") from error


def _refuse_other_version(db: sqlite3.Connection, path: Path) -> None:
    version = read_version(db, path)
    if version == 0:
        raise DatabaseError(
            f"database {str(path)!r} has no tables of ours yet: `postback serve` makes them"
        )
    if version < len(schema.MIGRATIONS):
        raise DatabaseError(
            f"database {str(path)!r} has schema {version}, this program {len(schema.MIGRATIONS)}:"
            " start the service once, it brings the database up to date"
        )


def name_beside(path: Path, suffix: str) -> Path:
    """Return the path of a database's `-wal`, `-shm` or `-lock`, where SQLite looks for it."""
    # Beside the file itself if the path is a link.
    return Path(f"{os.path.realpath(path)}{suffix}")


def _open_lock(path: Path) -> int:
    name = name_beside(path, "-lock")
    lock, is_new = open_or_make(name)
    if os.geteuid() == 0 and path.exists():
        owner = os.stat(path)
        if is_new:
            # A command run by root must not create a lock file that the service's user cannot open.
            os.fchown(lock, owner.st_uid, owner.st_gid)
        elif _is_second_name(os.fstat(lock), owner):
            os.close(lock)
            raise DatabaseError(_SECOND_NAME.format(str(name)))
    return lock


def _refuse_second_names(path: Path) -> None:
    # SQLite refuses links. But where root opens a database, it gives these files to the database's
    # owner, who may have made a link to /etc/shadow.
    if os.geteuid() != 0 or not path.exists():
        return
    owner = path.stat()
    for beside in (name_beside(path, "-wal"), name_beside(path, "-shm")):
        with suppress(FileNotFoundError):
            if _is_second_name(os.lstat(beside), owner):
                raise DatabaseError(_SECOND_NAME.format(str(beside)))


def _is_second_name(found: os.stat_result, owner: os.stat_result) -> bool:
    """Return whether root would write to, or give away, a file that is not the database owner's."""
    return found.st_nlink > 1 and found.st_uid != owner.st_uid


_SECOND_NAME = "{!r} is another name of a file that is not the database owner's: remove it"


def _take_lock(lock: int, path: Path) -> None:
    # SQLite's busy handler sleeps up to 100 ms at a time, and some waiters starve for seconds. Our
    # processes try this lock far more often, and take turns. Programs that do not use it are left
    # to the busy handler.
    deadline = monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if stop_signals.stop_if_asked():
                deadline = monotonic() + BUSY_TIMEOUT_SECONDS
            if monotonic() > deadline:
                raise DatabaseError(
                    f"database {str(path)!r}: waited {BUSY_TIMEOUT_SECONDS:g} seconds for the"
                    f" write lock; {_describe_holder(path)}"
                ) from None
            sleep(LOCK_POLL_SECONDS)
        else:
            return


class Database:
    """An open database file. Use from one thread at a time; `with` closes it."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        """Use an open, migrated connection; `open_connection` returns one."""
        self.db = db
        self.path = path
        self._beside = (name_beside(path, "-wal"), name_beside(path, "-shm"))
        # As text: they are looked at twice with each commit.
        self._names = tuple(map(os.fspath, (path, *self._beside)))
        # Never removed: waiting on a lock file that was unlinked locks nothing.
        self._lock = _open_lock(path)
        try:
            # A read makes SQLite open the -wal file, so that `_identify` finds it.
            db.execute("SELECT 1 FROM tracker").fetchone()
            self._identity = self._identify()
            # Opened at once: once the file is replaced, a connection to it cannot be opened any
            # more.
            self._keeper = _open_keeper(path)
            self._watch = overwriting.Watch(path, self._lock, *self._beside)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection and the lock file."""
        # The last connection that closes moves the WAL into the file: not into one that was
        # overwritten.
        order = (self._keeper, self.db) if self._is_sound() else (self.db, self._keeper)
        for connection in order:
            connection.close()
        self._watch.close()
        os.close(self._lock)

    def _is_sound(self) -> bool:
        try:
            with self._held():
                return self._identify() == self._identity and not self._watch.judge()
        except (DatabaseError, OSError):
            return False

    def checkpoint_wal(self) -> bool:
        """Move the WAL's content to the database file, and start the WAL anew.

        Returns False if a reader of the WAL is in the way. After a failed sync Linux takes the
        pages for clean: the WAL can be read back although it is on no disk, and later commits would
        be lost with it in a power cut. A WAL that is written anew and synced is safe.
        """
        with self._held():
            self._refuse_overwritten()
            try:
                self.db.execute(f"PRAGMA busy_timeout = {CHECKPOINT_WAIT_SECONDS * 1000:.0f}")
                is_busy, _, _ = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self.db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000:.0f}")
            self._refuse_overwritten()
        return not is_busy

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the write lock; a stop signal, as by Ctrl-Z, waits for its release."""
        with stop_signals.deferred():
            try:
                _take_lock(self._lock, self.path)
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the block as a whole, synced when this returns; any exception rolls it back.

        Raises DatabaseError if the file is no longer at its path, or was overwritten there.
        """
        with self._held():
            # Before the block, too: a write into the WAL of a file that took our file's place
            # damages it.
            self._refuse_replaced_file()
            try:
                # IMMEDIATE: a deferred transaction that reads first fails at once, without waiting,
                # if another writer commits before it writes. Ctrl-C may come as it returns, so it
                # is inside the `try` that rolls back.
                self.db.execute("BEGIN IMMEDIATE")
                # Not earlier: until BEGIN other programs may commit.
                self._refuse_overwritten()
                yield
                self.db.execute("COMMIT")
            except BaseException as error:
                # SQLite itself has rolled back already on some errors (a full disk).
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    self._find_cause(error)
                raise
            self._refuse_replaced_file()
            self._refuse_overwritten()

    def _refuse_overwritten(self) -> None:
        _refuse(self._watch.judge(), self._lock, self.path)

    def _find_cause(self, error: sqlite3.Error) -> None:
        """Raise the cause of an error, if it is known."""
        self._refuse_overwritten()
        if is_damage(error):
            raise _doubt(error, self._lock, self.path) from error

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Roll back the block as a whole if it raises, and nothing outside of it."""
        self.db.execute("SAVEPOINT one")
        try:
            yield
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK TO one")
                self.db.execute("RELEASE one")
            raise
        self.db.execute("RELEASE one")

    def _identify(self) -> tuple[tuple[int, int], ...]:
        return tuple(map(_identify, self._names))

    def _refuse_replaced_file(self) -> None:
        # SQLite commits without an error into a file that was unlinked: those rows would be lost.
        # With different -shm files two workers no longer see each other's commits.
        present = self._identify()
        if present == self._identity:
            return
        if present[-1] == self._identity[-1]:
            self._remove_wal(present)
        raise DatabaseError(
            f"database {str(self.path)!r} was moved, replaced or removed while in use"
        )

    def _remove_wal(self, present: tuple[tuple[int, int], ...]) -> None:
        # SQLite would replay our WAL into a file that took our file's place, and an unlinked WAL is
        # lost with the last process that has it open. The checkpoint moves it into our own file,
        # wherever that is now, and frees the names beside the new one. Not if the -shm is another:
        # its index of the WAL may be out of date.
        with suppress(sqlite3.Error):
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for path, was, is_now in zip(self._beside, self._identity[1:], present[1:], strict=True):
            if was == is_now:
                path.unlink(missing_ok=True)


def _identify(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return (stat.st_dev, stat.st_ino)
