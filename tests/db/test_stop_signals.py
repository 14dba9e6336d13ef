"""Ctrl-Z on a command that writes: it stops between transactions, and a held lock is told."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from cli_calls import PATIENCE_SECONDS, build_command, build_environment, call_process
from conftest import Client
from live import wait_until

from postbackd.db.sqlite import lock_holders
from storage import open_database

STOPS = [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU]

# Asks to be stopped in a transaction, as Ctrl-Z does, and commits.
ASKS = """
import os, sys
from pathlib import Path
from storage import open_database
with open_database(Path("postback.db"), "USD") as db:
    with db.transaction():
        db.set_offer("O1", allow_rebills=True)
        os.kill(os.getpid(), {number})
        if {breaks}:
            print("within", flush=True)
            raise SystemExit(3)
        db.set_offer("O2", allow_rebills=True)
    print("behind", flush=True)
"""

# Stops in a transaction by what no process can put off.
HOLDS = """
import os, signal
from pathlib import Path
from storage import open_database
with open_database(Path("postback.db"), "USD") as db, db.transaction():
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextmanager
def running(directory: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program in a process group of its own, as a shell starts it: such a one can be stopped."""
    process = subprocess.Popen(
        words,
        cwd=directory,
        env=build_environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def await_stop(process: subprocess.Popen[str]) -> int:
    """Wait until a process is stopped, and give the signal."""
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None
    assert found.si_code == os.CLD_STOPPED, process.communicate()
    return int(found.si_status)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "postback.db"
    open_database(path, "USD").close()
    return path


def list_offers(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as db:
        return [name for (name,) in db.execute("SELECT name FROM offers ORDER BY name")]


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("breaks", [False, True])
def test_a_stop_within_a_transaction_is_taken_behind_it(
    database: Path, number: int, breaks: bool
) -> None:
    script = ASKS.format(number=int(number), breaks=breaks)
    with running(database.parent, sys.executable, "-c", script) as process:
        assert await_stop(process) == number
        assert list_offers(database) == ([] if breaks else ["O1", "O2"])
        with open_database(database, "USD") as other, other.transaction():
            other.set_offer("O3", allow_rebills=True)

        os.kill(process.pid, signal.SIGCONT)
        assert process.communicate() == ("within\n" if breaks else "behind\n", "")

    assert process.returncode == (3 if breaks else 0)


def test_a_stop_is_taken_while_the_lock_is_waited_for(database: Path) -> None:
    # Longer than any test waits: nothing but the stop ends the wait.
    waits = (
        "from postbackd.db.sqlite import connection\nconnection.BUSY_TIMEOUT_SECONDS = 3600\n"
        + ASKS.format(number=0, breaks=False).replace(
            "    with db.transaction", '    print("open", flush=True)\n    with db.transaction'
        )
    )
    with (
        open_database(database, "USD") as other,
        running(database.parent, sys.executable, "-c", waits) as process,
    ):
        assert process.stdout is not None
        with other.transaction():
            # Opening it waits for the lock too.
            stat = Path(f"/proc/{process.pid}/stat")
            lock = Path(f"{database}-lock")
            wait_until(lambda: has_open(process.pid, lock), "a wait for the lock")
            os.kill(process.pid, signal.SIGTSTP)
            wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "a stop", 20)
        os.kill(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=PATIENCE_SECONDS) == ("open\nbehind\n", "")


def has_open(pid: int, path: Path) -> bool:
    """Return whether a process has a file open."""
    with suppress(OSError):
        return any(map(path.samefile, Path(f"/proc/{pid}/fd").iterdir()))
    return False


def test_what_is_ignored_stays_ignored(database: Path) -> None:
    ignores = "import signal; signal.signal(signal.SIGTSTP, signal.SIG_IGN)\n"
    script = ignores + ASKS.format(number=int(signal.SIGTSTP), breaks=False)

    with running(database.parent, sys.executable, "-c", script) as process:
        assert process.communicate(timeout=PATIENCE_SECONDS) == ("behind\n", "")


def test_an_import_that_is_stopped_again_and_again_holds_no_lock(client: Client) -> None:
    client.get("/health")
    lines = "".join(f"c{number},1,t{number},sale\n" for number in range(20_000))
    (client.directory / "lines.csv").write_text(lines)
    with running(client.directory, *build_command("import", "lines.csv")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stops = 0
        while stops < 10:
            os.kill(process.pid, signal.SIGTSTP)
            await_stop(process)
            assert client.send(f"subid=live&tid=t{stops}").status == 200
            assert client.get("/health").status == 200
            stops += 1
            os.kill(process.pid, signal.SIGCONT)
            # A line that is told was committed behind the stop: it has gone on.
            process.stdout.readline()

    assert len(client.postbacks()) >= 10


@pytest.fixture(params=["/proc/locks", "no list of locks"])
def _locks_listed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's list of locks, and without, as the shipped unit has it."""
    monkeypatch.setattr(lock_holders, "KERNEL_LOCKS", Path(request.param))


@pytest.mark.usefixtures("_locks_listed")
def test_a_stopped_process_that_holds_the_lock_is_told(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client.send("subid=c1")
    monkeypatch.setattr("postbackd.db.sqlite.connection.BUSY_TIMEOUT_SECONDS", 0.05)
    with running(client.directory, sys.executable, "-c", HOLDS) as process:
        await_stop(process)

        refused = client.send("subid=c2")

        told = f"process {process.pid} ("
        assert refused.status == 503
        [line] = [message for message in caplog.messages if "nothing is acknowledged" in message]
        assert told in line
        assert f"is stopped (Ctrl-Z, or a debugger): `kill -CONT {process.pid}` lets" in line

        os.kill(process.pid, signal.SIGCONT)
        process.communicate()
    assert client.send("subid=c2").status == 200


def test_check_tells_of_a_stopped_process_that_holds_the_lock(client: Client) -> None:
    client.send("subid=c1")
    with running(client.directory, sys.executable, "-c", HOLDS) as process:
        await_stop(process)

        ran = call_process(client.directory, "check", "--json")

    [lock] = [found for found in ran.objects if found["check"] == "lock"]
    assert ran.status == 1
    assert lock["level"] == "problem"
    assert f"nothing can be written: process {process.pid} (" in lock["message"]
    assert not [
        found
        for found in call_process(client.directory, "check", "--json").objects
        if found["check"] == "lock"
    ]


def test_check_tells_of_a_stopped_process_that_only_has_it_open(client: Client) -> None:
    client.send("subid=c1")
    reads = (
        "import os, signal, sqlite3; db = sqlite3.connect('postback.db', isolation_level=None);"
        " db.execute('BEGIN'); db.execute('SELECT * FROM tracker').fetchall();"
        " os.kill(os.getpid(), signal.SIGSTOP)"
    )
    with running(client.directory, sys.executable, "-c", reads) as process:
        await_stop(process)

        found = call_process(client.directory, "check", "--json").objects

    [lock] = [each for each in found if each["check"] == "lock"]
    assert lock["level"] == "warning"
    assert f"process {process.pid} (" in lock["message"]
    assert "is stopped with the database open" in lock["message"]


@pytest.mark.usefixtures("_locks_listed")
def test_another_programs_lock_is_told_with_its_process(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("postbackd.db.sqlite.connection.BUSY_TIMEOUT_SECONDS", 0.05)
    client.send("subid=c1")
    greedy = (
        "import sqlite3; db = sqlite3.connect('postback.db', isolation_level=None);"
        " db.execute('BEGIN IMMEDIATE'); print('held', flush=True); input()"
    )
    with running(client.directory, sys.executable, "-c", greedy) as process:
        assert process.stdout is not None
        process.stdout.readline()

        refused = client.send("subid=c2")

    assert refused.status == 503
    assert f"database is locked; process {process.pid} (" in caplog.text
    assert "holds a write lock: end it, or wait" in caplog.text
