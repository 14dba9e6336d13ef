"""A database file that something else than SQLite has written: noticed, refused, left alone.

And that nothing which SQLite itself does, in whatever program, is taken for that.
"""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cli_calls import build_environment, call_process
from conftest import write_config
from killed_service import run_and_kill

from postbackd.db.sqlite import overwriting
from postbackd.db.sqlite.connection import DatabaseError, name_beside
from storage import Storage, open_database

ROWS_A_COMMIT = 20

Way = Callable[[Path, Path], None]


def fill(db: Storage, name: str, commits: int) -> None:
    """Write clicks, some in each transaction."""
    for commit in range(commits):
        with db.transaction():
            clicks = ((f"{name}-{commit}-{row}",) for row in range(ROWS_A_COMMIT))
            db.db.executemany("INSERT INTO clicks (subid) VALUES (?)", clicks)


def count_clicks(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        count: int = db.execute("SELECT count(*) FROM clicks").fetchone()[0]
        return count


def copy(other: Path, path: Path) -> None:
    subprocess.run(["/bin/cp", other, path], check=True)


def copy_in_place(other: Path, path: Path) -> None:
    """Do as `rsync -a --inplace` does."""
    with path.open("r+b") as file:
        file.write(other.read_bytes())
        file.truncate()
    state = other.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def copy_blocks(other: Path, path: Path) -> None:
    subprocess.run(["/bin/dd", f"if={other}", f"of={path}", "status=none"], check=True)


def copy_blocks_over(other: Path, path: Path) -> None:
    subprocess.run(
        ["/bin/dd", f"if={other}", f"of={path}", "conv=notrunc", "status=none"], check=True
    )


def cut_off(other: Path, path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(other: Path, path: Path) -> None:
    os.truncate(path, 0)


WAYS: list[Way] = [copy, copy_in_place, copy_blocks, copy_blocks_over, cut_off, empty]


def leave_in_log(db: Storage) -> None:
    """Leave all that was committed in the log."""


def checkpoint(db: Storage) -> None:
    """Move it to the file, and leave the log as it is."""
    db.checkpoint()


def begin_afresh(db: Storage) -> None:
    """Move it to the file, and commit more to a log that was begun afresh."""
    assert db.checkpoint_wal()
    fill(db, "afresh", 2)


def empty_log(db: Storage) -> None:
    """Move it to the file, and empty the log."""
    assert db.checkpoint_wal()


STATES = [leave_in_log, checkpoint, begin_afresh, empty_log]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "postback.db"


@pytest.fixture
def db(path: Path) -> Iterator[Storage]:
    """A database in use that is older than its log."""
    with open_database(path, "USD") as opened:
        fill(opened, "old", 20)
        assert opened.checkpoint_wal()
        fill(opened, "new", 20)
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another database, as a backup of long ago is."""
    path = tmp_path / "other.db"
    with open_database(path, "USD") as opened:
        fill(opened, "other", 10)
    return path


def read_files(path: Path) -> list[bytes]:
    return [path.read_bytes(), name_beside(path, "-wal").read_bytes()]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", WAYS)
def test_an_overwritten_database_takes_nothing_and_is_left_as_it_is(
    db: Storage, path: Path, other: Path, way: Way, state: Callable[[Storage], None]
) -> None:
    state(db)
    way(other, path)
    before = read_files(path)

    refusals = []
    for _ in range(2):
        with pytest.raises(DatabaseError) as refused, db.transaction():
            db.add_bare_click("lost", "")
        refusals.append(str(refused.value))
    with pytest.raises(DatabaseError), db.transaction():
        pass
    # The last to close moves the log into the file, as SQLite has it.
    db.close()
    with pytest.raises(DatabaseError) as refused:
        open_database(path, "USD", create=False)
    refusals.append(str(refused.value))

    assert read_files(path) == before
    assert len(set(refusals)) == 1
    assert str(path) in refusals[0]
    assert "`postback restore FILE`" in refusals[0]
    assert "while in use" in refusals[0]


@pytest.mark.parametrize("state", STATES)
def test_a_command_that_comes_first_does_not_take_it_either(
    db: Storage, path: Path, other: Path, state: Callable[[Storage], None]
) -> None:
    state(db)
    copy(other, path)

    with pytest.raises(DatabaseError, match="was overwritten while in use"):
        open_database(path, "USD")
    with pytest.raises(DatabaseError, match="was overwritten while in use"), db.transaction():
        pass


def test_an_idle_service_notices_it_too(path: Path, other: Path) -> None:
    open_database(path, "USD").close()
    with open_database(path, "USD") as db:
        assert db.checkpoint_wal()
        copy(other, path)

        with pytest.raises(DatabaseError, match="was overwritten while in use"):
            open_database(path, "USD")
        with pytest.raises(DatabaseError, match="was overwritten while in use"), db.transaction():
            pass


@pytest.fixture(autouse=True)
def _closed_twice_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test close a database that its fixture closes again."""
    close = Storage.close

    def close_once(db: Storage) -> None:
        if not getattr(db, "was_closed", False):
            db.was_closed = True  # type: ignore[attr-defined]
            close(db)

    monkeypatch.setattr(Storage, "close", close_once)


def test_a_service_that_ends_right_after_leaves_the_files_as_they_are(
    db: Storage, path: Path, other: Path
) -> None:
    copy(other, path)
    before = read_files(path)

    db.close()

    assert read_files(path) == before
    with pytest.raises(DatabaseError, match="was overwritten while in use"):
        open_database(path, "USD")


def test_a_file_whose_time_was_changed_is_refused_too(db: Storage, path: Path) -> None:
    assert db.checkpoint_wal()
    os.utime(path)

    with (
        pytest.raises(DatabaseError, match="or a `touch`"),
        db.transaction(),
    ):
        pass


@pytest.mark.parametrize("state", STATES)
def test_what_comes_amid_a_transaction_is_not_acknowledged(
    db: Storage, path: Path, other: Path, state: Callable[[Storage], None]
) -> None:
    state(db)

    def be_overwritten() -> None:
        with db.transaction():
            db.add_bare_click("c1", "")
            copy(other, path)

    with pytest.raises(DatabaseError, match="was overwritten while in use"):
        be_overwritten()


def test_a_file_that_is_cut_off_behind_a_checkpoint_is_noticed(db: Storage, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    os.truncate(path, path.stat().st_size - 4096)

    with pytest.raises(DatabaseError, match="was overwritten while in use"), db.transaction():
        pass


def test_an_error_that_comes_of_it_is_told_as_what_it_is(
    db: Storage, path: Path, other: Path
) -> None:
    def read_what_is_none() -> None:
        with db.transaction():
            path.write_bytes(b"no database" * 100_000)
            db.db.execute("PRAGMA cache_size = 0")
            db.db.execute("PRAGMA integrity_check").fetchall()
            db.db.execute("SELECT count(subid) FROM clicks NOT INDEXED").fetchall()

    with pytest.raises(DatabaseError, match="was overwritten while in use"):
        read_what_is_none()


def commit_and_checkpoint(path: Path) -> None:
    """Do as another program that writes clicks does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.execute("INSERT INTO clicks (subid) VALUES ('foreign')")
        foreign.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


@pytest.mark.parametrize("way", [copy, copy_in_place, copy_blocks])
def test_an_older_copy_is_noticed_although_a_checkpoint_wrote_over_it(
    db: Storage, path: Path, tmp_path: Path, way: Way
) -> None:
    older = tmp_path / "older.db"
    assert db.checkpoint_wal()
    shutil.copyfile(path, older)
    fill(db, "later", 20)
    assert db.checkpoint_wal()
    fill(db, "latest", 2)

    way(older, path)
    commit_and_checkpoint(path)

    with pytest.raises(DatabaseError, match="was overwritten while in use"), db.transaction():
        pass


def test_an_older_copy_of_a_large_database_is_noticed_by_its_end(
    path: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older.db"
    with open_database(path, "USD") as db:
        with db.transaction():
            clicks = ((f"old-{row}",) for row in range(20_000))
            db.db.executemany("INSERT INTO clicks (subid) VALUES (?)", clicks)
        assert db.checkpoint_wal()
        shutil.copyfile(path, older)
        fill(db, "later", 10)
        assert db.checkpoint_wal()
        fill(db, "latest", 10)
        assert older.stat().st_size < path.stat().st_size < older.stat().st_size * 1.04

        copy(older, path)
        with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
            foreign.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

        with pytest.raises(DatabaseError, match="was overwritten while in use"), db.transaction():
            pass


@pytest.fixture
def killed(path: Path) -> Path:
    """A database whose service was killed."""
    run_and_kill(path)
    return path


def test_a_killed_service_goes_on_where_it_was(killed: Path) -> None:
    with open_database(killed, "USD"):
        pass

    assert count_clicks(killed) == 800


def test_a_checkpoint_that_another_program_makes_again_is_one(path: Path) -> None:
    # SQLite forgets how far checkpoints were where it builds the index anew.
    run_and_kill(path, "db.checkpoint(); db.transaction().__enter__()")
    with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        moved = foreign.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert moved[1] == moved[2] > 0

        open_database(path, "USD").close()

    assert count_clicks(path) == 800


def test_a_service_that_is_killed_while_it_begins_goes_on(killed: Path) -> None:
    # It has looked, moved the log into the file, and says so in an index that goes with it.
    begins = (
        "import os, signal; from pathlib import Path; from storage import open_database\n"
        "db = open_database(Path('postback.db'), 'USD')\n"
        "db.db.execute('PRAGMA wal_checkpoint(PASSIVE)').fetchall()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", begins],
            cwd=killed.parent,
            env=build_environment({}),
            check=False,
        )

    test_a_killed_service_goes_on_where_it_was(killed)


def test_a_restored_database_is_taken_although_nobody_had_written(path: Path, other: Path) -> None:
    # The way of old: everything is stopped, and the copy put in its place.
    for _ in range(2):
        open_database(path, "USD").close()
    copy(other, path)

    open_database(path, "USD").close()

    assert count_clicks(path) == 200


def test_a_copy_put_where_a_killed_service_left_its_log_is_refused(
    killed: Path, other: Path
) -> None:
    copy(other, killed)
    before = read_files(killed)

    with pytest.raises(DatabaseError, match="was overwritten while in use"):
        open_database(killed, "USD")

    assert read_files(killed) == before


def test_a_copy_moved_to_where_a_killed_service_left_its_log_is_refused(
    killed: Path, other: Path
) -> None:
    os.replace(other, killed)
    before = read_files(killed)

    with pytest.raises(DatabaseError, match="belongs to the file that was there before"):
        open_database(killed, "USD")

    assert read_files(killed) == before
    name_beside(killed, "-wal").unlink()
    open_database(killed, "USD").close()
    assert count_clicks(killed) == 200


@pytest.mark.parametrize("spoil", [empty, lambda other, path: path.unlink()], ids=["empty", "gone"])
@pytest.mark.parametrize("words", [("log",), ("offers", "set", "O1", "--allow-rebills")])
def test_no_command_lets_a_log_go_whose_file_is_gone(
    killed: Path, spoil: Way, words: tuple[str, ...]
) -> None:
    # SQLite removes the log of an empty file as it opens that, if only to read.
    write_config(killed.parent, {})
    log = name_beside(killed, "-wal")
    # Without a record: as after a restart of the machine.
    name_beside(killed, "-lock").unlink()
    kept = log.read_bytes()
    spoil(killed, killed)

    ran = call_process(killed.parent, *words)

    assert ran.status == 1
    assert "there is no database yet" in ran.err or "its write-ahead log" in ran.err
    assert log.read_bytes() == kept


def test_files_that_were_copied_together_are_taken(killed: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for each in killed.parent.glob("postback.db*"):
        shutil.copy2(each, moved)
    os.utime(moved / "postback.db")

    open_database(moved / "postback.db", "USD").close()

    assert count_clicks(moved / "postback.db") == 800


def test_a_log_that_is_gone_leaves_the_file_to_be_checked(
    db: Storage, path: Path, other: Path
) -> None:
    copy(other, path)
    db.close()
    for suffix in ("-wal", "-shm"):
        name_beside(path, suffix).unlink()
    write_config(path.parent, {})

    with pytest.raises(DatabaseError, match="Nothing is taken until a check of the whole file"):
        open_database(path, "USD")
    # A command does not wait for the service to do it.
    ran = call_process(path.parent, "offers", "set", "O1", "--allow-rebills")

    assert ran.status == 0, ran.err
    assert count_clicks(path) == 200


def cut_log(log: Path) -> None:
    os.truncate(log, log.stat().st_size // 2)


def zero_log(log: Path) -> None:
    log.write_bytes(bytes(log.stat().st_size))


def spoil_last_frame(log: Path) -> None:
    with log.open("r+b") as file:
        file.seek(-4096 - 24, os.SEEK_END)
        file.write(b"\xff" * 24)


@pytest.mark.parametrize("spoil", [cut_log, zero_log, spoil_last_frame])
def test_an_overwritten_log_is_noticed(
    db: Storage, path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(name_beside(path, "-wal"))
    before = read_files(path)

    with pytest.raises(DatabaseError, match="the write-ahead log of database"), db.transaction():
        pass
    db.close()

    assert read_files(path) == before


@pytest.mark.parametrize("spoil", [cut_log, zero_log])
def test_a_log_that_is_overwritten_amid_a_transaction_is_noticed(
    db: Storage, path: Path, spoil: Callable[[Path], None]
) -> None:
    def be_overwritten() -> None:
        with db.transaction():
            db.add_bare_click("c1", "")
            spoil(name_beside(path, "-wal"))

    with pytest.raises(DatabaseError, match="the write-ahead log of database"):
        be_overwritten()
    before = read_files(path)
    db.close()

    assert read_files(path) == before


def test_readers_refuse_what_was_never_in_the_database(
    db: Storage, path: Path, other: Path, tmp_path: Path
) -> None:
    write_config(path.parent, {})
    copy(other, path)
    with pytest.raises(DatabaseError), db.transaction():
        pass
    db.close()

    backup = call_process(path.parent, "backup", "copy.db")
    listed = call_process(path.parent, "conversions")
    check = call_process(path.parent, "check", "--json")

    for ran in (backup, listed):
        assert ran.status == 1
        assert "was overwritten while in use" in ran.err
    assert not (tmp_path / "copy.db").exists()
    [problem] = [found for found in check.objects if found["check"] == "database"]
    assert problem["level"] == "problem"
    assert "was overwritten while in use" in problem["message"]


def test_nothing_is_written_down_of_a_file_that_took_its_place(
    db: Storage, path: Path, other: Path
) -> None:
    os.replace(other, path)

    db.checkpoint_wal()

    # As its record it would be that of the log beside it, too.
    assert overwriting.read_record(db._lock, path) is None


# What SQLite does, in this program or another.


class Actors:
    """Two of ours and another program at work on one file."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)  # noqa: S311  # nothing is secret
        self.ours = [open_database(path, "USD") for _ in range(2)]
        self.foreign = sqlite3.connect(path, isolation_level=None)
        self.foreign.execute("PRAGMA wal_autocheckpoint = 20")
        self.number = 0

    def close(self) -> None:
        self.foreign.close()
        for db in self.ours:
            db.close()

    def commit(self) -> None:
        with self.random.choice(self.ours).transaction() as _:
            pass
        fill(self.random.choice(self.ours), f"ours-{self.next()}", self.random.choice([1, 1, 5]))

    def commit_beside(self) -> None:
        for _ in range(self.random.choice([1, 3, 30])):
            self.foreign.execute(
                "INSERT INTO clicks (subid) VALUES (?)", (f"foreign-{self.next()}",)
            )

    def checkpoint(self) -> None:
        self.random.choice(self.ours).checkpoint()

    def carry_over(self) -> None:
        self.random.choice(self.ours).checkpoint_wal()

    def checkpoint_beside(self) -> None:
        mode = self.random.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
        self.foreign.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def delete_beside(self) -> None:
        self.foreign.execute("DELETE FROM clicks WHERE id % 3 = 0")

    def vacuum(self) -> None:
        self.foreign.execute("VACUUM")

    def restore_by_sqlite(self) -> None:
        with closing(sqlite3.connect(":memory:")) as memory:
            self.foreign.backup(memory)
            self.commit_beside()
            memory.backup(self.foreign)

    def read_for_a_while(self) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM clicks").fetchall()
            self.commit()
            self.checkpoint()
            self.commit_beside()

    def open_anew(self) -> None:
        self.ours.pop(0).close()
        self.ours.append(open_database(self.path, "USD"))

    def open_anew_beside(self) -> None:
        self.foreign.close()
        self.foreign = sqlite3.connect(self.path, isolation_level=None)

    def change_names_and_modes(self) -> None:
        link = self.path.with_name("link")
        link.hardlink_to(self.path)
        self.path.chmod(0o640)
        link.unlink()

    def rest(self) -> None:
        """All go, and the log with them."""
        self.close()
        self.__init__(self.path, self.random.randrange(1000))  # type: ignore[misc]

    def next(self) -> int:
        self.number += 1
        return self.number + 1000 * self.random.randrange(10**9)


ACTIONS = [
    name for name in vars(Actors) if not name.startswith("_") and name not in {"close", "next"}
]


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_sqlite_does_is_taken_for_overwriting(path: Path, seed: int) -> None:
    actors = Actors(path, seed)
    try:
        for _ in range(60):
            getattr(actors, actors.random.choice(ACTIONS))()
            actors.commit()
    finally:
        actors.close()

    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_checkpoint_that_was_broken_off_is_not_taken_for_overwriting(path: Path) -> None:
    # Leaves the index saying that a checkpoint is under way, and some pages written.
    with open_database(path, "USD") as db:
        fill(db, "c", 30)
        [index] = [
            int(name)
            for name in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{name}")
            and os.path.samefile(f"/proc/self/fd/{name}", name_beside(path, "-shm"))
        ]
        os.pwrite(index, (10).to_bytes(4, sys.byteorder), 128)
        fill(db, "begun", 1)
        for _ in range(2):
            # As the checkpoint's writes come to the file.
            with path.open("r+b") as file:
                page = file.read(4096)
                file.seek(0)
                file.write(page)
            fill(db, f"d-{time.monotonic()}", 1)

        fill(db, "d", 3)
        db.checkpoint()
        fill(db, "e", 3)

    assert count_clicks(path) == 39 * ROWS_A_COMMIT


def test_a_record_that_cannot_be_read_is_none(path: Path) -> None:
    for text in (b"", b"{", b"[]", b'{"lock": "x"}', bytes(4096), b"\xff" * 9000):
        name_beside(path, "-lock").write_bytes(text)
        with open_database(path, "USD") as db:
            fill(db, str(len(text)) + text[:1].hex(), 1)
            record = overwriting.read_record(db._lock, path)

        assert record is not None
        assert record.generation
