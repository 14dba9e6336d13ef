"""`postback clicks import`: a file of clicks imported, beside a running service."""

import io
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cli_calls import (
    Ran,
    build_command,
    build_environment,
    call_on_terminal,
    call_process,
)
from conftest import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from live import PATIENCE_SECONDS, wait_until

from postbackd.bulk.click_file import ClickFile
from postbackd.bulk.click_importer import PARKED_AT_ONCE, SORTED_ROWS, Importer
from postbackd.bulk.moments import MomentReader
from postbackd.bulk.table_file import Shape
from postbackd.bulk.titles import find_click_names
from postbackd.cli import entry as cli
from postbackd.config.settings import load
from postbackd.db.rows import ClickRow
from postbackd.intake.amounts import AmountReader
from postbackd.intake.booking import read_booking_options
from postbackd.intake.click import RowReader, read_click
from postbackd.intake.runtime import read_clock
from storage import open_database


def take_in(
    client: Client, capsys: pytest.CaptureFixture[str], content: str | bytes, *words: str
) -> Ran:
    """Import a file in this process."""
    path = client.directory / "clicks.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    config = str(client.directory / "config.ini.php")
    status = cli.main(["clicks", "import", str(path), *words, "--config", config])
    return Ran(status, *capsys.readouterr())


def list_clicks(client: Client, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    config = str(client.directory / "config.ini.php")
    assert cli.main(["clicks", "list", "--json", "--config", config]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("subid", "subid"),
        ("Sub ID", "subid"),
        ("Subid", "subid"),
        ("SUB_ID", "sub_id"),
        ("clickid", "clickid"),
        ("Click ID", "clickid"),
        ("Sub ID 1", "sub_id_1"),
        ("Sub_ID_30", "sub_id_30"),
        ("sub_id_7", "sub_id_7"),
        ("Sub ID 31", None),
        ("Campaign", "campaign"),
        (" Offer ", "offer"),
        ("Date/Time", "clicked_at"),
        ("Datetime", "clicked_at"),
        ("clicked_at", "clicked_at"),
        ("Clicked at", "clicked_at"),
        ("Cost model", "cost_model"),
        ("cost_model", "cost_model"),
        ("External ID", "external_id"),
        ("Source", "source"),
        ("Cost", "cost"),
        ("Currency", "currency"),
        ("Country", None),
        ("Campaign ID", None),
        ("", None),
    ],
)
def test_columns_go_by_our_names_and_those_of_the_original(title: str, name: str | None) -> None:
    assert find_click_names([title]) == [name]


@pytest.mark.parametrize(
    ("line", "delimiter", "names"),
    [
        ("subid,offer", ",", ("subid", "offer")),
        ("subid;offer", ";", ("subid", "offer")),
        ("subid\toffer", "\t", ("subid", "offer")),
        ("subid", ",", ("subid",)),
        ('\ufeff"Sub ID";"Date/Time"\r\n', ";", ("subid", "clicked_at")),
        ('subid,"a;b;c"', ",", ("subid", None)),
        ("subid,Sub ID,offer", ",", ("subid", None, "offer")),
    ],
)
def test_the_delimiter_is_the_one_under_which_columns_are_known(
    line: str, delimiter: str, names: tuple[str | None, ...]
) -> None:
    click_file = build_file(f"{line}\n".encode())

    assert tuple(click_file.names) == names
    assert click_file._file.delimiter == delimiter


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "the file is empty"),
        ("campaign,offer", "call its column 'subid' (line 1 is 'campaign,offer')"),
        ("c1,Summer,O1", "call its column 'subid' (the first line is 'c1,Summer,O1')"),
        ('"subid', "the first line is '\"subid'"),
    ],
)
def test_a_file_without_click_ids_is_refused(
    client: Client, capsys: pytest.CaptureFixture[str], line: str, sentence: str
) -> None:
    ran = take_in(client, capsys, f"{line}\n")

    assert ran.status == 1
    assert sentence in ran.err


