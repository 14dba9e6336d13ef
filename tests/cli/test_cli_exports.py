"""Listings are whole in files and pipes, in bounded memory; a table says where it is cut."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from cli_calls import (
    build_command,
    build_environment,
    call_on_terminal,
    call_process,
    without_styles,
)
from conftest import Client

from postbackd.cli import entry as cli
from postbackd.reports import listing

NUMBER = 102

LISTINGS = [("log",), ("conversions",), ("clicks", "list")]
FORMS = [
    *((*words, form) for words in LISTINGS for form in ("", "--json")),
    *((*words, "--csv") for words in LISTINGS[1:]),
]

NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
TIME = "printf('2026-03-02T12:%02d:%02d.000Z', i / 6000, i / 100 % 60)"


def fill(client: Client, number: int) -> None:
    """Put in so many clicks, each with a conversion and a postback."""
    client.get("/health")
    client.write(
        f"INSERT INTO clicks (subid, created_at) {NUMBERS} SELECT 'c' || i, {TIME} FROM n", number
    )
    client.write(
        "INSERT INTO conversions (click_id, tid, status, created_at, updated_at, sub_ids)"
        " SELECT id, '', 'sale', created_at, created_at, json_object('sub_id_1', subid)"
        " FROM clicks"
    )
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason, conversion_id)"
        " SELECT created_at, 'http', 'subid=' || subid, subid, 'recorded', '', clicks.id"
        " FROM clicks"
    )


@pytest.fixture
def full(client: Client) -> Client:
    """A tracker with more than fits on a screen."""
    fill(client, NUMBER)
    return client


def count_rows(out: str, form: str) -> int:
    if form == "--json":
        return len([json.loads(line) for line in out.splitlines()])
    return len(out.splitlines()) - 1


@pytest.mark.parametrize("words", FORMS)
@pytest.mark.parametrize(
    ("options", "number"), [((), NUMBER), (("--limit", "0"), NUMBER), (("--limit", "7"), 7)]
)
def test_a_pipe_gets_all_rows_unless_limit_says_otherwise(
    full: Client,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    options: tuple[str, ...],
    number: int,
) -> None:
    config = str(full.directory / "config.ini.php")

    status = cli.main([*filter(None, words), *options, "--config", config])

    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert count_rows(out, words[-1]) == number
    assert f"c{NUMBER}" in out.splitlines()[-1]


@pytest.mark.parametrize("words", LISTINGS)
@pytest.mark.parametrize(
    ("options", "number", "said"),
    [
        ((), 50, "newest 50 of 102"),
        (("--limit", "7"), 7, "newest 7 of 102"),
        (("--limit", "0"), NUMBER, ""),
        (("--limit", "102"), NUMBER, ""),
        (("--since", "2026-03-02T12:00:01"), 3, ""),
        (("--since", "2026-03-02T12:00:01", "--limit", "2"), 2, "newest 2 of 3"),
        (("--json",), NUMBER, ""),
    ],
)
def test_a_table_on_a_terminal_says_that_it_is_cut(
    full: Client, words: tuple[str, ...], options: tuple[str, ...], number: int, said: str
) -> None:
    ran = call_on_terminal(full.directory, *words, *options, columns=120)

    assert len([line for line in ran.lines if "2026-03-02" in line]) == number
    assert said in ran.out
    assert ("newest" in ran.out) == bool(said)


def test_what_takes_too_long_to_count_is_said_to_be_more_perhaps(
    full: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "COUNT_SECONDS", 0)
    monkeypatch.setattr(listing, "COUNT_STEPS", 1)
    monkeypatch.setenv("FORCE_COLOR", "1")

    status = cli.main(["log", "--config", str(full.directory / "config.ini.php")])

    assert status == 0
    assert "newest 50, there may be more" in capsys.readouterr().out


def test_follow_begins_with_a_screenful_in_a_pipe_too(full: Client) -> None:
    following = subprocess.Popen(
        build_command("log", "--follow"),
        cwd=full.directory,
        stdout=subprocess.PIPE,
        env=build_environment({}),
    )
    with following:
        assert following.stdout is not None
        lines = [following.stdout.readline().decode() for _ in range(51)]
        following.terminate()

    assert "\tc53\t" in lines[1]
    assert f"\tc{NUMBER}\t" in lines[-1]


def show_errors(directory: Path, *words: str) -> tuple[str, str]:
    """Run a command whose output goes into a file while a terminal shows its errors."""
    terminal, errors = pty.openpty()
    with (directory / "out").open("wb") as out:
        called = subprocess.Popen(
            build_command(*words),
            cwd=directory,
            stdout=out,
            stderr=errors,
            env=build_environment({"TERM": "xterm", "COLUMNS": "100"}),
        )
    os.close(errors)
    seen = b""
    # The kernel reports the other side's end as an input/output error.
    with called, suppress(OSError):
        while piece := os.read(terminal, 65536):
            seen += piece
    os.close(terminal)
    assert called.returncode == 0
    return (directory / "out").read_text(), seen.decode()


@pytest.mark.parametrize("words", FORMS)
def test_progress_is_on_the_terminal_and_not_in_the_file(
    client: Client, words: tuple[str, ...]
) -> None:
    fill(client, 1200)

    out, seen = show_errors(client.directory, *filter(None, words), "--limit", "1100")

    assert "1100/1100" in seen
    assert count_rows(out, words[-1]) == 1100
    assert "\x1b" not in out


MEASURED = """
import os, re, sys
from postbackd.cli import entry
sys.stdout = open(os.devnull, "w")
assert entry.main(sys.argv[1:]) == 0
# Not ru_maxrss: that begins with the memory of the process that started this one.
sys.stderr.write(re.search("VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("words", FORMS)
def test_memory_does_not_grow_with_the_rows(client: Client, words: tuple[str, ...]) -> None:
    fill(client, 20_000)

    def measure(limit: int) -> int:
        called = [sys.executable, "-c", MEASURED, *filter(None, words), "--limit", str(limit)]
        done = subprocess.run(
            called,
            cwd=client.directory,
            env=build_environment({}),
            capture_output=True,
            check=True,
        )
        return int(done.stderr)

    # Each row as a dictionary is a kilobyte and more: 20 MB.
    assert measure(20_000) - measure(1000) < 5_000  # kilobytes


def test_clicks_have_a_column_for_each_sub_id_too(client: Client) -> None:
    client.click("c1", sub_id_1="=1", sub_id_30="z", campaign="C")
    client.write(
        "INSERT INTO clicks (subid, sub_ids, created_at) VALUES ('c2', '{\"sub_id_2\":5}', '')"
    )

    out = call_process(client.directory, "clicks", "list", "--csv").out

    first, second = csv.DictReader(io.StringIO(out, newline=""))
    assert list(first)[-30:] == [f"sub_id_{number}" for number in range(1, 31)]
    assert (first["sub_id_1"], first["sub_id_30"], first["campaign"]) == ("'=1", "z", "C")
    assert (second["sub_id_2"], second["clicked_at"]) == ("5", "")


QUERY = "subid=c1&status=sale&payout=12.50&tid=t1&from=net"


@pytest.mark.parametrize(
    ("columns", "shown", "left_out"),
    [
        (67, set(), "Columns left out: id, address, query"),
        (110, {"id", "address"}, "Columns left out: query"),
        (200, {"id", "address", "query"}, ""),
    ],
)
def test_the_log_shows_id_address_and_query_where_it_has_room(
    client: Client, columns: int, shown: set[str], left_out: str
) -> None:
    client.click("c1")
    client.send(QUERY)

    ran = call_on_terminal(client.directory, "log", columns=columns, NO_COLOR="1")

    assert {"id", "address", "query"} & set(without_styles(ran.lines[0]).split()) == shown
    assert ("203.0.113.9" in ran.out) == ("address" in shown)
    assert (QUERY in ran.out) == ("query" in shown)
    assert left_out in ran.out
    assert ("Columns left out" in ran.out) == bool(left_out)
    # None of the others was folded for them.
    assert "2026-03-02 12:00:00" in ran.out


def test_a_long_query_is_whole_in_json_and_ends_at_a_field_in_a_table(client: Client) -> None:
    query = "subid=c1&note=" + "n" * 480 + "&tail=secret-of-some-kind"
    client.send(query)

    piped = call_process(client.directory, "log").rows[0]
    as_json = call_process(client.directory, "log", "--json").objects[0]

    assert piped[-1] == "subid=c1&note=" + "n" * 480 + "&..."
    assert as_json["query"] == query
