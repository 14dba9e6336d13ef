"""Databases that earlier programs made: brought up to date, whole, once, or not at all.

`databases/make.py` made the files with the program of each earlier schema, and wrote down what
that program showed of them.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import Client, ReceiverWith
from live import live_server, wait_until
from tree import find_data

from postbackd.cli import entry as cli
from postbackd.db.sqlite import schema
from storage import open_database

DATABASES = find_data("databases")
EARLIER = range(1, len(schema.MIGRATIONS))

KEYS = {
    "postback_key": "key-of-the-databases",
    "click_key": "click-of-the-databases",
    "pixel_key": "pixel-of-the-databases",
}

# As `databases/make.py` asked the earlier program.
SHOWN = {
    "conversions": ("conversions", "--json", "--history", "--limit", "0"),
    "postbacks": ("log", "--json", "--limit", "0"),
    "clicks": ("clicks", "list", "--json", "--limit", "0"),
    "offers": ("offers", "list", "--json"),
    "campaigns": ("campaigns", "list", "--json"),
}


@pytest.fixture(params=EARLIER, ids=lambda version: f"schema {version}")
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def old_file(version: int, tmp_path: Path) -> Path:
    path = tmp_path / "postback.db"
    shutil.copyfile(DATABASES / f"schema-{version}.db", path)
    return path


@pytest.fixture
def upgraded(old_file: Path, receiver_with: ReceiverWith) -> Client:
    """A receiver of today on the old file, which it has brought up to date."""
    client = receiver_with(directory=old_file.parent, **KEYS)
    assert client.get("/health").status == 200
    return client


def read_version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return schema.read_version(db)


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def within(earlier: Any, now: Any) -> bool:
    """Return whether all that stood in a shown value still does; more may have come beside it."""
    if isinstance(earlier, dict):
        return all(within(value, now[name]) for name, value in earlier.items())
    if isinstance(earlier, list):
        return len(earlier) == len(now) and all(map(within, earlier, now))
    return bool(earlier == now)


def test_there_is_a_file_of_every_earlier_schema() -> None:
    for version in EARLIER:
        assert read_version(DATABASES / f"schema-{version}.db") == version
        assert (DATABASES / f"schema-{version}.db").stat().st_size < 200 * 1024


@pytest.mark.parametrize("name", SHOWN)
def test_an_old_database_shows_what_it_showed(
    upgraded: Client, version: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(upgraded.directory / "config.ini.php")

    assert cli.main([*SHOWN[name], "--config", config]) == 0

    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    earlier = json.loads((DATABASES / f"schema-{version}.json").read_text())[name]
    assert within(earlier, shown)
    assert len(shown) > 1
    assert read_version(upgraded.database) == len(schema.MIGRATIONS)


def test_an_old_database_adds_up_to_what_it_showed(
    upgraded: Client, version: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(upgraded.directory / "config.ini.php")

    assert cli.main(["report", "--by", "network", "--json", "--config", config]) == 0

    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (total,) = [row for row in shown if row["total"]]
    earlier = json.loads((DATABASES / f"schema-{version}.json").read_text())["conversions"]
    paid = [c for c in earlier if c["status"] in {"sale", "rebill"}]
    assert Decimal(total["revenue"]) == sum(Decimal(c["payout"]) for c in paid if c["payout"])
    assert total["sales"] + total["rebills"] == len(paid)
    assert Decimal(total["cost"]) == sum(Decimal(c["cost"]) for c in earlier if c["cost"])
    assert Decimal(total["revenue"]) > 100


def test_an_old_database_goes_on(upgraded: Client) -> None:
    def send(query: str) -> str | None:
        return upgraded.get(f"/{KEYS['postback_key']}/postback?{query}").verdict

    assert send("subid=c1&status=sale&payout=12.50&tid=t1") == "repeated"
    assert send("subid=c2&status=rebill&payout=5&tid=new") == "recorded"
    upgraded.get(f"/{KEYS['click_key']}/click?subid=never")

    assert [c.payout for c in upgraded.conversions("never")] == ["1"]
    assert upgraded.rows("PRAGMA foreign_key_check") == []
    assert upgraded.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]


def test_a_kill_at_any_statement_of_the_migration_changes_nothing(old_file: Path) -> None:
    before = dump(old_file)
    survivors = 0

    for statement in range(1, 1000):
        if migrate_and_die(old_file, statement):
            break
        survivors += 1
        assert dump(old_file) == before, f"after statement {statement}"

    assert survivors > 5
    assert read_version(old_file) == len(schema.MIGRATIONS)


def migrate_and_die(path: Path, at_statement: int) -> bool:
    """Open the file in a process that is killed before it runs its n-th statement."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) == 0
    try:
        migrate = schema.migrate

        def migrate_traced(db: sqlite3.Connection, currency: str) -> None:
            count = 0

            def notice(_: str) -> None:
                nonlocal count
                count += 1
                if count == at_statement:
                    os.kill(os.getpid(), 9)

            db.set_trace_callback(notice)
            migrate(db, currency)
            db.set_trace_callback(None)

        schema.migrate = migrate_traced
        open_database(path, "USD").close()
        os._exit(0)
    finally:
        os._exit(1)


