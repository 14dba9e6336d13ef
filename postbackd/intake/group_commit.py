"""Group commit: what waits is done in one transaction, synced once, and only then answered.

A sync of the disk costs as much for one postback as for a hundred, so all that wait share one:

    read      a request becomes a `Job`: what to do, and the click ids that it will ask for
    judge     `Committer.commit` reads those clicks at once and does the jobs in order
    commit    the rows are written, a statement a table, and synced
    answer    each gets what came of its job, or `UnavailableError` where nothing was kept

A server with one thread, such as our worker, gathers the requests that are ready and calls
`Service.commit` itself. Under any other WSGI server each request has a thread, which puts its job
into the `Line` and waits. A thread that finds no leader becomes the leader: it commits all jobs in
the line, hands out the outcomes, and makes the first thread that still waits the next leader.

The trouble of one job is its own: where a job of a batch breaks, the transaction is rolled back and
its jobs are done again, each under a savepoint. The trouble of the database is everybody's: the
answer is 503, and the next commit opens the database again.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

from postbackd.db.sqlite.connection import DatabaseError, describe_trouble
from storage import Storage

LOG = logging.getLogger("postback.writer")

# A batch holds the write lock for some 20 ms, so that other workers and the CLI get their turn.
BATCH_LIMIT = 256
# Sixteen of the longest bodies: writing more would take longer than that.
BATCH_LIMIT_BYTES = 1024 * 1024

# What may wait: two seconds' worth at the speed of a slow disk. Beyond, a 503 at once is kinder
# than an answer that comes after the sender has gone.
QUEUE_LIMIT = 4096

# Longer than any healthy commit, shorter than the patience of senders (30 seconds is usual).
WAIT_LIMIT_SECONDS = 10.0

# The contract gives five seconds for what another program wrote; half of that leaves room.
TICK_SECONDS = 2.0

Result = TypeVar("Result")


class Job(NamedTuple, Generic[Result]):
    """What is to be done in a transaction, as a value.

    `do` may be called twice, the first time in vain: it changes nothing but the database. `about`:
    the click ids that it will ask for, as far as they are known. `size`: the bytes it will write.
    """

    do: Callable[[Storage], Result]
    about: tuple[str, ...] = ()
    size: int = 0


class UnavailableError(Exception):
    """The work was not committed: the sender is to send it again. The sentence says why."""


class JobError(Exception):
    """A job has broken, and nothing else has."""

    def __init__(self, trouble: Exception) -> None:
        """Take what the job raised."""
        super().__init__(str(trouble))
        self.trouble = trouble


class Committer:
    """The database of one process: opened when needed, let go on trouble, opened anew after it.

    One thread at a time.
    """

    def __init__(self, open_storage: Callable[[], Storage]) -> None:
        """Take how to open the database."""
        self._open_storage = open_storage
        self._storage: Storage | None = None
        self._trouble: str | None = None
        self._doubts_log = False

    def commit(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Do jobs in one commit, on disk when this returns: what each gave, or its exception.

        Where nothing was kept each has an UnavailableError.
        """
        try:
            if self._storage is None:
                self._storage = self._open_storage()
                self._checkpoint_wal(self._storage)
            written_before = self._storage.db.total_changes
            outcomes = do_all(self._storage, jobs)
            has_written = self._storage.db.total_changes > written_before
        except UnavailableError as error:
            return [error] * len(jobs)
        except (DatabaseError, sqlite3.Error, OSError) as error:
            return [UnavailableError(self._give_up(error))] * len(jobs)
        except Exception:  # the edge of a commit: without it all who wait for it wait in vain
            LOG.exception("a commit broke off")
            self.leave_storage()
            return [UnavailableError("a commit broke off")] * len(jobs)
        # A full disk takes a commit that writes nothing.
        if self._trouble is not None and has_written:
            LOG.warning("the database works again")
            self._trouble = None
        return outcomes

    def _checkpoint_wal(self, storage: Storage) -> None:
        # An earlier process may have seen a sync fail, so this is tried at every start; somebody
        # who reads for hours must not stop the service for it, unless we have seen it fail.
        is_done = storage.checkpoint_wal()
        if self._doubts_log and not is_done:
            raise DatabaseError(
                f"database {str(storage.path)!r}: a sync has failed, and the log cannot be written"
                " anew while another program reads it: end that program"
            )
        self._doubts_log = False

    def leave_storage(self) -> None:
        """Let the database go: a connection that has seen trouble is not trusted any more."""
        if self._storage is None:
            return
        try:
            self._storage.close()
        except sqlite3.Error as error:
            LOG.warning("closing the database: %s", error)
        self._storage = None

    def _give_up(self, error: Exception) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        self._doubts_log |= code == sqlite3.SQLITE_IOERR
        trouble = describe_trouble(error, None if self._storage is None else self._storage.path)
        self.leave_storage()
        if trouble != self._trouble:
            LOG.error("nothing is acknowledged: %s", trouble)
            self._trouble = trouble
        return trouble


