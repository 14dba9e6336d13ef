"""`postback import --caught`: what nginx wrote down while the receiver was away, booked.

The lines are written here as nginx writes them; `test_nginx_caught.py` has nginx write them.
"""

import gzip
import json
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Ran, call_process
from conftest import CLICK_KEY, FORM, NOON, PIXEL_KEY, POSTBACK_KEY, Client, ReceiverWith

from postbackd.bulk.caught_file import LONGEST_LINE_BYTES, tag_key
from postbackd.cli import entry as cli
from postbackd.reports import anomalies

TAGS = {"postback": POSTBACK_KEY, "postback.gif": PIXEL_KEY, "click": CLICK_KEY}
AT_ELEVEN = NOON - timedelta(hours=1)


def write_line(query: str = "", *, at: datetime = AT_ELEVEN, **changes: str) -> bytes:
    """Write a request as nginx does, except `escape=json` of letters beyond ASCII."""
    name = changes.pop("asked", "postback")
    key = changes.pop("under", TAGS[name])
    said = {
        "time": at.isoformat(timespec="seconds"),
        # nginx tried the receiver for a quarter of a second.
        "ended": f"{at.timestamp() + 0.25:.3f}",
        "took": "0.250",
        "status": "503",
        "upstream": "502",
        "asked": name,
        "tail": "",
        "key": tag_key(key.encode()),
        "address": "198.51.100.7",
        "method": "GET",
        "query": query,
        "subid": "",
        "_subid": "",
        "type": "",
        "encoding": "",
        "length": "",
        "coding": "",
        "body": "",
        **changes,
    }
    line = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    return line.encode("latin-1") + b"\n"


def write_post(query: str, body: str, **changes: str) -> bytes:
    """Write a POST with a form as nginx does."""
    about = {"type": FORM, **changes}
    return write_line(query, method="POST", length=str(len(body)), body=body, **about)  # type: ignore[arg-type]


class Importer:
    """Imports into the database of a client, in this process."""

    def __init__(self, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
        """Remember the client, and the capture of the command's output."""
        self.client = client
        self._capsys = capsys

    def take(self, content: bytes, *words: str) -> Ran:
        """Import a file with this content."""
        log = self.client.directory / "caught.log"
        log.write_bytes(content)
        return self.call(str(log), *words)

    def call(self, *words: str) -> Ran:
        """Call the command."""
        config = str(self.client.directory / "config.ini.php")
        status = cli.main(["import", "--caught", *words, "--config", config])
        return Ran(status, *self._capsys.readouterr())

    def verdicts(self, content: bytes, *words: str) -> list[str]:
        """Import a file with this content; returns each line's verdict."""
        return [told["verdict"] for told in self.take(content, "--json", *words).objects]


@pytest.fixture
def caught(client: Client, capsys: pytest.CaptureFixture[str]) -> Importer:
    """An import into a tracker with the click c1, which came at ten."""
    client.clock.forward(hours=-2)
    client.click("c1")
    client.clock.forward(hours=2)
    return Importer(client, capsys)


def test_times_are_shown_in_the_zone_and_stored_in_utc(caught: Importer) -> None:
    ran = caught.take(write_line("subid=c1"), "--tz", "Europe/Berlin")

    assert ran.rows[0][1] == "2026-03-02T12:00:00.000+01:00"
    assert caught.client.postbacks()[0].received_at == AT_ELEVEN


def test_a_postback_is_booked_as_if_it_had_got_through(caught: Importer) -> None:
    ran = caught.take(write_line("subid=c1&payout=12.50&tid=t1&from=net"))

    [conversion] = caught.client.conversions("c1")
    assert (conversion.status, conversion.payout, conversion.network) == ("sale", "12.5", "net")
    assert conversion.created_at == conversion.sale_at == AT_ELEVEN
    [postback] = caught.client.postbacks()
    assert (postback.source, postback.method) == ("caught", "GET")
    assert (postback.remote_addr, postback.received_at) == ("198.51.100.7", AT_ELEVEN)
    assert ran.status == 0
    assert ran.rows == [
        [
            f"{caught.client.directory}/caught.log:1",
            "2026-03-02T11:00:00.000Z",
            *("c1", "", "12.5 USD", "recorded", postback.reason),
        ]
    ]
    assert "1 requests: 1 recorded; 0 not in the database" in ran.err


def test_twice_changes_nothing(caught: Importer) -> None:
    lines = (
        write_line("subid=c1&status=lead&tid=t1")
        + write_line("subid=c1&payout=5&tid=t1", at=AT_ELEVEN + timedelta(seconds=9))
        + write_line("subid=c1&payout=5&tid=t1", at=AT_ELEVEN + timedelta(seconds=19))
        + write_line("subid=c1&status=odd", at=AT_ELEVEN + timedelta(seconds=29))
    )

    assert caught.verdicts(lines) == ["recorded", "updated", "repeated", "unmapped"]
    once = caught.client.snapshot(), caught.client.postbacks()
    assert caught.verdicts(lines) == ["repeated"] * 4

    assert (caught.client.snapshot(), caught.client.postbacks()) == once


@pytest.mark.parametrize("repeats", ["ignore", "update"])
def test_what_the_sender_has_sent_again_since_is_not_booked_twice(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str], repeats: str
) -> None:
    client = receiver_with(repeats=repeats)
    client.click("c1")
    client.send("subid=c1&payout=10")
    client.clock.forward(minutes=1)
    client.send("subid=c1&payout=12")
    before = client.snapshot(), client.postbacks()

    ran = Importer(client, capsys).take(write_line("subid=c1&payout=10"), "--json")

    assert [told["verdict"] for told in ran.objects] == ["repeated"]
    assert ran.objects[0]["reason"].startswith(
        "the same request was received at 2026-03-02T12:00:00"
    )
    assert (client.snapshot(), client.postbacks()) == before


