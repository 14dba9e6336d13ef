"""Who fetches, and when: one of all workers, in a process of its own, whatever is killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import Clock
from live import live_server, wait_until
from stand_in import StandIn, dripping, ecb_document, stand_in_server
from stand_in import document as answer_with

from postbackd.config.settings import Settings, load
from postbackd.db import rate_book
from postbackd.db.rate_book import FetchState
from postbackd.db.rows import utc_text
from postbackd.exchange import runner, schedule
from postbackd.exchange.runner import RateKeeper
from postbackd.exchange.schedule import find_next_publication, find_retry, is_due, take_lease
from storage import open_database

KEY = "s3cret-key-of-the-tests"
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture
def services() -> Iterator[StandIn]:
    with stand_in_server() as stand_in:
        yield stand_in


def write_config(directory: Path, services: StandIn, source: str = "ecb") -> Settings:
    path = directory / "config.ini.php"
    path.write_text(f"""\
;<?php exit; ?>
[system]
postback_key = "{KEY}"
[postback]
unknown_subid = "accept"
[rates]
source = "{source}"
ecb_url = "{services.url}/ecb"
""")
    return load(path)


def serve_todays_rates(services: StandIn, rate: str = "1.08") -> None:
    today = datetime.now(UTC).date()
    services.serve("/ecb", answer_with(ecb_document(today, {"USD": rate})))


def ask(directory: Path, question: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(directory / "postback.db")) as db:
        return db.execute(question).fetchall()


# In the service


def test_the_service_fetches_and_converts_what_waited(tmp_path: Path, services: StandIn) -> None:
    serve_todays_rates(services)
    write_config(tmp_path, services)

    with live_server(tmp_path, "--workers", "3", housekeeps_often=True) as server:
        server.get(f"/{KEY}/postback?subid=c1&payout=10&currency=eur")
        wait_until(
            lambda: (
                ask(tmp_path, "SELECT payout, rate_source FROM conversions_view")
                == [("10.8", "ecb")]
            ),
            "the amount to be converted",
        )
        wait_until(lambda: "rates from ecb: 1 of " in server.read_log(), "the fetch to be told")

    assert services.asked == ["/ecb"]
    history = ask(tmp_path, "SELECT change, payout_micros, rate_source FROM conversion_history")
    assert history in (
        [("recorded", None, None), ("converted", 10_800_000, "ecb")],
        [("recorded", 10_800_000, "ecb")],
    )


def test_a_source_that_the_config_names_while_the_service_runs_is_asked(
    tmp_path: Path, services: StandIn
) -> None:
    serve_todays_rates(services)
    write_config(tmp_path, services, "none")

    with live_server(tmp_path, housekeeps_often=True) as server:
        write_config(tmp_path, services, "ecb")
        wait_until(lambda: services.asked == ["/ecb"], "the source to be asked")
        wait_until(lambda: "1 of " in server.read_log(), "the rate to be taken")


def test_postbacks_are_answered_and_the_service_stops_while_a_source_hangs(
    tmp_path: Path, services: StandIn
) -> None:
    services.serve("/ecb", dripping(services))
    write_config(tmp_path, services)

    with live_server(tmp_path, housekeeps_often=True) as server:
        wait_until(lambda: services.asked == ["/ecb"], "the source to be asked")
        answer = server.get(f"/{KEY}/postback?subid=c1&payout=10&currency=eur")
        begun = time.monotonic()
        status = server.stop()

    assert answer.endswith(b"\r\n\r\nSuccess")
    assert status == 0
    # Nothing waited for the source, which is given 30 seconds.
    assert time.monotonic() - begun < 20
    assert find_processes_in(tmp_path) == []


def test_a_bare_gunicorn_fetches_too(tmp_path: Path, services: StandIn) -> None:
    serve_todays_rates(services)
    write_config(tmp_path, services)

    bare = ("--worker-class", "sync", "--config", os.devnull)
    with live_server(tmp_path, *bare, housekeeps_often=True) as server:
        server.get(f"/{KEY}/postback?subid=c1&payout=10&currency=eur")
        wait_until(lambda: services.asked == ["/ecb"], "the source to be asked")


def find_processes_in(directory: Path) -> list[Path]:
    """List the processes that work in a directory."""
    return [path for path in Path("/proc").glob("[0-9]*") if works_in(path, directory)]


def works_in(process: Path, directory: Path) -> bool:
    try:
        return (process / "cwd").readlink() == directory
    except OSError:
        return False


# The lease


class Worker:
    """A worker's keeper and its own look at the database."""

    def __init__(self, path: Path, settings: Settings, clock: Clock) -> None:
        self.keeper = RateKeeper()
        self.path = path
        self.settings = settings
        self.clock = clock

    def look(self, times: int = 1) -> None:
        """Look so many times, each time when it is time to look again."""
        for _ in range(times):
            self.clock.forward(seconds=runner.LOOK_SECONDS)
            self.look_now()

    def look_now(self) -> None:
        with open_database(self.path, "USD") as db, db.transaction():
            self.keeper.look(db, self.settings, self.clock())


