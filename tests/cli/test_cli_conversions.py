"""`postback conversions`: for people, scripts and spreadsheets."""

import csv
import io

import pytest
from cli_calls import Ran, call_on_terminal, without_styles
from conftest import Client

from postbackd.cli import entry as cli
from postbackd.reports import listing

NAMES = [
    *("id", "subid", "tid", "status", "original_status", "previous_status"),
    *("amount", "currency", "payout", "rate", "rate_day", "rate_source", "cost"),
    *("campaign", "offer", "network", "sub_ids", "created_at", "updated_at", "sale_at"),
]


def call(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    config = str(client.directory / "config.ini.php")
    status = cli.main(["conversions", *words, "--config", config])
    return Ran(status, *capsys.readouterr())


@pytest.fixture
def tracker(client: Client) -> Client:
    """Three clicks with a conversion each, an hour apart."""
    client.click("c1", offer="O1", campaign="C1", sub_id_1="src")
    client.click("c2", offer="O2", campaign="C1")
    client.click("c3", offer="O1")
    client.send("subid=c1&status=lead&payout=1")
    client.clock.forward(hours=1)
    client.send("subid=c2&status=sale&payout=12.50&currency=EUR&tid=t2&from=net")
    client.clock.forward(hours=1)
    client.send("subid=c3&status=rejected")
    return client


@pytest.fixture
def tagged(tracker: Client) -> Client:
    """The same with more sub ids, one of them a number that another program wrote."""
    write = "UPDATE conversions SET sub_ids = ? WHERE id = ?"
    tracker.write(write, '{"sub_id_1":"src","sub_id_2":"x=y"}', 1)
    tracker.write(write, '{"sub_id_1":"other","sub_id_30":7}', 3)
    return tracker


@pytest.mark.parametrize(
    ("options", "subids"),
    [
        ((), ["c1", "c2", "c3"]),
        (("--subid", "c2"), ["c2"]),
        (("--status", "lead"), ["c1"]),
        (("--status", "lead", "--status", "rejected"), ["c1", "c3"]),
        (("--offer", "O1"), ["c1", "c3"]),
        (("--campaign", "C1"), ["c1", "c2"]),
        (("--campaign", "C1", "--offer", "O1"), ["c1"]),
        (("--since", "2026-03-02T13:00"), ["c2", "c3"]),
        (("--until", "2026-03-02T13:00"), ["c1"]),
        (("--until", "2026-03-02"), ["c1", "c2", "c3"]),
        (("--limit", "1"), ["c3"]),
        (("--offer", ""), []),
        (("--network", "net"), ["c2"]),
        (("--network", "other"), []),
        (("--tid", "t2"), ["c2"]),
        (("--tid", ""), ["c1", "c3"]),
        (("--sub-id", "1=src"), ["c1"]),
        (("--sub-id", "sub_id_1=src"), ["c1"]),
        (("--sub-id", "1=src", "--sub-id", "1=other"), ["c1", "c3"]),
        (("--sub-id", "1=src", "--sub-id", "2=x=y"), ["c1"]),
        (("--sub-id", "1=other", "--sub-id", "2=x=y"), []),
        (("--sub-id", "1=SRC"), []),
        (("--sub-id", "30=7"), ["c3"]),
    ],
)
def test_options_choose_among_the_conversions(
    tagged: Client, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], subids: list[str]
) -> None:
    ran = call(tagged, capsys, *options)

    assert [row[1] for row in ran.rows] == subids


