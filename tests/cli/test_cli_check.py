"""`postback check`: its findings, and what they say to do."""

import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_calls import Ran
from conftest import Client, ReceiverWith, write_config

from postbackd.cli import entry as cli
from postbackd.cli.commands import check
from postbackd.db.rows import utc_text
from postbackd.db.sqlite import integrity
from storage import open_database

GOOD_KEY = "Yae2ohph9Ahm3eiG"


@pytest.fixture
def good(receiver_with: ReceiverWith) -> Client:
    """A tracker without problems."""
    client = receiver_with(
        postback_key=GOOD_KEY, click_key="ieS8phah5Quoh7ai", public_url="https://t.example"
    )
    (client.directory / "config.ini.php").chmod(0o600)
    client.clock.now = datetime.now(UTC)
    client.get("/ieS8phah5Quoh7ai/click?subid=c1")
    client.get(f"/{GOOD_KEY}/postback?subid=c1&status=lead&payout=1")
    return client


def call(
    home: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, list[str]]]:
    """Run the check; returns its status, and the levels and messages by subject."""
    status = cli.main(["check", "--json", *options, "--config", str(home / "config.ini.php")])
    ran = Ran(status, *capsys.readouterr())
    assert ran.err == ""
    found: dict[str, list[str]] = {}
    for finding in ran.objects:
        found.setdefault(finding["check"], []).append(f"{finding['level']}: {finding['message']}")
    return status, found


def send(client: Client, query: str) -> None:
    client.get(f"/{GOOD_KEY}/postback?{query}")


def test_a_tracker_in_order_has_no_problem(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = call(good.directory, capsys)

    assert status == 0
    assert {message.partition(":")[0] for said in found.values() for message in said} == {"ok"}
    assert list(found) == [
        *("config", "key", "files", "database", "currency", "integrity", "disk"),
        *("postbacks", "parked", "unmapped", "refused", "silence", "trend", "rates"),
    ]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("sh0rtkey", "postback_key is shorter than 16 characters"),
        ("Your_Postback_Key", "postback_key is a key from an example"),
        ("xyxyxyxyxyxyxyxyxyxy", "postback_key repeats a few characters"),
    ],
)
def test_a_key_that_can_be_guessed_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, sentence: str
) -> None:
    write_config(tmp_path, {"postback_key": key})

    status, found = call(tmp_path, capsys)

    assert status == 1
    assert sentence in found["key"][0]
    assert "run `postback key rotate`" in found["key"][0]
    assert key not in str(found)


