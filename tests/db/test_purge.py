"""Old postbacks are deleted beside the service; what counts stays, unless somebody asks."""

import json
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import POSTBACK_KEY, Client, ReceiverWith, write_config
from live import live_server

from postbackd.bulk.piece_size import PieceSize
from postbackd.cli import entry as cli
from postbackd.cli.commands import purge


@pytest.fixture
def tracker(receiver_with: ReceiverWith) -> Client:
    """Postbacks of two years: each month one of a click of its own, and one that is parked."""
    client = receiver_with()
    client.clock.forward(days=-500)
    for month in range(24):
        client.click(f"c{month}", offer=f"O{month % 3}")
        client.send(f"subid=c{month}&status=sale&payout={month}.25")
        client.send(f"subid=unknown{month}&status=lead")
        client.click(f"idle{month}")
        client.clock.forward(days=30)
    return client


def run(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    config = str(client.directory / "config.ini.php")
    before = age_of(client)
    assert cli.main(["purge", "--older-than", before, "--json", *words, "--config", config]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def age_of(client: Client) -> str:
    """A year before the clock of the test, as a date."""
    return str((client.clock.now.replace(year=client.clock.now.year - 1)).date())


def test_a_purge_leaves_what_counts_as_it_was(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    def report() -> str:
        config = str(tracker.directory / "config.ini.php")
        assert cli.main(["report", "--by", "offer", "--json", "--config", config]) == 0
        return capsys.readouterr().out

    before, reported = tracker.snapshot(), report()
    count = len(tracker.postbacks())
    cutoff = age_of(tracker)

    counted = run(tracker, capsys, "--dry-run")
    assert len(tracker.postbacks()) == count
    done = run(tracker, capsys)

    assert done["postbacks"] == counted["postbacks"] == count - len(tracker.postbacks()) > 10
    assert all(str(p.received_at.date()) >= cutoff for p in tracker.postbacks())
    assert tracker.snapshot() == before
    assert report() == reported
    assert len(reported.splitlines()) > 3
    assert (counted["dry_run"], done["dry_run"]) == (True, False)
    # A resend of what was purged is a repeat: the log is not what holds that.
    assert tracker.send("subid=c0&status=sale&payout=0.25").verdict == "repeated"


def test_a_parked_postback_that_may_find_its_click_stays(
    receiver_with: ReceiverWith, capsys: pytest.CaptureFixture[str]
) -> None:
    client = receiver_with(park_days="36500")
    client.send("subid=c1&status=sale&payout=5")
    client.send("subid=c1&status=strange")
    client.send("subid=c2")
    client.clock.forward(days=500)

    assert run(client, capsys)["postbacks"] == 1
    client.click("c1")

    assert [c.payout for c in client.conversions("c1")] == ["5"]


def test_the_newest_postback_stays_so_that_no_id_comes_twice(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.send("status=sale")
    last = tracker.postbacks()[-1].id
    tracker.clock.forward(days=5000)

    run(tracker, capsys)

    assert tracker.postbacks()[-1].id == last
    assert len(tracker.postbacks()) < 10
    tracker.send("subid=c0")
    assert tracker.postbacks()[-1].id == last + 1


def test_conversions_and_clicks_go_where_asked_and_nothing_was_about_them_since(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of two years ago, and yet a postback was about it just now.
    tracker.send("subid=c1&status=sale&payout=1.25")
    tracker.send("subid=c23")
    before = {c.subid for c in tracker.conversions()}
    cutoff = age_of(tracker)

    counted = run(tracker, capsys, "--conversions", "--clicks", "--dry-run")
    done = run(tracker, capsys, "--conversions", "--clicks")

    left = tracker.conversions()
    assert "c1" in {c.subid for c in left}
    assert done["conversions"] == counted["conversions"] == len(before) - len(left) > 5
    assert all(str(c.created_at.date()) >= cutoff for c in left if c.subid != "c1")
    assert tracker.history("c0") == []
    assert tracker.rows("PRAGMA foreign_key_check") == []
    clicks = {row["subid"] for row in tracker.rows("SELECT subid FROM clicks")}
    assert "idle0" not in clicks
    assert "idle23" in clicks
    assert {c.subid for c in left} <= clicks
    # The clicks of the purged conversions had none left, and went with them.
    assert done["clicks"] == counted["clicks"] + done["conversions"]


@pytest.mark.parametrize("age", ["400", "d", "", "last week", "400 d"])
def test_an_age_that_is_none_is_wrong_usage(age: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["purge", "--older-than", age]) == 2
    assert repr(age) in capsys.readouterr().err


def test_without_an_age_nothing_is_purged(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["purge"]) == 2
    assert "--older-than" in capsys.readouterr().err


MANY = 60_000


def test_the_service_goes_on_while_many_are_purged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[float] = []
    adapt = PieceSize.adapt

    def adapt_noted(size: PieceSize, rows: int, seconds: float) -> int:
        held.append(seconds)
        return adapt(size, rows, seconds)

    monkeypatch.setattr(PieceSize, "adapt", adapt_noted)
    config = write_config(tmp_path, {"unknown_subid": "accept"})
    answers: list[bytes] = []
    with live_server(tmp_path) as server:
        server.get(f"/{POSTBACK_KEY}/postback?subid=first")
        with closing(sqlite3.connect(tmp_path / "postback.db", timeout=20)) as db:
            db.execute(
                "INSERT INTO postbacks (received_at, source, query, subid, verdict, reason)"
                " WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)"
                " SELECT '2020-01-01T00:00:00.000Z', 'http', 'q', 's' || (n * 7919 % 60013),"
                " 'refused', 'old' FROM n",
                (MANY,),
            )
            db.commit()
        server.get(f"/{POSTBACK_KEY}/postback?subid=last")
        purged = threading.Thread(
            target=cli.main,
            args=(["purge", "--older-than", "2025-01-01", "--config", str(config)],),
        )
        purged.start()
        while purged.is_alive():
            answers.append(server.get(f"/{POSTBACK_KEY}/postback?subid=x")[:12])
        purged.join()

    assert f"{MANY} postbacks" in capsys.readouterr().out
    assert set(answers) == {b"HTTP/1.1 200"}
    assert len(answers) > 1
    assert len(held) > 5
    # The middle one: the machine may take a moment off at any of them.
    assert sorted(held)[len(held) // 2] < 0.1


def test_pieces_grow_while_they_are_quick_and_shrink_when_they_are_slow() -> None:
    assert purge.PIECE_SIZE.adapt(1000, 0.001) == 1500
    assert purge.PIECE_SIZE.adapt(1000, 1.0) == 500
    assert purge.PIECE_SIZE.adapt(1000, purge.AIM_SECONDS) == 1000
    assert purge.PIECE_SIZE.adapt(50, 1.0) == 50
    assert purge.PIECE_SIZE.adapt(10_000, 0.001) == 10_000


def test_a_replay_that_waits_keeps_its_originals_day(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC)
    client.clock.now = now - timedelta(days=500)
    client.send("aff=X1&status=sale&payout=10")
    config = ("--config", str(client.directory / "config.ini.php"))
    cli.main(["replay", "--verdict", "invalid", "--rename", "aff=subid", *config])
    client.clock.now = now

    assert cli.main(["purge", "--older-than", "400d", *config]) == 0
    client.click("X1")

    [conversion] = client.conversions()
    assert conversion.created_at.date() == (now - timedelta(days=500)).date()


def test_a_conversion_that_a_spared_row_names_is_spared_too(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    for subid in ("a", "b", "c"):
        client.click(subid)
    client.clock.now = now - timedelta(days=500)
    for subid in ("b", "a", "b"):
        client.send(f"subid={subid}&status=sale")
    whole = purge._purge

    def with_a_postback_in_between(db: Any, which: Any, age: Any) -> int:
        deleted = whole(db, which, age)
        if which.table == "postbacks":
            client.clock.now = now
            client.send("subid=c&status=sale")
        return deleted

    monkeypatch.setattr(purge, "_purge", with_a_postback_in_between)
    config = str(client.directory / "config.ini.php")

    status = cli.main(["purge", "--older-than", "400d", "--conversions", "--config", config])

    assert status == 0
    assert [c.subid for c in client.conversions()] == ["b", "c"]
