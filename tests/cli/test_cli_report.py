"""`postback report`: clicks, conversions and money added up."""

import csv
import io
import itertools
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
from cli_calls import Ran, call_on_terminal, call_process, without_styles
from conftest import Client

from postbackd.cli import entry as cli
from postbackd.db.rows import utc_text
from postbackd.reports.totals import find_bucket


def call(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    config = str(client.directory / "config.ini.php")
    status = cli.main(["report", *words, "--config", config])
    return Ran(status, *capsys.readouterr())


@pytest.fixture
def tracker(client: Client) -> Client:
    """A Monday and a Tuesday: six clicks, five conversions, one of them without a rate."""
    for number, (campaign, offer) in enumerate([("C1", "O1"), ("C1", "O2"), ("C2", "O1")] * 2):
        moment = "2026-03-01T12:00Z" if number == 0 else "2026-03-02T12:00Z"
        fields = {"campaign": campaign, "offer": offer, "clicked_at": moment}
        client.click(f"c{number}", **fields, sub_id_1=f"s{number % 2}", sub_id_2="x")
    client.allow_rebills("O1")
    client.send("subid=c0&status=sale&payout=10&tid=a&cost=4&from=net")
    client.send("subid=c0&status=sale&payout=1.000001&tid=b&from=net")
    client.send("subid=c1&status=lead&payout=2.5&currency=usd")
    client.clock.forward(days=1)
    client.send("subid=c2&status=rejected&payout=99&currency=xau&cost=0.5&from=other")
    client.send("subid=c3&status=sale&payout=3&currency=pln&from=other")
    return client


NUMBERS = [
    *("clicks", "leads", "sales", "rebills", "rejected", "approval_percent"),
    *("revenue", "hold", "cost", "profit", "roi_percent", "unconverted"),
]


def test_each_figure_means_what_the_help_says(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = call(tracker, capsys)

    assert (ran.status, ran.err) == (0, "")
    assert ran.lines[0].split("\t") == ["day", *NUMBERS]
    assert ran.rows == [
        ["2026-03-01", "1", *["0"] * 4, "", *["0"] * 4, "", ""],
        [
            *("2026-03-02", "5", "1", "1", "1", "0", "66.67"),
            *("11.000001", "2.5", "4", "7.000001", "175", ""),
        ],
        [
            *("2026-03-03", "0", "0", "1", "0", "1", "50", *["0"] * 4, ""),
            "3 PLN, cost 0.5 XAU",
        ],
        [
            *("total", "6", "1", "2", "1", "1", "60", "11.000001", "2.5", "4", "7.000001", "175"),
            "3 PLN, cost 0.5 XAU",
        ],
    ]


Wanted = tuple[list[str], list[list[str | None]], list[int | None], list[int]]

# The options, and the keys of the report, their clicks, their sales.
QUESTIONS: list[Wanted] = [
    (["--by", "campaign"], [["C1"], ["C2"]], [4, 2], [2, 0]),
    (["--by", "offer"], [["O1"], ["O2"]], [4, 2], [2, 0]),
    (["--by", "network"], [["net"], [None], ["other"]], [None] * 3, [1, 0, 1]),
    (["--by", "currency"], [["USD"], ["PLN"], ["XAU"]], [None] * 3, [1, 1, 0]),
    (["--by", "sub_id_1"], [["s0"], ["s1"]], [3, 3], [1, 1]),
    (["--by", "sub_id_30"], [[None]], [6], [2]),
    (["--by", "sub_id_2,sub_id_1"], [["x", "s0"], ["x", "s1"]], [3, 3], [1, 1]),
    (
        ["--by", "campaign", "--by", "day"],
        [
            ["C1", "2026-03-01"],
            ["C1", "2026-03-02"],
            ["C1", "2026-03-03"],
            ["C2", "2026-03-02"],
            ["C2", "2026-03-03"],
        ],
        [1, 3, 0, 2, 0],
        [0, 1, 1, 0, 0],
    ),
    (["--by-click-time"], [["2026-03-01"], ["2026-03-02"]], [1, 5], [1, 1]),
    (["--campaign", "C2", "--by", "offer"], [["O1"]], [2], [0]),
    (["--offer", "O2", "--by", "campaign"], [["C1"]], [2], [0]),
    (["--network", "net", "--by", "campaign"], [["C1"]], [None], [1]),
    (["--since", "2026-03-03"], [["2026-03-03"]], [0], [1]),
    (["--until", "2026-03-02", "--by", "campaign"], [["C1"], ["C2"]], [4, 2], [1, 0]),
    (["--until", "2026-03-01T12:00"], [], [], []),
    (["--limit", "1"], [["2026-03-03"]], [0], [1]),
    (["--limit", "1", "--by", "campaign"], [["C1"]], [4], [2]),
]


def test_it_adds_up_by_what_is_asked_for(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, keys, clicks, sales in QUESTIONS:
        *lines, total = call(tracker, capsys, *words, "--json").objects

        width = len(keys[0]) if keys else 1
        assert [list(line.values())[:width] for line in lines] == keys, words
        assert [line["clicks"] for line in lines] == clicks, words
        assert [line["sales"] for line in lines] == sales, words
        assert [line["total"] for line in (*lines, total)] == [False] * len(lines) + [True]
        if "--limit" not in words:
            assert total["sales"] == sum(sales), words


def test_json_tells_what_waits_for_a_rate_by_currency(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, total = call(tracker, capsys, "--json").objects

    assert total["unconverted"] == {"PLN": "3"}
    assert total["unconverted_cost"] == {"XAU": "0.5"}
    assert total["revenue"] == "11.000001"


def test_csv_has_no_total_and_no_formulas(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", campaign="=1+1")
    client.send("subid=c1&payout=-3")

    rows = list(csv.DictReader(io.StringIO(call(client, capsys, "--by", "campaign", "--csv").out)))

    assert [(row["campaign"], row["revenue"]) for row in rows] == [("'=1+1", "-3")]


def test_sums_near_the_limit_are_exact(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    call_rate = cli.main(
        ["rates", "set", "BTC", "999", "--config", str(client.directory / "config.ini.php")]
    )
    capsys.readouterr()
    for number in range(12):
        client.click(f"c{number}")
        client.send(f"subid=c{number}&payout=999999999.999999&currency=btc")

    *_, total = call(client, capsys, "--json").objects

    assert call_rate == 0
    # Twelve of these in micros are more than 64 bits hold.
    assert total["revenue"] == "11987999999999.988012"


@pytest.mark.parametrize(
    ("moment", "unit", "zone", "end", "label"),
    [
        ("2026-03-28T23:30:00.000Z", "day", "Europe/Berlin", "2026-03-29T22:00", "2026-03-29"),
        ("2026-10-24T22:00:00.000Z", "day", "Europe/Berlin", "2026-10-25T23:00", "2026-10-25"),
        # Midnight itself is left out, and comes twice.
        ("2026-03-08T06:00:00.000Z", "day", "America/Havana", "2026-03-09T04:00", "2026-03-08"),
        ("2026-11-01T05:30:00.000Z", "day", "America/Havana", "2026-11-02T05:00", "2026-11-01"),
        # A day that was not.
        ("2011-12-30T09:59:00.000Z", "day", "Pacific/Apia", "2011-12-30T10:00", "2011-12-29"),
        ("2026-10-25T00:30:00.000Z", "hour", "Europe/Berlin", "2026-10-25T01:00", "02:00+02:00"),
        ("2026-10-25T01:30:00.000Z", "hour", "Europe/Berlin", "2026-10-25T02:00", "02:00+01:00"),
        ("2026-03-29T01:00:00.000Z", "hour", "Europe/Berlin", "2026-03-29T02:00", "03:00+02:00"),
        ("2026-03-02T12:10:00.000Z", "hour", "Asia/Kathmandu", "2026-03-02T12:15", "17:00+05:45"),
        ("2026-03-02T12:20:00.000Z", "hour", "Asia/Kolkata", "2026-03-02T12:30", "17:00+05:30"),
    ],
)
def test_days_and_hours_begin_where_the_zone_says(
    moment: str, unit: str, zone: str, end: str, label: str
) -> None:
    bucket = find_bucket(moment, unit, ZoneInfo(zone))

    assert bucket.end == f"{end}:00.000Z"
    assert str(getattr(bucket.labels, unit)).endswith(label)


STEPS = [datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days=15 * n) for n in range(730)]


def find_change(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """Find when the clocks of a zone change, to the second."""
    before = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


def test_every_hour_and_day_of_every_zone_ends_behind_what_is_in_it() -> None:
    seen = set()
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        offsets = tuple(step.astimezone(zone).utcoffset() for step in STEPS)
        if offsets in seen:
            continue
        seen.add(offsets)
        for n, (before, after) in enumerate(itertools.pairwise(offsets)):
            if before != after:
                change = find_change(STEPS[n], STEPS[n + 1], zone)
                for minutes in (-61, -31, -1, 0, 1, 29, 59):
                    at = change + timedelta(minutes=minutes, milliseconds=1)
                    check_bucket(at, "hour", zone)
                    check_bucket(at, "day", zone)
    assert len(seen) > 100


def check_bucket(at: datetime, unit: str, zone: ZoneInfo) -> None:
    """Check that a bucket ends after a time, and where the name of the day or hour changes."""
    end = datetime.fromisoformat(find_bucket(utc_text(at), unit, zone).end)
    said = (str(zone), at, unit, end)
    assert at < end <= at + timedelta(hours=1 if unit == "hour" else 49), said
    length = 10 if unit == "day" else 13
    last = (end - timedelta(milliseconds=1)).astimezone(zone)
    assert last.isoformat()[:length] == at.astimezone(zone).isoformat()[:length], said
    after = end.astimezone(zone)
    changed = after.utcoffset() != last.utcoffset()
    assert changed or after.isoformat()[:length] != last.isoformat()[:length], said


@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("Australia/Lord_Howe", "2026-04-04T15:00"),  # half an hour
        ("America/St_Johns", "2006-10-29T02:31"),  # a minute past midnight
        ("America/Havana", "2026-11-01T05:00"),
        ("Antarctica/Troll", "2026-10-25T01:00"),  # two hours
        ("Pacific/Apia", "2011-12-30T10:00"),  # a whole day
        ("Asia/Pyongyang", "2018-05-04T15:00"),
    ],
)
def test_a_report_ends_whatever_the_clocks_do(client: Client, zone: str, change: str) -> None:
    client.get("/health")
    client.write(
        "INSERT INTO clicks (subid, clicked_at)"
        " WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 95)"
        f" SELECT i, strftime('%Y-%m-%dT%H:%M:%fZ', '{change}', (5 * i - 240) || ' minutes') FROM n"
    )

    for unit in ("hour", "day"):
        ran = call_process(
            client.directory, "report", "--by", unit, "--tz", zone, "--json", "--limit", "0"
        )
        *lines, total = ran.objects
        assert sum(line["clicks"] for line in lines) == total["clicks"] == 96
        names = [line[unit] for line in lines]
        assert len(names) == len(set(names))


def test_every_quarter_of_a_year_of_hours_counts_once(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/health")
    client.write(
        "INSERT INTO clicks (subid, clicked_at)"
        " WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 143)"
        " SELECT i, strftime('%Y-%m-%dT%H:%M:%fZ', '2026-10-24T12:00', (15 * i) || ' minutes')"
        " FROM n"
    )

    zoned = ("--json", "--tz", "Europe/Berlin")
    *days, total = call(client, capsys, *zoned).objects
    *hours, _ = call(client, capsys, "--by", "hour", *zoned).objects
    sunday = call(client, capsys, *zoned, "--since", "2026-10-25", "--until", "2026-10-25").objects

    # The clocks go back on the 25th: it has 25 hours.
    assert [(day["day"], day["clicks"]) for day in days] == [
        *(("2026-10-24", 40), ("2026-10-25", 100), ("2026-10-26", 4)),
    ]
    assert total["clicks"] == sunday[-1]["clicks"] + 44 == 144
    assert {hour["clicks"] for hour in hours} == {4}
    assert [hour["hour"][11:] for hour in hours[11:15]] == [
        *("01:00+02:00", "02:00+02:00", "02:00+01:00", "03:00+01:00"),
    ]


def test_clicks_of_other_programs_with_a_time_that_is_none_are_counted(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.write("INSERT INTO clicks (subid, clicked_at) VALUES ('x', '2026-99-99T12:00:00Z')")

    *lines, total = call(tracker, capsys, "--json").objects

    assert (lines[-1]["day"], lines[-1]["clicks"], total["clicks"]) == (None, 1, 7)


def test_sub_ids_that_other_programs_wrote_as_numbers_are_text(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/health")
    client.write("""INSERT INTO clicks (subid, sub_ids) VALUES ('c1', '{"sub_id_1": 5}')""")
    client.write("""INSERT INTO clicks (subid, sub_ids) VALUES ('c2', '{"sub_id_1": {"a": 1}}')""")
    client.send("subid=c1&payout=1")

    *lines, _ = call(client, capsys, "--by", "sub_id_1", "--json").objects

    assert [(line["sub_id_1"], line["clicks"], line["sales"]) for line in lines] == [
        ("5", 1, 1),
        ('{"a":1}', 1, 0),
    ]


def test_a_terminal_shows_bars_cents_and_what_is_missing(tracker: Client) -> None:
    ran = call_on_terminal(tracker.directory, "report", columns=120, NO_COLOR="1")

    lines = [line.rstrip() for line in without_styles(ran.out).splitlines()]
    assert lines[2].endswith("█" * 12)
    assert "11.00" in lines[2]
    assert lines[4].startswith("total")
    assert lines[-2] == "By conversion time, UTC; USD."
    assert lines[-1].endswith("(`postback rates set`): 3 PLN, cost 0.5 XAU.")


@pytest.mark.parametrize(("columns", "missing"), [(80, "ROI %"), (60, "rejected")])
def test_a_narrow_terminal_leaves_out_what_matters_least(
    tracker: Client, columns: int, missing: str
) -> None:
    ran = call_on_terminal(tracker.directory, "report", columns=columns, NO_COLOR="1")

    lines = without_styles(ran.out).splitlines()
    assert lines[0].split()[:2] == ["day", "clicks"]
    assert max(map(len, lines[:-2])) <= columns
    assert any(line.startswith("Columns left out: ") and missing in line for line in lines)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--campaign", "c1"], "no campaign 'c1' is known; the nearest is 'C1'"),
        (["--offer", "zzz"], "no offer 'zzz' is known: see `postback offers list`"),
    ],
)
def test_a_name_that_is_mistyped_is_no_empty_report(
    tracker: Client, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    ran = call(tracker, capsys, *words)

    assert (ran.status, ran.out) == (1, "")
    assert sentence in ran.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--by", "week"], "'week' is none of day, hour, campaign"),
        (["--by", "sub_id_31"], "'sub_id_31' is none of"),
        (["--by", "day,offer", "--by", "campaign"], "at most 2, not day, offer, campaign"),
        (["--tz", "Mars/Base"], "'Mars/Base' is no time zone"),
        (["--since", "soon"], "argument --since: 'soon' is no time"),
        (["--until", "2026-02-30"], "argument --until: '2026-02-30' is no time"),
        (["--plot", "x.gif"], "'x.gif' ends neither with .png nor with .svg"),
        (["--csv", "--json"], "not allowed with"),
    ],
)
def test_what_means_nothing_is_wrong_usage(
    client: Client, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    ran = call(client, capsys, *words)

    assert (ran.status, ran.out) == (2, "")
    assert sentence in ran.err


def test_plot_says_how_to_install_what_draws(
    tracker: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    ran = call(tracker, capsys, "--plot", str(tracker.directory / "x.png"))

    assert ran.status == 1
    assert "run `pip install 'postback[plot]'`" in ran.err
    assert not (tracker.directory / "x.png").exists()


def test_plot_draws_whatever_names_there_are(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for number, name in enumerate(("$5 and $\\frac", "茶\x07", *map(str, range(20)))):
        tracker.click(f"p{number}", campaign=name)
        tracker.send(f"subid=p{number}&payout={90 - number}&from=%24x")
    picture = tracker.directory / "report.svg"

    for by in ("day", "hour,campaign", "campaign", "network,day"):
        ran = call(tracker, capsys, "--by", by, "--plot", str(picture))

        assert (ran.status, ran.err, ran.out) == (0, "", f"Drawn: {picture}\n"), by
        drawn = picture.read_text()
        assert drawn.count("<path") > 10
        assert f"by {by.replace(',', ' and ')}" in drawn
        assert (r">$5 and $\frac</text>" in drawn) == ("campaign" in by)


def test_plot_draws_a_png_and_reports_a_directory_that_is_not_there(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")

    drawn = call(tracker, capsys, "--plot", str(tracker.directory / "report.PNG"))
    lost = call(tracker, capsys, "--plot", str(tracker.directory / "no" / "report.png"))

    assert drawn.status == 0
    assert Path(tracker.directory / "report.PNG").read_bytes().startswith(b"\x89PNG")
    assert lost.status == 1
    assert "No such file or directory" in lost.err
