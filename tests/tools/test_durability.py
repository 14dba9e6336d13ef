"""An acknowledged postback is never lost: servers are killed, disks fail, files go away.

The harness is in `tools/durability/`; `python -m tools.durability` runs its kill rounds by the
thousand.
"""

import errno
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import storage
from tools.durability import overload, sabotage
from tools.durability.audit import audit
from tools.durability.cuts import Run, cut_power, find_untraced, run_load
from tools.durability.powercut import Faults, NoCompilerError, Shim, build_shim, read_trace
from tools.durability.rounds import run_rounds
from tools.durability.senders import Click, Ledger, make_postbacks, send_once
from tools.durability.servers import (
    WORKER_CLASSES,
    Home,
    Setup,
    find_children,
    find_free_port,
    serving,
    wait_until,
)
from tools.durability.troubles import TROUBLE_SECONDS, Duty

SHIPPED = WORKER_CLASSES[0]
SETUPS = [Setup(worker_class, workers) for worker_class in WORKER_CLASSES for workers in (1, 2)]

KILL_ROUNDS = 20
SEED = 20261122

DAY_SECONDS = 24 * 60 * 60


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, built once."""
    try:
        return build_shim(tmp_path_factory.mktemp("shim"))
    except NoCompilerError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def left_over() -> Iterator[Path]:
    """Where to store the files after power cuts: in memory if we may, for they are many."""
    memory = Path("/dev/shm")
    is_ours = os.access(memory, os.W_OK | os.X_OK)
    with tempfile.TemporaryDirectory(dir=memory if is_ours else None) as directory:
        yield Path(directory)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "tracker")


@pytest.fixture
def shim(library: Path, home: Home) -> Iterator[Shim]:
    with Shim(library, home) as shim:
        yield shim


def test_a_port_that_was_found_is_for_its_server_alone() -> None:
    port = find_free_port()

    with socket.socket() as anybody, pytest.raises(OSError, match="in use"):
        anybody.bind(("127.0.0.1", port))
    with socket.socket() as its_server:
        its_server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        its_server.bind(("127.0.0.1", port))
        its_server.listen()
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_no_kill_loses_or_doubles_an_acknowledged_postback(tmp_path: Path, setup: Setup) -> None:
    share = KILL_ROUNDS // len(SETUPS)
    first = 20 * SETUPS.index(setup)

    rounds = list(run_rounds(tmp_path, [setup], range(first, first + share), SEED))

    assert [str(each) for each in rounds if not each.findings.is_sound] == []
    # The kills came amid work; on a slow disk it is little.
    assert sum(each.acknowledged for each in rounds) > 2 * share


def test_the_harness_notices_an_answer_before_the_commit(tmp_path: Path) -> None:
    hasty = Setup("gthread", application=sabotage.EARLY)

    rounds = run_rounds(tmp_path, [hasty], range(10), SEED)

    assert any("was answered" in loss for each in rounds for loss in each.findings.lost)


def test_the_harness_notices_a_postback_that_counts_twice(tmp_path: Path) -> None:
    doubling = Setup("gthread", application=sabotage.DOUBLING)

    rounds = run_rounds(tmp_path, [doubling], range(10), SEED)

    assert any("was recorded 2 times" in flaw for each in rounds for flaw in each.findings.doubled)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_power_cut_loses_an_acknowledged_postback(
    left_over: Path, library: Path, home: Home, workers: int
) -> None:
    run = run_load(library, home, Setup(SHIPPED, workers), 600, SEED)

    cuts = list(cut_power(left_over, run, 8, SEED))

    assert find_untraced(run) == []
    assert [str(cut) for cut in cuts if not cut.findings.is_sound] == []
    assert cuts[-1].acknowledged > 400
    assert run.syncs > 20


@pytest.mark.parametrize("application", [sabotage.UNSYNCED, sabotage.HALF_SYNCED])
def test_the_harness_notices_a_commit_that_is_not_synced(
    left_over: Path, library: Path, home: Home, application: str
) -> None:
    run = run_load(library, home, Setup("gthread", 1, application), 120, SEED)

    cuts = list(cut_power(left_over, run, 3, SEED))

    assert any(cut.findings.lost for cut in cuts)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(grow_errno=errno.ENOSPC), id="disk full"),
        pytest.param(Faults(write_errno=errno.EIO), id="writes fail"),
        pytest.param(Faults(sync_errno=errno.EIO), id="syncs fail"),
        pytest.param(
            Faults(write_errno=errno.EROFS, sync_errno=errno.EROFS, open_errno=errno.EROFS),
            id="mounted read-only",
        ),
    ],
)
def test_a_failing_disk_is_answered_503_until_it_works(
    home: Home, shim: Shim, faults: Faults
) -> None:
    with Duty(home, Setup(SHIPPED), shim.environ) as duty:
        workers = duty.server.find_workers()

        shim.play(faults)
        duty.await_refusal()
        shim.mend()
        duty.await_acks()

        assert duty.settle().is_sound, str(duty.settle())
        assert duty.is_healthy()
        assert duty.server.find_workers() == workers


def test_a_sync_that_fails_once_costs_a_resend_and_nothing_else(home: Home, shim: Shim) -> None:
    with Duty(home, Setup(SHIPPED), shim.environ) as duty:
        shim.play(Faults(sync_errno=errno.EIO, sync_faults=1))
        duty.await_acks()

        assert duty.load.ledger.unavailable > 0
        assert duty.settle().is_sound, str(duty.settle())


@pytest.mark.parametrize("sync_faults", [1, 4])
def test_what_is_acknowledged_after_a_failed_sync_survives_a_power_cut(
    left_over: Path, library: Path, home: Home, sync_faults: int
) -> None:
    # Linux takes pages whose sync failed for clean: they are read back, and never written again.
    with (
        Shim(library, home, traces=True) as shim,
        Duty(home, Setup(SHIPPED), shim.environ) as duty,
    ):
        shim.play(Faults(sync_errno=errno.EIO, sync_faults=sync_faults))
        wait_until(lambda: duty.load.ledger.unavailable > 0, TROUBLE_SECONDS, "a sync has failed")
        duty.await_acks()
        duty.server.kill_all()
        run = Run(read_trace(shim.trace), duty.load.stop().acks)

    cuts = list(cut_power(left_over, run, 5, SEED))

    assert find_untraced(run) == []
    assert [str(cut) for cut in cuts if not cut.findings.is_sound] == []


def test_permission_taken_away_is_answered_503_until_it_is_given_back(
    home: Home, shim: Shim
) -> None:
    with Duty(home, Setup(SHIPPED), shim.environ) as duty:
        # A file that is open stays open; it is the next worker that is refused.
        shim.play(Faults(open_errno=errno.EACCES))
        duty.server.kill_worker(0)
        duty.await_refusal()
        shim.mend()
        duty.await_acks()

        assert duty.settle().is_sound, str(duty.settle())


def test_a_clock_set_back_stops_nothing(home: Home, shim: Shim) -> None:
    with Duty(home, Setup(SHIPPED), shim.environ) as duty:
        master, workers = duty.server.master, duty.server.find_workers()

        for days in (-3, 2, 0):
            shim.play(Faults(clock_offset_seconds=days * DAY_SECONDS))
            duty.await_acks()
            assert duty.is_healthy()
        # A change of the config is noticed by the clock of the file system.
        shim.play(Faults(clock_offset_seconds=-DAY_SECONDS))
        home = Home(home.directory, unknown_subid="accept")
        wait_until(lambda: _is_accepted(duty), TROUBLE_SECONDS, "the changed config is in force")

        assert duty.load.ledger.unavailable == 0
        assert find_children(master) == workers
        assert audit(home.database, duty.load.stop().acks).is_sound


def _is_accepted(duty: Duty) -> bool:
    (postback,) = make_postbacks(f"after-{time.monotonic_ns()}", 1, [Click.UNKNOWN])
    ledger = Ledger()
    send_once(duty.server.port, postback, ledger)
    return [ack.verdict for ack in ledger.acks] == ["recorded"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_removed_database_is_answered_503_until_it_is_put_back(home: Home, workers: int) -> None:
    kept = home.directory / "kept.db"
    with Duty(home, Setup(SHIPPED, workers)) as duty:
        kept.hardlink_to(home.database)

        home.database.unlink()
        duty.await_refusal()
        assert not home.database.exists()
        kept.rename(home.database)
        duty.await_acks()

        assert duty.settle().is_sound, str(duty.settle())


@pytest.mark.parametrize("workers", [1, 2])
def test_another_database_put_in_place_is_noticed_and_stays_whole(home: Home, workers: int) -> None:
    other, kept = _make_backup(home), home.directory / "kept.db"
    with Duty(home, Setup(SHIPPED, workers)) as duty:
        _empty_the_log(home.database)
        duty.await_acks()

        kept.hardlink_to(home.database)
        begun_at = time.monotonic_ns()
        other.rename(home.database)
        done_at = time.monotonic_ns()
        duty.await_acks(50)
        acks = duty.load.stop().acks

        # An answer that is under way during the rename may be given for either.
        after = audit(home.database, (ack for ack in acks if ack.asked_at_ns > done_at))
        assert after.is_sound, str(after)
        assert _count_backed_up(home.database) == 3000
        before = audit(kept, (ack for ack in acks if ack.read_at_ns < begun_at))
        assert before.is_sound, str(before)


def _empty_the_log(database: Path) -> None:
    """Make the -wal file belong to the database file below it, not be all there is."""
    with closing(sqlite3.connect(database, timeout=10)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _make_backup(home: Home) -> Path:
    other = home.directory / "other.db"
    with storage.open_database(other, "USD") as backup:
        clicks = ((f"backed-up-{number}",) for number in range(3000))
        with backup.transaction():
            backup.db.executemany("INSERT INTO clicks (subid) VALUES (?)", clicks)
    return other


def _count_backed_up(database: Path) -> int:
    with closing(sqlite3.connect(database)) as db:
        row = db.execute("SELECT count(*) FROM clicks WHERE subid GLOB 'backed-up-*'").fetchone()
    return int(row[0])


def _cp(other: Path, database: Path) -> None:
    subprocess.run(["/bin/cp", other, database], check=True)


def _rsync_in_place(other: Path, database: Path) -> None:
    """Do as `rsync -a --inplace` does: no truncation first, the other file's time in the end."""
    with database.open("r+b") as file:
        file.write(other.read_bytes())
        file.truncate()
    shutil.copystat(other, database)


