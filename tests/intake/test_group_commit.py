"""Group commit: an acknowledged postback is on disk, and one's failure does not fail the others."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import write_config
from live import wait_until

from postbackd.intake import booking, group_commit
from postbackd.intake import runtime as service_module
from postbackd.intake.group_commit import Committer, Job, Line, UnavailableError, cut
from postbackd.intake.runtime import Service
from storage import Storage, open_database

# Long enough for any machine; nothing here waits for it unless it hangs.
PATIENCE_SECONDS = 60


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "postback.db"


@pytest.fixture
def committer(path: Path) -> Iterator[Committer]:
    committer = Committer(lambda: open_database(path, "USD"))
    yield committer
    committer.leave_storage()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(write_config(tmp_path, {}))
    yield service
    service.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(200) as pool:
        yield pool


def add_offer(name: str) -> Job[str]:
    def do(db: Storage) -> str:
        db.set_offer(name, allow_rebills=True)
        return name

    return Job(do)


def raise_it(error: Exception) -> Job[None]:
    def do(db: Storage) -> None:
        db.set_offer("half done", allow_rebills=True)
        raise error

    return Job(do)


def offers(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [name for (name,) in db.execute("SELECT name FROM offers ORDER BY id")]


class Gate:
    """A job that holds its leader until it is let go, so that others gather behind it."""

    def __init__(self, service: Service, threads: ThreadPoolExecutor) -> None:
        """Begin it, and wait until it holds."""
        self._service = service
        self._threads = threads
        self._entered = threading.Event()
        self._opened = threading.Event()
        self._first = threads.submit(service.run, Job(self._hold))
        assert self._entered.wait(PATIENCE_SECONDS)

    def _hold(self, db: Storage) -> None:
        self._entered.set()
        assert self._opened.wait(PATIENCE_SECONDS)

    def gather(self, *jobs: Job[Any]) -> list["Future[Any]"]:
        """Have jobs stand in line behind it, in this order."""
        line = self._service._line
        futures = []
        for job in jobs:
            before = len(line._places)
            futures.append(self._threads.submit(self._service.run, job))
            wait_until(lambda before=before: len(line._places) > before, "a place in line")  # type: ignore[misc]
        return futures

    def open(self) -> None:
        """Let go."""
        self._opened.set()
        assert self._first.result(PATIENCE_SECONDS) is None


@pytest.fixture
def gate(service: Service, threads: ThreadPoolExecutor) -> Gate:
    return Gate(service, threads)


# Threads that wait, and one that leads


def test_a_job_that_returned_is_on_disk(service: Service, path: Path) -> None:
    assert service.run(add_offer("O1")) == "O1"

    assert offers(path) == ["O1"]


def test_what_gathers_is_committed_by_one_of_those_who_wait(gate: Gate, path: Path) -> None:
    def add_by_whom(number: int) -> Job[int]:
        return Job(lambda db: (add_offer(f"O{number}").do(db), threading.get_ident())[1])

    waiting = gate.gather(*map(add_by_whom, range(100)))

    gate.open()
    leaders = {each.result(PATIENCE_SECONDS) for each in waiting}

    assert offers(path) == [f"O{number}" for number in range(100)]
    assert len(leaders) == 1


def test_who_has_its_outcome_leads_no_further(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "BATCH_LIMIT", 2)
    waiting = gate.gather(*[Job(lambda db: threading.get_ident()) for _ in range(6)])

    gate.open()
    leaders = [each.result(PATIENCE_SECONDS) for each in waiting]

    assert leaders[0::2] == leaders[1::2]
    assert len(set(leaders)) == 3


def test_nothing_is_told_before_the_commit(service: Service, path: Path, gate: Gate) -> None:
    (behind,) = gate.gather(add_offer("O1"))

    assert not behind.done()
    assert offers(path) == []

    gate.open()
    assert behind.result(PATIENCE_SECONDS) == "O1"
    assert offers(path) == ["O1"]


TROUBLES = [
    RuntimeError("boom"),
    sqlite3.IntegrityError("boom"),
    OverflowError("Python int too large to convert to SQLite INTEGER"),
]


@pytest.mark.parametrize("boom", TROUBLES)
def test_one_jobs_trouble_is_its_own(gate: Gate, path: Path, boom: Exception) -> None:
    before, trouble, after = gate.gather(add_offer("O1"), raise_it(boom), add_offer("O2"))

    gate.open()

    assert (before.result(PATIENCE_SECONDS), after.result(PATIENCE_SECONDS)) == ("O1", "O2")
    assert trouble.result(PATIENCE_SECONDS) is boom
    assert offers(path) == ["O1", "O2"]


def test_the_databases_trouble_fails_the_whole_batch_and_the_next_is_served(
    service: Service, gate: Gate, path: Path
) -> None:
    disk = sqlite3.OperationalError("disk I/O error")
    waiting = gate.gather(add_offer("O1"), raise_it(disk))
    gate.open()

    for each in waiting:
        outcome = each.result(PATIENCE_SECONDS)
        assert isinstance(outcome, UnavailableError)
        assert "disk I/O error" in str(outcome)
    assert service.run(add_offer("O2")) == "O2"
    assert offers(path) == ["O2"]


def test_a_commit_that_breaks_off_keeps_nobody_waiting(
    service: Service, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Storage:
        raise RuntimeError("boom")

    with monkeypatch.context() as broken:
        broken.setattr(service_module, "open_database", fail)
        outcome = service.run(add_offer("O1"))

    assert "broke off" in str(outcome)
    assert service.run(add_offer("O2")) == "O2"


def test_a_leader_that_is_ended_leaves_nobody_without_an_answer(
    gate: Gate, service: Service, path: Path
) -> None:
    def leave(db: Storage) -> None:
        raise SystemExit

    ended, beside = gate.gather(Job(leave), add_offer("O1"))
    gate.open()

    with pytest.raises(SystemExit):
        ended.result(PATIENCE_SECONDS)
    assert "broke off" in str(beside.result(PATIENCE_SECONDS))
    assert service.run(add_offer("O2")) == "O2"
    assert offers(path) == ["O2"]


def test_closing_commits_what_was_taken_and_refuses_what_comes_later(
    service: Service, gate: Gate, threads: ThreadPoolExecutor, path: Path
) -> None:
    taken = gate.gather(*[add_offer(f"O{number}") for number in range(50)])
    closing_down = threads.submit(service.close)
    wait_until(lambda: service._line._is_closed, "the line to be closed")
    late = service.run(add_offer("late"))

    gate.open()
    closing_down.result(PATIENCE_SECONDS)

    assert [each.result(PATIENCE_SECONDS) for each in taken] == offers(path)
    assert len(taken) == 50
    for outcome in (late, service.run(add_offer("later")), *service.commit([add_offer("last")])):
        assert isinstance(outcome, UnavailableError)
        assert "stopping" in str(outcome)


def test_another_thread_than_the_one_that_opened_it_closes_the_database(
    service: Service, threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    assert threads.submit(service.run, add_offer("O1")).result(PATIENCE_SECONDS) == "O1"

    service.close()

    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


def test_whoever_gave_up_waiting_is_not_booked_behind_its_back(
    gate: Gate, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as hasty:
        hasty.setattr(service_module, "WAIT_LIMIT_SECONDS", 0.01)
        outcome = gate._service.run(add_offer("O1"))
    (patient,) = gate.gather(add_offer("O2"))
    gate.open()

    assert "took nothing for 0.01 seconds" in str(outcome)
    assert patient.result(PATIENCE_SECONDS) == "O2"
    assert offers(path) == ["O2"]


def test_a_full_line_refuses_at_once(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "QUEUE_LIMIT", 2)
    gate.gather(add_offer("O1"), add_offer("O2"))

    outcome = gate._service.run(add_offer("O3"))

    assert "2 postbacks wait already" in str(outcome)
    gate.open()


def test_a_line_has_one_leader_and_passes_the_lead_on() -> None:
    line = Line()
    first, second, third = (line.stand(add_offer(name)) for name in ("O1", "O2", "O3"))
    line.wait(first, 0)
    batch = line.take()
    fourth = line.stand(add_offer("O4"))

    with pytest.raises(UnavailableError):
        line.wait(fourth, 0)
    fifth = line.stand(add_offer("O5"))
    line.hand_out(batch, ["O1", "O2", "O3"])

    assert [place.outcome for place in batch] == ["O1", "O2", "O3"]
    assert [place.leads for place in (first, second, third, fourth)] == [False] * 4
    line.wait(fifth, 0)
    assert fifth.leads
    assert line.take() == [fifth]


class LateLock:
    """A lock that is let go just after the wait for it has ended."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Say no to who waits, and yes to who looks again."""
        return not blocking


