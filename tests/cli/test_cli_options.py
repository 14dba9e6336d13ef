"""Values of options that begin with '-', as offsets and click ids do."""

import pytest
from conftest import Client

from postbackd.cli import entry as cli


def call(client: Client, *words: str) -> int:
    return cli.main([*words, "--config", str(client.directory / "config.ini.php")])


@pytest.mark.parametrize("zone", ["-05:00", "-0330", "-11:30", "+03:00", "-00:00"])
@pytest.mark.parametrize("way", ["{}\n{}", "{}={}"])
def test_a_zone_west_of_greenwich_is_an_offset(
    client: Client, capsys: pytest.CaptureFixture[str], zone: str, way: str
) -> None:
    client.get("/health")
    client.click("c1", clicked_at="2026-03-02T00:10:00Z")

    status = call(client, "report", "--by", "hour", *way.format("--tz", zone).split("\n"), "--json")

    sign = zone if ":" in zone else f"{zone[:3]}:{zone[3:]}"
    assert status == 0
    assert sign.replace("-00:00", "+00:00") in capsys.readouterr().out


def test_names_and_click_ids_may_begin_with_a_hyphen(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("-abc", campaign="-C", offer="-O")
    client.send("subid=-abc&payout=3&from=-net")
    client.send("subid=-abc&payout=3&from=-net&tid=-1")

    for words in (
        ("log", "--subid", "-abc", "--json"),
        ("conversions", "--subid", "-abc", "--offer", "-O", "--campaign", "-C", "--json"),
        ("report", "--network", "-net", "--by", "network", "--json"),
        ("replay", "--subid", "-abc", "--dry-run", "--json"),
    ):
        assert call(client, *words) == 0
        assert "-abc" in (out := capsys.readouterr().out) or "-net" in out


@pytest.mark.parametrize("file", ["clicks", "reconcile"])
def test_times_of_files_may_have_such_a_zone(
    client: Client, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    client.get("/health")
    words = {"clicks": ("clicks", "import"), "reconcile": ("reconcile",)}
    path = client.directory / "rows.csv"
    path.write_text("subid,clicked_at,payout,status\nc1,2026-03-02 10:00,1,sale\n")

    call(client, *words[file], str(path), "--tz", "-05:00")

    assert "expected one argument" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("log", "--subid", "--json"), "argument --subid: expected one argument"),
        (("log", "--subid", "--limt", "5"), "argument --subid: expected one argument"),
        (("log", "--subid"), "argument --subid: expected one argument"),
        (("report", "--tz", "-h"), "argument --tz: expected one argument"),
    ],
)
def test_an_option_is_no_value(
    client: Client, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert call(client, *words) == 2
    assert said in capsys.readouterr().err
