"""`postback reconcile`: a network's own report compared with the conversions."""

import os
import subprocess
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
from conftest import Client

from postbackd.cli import entry as cli

TITLES = "Click ID,Transaction ID,Commission,Status,Currency"
# One row that agrees, then one for each difference; t5 is in the database only.
REPORT = f"""{TITLES}
c1,t1,10.00,Approved,usd
c2,t2,10,approved,USD
c3,t3,12.50,approved,USD
c4,t4,10,approved,USD
c6,t6,7,approved,USD
"""
MAP = ("--status-map", "approved=sale")


@pytest.fixture
def tracker(client: Client) -> Client:
    """Nine clicks, five of which have a conversion of the network "net", one of another."""
    for number in range(1, 10):
        client.click(f"c{number}", offer="O1")
    client.send("subid=c1&tid=t1&payout=10&status=sale&from=net")
    client.send("subid=c2&tid=t2&payout=10&status=lead&from=net")
    client.send("subid=c3&tid=t3&payout=10&status=sale&from=net")
    client.send("subid=c4&tid=t4&payout=10&currency=EUR&status=sale&from=net")
    client.send("subid=c5&tid=t5&payout=10&status=sale&from=net")
    client.send("subid=c9&tid=t9&payout=10&status=sale&from=other")
    return client


def reconcile(
    client: Client, capsys: pytest.CaptureFixture[str], content: str | bytes, *words: str
) -> Ran:
    """Compare a report with the client's conversions."""
    path = client.directory / "report.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    config = str(client.directory / "config.ini.php")
    status = cli.main(["reconcile", str(path), *words, "--config", config])
    return Ran(status, *capsys.readouterr())


def differences(ran: Ran) -> dict[str, str]:
    """The differences by click id."""
    return {row[2]: row[1] for row in ran.rows}