def test_an_old_key_near_its_end_is_a_warning(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    soon = datetime.now(UTC).date() + timedelta(days=2)
    write_config(
        good.directory, {"postback_key": GOOD_KEY, "postback_key_old": f"older until {soon}"}
    )

    assert f"warning: an old key ends with {soon}" in call(good.directory, capsys)[1]["key"][2]


def test_an_old_key_is_reported_with_its_last_use(
    good: Client, receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"postback_key": GOOD_KEY, "postback_key_old": "older, oldest"}
    client = receiver_with(directory=good.directory, **settings)
    client.clock.now = datetime.now(UTC) - timedelta(days=3, hours=1)
    client.get("/older/postback")
    client.receiver.close()

    found = call(good.directory, capsys)[1]["key"]

    assert "ok: an old key: last used 3 days ago; do all networks have the new one?" in found
    assert "ok: an old key: no use of it has been recorded" in found


def test_what_other_users_may_read_is_a_problem(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    (good.directory / "config.ini.php").chmod(0o644)
    good.database.chmod(0o604)

    status, found = call(good.directory, capsys)

    assert status == 1
    assert [message.startswith("problem: every user") for message in found["files"]] == [True] * 2


def test_a_directory_that_others_may_write_is_a_problem(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    good.directory.chmod(0o777)
    status, found = call(good.directory, capsys)
    # With the sticky bit, as in /tmp, users cannot replace files of others.
    good.directory.chmod(0o1777)
    status_of_sticky, _ = call(good.directory, capsys)

    assert (status, status_of_sticky) == (1, 0)
    assert "may replace files in" in found["files"][0]


def test_a_config_says_which_line_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, {})
    path.write_text(path.read_text().replace("[postback]", "[postback]\npark_days = soon"))

    status, found = call(tmp_path, capsys)

    assert status == 1
    assert "problem: " in found["config"][0]
    assert "line " in found["config"][0]


def test_an_unknown_key_draws_a_warning_with_its_line(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    path = good.directory / "config.ini.php"
    path.write_text(path.read_text() + 'sorce = "ecb"\n')

    status, found = call(good.directory, capsys)

    assert status == 0
    assert "the nearest known key is [rates] source" in found["config"][0]


def test_no_config_and_no_database_are_reported_with_their_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = call(tmp_path, capsys)
    assert status == 1
    assert str(tmp_path / "config.ini.php") in found["config"][0]

    write_config(tmp_path, {})
    status, found = call(tmp_path, capsys)
    assert status == 1
    assert str(tmp_path / "postback.db") in found["database"][0]


def test_a_damaged_database_is_a_problem(good: Client, capsys: pytest.CaptureFixture[str]) -> None:
    good.receiver.close()
    with open(good.database, "r+b") as file:
        file.seek(4096 * 4)
        file.write(os.urandom(4096 * 3))

    status, found = call(good.directory, capsys)

    assert status == 1
    assert "`postback restore FILE`" in str(found)


def test_another_currency_is_a_problem(good: Client, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(good.directory, {"postback_key": GOOD_KEY, "currency": "EUR"})

    status, found = call(good.directory, capsys)

    assert status == 1
    assert "has its amounts in USD, the config says EUR" in found["currency"][0]


@pytest.mark.parametrize(("free", "level"), [(5e9, "ok"), (5e8, "warning"), (5e7, "problem")])
def test_little_disk_space_is_reported_in_time(
    good: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    level: str,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free)))

    status, found = call(good.directory, capsys)

    assert found["disk"][0].startswith(f"{level}: {free / 1e9:.1f} GB free")
    assert status == int(level == "problem")


def test_what_waits_and_what_has_no_meaning_is_counted(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    good.clock.forward(days=-2)
    send(good, "subid=gone&status=lead")
    good.clock.forward(days=2)
    send(good, "subid=gone&status=lead")
    for word in ("paid", "paid", "what%1b"):
        send(good, f"subid=c1&status={word}")

    status, found = call(good.directory, capsys)

    assert status == 0
    assert found["parked"][0].startswith("warning: 2 in all, 1 in 24 hours: waiting")
    assert "3 in all, 3 in 24 hours" in found["unmapped"][0]
    assert "paid (2), what\x1b (1)" in found["unmapped"][0]


def test_what_was_settled_is_not_counted(good: Client, capsys: pytest.CaptureFixture[str]) -> None:
    send(good, "subid=later&status=lead")
    good.get("/ieS8phah5Quoh7ai/click?subid=later")
    send(good, "subid=c1&status=paid")
    # As a replay settles it, once the URL names the word.
    good.write(
        "UPDATE postbacks SET settled_at = received_at, settled_verdict = 'repeated'"
        " WHERE verdict = 'unmapped'"
    )

    _, found = call(good.directory, capsys)

    assert (found["parked"], found["unmapped"]) == (["ok: none"], ["ok: none"])


def test_conversions_that_wait_for_a_rate_are_a_problem(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    good.get("/ieS8phah5Quoh7ai/click?subid=c2")
    send(good, "subid=c2&payout=1&currency=EUR")

    status, found = call(good.directory, capsys)

    assert status == 1
    assert "1 conversions wait for a rate of EUR: run `postback rates set EUR" in found["rates"][0]


@pytest.mark.parametrize(
    ("age", "source", "status"), [(3, "ecb", 0), (4, "ecb", 1), (400, "hand", 0)]
)
def test_old_rates_are_a_problem_unless_set_by_hand(
    good: Client, capsys: pytest.CaptureFixture[str], age: int, source: str, status: int
) -> None:
    write_config(
        good.directory, {"postback_key": GOOD_KEY, "click_key": None, "source": "ecb"}
    ).chmod(0o600)
    moment = datetime.now(UTC) - timedelta(days=age)
    with open_database(good.database, "USD") as storage:
        storage.db.execute(
            "INSERT INTO rates (currency, day, source, rate, created_at) VALUES (?, ?, ?, ?, ?)",
            ("EUR", str(moment.date()), source, "1.1", utc_text(moment)),
        )

    found = call(good.directory, capsys)

    assert found[0] == status
    assert ("days old" in found[1]["rates"][0]) == bool(status)


def add_postbacks(
    client: Client, network: str, minutes_ago: range, verdict: str, word: str
) -> None:
    """Write rows of the postback log, as a network's postbacks do."""
    for minutes in minutes_ago:
        at = utc_text(datetime.now(UTC) - timedelta(minutes=minutes))
        client.write(
            "INSERT INTO postbacks (received_at, source, query, subid, original_status, verdict,"
            " reason, network) VALUES (?, 'http', '', 'x', ?, ?, 'because', ?)",
            *(at, word, verdict, network),
        )


def test_a_network_that_has_fallen_silent_is_reported_with_its_rhythm(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    add_postbacks(good, "quiet net", range(540, 540 + 40 * 30, 40), "repeated", "sale")
    add_postbacks(good, "steady", range(1, 40 * 20, 40), "repeated", "sale")

    status, found = call(good.directory, capsys)

    assert status == 0
    assert found["silence"] == [
        "warning: network 'quiet net' posted every 40 minutes, and has been silent for 9 hours: ask"
        " the network, and check that its Postback URL has a key that is still valid (`postback"
        " key show`)"
    ]
    assert call(good.directory, capsys, "--strict")[0] == 1


def test_what_suddenly_has_no_meaning_is_reported_with_the_word(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    add_postbacks(good, "net 1", range(2000, 2400, 20), "repeated", "sale")
    add_postbacks(good, "net 1", range(5, 100, 10), "unmapped", "approved")

    _, found = call(good.directory, capsys)

    assert found["trend"] == [
        "warning: network 'net 1': 100% of its postbacks in 24 hours are unmapped (0% in the two"
        " weeks before); most have the status 'approved': name it in the network's Postback URL,"
        " see `postback url --help`; see `postback log --verdict unmapped --network 'net 1'"
        " --since 1d`"
    ]


def test_a_disk_that_will_be_full_is_reported_with_the_days_left(
    good: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good.write(
        "INSERT INTO postbacks (received_at, source, query, verdict, reason)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)"
        " SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now', (-i) || ' minutes'), 'import', '',"
        " 'invalid', '' FROM n ORDER BY i DESC"
    )
    good.write("PRAGMA wal_checkpoint(TRUNCATE)")
    growth = good.database.stat().st_size / (4000 / 1440)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9 + 5 * growth))
    monkeypatch.setattr(check, "WARNING_DISK_BYTES", 0)

    assert "enough for" in call(good.directory, capsys)[1]["disk"][0]

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * growth))
    _, found = call(good.directory, capsys)

    assert found["disk"][0].startswith("warning: ")
    assert "enough for 5 days at " in found["disk"][0]
    assert "free some space in time" in found["disk"][0]


# Changes of the tables by hand or by a fault, and what `check --deep` says.
DISAGREEMENTS = {
    "DELETE FROM conversion_history": "without a row of history",
    "UPDATE conversions SET status = 'rejected'": "last row of history says something else",
    "UPDATE conversion_history SET seq = 3": "a gap in their history",
    "INSERT INTO conversion_history (conversion_id, seq, at, change, status, tid) SELECT"
    " conversion_id, 2, at, change, 'rebill', tid FROM conversion_history": "moved as no postback",
    "UPDATE conversions SET payout_micros = payout_micros + 1": "not their amount at their rate",
    "UPDATE conversions SET cost_amount_micros = 5, cost_currency = 'USD', cost_rate = '1',"
    " cost_micros = 6": "cost is not what was sent at its rate",
    "UPDATE conversions SET status = 'sale'": "do not say since when",
    "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason)"
    " VALUES ('2026-03-02', 'http', '', 'c1', 'parked', '')": "parked though their click is there",
}


def test_the_deep_look_finds_what_does_not_agree(
    good: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, found = call(good.directory, capsys, "--deep")
    assert (status, found["agreement"][0][:3]) == (0, "ok:")
    good.write("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = good.database.read_bytes()

    for place, (statement, sentence) in enumerate(DISAGREEMENTS.items()):
        home = tmp_path / str(place)
        home.mkdir()
        write_config(home, {"postback_key": GOOD_KEY}).chmod(0o600)
        (home / "postback.db").write_bytes(whole)
        with open_database(home / "postback.db", "USD") as storage:
            storage.db.execute(statement)

        status, found = call(home, capsys, "--deep")

        assert status == 1, statement
        assert any(sentence in message for message in found["agreement"]), (statement, found)
        assert "agreement" not in call(home, capsys)[1]


def test_a_lost_reference_is_found_by_the_deep_look_only(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    good.write("DELETE FROM clicks")

    assert call(good.directory, capsys)[1]["integrity"] == ["ok: the database is undamaged"]
    found = call(good.directory, capsys, "--deep")[1]["integrity"]

    assert "points to a row of clicks that is not there: put the latest backup" in found[0]


def test_of_a_large_database_the_newest_rows_are_read(
    good: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "SMALL_FILE_BYTES", 0)

    quick = call(good.directory, capsys)[1]["integrity"]
    deep = call(good.directory, capsys, "--deep")[1]["integrity"]

    assert quick == ["ok: the newest rows can be read; `postback check --deep` reads them all"]
    assert deep == ["ok: the database is undamaged"]


@pytest.fixture
def large(
    good: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Client:
    """A tracker whose database counts as large, with an empty write-ahead log."""
    subids = [f"b{number}" for number in range(400)]
    (good.directory / "clicks.csv").write_text("\n".join(["subid", *subids]))
    (good.directory / "lines.csv").write_text("\n".join(f"{subid},1,t" for subid in subids))
    config = str(good.directory / "config.ini.php")
    for words in (("clicks", "import", "clicks.csv"), ("import", "lines.csv")):
        path = str(good.directory / words[-1])
        assert cli.main([*words[:-1], path, "--config", config]) == 0
    capsys.readouterr()
    good.receiver.close()
    monkeypatch.setattr(integrity, "SMALL_FILE_BYTES", 0)
    monkeypatch.setattr(integrity, "NEWEST_ROWS", 20)
    return good


def damage_page(client: Client, tree: str, *, newest: bool) -> None:
    """Overwrite the last or the first leaf of a table or an index."""
    with closing(sqlite3.connect(client.database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [tree]).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    content = bytearray(client.database.read_bytes())
    # Source: https://www.sqlite.org/fileformat.html, "B-tree Pages": interior pages begin with 2 or
    # 5, the last child's number is at 8, the place of the first cell at 12; that begins with its
    # child's number.
    while content[start := (page - 1) * size] in (2, 5):
        first = start + int.from_bytes(content[start + 12 : start + 14])
        at = start + 8 if newest else first
        page = int.from_bytes(content[at : at + 4])
    content[start : start + size] = b"\xff" * size
    client.database.write_bytes(content)


@pytest.mark.parametrize(
    "tree", ["postbacks", "postbacks_by_time", "conversions", "conversion_history", "clicks"]
)
def test_damage_among_the_newest_rows_of_a_large_database_is_a_problem(
    large: Client, capsys: pytest.CaptureFixture[str], tree: str
) -> None:
    damage_page(large, tree, newest=True)

    status, found = call(large.directory, capsys)

    assert status == 1
    assert "integrity" not in found
    assert "malformed" in found["database"][-1]


def test_damage_among_old_rows_of_a_large_database_is_seen_by_a_deep_look_only(
    large: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_page(large, "conversion_history", newest=False)

    quick = call(large.directory, capsys)
    deep = call(large.directory, capsys, "--deep")

    assert quick[1]["integrity"][0].startswith("ok: the newest rows can be read")
    assert (quick[0], deep[0]) == (0, 1)
    assert "`postback restore FILE`" in str(deep[1])


def test_no_key_is_among_the_examples_by_chance() -> None:
    assert all(len(key) >= check.SHORTEST_KEY_BYTES for key in check.EXAMPLE_KEYS)
    assert all(key == key.lower() for key in check.EXAMPLE_KEYS)
