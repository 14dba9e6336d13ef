"""`postback backup`: a whole copy, written while postbacks come in, that can be restored."""

import resource
import shutil
import sqlite3
import stat
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest
from cli_calls import (
    Ran,
    Terminal,
    build_command,
    build_environment,
    call_on_terminal,
    call_process,
    without_styles,
)
from conftest import POSTBACK_KEY, Client, ReceiverWith, write_config
from live import PATIENCE_SECONDS, LiveServer, live_server, wait_until

from postbackd.cli import entry as cli
from postbackd.db.sqlite import schema
from postbackd.db.sqlite.backup import PAGES_A_STEP, CopyError, copy_database


def back_up(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    """Back up in this process."""
    config = str(client.directory / "config.ini.php")
    status = cli.main(["backup", *words, "--config", config])
    return Ran(status, *capsys.readouterr())


def count(path: Path, table: str = "postbacks") -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
        number: int = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return number


def fill(client: Client, rows: int) -> None:
    """Make the database larger than one step of copying."""
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " SELECT '2026-03-02T12:00:00.000Z', 'http', '', i, 'parked', '' FROM n",
        rows,
    )


@pytest.fixture
def tracker(client: Client) -> Client:
    """A tracker with a sale."""
    client.click("c1", offer="O1")
    client.send("subid=c1&tid=t1&payout=10")
    return client


def test_a_copy_holds_everything_and_is_for_its_owner_only(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tracker.directory / "copy.db"

    ran = back_up(tracker, capsys, str(target), "--json")

    assert ran.objects == [
        {
            "file": str(target),
            "bytes": target.stat().st_size,
            "schema": len(schema.MIGRATIONS),
            "postbacks": 1,
            "conversions": 1,
            "clicks": 1,
            "last_postback_id": 1,
        }
    ]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in tracker.directory.glob("*copy.db*")] == ["copy.db"]


def send_on(server: LiveServer, name: str, stop: threading.Event, answered: list[str]) -> None:
    while not stop.is_set():
        tid = f"{name}-{len(answered)}"
        answer = server.get(f"/{POSTBACK_KEY}/postback?subid=c1&tid={tid}&payout=1")
        if answer.startswith(b"HTTP/1.1 200"):
            answered.append(tid)


def test_under_load_each_that_was_acknowledged_before_is_in_the_copy_and_serves_again(
    receiver_with: ReceiverWith, tmp_path: Path
) -> None:
    client = receiver_with(unknown_subid="accept")
    client.get("/health")
    fill(client, 20_000)
    client.receiver.close()
    target = tmp_path / "copy.db"
    stop = threading.Event()
    answered: list[list[str]] = [[], []]
    with live_server(client.directory, "--workers", "2") as server:
        senders = [
            threading.Thread(target=send_on, args=(server, f"s{number}", stop, answered[number]))
            for number in range(2)
        ]
        for sender in senders:
            sender.start()
        wait_until(lambda: min(map(len, answered)) >= 20, "acknowledgements")
        before = {tid for tids in answered for tid in list(tids)}

        ran = call_process(client.directory, "backup", str(target))

        after = sum(map(len, answered)) - len(before)
        stop.set()
        for sender in senders:
            sender.join(PATIENCE_SECONDS)
    assert ran.status == 0, ran.err
    assert after > 0
    with closing(sqlite3.connect(f"file:{target}?mode=ro&immutable=1", uri=True)) as copy:
        kept = {tid for (tid,) in copy.execute("SELECT tid FROM postbacks")}
    assert before <= kept

    home = tmp_path / "restored"
    home.mkdir()
    write_config(home, {"unknown_subid": "accept"})
    shutil.copy(target, home / "postback.db")
    tid = min(before)
    with live_server(home) as server:
        again = server.get(f"/{POSTBACK_KEY}/postback?subid=c1&tid={tid}&payout=1")
    assert b"X-Postback-Result: re" in again
    assert count(target) >= 20_000 + len(before)