@pytest.fixture
def new_worker(tmp_path: Path, services: StandIn, clock: Clock) -> Iterator[Callable[[], Worker]]:
    # The process that fetches has the machine's clock.
    clock.now = datetime.now(UTC)
    settings = write_config(tmp_path, services)
    made: list[Worker] = []

    def make() -> Worker:
        made.append(Worker(tmp_path / "postback.db", settings, clock))
        return made[-1]

    yield make
    for worker in made:
        worker.keeper.close()


def read_round(path: Path) -> FetchState:
    with open_database(path, "USD") as db:
        return rate_book.read_fetch_state(db.db)


def test_of_two_workers_one_fetches(
    new_worker: Callable[[], Worker], services: StandIn, tmp_path: Path
) -> None:
    serve_todays_rates(services)
    one, other = new_worker(), new_worker()

    for worker in (one, other, one, other, other, one):
        worker.look()
    wait_until(lambda: ask(tmp_path, "SELECT count(*) FROM rates") == [(1,)], "the rate")
    wait_until(lambda: read_round(one.path).holder is None, "the end of the round")
    other.look(times=3)

    assert services.asked == ["/ecb"]


def test_nothing_is_fetched_where_the_source_is_none(
    new_worker: Callable[[], Worker], services: StandIn, tmp_path: Path
) -> None:
    worker = new_worker()
    worker.settings = write_config(tmp_path, services, "none")

    worker.look(times=9)

    assert read_round(worker.path).holder is None
    assert services.asked == []


def test_a_source_that_is_taken_away_before_its_turn_is_not_asked(
    new_worker: Callable[[], Worker], services: StandIn, tmp_path: Path
) -> None:
    worker = new_worker()
    worker.look()
    assert read_round(worker.path).holder is not None

    worker.settings = write_config(tmp_path, services, "none")
    worker.look(times=3)

    assert worker.keeper._runner is None


def test_a_worker_looks_once_a_second_and_not_only_when_its_clock_is_right_again(
    new_worker: Callable[[], Worker], clock: Clock
) -> None:
    worker = new_worker()
    worker.look()
    holder = read_round(worker.path).holder

    clock.forward(seconds=runner.LOOK_SECONDS / 2)
    worker.look_now()
    assert read_round(worker.path).holder == holder
    assert worker.keeper._runner is None

    clock.forward(days=-9)
    worker.look_now()
    assert worker.keeper._runner is not None