def test_a_report_disagrees_in_every_way(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tracker.database.read_bytes()

    ran = reconcile(tracker, capsys, REPORT, *MAP)

    assert ran.status == 1
    assert differences(ran) == {
        "c2": "status",
        "c3": "amount",
        "c4": "currency",
        "c6": "missing",
        "c5": "extra",
    }
    assert ran.err.splitlines()[-1] == (
        "postback: 5 rows: 1 agree, 1 missing, 1 extra, 1 status, 1 amount, 1 currency"
    )
    assert tracker.database.read_bytes() == before


def test_each_difference_is_an_object_for_scripts(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = reconcile(tracker, capsys, REPORT, *MAP, "--json", "--only", "status", "--only", "extra")

    moved, extra = ran.objects
    assert moved == {
        "line": 3,
        "differences": ["status"],
        "subid": "c2",
        "tid": "t2",
        "reported_status": "sale",
        "reported_amount": "10",
        "reported_currency": "USD",
        "status": "lead",
        "amount": "10",
        "currency": "USD",
        "conversion_id": 2,
        "reason": "the report: sale 10 USD, here: lead 10 USD",
    }
    assert (extra["line"], extra["subid"], extra["reported_status"]) == (None, "c5", None)


def test_missing_conversions_are_imported_from_the_csv_of_reconcile(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.click("=c7")
    report = REPORT + "=c7,+t7,1.5,approved,EUR\nc8,,-5,rejected,\n"
    words = ("reconcile", "-", *MAP, "--csv")
    # With colours forced, no sentence is among the lines either.
    csv = call_process(tracker.directory, *words, stdin=report.encode(), FORCE_COLOR="1")
    assert csv.status == 1
    assert "\n'=c7,1.5,'+t7,sale,EUR" in csv.out
    assert "\nc8,-5,,rejected,\n" in csv.out.replace("\r", "")

    mended = call_process(tracker.directory, "import", "-", stdin=csv.out.encode())
    again = reconcile(tracker, capsys, report, *MAP)

    # The amounts of c3 and c4 are known already, and others.
    assert (mended.status, len(mended.rows)) == (1, 6)
    assert "; 2 not taken" in mended.err
    assert [kept.tid for kept in tracker.conversions("=c7")] == ["+t7"]
    assert differences(again) == {"c3": "amount", "c4": "currency", "c5": "extra"}
    assert 'repeats = "update"' in again.err


def test_with_repeats_taken_over_nothing_but_the_extra_is_left(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tracker.directory / "config.ini.php"
    config.write_text(config.read_text().replace("[postback]", '[postback]\nrepeats = "update"'))
    csv = reconcile(tracker, capsys, REPORT, *MAP, "--csv").out

    call_process(tracker.directory, "import", "-", stdin=csv.encode())

    assert differences(reconcile(tracker, capsys, REPORT, *MAP)) == {"c5": "extra"}


@pytest.mark.parametrize(
    ("line", "difference"),
    [
        ("c1,t1,10,sale,USD", ""),
        ("c1,t1,,,", "uncompared"),
        ("c1,t1,,sale,", ""),
        ("c1,,10,sale,USD", ""),
        ("c1,t1,10,sale,", ""),
        ("c1,t1,10.000,SALE,usd", ""),
        ("c1,t1,0,rejected,USD", "status"),
        ("c1,t1,11,lead,EUR", "status,amount,currency"),
        ("c1,other,10,sale,USD", "missing"),
        ("c1,t1,10,hold,USD", "unmapped"),
        ("c1,t1,1O,sale,USD", "unreadable"),
        ("{click_id},t1,10,sale,USD", "unreadable"),
        (",,10,sale,USD", "unreadable"),
        ("c1,t1,10,sale,USD,more", "unreadable"),
        ('c1,"t1,10,sale,USD', "unreadable"),
        ("c4,t4,10,sale,", ""),
        ("c2,t2,10,lead,USD", ""),
        ("c2,t2,10,dropped,USD", ""),
        (" ,\t,,,", ""),
    ],
)
def test_a_row_is_compared_as_the_engine_would_take_it(
    tracker: Client, capsys: pytest.CaptureFixture[str], line: str, difference: str
) -> None:
    ran = reconcile(
        tracker,
        capsys,
        f"{TITLES}\n{line}\n",
        "--network",
        "nobody",
        "--status-map",
        "dropped=ignore",
    )

    assert [row[1] for row in ran.rows] == ([difference] if difference else [])
    assert ran.status == int(bool(difference))


def test_conversions_that_the_engine_would_find_are_found(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", offer="O1")
    client.allow_rebills("O1")
    client.send("subid=c1&tid=t1&status=sale")
    client.send("subid=c1&tid=t2&status=sale")
    client.click("c2")
    client.send("subid=c2&status=lead")
    rows = "subid,tid,status\nc1,t1,sale\nc1,t2,sale\nc2,t9,lead\nc1,,sale\n"

    ran = reconcile(client, capsys, rows)

    [missing] = ran.rows
    assert missing[:3] == ["5", "missing", "c1"]
    assert "the row names no transaction, and the click has 2: 't1', 't2'" in missing[-1]


def test_what_came_of_a_missing_one_is_reported(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send("subid=c6&tid=t6&status=approved")
    tracker.send("subid=late&tid=t6&status=sale")

    ran = reconcile(tracker, capsys, "subid,tid\nc6,t6\nlate,t6\nc7,t7\nnever,t8\nc1,t8\n")

    reasons = [row[-1].partition(": ")[2] or row[-1] for row in ran.rows if row[1] == "missing"]
    assert "unmapped, no list of the URL has the status 'approved'" in reasons[0]
    assert reasons[1] == "parked, no click 'late' is known yet; applied when it comes"
    assert reasons[2:] == [
        "no such postback came",
        "no such postback came, and the click is not known",
        "no such postback came; the click has 't1'",
    ]


def test_a_conversion_that_is_reported_twice_is_reported(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = reconcile(tracker, capsys, "subid,tid\nc1,t1\nc1,t1\n", "--network", "nobody")

    assert [row[:3] for row in ran.rows] == [["3", "twice", "c1"]]


@pytest.mark.parametrize(
    ("words", "times", "extra"),
    [
        ((), "", ["c5"]),
        (("--network", "other"), "", ["c9"]),
        (("--network", "nobody"), "", []),
        (("--since", "2026-03-03"), "", []),
        (("--until", "2026-03-02"), "", ["c2", "c3", "c4", "c5"]),
        ((), "2026-03-02", ["c2", "c3", "c4", "c5"]),
        ((), "2026-03-02 12:00:00", ["c2", "c3", "c4", "c5"]),
        ((), "2026-03-02 12:00:01", []),
        ((), "2026-03-02 11:00:00", []),
        (("--tz", "+03:00"), "2026-03-02 15:00:00", ["c2", "c3", "c4", "c5"]),
        ((), "2026-03-03", []),
        ((), "last week", ["c5"]),
    ],
)
def test_extra_is_looked_for_where_the_report_can_be_expected_to_have_it(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    times: str,
    extra: list[str],
) -> None:
    for number in (1, 2, 3, 4, 5, 9):
        client.click(f"c{number}")
    client.send("subid=c1&tid=t1&from=net")
    for number in (2, 3, 4, 5):
        client.send(f"subid=c{number}&tid=t{number}&from=net")
        client.clock.forward(milliseconds=1)
    client.send("subid=c9&tid=t9&from=other")
    rows = [1] if times or "--until" in words or "--since" in words else [1, 2, 3, 4]
    if not times or times == "last week":
        # The last conversion that was found ends the time span.
        client.write("UPDATE conversions SET created_at = '2026-03-02T12:00:00.000Z'")
        rows = [1, 2, 3, 4] if "--until" not in words else [1]
    report = "subid,tid,date\n" + "".join(f"c{n},t{n},{times}\n" for n in rows)

    ran = reconcile(client, capsys, report, *words)

    assert [row[2] for row in ran.rows if row[1] == "extra"] == extra
    assert "extra: conversions from" in ran.err


def test_a_row_that_is_ignored_is_in_the_report_all_the_same(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = reconcile(
        tracker, capsys, REPORT + "c5,t5,10,hold,USD\n", "--status-map=hold=ignore", *MAP
    )

    assert "c5" not in differences(ran)
    assert ran.err.endswith(", 1 ignored\n")


def test_without_any_row_that_is_known_nothing_is_extra(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = reconcile(tracker, capsys, "subid,tid\nnobody,t1\n")

    assert differences(ran) == {"nobody": "missing"}
    assert "extra conversions were not searched" in ran.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("aff_sub;txn_id;payout;state\nc1;t1;10,00;approved\n", ("--decimal-comma", *MAP)),
        ("\ufeffClickID\tOrder ID\tRevenue\r\nc1\tt1\t10\r\n", ()),
        ("sub1,click_id,amount,action_id\nsource,c1,10,t1\n", ()),
        ("a,b,c\n10,t1,c1\n", ("--subid-column=c", "--tid-column=B", "--payout-column", "1")),
        ("10,t1,c1\n", ("--no-titles", "--subid-column=3", "--tid-column=2", "--payout-column=1")),
        ("subid,payout\n c1 , 10 \n", ()),
        ("subid|x;tid;status\nc1;t1;sale\n", ("--subid-column=1", "--delimiter=;")),
        ("subid,tid,payout\nc1,t1,10\n".encode("utf-16"), ("--encoding", "utf-16")),
        ("subid,tid,status\nc1,t1,Paid\n", ("--sale-status", "approved,paid")),
        ("subid,tid,status\nc1,t1,x\nc2,t2,y\n", ("--status-map", "x=sale,y=ignore")),
        ("subid,payout\nc1,10.01\n", ("--tolerance", "0.01")),
        ("subid,payout\nc1,10\n", ("--currency", "usd")),
    ],
)
def test_reports_of_many_makes_are_read(
    tracker: Client, capsys: pytest.CaptureFixture[str], content: str | bytes, words: tuple[str]
) -> None:
    ran = reconcile(tracker, capsys, content, *words, "--network", "nobody")

    assert (ran.status, ran.rows) == (0, [])
    assert " rows: 1 agree" in ran.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "words", "sentence"),
    [
        ("", (), "the file is empty"),
        ("\n", (), "the file is empty"),
        ("c1,10\n", (), "no column is known to have the click id"),
        ("campaign,payout\nx,1\n", (), "name it with --subid-column"),
        ("subid\nc1\n", ("--tid-column", "order"), "no column is 'order'"),
        ("subid\nc1\n", ("--subid-column", "2"), "no column is '2'"),
        ("c1,10\n", ("--no-titles",), "name it with --subid-column"),
        ("subid,имя\n".encode("cp1251"), (), "not UTF-8"),
    ],
)
def test_a_file_that_is_no_such_report_is_refused(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    content: str | bytes,
    words: tuple[str],
    sentence: str,
) -> None:
    ran = reconcile(tracker, capsys, content, *words)

    assert (ran.status, ran.out) == (1, "")
    assert sentence in ran.err


@pytest.mark.parametrize("tolerance", ["-1", "some", "1e3"])
def test_a_tolerance_that_is_none_is_wrong_usage(
    tracker: Client, capsys: pytest.CaptureFixture[str], tolerance: str
) -> None:
    assert reconcile(tracker, capsys, "subid\n", f"--tolerance={tolerance}").status == 2


def test_ctrl_c_and_a_reader_that_leaves_are_no_traceback(tracker: Client) -> None:
    terminal = Terminal(tracker.directory, "reconcile", "-")
    try:
        terminal.type("subid,tid\n")
        terminal.wait_for("columns")
        terminal.press_ctrl_c()
        stopped = terminal.finish()
    finally:
        terminal.kill()
    out, into = os.pipe()
    os.close(out)
    with (tracker.directory / "r.csv").open("w") as report:
        report.write(REPORT)
    left = subprocess.run(
        build_command("reconcile", "r.csv", *MAP),
        cwd=tracker.directory,
        env=build_environment({}),
        stdout=into,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(into)

    assert (stopped.status, left.returncode) == (130, 1)
    assert "Traceback" not in stopped.out + left.stderr.decode()


def test_on_a_narrow_terminal_everything_is_seen(tracker: Client, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(REPORT + f"c7{os.linesep}\x1b[31m,t8,1,approved,USD\n")

    ran = call_on_terminal(tracker.directory, "reconcile", str(path), *MAP, columns=20)

    seen = without_styles(ran.out)
    assert r"\x1b[31m" in seen
    assert "differs: currency" in seen
    assert "1 currency" in seen
