"""The settings in force while config.ini.php changes under the running service."""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from postbackd.config import settings as config
from postbackd.config import watch as config_watch
from postbackd.config.entries import ConfigError
from postbackd.config.settings import Settings
from postbackd.config.watch import ConfigWatch

TOP = ";<?php exit; ?>\n[system]\n"
GOOD = TOP + 'postback_key = "first"\n'
OTHER = TOP + 'postback_key = "other"\n'
LONG_AGO = 1_000_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.ini.php"
    path.write_text(GOOD)
    return path


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(config_watch, "SETTLE_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "postback.config")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Each reading of the file."""
    seen: list[Path] = []
    read_file = config.read_file

    def counted(path: Path) -> bytes:
        seen.append(path)
        return read_file(path)

    monkeypatch.setattr(config_watch, "read_file", counted)
    return seen


def key(watch: ConfigWatch, now: float) -> bytes | None:
    settings = watch.current(now)
    return settings.postback_key if settings else None


def pretend_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Move the wall clock on, past the time within which a stamp proves nothing."""
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)


def stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the wall clock, so that a file made just now stays young, however long a test takes."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)


def rename_over(file: Path, text: str) -> None:
    new = file.with_name("new")
    new.write_text(text)
    new.rename(file)


def test_a_watch_opens_nothing_by_itself(tmp_path: Path) -> None:
    watch = ConfigWatch(tmp_path / "missing")

    assert watch.problem is None


@pytest.mark.parametrize("change", [Path.write_text, rename_over], ids=["in place", "rename"])
def test_a_change_is_in_force_at_the_next_due_check(
    file: Path, change: Callable[[Path, str], object]
) -> None:
    watch = ConfigWatch(file)
    assert key(watch, 100.0) == b"first"

    change(file, OTHER)

    assert key(watch, 100.2) == b"first"
    assert key(watch, 100.25) == b"other"
    assert watch.problem is None


def test_between_two_checks_the_file_is_not_looked_at(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = ConfigWatch(file)
    watch.current(100.0)
    monkeypatch.setattr(config_watch, "_stamp_of", lambda _path: pytest.fail("looked"))

    assert key(watch, 100.24) == b"first"


def test_an_unchanged_old_file_is_not_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Path]
) -> None:
    pretend_later(monkeypatch)
    watch = ConfigWatch(file)

    for now in range(5):
        watch.current(float(now))

    assert len(reads) == 1


def test_a_young_file_is_read_again_until_its_stamp_proves_something(
    file: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Path]
) -> None:
    stop_the_clock(monkeypatch)
    watch = ConfigWatch(file)
    watch.current(0.0)
    watch.current(1.0)
    young = len(reads)
    pretend_later(monkeypatch)
    watch.current(2.0)

    for now in range(3, 7):
        watch.current(float(now))

    assert young >= 2
    assert len(reads) == young + 1


def test_a_change_within_the_same_tick_of_the_clock_is_not_missed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_the_clock(monkeypatch)
    real_stat = os.stat
    os.utime(file, (LONG_AGO, LONG_AGO))
    first = os.stat(file)

    def coarse_stat(path: Path, **options: Any) -> os.stat_result:
        # What a file system with coarse stamps shows: the same times after the change as before.
        now = real_stat(path, **options)
        return os.stat_result((*now[:7], *first[7:10]), vars_of(first)) if path == file else now

    def vars_of(state: os.stat_result) -> dict[str, object]:
        names = ("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")
        return {name: getattr(state, name) for name in names}

    monkeypatch.setattr(os, "stat", coarse_stat)
    watch = ConfigWatch(file)
    watch.current(100.0)

    file.write_text(OTHER)
    os.utime(file, ns=(first.st_atime_ns, first.st_mtime_ns))

    assert len(OTHER) == len(GOOD)
    assert key(watch, 101.0) == b"other"


def test_a_change_that_sets_the_time_back_is_not_missed(file: Path) -> None:
    os.utime(file, (LONG_AGO, LONG_AGO))
    watch = ConfigWatch(file)
    watch.current(100.0)

    file.write_text(OTHER)
    os.utime(file, (LONG_AGO, LONG_AGO))

    assert key(watch, 101.0) == b"other"


@pytest.mark.parametrize(
    ("half", "said"),
    [
        ("", "has no postback_key"),
        (TOP, "has no postback_key"),
        (TOP + "postback_key", "has no postback_key"),
        (TOP + "postback_key =", "line 3: [system] postback_key is empty"),
        (TOP + 'postback_key = "oth', "line 3: the double quote that opens here is never closed"),
        (OTHER + "[postback]\npark_days = x", "line 5: [postback] park_days is 'x'"),
    ],
)
def test_half_a_file_changes_nothing(file: Path, half: str, said: str) -> None:
    watch = ConfigWatch(file)
    before = watch.current(100.0)

    file.write_text(half)

    assert watch.current(101.0) is before
    assert said in str(watch.problem)
    file.write_text(OTHER)
    assert key(watch, 102.0) == b"other"
    assert watch.problem is None


def test_a_file_that_is_still_being_written_waits_for_the_next_check(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = OTHER + 'postback_key_old = "first"\n'
    watch = ConfigWatch(file)
    watch.current(100.0)
    file.write_text(OTHER)
    monkeypatch.setattr(time, "sleep", lambda _seconds: file.write_text(whole))

    caught = key(watch, 101.0)

    assert caught == b"first"
    assert watch.problem is None
    settings = watch.current(102.0)
    assert settings is not None
    assert [old.key for old in settings.old_keys] == [b"first"]


def test_a_file_that_is_gone_for_a_moment_changes_nothing(file: Path) -> None:
    watch = ConfigWatch(file)
    before = watch.current(100.0)

    file.unlink()
    during = watch.current(101.0)
    problem = watch.problem
    file.write_text(GOOD)

    assert during is before
    assert str(problem).startswith(f"{file} cannot be read: No such file")
    assert key(watch, 102.0) == b"first"
    assert watch.problem is None


def test_a_directory_that_is_closed_for_a_moment_is_forgotten(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_later(monkeypatch)
    watch = ConfigWatch(file)
    watch.current(100.0)
    real_stamp_of = config_watch._stamp_of

    def refused(path: Path) -> None:
        raise ConfigError(f"{path} cannot be read: Permission denied.")

    monkeypatch.setattr(config_watch, "_stamp_of", refused)
    watch.current(101.0)
    problem = watch.problem
    monkeypatch.setattr(config_watch, "_stamp_of", real_stamp_of)
    watch.current(102.0)

    assert "Permission denied" in str(problem)
    assert watch.problem is None


def test_a_directory_in_its_place_changes_nothing(file: Path) -> None:
    watch = ConfigWatch(file)
    before = watch.current(100.0)

    file.unlink()
    file.mkdir()

    assert watch.current(101.0) is before
    assert "is not a file" in str(watch.problem)


def test_a_file_with_a_wrong_mode_changes_nothing(file: Path) -> None:
    watch = ConfigWatch(file)
    before = watch.current(100.0)

    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user, root most likely, reads a file of any mode")
    during = watch.current(101.0)
    problem = watch.problem
    file.chmod(0o600)

    assert during is before
    assert "Permission denied" in str(problem)
    assert key(watch, 102.0) == b"first"
    assert watch.problem is None


def test_a_file_that_cannot_be_opened_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = ConfigWatch(file)
    before = watch.current(100.0)
    real_open = os.open

    def refused(path: Path, *_args: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refused)
    during = watch.current(101.0)
    problem = watch.problem
    monkeypatch.setattr(os, "open", real_open)

    assert during is before
    assert str(problem) == f"{file} cannot be read: Permission denied."
    assert key(watch, 102.0) == b"first"
    assert watch.problem is None


def test_without_a_usable_key_since_start_there_are_no_settings(file: Path) -> None:
    file.write_text(TOP + 'postback_key = ""\n')
    watch = ConfigWatch(file)

    before = watch.current(100.0)
    problem = watch.problem
    file.write_text(GOOD)

    assert before is None
    assert str(problem).startswith(f"{file}, line 3: [system] postback_key is empty")
    assert key(watch, 101.0) == b"first"


def test_a_relative_path_stays_good_when_the_directory_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    watch = ConfigWatch(Path(file.name))
    monkeypatch.chdir("/")

    assert key(watch, 100.0) == b"first"


def test_currency_and_database_stay_until_a_restart(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = ConfigWatch(file)
    watch.current(100.0)

    file.write_text(OTHER + "currency = EUR\n[db]\npath = x.db\n")
    for now in range(101, 105):
        watch.current(float(now))

    settings = watch.current(105.0)
    assert settings is not None
    assert settings.postback_key == b"other"
    assert (settings.currency, settings.db_path) == ("USD", file.with_name("postback.db"))
    said = [r.getMessage() for r in caplog.records if "restart the service" in r.getMessage()]
    assert len(said) == 2
    assert "[system] currency has changed" in said[0]
    assert "[db] path has changed" in said[1]
    assert len([one for one in settings.warnings if "restart" in one]) == 2


# What the log says.


def test_each_problem_is_logged_once_until_it_changes_or_is_mended(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = ConfigWatch(file)
    now = iter(range(100, 200))

    for text in (GOOD, "", "", TOP + "postback_key =\n", GOOD, GOOD, ""):
        file.write_text(text)
        watch.current(float(next(now)))
        watch.current(float(next(now)))

    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "INFO", "ERROR"]
    assert "The last good settings stay in force." in caplog.records[0].getMessage()
    assert str(file) in caplog.records[2].getMessage()


def test_each_new_warning_is_logged_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = ConfigWatch(file)

    for now, text in enumerate(["[x]\ny = 1\n", "[x]\ny = 1\n", "[x]\ny = 2\n", "z = 1\n"]):
        file.write_text(GOOD + text)
        watch.current(float(now))

    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 2
    assert warnings[0].startswith(f"{file}, line 5: section [x] is unknown")
    assert "[system] z is unknown" in warnings[1]


def test_the_log_never_shows_a_key(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = ConfigWatch(file)

    for now, value in enumerate(["s3cret", "s3cret/", "s3cret=", '"s3cret', "s3cret(", "!s3cret"]):
        file.write_text(TOP + f"postback_key = {value}\npixel_key = s3cret\n")
        watch.current(float(now))
        assert "s3cret" not in str(watch.problem)

    assert len(caplog.records) >= 5
    assert "s3cret" not in caplog.text


# Threads.


def test_nobody_waits_for_anothers_parse(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = ConfigWatch(file)
    watch.current(100.0)
    parsing, go_on = threading.Event(), threading.Event()
    real_settings = config.judge_settings

    def slow(path: Path, content: bytes) -> Settings:
        parsing.set()
        assert go_on.wait(10)
        return real_settings(path, content)

    monkeypatch.setattr(config_watch, "judge_settings", slow)
    file.write_text(OTHER)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(key, watch, 101.0)
        assert parsing.wait(10)
        meanwhile = key(watch, 101.0)
        go_on.set()

        assert meanwhile == b"first"
        assert first.result(10) == b"other"


def test_everybody_waits_for_the_very_first_parse(file: Path) -> None:
    watch = ConfigWatch(file)
    start = threading.Barrier(8)

    def ask() -> bytes | None:
        start.wait(10)
        return key(watch, 100.0)

    with ThreadPoolExecutor(8) as pool:
        answers = [asked.result(10) for asked in [pool.submit(ask) for _ in range(8)]]

    assert answers == [b"first"] * 8
