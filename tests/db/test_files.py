"""Files of ours that are not whole yet: whose they are, and who removes what was left."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_calls import Terminal, build_environment, call_process
from conftest import Client
from live import wait_until

from postbackd import files
from postbackd.files import PART_SUFFIX, find_abandoned, give_name, part_beside

# Makes a part, or a private directory, and holds it until it is killed.
HOLDER = """
import signal
import sys
from postbackd import files
from pathlib import Path
with {maker} as made:
    print(getattr(made, "path", made), flush=True)
    signal.pause()
"""


@contextmanager
def holding(maker: str, place: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has made something in a directory and still holds it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(maker=maker)],
        env=build_environment({"TMPDIR": str(place)}),
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, place / process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


MAKERS = {
    "a part": "files.part_beside(Path('copy.db'))",
    "a directory": "files.private_directory('rehearsal')",
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_what_a_killed_process_left_is_found_and_removed(tmp_path: Path, maker: str) -> None:
    with holding(maker, tmp_path) as (process, left):
        assert left.exists()
        assert list(find_abandoned(tmp_path)) == []
        files.remove_abandoned(tmp_path)
        assert left.exists()

        process.kill()
        process.wait()

        assert list(find_abandoned(tmp_path)) == [left]
        with part_beside(tmp_path / "copy.db"):
            assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_somebody_elses_is_not_taken_for_one_that_was_left(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f".link.{PART_SUFFIX}").symlink_to(precious)
    (tmp_path / ".movie.mkv.part").write_text("a download")
    os.mkfifo(tmp_path / f".pipe{PART_SUFFIX}")
    before = sorted(tmp_path.iterdir())

    files.remove_abandoned(tmp_path)

    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_part_of_another_user_is_left_to_them(tmp_path: Path) -> None:
    theirs = tmp_path / f".copy.db.12345678{PART_SUFFIX}"
    theirs.touch()
    os.chown(theirs, 1234, 1234)

    assert list(find_abandoned(tmp_path)) == []


def test_a_new_name_replaces_nothing(tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_text("an old one")

    with part_beside(target) as part, pytest.raises(FileExistsError):
        give_name(part, target, replaces=False)

    assert target.read_text() == "an old one"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_backup_is_told_and_the_next_one_clears_up(
    tracker: Client, tmp_path: Path
) -> None:
    backup = Terminal(tracker.directory, "backup", "copy.db")
    wait_until(lambda: any(tracker.directory.glob(f".copy.db.*{PART_SUFFIX}")), "a copy begun")
    backup.kill()
    backup.finish()
    [left] = tracker.directory.glob(f".copy.db.*{PART_SUFFIX}")

    told = call_process(tracker.directory, "check").out
    call_process(tracker.directory, "backup", "other.db")

    assert f"{left} was left by a command that was killed" in told
    assert not left.exists()
    assert "was left by" not in call_process(tracker.directory, "check").out


def test_a_killed_dry_run_is_told_and_the_next_one_clears_up(
    tracker: Client, tmp_path: Path
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    words = ("replay", "--verdict", "parked", "--dry-run")
    replay = Terminal(tracker.directory, *words, TMPDIR=str(place))
    wait_until(lambda: any(place.glob("*/rehearsal.db")), "a rehearsal begun")
    replay.kill()
    replay.finish()
    [left] = place.iterdir()

    told = call_process(tracker.directory, "check", TMPDIR=str(place)).out
    ran = call_process(tracker.directory, *words, "--totals", TMPDIR=str(place))

    assert f"{left} was left by a command that was killed" in told
    assert ran.status == 0
    assert list(place.iterdir()) == []


@pytest.fixture
def tracker(client: Client) -> Client:
    """A tracker with enough in it that a command can be killed in the midst of its work."""
    client.get("/health")
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)"
        " SELECT '2026-03-02T12:00:00.000Z', 'http', 'subid=' || i, i, 'parked', '' FROM n"
    )
    return client
