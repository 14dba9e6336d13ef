"""`postback import`: each line is judged like a live postback, and its verdict is printed."""

import csv
import io
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from cli_calls import Ran, build_command, build_environment, call_on_terminal, call_process
from conftest import POSTBACK_KEY, Client, ReceiverWith
from hypothesis import example, given
from hypothesis import strategies as st
from live import PATIENCE_SECONDS

from postbackd.bulk import conversion_importer
from postbackd.bulk.conversion_importer import LineImporter
from postbackd.bulk.conversion_lines import LineReader, RawLine
from postbackd.bulk.formulas import unguard_formula
from postbackd.cli import entry as cli
from postbackd.cli.sanitize import guard_formula
from postbackd.db.sqlite.connection import LOCK_POLL_SECONDS
from postbackd.intake.booking import BookingOptions
from storage import open_database


def take_in(
    client: Client, capsys: pytest.CaptureFixture[str], content: str | bytes, *words: str
) -> Ran:
    """Import a file in this process."""
    path = client.directory / "lines.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    config = str(client.directory / "config.ini.php")
    status = cli.main(["import", str(path), *words, "--config", config])
    return Ran(status, *capsys.readouterr())


@pytest.fixture
def tracker(client: Client) -> Client:
    """Three clicks, one of whose offers allows rebills."""
    client.click("c1", offer="O1")
    client.click("c2", offer="O2")
    client.click("c3", offer="O2")
    client.allow_rebills("O1")
    return client


@pytest.mark.parametrize(
    ("line", "verdict", "kept"),
    [
        ("c1,12.50,t1,lead", "recorded", ("t1", "lead", "12.5", "USD")),
        ("c1,12.50,t1", "recorded", ("t1", "sale", "12.5", "USD")),
        ("c1,12.50", "recorded", ("", "sale", "12.5", "USD")),
        ("c1", "recorded", ("", "sale", None, None)),
        ("c1,,,", "recorded", ("", "sale", None, None)),
        ("c1,,t1,rejected", "recorded", ("t1", "rejected", None, None)),
        (" c1\t, 12.50 ,\tt1 , LEAD ", "recorded", ("t1", "lead", "12.5", "USD")),
        ('"c1","12.50","t,1","sale"', "recorded", ("t,1", "sale", "12.5", "USD")),
        ("c1,10,t1,sale,eur", "recorded", ("t1", "sale", "10", "EUR")),
        ("c1,-5,t1", "recorded", ("t1", "sale", "-5", "USD")),
        ("c1,5,a&tid=b%20+;", "recorded", ("a&tid=b%20+;", "sale", "5", "USD")),
        ("nobody,5,t1", "parked", None),
        (",5,t1", "invalid", None),
        ("{subid},5,t1", "invalid", None),
        ("c1,5,t1,approved", "unmapped", None),
        ("c1,5,,rebill", "refused", None),
        ("c1,5O,t1", "skipped", None),
        ("c1,{payout},t1", "skipped", None),
        ("c1,5,t1,sale,euro€", "skipped", None),
        ("c1,5,t1,sale,EUR,more", "skipped", None),
        ('c1,"5,t1,sale', "skipped", None),
    ],
)
def test_a_line_says_what_a_postback_says(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    line: str,
    verdict: str,
    kept: tuple[str | None, ...] | None,
) -> None:
    ran = take_in(tracker, capsys, line + "\n", "--json")

    [told] = ran.objects
    assert (told["line"], told["verdict"]) == (1, verdict)
    assert ran.status == (0 if verdict in {"recorded", "parked"} else 1)
    found = [(c.tid, c.status, c.amount, c.currency) for c in tracker.conversions()]
    assert found == ([] if kept is None else [kept])