MANY = 50_000

# Each of the eight conversions a few thousand times over, with clicks and histories of their own.
MULTIPLY = f"""
    CREATE TEMP TABLE numbers AS
    WITH RECURSIVE counting (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counting WHERE n < {MANY})
    SELECT n FROM counting;
    INSERT INTO clicks (id, subid) SELECT 1000 + n, 'm' || n FROM numbers;
    INSERT INTO conversions (id, click_id, tid, status, amount_micros, currency, amount_day,
        payout_micros, rate, rate_day, rate_source, created_at, updated_at)
    SELECT 1000 + n, 1000 + n, 't', 'sale', n * 1237, 'EUR', '2026-03-02', n * 1345, '1.0876',
        '2026-03-02', 'hand', '2026-03-02T12:00:00.000Z', '2026-03-02T12:00:00.000Z' FROM numbers;
    INSERT INTO conversion_history (conversion_id, seq, at, change, status, tid, amount_micros,
        currency, payout_micros, rate, rate_day, rate_source)
    SELECT 1000 + n, 1, '2026-03-02T12:00:00.000Z', 'recorded', 'sale', 't', n * 1237, 'EUR',
        n * 1345, '1.0876', '2026-03-02', 'hand' FROM numbers;
"""
SUMS = (
    "SELECT status, count(*), sum(amount_micros), sum(payout_micros), sum(cost_micros)"
    " FROM conversions GROUP BY status",
    "SELECT change, count(*), sum(amount_micros), sum(payout_micros) FROM conversion_history"
    " GROUP BY change",
    "SELECT count(*), sum(length(query)) FROM postbacks",
    "SELECT count(*) FROM clicks",
)


def add_up(path: Path) -> Iterator[list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as db:
        for sql in SUMS:
            yield db.execute(sql).fetchall()


def test_two_workers_that_start_at_once_migrate_a_large_file_once(tmp_path: Path) -> None:
    path = tmp_path / "postback.db"
    shutil.copyfile(DATABASES / "schema-1.db", path)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(MULTIPLY)
    before = list(add_up(path))
    (tmp_path / "config.ini.php").write_text(
        f';<?php exit; ?>\n[system]\npostback_key = "{KEYS["postback_key"]}"\n'
        '[rates]\nsource = "none"\n'
    )

    with live_server(tmp_path, "--workers", "2") as server:
        wait_until(lambda: len(server.worker_pids()) == 2, "two workers")
        wait_until(lambda: server.get("/health").startswith(b"HTTP/1.1 200 "), "a good start")
        answers = [server.get(f"/{KEYS['postback_key']}/postback") for _ in range(20)]
    log = server.read_log()

    assert {answer[:12] for answer in answers} == {b"HTTP/1.1 200"}
    assert log.count(f"from schema 1 to {len(schema.MIGRATIONS)}") == 1
    assert "nothing is acknowledged" not in log
    assert "Traceback" not in log
    # The twenty had no click id: they are in the log of postbacks, and changed nothing else.
    after = list(add_up(path))
    assert after[2][0][0] == before[2][0][0] + 20
    assert [*after[:2], after[3]] == [*before[:2], before[3]]
    assert before[0][-1][1] > MANY
