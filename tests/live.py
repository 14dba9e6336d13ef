"""A real gunicorn process on a free port of this machine, for what only a server shows."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools.durability.servers import find_free_port

# Long enough for any machine; nothing waits for it unless it hangs. Longer than the grace that
# gunicorn gives a worker to stop.
PATIENCE_SECONDS = 60


class LiveServer:
    """gunicorn with the project's settings in a directory of its own, and what it logs."""

    def __init__(self, directory: Path, *options: str) -> None:
        """Take the directory (its config file, if any, is used) and options for gunicorn."""
        self.directory = directory
        self.log = directory / "gunicorn.log"
        self.port = find_free_port()
        self._options = options
        # A program to start it through, such as one that takes privileges away.
        self.prefix: tuple[str, ...] = ()
        # Another callable, such as one that lowers a limit first.
        self.application = "postback:application"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        command = [
            *self.prefix,
            *(
                sys.executable,
                "-m",
                "gunicorn",
                "--config",
                "python:postbackd.server.gunicorn_conf",
            ),
            *("--bind", f"127.0.0.1:{self.port}", *self._options, self.application),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "POSTBACK_CONFIG"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.directory, env=environment, stdout=log, stderr=log
            )
        wait_until(self.accepts, f"a server on port {self.port}")

    def accepts(self) -> bool:
        """Tell whether a connection is answered."""
        try:
            return self.send(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n") != b""
        except OSError:
            return False

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Stop it and wait until it is gone; gives its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(PATIENCE_SECONDS)

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS)

    def send(self, request: bytes) -> bytes:
        """Send bytes on a new connection and read until the server closes it."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)

    def get(self, target: str, *headers: str) -> bytes:
        """Send a GET and give the whole answer."""
        lines = [f"GET {target} HTTP/1.1", "Host: h", "Connection: close", *headers]
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def read_log(self) -> str:
        """Give what was logged so far."""
        return self.log.read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        """List the workers that run now."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    received = b""
    while block := connection.recv(65536):
        received += block
    return received


def wait_until(holds: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition, looking often; fail with its name where it does not come."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} seconds for {what}"
        time.sleep(0.01)


# The service with a housekeeping that tests need not wait for.
BUSY_HOUSEKEEPING = """\
from postbackd.exchange import schedule
from postbackd.intake import group_commit
group_commit.TICK_SECONDS, schedule.LOOK_SECONDS = 0.1, 0.05
from postback import application
"""


@contextmanager
def live_server(
    directory: Path, *options: str, prefix: Sequence[str] = (), keeps_house_often: bool = False
) -> Iterator[LiveServer]:
    """Run a server for the time of a test."""
    server = LiveServer(directory, *options)
    server.prefix = tuple(prefix)
    if keeps_house_often:
        (directory / "busy_housekeeping.py").write_text(BUSY_HOUSEKEEPING)
        server.application = "busy_housekeeping:application"
    try:
        server.start()
        yield server
    finally:
        server.stop()