def test_a_writer_that_never_rests_does_not_begin_the_copy_anew(tracker: Client) -> None:
    fill(tracker, 20_000)
    steps = 0

    def write_between(done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        assert steps <= total // (PAGES_A_STEP * 4096) + 2, "it began again"
        tracker.send(f"subid=c{steps}")

    copied = copy_database(tracker.database, tracker.directory / "copy.db", write_between)

    assert steps >= 3
    assert copied.rows["postbacks"] == 20_001
    assert len(tracker.postbacks()) == 20_001 + steps


def make_directory(path: Path) -> None:
    path.mkdir()


def make_file(path: Path) -> None:
    path.write_text("mine")


def make_log(path: Path) -> None:
    Path(f"{path}-wal").write_text("log")


def make_nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "name", "words", "sentence"),
    [
        (make_file, "copy.db", (), "is there already: --force replaces it"),
        (make_directory, "copy.db", ("--force",), "is a directory"),
        (make_nothing, "no/copy.db", (), "there is no directory"),
        (make_nothing, "postback.db", ("--force",), "is the database itself"),
        (make_nothing, "postback.db-wal", ("--force",), "is the database itself"),
        (make_nothing, "postback.db-lock", (), "is the database itself"),
        (make_nothing, "./../tracker-1/postback.db", ("--force",), "is the database itself"),
        (make_log, "copy.db", ("--force",), "somebody has opened a database of that name"),
        (make_nothing, "nul\0", (), "cannot be written"),
    ],
)
def test_a_place_where_no_copy_can_be_is_refused(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    make: object,
    name: str,
    words: tuple[str, ...],
    sentence: str,
) -> None:
    assert callable(make)
    make(tracker.directory / name)
    before = sorted(tracker.directory.iterdir())

    ran = back_up(tracker, capsys, f"{tracker.directory}/{name}", *words)

    assert ran.status == 1
    assert sentence in ran.err
    assert sorted(tracker.directory.iterdir()) == before
    assert tracker.send("subid=c1&tid=t1&payout=10").verdict == "repeated"


def test_force_replaces_a_copy(tracker: Client, capsys: pytest.CaptureFixture[str]) -> None:
    target = tracker.directory / "copy.db"
    target.write_text("an old one")

    ran = back_up(tracker, capsys, str(target), "--force")

    assert "1 conversions" in ran.out
    assert count(target) == 1


def test_a_copy_that_does_not_fit_leaves_the_old_one(tracker: Client) -> None:
    fill(tracker, 5_000)
    target = tracker.directory / "copy.db"
    target.write_text("an old one")

    def let_files_be_small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(
        build_command("backup", str(target), "--force"),
        cwd=tracker.directory,
        env=build_environment({}),
        capture_output=True,
        preexec_fn=let_files_be_small,  # nothing else runs in the child
        check=False,
    )

    assert done.returncode == 1
    assert b"look for free space there" in done.stderr
    assert b"Traceback" not in done.stderr
    assert target.read_text() == "an old one"
    assert list(tracker.directory.glob("*.part")) == []


def test_a_copy_of_a_damaged_database_is_thrown_away(tracker: Client) -> None:
    fill(tracker, 5_000)
    tracker.receiver.close()
    with closing(sqlite3.connect(tracker.database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        [page] = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'postbacks_without_conversion'"
        )
    with open(tracker.database, "r+b") as raw:
        raw.seek((page[0] - 1) * 4096 + 8)
        raw.write(b"\xff" * 64)

    with pytest.raises(CopyError, match="damaged and was thrown away"):
        copy_database(tracker.database, tracker.directory / "copy.db", lambda done, total: None)

    assert list(tracker.directory.glob("*copy.db*")) == []


def test_ctrl_c_leaves_nothing_behind(tracker: Client) -> None:
    fill(tracker, 200_000)
    for _ in range(10):
        terminal = Terminal(tracker.directory, "backup", "copy.db", "--force")
        try:
            wait_until(lambda: any(tracker.directory.glob(".copy.db.*.part")), "a copy begun")
            terminal.press_ctrl_c()
            ran = terminal.finish()
        finally:
            terminal.kill()
        if "verified" not in ran.out:
            break
        # The backup was done before Ctrl-C: try again.
        (tracker.directory / "copy.db").unlink()

    assert ran.status == 130
    assert "stopped" in ran.out
    assert list(tracker.directory.glob("*copy.db*")) == []


def test_progress_is_seen_on_a_terminal_only(tracker: Client) -> None:
    seen = call_on_terminal(tracker.directory, "backup", "one.db", columns=20)
    piped = call_process(tracker.directory, "backup", "two.db")

    assert "backup" in without_styles(seen.out)
    assert "1 postbacks" in seen.out
    assert (piped.err, "\x1b" in piped.out) == ("", False)


def test_without_a_database_there_is_nothing_to_copy(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with()

    ran = back_up(client, capsys, "copy.db")

    assert ran.status == 1
    assert "there is no database yet" in ran.err
    assert not client.database.exists()
