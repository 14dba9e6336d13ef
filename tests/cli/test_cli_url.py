"""`postback url`: the URL that an affiliate pastes at a network."""

import html
import re
from pathlib import Path

import pytest
from cli_calls import Ran
from conftest import POSTBACK_KEY, Client, write_config

from postbackd.cli import entry as cli
from postbackd.intake.query import read_fields, read_postback

BASE = f"https://t.example/{POSTBACK_KEY}/postback?"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a config."""
    write_config(tmp_path, {"public_url": "https://t.example"})
    return tmp_path


def call(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    status = cli.main(["url", *words, "--config", str(home / "config.ini.php")])
    return Ran(status, *capsys.readouterr())


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ([], "subid={subid}&status={status}&payout={payout}&tid={tid}"),
        (
            ["--macros", "subid={sub1},status={status},payout={sum}"],
            "subid={sub1}&status={status}&payout={sum}",
        ),
        (["--macros", "subid={{a b}}, tid=#tx#"], "subid={{a b}}&tid=#tx#"),
        (["--macros", "subid=[=x=]"], "subid=[=x=]"),
        (["--macros", "subid={x},currency=EUR"], "subid={x}&currency=EUR"),
        (["--macros", "subid={x},tid={a}-{b}"], "subid={x}&tid={a}-{b}"),
        (["--macros", "subid=%%x%%,sub_id_3=a&b c"], "subid=%%x%%&sub_id_3=a%26b%20c"),
        (
            ["--macros", "subid={x}", "--sale-status", "approved,p&id", "--lead-status", "new"],
            "subid={x}&lead_status=new&sale_status=approved,p%26id",
        ),
        (
            ["--macros", "subid={x}", "--rejected-status", "no", "--rebill-status", "again"],
            "subid={x}&rejected_status=no&rebill_status=again",
        ),
        (
            ["--macros", "subid={x}", "--ignore", "test", "--return", "OK 1", "--from", "Нет"],
            "subid={x}&ignore=test&return=OK%201&from=%D0%9D%D0%B5%D1%82",
        ),
        (["--macros", "subid={x}", "--currency", "eur"], "subid={x}&currency=EUR"),
    ],
)
def test_the_first_line_is_the_url_to_paste(
    home: Path, capsys: pytest.CaptureFixture[str], options: list[str], query: str
) -> None:
    ran = call(home, capsys, *options)

    assert (ran.status, ran.err) == (0, "")
    assert ran.lines[0] == BASE + query
    assert all(line.startswith(("#", "<img ")) for line in ran.lines[1:])


@pytest.mark.parametrize(
    ("macros", "sentence"),
    [
        ("subid={a},statsu={b}", "'statsu' is no parameter of ours; the nearest is 'status'"),
        ("subid={a},pay=1", "the nearest is 'payout'"),
        ("sub_id_31={a}", "the nearest is 'sub_id_"),
        ("subid", "'subid' is no NAME=MACRO"),
        ("subid=", "'subid=' is no NAME=MACRO"),
        ("", "'' is no NAME=MACRO"),
    ],
)
def test_macros_that_lead_nowhere_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str], macros: str, sentence: str
) -> None:
    ran = call(home, capsys, "--macros", macros)

    assert ran.status == 2
    assert sentence in ran.err


def test_a_url_without_click_id_is_printed_with_a_warning(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = call(home, capsys, "--macros", "status={s}")

    assert ran.status == 0
    assert "without subid" in ran.err


def test_the_url_means_to_the_receiver_what_was_asked_for(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--macros", "subid=c1,payout=3", "--sale-status", "paid, ok", "--from", "a&b=c"]
    url = call(home, capsys, *options).lines[0]

    postback = read_postback(read_fields(url.partition("?")[2]), {}, tracker_currency="USD")

    assert postback.incoming.subid == "c1"
    assert postback.incoming.lists.sale == {"paid", "ok"}
    assert postback.network == "a&b=c"


def test_the_key_is_percent_encoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path, {"postback_key": "a+b~ü.%"})

    url = call(tmp_path, capsys).lines[0]

    assert "/a%2Bb~%C3%BC.%25/postback?" in url


def test_the_pixel_tag_works_as_it_stands(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")
    tag = call(client.directory, capsys).lines[-1]
    address = re.fullmatch(r'<img src="([^"]*)" width="1" height="1" alt="">', tag)
    assert address is not None
    assert "subid={subid}&amp;status=lead" in address[1]

    url = html.unescape(address[1]).replace("{subid}", "c1")
    answer = client.get(url.removeprefix("http://127.0.0.1:8000"))

    assert answer.verdict == "recorded"
    assert [kept.status for kept in client.conversions("c1")] == ["lead"]


def test_without_a_pixel_key_a_comment_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, {"pixel_key": None})

    ran = call(tmp_path, capsys)

    assert "<img" not in ran.out
    assert "pixel_key" in ran.lines[-1]


def test_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [urls] = call(home, capsys, "--json", "--macros", "subid={x}").objects

    assert urls["postback_url"] == BASE + "subid={x}"
    assert urls["pixel_tag"].startswith("<img ")
