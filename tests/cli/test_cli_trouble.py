"""Wrong usage, missing files, broken databases, readers that leave: a sentence, no traceback."""

import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from cli_calls import (
    PATIENCE_SECONDS,
    Terminal,
    build_command,
    build_environment,
    call_on_terminal,
    call_process,
    without_styles,
)
from conftest import Client, write_config

from postbackd.cli import entry as cli
from postbackd.db.sqlite import connection, schema
from postbackd.reports import queries

READERS = [
    ("log",),
    ("conversions",),
    ("report",),
    ("report", "--by", "hour,network"),
    ("clicks", "list"),
    ("offers", "list"),
    ("campaigns", "list"),
    ("rates", "show"),
    ("explain", "subid=c1"),
    ("replay", "--since", "1d", "--dry-run"),
]
WRITERS = [
    ("offers", "set", "O1", "--allow-rebills"),
    ("campaigns", "set", "C1", "--cost-model", "cpa"),
    ("rates", "set", "EUR", "1.1"),
]
EVERYTHING = [
    *READERS,
    *WRITERS,
    ("url",),
    ("check",),
    ("key", "show"),
    ("key", "rotate"),
    ("rates", "unset", "EUR"),
    ("clicks", "import", "x.csv"),
    ("replay", "--id", "1"),
    ("import", "x.csv"),
    ("reconcile", "x.csv"),
    ("backup", "x.db"),
    ("serve",),
]

# These commands need no config.
NEED_NOTHING = [("completion", "bash"), ("man",)]


def call(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main([*words, "--config", str(home / "config.ini.php")])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, out, err


@pytest.mark.parametrize("words", [*EVERYTHING, *NEED_NOTHING], ids=" ".join)
def test_every_command_explains_itself_with_an_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main([*words, "--help"])

    out = capsys.readouterr().out
    assert status == 0
    assert "\nexample:\n  postback " in out
    assert "--config FILE" in out


def test_without_a_command_and_with_a_wrong_one_the_usage_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([]) == 2
    assert cli.main(["lgo"]) == 2
    assert "usage: postback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [w for w in (*EVERYTHING, *NEED_NOTHING) if w != ("serve",)], ids=" ".join
)
def test_an_unknown_option_is_wrong_usage(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, {})

    status, _, err = call(tmp_path, capsys, *words, "--no-such\x1b-option")

    assert status == 2
    assert r"unknown: --no-such\x1b-option" in err
    assert not (tmp_path / "postback.db").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("log", "--since", "tomorrow"),
        ("log", "--since", "2h3"),
        ("log", "--until", "2026-13-01"),
        ("log", "--limit", "-1"),
        ("log", "--limit", "many"),
        ("log", "--verdict", "good"),
        ("conversions", "--status", "paid"),
        ("replay", "--id", "1-5"),
        ("replay", "--id", "1", "--set", "approved"),
        ("replay", "--id", "1", "--rename", "subid="),
        ("report", "--by", "week"),
        ("report", "--since", "tomorrow"),
    ],
    ids=" ".join,
)
def test_values_that_mean_nothing_are_wrong_usage(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, {})

    status, _, err = call(tmp_path, capsys, *words)

    assert status == 2
    assert repr(words[-1]) in err