def test_a_fetch_that_is_killed_leaves_a_lease_that_runs_out(
    new_worker: Callable[[], Worker],
    services: StandIn,
    tmp_path: Path,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    services.serve("/ecb", dripping(services))
    worker, other = new_worker(), new_worker()
    worker.look(times=2)
    wait_until(lambda: services.asked == ["/ecb"], "the source to be asked")

    process = worker.keeper._runner._process  # type: ignore[union-attr]
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    serve_todays_rates(services)
    other.look(times=3)
    assert services.asked == ["/ecb"]
    assert read_round(tmp_path / "postback.db").holder is not None

    clock.forward(seconds=max(schedule.LEASE_SECONDS, 2 * schedule.FIRST_RETRY_SECONDS))
    other.look(times=2)
    wait_until(lambda: ask(tmp_path, "SELECT count(*) FROM rates") == [(1,)], "the rate")
    assert services.asked == ["/ecb", "/ecb"]
    wait_until(lambda: "fetching rates broke off: status -9" in caplog.text, "the sentence")


def test_a_fetch_that_hangs_is_killed_by_its_worker(
    new_worker: Callable[[], Worker],
    services: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(runner, "CHILD_SECONDS", 2.0)
    services.serve("/ecb", dripping(services))
    worker = new_worker()
    worker.look(times=2)
    wait_until(lambda: worker.keeper._runner is not None, "the runner")
    started = worker.keeper._runner
    assert started is not None
    wait_until(lambda: started._process is not None, "the process")
    process = started._process
    assert process is not None

    # Not even its own alarm rings while it is stopped.
    process.send_signal(signal.SIGSTOP)

    wait_until(lambda: process.poll() == -signal.SIGKILL, "the process to be killed")
    wait_until(lambda: "it took more than 2 seconds" in caplog.text, "the sentence")


def test_a_fetch_whose_worker_is_gone_ends_itself(services: StandIn, tmp_path: Path) -> None:
    settings = write_config(tmp_path, services)
    services.serve("/ecb", dripping(services))
    open_database(settings.db_path, "USD").close()
    script = """
import sys
from postbackd.cli import entry as cli
from postbackd.exchange import fetch
fetch.ALARM_SECONDS = 1
sys.exit(cli.main(sys.argv[1:]))
"""
    words = runner.build_command(settings.path, "token")
    begun = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-c", script, *words[words.index("rates") :]],
        capture_output=True,
        check=False,
        cwd=tmp_path,
    )

    assert done.returncode == -signal.SIGALRM
    # Long before it would give the source up.
    assert time.monotonic() - begun < 25


def test_neither_path_nor_the_directory_decides_which_program_fetches(
    new_worker: Callable[[], Worker],
    services: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve_todays_rates(services)
    worker = new_worker()
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("postbackd.py", "storage.py", "config.py", "json.py"):
        (hostile / name).write_text("open('has-run', 'w')")
    for name in ("postback", "python", "python3"):
        (hostile / name).write_text("#!/bin/sh\ntouch has-run\n")
        (hostile / name).chmod(0o755)
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PATH", str(hostile))

    worker.look(times=2)
    wait_until(lambda: ask(tmp_path, "SELECT count(*) FROM rates") == [(1,)], "the rate")

    assert not (hostile / "has-run").exists()


def test_a_config_that_was_broken_meanwhile_is_named_in_the_log(
    new_worker: Callable[[], Worker],
    services: StandIn,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = new_worker()
    with (tmp_path / "config.ini.php").open("a") as config:
        config.write('max_change = "much"\n')

    worker.look(times=2)

    wait_until(lambda: "max_change" in caplog.text, "the sentence")
    assert "write a number above 1" in caplog.text
    assert services.asked == []


def test_a_fetch_that_breaks_off_is_one_error_without_the_app_id(
    new_worker: Callable[[], Worker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = [sys.executable, "-c", "print('asked'); raise RuntimeError('/?app_id=an-app-id')"]
    monkeypatch.setattr(runner, "build_command", lambda *_: broken)
    caplog.set_level("INFO")
    worker = new_worker()
    worker.settings = replace(worker.settings, app_id="an-app-id")

    worker.look(times=2)
    wait_until(lambda: len(caplog.records) == 2, "the report")

    said, failed = caplog.records
    assert (said.levelname, said.getMessage()) == ("INFO", "asked")
    assert failed.levelname == "ERROR"
    assert failed.getMessage().startswith("fetching rates broke off: Traceback")
    assert failed.getMessage().endswith("RuntimeError: /?app_id=***")


def test_no_part_of_the_app_id_is_left_where_a_long_traceback_is_cut(
    new_worker: Callable[[], Worker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Of the last 2,000 characters the first four are the end of the app_id.
    broken = [sys.executable, "-c", "raise SystemExit('/?app_id=an-app-id' + '&' + 'x' * 1995)"]
    monkeypatch.setattr(runner, "build_command", lambda *_: broken)
    worker = new_worker()
    worker.settings = replace(worker.settings, app_id="an-app-id")

    worker.look(times=2)
    wait_until(lambda: len(caplog.records) == 1, "the report")

    assert "p-id" not in caplog.text


# The schedule


EMPTY = FetchState(None, None, None, None, 0)


def test_rates_are_due_at_first_and_when_the_sources_change(
    tmp_path: Path, services: StandIn
) -> None:
    settings = write_config(tmp_path, services)
    assert is_due(EMPTY, settings, NOON)
    taken = take_lease(EMPTY, settings, NOON, "token")
    ended = taken._replace(holder=None, held_until=None, due_at=utc_text(NOON + timedelta(hours=3)))

    assert not is_due(taken, settings, NOON)
    assert not is_due(ended, settings, NOON)
    assert is_due(ended, settings, NOON + timedelta(hours=3))
    other = write_config(tmp_path, services, "ecb,cbr")
    assert is_due(ended, other, NOON)
    assert not is_due(taken, other, NOON)
    assert not is_due(EMPTY, write_config(tmp_path, services, "none"), NOON)


def test_a_clock_that_was_wrong_holds_nothing_up(tmp_path: Path, services: StandIn) -> None:
    settings = write_config(tmp_path, services)
    ahead = take_lease(EMPTY, settings, NOON + timedelta(days=900), "token")

    assert is_due(ahead, settings, NOON)


def test_tries_come_ever_later_and_then_wait_for_the_next_publication() -> None:
    midnight = datetime(2026, 3, 2, 0, 0, tzinfo=UTC)
    waits = [
        (find_retry(midnight, tries, ("ecb",)) - midnight).total_seconds() for tries in range(1, 15)
    ]

    for tries, wait in enumerate(waits[:12], 1):
        whole = min(60 * 2 ** (tries - 1), 3600)
        assert 0.75 * whole <= wait <= 1.25 * whole
    for wait in waits[12:]:
        assert 15 * 3600 <= wait <= 15.6 * 3600


@pytest.mark.parametrize(
    ("sources", "now", "earliest"),
    [
        (("ecb",), "12:00", "15:10"),
        (("ecb",), "15:10", "17:10"),
        (("ecb", "cbr"), "12:00", "13:30"),
        (("er-api",), "23:00", "00:30"),
    ],
)
def test_after_a_round_the_next_publication_is_waited_for(
    sources: tuple[str, ...], now: str, earliest: str
) -> None:
    at = datetime.fromisoformat(f"2026-03-02T{now}:00+00:00")

    due = {find_next_publication(at, sources) for _ in range(50)}

    first = min(due).time().isoformat("minutes")
    assert earliest <= first
    assert max(due) - min(due) <= timedelta(minutes=20)
    assert len(due) > 1
