"""Times in a zone, `--tz` or `[system] timezone`: shown in it, read in it, told; JSON stays UTC."""

from datetime import UTC, datetime, timedelta

import pytest
from cli_calls import Ran, call_on_terminal
from conftest import Client, ReceiverWith, write_config

from postbackd.cli import entry as cli

BERLIN = "Europe/Berlin"
# What the tests' clock says, 12:00 UTC, is there.
SHOWN = "2026-03-02T13:00:00.000+01:00"
IN_UTC = "2026-03-02T12:00:00.000Z"


def call(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    status = cli.main([*words, "--config", str(client.directory / "config.ini.php")])
    return Ran(status, *capsys.readouterr())


def fill(client: Client) -> None:
    client.click("c1", offer="O1", clicked_at=IN_UTC)
    client.send("subid=c1&status=sale&payout=3&tid=t1")
    client.send("subid=c9&status=lead")
    client.clock.forward(hours=1)
    client.click("c9", clicked_at=IN_UTC)


@pytest.fixture
def tracker(client: Client) -> Client:
    """A click with a sale, and one that came after its postback."""
    fill(client)
    return client


SHOWS = [
    ("log",),
    ("conversions",),
    ("conversions", "--csv"),
    ("conversions", "--history"),
    ("clicks", "list"),
    ("clicks", "list", "--csv"),
    ("replay", "--subid", "c1", "--dry-run"),
    ("explain", "subid=c1&status=sale&payout=3&tid=t1"),
    ("check",),
]


@pytest.mark.parametrize("words", SHOWS)
@pytest.mark.parametrize("way", ["option", "config"])
def test_times_are_shown_in_the_zone_of_the_option_or_of_the_config(
    tracker: Client, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], way: str
) -> None:
    zone = BERLIN if way == "config" else "America/New_York"
    write_config(tracker.directory, {"timezone": zone})

    ran = call(tracker, capsys, *words, *(("--tz", BERLIN) if way == "option" else ()))

    assert SHOWN in ran.out
    assert IN_UTC not in ran.out