def test_who_is_called_to_lead_as_its_patience_ends_leads() -> None:
    line = Line()
    first = line.stand(add_offer("O1"))
    first.awake = LateLock()  # type: ignore[assignment]

    line.wait(first, 0.001)

    assert first.leads
    assert line.take() == [first]


# A server that gathers by itself


def test_jobs_are_on_disk_when_their_commit_returns(committer: Committer, path: Path) -> None:
    names = committer.commit([add_offer("O1"), add_offer("O2")])

    assert names == offers(path) == ["O1", "O2"]


def test_a_job_sees_nothing_on_disk_before_the_commit(committer: Committer, path: Path) -> None:
    committer.commit([])

    seen = committer.commit([add_offer("O1"), Job(lambda db: offers(path))])

    assert seen == ["O1", []]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_job_is_told_in_its_place_and_leaves_the_others(
    committer: Committer, path: Path, place: int
) -> None:
    jobs: list[Job[Any]] = [add_offer("O1"), add_offer("O2")]
    jobs.insert(place, raise_it(RuntimeError("boom")))
    outcomes = committer.commit(jobs)

    assert str(outcomes.pop(place)) == "boom"
    assert outcomes == offers(path) == ["O1", "O2"]


def test_the_databases_trouble_is_every_jobs(committer: Committer, path: Path) -> None:
    disk = sqlite3.OperationalError("disk I/O error")

    outcomes = committer.commit([add_offer("O1"), raise_it(disk), add_offer("O2")])

    assert ["disk I/O error" in str(outcome) for outcome in outcomes] == [True] * 3
    assert {type(outcome) for outcome in outcomes} == {UnavailableError}
    assert offers(path) == []


