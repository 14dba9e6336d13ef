"""`postback log`: the received postbacks, with verdicts and reasons."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_calls import Terminal, call_on_terminal, call_process, without_styles
from conftest import Client, ReceiverWith
from hypothesis import given
from hypothesis import strategies as st

from postbackd.cli import entry as cli
from postbackd.cli.commands.log import describe_amount
from postbackd.config.settings import load
from postbackd.intake.booking import BookingOptions, parse_stored, read_booking_options
from postbackd.reports import listing as listings
from rates import decimal_text

TITLES = [
    *("time", "network", "subid", "status", "amount", "verdict", "reason"),
    # Behind the others: scripts count on the places of those.
    *("id", "address", "query"),
]


def call(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """Run a listing command in this process; returns its cells."""
    status = cli.main([*words, "--config", str(client.directory / "config.ini.php")])
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    return [line.split("\t") for line in captured.out.splitlines()]


def test_the_newest_postback_is_the_last_line(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", offer="O1")
    client.send("subid=c1&status=sale&payout=12.50&from=net")
    client.clock.forward(seconds=1)
    client.send("subid=c2&status=lead")

    titles, first, second = call(client, capsys, "log")

    assert titles == TITLES
    assert first == [
        "2026-03-02T12:00:00.000Z",
        "net",
        "c1",
        "sale",
        "12.5 USD",
        "recorded",
        "the first conversion of the click, as sale",
        "1",
        "203.0.113.9",
        "subid=c1&status=sale&payout=12.50&from=net",
    ]
    assert second[2:6] == ["c2", "lead", "", "parked"]


def test_a_settled_postback_shows_what_came_of_it(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.send("subid=c1&status=lead")
    client.clock.forward(hours=1)
    client.click("c1")

    _, row = call(client, capsys, "log")

    assert row[5] == "parked"
    assert "2026-03-02T13:00:00.000Z: recorded, the first conversion of the click" in row[6]


def test_warnings_stand_behind_the_reason(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")
    client.send("subid=c1&payout=10%25")

    _, row = call(client, capsys, "log")

    assert row[6].startswith("the first conversion of the click, as sale; payout '10%' is unread")


@pytest.mark.parametrize(
    ("options", "subids"),
    [
        ((), ["c1", "c2", "c1", "c3", "c1"]),
        (("--subid", "c1"), ["c1", "c1", "c1"]),
        (("--subid", "nobody"), []),
        (("--verdict", "unmapped"), ["c3"]),
        (("--verdict", "unmapped", "--verdict", "parked"), ["c2", "c3"]),
        (("--network", "net"), ["c1", "c3"]),
        (("--subid", "c1", "--network", "net"), ["c1"]),
        (("--source", "http", "--source", "import"), ["c1", "c2", "c1", "c3", "c1"]),
        (("--source", "pixel"), []),
        (("--grep", "no click 'c2'"), ["c2"]),
        (("--grep", "from=net"), ["c1", "c3"]),
        (("--grep", "FROM="), []),
        (("--limit", "2"), ["c3", "c1"]),
        (("--limit", "2", "--subid", "c1"), ["c1", "c1"]),
        (("--limit", "0"), ["c1", "c2", "c1", "c3", "c1"]),
        (("--limit", "99"), ["c1", "c2", "c1", "c3", "c1"]),
        (("--since", "2026-03-02T13:00"), ["c2", "c1", "c3", "c1"]),
        (("--since", "2026-03-02T15:00+01:00"), ["c1", "c3", "c1"]),
        (("--since", "2026-03-03"), []),
        (("--until", "2026-03-02T13:00Z"), ["c1"]),
        (("--until", "2026-03-02"), ["c1", "c2", "c1", "c3", "c1"]),
        (("--until", "2026-03-01"), []),
        (("--since", "2026-03-02 13:00", "--until", "2026-03-02 14:30"), ["c2", "c1"]),
        (("--since", "1h"), []),
    ],
)
def test_options_choose_among_the_postbacks(
    client: Client, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], subids: list[str]
) -> None:
    client.click("c1")
    for query in (
        "subid=c1&status=lead",
        "subid=c2&status=lead",
        "subid=c1&status=sale&from=net",
        "subid=c3&status=paid&from=net",
        "subid=c1&status=nonsense",
    ):
        client.send(query)
        client.clock.forward(hours=1)
    if "unmapped" in options:
        client.write("DELETE FROM postbacks WHERE original_status = 'nonsense'")

    _, *rows = call(client, capsys, "log", *options)

    assert [row[2] for row in rows] == subids


def test_json_has_the_names_that_scripts_rely_on(client: Client) -> None:
    client.send("subid=c1&status=lead&tid=t1&payout=oops&from=net")

    ran = call_process(client.directory, "log", "--json")

    [postback] = ran.objects
    assert list(postback) == [
        *("id", "received_at", "source", "method", "remote_addr", "query", "subid", "tid"),
        *("original_status", "verdict", "reason", "warnings", "conversion_id", "network"),
        *("settled_at", "settled_verdict", "settled_reason", "replay_of", "body", "body_type"),
    ]
    assert postback["received_at"] == "2026-03-02T12:00:00.000Z"
    assert postback["query"] == "subid=c1&status=lead&tid=t1&payout=oops&from=net"
    assert postback["warnings"] == [client.postbacks()[0].warnings[0]]
    assert postback["settled_verdict"] is None


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("payout=12.50", "12.5 USD"),
        ("revenue=3&currency=eur", "3 EUR"),
        ("payout=-2", "-2 USD"),
        ("payout=x&profit=1", "1 USD"),
        ("payout=1&currency={currency}", "1 ?"),
        ("payout=$1", "1 USD"),
        ("payout=%E2%82%AC1", "1 EUR"),
        ("payout=1%25", ""),
        ("", ""),
    ],
)
def test_the_amount_is_what_was_sent(client: Client, query: str, shown: str) -> None:
    client.get("/health")
    terms = read_booking_options(load(client.directory / "config.ini.php"))

    assert describe_amount(query, terms) == shown


FIELDS = st.sampled_from(
    [
        *("payout=1", "PAYOUT=2", "p%61yout=3", "amp;payout=4", "+payout=5", "pay%6Fut=6"),
        *("revenue=-7.5", "profit={profit}", "%70rofit=8", "payout=", "payout", "payout[]=9"),
        *("currency=eur", "c%75rrency=RUB", "currency=", f"payout={'0' * 2000}10"),
        *("payout_unit=cents", "Payout_Unit=cents", "payout%5Funit=cents", "payout_unit=x"),
        *("", "", "a=b", "%00", "x%00=y", f"text={'%D0%BF' * 400}", f"payouts={'1' * 2000}"),
        *(f"{'n' * 70}={'v' * 2000}", f"pay%6fut={'0' * 2000}11", "=1", "%", "%7"),
    ]
)


@given(st.lists(FIELDS), st.lists(FIELDS), st.sampled_from([0, 1, 500]))
def test_what_is_not_read_of_a_query_changes_no_amount(
    before: list[str], after: list[str], junk: int
) -> None:
    terms = BookingOptions("USD")
    query = "&".join([*before, *["a%20=b"] * junk, *after])

    whole = parse_stored(query, terms).incoming

    amount = "" if whole.amount is None else f"{decimal_text(whole.amount)} {whole.currency or '?'}"
    assert describe_amount(query, terms) == amount


HUGE_BODIES = {
    "names that are none": "%00&" * 16_000,
    "nothing": "&" * 65_000,
    "nothing, and an amount behind it": "&" * 65_000 + "revenue=5",
    "short fields": "a=1&" * 16_000,
    "letters": "%D0%BF&" * 9_000,
    "long values": f"text={'%41' * 2000}&" * 10,
}


@pytest.mark.parametrize("kind", HUGE_BODIES)
def test_a_huge_query_costs_the_log_no_more_than_a_short_one(
    client: Client, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    client.send("subid=c1&payout=5")
    steps = count_steps(lambda: show_log(client))

    client.post("subid=c1&payout=5", HUGE_BODIES[kind])

    assert count_steps(lambda: show_log(client)) < steps + 1000
    assert capsys.readouterr().out.count("\t5 USD\t") == 3


def show_log(client: Client) -> None:
    config = str(client.directory / "config.ini.php")
    assert cli.main(["log", "--limit", "0", "--config", config]) == 0


def count_steps(run: Callable[[], None]) -> int:
    """Count the calls of functions, of ours and of Python's: the same on any machine."""
    steps = 0

    def note(*_: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return steps


def test_a_decimal_comma_is_read_as_the_config_says(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with(decimal_comma="yes")
    client.send("subid=c1&payout=12,50")

    _, row = call(client, capsys, "log")

    assert row[4] == "12.5 USD"


def test_more_than_a_page_comes_whole_and_in_order(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/health")
    number = listings.PAGE_ROWS * 2 + 3
    client.write(
        "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        # Two to a millisecond: the id decides.
        " SELECT printf('2026-03-02T12:00:%02d.000Z', i / 100), 'http', '', i, 'parked', ''"
        " FROM n",
        number,
    )

    _, *everything = call(client, capsys, "log", "--limit", "0")
    _, *some = call(client, capsys, "log", "--limit", str(number - 1))

    assert [row[2] for row in everything] == [str(i) for i in range(1, number + 1)]
    assert some == everything[1:]


def test_one_click_among_many_is_found_through_the_indexes(client: Client) -> None:
    client.get("/health")
    listing = listings.POSTBACKS
    wanted = listings.of_click("c1")

    sql = listings.select_sql(listing, wanted, "ORDER BY received_at, id")
    plan = [row["detail"] for row in client.rows(f"EXPLAIN QUERY PLAN {sql}", "c1", "c1")]

    assert not [step for step in plan if step.startswith("SCAN ")], plan
    assert any("postbacks_by_conversion" in step for step in plan), plan
    assert any("postbacks_without_conversion" in step for step in plan), plan


def test_since_goes_by_the_index_over_time(client: Client) -> None:
    client.get("/health")
    wanted = listings.RowFilter().between("received_at", "2026", None)

    sql = listings.select_sql(listings.POSTBACKS, wanted, "ORDER BY received_at, id LIMIT 5")
    plan = [row["detail"] for row in client.rows(f"EXPLAIN QUERY PLAN {sql}", "2026")]

    assert len(plan) == 1
    assert "postbacks_by_time" in plan[0]


HOSTILE = "subid=c%1b%5b31m1&status=%e2%80%aelead%07&from=%5bbold%5dnet%c2%9b"


def test_what_is_hostile_reaches_no_pipe(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.send(HOSTILE)

    _, row = call(client, capsys, "log")

    assert row[1:4] == [r"[bold]net\x9b", r"c\x1b[31m1", r"\u202elead\x07"]


def test_what_is_hostile_reaches_no_terminal(client: Client) -> None:
    client.send(HOSTILE)

    for form in ((), ("--json",)):
        ran = call_on_terminal(client.directory, "log", *form, columns=200)

        # The text without our own colours.
        seen = without_styles(ran.out)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", seen), seen
        assert "[bold]net" in seen
        assert r"x1b[31m" in seen or r"u001b[31m" in seen


def test_follow_shows_what_comes_in_until_ctrl_c(client: Client) -> None:
    client.send("subid=before&status=lead")
    terminal = Terminal(client.directory, "log", "--follow")
    try:
        terminal.wait_for("before")
        client.send("subid=after&status=lead")
        terminal.wait_for("after")
        terminal.press_ctrl_c()
        ran = terminal.finish()
    finally:
        terminal.kill()

    assert ran.status == 0
    assert "Traceback" not in ran.out
    assert ran.out.count("verdict") == 1


def test_without_a_postback_a_terminal_gets_a_sentence_and_a_pipe_the_titles(
    client: Client, tmp_path: Path
) -> None:
    client.get("/health")

    seen = call_on_terminal(client.directory, "log").out
    piped = call_process(client.directory, "log").out

    assert seen == "No such postback has come in.\n"
    assert piped == "\t".join(TITLES) + "\n"