@pytest.mark.parametrize("words", SHOWS[:1] + SHOWS[1:2] + SHOWS[4:5])
def test_json_has_utc_whatever_the_zone(
    tracker: Client, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    write_config(tracker.directory, {"timezone": BERLIN})

    out = call(tracker, capsys, *words, "--json", "--tz", "America/New_York").out

    assert IN_UTC in out
    assert "-05:00" not in out


def test_what_came_of_a_parked_postback_came_at_a_time_in_the_zone(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    out = call(tracker, capsys, "log", "--subid", "c9", "--tz", "+03:00").out

    assert "2026-03-02T16:00:00.000+03:00: recorded" in out


@pytest.mark.parametrize("words", [("log",), ("conversions",), ("clicks", "list"), SHOWS[6]])
def test_a_terminal_shows_the_zone_beneath_the_table(
    tracker: Client, words: tuple[str, ...]
) -> None:
    write_config(tracker.directory, {"timezone": BERLIN})

    told = call_on_terminal(tracker.directory, *words).out
    overruled = call_on_terminal(tracker.directory, *words, "--tz", "UTC").out

    assert "2026-03-02 13:00:00" in told
    assert "Times in Europe/Berlin." in told
    assert "2026-03-02 12:00:00" in overruled
    assert "Times in UTC." in overruled


@pytest.mark.parametrize("words", [("log",), ("conversions",), ("clicks", "list")])
@pytest.mark.parametrize(
    ("options", "is_there"),
    [
        (("--since", "2026-03-02T13:00"), True),
        (("--since", "2026-03-02T13:01"), False),
        (("--since", "2026-03-02T13:01", "--tz", "+01:30"), True),
        (("--since", "2026-03-02T12:01Z"), False),
        (("--until", "2026-03-02T13:00"), False),
        (("--until", "2026-03-02T13:01"), True),
    ],
)
def test_times_without_a_zone_are_read_in_it(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    options: tuple[str, ...],
    is_there: bool,
) -> None:
    write_config(tracker.directory, {"timezone": BERLIN})

    ran = call(tracker, capsys, *words, *options)

    assert ran.status == 0
    assert ("c1" in ran.out) == is_there


def zone_in_which_it_is(hour: int, days: int) -> str:
    """The offset of a zone whose clocks show this hour now: no test runs at its midnight.

    `days`: whether its date is that of UTC (0), or the one after or before it (1).
    """
    minutes = round((hour - datetime.now(UTC).hour - 0.5) * 60)
    minutes += days * (1440 if minutes < 0 else -1440)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


@pytest.mark.parametrize("words", [("log",), ("conversions",)])
@pytest.mark.parametrize("days", [0, 1])
@pytest.mark.parametrize(
    ("hour", "options", "found"),
    [
        (12, ("--since", "today"), ["now"]),
        (12, ("--since", "yesterday"), ["13h", "now"]),
        (12, ("--since", "Yesterday", "--until", "yesterday"), ["13h"]),
        (12, ("--until", "yesterday"), ["40h", "13h"]),
        (12, ("--until", "today"), ["40h", "13h", "now"]),
        # Late in the evening thirteen hours ago was the same day.
        (22, ("--since", "today"), ["13h", "now"]),
        (22, ("--since", "yesterday"), ["40h", "13h", "now"]),
        (22, ("--until", "yesterday"), ["40h"]),
    ],
)
def test_today_and_yesterday_are_days_of_the_zone(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    days: int,
    hour: int,
    options: tuple[str, ...],
    found: list[str],
) -> None:
    for name, hours in (("40h", 40), ("13h", 13), ("now", 0)):
        client.clock.now = datetime.now(UTC) - timedelta(hours=hours)
        client.click(name)
        client.send(f"subid={name}&status=lead")

    ran = call(client, capsys, *words, *options, "--tz", zone_in_which_it_is(hour, days))

    place = {"log": 2, "conversions": 1}[words[0]]
    assert [row[place] for row in ran.rows] == found


WRONG = [
    ("Europe/Berln", "the nearest is 'Europe/Berlin'"),
    ("moscow", "the nearest is 'Europe/Moscow'"),
    ("new york", "the nearest is 'America/New_York'"),
    ("europe/berlin ", "the nearest is 'Europe/Berlin'"),
    ("+3", "write Europe/Moscow or +03:00"),
    ("../../etc/passwd", "write Europe/Moscow or +03:00"),
]


@pytest.mark.parametrize(("zone", "said"), WRONG)
def test_a_zone_that_is_none_is_wrong_usage_with_the_nearest(
    client: Client, capsys: pytest.CaptureFixture[str], zone: str, said: str
) -> None:
    ran = call(client, capsys, "log", "--tz", zone)

    assert ran.status == 2
    assert f"{zone!r} is no time zone" in ran.err
    assert said in ran.err


@pytest.mark.parametrize(("zone", "said"), [*WRONG[:3], *WRONG[4:]])
def test_a_wrong_zone_in_the_config_stops_commands_with_times_and_no_postback(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str], zone: str, said: str
) -> None:
    client = receiver_with(timezone=zone)
    client.click("c1")

    assert client.send("subid=c1&status=sale").verdict == "recorded"

    for words in (("log",), ("conversions",), ("report",), ("clicks", "list")):
        ran = call(client, capsys, *words)
        assert ran.status == 1
        assert f"[system] timezone: {zone!r} is no time zone" in ran.err
        assert said in ran.err
        assert call(client, capsys, *words, "--tz", "UTC").status == 0
    check = call(client, capsys, "check").out
    assert f"line 6: [system] timezone: {zone!r} is no time zone" in check
    assert said in check


def test_a_zone_is_in_force_with_the_next_command(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    before = call(tracker, capsys, "log").out
    write_config(tracker.directory, {"timezone": BERLIN})
    after = call(tracker, capsys, "log").out

    assert IN_UTC in before
    assert SHOWN in after
    assert tracker.send("subid=c1&status=sale&tid=t1").verdict == "repeated"


@pytest.mark.parametrize(
    ("options", "clicked_at", "is_told"),
    [((), "2026-03-02T09:00:00.000Z", True), (("--tz", "UTC"), "2026-03-02T10:00:00.000Z", False)],
)
def test_times_of_files_are_in_the_zone_of_the_config_and_that_is_told(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    clicked_at: str,
    is_told: bool,
) -> None:
    client.get("/health")
    write_config(client.directory, {"timezone": BERLIN})
    path = client.directory / "clicks.csv"
    path.write_text("subid,clicked_at\nc1,2026-03-02 10:00\n")

    ran = call(client, capsys, "clicks", "import", str(path), *options)

    assert client.rows("SELECT clicked_at FROM clicks") == [{"clicked_at": clicked_at}]
    assert ("read as times in Europe/Berlin" in ran.err) == is_told


def test_a_report_of_a_network_is_held_against_times_of_the_zone(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tracker.directory, {"timezone": BERLIN})
    path = tracker.directory / "report.csv"
    path.write_text("subid,tid,payout,time\nc1,t1,4,2026-03-02 13:00\n")

    early = call(tracker, capsys, "reconcile", str(path), "--until", "2026-03-02T13:00")
    late = call(tracker, capsys, "reconcile", str(path), "--until", "2026-03-02T13:01")

    assert "read as times in Europe/Berlin" in early.err
    assert "to 2026-03-02T13:00:00.000+01:00" in early.err
    assert "c9" not in early.out
    assert f"came {SHOWN}" in late.out


def test_purge_reads_and_names_a_time_of_the_zone(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("purge", "--dry-run", "--tz", BERLIN, "--older-than")

    before = call(tracker, capsys, *words, "2026-03-02T13:00").out
    after = call(tracker, capsys, *words, "2026-03-02T13:01").out

    assert before == f"Before {SHOWN} there are 0 postbacks: nothing was deleted.\n"
    assert after.endswith("there are 1 postbacks: nothing was deleted.\n")


def test_the_last_use_of_a_key_is_shown_in_the_zone(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.receiver.close()

    out = call(tracker, capsys, "key", "show", "--last-used", "--tz", BERLIN).out

    assert "(last used 2026-03-02 13:00 Europe/Berlin)" in out


def test_a_report_has_the_days_of_the_zone_of_the_config(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tracker.directory, {"timezone": "+13:00"})

    out = call(tracker, capsys, "report", "--since", "2026-03-03", "--by", "hour").out

    assert "2026-03-03T01:00+13:00" in out
