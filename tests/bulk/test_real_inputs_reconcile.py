"""`reconcile` with reports of networks: it compares the columns that are there."""

import pytest
from cli_calls import Ran, call_process
from conftest import Client
from file_calls import call, kept, set_up

from postbackd.cli import entry as cli


@pytest.fixture
def tracker(client: Client) -> Client:
    """Sales of 12.50 on C1, of 10 EUR on C2 and a lead on C3, all of the network "net"."""
    set_up(client)
    client.send("subid=C1&tid=T1&status=sale&payout=12.50&from=net")
    client.send("subid=C2&tid=T2&status=sale&payout=10&currency=EUR&from=net")
    client.send("subid=C3&tid=T3&status=lead&payout=3&from=net")
    return client


def compare(tracker: Client, capsys: pytest.CaptureFixture[str], content: str, *words: str) -> Ran:
    """Compare a report with the conversions; extra ones are not searched."""
    return call(tracker, capsys, "reconcile", content, "--json", "--network", "nobody", *words)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("subid,tid\nC1,T1\n", "only the existence of conversions is compared"),
        ("Click ID,Order ID,Order Value\nC1,T1,100\n", "only the existence of"),
        ("subid,tid,payout,status\nC1,T1,,\n", "1 uncompared"),
        ("subid,tid,payout,status\nC1,T1,-,\n", "1 uncompared"),
    ],
)
def test_what_was_not_compared_does_not_agree(
    tracker: Client, capsys: pytest.CaptureFixture[str], content: str, sentence: str
) -> None:
    ran = compare(tracker, capsys, content)

    assert ran.status == 1
    assert sentence in ran.err
    assert "0 agree, 1 uncompared" in ran.err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("subid,tid,payout\nC1,T1,12.50\n", "no column is the status: every row counts as a"),
        ("subid,tid,status\nC1,T1,sale\n", "no column is the amount: amounts are not compared"),
    ],
)
def test_what_a_report_lacks_is_said(
    tracker: Client, capsys: pytest.CaptureFixture[str], content: str, sentence: str
) -> None:
    ran = compare(tracker, capsys, content)

    assert ran.status == 0
    assert sentence in ran.err
    assert ran.err.endswith("1 rows: 1 agree\n")


