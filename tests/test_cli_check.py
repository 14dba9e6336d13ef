"""`postback check`: what is in order, what is not, and what to do."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_calls import Ran
from conftest import Client, ReceiverWith, write_config

import cli
from commands import check
from storage import open_database, utc_text

GOOD_KEY = "Yae2ohph9Ahm3eiG"


@pytest.fixture
def good(receiver_with: ReceiverWith) -> Client:
    """A tracker in which nothing is to be mended."""
    client = receiver_with(
        postback_key=GOOD_KEY, click_key="ieS8phah5Quoh7ai", public_url="https://t.example"
    )
    (client.directory / "config.ini.php").chmod(0o600)
    client.clock.now = datetime.now(UTC)
    client.get("/ieS8phah5Quoh7ai/click?subid=c1")
    client.get(f"/{GOOD_KEY}/postback?subid=c1&status=lead&payout=1")
    return client


def call(home: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[str]]]:
    """Run the check; gives its status and the levels and messages by subject."""
    status = cli.main(["check", "--json", "--config", str(home / "config.ini.php")])
    ran = Ran(status, *capsys.readouterr())
    assert ran.err == ""
    found: dict[str, list[str]] = {}
    for finding in ran.objects:
        found.setdefault(finding["check"], []).append(f"{finding['level']}: {finding['message']}")
    return status, found


def send(client: Client, query: str) -> None:
    client.get(f"/{GOOD_KEY}/postback?{query}")


def test_a_tracker_in_order_has_nothing_to_mend(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = call(good.directory, capsys)

    assert status == 0
    assert {message.partition(":")[0] for said in found.values() for message in said} == {"ok"}
    assert list(found) == [
        *("config", "key", "files", "database", "currency", "integrity", "disk"),
        *("postbacks", "parked", "unmapped", "rates"),
    ]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("sh0rtkey", "postback_key is shorter than 16 characters"),
        ("Your_Postback_Key", "postback_key is known from an example"),
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


def test_an_old_key_is_told_with_its_last_use(
    good: Client, receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"postback_key": GOOD_KEY, "postback_key_old": "older, oldest"}
    client = receiver_with(directory=good.directory, **settings)
    client.clock.now = datetime.now(UTC) - timedelta(days=3, hours=1)
    client.get("/older/postback")
    client.receiver.close()

    found = call(good.directory, capsys)[1]["key"]

    assert "ok: an old key: it was last used 3 days ago, are all networks moved?" in found
    assert "ok: an old key: it has not been used since such uses are noted" in found


def test_what_other_users_may_read_is_a_problem(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    (good.directory / "config.ini.php").chmod(0o644)
    good.database.chmod(0o604)

    status, found = call(good.directory, capsys)

    assert status == 1
    assert [message.startswith("problem: every user") for message in found["files"]] == [True] * 2


def test_a_config_says_which_line_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, {})
    path.write_text(path.read_text().replace("[postback]", "[postback]\npark_days = soon"))

    status, found = call(tmp_path, capsys)

    assert status == 1
    assert "problem: " in found["config"][0]
    assert "line " in found["config"][0]


def test_a_key_nobody_knows_draws_a_warning_with_its_line(
    good: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    path = good.directory / "config.ini.php"
    path.write_text(path.read_text() + 'sorce = "ecb"\n')

    status, found = call(good.directory, capsys)

    assert status == 0
    assert "the nearest known key is [rates] source" in found["config"][0]


def test_no_config_and_no_database_are_told_with_their_places(
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
    assert "restore the latest backup" in str(found)


def test_another_currency_is_a_problem(good: Client, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(good.directory, {"postback_key": GOOD_KEY, "currency": "EUR"})

    status, found = call(good.directory, capsys)

    assert status == 1
    assert "keeps its amounts in USD, the config says EUR" in found["currency"][0]


@pytest.mark.parametrize(("free", "level"), [(5e9, "ok"), (5e8, "warning"), (5e7, "problem")])
def test_little_disk_space_is_told_in_time(
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
    # As a replay does it, once the URL names the word.
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


def test_no_key_stands_among_the_examples_by_chance() -> None:
    assert all(len(key) >= check.SHORTEST_KEY_BYTES for key in check.EXAMPLE_KEYS)
    assert all(key == key.lower() for key in check.EXAMPLE_KEYS)
