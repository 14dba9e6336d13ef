"""Group commit: an acknowledged postback is on disk, and one's failure does not fail the others."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from postbackd.intake import group_commit
from postbackd.intake.group_commit import Committer, Ticket, UnavailableError, Writer
from storage import Storage, open_database

# Long enough for any machine; nothing here waits for it unless it hangs.
PATIENCE_SECONDS = 60


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "postback.db"


@pytest.fixture
def committer(path: Path) -> Committer:
    return Committer(lambda: open_database(path, "USD"), lambda db: None)


@pytest.fixture
def desk(committer: Committer) -> Iterator[Writer]:
    desk = Writer(committer)
    yield desk
    desk.close()


def add_offer(name: str) -> Callable[[Storage], str]:
    def job(db: Storage) -> str:
        db.set_offer(name, allow_rebills=True)
        return name

    return job


def offers(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [name for (name,) in db.execute("SELECT name FROM offers ORDER BY id")]


class Gate:
    """A job that holds the writer until it is let go, so that others gather behind it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, db: Storage) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENCE_SECONDS)


def hold(desk: Writer) -> tuple[Gate, Ticket[None]]:
    gate = Gate()
    ticket = desk.submit(gate)
    assert gate.entered.wait(PATIENCE_SECONDS)
    return gate, ticket


def test_a_job_that_returned_is_on_disk(desk: Writer, path: Path) -> None:
    assert desk.run(add_offer("O1")) == "O1"

    assert offers(path) == ["O1"]


def test_what_gathers_shares_one_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No commit but those of the jobs, however long the machine takes.
    monkeypatch.setattr(group_commit, "TICK_SECONDS", 3600.0)
    commits: list[int] = []
    desk = Writer(Committer(lambda: open_database(path, "USD"), lambda db: commits.append(1)))
    gate, first = hold(desk)
    tickets = [desk.submit(add_offer(f"O{number}")) for number in range(100)]
    before = len(commits)

    gate.opened.set()
    first.wait(PATIENCE_SECONDS)
    for ticket in tickets:
        ticket.wait(PATIENCE_SECONDS)
    desk.close()

    assert len(offers(path)) == 100
    assert len(commits) - before == 1


def test_nothing_is_told_before_the_commit(desk: Writer, path: Path) -> None:
    desk.run(add_offer("O1"))
    gate, first = hold(desk)
    behind = desk.submit(add_offer("O2"))

    assert offers(path) == ["O1"]
    with pytest.raises(UnavailableError):
        behind.wait(0.01)

    gate.opened.set()
    first.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "boom",
    [
        RuntimeError("boom"),
        sqlite3.IntegrityError("boom"),
        OverflowError("Python int too large to convert to SQLite INTEGER"),
    ],
)
def test_one_jobs_trouble_is_its_own(desk: Writer, path: Path, boom: Exception) -> None:
    def broken(db: Storage) -> None:
        db.set_offer("half done", allow_rebills=True)
        raise boom

    gate, _ = hold(desk)
    before = desk.submit(add_offer("O1"))
    trouble = desk.submit(broken)
    after = desk.submit(add_offer("O2"))
    gate.opened.set()

    assert (before.wait(PATIENCE_SECONDS), after.wait(PATIENCE_SECONDS)) == ("O1", "O2")
    with pytest.raises(type(boom), match=str(boom)[:4]):
        trouble.wait(PATIENCE_SECONDS)
    assert offers(path) == ["O1", "O2"]


def test_the_databases_trouble_fails_the_whole_batch_and_the_next_is_served(
    desk: Writer, path: Path
) -> None:
    def fail(db: Storage) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    gate, first = hold(desk)
    before = desk.submit(add_offer("O1"))
    desk.submit(fail)
    gate.opened.set()

    first.wait(PATIENCE_SECONDS)
    with pytest.raises(UnavailableError, match="disk I/O error"):
        before.wait(PATIENCE_SECONDS)
    assert desk.run(add_offer("O2")) == "O2"
    assert offers(path) == ["O2"]


def test_a_commit_that_breaks_off_is_not_the_writers_end(path: Path) -> None:
    troubles = [RuntimeError("boom")]

    def open_storage() -> Storage:
        if troubles:
            raise troubles[0]
        return open_database(path, "USD")

    desk = Writer(Committer(open_storage, lambda db: None))
    with pytest.raises(UnavailableError, match="broke off"):
        desk.run(add_offer("O1"))
    troubles.clear()

    assert desk.run(add_offer("O2")) == "O2"
    desk.close()


def test_a_full_line_refuses_at_once(desk: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "QUEUE_LIMIT", 2)
    gate, _ = hold(desk)
    desk.submit(add_offer("O1"))
    desk.submit(add_offer("O2"))

    with pytest.raises(UnavailableError, match="2 postbacks wait already"):
        desk.submit(add_offer("O3"))

    gate.opened.set()


