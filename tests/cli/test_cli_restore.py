"""`postback restore`: a verified copy in the database's place, the previous one beside it."""

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from cli_calls import Ran, call_process
from conftest import Client, ReceiverWith
from killed_service import run_and_kill
from tree import find_data

from postbackd.cli import entry as cli
from postbackd.db.sqlite import restore as restoring
from postbackd.db.sqlite import schema
from postbackd.db.sqlite.connection import DatabaseError, name_beside
from storage import open_database

DATABASES = find_data("databases")


@pytest.fixture
def tracker(client: Client) -> Client:
    """A tracker with a sale that is in a backup, and one that came later."""
    client.click("c1", offer="O1")
    client.send("subid=c1&tid=t1&payout=10")
    assert call_process(client.directory, "backup", "copy.db").status == 0
    client.click("c2")
    client.send("subid=c2&tid=t2&payout=20")
    return client


@pytest.fixture
def restore(client: Client, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Restore in this process."""

    def call(*words: str) -> Ran:
        config = str(client.directory / "config.ini.php")
        status = cli.main(["restore", *words, "--config", config])
        return Ran(status, *capsys.readouterr())

    return call


Restore = Callable[..., Ran]


def list_names(client: Client, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in client.directory.glob(pattern))


def list_subids(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [subid for (subid,) in db.execute("SELECT subid FROM clicks ORDER BY id")]


def test_the_running_service_goes_on_with_the_copy_and_what_was_there_is_kept(
    tracker: Client, restore: Restore
) -> None:
    ran = restore(str(tracker.directory / "copy.db"), "--json")

    assert ran.status == 0, ran.err
    [told] = ran.objects
    kept = Path(told["kept"])
    assert told["newer_postbacks"] == 1
    assert (told["postbacks"], told["conversions"], told["clicks"]) == (1, 1, 1)
    assert told["newest_postback_at"] == "2026-03-02T12:00:00.000Z"
    assert told["kept_log"] is None
    assert list_names(tracker, "postback.db*") == ["postback.db", "postback.db-lock", kept.name]
    assert stat.S_IMODE(tracker.database.stat().st_mode) == 0o600
    # The service notices it with its next commit.
    assert tracker.send("subid=c1&tid=t1&payout=10").status == 503
    assert tracker.send("subid=c1&tid=t1&payout=10").verdict == "repeated"
    assert tracker.send("subid=c2&tid=t2&payout=20").verdict == "parked"
    assert list_subids(kept) == ["c1", "c2"]
    assert list_subids(tracker.database) == ["c1"]


def test_a_terminal_shows_what_was_done(tracker: Client, restore: Restore) -> None:
    ran = restore(str(tracker.directory / "copy.db"))

    [kept] = tracker.directory.glob("postback.db.before-restore-*")
    assert f"{tracker.database} is now a copy of {tracker.directory / 'copy.db'}" in ran.out
    assert "1 postbacks, 1 conversions, 1 clicks, the newest postback of 2026-03-02" in ran.out
    assert f"the previous database is now {kept}; 1 postbacks in it came later" in ran.out


def test_a_dry_run_verifies_and_changes_nothing(tracker: Client, restore: Restore) -> None:
    before = list_names(tracker)
    content = tracker.database.read_bytes()

    ran = restore(str(tracker.directory / "copy.db"), "--dry-run")

    assert ran.status == 0
    assert "can be restored" in ran.out
    assert list_names(tracker) == before
    assert tracker.database.read_bytes() == content
    assert tracker.send("subid=c2&tid=t2&payout=20").verdict == "repeated"


def remove(copy: Path) -> None:
    copy.unlink()


def make_empty(copy: Path) -> None:
    copy.write_bytes(b"")


def make_directory(copy: Path) -> None:
    copy.unlink()
    copy.mkdir()


def write_garbage(copy: Path) -> None:
    copy.write_bytes(b"no database" * 1000)


def cut_off(copy: Path) -> None:
    os.truncate(copy, copy.stat().st_size - 4096)


def spoil_a_page(copy: Path) -> None:
    with closing(sqlite3.connect(f"file:{copy}?immutable=1", uri=True)) as db:
        sql = "SELECT rootpage FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'postbacks'"
        page = db.execute(sql).fetchone()[0]
    with copy.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 100)


def copy_while_it_changes(copy: Path) -> None:
    """Overwrite as `cp` does beside a service: the file's first half is newer than the second."""
    states = []
    with open_database(copy, "USD") as db:
        for round_ in range(2):
            clicks = ((f"{round_}-{number}",) for number in range(3000))
            with db.transaction():
                db.db.executemany("INSERT INTO clicks (subid) VALUES (?)", clicks)
            assert db.checkpoint_wal()
            states.append(copy.read_bytes())
    first, second = states
    half = len(second) // 2
    copy.write_bytes(second[:half] + first[half:].ljust(len(second) - half, b"\0"))


def make_newer(copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as db:
        db.execute("PRAGMA user_version = 99")


def make_anothers(copy: Path) -> None:
    copy.unlink()
    with closing(sqlite3.connect(copy)) as db:
        db.execute("CREATE TABLE affiliates (id)")


def change_currency(copy: Path) -> None:
    with closing(sqlite3.connect(copy, isolation_level=None)) as db:
        db.execute("UPDATE tracker SET currency = 'EUR'")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (remove, "cannot be read: No such file"),
        (make_empty, "is no file, or an empty one: name a backup"),
        (make_directory, "is no file, or an empty one: name a backup"),
        (write_garbage, "cannot be restored: file is not a database"),
        (cut_off, "is damaged, or was copied while it was in use"),
        (spoil_a_page, "is damaged, or was copied while it was in use"),
        (copy_while_it_changes, "is damaged, or was copied while it was in use"),
        (make_newer, "has schema 99, and this program knows up to"),
        (make_anothers, "has no tables of ours"),
        (change_currency, "keeps its amounts in EUR, and the config says currency = 'USD'"),
    ],
)
def test_a_copy_that_is_not_sound_is_refused_and_all_is_as_it_was(
    tracker: Client, restore: Restore, spoil: Callable[[Path], None], sentence: str
) -> None:
    copy = tracker.directory / "copy.db"
    spoil(copy)
    before = list_names(tracker)

    ran = restore(str(copy))

    assert ran.status == 1
    assert sentence in ran.err
    assert str(copy) in ran.err
    assert list_names(tracker) == before
    assert tracker.send("subid=c2&tid=t2&payout=20").verdict == "repeated"


