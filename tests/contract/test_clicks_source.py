"""A click's external id, its source, and its cost."""

import json
from typing import Any

import pytest
from cli_calls import Ran
from conftest import CLICK_KEY, Client, ReceiverWith

from postbackd.cli import entry as cli

COLUMNS = "subid, external_id, source, click_cost_micros AS micros, click_cost_currency AS currency"


def read(client: Client, subid: str = "c1") -> tuple[Any, ...]:
    [row] = client.rows(f"SELECT {COLUMNS} FROM clicks WHERE subid = ?", subid)
    return tuple(row.values())[1:]


def run(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    status = cli.main([*words, "--config", str(client.directory / "config.ini.php")])
    captured = capsys.readouterr()
    return Ran(status, captured.out, captured.err)


def import_lines(client: Client, capsys: pytest.CaptureFixture[str], *lines: str) -> Ran:
    """Import a file of clicks."""
    path = client.directory / "clicks.csv"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return run(client, capsys, "clicks", "import", str(path))


REQUESTS = [
    ("external_id=abc.1&source=fb&cost=0.05", ("abc.1", "fb", 50_000, "USD")),
    ("cost=0.0000014&currency=eur", (None, None, 1, "EUR")),
    ("cost=$0.5", (None, None, 500_000, "USD")),
    ("cost=0.5 eur", (None, None, 500_000, "EUR")),
    ("External_ID=x&SOURCE=y&Cost=1", ("x", "y", 1_000_000, "USD")),
    # Unusable values change nothing.
    ("external_id={external_id}&source={source}&cost={cost}", (None, None, None, None)),
    ("external_id=&source=+&cost=", (None, None, None, None)),
    ("cost=1,5", (None, None, None, None)),
    ("cost=1&currency=643", (None, None, None, None)),
    ("currency=EUR", (None, None, None, None)),
]


@pytest.mark.parametrize(("query", "expected"), REQUESTS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_click_by_request_has_them(
    client: Client, query: str, expected: tuple[Any, ...], method: str
) -> None:
    query = query.replace(" ", "%20")
    if method == "GET":
        answer = client.get(f"/{CLICK_KEY}/click?subid=c1&{query}")
    else:
        body = f"subid=c1&{query}".encode()
        headers = {"Content-Type": "text/plain"}
        answer = client.request(f"/{CLICK_KEY}/click", "POST", body, headers=headers)

    assert answer.verdict == "recorded"
    assert read(client) == expected


def test_a_click_in_json_is_a_click(client: Client) -> None:
    body = json.dumps({"subid": "c1", "external_id": 17, "cost": 0.25}).encode()
    headers = {"Content-Type": "application/json"}

    client.request(f"/{CLICK_KEY}/click", "POST", body, headers=headers)

    assert read(client) == ("17", None, 250_000, "USD")


def test_what_is_not_said_again_stays(client: Client) -> None:
    client.click("c1", external_id="a", source="fb", cost="1", currency="EUR")
    client.click("c1", source="tt")
    assert read(client) == ("a", "tt", 1_000_000, "EUR")

    client.click("c1", cost="2")
    assert read(client) == ("a", "tt", 2_000_000, "USD")


def test_a_decimal_comma_is_read_where_the_settings_say_so(receiver_with: ReceiverWith) -> None:
    client = receiver_with(decimal_comma="yes", currency="EUR")

    client.click("c1", cost="1,5")

    assert read(client) == (None, None, 1_500_000, "EUR")


FILES = [
    # Keitaro's titles, in any order.
    ("Sub ID,External ID,Source,Cost", "c1,x-1,fb,0.0125", ("x-1", "fb", 12_500, "USD")),
    ('"Cost";"Sub ID";"Source";"External ID"', "0.5;c1;fb;x", ("x", "fb", 500_000, "USD")),
    ("subid,external_id,source,cost,currency", "c1,x,s,1,EUR", ("x", "s", 1_000_000, "EUR")),
    ("subid,cost,currency", "c1,1,usd", (None, None, 1_000_000, "USD")),
    ("subid,cost,currency", "c1,1,", (None, None, 1_000_000, "USD")),
    # As people write them in files.
    ("subid,cost", 'c1,"$1,234.50"', (None, None, 1_234_500_000, "USD")),
    ("subid,cost", "c1,2 EUR", (None, None, 2_000_000, "EUR")),
    ("subid;cost", "c1;0,05", (None, None, 50_000, "USD")),
    ("subid,cost", "c1,1.500", (None, None, 1_500_000, "USD")),
    ("subid,external_id,cost,source", "c1,{external_id},{cost},null", (None, None, None, None)),
    ("subid,external_id,cost,source", "c1,,-,", (None, None, None, None)),
    ("subid,external_id,source", "c1,{external_id},{source}", (None, None, None, None)),
]


@pytest.mark.parametrize(("titles", "line", "expected"), FILES)
def test_a_click_of_a_file_has_them(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    titles: str,
    line: str,
    expected: tuple[Any, ...],
) -> None:
    ran = import_lines(client, capsys, titles, line)

    assert (ran.status, "without their cost" in ran.err) == (0, False)
    assert read(client) == expected


@pytest.mark.parametrize(
    ("titles", "line", "sentence"),
    [
        ("subid,cost", "c1,free", "cost 'free' is unreadable"),
        ("subid,cost", 'c1,"1,234"', "two readings"),
        ("subid,cost,currency", "c1,1,643", "has no known currency"),
        ("subid,cost,currency", "c1,$1,EUR", "has no known currency"),
    ],
)
def test_a_cost_of_a_file_that_is_none_is_reported_and_the_click_comes_in(
    client: Client, capsys: pytest.CaptureFixture[str], titles: str, line: str, sentence: str
) -> None:
    ran = import_lines(client, capsys, titles, line)

    assert ran.status == 1
    assert sentence in ran.err
    assert "1 clicks were imported without their cost" in ran.err
    assert read(client) == (None, None, None, None)


def test_costs_of_one_file_are_written_in_one_way(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = import_lines(client, capsys, "subid;cost", "c1;1.500", "c2;0,05")

    assert ran.status == 1
    assert "cost '1.500' is not taken: '0,05' in the same file" in ran.err
    assert (read(client, "c1")[2], read(client, "c2")[2]) == (None, 50_000)


def test_clicks_list_shows_them(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.click("c1", external_id="x", source="fb", cost="0.50", currency="EUR")
    client.click("c2")

    first, second = run(client, capsys, "clicks", "list", "--json").objects
    names = ("external_id", "source", "cost", "cost_currency")
    assert [first[name] for name in names] == ["x", "fb", "0.5", "EUR"]
    assert [second[name] for name in names] == [None] * 4
    shown = run(client, capsys, "clicks", "list").rows[0]
    assert {"x", "fb", "0.5 EUR"} <= set(shown)


def test_a_postback_replaces_the_external_id_of_its_click(client: Client) -> None:
    client.click("c1", external_id="old")

    client.send("subid=c1&status=lead&external_id=new")
    assert read(client)[0] == "new"
    # Neither repeated nor refused ones, nor macros.
    for query in ("status=lead&external_id=x", "status=rebill&external_id=x"):
        assert client.send(f"subid=c1&{query}").verdict in {"repeated", "refused"}
    client.send("subid=c1&status=sale&external_id={external_id}")
    assert read(client)[0] == "new"
    client.send("subid=c1&status=rejected&external_id=newest")
    assert read(client)[0] == "newest"


def test_a_repeat_that_fills_in_adds_only_what_is_not_known(client: Client) -> None:
    for subid, known in (("c1", {"external_id": "old"}), ("c2", {})):
        client.click(subid, **known)
        client.send(f"subid={subid}&status=sale&tid=1")
        assert client.send(f"subid={subid}&status=sale&tid=1&payout=5&external_id=new").verdict == (
            "updated"
        )

    assert (read(client, "c1")[0], read(client, "c2")[0]) == ("old", "new")


def test_a_parked_postback_brings_its_external_id(client: Client) -> None:
    client.send("subid=c1&status=lead&external_id=x")

    client.click("c1")

    assert read(client)[0] == "x"