def test_clicks_come_in_with_all_that_is_said_of_them(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = take_in(
        client,
        capsys,
        "Sub ID,Campaign,Offer,Date/Time,Cost model,Sub ID 2,Country\n"
        'c1,"Summer, big",O1,2026-01-31 12:00:00,CPA,источник,DE\n'
        "c2,,,,,,\n",
    )

    assert ran.status == 0
    assert ran.out == ("2 lines: 2 new clicks, 0 updated, 0 skipped; 0 parked postbacks applied\n")
    assert ran.err == "postback: ignored columns: 'Country'\n"
    first, second = list_clicks(client, capsys)
    assert list(first) == [
        *("id", "subid", "campaign", "offer", "clicked_at", "cost_model", "sub_ids", "created_at"),
        *("external_id", "source", "cost", "cost_currency"),
    ]
    assert list(first.values())[1:7] == [
        "c1",
        "Summer, big",
        "O1",
        "2026-01-31T12:00:00.000Z",
        "cpa",
        {"sub_id_2": "источник"},
    ]
    assert list(second.values())[1:7] == ["c2", None, None, None, None, {}]


def test_what_was_parked_is_applied_with_its_click(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # The command uses the real time, and a postback parked for too long is not applied.
    client.clock.now = datetime.now(UTC)
    for tid in ("t1", "t2"):
        client.send(f"subid=c1&status=sale&tid={tid}")
    client.send("subid=elsewhere&status=lead")

    ran = take_in(client, capsys, "subid\nc0\nc1\n")

    assert ran.out.endswith("; 2 parked postbacks applied\n")
    assert [kept.tid for kept in client.conversions("c1")] == ["t1"]
    assert client.conversions("elsewhere") == []


def test_cells_that_are_empty_change_nothing(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", campaign="C1", offer="O1", sub_id_1="a")

    ran = take_in(client, capsys, "subid,campaign,offer,sub_id_1,sub_id_2\nc1,,O2,,b\n")

    assert ran.out.startswith("1 lines: 0 new clicks, 1 updated")
    [click] = list_clicks(client, capsys)
    assert (click["campaign"], click["offer"]) == ("C1", "O2")
    assert click["sub_ids"] == {"sub_id_1": "a", "sub_id_2": "b"}


@pytest.mark.parametrize(
    ("zone", "time", "kept"),
    [
        (None, "2026-07-01 12:00:00", "2026-07-01T12:00:00.000Z"),
        ("+03:00", "2026-07-01 12:00:00", "2026-07-01T09:00:00.000Z"),
        ("-0530", "2026-07-01 12:00:00", "2026-07-01T17:30:00.000Z"),
        ("Europe/Berlin", "2026-07-01 12:00:00", "2026-07-01T10:00:00.000Z"),
        ("Europe/Berlin", "2026-07-01T12:00:00Z", "2026-07-01T12:00:00.000Z"),
        ("Europe/Berlin", "1767225600", "2026-01-01T00:00:00.000Z"),
        ("utc", "2026-07-01", "2026-07-01T00:00:00.000Z"),
    ],
)
def test_times_without_a_zone_are_in_the_one_that_is_said(
    client: Client, capsys: pytest.CaptureFixture[str], zone: str | None, time: str, kept: str
) -> None:
    words = () if zone is None else (f"--tz={zone}",)

    take_in(client, capsys, f"subid,clicked_at\nc1,{time}\n", *words)

    assert list_clicks(client, capsys)[0]["clicked_at"] == kept


@pytest.mark.parametrize("zone", ["Mars/Olympus", "+25:00", "../../etc/passwd", "", "3"])
def test_a_zone_that_is_none_is_wrong_usage(
    client: Client, capsys: pytest.CaptureFixture[str], zone: str
) -> None:
    ran = take_in(client, capsys, "subid\nc1\n", f"--tz={zone}")

    assert ran.status == 2
    assert "is no time zone; write Europe/Moscow or +03:00" in ran.err


TEXT = "subid,campaign\nc1,Лето\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TEXT.encode("utf-8"), ()),
        (TEXT.encode("utf-8-sig"), ()),
        (TEXT.encode("utf-8-sig"), ("--encoding", "utf-8")),
        (TEXT.encode("cp1251"), ("--encoding", "windows-1251")),
        (TEXT.encode("utf-16"), ("--encoding", "utf-16")),
        (TEXT.replace("\n", "\r\n").encode(), ()),
        (TEXT.replace("\n", "\r").encode(), ()),
    ],
)
def test_files_in_every_encoding_come_in(
    client: Client, capsys: pytest.CaptureFixture[str], content: bytes, words: tuple[str, ...]
) -> None:
    assert take_in(client, capsys, content, *words).status == 0

    assert list_clicks(client, capsys)[0]["campaign"] == "Лето"


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r"])
def test_another_encoding_is_refused_before_anything_is_taken(
    client: Client, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    client.get("/health")
    text = "subid,campaign\n" + "c1,plain\n" * 300_000 + "c2,Лето\n"

    ran = take_in(client, capsys, text.encode(encoding))

    assert ran.status == 1
    assert "the file is not UTF-8" in ran.err
    assert "--encoding windows-1251" in ran.err
    assert list_clicks(client, capsys) == []


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "base64"])
def test_an_encoding_that_is_none_is_reported(
    client: Client, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    ran = take_in(client, capsys, "subid\nc1\n", "--encoding", encoding)

    assert ran.status in {1, 2}
    assert "encoding" in ran.err


def test_bad_lines_are_reported_by_number_and_the_rest_goes_in(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = take_in(
        client,
        capsys,
        f"subid,offer\nc1,O1\n,O1\n\nc2,O1,more,cells\n{'x' * 256},O1\nc3,O1,,\n{{subid}},O1\nc4\n",
    )

    assert ran.status == 1
    assert [click["subid"] for click in list_clicks(client, capsys)] == ["c1", "c3", "c4"]
    numbers = [int(line.split()[2].rstrip(":")) for line in ran.err.splitlines()]
    assert numbers == [3, 5, 6, 8]
    assert ran.out.startswith("7 lines: 3 new clicks, 0 updated, 4 skipped;")


def test_a_time_that_cannot_be_read_costs_the_time_only(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = take_in(client, capsys, "subid,clicked_at\nc1,last week\n")

    assert ran.status == 1
    assert "line 2: clicked_at 'last week' is no time" in ran.err
    assert "1 clicks were imported without their time" in ran.err
    assert list_clicks(client, capsys)[0]["clicked_at"] is None


@pytest.mark.parametrize(
    "lines",
    [
        ['c2,"never closed', "c3,O1", "c4,O1"],
        ['c2,"never closed', 'c3,"O1"', "c4,O1"],
        ['c2,"never closed', *(f"c{number},O1" for number in range(3, 4000))],
        ['c2,"O1" and more', "c3,O1"],
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_lines(
    client: Client, capsys: pytest.CaptureFixture[str], lines: list[str]
) -> None:
    ran = take_in(client, capsys, "\n".join(["subid,offer", "c1,O1", *lines]))

    assert ran.status == 1
    assert "line 3: skipped" in ran.err
    assert f"{len(lines)} new clicks" in ran.out
    assert "1 skipped" in ran.out


def test_a_cell_of_two_lines_keeps_the_numbers_right(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = take_in(client, capsys, 'subid,note\nc1,"two\nlines"\n,x\n')

    assert "line 4: skipped" in ran.err
    assert [click["subid"] for click in list_clicks(client, capsys)] == ["c1"]


def test_many_bad_lines_are_counted_after_the_first_twenty(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = take_in(client, capsys, "subid,offer\n" + ",O1\n" * 50)

    assert len(ran.err.splitlines()) == 21
    assert "30 more lines" in ran.err


def test_what_is_hostile_in_a_line_reaches_no_terminal(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = take_in(client, capsys, "subid,\x1b[31mred,[bold]\nc1,2,3,\x1b[31m\n")

    assert "\x1b" not in ran.err
    assert r"\x1b[31mred" in ran.err
    assert "[bold]" in ran.err


@pytest.mark.parametrize("name", ["missing.csv", ".", "nul\0"])
def test_a_file_that_cannot_be_read_is_reported(
    client: Client, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = str(client.directory / "config.ini.php")

    status = cli.main(["clicks", "import", name, "--config", config])

    assert status == 1
    assert "cannot be read" in capsys.readouterr().err


def test_standard_input_is_read_and_a_missing_database_made(client: Client) -> None:
    ran = call_process(client.directory, "clicks", "import", "-", "--json", stdin=b"subid\nc1\n")

    assert (ran.status, ran.err) == (0, "")
    assert ran.objects == [{"lines": 1, "new": 1, "updated": 0, "skipped": 0, "parked_applied": 0}]
    assert client.database.stat().st_mode & 0o777 == 0o600


def test_wrong_bytes_in_a_pipe_end_the_import_with_a_sentence(client: Client) -> None:
    ran = call_process(client.directory, "clicks", "import", "-", stdin=b"subid\nc1\n\xff\n")

    assert ran.status == 1
    assert "the file is not UTF-8" in ran.err
    assert "Traceback" not in ran.err


def test_twenty_thousand_lines_come_in_exactly(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"c{number % 19_000},Campaign {number % 7},{number}" for number in range(20_000)]

    ran = take_in(client, capsys, "\n".join(["subid,campaign,sub_id_1", *lines]))

    assert ran.out.startswith("20000 lines: 19000 new clicks, 1000 updated, 0 skipped")
    found = client.rows(
        "SELECT subid, campaigns.name AS campaign, sub_ids ->> 'sub_id_1' AS sub_id_1 FROM clicks"
        " JOIN campaigns ON campaigns.id = campaign_id"
    )
    last = {line.split(",")[0]: line for line in lines}
    assert sorted(",".join(row.values()) for row in found) == sorted(last.values())


def build_file(content: bytes) -> ClickFile:
    """Open a file of clicks as the command does."""
    return ClickFile(io.BytesIO(content), Shape(), MomentReader(UTC), AmountReader(), "USD")


CELL = st.one_of(
    st.sampled_from(["", " ", "c1", "{x}", "#x#", "REPLACE", "optional", "%x", "cpa", "CPC"]),
    st.sampled_from(["2026-01-31 12:00:00", "2026-01-31T12:00:00", "2026-13-31 12:00:00"]),
    st.sampled_from(["2026-W01-1 12:00:00", "2026-01-31 12:00+01", "1767225600", "2026-01-31"]),
    st.datetimes().map(str),
    st.text(max_size=5),
    st.sampled_from(["x" * 255, "x" * 256, " c2\t", "\0c3\x0b"]),
    st.sampled_from(["0.05", "1.500", "$2", "12", "usd", "EUR", "LEAD", "{cost}", ".5", "5."]),
)
NAMES = ["subid", "sub_id", "clickid", "campaign", "offer", "clicked_at", "cost_model"]
MORE_NAMES = ["sub_id_1", "sub_id_30", "external_id", "source", "cost", "currency"]


@settings(max_examples=60)
@given(
    names=st.lists(st.sampled_from([*NAMES, *MORE_NAMES]), min_size=1, max_size=9, unique=True).map(
        lambda names: [None if name == "clickid" and len(names) > 4 else name for name in names]
    ),
    rows=st.lists(st.lists(CELL, max_size=9), max_size=5),
    zone=st.sampled_from([UTC, timezone(timedelta(hours=3))]),
)
def test_the_quick_reader_of_rows_reads_as_the_reader_of_clicks_does(
    names: list[str | None], rows: list[list[str]], zone: timezone
) -> None:
    reader = RowReader(names, zone, "EUR")

    for row in rows:
        fields = {name: cell for name, cell in zip(names, row, strict=False) if name is not None}
        assert reader.read(row) == read_click(fields, zone, "EUR")


@pytest.fixture
def importer(client: Client) -> Iterator[Importer]:
    """An importer into the client's database."""
    client.get("/health")
    terms = read_booking_options(load(client.directory / "config.ini.php"))
    with open_database(client.database, "USD") as storage:
        yield Importer(storage, terms, read_clock)


def test_a_piece_is_cut_where_much_is_parked(client: Client, importer: Importer) -> None:
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason)"
        " WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999)"
        " SELECT '2026-03-02T12:00:00.000Z', 'http', '', printf('c%d', i % 500), 'parked', ''"
        " FROM n"
    )

    pieces = list(importer._split([ClickRow(f"c{number}") for number in range(1000)]))

    # 500 clicks with two parked postbacks each, and 500 without.
    full, rest = PARKED_AT_ONCE // 2, 500
    assert [len(piece) for piece in pieces] == [full] * (500 // full) + [500 % full + rest]


def test_pieces_grow_while_they_are_quick_and_shrink_when_they_are_slow(
    importer: Importer,
) -> None:
    importer._piece_rows = 4000

    importer._adapt(4000, 0.01)
    grown = importer._piece_rows
    importer._adapt(grown, 0.2)

    assert (grown, importer._piece_rows) == (5000, 2500)


def test_the_lock_is_free_between_pieces(client: Client, importer: Importer) -> None:
    rows = [ClickRow(f"c{number}") for number in range(20_000)]
    answers: list[str | None] = []

    def send() -> None:
        while len(answers) < 5:
            answers.append(client.send("subid=nobody&status=lead").verdict)

    sending = threading.Thread(target=send)
    sending.start()
    importer.take(rows)
    importer.flush()
    sending.join(PATIENCE_SECONDS)

    assert answers == ["parked"] * 5
    assert importer.totals.new == 20_000


def test_progress_is_seen_on_a_terminal_only(client: Client) -> None:
    path = client.directory / "clicks.csv"
    path.write_text("subid\n" + "".join(f"c{number}\n" for number in range(5000)))

    seen = call_on_terminal(client.directory, "clicks", "import", str(path)).out
    piped = call_process(client.directory, "clicks", "import", str(path))

    assert "━" in seen
    assert "5000 lines: 5000 new clicks" in seen
    assert piped.err == ""
    assert "\x1b" not in piped.out


def test_ctrl_c_keeps_what_is_in_and_says_how_far_it_came(client: Client) -> None:
    # A pipe that stays open: the import is certainly not done yet.
    running = subprocess.Popen(
        build_command("clicks", "import", "-"),
        cwd=client.directory,
        env=build_environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdin is not None
    running.stdin.write(
        b"subid\n" + b"".join(b"c%d\n" % number for number in range(SORTED_ROWS + 9000))
    )
    running.stdin.flush()
    wait_until(lambda: count_clicks(client) >= SORTED_ROWS, "the first clicks")

    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=PATIENCE_SECONDS)

    assert running.returncode == 130
    kept = count_clicks(client)
    assert kept >= SORTED_ROWS
    assert f"{kept} new clicks" in out.decode()
    assert "stopped: the lines up to" in err.decode()
    assert "Traceback" not in err.decode()
    last = int(err.decode().partition("up to ")[2].split()[0])
    assert SORTED_ROWS < last <= kept + 1


def count_clicks(client: Client) -> int:
    if not client.database.exists() or client.database.stat().st_size == 0:
        return 0
    [row] = client.rows("SELECT count(*) AS number FROM sqlite_master WHERE name = 'clicks'")
    if row["number"] == 0:
        return 0
    number: int = client.rows("SELECT count(*) AS number FROM clicks")[0]["number"]
    return number


def test_clicks_are_listed_newest_last(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.click("c1", clicked_at="2026-01-01T00:00:00Z")
    client.click("c2", clicked_at="2026-02-01T00:00:00Z", sub_id_1="a")
    client.click("c3")
    config = str(client.directory / "config.ini.php")

    def call(*words: str) -> list[str]:
        assert cli.main(["clicks", "list", *words, "--config", config]) == 0
        return [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()[1:]]

    assert call() == ["c1", "c2", "c3"]
    assert call("--limit", "2") == ["c2", "c3"]
    assert call("--since", "2026-01-15") == ["c2", "c3"]
    assert call("--subid", "c2") == ["c2"]


def test_a_file_is_given_back_untouched_by_the_search_for_its_encoding() -> None:
    [chunk] = build_file(b"subid\nc1\n").read()

    assert chunk.rows == [ClickRow("c1")]
    assert chunk.last_line == 2