def test_a_click_id_that_no_table_can_hold_fails_its_own_job_alone(
    committer: Committer, path: Path
) -> None:
    odd = "\ud800"
    asking = Job(lambda db: db.find_click(odd), (odd,))

    outcomes = committer.commit([add_offer("O1"), asking, add_offer("O2")])

    assert isinstance(outcomes.pop(1), UnicodeEncodeError)
    assert outcomes == offers(path) == ["O1", "O2"]


def test_the_database_works_again_when_it_has_taken_something(
    committer: Committer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    committer.commit([add_offer("O1")])
    path.rename(path.with_name("moved.db"))
    (refused,) = committer.commit([add_offer("O2")])
    path.with_name("moved.db").rename(path)

    committer.commit([])
    told_by_nothing = caplog.messages.count("the database works again")
    committer.commit([add_offer("O3")])

    assert isinstance(refused, UnavailableError)
    assert told_by_nothing == 0
    assert caplog.messages.count("the database works again") == 1


def test_after_a_failed_sync_the_log_is_written_anew_before_anything_is_taken(
    committer: Committer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failed sync left in the log may be on no disk; nothing may be committed behind it."""
    monkeypatch.setattr("postbackd.db.sqlite.connection.BUSY_TIMEOUT_SECONDS", 0.05)
    failed_sync = sqlite3.OperationalError("disk I/O error")
    failed_sync.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC

    def take(job: Job[Any]) -> Any:
        (outcome,) = committer.commit([job])
        return outcome

    take(add_offer("O1"))
    assert isinstance(take(raise_it(failed_sync)), UnavailableError)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM offers").fetchall()
        # Something for the reader not to have seen: only then is the log in its way.
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("INSERT INTO offers (name) VALUES ('O2')")

        assert "a sync has failed" in str(take(add_offer("O3")))

        reader.execute("ROLLBACK")
    take(add_offer("O4"))

    assert offers(path) == ["O1", "O2", "O4"]


def test_what_is_long_is_committed_in_several_pieces() -> None:
    mebibyte = group_commit.BATCH_LIMIT_BYTES
    sizes = [10, mebibyte // 2, mebibyte // 2, 2 * mebibyte, 5, 5]
    jobs = [Job(add_offer("O1").do, size=size) for size in sizes]

    assert [[job.size for job in batch] for batch in cut(jobs)] == [
        [10, mebibyte // 2],
        [mebibyte // 2],
        [2 * mebibyte],
        [5, 5],
    ]
    assert list(cut([])) == [[]]


# What is due beside them


def test_what_is_due_is_done_without_any_job(service: Service, path: Path) -> None:
    service.run(add_offer("O1"))
    service.key_uses.seen[b"a key"] = service.clock()

    def uses() -> int:
        with closing(sqlite3.connect(path)) as db:
            (count,) = db.execute("SELECT count(*) FROM key_uses").fetchone()
            return int(count)

    wait_until(lambda: uses() == 1, "the use to be written down")


@pytest.mark.parametrize("commit", ["run", "commit"])
def test_what_is_due_and_breaks_takes_no_postback_along(
    service: Service, path: Path, monkeypatch: pytest.MonkeyPatch, commit: str
) -> None:
    def broken(db: Storage, *_: object, **__: object) -> int:
        db.set_offer("half done", allow_rebills=True)
        raise RuntimeError("boom")

    monkeypatch.setattr(booking, "settle_due_clicks", broken)
    ways: dict[str, Callable[[Job[str]], Any]] = {
        "run": service.run,
        "commit": lambda job: service.commit([job])[0],
    }

    assert ways[commit](add_offer("O1")) == "O1"
    assert offers(path) == ["O1"]


def test_what_is_due_is_done_where_a_job_breaks(
    service: Service, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        booking, "settle_due_clicks", lambda db, *_, **__: db.set_offer("swept", allow_rebills=True)
    )

    (outcome,) = service.commit([raise_it(RuntimeError("boom"))])

    assert str(outcome) == "boom"
    assert offers(path) == ["swept"]


def test_what_broke_is_left_alone_for_a_while(
    service: Service, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(group_commit, "TICK_SECONDS", 3600.0)
    monkeypatch.setattr(service_module, "TICK_SECONDS", 3600.0)

    def broken(*_: object, **__: object) -> int:
        tried.append(1)
        raise RuntimeError("boom")

    monkeypatch.setattr(booking, "settle_due_clicks", broken)

    for number in range(5):
        service.commit([add_offer(f"O{number}")])

    # Together with the others in vain, then alone.
    assert len(tried) == 2
    assert len(offers(path)) == 5


def test_threads_and_ticks_do_not_come_between_one_another(
    service: Service, threads: ThreadPoolExecutor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "TICK_SECONDS", 0.0)
    jobs = [add_offer(f"O{number}") for number in range(300)]
    answer_all = partial(service.commit, jobs[:50])

    batch = threads.submit(answer_all)
    each = [threads.submit(service.run, job) for job in jobs[50:]]

    outcomes = batch.result(PATIENCE_SECONDS) + [one.result(PATIENCE_SECONDS) for one in each]
    assert sorted(outcomes) == sorted(offers(path)) == sorted(f"O{n}" for n in range(300))