@pytest.mark.parametrize("name", ["postback.db-wal", "postback.db-shm", "postback.db-lock"])
def test_a_file_of_the_database_is_no_copy_of_it(
    tracker: Client, restore: Restore, name: str
) -> None:
    ran = restore(str(tracker.directory / name))

    assert ran.status == 1
    assert "belongs to the database" in ran.err


def test_a_sound_database_is_not_put_in_its_own_place(tracker: Client, restore: Restore) -> None:
    ran = restore(str(tracker.database))

    assert ran.status == 1
    assert "nothing is known to be wrong with it" in ran.err


def test_a_copy_with_its_log_is_taken_with_it(tracker: Client, restore: Restore) -> None:
    copy = tracker.directory / "with-log.db"
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{tracker.database}{suffix}", f"{copy}{suffix}")
    assert Path(f"{copy}-wal").stat().st_size > 0

    assert restore(str(copy)).status == 0

    assert list_subids(tracker.database) == ["c1", "c2"]


@pytest.mark.parametrize("version", range(1, len(schema.MIGRATIONS)))
def test_an_older_copy_is_brought_up_to_date(
    tracker: Client, restore: Restore, version: int
) -> None:
    ran = restore(str(DATABASES / f"schema-{version}.db"), "--json")

    assert ran.status == 0, ran.err
    assert ran.objects[0]["schema"] == version
    with closing(sqlite3.connect(tracker.database)) as db:
        assert schema.read_version(db) == len(schema.MIGRATIONS)
    assert [path.name for path in DATABASES.glob("*-wal")] == []


def test_a_copy_on_a_medium_that_is_only_read_needs_nothing_written_there(
    tracker: Client, restore: Restore
) -> None:
    medium = tracker.directory / "medium"
    medium.mkdir()
    shutil.move(tracker.directory / "copy.db", medium)

    assert restore(str(medium / "copy.db")).status == 0

    assert list_names(tracker, "medium/*") == ["copy.db"]


def test_a_copy_with_contradictions_is_reported_and_restored(
    tracker: Client, restore: Restore
) -> None:
    copy = tracker.directory / "copy.db"
    with closing(sqlite3.connect(copy, isolation_level=None)) as db:
        db.execute("DELETE FROM conversion_history")

    ran = restore(str(copy), "--json")

    assert ran.status == 0
    [warning] = ran.objects[0]["warnings"]
    assert "1 conversions without a row of history" in warning


