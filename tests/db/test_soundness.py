"""Damage that SQLite meets: 503 for everybody until a check of the whole file has passed."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cli_calls import call_process
from conftest import Client, ReceiverWith
from live import wait_until

from postbackd.db.sqlite import soundness
from postbackd.db.sqlite.connection import DatabaseError, DoubtedError
from storage import open_database

INDEX = "postbacks_without_conversion"


def set_root(path: Path, root: int) -> int:
    """Let an index begin at another page, by SQLite itself; returns where it began."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        # Opens what is damaged, too.
        db.execute("PRAGMA writable_schema = ON")
        where = f"name = '{INDEX}'"
        [(before,)] = db.execute(f"SELECT rootpage FROM sqlite_schema WHERE {where}")
        db.execute(f"UPDATE sqlite_schema SET rootpage = {root} WHERE {where}")
        [(version,)] = db.execute("PRAGMA schema_version")
        db.execute(f"PRAGMA schema_version = {version + 1}")
        number: int = before
        return number


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Damage a database, and mend it, while it is in use."""
    root = set_root(path, 1_000_000)
    try:
        yield
    finally:
        set_root(path, root)


def list_troubles(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("nothing is acknowledged")]


def test_damage_is_503_until_a_check_passes_and_told_once(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.send("subid=c1")
    with damaged(client.database):
        assert client.send("subid=c2").status == 503
        told_first = list_troubles(caplog)
        # Asked again and again, while the check runs and after it has found what is wrong.
        wait_until(
            lambda: client.send("subid=c3").status == 503 and len(list_troubles(caplog)) > 1,
            "the outcome of the check",
        )
        for _ in range(5):
            assert client.send("subid=c3").status == 503
            assert client.get("/health").status == 503
        told = list_troubles(caplog)

    wait_until(lambda: client.send("subid=c4").status == 200, "a check that passes")

    [first] = told_first
    assert "malformed" in first
    assert "Nothing is accepted until a check of the whole file has passed" in first
    _, outcome = told
    assert "`postback restore FILE`" in outcome
    assert caplog.messages.count("the database works again") == 1
    assert [row.subid for row in client.postbacks()] == ["c1", "c4"]


def test_one_workers_damage_is_everybodys(receiver_with: ReceiverWith) -> None:
    client = receiver_with()
    client.send("subid=c1")
    second = receiver_with(directory=client.directory)
    second.send("subid=c2")
    with damaged(client.database):
        assert client.send("subid=c3").status == 503
    # Mended, and not checked yet: the other one has met no damage.
    with open_doubt(client.database) as doubt:
        assert second.send("subid=c4").status == 503
        doubt.set()

    wait_until(lambda: second.send("subid=c5").status == 200, "a check that passes")
    wait_until(lambda: client.send("subid=c6").status == 200, "the same one's word")


@contextmanager
def open_doubt(path: Path) -> Iterator[threading.Event]:
    """Let no check come to its end meanwhile."""
    done = threading.Event()
    find_flaws = soundness.find_flaws

    def wait_and_find(path: Path, *, is_thorough: bool) -> list[str]:
        done.wait(60)
        return find_flaws(path, is_thorough=is_thorough)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(soundness, "find_flaws", wait_and_find)
        try:
            yield done
        finally:
            done.set()


def test_the_service_does_not_wait_for_a_check(tmp_path: Path) -> None:
    path = tmp_path / "postback.db"
    meet_damage(path)
    recheck = soundness.Recheck()
    with open_doubt(path) as doubt:
        for _ in range(2):
            with pytest.raises(DoubtedError, match="Nothing is accepted until a check"):
                recheck.settle(path)
        doubt.set()

        wait_until(lambda: is_settled(recheck, path), "a check that passes")

    open_database(path, "USD").close()


def test_a_check_settles_no_damage_that_was_met_after_it(tmp_path: Path) -> None:
    path = tmp_path / "postback.db"
    meet_damage(path)
    ours, anothers = soundness.Recheck(), soundness.Recheck()
    with open_doubt(path) as doubt:
        with pytest.raises(DoubtedError):
            anothers.settle(path)
        doubt.set()
    wait_until(lambda: is_settled(ours, path), "a check that passes")
    meet_damage(path)

    with open_doubt(path), pytest.raises(DoubtedError):
        anothers.settle(path)
    wait_until(lambda: is_settled(anothers, path), "a check of its own")


def is_settled(recheck: soundness.Recheck, path: Path) -> bool:
    try:
        recheck.settle(path)
    except DoubtedError:
        return False
    return True


def test_a_command_checks_by_itself_and_check_tells_of_it(client: Client) -> None:
    client.send("subid=c1")
    with damaged(client.database):
        assert client.send("subid=c2").status == 503
        refused = call_process(client.directory, "offers", "set", "O1", "--allow-rebills")
        client.receiver.close()
    found = call_process(client.directory, "check", "--json").objects
    done = call_process(client.directory, "offers", "set", "O1", "--allow-rebills")
    found_then = call_process(client.directory, "check", "--json").objects

    assert refused.status == 1
    assert "malformed" in refused.err
    unchecked = "Nothing is accepted until a check of the whole file has passed"
    assert [each["level"] for each in found if unchecked in each["message"]] == ["problem"]
    assert done.status == 0, done.err
    assert not [each for each in found_then if unchecked in each["message"]]


def test_serve_leaves_the_check_to_the_service(client: Client) -> None:
    client.get("/health")
    client.receiver.close()
    meet_damage(client.database)

    # gunicorn refuses the option, which it would not get to see else.
    ran = call_process(client.directory, "serve", "--no-such-option")

    assert "unrecognized arguments: --no-such-option" in ran.err
    with pytest.raises(DoubtedError):
        open_database(client.database, "USD")


def meet_damage(path: Path) -> None:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    with open_database(path, "USD") as db, pytest.raises(DoubtedError), db.transaction():
        raise error


def test_the_second_time_every_index_is_held_against_its_table(tmp_path: Path) -> None:
    path = tmp_path / "postback.db"
    with open_database(path, "USD") as db, db.transaction():
        db.db.execute("INSERT INTO clicks (subid) VALUES ('c1')")
    with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.execute("CREATE INDEX lies ON clicks (subid)")
        foreign.execute("PRAGMA writable_schema = ON")
        lie = "sql = replace(sql, '(subid)', '(created_at)')"
        foreign.execute(f"UPDATE sqlite_schema SET {lie} WHERE name = 'lies'")

    meet_damage(path)
    soundness.settle_now(path)
    open_database(path, "USD").close()
    meet_damage(path)

    with pytest.raises(DatabaseError, match="`postback restore FILE`"):
        soundness.settle_now(path)
    with pytest.raises(DoubtedError):
        open_database(path, "USD")
