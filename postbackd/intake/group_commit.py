"""Group commit: what waits is done in one transaction, synced once, and only then answered.

A sync of the disk costs as much for one postback as for a hundred. A `Committer` holds a process's
database and makes commits; a `Writer` is the thread that feeds one with what requests wait for.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from postbackd.db.sqlite.connection import DatabaseError, describe_trouble
from storage import Storage

LOG = logging.getLogger("postback.writer")

# A batch holds the write lock for some 20 ms, so that other workers and the CLI get their turn.
BATCH_LIMIT = 256

# What may wait: two seconds' worth at the speed of a slow disk. Beyond, a 503 at once is kinder
# than an answer that comes after the sender has gone.
QUEUE_LIMIT = 4096

# Longer than any healthy commit, shorter than the patience of senders (30 seconds is usual).
WAIT_LIMIT_SECONDS = 10.0

# The contract gives five seconds for what another program wrote; half of that leaves room.
TICK_SECONDS = 2.0

Result = TypeVar("Result")
# What is to be done in a transaction. It may be done twice, the first time in vain: it changes
# nothing but the database.
Job = Callable[[Storage], Result]


class UnavailableError(Exception):
    """The work was not committed: the sender is to send it again. The sentence says why."""


class Ticket(Generic[Result]):
    """A job's place in the queue, and what came of it once it is committed."""

    __slots__ = ("_done", "_error", "_result", "is_abandoned", "job")

    def __init__(self, job: Job[Result]) -> None:
        """Stand in line with a job."""
        self.job = job
        self.is_abandoned = False
        self._result: Result | None = None
        self._error: Exception | None = None
        # A bare lock is the cheapest thing to wait for: an Event takes three of them.
        self._done = threading.Lock()
        self._done.acquire()

    def wait(self, seconds: float) -> Result:
        """Wait until the job is on disk and give its result, or raise what became of it."""
        if not self._done.acquire(timeout=seconds):
            self.is_abandoned = True
            raise UnavailableError(f"the database took nothing for {seconds:g} seconds")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # set with every success

    def finish(self, result: Result) -> None:
        """Tell the waiter that its job is on disk."""
        self._result = result
        self._done.release()

    def fail(self, error: Exception) -> None:
        """Tell the waiter that nothing of its job was kept."""
        self._error = error
        self._done.release()


