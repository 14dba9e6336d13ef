"""The config file changes under two real workers while postbacks flow: none is dropped."""

import http.client
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_calls import call_process
from conftest import POSTBACK_KEY, write_config
from live import PATIENCE_SECONDS, LiveServer, live_server, wait_until

from postbackd.config import settings as config
from tools.durability.servers import WORKER_CLASSES

# Source: the contract, on the config.
IN_FORCE_SECONDS = 1.0

SENDERS = 6


class Told(NamedTuple):
    """What a sender was told about a key, when it asked and when it knew."""

    key: str
    began: float
    ended: float
    status: int


class Load:
    """Senders on kept connections, each asking with all the keys in turn, without a pause."""

    def __init__(self, server: LiveServer, *keys: str) -> None:
        """Take where to send, and the keys known at first; `keys` may grow."""
        self.keys = list(keys)
        self.told: list[Told] = []
        self.broken: list[BaseException] = []
        self._server = server
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(SENDERS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        self.wait_for(20)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def wait_for(self, count: int) -> None:
        wanted = len(self.told) + count
        wait_until(lambda: len(self.told) >= wanted or bool(self.broken), f"{count} answers")

    def _send(self, number: int) -> None:
        try:
            self._send_on(number)
        except BaseException as error:
            self.broken.append(error)

    def _send_on(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, PATIENCE_SECONDS)
        count = 0
        while not self._is_over.is_set():
            for key in tuple(self.keys):
                count += 1
                began = time.monotonic()
                connection.request("GET", f"/{key}/postback?subid=s{number}-{count}")
                with connection.getresponse() as answer:
                    answer.read()
                    self.told.append(Told(key, began, time.monotonic(), answer.status))
        connection.close()

    def statuses(self, key: str, since: float = 0, until: float = float("inf")) -> set[int]:
        """Return what was answered to requests that began and ended within a time."""
        return {t.status for t in self.told if t.key == key and t.began > since and t.ended < until}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_config(tmp_path, {"unknown_subid": "accept"})
    return tmp_path


@contextmanager
def two_workers(directory: Path, worker_class: str, *prefix: str) -> Iterator[LiveServer]:
    with live_server(
        directory, "--workers", "2", "--worker-class", worker_class, prefix=prefix
    ) as server:
        wait_until(lambda: len(server.worker_pids()) == 2, "two workers")
        # Being there is not enough: each is to have read the config.
        assert ask_each_worker(server, POSTBACK_KEY) == [[200], [200]]
        yield server


def ask_each_worker(server: LiveServer, *keys: str) -> list[list[int]]:
    """Return what each worker, while the other is held still, answers under each key."""
    one, other = server.worker_pids()
    answers = []
    for held in (one, other):
        os.kill(held, signal.SIGSTOP)
        stat = Path(f"/proc/{held}/stat")
        # Before it stands still it may yet take a connection.
        wait_until(lambda s=stat: s.read_text().rpartition(") ")[2][0] == "T", "a stop")  # type: ignore[misc]
        try:
            answers.append([int(server.get(f"/{key}/postback")[9:12]) for key in keys])
        finally:
            os.kill(held, signal.SIGCONT)
    return answers


def rotate(directory: Path, *options: str) -> tuple[str, float, float]:
    """Rotate the key with the real command; returns the new key, and when it began and ended."""
    began = time.monotonic()
    done = call_process(directory, "key", "rotate", *options)
    assert done.status == 0, done.err
    key = config.load(directory / "config.ini.php").postback_key.decode()
    return key, began, time.monotonic()


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_key_is_rotated_under_load_and_no_postback_is_dropped(
    directory: Path, worker_class: str
) -> None:
    kept = POSTBACK_KEY
    with two_workers(directory, worker_class) as server:
        with Load(server, kept) as load:
            dropped, _, first_ended = rotate(directory)
            load.keys.append(dropped)
            time.sleep(max(0, first_ended + IN_FORCE_SECONDS - time.monotonic()))
            load.wait_for(30)
            new, second_began, second_ended = rotate(directory, "--drop-old")
            load.keys.append(new)
            time.sleep(max(0, second_ended + IN_FORCE_SECONDS - time.monotonic()))
            load.wait_for(60)
        each = ask_each_worker(server, kept, dropped, new)
    log = server.read_log()

    assert load.broken == []
    # The kept old key is good all the time, in every worker.
    assert load.statuses(kept) == {200}
    # The other is good until it is dropped, and dead a second later.
    assert load.statuses(dropped, first_ended + IN_FORCE_SECONDS, second_began) == {200}
    assert load.statuses(dropped, second_ended + IN_FORCE_SECONDS) == {404}
    assert load.statuses(new, second_ended + IN_FORCE_SECONDS) == {200}
    assert {told.status for told in load.told} == {200, 404}
    assert each == [[200, 404, 200]] * 2
    # Each worker told each change once; one that nobody asked in between met both as one.
    assert 2 <= log.count("was read anew and is in force") <= 4


def half(path: Path, good: bytes) -> None:
    path.write_bytes(good[: good.index(b"postback_key") + 5])


def emptied(path: Path, good: bytes) -> None:
    del good
    path.write_bytes(b"")


def gone(path: Path, good: bytes) -> None:
    del good
    path.unlink()


def renamed_over(path: Path, good: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(
        good.replace(b'postback_key = "', b'postback_key = "broken', 1)[:-1] + b"\n("
    )
    beside.replace(path)


def closed(path: Path, good: bytes) -> None:
    del good
    path.chmod(0)


# What befalls the file, and what the log says of it.
TROUBLES: dict[Callable[[Path, bytes], None], str] = {
    half: "has no postback_key",
    emptied: "has no postback_key",
    gone: "cannot be read: No such file or directory",
    renamed_over: ", line ",
    closed: "cannot be read: Permission denied",
}

# Takes from root what it needs to read files of any mode; util-linux has it, wherever root is.
SETPRIV = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")


def test_a_file_in_any_trouble_leaves_the_last_good_settings_and_is_told_once(
    directory: Path,
) -> None:
    path = directory / "config.ini.php"
    good = path.read_bytes()
    is_root = os.geteuid() == 0
    prefix = SETPRIV if is_root and shutil.which("setpriv") else ()
    troubles = {k: v for k, v in TROUBLES.items() if k is not closed or prefix or not is_root}
    with (
        two_workers(directory, WORKER_CLASSES[0], *prefix) as server,
        Load(server, POSTBACK_KEY) as load,
    ):
        for befall, said in troubles.items():
            before = len(server.read_log())
            befall(path, good)
            wait_until(
                lambda b=before: server.read_log()[b:].count(" stay in force.") >= 2,  # type: ignore[misc]
                f"both workers to notice {befall.__name__}",
            )
            path.unlink(missing_ok=True)
            path.write_bytes(good)
            wait_until(
                lambda b=before: server.read_log()[b:].count("is in force") >= 2,  # type: ignore[misc]
                "the good file to be read",
            )
            lines = server.read_log()[before:].splitlines()
            troubled = [line for line in lines if " stay in force." in line]
            assert len(troubled) == 2, befall.__name__
            assert all(said in line and str(path) in line for line in troubled)
            load.wait_for(10)

    assert load.broken == []
    assert Counter(told.status for told in load.told) == {200: len(load.told)}
    if closed not in troubles:
        pytest.skip("a wrong mode means nothing to root, and there is no setpriv; the rest holds")


def test_a_worker_in_the_place_of_a_dead_one_keeps_to_the_database(directory: Path) -> None:
    with two_workers(directory, "postbackd.server.worker.GroupCommitWorker") as server:
        dead, _ = server.worker_pids()
        write_config(directory, {"unknown_subid": "accept", "path": "other.db"})
        wait_until(lambda: server.read_log().count("[db] path has changed") == 2, "both to see it")
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: server.read_log().count("Booting worker") == 3, "a new worker")
        wait_until(lambda: len(server.worker_pids()) == 2, "two workers")

        assert ask_each_worker(server, POSTBACK_KEY) == [[200], [200]]
        assert not (directory / "other.db").exists()

        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        wait_until((directory / "other.db").exists, "the new database")