def test_what_is_older_overrules_nothing_that_came_later(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with(repeats="update", unreject="yes")
    for subid in ("c1", "c2", "c3"):
        client.click(subid)
    client.send("subid=c1&payout=12")
    client.send("subid=c2&payout=12")
    client.clock.forward(minutes=1)
    client.send("subid=c2&status=rejected")
    client.send("subid=c3&payout=12")
    before = client.snapshot()

    verdicts = Importer(client, capsys).verdicts(
        write_line("subid=c1&payout=10")
        + write_line("subid=c2&payout=10")
        + write_line("subid=c3&status=rejected")
    )

    assert verdicts == ["repeated", "refused", "left"]
    assert client.snapshot() == before


def test_what_was_sent_before_it_is_not_what_was_sent_again(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with(repeats="update")
    client.clock.forward(hours=-2)
    client.click("c1")
    for payout in (10, 12):
        client.send(f"subid=c1&payout={payout}")

    assert Importer(client, capsys).verdicts(write_line("subid=c1&payout=10")) == ["updated"]
    assert [c.payout for c in client.conversions()] == ["10"]


def test_an_older_rejection_is_the_last_word_all_the_same(caught: Importer) -> None:
    caught.client.send("subid=c1&payout=5")
    caught.client.clock.forward(minutes=1)

    assert caught.verdicts(write_line("subid=c1&status=rejected")) == ["updated"]
    assert [c.status for c in caught.client.conversions()] == ["rejected"]


def test_an_older_lead_and_a_later_sale_end_as_a_sale(caught: Importer) -> None:
    caught.client.send("subid=c1&status=lead")

    assert caught.verdicts(write_line("subid=c1&payout=5")) == ["updated"]
    assert [c.status for c in caught.client.conversions("c1")] == ["sale"]


def test_another_body_is_another_postback(caught: Importer) -> None:
    lines = [write_post("subid=c1&status=odd", body, type="text/xml") for body in ("<a/>", "<b/>")]
    said = "SELECT CAST(body AS TEXT) AS body FROM postbacks"

    assert caught.verdicts(lines[0]) == ["unmapped"]
    assert caught.verdicts(lines[1] + lines[0]) == ["unmapped", "repeated"]
    assert [row["body"] for row in caught.client.rows(said)] == ["<a/>", "<b/>"]


def test_what_has_no_click_is_listed_and_not_written(caught: Importer) -> None:
    ran = caught.take(write_line("subid=c9&payout=5") + write_line("payout=5"))

    assert ran.status == 1
    assert [row[5] for row in ran.rows] == ["left", "left"]
    assert "its click is not known" in ran.rows[0][6]
    assert "no usable click id" in ran.rows[1][6]
    assert caught.client.postbacks() == []
    assert "2 requests: 2 left; 2 not in the database" in ran.err


def test_what_has_no_click_is_kept_where_that_is_asked_for(caught: Importer) -> None:
    lines = write_line("subid=c9&payout=5") + write_line("payout=5")

    assert caught.verdicts(lines, "--park") == ["parked", "invalid"]
    assert caught.verdicts(lines, "--park") == ["repeated", "repeated"]
    # The clock of the import is the machine's, and the postback is some months old.
    caught.client.click("c9")

    [conversion] = caught.client.conversions("c9")
    assert (conversion.payout, conversion.created_at) == ("5", AT_ELEVEN)


def test_without_a_click_nothing_is_booked_where_the_receiver_accepts_all(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with(unknown_subid="accept")
    client.get("/health")
    importer = Importer(client, capsys)

    assert importer.verdicts(write_line("subid=c9&payout=5")) == ["left"]
    assert importer.verdicts(write_line("subid=c9&payout=5"), "--park") == ["recorded"]


def test_a_form_in_the_body_and_a_cookie_are_read(caught: Importer) -> None:
    caught.client.click("c2")
    lines = write_post("subid=c1", "payout=7&tid=caf%C3%A9&x=\u00e9") + write_line(
        "payout=8", subid="c2"
    )

    assert caught.verdicts(lines) == ["recorded", "recorded"]
    assert [c.payout for c in caught.client.conversions()] == ["7", "8"]
    assert [c.tid for c in caught.client.conversions()] == ["café", ""]


def test_a_click_that_was_caught_is_taken_in_first(caught: Importer) -> None:
    caught.client.send("subid=c7&payout=3")
    lines = (
        write_line("subid=c6&payout=5", at=AT_ELEVEN)
        + write_line("subid=c6&offer=O6", at=AT_ELEVEN + timedelta(seconds=1), asked="click")
        + write_line("subid=c7&offer=O7", asked="click")
        + write_line("offer=O8", asked="click")
    )

    assert caught.verdicts(lines) == ["recorded", "recorded", "left", "recorded"]
    assert [(c.subid, c.offer) for c in caught.client.conversions()] == [("c7", "O7"), ("c6", "O6")]
    made = caught.client.rows("SELECT created_at FROM clicks WHERE subid = 'c6'")
    assert made == [{"created_at": "2026-03-02T11:00:01.000Z"}]
    assert caught.verdicts(lines) == ["repeated", "repeated", "repeated", "left"]


def test_a_click_that_was_caught_adds_what_is_not_known_and_changes_nothing_else(
    caught: Importer,
) -> None:
    caught.client.click("c2", offer="later", sub_id_1="later", source="later")
    said = "campaign=C&source=earlier&external_id=e&cost=0.5"
    line = write_line(f"subid=c2&offer=earlier&{said}&sub_id_1=earlier&sub_id_2=b", asked="click")

    assert caught.verdicts(line) == ["updated"]
    assert caught.verdicts(line) == ["repeated"]
    caught.client.send("subid=c2&status=lead")
    [conversion] = caught.client.conversions("c2")
    assert (conversion.offer, conversion.campaign) == ("later", "C")
    assert conversion.sub_ids == {"sub_id_1": "later", "sub_id_2": "b"}
    sql = "SELECT source, external_id, click_cost_micros FROM clicks WHERE subid = 'c2'"
    assert caught.client.rows(sql) == [
        {"source": "later", "external_id": "e", "click_cost_micros": 500000}
    ]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("postback", "a-strangers-key"),
        ("postback", CLICK_KEY),
        ("postback", PIXEL_KEY),
        ("click", POSTBACK_KEY),
        ("postback.gif", CLICK_KEY),
    ],
)
def test_what_came_under_a_key_that_opens_nothing_is_not_booked(
    caught: Importer, name: str, key: str
) -> None:
    ran = caught.take(write_line("subid=c1&status=lead", asked=name, under=key), "--park")

    assert ran.status == 1
    assert "its key is none" in ran.rows[0][6]
    assert caught.client.postbacks() == []


def test_an_old_key_counts_on_the_days_for_which_it_was_good(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with(postback_key_old="former-key-of-ours until 2026-03-02")
    client.click("c1")
    lines = write_line("subid=c1&tid=a", under="former-key-of-ours") + write_line(
        "subid=c1&tid=b", under="former-key-of-ours", at=NOON + timedelta(hours=12)
    )

    assert Importer(client, capsys).verdicts(lines) == ["recorded", "left"]


def test_the_pixels_key_is_good_for_leads_only(caught: Importer) -> None:
    def verdicts_of(query: str, key: str) -> list[str]:
        return caught.verdicts(write_line(query, asked="postback.gif", under=key), "--park")

    assert verdicts_of("subid=c1&status=sale", PIXEL_KEY) == ["left"]
    assert verdicts_of("subid=c1&status=odd", PIXEL_KEY) == ["left"]
    assert verdicts_of("subid=c9&status=sale", PIXEL_KEY) == ["left"]
    assert caught.client.postbacks() == []
    assert verdicts_of("subid=c1&status=lead", PIXEL_KEY) == ["recorded"]
    assert verdicts_of("subid=c1&status=sale", POSTBACK_KEY) == ["updated"]


def test_a_dry_run_says_the_same_and_writes_nothing(caught: Importer) -> None:
    caught.client.send("subid=c1&status=lead&tid=t0")
    lines = (
        write_line("subid=c1&status=lead&tid=t0")
        + write_line("subid=c6&payout=5")
        + write_line("subid=c6", asked="click")
        + write_line("subid=c9")
    )
    before = caught.client.snapshot(), caught.client.postbacks()

    dry = caught.take(lines, "--json", "--dry-run")

    assert (caught.client.snapshot(), caught.client.postbacks()) == before
    assert "; nothing was written" in dry.err
    assert [told["conversion_id"] for told in dry.objects] == [None] * 4
    wet = caught.take(lines, "--json")
    assert [told["verdict"] for told in dry.objects] == [told["verdict"] for told in wet.objects]
    assert [told["verdict"] for told in wet.objects] == ["repeated", "recorded", "recorded", "left"]


def test_files_are_taken_in_the_order_of_their_requests(caught: Importer) -> None:
    later = caught.client.directory / "caught.log"
    later.write_bytes(write_line("subid=c1&payout=5&tid=t", at=AT_ELEVEN + timedelta(minutes=1)))
    earlier = caught.client.directory / "caught.log.2.gz"
    earlier.write_bytes(gzip.compress(write_line("subid=c1&status=lead&tid=t")))
    (caught.client.directory / "caught.log.1").write_bytes(b"")

    ran = caught.call(*sorted(map(str, caught.client.directory.glob("caught.log*"))), "--json")

    assert [told["verdict"] for told in ran.objects] == ["recorded", "updated"]
    assert [told["file"] for told in ran.objects] == [str(earlier), str(later)]
    [conversion] = caught.client.conversions("c1")
    assert conversion.previous_status == "lead"


@pytest.mark.parametrize("is_packed", [False, True])
def test_standard_input_is_read(caught: Importer, *, is_packed: bool) -> None:
    line = write_line("subid=c1&payout=5")
    stdin = gzip.compress(line) if is_packed else line

    ran = call_process(caught.client.directory, "import", "--caught", "-", "--json", stdin=stdin)

    assert [told["file"] for told in ran.objects] == ["-"]
    assert len(caught.client.conversions("c1")) == 1


GOOD = write_line("subid=c1&tid=good")
TORN = write_line("subid=c1&tid=torn")[:99]
FLAWS = {
    "a torn last line": (GOOD + TORN, "cut off"),
    "a line behind a torn one": (TORN + GOOD, "cut off"),
    "a line torn at once": (b'{"ti' + GOOD, "no line of the log in which"),
    "another log": (b"203.0.113.9 [2026-03-02] GET /***/postback 503\n" + GOOD, "no line of"),
    "JSON of others": (b'{"time":"x"}\n' + GOOD, "no line of the log in which"),
    "no object": (b"[]\n" + GOOD, "no line of the log in which"),
    "a number for a text": (GOOD.replace(b'"c', b"1") + GOOD, "cut off"),
    "deep JSON": (b'{"time":"x","y":' + b"[" * 200_000 + b"\n" + GOOD, "cut off"),
    "no time": (write_line("subid=c1", ended="soon") + GOOD, "no line of the log in which"),
    "a long line": (b"x" * (LONGEST_LINE_BYTES * 2 + 9) + b"\n" + GOOD, "longer than"),
    "a body that was not read": (write_line("subid=c1", length="9") + GOOD, "body"),
    "chunks that were not read": (write_line("subid=c1", coding="chunked") + GOOD, "body"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_is_no_request_is_reported_and_the_rest_is_booked(caught: Importer, flaw: str) -> None:
    content, reason = FLAWS[flaw]

    ran = caught.take(content, "--json")

    told = {line["verdict"]: line["reason"] for line in ran.objects}
    assert set(told) == {"recorded", "skipped"}
    assert reason in told["skipped"]
    assert ran.status == 1
    assert [c.tid for c in caught.client.conversions("c1")] == ["good"]


def test_a_packed_file_that_is_cut_off_is_reported(caught: Importer) -> None:
    packed = gzip.compress(b"".join(write_line(f"subid=c1&tid={n}") for n in range(999)))

    ran = caught.take(packed[:-20], "--json")

    assert ran.objects[-1]["verdict"] == "skipped"
    assert "cannot be unpacked" in ran.objects[-1]["reason"]
    assert len(caught.client.conversions("c1")) > 0


def test_a_last_line_without_its_end_is_whole(caught: Importer) -> None:
    assert caught.verdicts(write_line("subid=c1").rstrip()) == ["recorded"]


def test_a_key_in_the_query_is_neither_kept_nor_shown(caught: Importer) -> None:
    ran = caught.take(write_line(f"subid=c1&ref=http://h/{POSTBACK_KEY}/postback"), "--json")

    assert POSTBACK_KEY not in ran.out + ran.err
    assert [p.query for p in caught.client.postbacks()] == ["subid=c1&ref=http://h/***/postback"]


def test_an_address_is_cut_where_that_is_asked_for(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with(anonymize_ip="yes")
    client.click("c1")

    Importer(client, capsys).take(write_line("subid=c1"))

    assert [p.remote_addr for p in client.postbacks()] == ["198.51.100.0"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--caught", "a", "--network", "n"), "--network cannot be used with --caught"),
        (("a", "--park"), "--park goes with --caught only"),
        (("a", "--tz", "UTC"), "--tz goes with --caught only"),
        (("a", "b"), "several files go with --caught only"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    ran = call_process(tmp_path, "import", *words)

    assert ran.status == 2
    assert says in ran.err


def test_standard_input_comes_alone(caught: Importer) -> None:
    ran = caught.call("-", "file")

    assert ran.status == 1
    assert "zcat -f" in ran.err


def test_a_tag_is_the_key_as_nginx_sees_it() -> None:
    """Tags computed by nginx 1.22, which merges repeated slashes."""
    assert tag_key(b"k") == "d9c87fd0ff"
    assert tag_key(b"s3cret/key-of the-tests") == "eac1abbcde"
    assert tag_key(b"s3cret//key-of the-tests/") == "eac1abbcde"


def test_log_and_check_know_what_was_caught(caught: Importer) -> None:
    caught.client.send("subid=c1&tid=now")
    caught.take(write_line("subid=c1&payout=5&from=net"))

    ran = call_process(caught.client.directory, "log", "--source", "caught", "--json")

    rows: list[dict[str, Any]] = ran.objects
    assert [row["received_at"] for row in rows] == ["2026-03-02T11:00:00.000Z"]
    check = call_process(caught.client.directory, "check", "--json")
    assert any("the last one came at 2026-03-02T12:00:00.000Z" in line for line in check.lines)
    with closing(sqlite3.connect(caught.client.database)) as db:
        seen = anomalies.look(db, NOON)
    assert [(each.network, each.at) for each in seen if each.network] == [("net", AT_ELEVEN)]