def test_a_refund_does_not_agree_with_a_sale(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # D40
    content = "cid,order_id,amount_affiliate,currency,transaction_type\nC1,T1,12.50,USD,refund\n"

    unmapped = compare(tracker, capsys, content)
    mapped = compare(tracker, capsys, content, "--status-map", "refund=rejected,payment=sale")

    assert unmapped.objects[0]["differences"] == ["unmapped"]
    assert mapped.objects[0]["differences"] == ["status"]
    assert (unmapped.status, mapped.status) == (1, 1)


@pytest.mark.parametrize(
    "titles",
    [
        "Click ID,Transaction ID,Amount,Commission,Status",  # D41
        "Click ID,Transaction ID,Sale Amount,Payout,Status",
        "Click ID,Transaction ID,Revenue,Payout,Status",
        "Click ID,Transaction ID,Order Value,Amount,Status",
        "Click ID,Transaction ID,Total,Earnings,Status",
        "Click ID,Transaction ID,Profit,Revenue,Status",
        "Click ID,Transaction ID,Sales,Total Commission,Status",
        "Click ID,Transaction ID,Sum,Commission (USD),Status",
    ],
)
def test_what_was_earned_goes_before_what_was_ordered(
    tracker: Client, capsys: pytest.CaptureFixture[str], titles: str
) -> None:
    ran = compare(tracker, capsys, f"{titles}\nC1,T1,100,12.50,sale\n")

    assert (ran.status, ran.out) == (0, "")


@pytest.mark.parametrize(
    "titles",
    [
        "Click ID,Transaction ID,Payout,Commission,Status",
        "Click ID,Transaction ID,Amount,Revenue,Status",
        "Click ID,Transaction ID,Commission,Commission (EUR),Status",
        "Click ID,Transaction ID,Total,Amount,Status",
    ],
)
@pytest.mark.parametrize("command", ["reconcile", "import"])
def test_where_two_columns_may_be_the_amount_it_is_asked(
    tracker: Client, capsys: pytest.CaptureFixture[str], command: str, titles: str
) -> None:
    third, fourth = titles.split(",")[2:4]
    content = f"{titles}\nC1,T1,100,12.50,sale\n"

    asked = call(tracker, capsys, command, content)
    said = call(tracker, capsys, "reconcile", content, "--amount-column", fourth, "--currency=USD")

    assert (asked.status, asked.out) == (1, "")
    assert f"the amount may be {third!r} or {fourth!r}: say which with --amount-column" in asked.err
    assert "1 agree" in said.err or "1 currency" in said.err


def test_what_was_ordered_is_not_booked_by_the_pipeline(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # D41
    content = "Click ID,Transaction ID,Amount,Commission,Status\nC4,T4,100,7.50,sale\n"
    csv = call(tracker, capsys, "reconcile", content, "--csv")

    call(tracker, capsys, "import", csv.out)

    assert ("C4", "T4", "sale", "7.5", "USD") in kept(tracker)


def test_the_currency_that_stands_is_carried_on(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "subid,tid,payout,status\nC2,T2,11,sale\nC3,T3,3,sale\nC4,T4,5,sale\n"

    csv = call(tracker, capsys, "reconcile", content, "--csv")

    assert csv.lines == [
        "subid,payout,tid,status,currency",
        "C2,11,T2,sale,EUR",
        "C3,3,T3,sale,USD",
        "C4,5,T4,sale,",
    ]


def test_our_own_export_reads_back_without_a_difference(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for subid in ("=C5", "'=C6", "+C7", "@C8", "-C9", "''x", "C,10", 'C"11', "C 12"):
        tracker.click(subid)
        tracker.get(f"/s3cret-key-of-the-tests/postback?subid={quote(subid)}&tid=-{quote(subid)}")
    tracker.send("subid=C2&tid=T22&status=rebill&payout=0.125&currency=EUR")
    tracker.send("subid=C1&tid=T1&status=rejected")
    tracker.send("subid=C4&status=sale&payout=1500&currency=GBP&from=other")
    config = str(tracker.directory / "config.ini.php")
    assert cli.main(["conversions", "--csv", "--limit", "0", "--config", config]) == 0
    export = capsys.readouterr().out

    ran = call(tracker, capsys, "reconcile", export)

    assert (ran.status, ran.rows) == (0, []), ran.out
    assert ran.err.endswith(f"{len(kept(tracker))} rows: {len(kept(tracker))} agree\n")


def quote(text: str) -> str:
    """Quote a click id for a query."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def test_the_list_in_a_pipe_reads_back_likewise(tracker: Client) -> None:
    listed = call_process(tracker.directory, "conversions")

    ran = call_process(tracker.directory, "reconcile", "-", stdin=listed.out.encode())

    assert (ran.status, ran.rows) == (0, [])
    assert "3 agree" in ran.err


@pytest.mark.parametrize(
    ("titles", "row"),
    [
        # D68
        ("SID,Order ID,Commission", "C1,T1,12.50"),
        ("Affiliate Sub 1,Transaction ID,Payout", "C1,T1,12.50"),
        ("Member ID (U1),Order ID,Total Commission", "C1,T1,12.50"),
        ("Sub ID,tid,Revenue,Date/Time", "C1,T1,12.50,2026-11-24"),
        ("Sub ID,tid,Revenue,,", "C1,T1,12.50,,"),
    ],
)
def test_the_titles_of_networks_are_known(
    tracker: Client, capsys: pytest.CaptureFixture[str], titles: str, row: str
) -> None:
    assert compare(tracker, capsys, f"{titles}\n{row}\n").status == 0


@pytest.mark.parametrize(
    "times",
    [
        ["24.11.2026 18:02", "25.11.2026 19:00"],  # D43
        ["1795600000000", "1795610000000"],  # D43
        ["1795600000", "1795610000"],
        ["11/24/2026 6:02 PM", "11/25/2026 6:02 PM"],
        ["Nov 24, 2026", "Nov 25, 2026"],
        ["2026-11-24T18:02:11Z", "2026-11-25"],
    ],
)
def test_the_times_of_a_report_say_where_extra_ones_are_looked_for(
    tracker: Client, capsys: pytest.CaptureFixture[str], times: list[str]
) -> None:
    rows = "".join(f'C{n},T{n},"{time}",sale\n' for n, time in enumerate(times, 1))

    ran = call(tracker, capsys, "reconcile", f"subid,tid,Date,status\n{rows}")

    assert "were not read" not in ran.err
    assert "(the report's own times)" in ran.err
    assert "extra: conversions from 2026-11-2" in ran.err


def test_times_that_cannot_be_read_are_reported(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "subid,tid,date,payout\nC1,T1,11/10/2026,12.50\nC2,T2,soon,10\n"

    ran = call(tracker, capsys, "reconcile", content, "--network", "nobody")

    assert "times of 2 rows were not read, the first in line 2: '11/10/2026' is no time" in ran.err
    assert "--dates day-first" in ran.err


def test_a_total_is_neither_missing_nor_handed_on(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # D42
    content = "subid,tid,payout,status\nC1,T1,12.50,sale\nTotal,,1260.40,\n"

    ran = compare(tracker, capsys, content)
    csv = call(tracker, capsys, "reconcile", content, "--csv", "--network", "nobody")

    assert (ran.status, ran.out) == (0, "")
    assert "left out, because they are no data: 1 totals" in ran.err
    assert csv.lines == ["subid,payout,tid,status,currency"]


def test_cells_that_a_spreadsheet_guards_are_compared_as_they_are_meant(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # D70
    content = 'subid,tid,payout\n"=""C1""","=""T1""","=""12.50"""\n\'=C1,T9,5\n'

    ran = compare(tracker, capsys, content)

    assert [(found["line"], found["subid"]) for found in ran.objects] == [(3, "=C1")]


@pytest.mark.parametrize(
    ("content", "other"),
    [
        ("Conversion ID,Click ID,Sub 1,Payout,Status\nT1,65ab12ff,C1,12.50,sale\n", "Sub 1"),
        ("tid,aff_sub,aff_sub2,payout,status\nT1,fb,C1,12.50,sale\n", "aff_sub2"),
        ("tid;Click ID;Payout;Status;Visitor\nT1;65ab;12,50;sale;C1\n", "Visitor"),
    ],
)
@pytest.mark.parametrize("command", ["reconcile", "import"])
def test_where_another_column_has_the_clicks_it_is_asked(
    tracker: Client, capsys: pytest.CaptureFixture[str], command: str, content: str, other: str
) -> None:
    before = len(tracker.postbacks())

    asked = call(tracker, capsys, command, content)
    said = call(tracker, capsys, command, content, "--subid-column", other)

    assert asked.status == 1
    assert f"but 1 under {other!r} are: say which column it is" in asked.err
    assert len(tracker.postbacks()) == before + (command == "import")
    assert "1 agree" in said.err or "1 repeated; 0 not taken" in said.err


def test_clicks_that_nobody_knows_are_no_doubt(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "Click ID,Sub 1,Payout\nnew1,fb,5\nnew2,tt,6\n"

    ran = call(tracker, capsys, "import", content)

    assert ran.err.endswith("2 lines: 2 parked; 0 not taken\n")
    assert "say which column it is" not in ran.err


@pytest.mark.parametrize("row", ["C2,T2,1.250,sale", "C2,T2,ten,sale", "C2,T2,10,hmm"])
def test_what_the_report_has_and_cannot_be_read_is_not_extra(
    tracker: Client, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    content = f"subid,tid,payout,status\nC1,T1,12.50,sale\n{row}\nC3,T3,3,lead\n"

    ran = call(tracker, capsys, "reconcile", content, "--json", "--decimal-comma")

    kind = "unmapped" if "hmm" in row else "unreadable"
    assert [found["differences"] for found in ran.objects] == [[kind]]