def test_what_is_kept_of_a_line_is_a_postback_that_says_the_same(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "c1,12.50,t 1&x=y,Bought,EUR\nc2,7,t2\n"
    words = ("--status-map", "bought=sale,other=lead", "--network", "Net & Co")

    take_in(tracker, capsys, content, *words)

    first, second = tracker.postbacks()
    assert (first.source, first.method, first.remote_addr) == ("import", None, None)
    assert (first.network, first.original_status) == ("Net & Co", "Bought")
    before = tracker.snapshot()
    for kept in (first, second):
        assert tracker.send(kept.query).verdict == "repeated"
    assert tracker.snapshot() == before


def test_a_file_that_is_imported_twice_changes_nothing_more(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "c1,5,t1,lead\nc1,12,t2\nnobody,5,t\nc2,9,,sale\n"
    take_in(tracker, capsys, content)
    before = tracker.snapshot()

    again = take_in(tracker, capsys, content)

    assert [row[5] for row in again.rows] == ["repeated", "repeated", "parked", "repeated"]
    assert again.status == 0
    assert tracker.snapshot() == before


def test_lines_move_conversions_in_the_order_of_the_file(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = take_in(tracker, capsys, "c1,5,t1,lead\nc1,6,t1,sale\nc1,,t1,rejected\nc1,,t1,sale\n")

    assert [row[5] for row in ran.rows] == ["recorded", "updated", "updated", "refused"]
    assert ran.err == ("postback: 4 lines: 1 recorded, 2 updated, 1 refused; 1 not taken\n")
    assert [change["status"] for change in tracker.history("c1")] == ["lead", "sale", "rejected"]


def test_a_parked_line_is_applied_when_its_click_comes(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    take_in(tracker, capsys, "late,5,t1\n")

    tracker.click("late")

    assert [kept.amount for kept in tracker.conversions("late")] == ["5"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("subid,payout,tid,status\nc1,12.50,t1,sale\n", ()),
        ("SubID, Payout, TID, Status, Currency\nc1,12.50,t1,sale,USD\n", ()),
        ("subid\nc1,12.50,t1,sale\n", ()),
        ("\ufeffc1,12.50,t1\r\n\r\n", ()),
        ("\ufeffsubid,payout,tid\r\nc1,12.50,t1\r\n", ()),
        ("\n\nc1,12.50,t1", ()),
        ('c1,"12,50",t1\n', ("--decimal-comma",)),
        ("c1;12,50;t1;\n", ("--delimiter", ";", "--decimal-comma")),
        ("c1\t12.50\tt1\n", ("--delimiter", "tab")),
        ("c1\t12.50\tt1\n", ()),
        ("subid,tid,payout\nc1,t1,12.50\n", ()),
        ("status,tid,subid,payout\nsale,t1,c1,12.50\n", ()),
        ("c1,12.50,t1,sale\n".encode("utf-16"), ("--encoding", "utf-16")),
        ("c1,12.50,t1,approved\n", ("--sale-status", "approved,paid")),
        ("c1,12.50,t1,Approved\n", ("--status-map", "paid=sale,approved=sale")),
    ],
)
def test_files_of_many_makes_say_the_same(
    tracker: Client, capsys: pytest.CaptureFixture[str], content: str | bytes, words: tuple[str]
) -> None:
    ran = take_in(tracker, capsys, content, *words)

    assert (ran.status, len(ran.rows)) == (0, 1)
    [kept] = tracker.conversions()
    assert (kept.subid, kept.tid, kept.amount) == ("c1", "t1", "12.5")


@pytest.mark.parametrize(
    ("content", "words", "sentence"),
    [
        ("c1;12,50;t1;sale\n", (), "add --delimiter ';'"),  # Q19
        ("c1\t12,50\tt1\n", (), "add --delimiter 'tab'"),
        ("c1|12,50|t1|\n", (), "add --delimiter '|'"),
        ("c1,5,т1\n".encode("cp1251"), (), "not UTF-8"),
    ],
)
def test_a_file_that_means_something_else_is_refused_as_a_whole(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    content: str | bytes,
    words: tuple[str],
    sentence: str,
) -> None:
    ran = take_in(tracker, capsys, content, *words)

    assert ran.status == 1
    assert sentence in ran.err
    assert tracker.postbacks() == []


@pytest.mark.parametrize(
    "words",
    [
        ("--status-map", "approved"),
        ("--status-map", "approved=paid"),
        ("--status-map", "=sale"),
        ("--currency", "€"),
        ("--delimiter", "x"),
        ("--skip-lines", "-1"),
        ("--encoding", "klingon"),
    ],
    ids=" ".join,
)
def test_values_that_mean_nothing_are_wrong_usage(
    tracker: Client, capsys: pytest.CaptureFixture[str], words: tuple[str, str]
) -> None:
    ran = take_in(tracker, capsys, "c1\n", *words)

    assert ran.status == 2
    assert repr(words[1]) in ran.err


def test_the_currency_of_all_lines_can_be_said(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    take_in(tracker, capsys, "c1,5,t1\nc2,5,t2,sale,GBP\n", "--currency", "eur")

    assert [kept.currency for kept in tracker.conversions()] == ["EUR", "GBP"]


def test_no_line_takes_the_key_into_the_log(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = take_in(tracker, capsys, f"c1,5,{POSTBACK_KEY}\n", "--json")

    assert POSTBACK_KEY not in tracker.postbacks()[0].query
    assert tracker.conversions()[0].tid == "***"
    assert POSTBACK_KEY not in ran.out


def test_a_terminal_shows_the_lines_that_need_a_hand(tracker: Client) -> None:
    path = tracker.directory / "lines.csv"
    path.write_text("c1,5,t1\nc2,5,t2,approved\nc3,\x1b[31m\n" + ",,\n,5\n" + "nobody,1\n" * 30)

    short = call_on_terminal(tracker.directory, "import", str(path), columns=20)
    full = call_on_terminal(tracker.directory, "import", str(path), "--verbose")

    assert "line 2: unmapped" in short.out
    assert r"line 3: skipped, payout '\x1b[31m' is unreadable" in short.out
    assert "--status-map approved=sale" in short.out
    assert "line 1" not in short.out
    assert "34 lines: 1 recorded, 30 parked, 1 unmapped, 1 invalid, 1 skipped; 3 not taken" in (
        short.out
    )
    assert full.out.count("parked") > 30


def test_live_postbacks_are_let_through(
    tracker: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pieces the import waits without the lock, longer than waiters' interval."""
    answers: list[str | None] = []
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        # Sent from this thread: it waits while the import holds the lock.
        answers.append(tracker.send("subid=c1&status=lead").verdict)

    monkeypatch.setattr(conversion_importer, "WORK_SECONDS", 0)
    monkeypatch.setattr(time, "sleep", pause)

    ran = take_in(tracker, capsys, "".join(f"n{number},5,t{number}\n" for number in range(8)))

    assert ran.status == 0
    assert answers == ["recorded", *["repeated"] * 7]
    assert min(pauses) > LOCK_POLL_SECONDS
    sources = [row["source"] for row in tracker.rows("SELECT source FROM postbacks ORDER BY id")]
    assert sources == ["import", "http"] * 8


@pytest.mark.parametrize("seconds", [0, 0.03])
def test_a_line_is_reported_when_it_is_on_disk(
    tracker: Client, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    # No time to work at all, as on a busy machine.
    monkeypatch.setattr(conversion_importer, "WORK_SECONDS", seconds)
    terms = BookingOptions("USD")
    reader = LineReader(terms, {})
    lines = [reader.read(number, RawLine(f"n{number}")) for number in range(100)]
    told = 0
    with open_database(tracker.database, "USD") as storage:
        for piece in LineImporter(storage, terms, tracker.clock).take(lines):
            told += len(piece)
            assert len(tracker.postbacks()) == told
    assert told == 100


def start_import(client: Client, lines: int) -> subprocess.Popen[bytes]:
    """Start an import from a pipe that stays open after `lines` lines."""
    running = subprocess.Popen(
        build_command("import", "-"),
        cwd=client.directory,
        env=build_environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdin is not None
    running.stdin.write(b"".join(b"n%d,5,t%d\n" % (number, number) for number in range(lines)))
    running.stdin.flush()
    return running


def test_after_ctrl_c_the_printed_lines_are_on_disk(tracker: Client) -> None:
    running = start_import(tracker, 1500)
    assert running.stdout is not None
    running.stdout.readline()
    told = [running.stdout.readline() for _ in range(1000)]

    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=PATIENCE_SECONDS)

    assert running.returncode == 130
    numbers = [int(line.split(b"\t")[0]) for line in told + out.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert f"stopped: the lines up to {len(numbers)} are imported" in err.decode()
    assert len(tracker.postbacks()) >= len(numbers)
    assert "Traceback" not in err.decode()


def test_a_reader_that_leaves_does_not_hide_how_far_the_import_came(tracker: Client) -> None:
    path = tracker.directory / "lines.csv"
    path.write_text("".join(f"n{number},5,t{number}\n" for number in range(3000)))
    running = subprocess.Popen(
        build_command("import", str(path)),
        cwd=tracker.directory,
        env=build_environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.readline()
    running.stdout.close()
    with running.stderr:
        told = running.stderr.read()

    assert running.wait(PATIENCE_SECONDS) == 1
    assert b"import the file again" in told
    assert b"Traceback" not in told


def test_wrong_bytes_in_a_pipe_end_the_import_with_a_sentence(tracker: Client) -> None:
    content = b"n1,5\n" * 3000 + b"n2,\xff\n"

    ran = call_process(tracker.directory, "import", "-", stdin=content)

    assert ran.status == 1
    assert "the file is not UTF-8" in ran.err
    kept = len(tracker.postbacks())
    assert kept >= 1000
    assert f"the lines up to {kept} are imported" in ran.err


def test_a_database_that_stays_locked_is_reported(
    tracker: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postbackd.db.sqlite.connection.BUSY_TIMEOUT_SECONDS", 0.05)
    with closing(sqlite3.connect(tracker.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        ran = take_in(tracker, capsys, "c1,5\n")

    assert ran.status == 1
    assert "another program holds a write lock" in ran.err
    assert "no lines are imported" in ran.err


@pytest.mark.parametrize("name", ["missing.csv", ".", "nul\0"])
def test_a_file_that_cannot_be_read_is_reported(
    client: Client, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    status = cli.main(["import", name, "--config", str(client.directory / "config.ini.php")])

    assert status == 1
    assert "cannot be read" in capsys.readouterr().err


def test_an_import_makes_a_missing_database(
    receiver_with: ReceiverWith, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with()

    assert take_in(client, capsys, "c1,5\n").status == 0
    assert [kept.verdict for kept in client.postbacks()] == ["parked"]


@example(["=x", "'=x", "''=x", "'x", "-5"])
@given(
    st.lists(
        st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("'=")),
        min_size=1,
    )
)
def test_a_cell_made_harmless_for_spreadsheets_is_imported_as_it_was(cells: list[str]) -> None:
    written = io.StringIO()
    csv.writer(written).writerow(map(guard_formula, cells))

    [read] = csv.reader([written.getvalue()])

    assert [unguard_formula(cell) for cell in read] == cells
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in read)