def test_whoever_gave_up_waiting_is_not_booked_behind_its_back(desk: Writer, path: Path) -> None:
    gate, first = hold(desk)
    impatient = desk.submit(add_offer("O1"))
    patient = desk.submit(add_offer("O2"))

    with pytest.raises(UnavailableError, match="took nothing for"):
        impatient.wait(0)
    gate.opened.set()
    first.wait(PATIENCE_SECONDS)

    patient.wait(PATIENCE_SECONDS)
    assert offers(path) == ["O2"]


def test_closing_commits_what_was_taken_and_refuses_what_comes_later(
    desk: Writer, path: Path
) -> None:
    gate, first = hold(desk)
    taken = [desk.submit(add_offer(f"O{number}")) for number in range(50)]
    closing_thread = threading.Thread(target=desk.close)
    closing_thread.start()

    gate.opened.set()
    first.wait(PATIENCE_SECONDS)
    for ticket in taken:
        ticket.wait(PATIENCE_SECONDS)
    closing_thread.join(PATIENCE_SECONDS)

    assert len(offers(path)) == 50
    assert "writer" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(UnavailableError):
        desk.run(add_offer("late"))


def test_housekeeping_that_breaks_takes_no_postback_along(path: Path) -> None:
    def broken_housekeeping(db: Storage) -> None:
        db.set_offer("half done", allow_rebills=True)
        raise RuntimeError("boom")

    desk = Writer(Committer(lambda: open_database(path, "USD"), broken_housekeeping))

    assert desk.run(add_offer("O1")) == "O1"
    desk.close()
    assert offers(path) == ["O1"]


def test_housekeeping_is_done_without_any_job(path: Path) -> None:
    done = threading.Event()
    desk = Writer(Committer(lambda: open_database(path, "USD"), lambda db: done.set()))

    desk.start()

    assert done.wait(PATIENCE_SECONDS)
    desk.close()


# A server that holds its answers back


def test_jobs_are_on_disk_when_their_commit_returns(committer: Committer, path: Path) -> None:
    names = committer.commit([add_offer("O1"), add_offer("O2")])

    assert names == offers(path) == ["O1", "O2"]
    committer.leave_storage()


def test_a_job_sees_nothing_on_disk_before_the_commit(committer: Committer, path: Path) -> None:
    committer.commit([])

    seen = committer.commit([add_offer("O1"), lambda db: offers(path)])

    assert seen == ["O1", []]
    committer.leave_storage()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_job_is_told_in_its_place_and_leaves_the_others(
    committer: Committer, path: Path, place: int
) -> None:
    def broken(db: Storage) -> Any:
        db.set_offer("half done", allow_rebills=True)
        raise RuntimeError("boom")

    jobs: list[Callable[[Storage], Any]] = [add_offer("O1"), add_offer("O2")]
    jobs.insert(place, broken)
    outcomes = committer.commit(jobs)

    assert str(outcomes.pop(place)) == "boom"
    assert outcomes == offers(path) == ["O1", "O2"]
    committer.leave_storage()


def test_the_databases_trouble_is_every_jobs(committer: Committer, path: Path) -> None:
    def fail(db: Storage) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(UnavailableError, match="disk I/O error"):
        committer.commit([add_offer("O1"), fail, add_offer("O2")])

    assert offers(path) == []


def test_the_database_works_again_when_it_has_taken_something(
    committer: Committer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    committer.commit([add_offer("O1")])
    path.rename(path.with_name("moved.db"))
    with pytest.raises(UnavailableError):
        committer.commit([add_offer("O2")])
    path.with_name("moved.db").rename(path)

    committer.commit([])
    told_by_nothing = caplog.messages.count("the database works again")
    committer.commit([add_offer("O3")])

    assert told_by_nothing == 0
    assert caplog.messages.count("the database works again") == 1


def test_housekeeping_stands_where_a_job_breaks(path: Path) -> None:
    def broken(db: Storage) -> None:
        raise RuntimeError("boom")

    def keep_house(db: Storage) -> None:
        db.set_offer("swept", allow_rebills=True)

    committer = Committer(lambda: open_database(path, "USD"), keep_house)
    committer.commit([broken])

    assert offers(path) == ["swept"]
    committer.leave_storage()


def test_after_a_failed_sync_the_log_is_written_anew_before_anything_is_taken(
    committer: Committer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failed sync left in the log may be on no disk; nothing may be committed behind it."""
    monkeypatch.setattr("postbackd.db.sqlite.connection.BUSY_TIMEOUT_SECONDS", 0.05)

    def fail_to_sync(db: Storage) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    def take(job: Callable[[Storage], Any]) -> None:
        committer.commit([job])

    take(add_offer("O1"))
    with pytest.raises(UnavailableError):
        take(fail_to_sync)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM offers").fetchall()
        # Something for the reader not to have seen: only then is the log in its way.
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("INSERT INTO offers (name) VALUES ('O2')")

        with pytest.raises(UnavailableError, match="a sync has failed"):
            take(add_offer("O3"))

        reader.execute("ROLLBACK")
    take(add_offer("O4"))

    assert offers(path) == ["O1", "O2", "O4"]
    committer.leave_storage()