@pytest.mark.parametrize(
    "words",
    [
        ("log", "--subid"),
        ("log", "--grep"),
        ("conversions", "--offer"),
        ("report", "--campaign"),
        ("rates", "unset"),
    ],
    ids=" ".join,
)
def test_words_that_are_no_utf_8_are_reported_in_a_sentence(
    client: Client, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/health")

    # As Python decodes the byte 0xff.
    status, _, err = call(client.directory, capsys, *words, "a\udcff")

    assert status == 1
    assert r"'a\udcff'" in err


@pytest.mark.parametrize("since", ["999999w", "9999-12-31", "0001-01-01", "90m", "10s"])
def test_times_at_the_edge_of_the_calendar_are_times(
    client: Client, capsys: pytest.CaptureFixture[str], since: str
) -> None:
    client.get("/health")

    assert call(client.directory, capsys, "log", "--since", since)[0] == 0
    if since[0] != "1":
        assert call(client.directory, capsys, "log", "--until", since)[0] == 0


@pytest.mark.parametrize("words", [w for w in EVERYTHING if w != ("serve",)], ids=" ".join)
def test_without_a_config_each_says_where_it_looked(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call(tmp_path, capsys, *words)

    assert status == 1
    assert f"there is no config file yet: looked for '{tmp_path}/config.ini.php'" in out + err


# Commands that only remove rows create no database either.
TAKERS = [("purge", "--older-than", "400d", "--dry-run"), ("rates", "unset", "EUR")]


@pytest.mark.parametrize("words", [*READERS, *TAKERS], ids=" ".join)
def test_without_a_database_readers_say_where_they_looked(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, {})

    status, out, err = call(tmp_path, capsys, *words)

    assert (status, out) == (1, "")
    assert "there is no database yet" in err
    assert str(tmp_path / "postback.db") in err
    assert not (tmp_path / "postback.db").exists()


UTF_16 = ";<?php exit; ?>\n[db]\npath = other.db\n"


@pytest.mark.parametrize("words", [("log",), ("clicks", "import", "-")], ids=" ".join)
def test_a_config_in_another_encoding_leads_to_no_other_database(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, {}).write_text(UTF_16, "utf-16")

    status, out, err = call(tmp_path, capsys, *words)

    assert (status, out) == (1, "")
    assert "the file is UTF-16: save it as UTF-8" in err
    assert [path.name for path in tmp_path.iterdir()] == ["config.ini.php"]


@pytest.mark.parametrize("key", [None, "", "until then"])
def test_what_needs_no_key_works_without_a_usable_one(
    client: Client, key: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    client.send("subid=c1&status=lead")
    old = {"postback_key_old": "a, b until never"} if key else {}
    config_path = write_config(client.directory, {"postback_key": key, **old})

    for words in (*READERS, *WRITERS):
        # These search the keys in their input, or hide them.
        if words[0] not in {"explain", "import", "reconcile", "replay"}:
            assert call(client.directory, capsys, *words)[0] == 0, words
    for words in (("url",), ("key", "show")):
        status, _, err = call(client.directory, capsys, *words)
        assert (status, str(config_path) in err) == (1, True), words
    status, out, _ = call(client.directory, capsys, "check")
    assert status == 1
    assert "postback_key" in out
    assert "the last one came at" in out


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")


def make_foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE albums (id INTEGER)")


TROUBLES = {
    "newer": (make_newer, "install the newer version"),
    "another program's": (make_foreign, "database"),
    "no database": (lambda path: path.write_bytes(b"not a database" * 100), "no SQLite database"),
    "empty": (lambda path: path.write_bytes(b""), "no tables of ours yet"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "database"),
}


@pytest.mark.parametrize("words", [*READERS[:2], *WRITERS[:1]], ids=" ".join)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_database_that_is_none_of_ours_is_reported_in_a_sentence(
    client: Client, trouble: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/health")
    client.receiver.close()
    for left in client.directory.glob("postback.db-*"):
        left.unlink()
    spoil, sentence = TROUBLES[trouble]
    spoil(client.database)

    status, _, err = call(client.directory, capsys, *words)

    if trouble == "empty" and words in WRITERS:
        assert status == 0
        return
    assert status == 1
    assert str(client.database) in err
    assert sentence in err


def test_readers_read_while_another_process_writes(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.send("subid=c1&status=lead")
    with (
        closing(sqlite3.connect(client.database, isolation_level=None)) as other,
        open(f"{client.database}-lock", "r+") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        other.execute("BEGIN IMMEDIATE")

        for words in READERS:
            assert call(client.directory, capsys, *words)[0] == 0
        assert "the database is undamaged" in call(client.directory, capsys, "check")[1]


def test_readers_could_not_write_if_they_tried(client: Client) -> None:
    client.get("/health")

    with (
        closing(queries.open_to_read(client.database)) as asked,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        asked._db.execute("UPDATE tracker SET currency = 'EUR'")


def test_a_writer_that_waits_in_vain_says_so(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.get("/health")
    monkeypatch.setattr("postbackd.db.sqlite.connection.BUSY_TIMEOUT_SECONDS", 0.05)
    with closing(sqlite3.connect(client.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        status, _, err = call(client.directory, capsys, *WRITERS[0])

    assert status == 1
    assert "another program holds a write lock" in err


def test_listing_leaves_the_service_free_to_move_its_log(client: Client) -> None:
    client.get("/health")
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        " SELECT '2026-03-02T12:00:00.000Z', 'http', '', i, 'parked', '' FROM n"
    )
    reader = subprocess.Popen(
        build_command("log", "--limit", "0"),
        cwd=client.directory,
        env=build_environment({}),
        stdout=subprocess.PIPE,
    )
    assert reader.stdout is not None
    reader.stdout.readline()
    client.send("subid=c1&status=lead")

    [moved] = client.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    reader.stdout.close()

    assert moved["busy"] == 0
    assert reader.wait(PATIENCE_SECONDS) == 1


@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",)])
def test_a_reader_that_leaves_early_ends_the_command_quietly(
    client: Client, form: tuple[str, ...]
) -> None:
    client.click("c1")
    client.send("subid=c1&status=lead")
    out, into = os.pipe()
    os.close(out)

    done = subprocess.run(
        build_command("conversions", *form),
        cwd=client.directory,
        env=build_environment({}),
        stdout=into,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(into)

    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_is_no_traceback(client: Client) -> None:
    client.get("/health")
    terminal = Terminal(client.directory, "clicks", "import", "-")
    try:
        terminal.type("subid\n")
        terminal.wait_for("clicks")
        terminal.press_ctrl_c()
        ran = terminal.finish()
    finally:
        terminal.kill()

    assert ran.status == 130
    assert "Traceback" not in ran.out


# As if Ctrl-C came while the command's modules are being imported.
INTERRUPTED_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "postbackd.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["log"]
from postbackd.cli import entry as cli
from postbackd.db.sqlite import connection
cli.enter()
"""


def test_ctrl_c_while_the_command_is_imported_ends_it_quietly(client: Client) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT],
        cwd=client.directory,
        env=build_environment({}),
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize(("more", "is_imported"), [({}, False), ({"FORCE_COLOR": "1"}, True)])
def test_what_lays_out_terminals_is_not_imported_into_a_pipe(
    client: Client, more: dict[str, str], is_imported: bool
) -> None:
    client.get("/health")
    told = "import sys; from postbackd.cli import entry as cli; "
    told += "cli.main(['log']); sys.exit('rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", told],
        cwd=client.directory,
        env=build_environment(more),
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (int(is_imported), b"")


def test_a_narrow_terminal_shows_everything(client: Client) -> None:
    client.click("c1-and-some-more", offer="An offer with a long name")
    client.send("subid=c1-and-some-more&status=sale&payout=1234.5&from=network")

    for words in (*READERS, ("check",)):
        ran = call_on_terminal(client.directory, *words, columns=20)

        lines = without_styles(ran.out).splitlines()
        assert max(map(len, lines)) <= 20, lines
    seen = without_styles(call_on_terminal(client.directory, "conversions", columns=20).out)
    assert "1234.50 USD" in seen
    assert "c1-and-some-more" in seen


def test_on_a_narrow_terminal_long_ids_are_folded_and_reasons_go_beneath(client: Client) -> None:
    subid = "a-click-id-of-a-network-that-likes-long-ones"
    client.send(f"subid={subid}&status=lead&from=network")

    titles, row, *more = without_styles(
        call_on_terminal(client.directory, "log", columns=80).out
    ).splitlines()

    assert titles.split() == ["time", "network", "subid", "status", "amount", "verdict"]
    assert row.split()[-1] == "parked"
    assert "no click 'a-click-id" in "".join(more)


def test_colours_are_for_terminals_and_for_those_who_ask(client: Client) -> None:
    client.send("subid=c1&status=lead")

    def count_colours(out: str) -> int:
        return out.count("\x1b[36m")

    assert count_colours(call_on_terminal(client.directory, "log").out) == 1
    assert count_colours(call_on_terminal(client.directory, "log", NO_COLOR="1").out) == 0
    assert count_colours(call_process(client.directory, "log").out) == 0
    asked = call_process(client.directory, "log", FORCE_COLOR="1", TERM="xterm", COLUMNS="70")
    assert count_colours(asked.out) == 1
    assert max(map(len, without_styles(asked.out).splitlines())) <= 70


def test_a_terminal_that_knows_little_still_gets_its_answer(client: Client) -> None:
    client.click("c1", offer="Чай")
    client.send("subid=c1&status=lead")

    for form in ((), ("--json",), ("--csv",)):
        ran = call_process(client.directory, "conversions", *form, PYTHONIOENCODING="ascii")

        assert (ran.status, ran.err) == (0, "")
        assert r"\u0427" in ran.out


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_help_needs_no_locale(tmp_path: Path, locale: str) -> None:
    ran = call_process(tmp_path, "--help", LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")

    assert ran.status == 0


CLOSED = [
    (("report",), ">&-", 0),
    (("offers", "set", "O2", "--allow-rebills"), ">&-", 0),
    (("offers", "set", "O2", "--allow-rebills"), "<&- >&- 2>&-", 0),
    (("backup", "copy.db"), ">&-", 0),
    (("rates", "unset", "EUR"), "2>&-", 1),
    (("report", "--by", "week"), "2>&-", 2),
    (("import", "-"), "<&-", 0),
    (("explain", "-"), "<&-", 1),
]


@pytest.mark.parametrize(("words", "closed", "status"), CLOSED, ids=str)
def test_a_stream_that_the_shell_closed_leads_nowhere(
    client: Client, words: tuple[str, ...], closed: str, status: int
) -> None:
    client.get("/health")

    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *build_command(*words)],
        cwd=client.directory,
        capture_output=True,
        text=True,
        env=build_environment({}),
        timeout=60,
        check=False,
    )

    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr


@pytest.mark.parametrize("words", [("reconcile", "x.csv"), ("clicks", "import", "x.csv")])
def test_a_file_of_nothing_is_reported(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    client.get("/health")
    monkeypatch.chdir(client.directory)
    Path("x.csv").write_bytes(b"")

    assert call(client.directory, capsys, *words) == (1, "", "postback: the file is empty\n")


@pytest.mark.parametrize("words", [*READERS, *WRITERS], ids=" ".join)
def test_a_directory_in_place_of_the_database_is_reported(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, {})
    (tmp_path / "postback.db").mkdir()

    status, _, err = call(tmp_path, capsys, *words)

    assert status == 1
    assert "postback.db' is a directory: give [db] path the name of a file" in err


def test_what_the_system_refuses_is_reported_without_its_number(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/health")
    gone = client.directory / "gone"

    drawn = call(client.directory, capsys, "report", "--plot", str(gone / "x.svg"))
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    status = cli.main(["url"])

    assert drawn[0] == 1
    assert f"postback: '{gone}/x.svg': No such file or directory; nothing" in drawn[2]
    assert status == 1
    assert "the current directory has been deleted: change to" in capsys.readouterr().err


def test_a_lock_file_that_may_not_be_written_is_reported(tmp_path: Path) -> None:
    told = connection.describe_trouble(PermissionError(13, "Permission denied"), tmp_path / "p.db")

    assert told.endswith(
        "Permission denied; give this user write permission for the file and its directory"
    )