def cut(jobs: Sequence[Job[Any]]) -> Iterator[Sequence[Job[Any]]]:
    """Cut jobs into batches that write a bounded number of bytes each."""
    start = size = 0
    for end, job in enumerate(jobs):
        size += job.size
        if size > BATCH_LIMIT_BYTES and end > start:
            yield jobs[start:end]
            start, size = end, job.size
    yield jobs[start:]


def do_all(storage: Storage, jobs: Sequence[Job[Any]]) -> list[Any]:
    """Do jobs in one transaction: what each gave, or the exception that is its own trouble.

    They are booked as a set. Where one of them breaks, which hardly ever happens, all are done anew
    in another transaction, each under a savepoint.
    """
    try:
        with storage.transaction(subid for job in jobs for subid in job.about):
            return do_together(storage, jobs)
    except JobError:
        with storage.transaction():
            return [attempt(storage, job) for job in jobs]


def do_together(storage: Storage, jobs: Sequence[Job[Any]]) -> list[Any]:
    """Do jobs within a transaction, or raise JobError where one breaks."""
    try:
        outcomes = [job.do(storage) for job in jobs]
        storage.write()
    except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError) as error:
        raise JobError(error) from error
    except sqlite3.Error:
        raise
    except Exception as error:  # the edge of a job: its bug must not fail the others
        raise JobError(error) from error
    return outcomes


def attempt(storage: Storage, job: Job[Result]) -> Result | Exception:
    """Do one job under its own savepoint: its trouble is its own, the database's is everybody's."""
    try:
        with storage.savepoint():
            (outcome,) = do_together(storage, [job])
    except JobError as error:
        return error.trouble
    return outcome  # type: ignore[no-any-return]


class Place(Generic[Result]):
    """A job's place in the line."""

    __slots__ = ("awake", "job", "leads", "outcome")

    def __init__(self, job: Job[Result]) -> None:
        """Stand in line with a job."""
        self.job = job
        self.leads = False
        self.outcome: Result | Exception | None = None
        # A bare lock is the cheapest thing to wait for: an Event takes three of them.
        self.awake = threading.Lock()
        self.awake.acquire()


class Line:
    """Where threads stand with their jobs. At any time one of them leads, or nobody waits."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._lock = threading.Lock()
        self._places: list[Place[Any]] = []
        self._is_led = False
        self._is_closed = False

    def stand(self, job: Job[Result]) -> Place[Result]:
        """Stand in line; raises UnavailableError at once where it is too long."""
        with self._lock:
            if self._is_closed:
                raise UnavailableError("the service is stopping")
            if len(self._places) >= QUEUE_LIMIT:
                raise UnavailableError(f"{QUEUE_LIMIT} postbacks wait already")
            return self._append(job)

    def close(self) -> Place[None]:
        """Let nobody stand in line any more; gives the last place, behind all that were taken."""
        with self._lock:
            self._is_closed = True
            return self._append(Job(_do_nothing))

    def _append(self, job: Job[Result]) -> Place[Result]:
        place = Place(job)
        self._places.append(place)
        if not self._is_led:
            self._is_led = True
            self._call_to_lead()
        return place

    def wait(self, place: Place[Any], seconds: float) -> None:
        """Wait for the outcome, or to lead; raises UnavailableError where neither comes in time."""
        if place.awake.acquire(timeout=seconds):
            return
        with self._lock:
            # It may have come in the last moment.
            if place.awake.acquire(blocking=False):
                return
            # A place that is not in line any more is being committed, and nobody waits for it.
            with suppress(ValueError):
                self._places.remove(place)
        raise UnavailableError(f"the database took nothing for {seconds:g} seconds")

    def take(self) -> list[Place[Any]]:
        """Take a batch off the line, for a leader: its own place is the first."""
        with self._lock:
            batch = self._places[:BATCH_LIMIT]
            del self._places[:BATCH_LIMIT]
        return batch

    def hand_out(self, batch: Sequence[Place[Any]], outcomes: Sequence[Any]) -> None:
        """Give those of a batch their outcomes, and let the next in line lead."""
        for place, outcome in zip(batch, outcomes, strict=True):
            place.outcome = outcome
            place.leads = False
            place.awake.release()
        with self._lock:
            self._is_led = bool(self._places)
            if self._is_led:
                self._call_to_lead()

    def _call_to_lead(self) -> None:
        self._places[0].leads = True
        self._places[0].awake.release()


def _do_nothing(_: Storage) -> None:
    pass