class Committer:
    """The database of one process: opened when needed, let go on trouble, opened anew after it."""

    def __init__(
        self, open_storage: Callable[[], Storage], housekeep: Callable[[Storage], bool | None]
    ) -> None:
        """Take how to open the database, and what to do beside the jobs in each transaction.

        Housekeeping that gives True is taken up again at once, in a transaction of its own.
        """
        self._open_storage = open_storage
        self._housekeep = housekeep
        self._storage: Storage | None = None
        self._trouble: str | None = None
        self._doubts_log = False
        self.next_tick = 0.0

    def commit(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Do jobs in one transaction, on disk when this returns: what each gave, or its exception.

        Raises UnavailableError where nothing was kept. What is due beside the jobs is done first,
        in the same transaction; without any jobs that alone.
        """
        try:
            if self._storage is None:
                self._storage = self._open_storage()
                self._carry_over_log(self._storage)
            written_before = self._storage.db.total_changes
            with self._storage.transaction():
                self._run_housekeeping(self._storage)
                outcomes = attempt_all(self._storage, jobs) if jobs else []
            has_written = self._storage.db.total_changes > written_before
        except (DatabaseError, sqlite3.Error, OSError) as error:
            raise UnavailableError(self._give_up(error)) from error
        # A full disk takes a commit that writes nothing.
        if self._trouble is not None and has_written:
            LOG.warning("the database works again")
            self._trouble = None
        return outcomes

    def _run_housekeeping(self, storage: Storage) -> None:
        outcome = attempt(storage, self._housekeep)
        self.next_tick = time.monotonic() + (0 if outcome is True else TICK_SECONDS)
        if isinstance(outcome, Exception):
            LOG.error("housekeeping broke off", exc_info=outcome)

    def _carry_over_log(self, storage: Storage) -> None:
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
        """Let the database go."""
        if self._storage is None:
            return
        try:
            self._storage.close()
        except sqlite3.Error as error:
            LOG.warning("closing the database: %s", error)
        self._storage = None

    def drop_connection(self) -> None:
        """Trust a connection that has seen trouble no more: the next commit opens anew."""
        self.leave_storage()
        self.next_tick = time.monotonic() + TICK_SECONDS

    def _give_up(self, error: Exception) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        self._doubts_log |= code == sqlite3.SQLITE_IOERR
        trouble = describe_trouble(error, None if self._storage is None else self._storage.path)
        self.drop_connection()
        if trouble != self._trouble:
            LOG.error("nothing is acknowledged: %s", trouble)
            self._trouble = trouble
        return trouble


class Writer:
    """A queue and a thread before a committer. Starts with the first job; `close` ends it."""

    def __init__(self, committer: Committer) -> None:
        """Take over a committer: the thread alone uses it."""
        self._committer = committer
        self._queue: queue.SimpleQueue[Ticket[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._is_closed = False

    def start(self) -> None:
        """Start the thread where it does not run yet."""
        with self._starting:
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
                self._thread.start()

    @property
    def has_run(self) -> bool:
        """Tell whether the thread was ever started, and so owns the database."""
        return self._thread is not None

    def submit(self, job: Job[Result]) -> Ticket[Result]:
        """Put a job in line; raises UnavailableError at once where the line is too long."""
        if self._thread is None:
            self.start()
        if self._is_closed:
            raise UnavailableError("the service is stopping")
        if self._queue.qsize() >= QUEUE_LIMIT:
            raise UnavailableError(f"{QUEUE_LIMIT} postbacks wait already")
        ticket = Ticket(job)
        self._queue.put(ticket)
        return ticket

    def run(self, job: Job[Result], seconds: float = WAIT_LIMIT_SECONDS) -> Result:
        """Have a job done and wait for its commit."""
        return self.submit(job).wait(seconds)

    def close(self) -> None:
        """Commit and answer what was taken, then stop."""
        with self._starting:
            self._is_closed = True
            thread = self._thread
        if thread is not None and thread.is_alive():
            self._queue.put(None)
            thread.join(WAIT_LIMIT_SECONDS)

    def _work(self) -> None:
        goes_on = True
        while goes_on:
            batch, goes_on = self._take_batch()
            if batch or (goes_on and time.monotonic() >= self._committer.next_tick):
                self._serve(batch)
        self._committer.leave_storage()
        self._refuse_late_comers()

    def _take_batch(self) -> tuple[list[Ticket[Any]], bool]:
        """Wait for a job and take all that stand behind it; False once the end was announced."""
        batch: list[Ticket[Any]] = []
        patience = max(0.0, self._committer.next_tick - time.monotonic())
        try:
            ticket = self._queue.get(timeout=patience)
            while ticket is not None:
                if not ticket.is_abandoned:
                    batch.append(ticket)
                if len(batch) >= BATCH_LIMIT:
                    return batch, True
                ticket = self._queue.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False

    def _serve(self, batch: list[Ticket[Any]]) -> None:
        try:
            outcomes = self._committer.commit([ticket.job for ticket in batch])
        except UnavailableError as error:
            self._refuse(batch, error)
            return
        except Exception:  # the edge of the thread: without it all who come later wait in vain
            LOG.exception("a commit broke off")
            self._committer.drop_connection()
            self._refuse(batch, UnavailableError("a commit broke off"))
            return
        for ticket, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                ticket.fail(outcome)
            else:
                ticket.finish(outcome)

    def _refuse(self, batch: Sequence[Ticket[Any]], error: UnavailableError) -> None:
        for ticket in batch:
            ticket.fail(error)

    def _refuse_late_comers(self) -> None:
        with suppress(queue.Empty):
            while True:
                ticket = self._queue.get_nowait()
                if ticket is not None:
                    ticket.fail(UnavailableError("the service is stopping"))


def attempt_all(storage: Storage, jobs: Sequence[Job[Any]]) -> list[Any]:
    """Do jobs one after the other: what each gave, or the exception that is its own trouble.

    A savepoint around each costs a twentieth of its time and is hardly ever needed: they are done
    under one, and where any of them fails, all anew, each under its own.
    """
    together = attempt(storage, lambda db: [job(db) for job in jobs])
    if not isinstance(together, Exception):
        return together
    return [attempt(storage, job) for job in jobs]


def attempt(storage: Storage, job: Job[Result]) -> Result | Exception:
    """Do one job under its own savepoint: its trouble is its own, the database's is everybody's."""
    try:
        with storage.savepoint():
            return job(storage)
    except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError) as error:
        return error
    except sqlite3.Error:
        raise
    except Exception as error:  # the edge of a job: its bug must not fail the others
        return error
