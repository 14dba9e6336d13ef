"""A real gunicorn with the receiver, on a free port of this machine: started, killed, watched."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from postbackd.server import gunicorn_conf as settings

# The shipped worker class first, then others that must hold the same promises.
WORKER_CLASSES = list(
    dict.fromkeys([settings.worker_class, "gthread", "postbackd.server.worker.GroupCommitWorker"])
)

CHECKOUT = Path(__file__).resolve().parents[2]

POSTBACK_KEY = "durability-postback-key"
CLICK_KEY = "durability-click-key"

# A start takes half a second; more is allowed for on a loaded machine.
START_SECONDS = 60.0

# How often a condition is checked while waiting for it.
LOOK_SECONDS = 0.005


class HarnessError(Exception):
    """The harness could not do its work: no finding about the receiver's promises."""


class Setup(NamedTuple):
    """How a server is started: gunicorn's worker class and count, and what it runs."""

    worker_class: str
    workers: int = 1
    application: str = "postback:application"
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Name the setup as the tables do: `gthread x2`."""
        return f"{self.worker_class.rpartition('.')[2]} x{self.workers}"


class Home:
    """A directory with a config file, for the database and the service log."""

    def __init__(self, directory: Path, *, unknown_subid: str = "park") -> None:
        """Make the directory and write the config file."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.config = directory / "config.ini.php"
        self.database = directory / "postback.db"
        self.log = directory / "server.log"
        self.unknown_subid = unknown_subid
        self.config.write_text(
            ";<?php exit; ?>\n"
            f'[system]\npostback_key = "{POSTBACK_KEY}"\nclick_key = "{CLICK_KEY}"\n'
            '[db]\npath = "postback.db"\n'
            f'[postback]\nunknown_subid = "{unknown_subid}"\n'
            '[rates]\nsource = "none"\n',
            encoding="utf-8",
        )


class Server:
    """A gunicorn in a session of its own, so that all of it can be killed at once."""

    def __init__(self, home: Home, setup: Setup, environ: Mapping[str, str] | None = None) -> None:
        """Start gunicorn; `wait_until_healthy` waits for it."""
        self.home = home
        self.setup = setup
        self.port = find_free_port()
        with home.log.open("ab") as log:
            self._master = subprocess.Popen(
                _command(setup, self.port),
                cwd=CHECKOUT,
                env={**os.environ, "POSTBACK_CONFIG": str(home.config), **(environ or {})},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def master(self) -> int:
        """The master's process id."""
        return self._master.pid

    def find_workers(self) -> list[int]:
        """Find the running worker processes."""
        return find_children(self.master)

    def wait_until_up(self) -> None:
        """Wait until the server answers, with a key in force; /health is not asked."""
        self._wait_for("/", 404, START_SECONDS)

    def wait_until_complete(self) -> None:
        """Wait until all workers run and have opened the database."""
        wait_until(self._is_complete, START_SECONDS, "all workers are at work", self.home.log)

    def _is_complete(self) -> bool:
        workers = self.find_workers()
        return len(workers) == self.setup.workers and all(
            has_open(worker, self.home.database) for worker in workers
        )

    def wait_until_healthy(self) -> None:
        """Wait until /health says ok."""
        self.wait_for_health(200)

    def wait_for_health(self, status: int, seconds: float = START_SECONDS) -> None:
        """Wait until /health answers with a status."""
        self._wait_for("/health", status, seconds)

    def _wait_for(self, path: str, status: int, seconds: float) -> None:
        def is_there() -> bool:
            self._refuse_death()
            return fetch_status(self.port, path) == status

        wait_until(is_there, seconds, f"{path} answers {status}", self.home.log)

    def _refuse_death(self) -> None:
        if self._master.poll() is not None:
            raise HarnessError(f"gunicorn ended by itself, see {self.home.log}:\n{self.read_log()}")

    def read_log(self) -> str:
        """Read the service log."""
        return self.home.log.read_text(encoding="utf-8", errors="replace")

    def kill_worker(self, index: int) -> None:
        """Kill one worker, -9; the master replaces it."""
        workers = self.find_workers()
        if workers:
            kill(workers[index % len(workers)])

    def kill_master(self) -> list[int]:
        """Kill the master alone, -9; returns its workers, which end by themselves."""
        workers = self.find_workers()
        kill(self.master)
        self._master.wait()
        return workers

    def kill_all(self) -> None:
        """Kill master and workers at once, -9."""
        with suppress(ProcessLookupError):
            os.killpg(self.master, signal.SIGKILL)
        self._master.wait()

    def stop(self) -> None:
        """Stop the server as an administrator does; -9 if it does not end."""
        self._master.terminate()
        try:
            self._master.wait(START_SECONDS)
        finally:
            self.kill_all()


@contextmanager
def serving(home: Home, setup: Setup, environ: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run a server during the block; nothing of it is left afterwards."""
    server = Server(home, setup, environ)
    try:
        yield server
    finally:
        server.kill_all()


def _command(setup: Setup, port: int) -> Sequence[str]:
    return [
        *(sys.executable, "-m", "gunicorn", "--config", "python:postbackd.server.gunicorn_conf"),
        *("--bind", f"127.0.0.1:{port}"),
        *("--workers", str(setup.workers), "--worker-class", setup.worker_class),
        *setup.options,
        setup.application,
    ]


# The ports found last, each bound by us, so that no other process gets one before its server
# listens: neither from the kernel nor from a parallel run. Servers set SO_REUSEADDR, and can bind a
# port that is bound so without listening.
_HELD: deque[socket.socket] = deque()
HELD_AT_MOST = 32


def find_free_port() -> int:
    """Find a port that nobody listens on, and reserve it for its server."""
    if len(_HELD) == HELD_AT_MOST:
        _HELD.popleft().close()
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    port: int = held.getsockname()[1]
    return port


@atexit.register
def _let_ports_go() -> None:
    while _HELD:
        _HELD.pop().close()


def fetch_status(port: int, path: str, seconds: float = 15.0) -> int | None:
    """Request a path and return the status of the answer, None without an answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            line = connection.makefile("rb").readline()
    except OSError:
        return None
    words = line.split()
    return int(words[1]) if len(words) > 1 else None


def wait_until(
    is_so: Callable[[], bool], seconds: float, wanted: str, log: Path | None = None
) -> None:
    """Wait for a condition; raises HarnessError if it is not met in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            said = f", see {log}" if log is not None else ""
            raise HarnessError(f"{seconds:g} seconds were not enough until {wanted}{said}")
        time.sleep(LOOK_SECONDS)


def kill(pid: int) -> None:
    """Kill a process, -9, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def find_children(pid: int) -> list[int]:
    """Find the running processes that a process has started."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [child for child in map(int, found.split()) if is_alive(child)]


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def has_open(pid: int, path: Path) -> bool:
    """Return whether a process has a file open."""
    try:
        return any(map(path.samefile, Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        # One of them was closed just now, or there is no such file yet: the caller asks again.
        return False


def peak_memory_mib(pid: int) -> float:
    """Read the most memory that a process has held, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise HarnessError(f"process {pid} tells no VmHWM")