def _dd(other: Path, database: Path) -> None:
    subprocess.run(
        ["/bin/dd", f"if={other}", f"of={database}", "conv=notrunc", "status=none"], check=True
    )


def _truncate(other: Path, database: Path) -> None:
    os.truncate(database, 0)


@pytest.mark.parametrize("is_moved", [False, True], ids=["log in use", "log emptied"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("overwrite", [_cp, _rsync_in_place, _dd, _truncate])
def test_an_overwritten_database_is_answered_503_until_a_copy_is_restored(
    home: Home, overwrite: Callable[[Path, Path], None], workers: int, is_moved: bool
) -> None:
    other = _make_backup(home)
    with Duty(home, Setup(SHIPPED, workers)) as duty:
        if is_moved:
            _empty_the_log(home.database)
            duty.await_acks()

        overwrite(other, home.database)
        done_at = time.monotonic_ns()
        duty.await_refusal()
        # A worker that comes now does not take the file for a new one.
        duty.server.kill_worker(0)
        duty.await_refusal()
        assert "works again" not in duty.server.read_log()
        restored_at = time.monotonic_ns()
        restored = _restore(home, other)
        duty.await_acks(50)
        acks = duty.load.stop().acks

    # None between the two: an answer that was under way when it was overwritten is for neither.
    between = [ack for ack in acks if done_at < ack.asked_at_ns and ack.read_at_ns < restored_at]
    assert between == []
    after = audit(home.database, (ack for ack in acks if ack.asked_at_ns > done_at))
    assert after.is_sound, str(after)
    assert _count_backed_up(home.database) == 3000
    assert Path(restored["kept"]).exists()
    told = [line for line in duty.server.read_log().splitlines() if "was overwritten while" in line]
    # Each process says it once.
    assert 1 <= len(told) <= workers + 1


def _restore(home: Home, copy: Path) -> dict[str, str]:
    command = [sys.executable, "-m", "postbackd.cli.entry", "restore", str(copy), "--json"]
    done = subprocess.run(
        [*command, "--config", str(home.config)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    restored: dict[str, str] = json.loads(done.stdout)
    return restored


def test_a_restored_copy_loses_nothing_that_is_acknowledged_behind_it(home: Home) -> None:
    other = _make_backup(home)
    with Duty(home, Setup(SHIPPED, 2)) as duty:
        begun_at = time.monotonic_ns()
        restored = _restore(home, other)
        done_at = time.monotonic_ns()
        duty.await_acks(50)
        acks = duty.load.stop().acks

    after = audit(home.database, (ack for ack in acks if ack.asked_at_ns > done_at))
    assert after.is_sound, str(after)
    before = audit(Path(restored["kept"]), (ack for ack in acks if ack.read_at_ns < begun_at))
    assert before.is_sound, str(before)
    # What was answered meanwhile is in the one or in the other.
    assert _count_rows(home.database) + _count_rows(Path(restored["kept"])) >= len(acks)


def _count_rows(database: Path) -> int:
    with closing(sqlite3.connect(database)) as db:
        return int(db.execute("SELECT count(*) FROM postbacks").fetchone()[0])


@pytest.mark.parametrize("name", ["postback.db-wal", "postback.db-shm", "postback.db-lock"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_beside_the_database_is_removed_and_nothing_is_lost(
    home: Home, workers: int, name: str
) -> None:
    with Duty(home, Setup(SHIPPED, workers)) as duty:
        (home.directory / name).unlink()
        duty.await_acks()
        # A new worker makes new files where they are gone; an old one must not go on beside it,
        # nor be the only one to hold what was acknowledged.
        for index in range(workers):
            duty.server.kill_worker(index)
            duty.await_acks(20)

        assert duty.settle().is_sound, str(duty.settle())


def test_a_locked_database_is_answered_503_until_it_is_free(home: Home) -> None:
    with Duty(home, Setup(SHIPPED)) as duty:
        with closing(sqlite3.connect(home.database, timeout=10, isolation_level=None)) as greedy:
            greedy.execute("BEGIN IMMEDIATE")
            acknowledged = len(duty.load.ledger.acks)
            duty.await_refusal()
            # One answer may have been on its way when the lock was taken.
            assert len(duty.load.ledger.acks) <= acknowledged + 2
        duty.await_acks()

        assert duty.settle().is_sound, str(duty.settle())


@pytest.mark.parametrize("damage", [b"no database at all", b""], ids=["overwritten", "torn"])
def test_a_corrupt_database_at_start_is_answered_503_until_a_good_one_is_there(
    home: Home, damage: bytes
) -> None:
    good = _make_backup(home)
    whole = good.read_bytes()
    home.database.write_bytes(damage * 5000 or whole[: len(whole) // 2])
    with serving(home, Setup(SHIPPED)) as server:
        server.wait_for_health(503)
        ledger = Ledger()
        (postback,) = make_postbacks("early", 1, [Click.UNKNOWN])
        assert send_once(server.port, postback, ledger) == 503
        workers = server.find_workers()

        good.rename(home.database)
        server.wait_until_healthy()

        assert send_once(server.port, postback, ledger) == 200
        assert ledger.flaws == []
        assert server.find_workers() == workers
        assert audit(home.database, ledger.acks).is_sound


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_crowd_is_served_in_bounded_time_and_memory(tmp_path: Path, worker_class: str) -> None:
    home = Home(tmp_path / "tracker", unknown_subid="accept")
    setup = Setup(worker_class)

    figures = overload.overload(home, setup, 2.0, slow=overload.slow_senders_for(setup))

    assert figures.findings.is_sound, str(figures)
    assert figures.hung_up_kept == overload.HANGING_UP
    assert figures.workers_replaced == 0
    assert figures.peak_mib < 128
    # On a machine at rest half a second; a sender's usual patience is thirty.
    assert figures.worst_seconds < 10