def test_a_log_that_a_reader_holds_is_kept_with_its_database(
    tracker: Client, restore: Restore
) -> None:
    with closing(sqlite3.connect(tracker.database, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM clicks").fetchall()
        tracker.click("c3")

        [told] = restore(str(tracker.directory / "copy.db"), "--json").objects

        assert told["kept_log"] == f"{told['kept']}-wal"
    assert list_subids(Path(told["kept"])) == ["c1", "c2", "c3"]
    assert list_subids(tracker.database) == ["c1"]


def test_where_there_is_no_database_there_is_one_then(tracker: Client, restore: Restore) -> None:
    tracker.receiver.close()
    tracker.database.unlink()

    ran = restore(str(tracker.directory / "copy.db"))

    assert ran.status == 0, ran.err
    assert "kept" not in ran.out
    assert list_subids(tracker.database) == ["c1"]


def test_a_database_behind_a_link_is_replaced_where_it_is(
    receiver_with: ReceiverWith, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    client = receiver_with()
    open_database(disk / "real.db", "USD").close()
    client.database.symlink_to(disk / "real.db")
    assert client.click("c1").status == 200
    assert call_process(client.directory, "backup", "copy.db").status == 0

    assert call_process(client.directory, "restore", "copy.db").status == 0

    assert client.database.is_symlink()
    assert sorted(path.name.partition(".before")[0] for path in disk.iterdir()) == [
        *("real.db", "real.db", "real.db-lock"),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_what_root_restores_is_its_owners(tracker: Client, restore: Restore) -> None:
    os.chown(tracker.database, 1234, 5678)

    assert restore(str(tracker.directory / "copy.db")).status == 0

    state = tracker.database.stat()
    assert (state.st_uid, state.st_gid) == (1234, 5678)


def test_two_in_one_second_keep_both(
    tracker: Client, restore: Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = restoring._find_name
    monkeypatch.setattr(restoring, "_find_name", lambda target, now: name(target, now.min))

    for _ in range(2):
        assert restore(str(tracker.directory / "copy.db")).status == 0

    assert len(list_names(tracker, "postback.db.before-restore-*")) == 2


# After the file was overwritten.


def be_overwritten(client: Client) -> None:
    shutil.copyfile(client.directory / "copy.db", client.database)
    assert client.send("subid=c1").status == 503


def test_an_overwritten_database_is_replaced_and_its_log_never_replayed(
    tracker: Client, restore: Restore
) -> None:
    be_overwritten(tracker)

    [told] = restore(str(tracker.directory / "copy.db"), "--json").objects

    assert told["kept_log"] == f"{told['kept']}.log"
    assert told["newer_postbacks"] is None
    assert Path(told["kept_log"]).stat().st_size > 0
    assert list_subids(Path(told["kept"])) == ["c1"]
    assert tracker.send("subid=c1&tid=t1&payout=10").verdict == "repeated"
    assert tracker.get("/health").status == 200


def test_the_log_of_an_emptied_database_is_kept(tracker: Client, restore: Restore) -> None:
    os.truncate(tracker.database, 0)
    tracker.receiver.close()
    log = name_beside(tracker.database, "-wal").read_bytes()

    [told] = restore(str(tracker.directory / "copy.db"), "--json").objects

    assert Path(told["kept_log"]).read_bytes() == log != b""
    assert list_subids(tracker.database) == ["c1"]


def test_what_was_copied_over_it_can_be_taken_from_its_own_place(
    tracker: Client, restore: Restore
) -> None:
    be_overwritten(tracker)

    assert restore(str(tracker.database)).status == 0

    assert list_subids(tracker.database) == ["c1"]
    assert tracker.send("subid=c1&tid=t1&payout=10").verdict == "repeated"


def test_one_that_was_only_touched_is_taken_with_its_log_from_elsewhere(
    tracker: Client, restore: Restore
) -> None:
    with open_database(tracker.database, "USD") as db:
        assert db.checkpoint_wal()
    tracker.click("c3")
    os.utime(tracker.database)
    assert tracker.click("c4").status == 503
    # FILE is the database itself: whether the write-ahead log belongs to it is unknown.
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{tracker.database}{suffix}", tracker.directory / f"touched.db{suffix}")

    assert restore(str(tracker.directory / "touched.db")).status == 0

    assert list_subids(tracker.database) == ["c1", "c2", "c3"]
    assert tracker.click("c4").status == 200


def test_what_a_lost_log_has_left_is_taken_without_it(tracker: Client, restore: Restore) -> None:
    with open_database(tracker.database, "USD") as db:
        assert db.checkpoint_wal()
    tracker.click("c3")
    log = name_beside(tracker.database, "-wal")
    os.truncate(log, log.stat().st_size - 100)
    assert tracker.click("c4").status == 503

    assert restore(str(tracker.database)).status == 0

    assert list_subids(tracker.database) == ["c1", "c2"]


def test_a_copy_moved_to_where_a_killed_service_left_its_log_is_taken_without_that(
    receiver_with: ReceiverWith, tmp_path: Path
) -> None:
    client = receiver_with()
    run_and_kill(client.database)
    copy = tmp_path / "copy.db"
    with open_database(copy, "USD") as db, db.transaction():
        db.add_bare_click("c1", "")
    os.replace(copy, client.database)
    assert client.click("c2").status == 503

    assert call_process(client.directory, "restore", "postback.db").status == 0

    assert list_subids(client.database) == ["c1"]
    assert client.click("c2").status == 200


@pytest.mark.parametrize("is_sound", [True, False])
def test_one_that_is_killed_amid_it_mixes_no_two_databases(
    tracker: Client, restore: Restore, monkeypatch: pytest.MonkeyPatch, is_sound: bool
) -> None:
    if not is_sound:
        be_overwritten(tracker)

    def be_killed(log: Path, name: Path) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "_put_away", be_killed)
        assert restore(str(tracker.directory / "copy.db")).status == 130

    # The copy is in place, with the write-ahead log of the previous database beside it.
    if not is_sound:
        with pytest.raises(DatabaseError, match="belongs to the former file"):
            open_database(tracker.database, "USD")
        assert restore(str(tracker.directory / "copy.db")).status == 0
    with open_database(tracker.database, "USD"):
        assert list_subids(tracker.database) == ["c1"]