def test_csv_has_a_number_that_another_program_wrote_as_sub_id(
    tagged: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    out = call(tagged, capsys, "--csv").out

    assert [row["sub_id_30"] for row in csv.DictReader(io.StringIO(out))] == ["", "", "7"]


@pytest.mark.parametrize("text", ["1", "0=x", "31=x", "x=1", "sub_id_=1", "=x", ""])
def test_what_is_no_sub_id_is_wrong_usage(
    client: Client, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    ran = call(client, capsys, "--sub-id", text)

    assert ran.status == 2
    assert f"{text!r} is no N=VALUE with N from 1 to 30" in ran.err


def test_json_has_the_names_and_forms_that_scripts_rely_on(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = call(tracker, capsys, "--json").objects

    assert list(first) == NAMES
    assert first["sub_ids"] == {"sub_id_1": "src"}
    assert (second["amount"], second["currency"], second["payout"]) == ("12.5", "EUR", None)
    assert second["sale_at"] == "2026-03-02T13:00:00.000Z"


def test_history_is_every_change_in_order(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send("subid=c1&status=sale&payout=7")

    [conversion] = call(tracker, capsys, "--json", "--history", "--subid", "c1").objects
    table = call(tracker, capsys, "--history", "--subid", "c1")

    assert [(c["change"], c["status"], c["amount"]) for c in conversion["history"]] == [
        ("recorded", "lead", "1"),
        ("updated", "sale", "7"),
    ]
    assert table.lines[0].startswith("at\tchange\tsubid\ttid\tstatus")
    assert [row[1:5] for row in table.rows] == [
        ["", "c1", "", "sale"],
        ["recorded", "c1", "", "lead"],
        ["updated", "c1", "", "sale"],
    ]


def test_csv_is_rfc_4180(tracker: Client, capsys: pytest.CaptureFixture[str]) -> None:
    out = call(tracker, capsys, "--csv").out
    rows = list(csv.DictReader(io.StringIO(out, newline="")))

    assert out.count("\r\n") == out.count("\n") == 4
    # Whichever sub ids occur: a spreadsheet's formulas count on places.
    assert list(rows[0]) == [*NAMES, *(f"sub_id_{number}" for number in range(1, 31))]
    assert rows[0]["sub_ids"] == '{"sub_id_1":"src"}'
    assert (rows[0]["sub_id_1"], rows[0]["sub_id_2"], rows[1]["sub_id_1"]) == ("src", "", "")
    assert (rows[1]["amount"], rows[1]["payout"], rows[1]["network"]) == ("12.5", "", "net")


@pytest.mark.parametrize(
    "value", ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0", "＝1", "＋1", "－1", "＠1"]
)
def test_no_text_in_csv_is_a_formula_and_amounts_stay_numbers(
    client: Client, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    client.click(value, offer=value)
    client.app.get("/s3cret-key-of-the-tests/postback", {"subid": value, "payout": "-3"})

    [row] = csv.DictReader(io.StringIO(call(client, capsys, "--csv").out, newline=""))

    assert (row["subid"], row["offer"]) == (f"'{value}", f"'{value}")
    assert (row["amount"], row["payout"]) == ("-3", "-3")


def test_csv_shows_control_characters_as_escapes(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", offer="\x1b[31m")
    client.write("UPDATE offers SET name = char(9) || '=1'")
    client.send("subid=c1&tid=a%0ab")

    [row] = csv.DictReader(io.StringIO(call(client, capsys, "--csv").out, newline=""))

    assert row["offer"] == r"'\t=1"
    assert row["tid"] == r"a\nb"


@pytest.mark.parametrize("forms", [("--csv", "--json"), ("--csv", "--history")])
def test_forms_that_exclude_each_other_are_wrong_usage(
    client: Client, capsys: pytest.CaptureFixture[str], forms: tuple[str, ...]
) -> None:
    client.get("/health")

    assert call(client, capsys, *forms).status == 2


def test_a_terminal_shows_amounts_with_cents_and_the_rest_in_words(tracker: Client) -> None:
    ran = call_on_terminal(tracker.directory, "conversions", columns=79, NO_COLOR="1")

    assert "12.50 EUR" in ran.out
    assert "offer O2, campaign C1, network net" in ran.out
    assert max(len(without_styles(line)) for line in ran.lines) <= 79


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (listing.RowFilter().where("subid", ["c1"]), "sqlite_autoindex_clicks"),
        (listing.RowFilter().between("created_at", "2026", None), "conversions_by_time"),
    ],
)
def test_the_common_questions_use_an_index(
    client: Client, wanted: listing.RowFilter, index: str
) -> None:
    client.get("/health")

    sql = listing.select_sql(listing.CONVERSIONS, wanted, "ORDER BY created_at, id LIMIT 5")
    plan = [row["detail"] for row in client.rows(f"EXPLAIN QUERY PLAN {sql}", *wanted.values)]

    assert any(index in step for step in plan), plan
    assert not [step for step in plan if re_scans(step)], plan


def re_scans(step: str) -> bool:
    return step.startswith("SCAN ") and "USING INDEX" not in step
