"""An older database is brought up to date with every row it held."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from postbackd.db.sqlite import schema
from postbackd.db.sqlite.connection import DatabaseError
from storage import open_database

ROWS_OF_VERSION_1 = """
INSERT INTO offers (id, name, allow_rebills) VALUES (1, 'never set', 0), (2, 'allowed', 1);
INSERT INTO clicks (id, subid, created_at) VALUES (1, 'c1', '2026-03-02T12:00:00.000Z');
INSERT INTO conversions (id, click_id, tid, status, amount_micros, currency, amount_day,
    payout_micros, rate, rate_day, rate_source, created_at, updated_at)
VALUES (1, 1, 't1', 'sale', 10000000, 'EUR', '2026-03-02', 10876000, '1.0876', '2026-03-02',
    'hand', '2026-03-02T12:00:00.000Z', '2026-03-02T12:00:00.000Z');
INSERT INTO conversion_history (conversion_id, seq, at, change, postback_id, status, tid,
    amount_micros, currency, payout_micros, rate, rate_day, rate_source)
VALUES
    (1, 1, '2026-03-02T12:00:00.000Z', 'recorded', 7, 'sale', 't1', 10000000, 'EUR', NULL, NULL,
        NULL, NULL),
    (1, 2, '2026-03-02T12:00:05.000Z', 'converted', NULL, 'sale', 't1', 10000000, 'EUR', 10876000,
        '1.0876', '2026-03-02', 'hand');
INSERT INTO rates (currency, day, source, rate, created_at)
VALUES ('EUR', '2026-03-02', 'hand', '1.0876', '2026-03-02T12:00:00.000Z');
"""


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "postback.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(schema.MIGRATIONS[0] + ROWS_OF_VERSION_1)
        db.execute("INSERT INTO tracker (id, currency) VALUES (1, 'USD')")
        db.execute("PRAGMA user_version = 1")
    return path


def read_all(path: Path, table: str, columns: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT {columns} FROM {table}").fetchall()


def test_a_database_of_version_1_keeps_every_row(old_file: Path) -> None:
    history = (
        "conversion_id, seq, at, change, postback_id, status, original_status, tid, amount_micros,"
        " currency, payout_micros, rate, rate_day, rate_source, cost_micros"
    )
    of_conversions = read_all(old_file, "pragma_table_info('conversions')", "name")
    columns = {
        "conversions": ", ".join(str(name) for (name,) in of_conversions),
        "rates": "*",
        "clicks": ("id, subid, campaign_id, offer_id, clicked_at, cost_model, sub_ids, created_at"),
        "tracker": "id, currency, health_checked_at",
        "conversion_history": history,
    }
    before = {table: read_all(old_file, table, names) for table, names in columns.items()}

    open_database(old_file, "USD").close()

    after = {table: read_all(old_file, table, names) for table, names in columns.items()}
    assert after == before
    assert len(after["conversion_history"]) == 2


def test_a_history_row_of_a_migrated_database_may_say_recomputed(old_file: Path) -> None:
    with open_database(old_file, "USD") as db:
        with db.transaction():
            db.add_history(1, "recomputed", "2026-03-03T12:00:00.000Z", None)
        assert db.db.execute("PRAGMA foreign_key_check").fetchall() == []
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"), db.transaction():
            db.add_history(1, "forgotten", "2026-03-03T12:00:00.000Z", None)

    rows = read_all(old_file, "conversion_history", "seq, change, payout_micros")
    assert rows[-1] == (3, "recomputed", 10876000)


def test_a_history_row_of_a_migrated_database_may_say_forced(old_file: Path) -> None:
    with open_database(old_file, "USD") as db, db.transaction():
        db.add_history(1, "forced", "2026-03-03T12:00:00.000Z", None)

    assert read_all(old_file, "conversion_history", "seq, change")[-1] == (3, "forced")


def test_an_offer_that_allowed_no_rebills_was_never_set(old_file: Path) -> None:
    with open_database(old_file, "USD") as db, db.transaction():
        db.db.execute("INSERT INTO offers (name) VALUES ('new')")
        db.set_offer("forbidden", allow_rebills=False)
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            db.db.execute("UPDATE offers SET allow_rebills = 2")

    assert read_all(old_file, "offers", "name, allow_rebills") == [
        ("never set", None),
        ("allowed", 1),
        ("new", None),
        ("forbidden", 0),
    ]


def test_an_amount_that_was_too_large_for_its_rate_waits_for_another(old_file: Path) -> None:
    # As version 3 left them: without the day whose rate counts. The second has no known currency.
    with closing(sqlite3.connect(old_file)) as db, db:
        db.execute(
            "INSERT INTO conversions (id, click_id, tid, status, amount_micros, currency,"
            " cost_amount_micros, cost_currency, created_at, updated_at) VALUES"
            " (2, 1, 't2', 'sale', 1000000, 'IDR', 2000000, 'IDR', '2026-03-01T12:00:00.000Z', ''),"
            " (3, 1, 't3', 'sale', 1000000, NULL, NULL, NULL, '2026-03-01T12:00:00.000Z', '')"
        )

    open_database(old_file, "USD").close()

    assert read_all(old_file, "conversions", "id, amount_day, cost_day") == [
        (1, "2026-03-02", None),
        (2, "2026-03-01", "2026-03-01"),
        (3, None, None),
    ]


def test_a_migration_that_breaks_halfway_leaves_version_1_as_it_was(
    old_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = schema.MIGRATIONS[1] + "INSERT INTO nowhere VALUES (1);"
    monkeypatch.setattr(schema, "MIGRATIONS", (schema.MIGRATIONS[0], broken))

    with pytest.raises(DatabaseError, match="nowhere"):
        open_database(old_file, "USD")

    assert len(read_all(old_file, "conversion_history", "seq")) == 2
    with closing(sqlite3.connect(old_file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def read_schema(path: Path) -> set[tuple[object, ...]]:
    names = "type, name, replace(sql, '\"conversion_history\"', 'conversion_history')"
    return set(read_all(path, "sqlite_master", names))


def test_an_old_file_comes_to_the_tables_of_a_new_one(old_file: Path, tmp_path: Path) -> None:
    open_database(old_file, "USD").close()
    open_database(tmp_path / "new.db", "USD").close()

    assert read_schema(old_file) == read_schema(tmp_path / "new.db")
    with closing(sqlite3.connect(old_file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("conversions", "status = 'paid'"),
        ("conversions", "previous_status = 'paid'"),
        ("conversions", "sub_ids = '{'"),
        ("conversion_history", "change = 'forgotten'"),
        ("postbacks", "source = 'fax'"),
        ("postbacks", "verdict = 'lost'"),
        ("postbacks", "warnings = '['"),
        ("postbacks", "settled_verdict = 'parked'"),
    ],
)
def test_checks_say_what_they_said_before_they_were_made_quicker(
    old_file: Path, table: str, change: str
) -> None:
    with open_database(old_file, "USD") as db, db.transaction():
        db.db.execute("DROP TRIGGER postbacks_are_only_appended")
        db.db.execute(
            "INSERT INTO postbacks (received_at, source, query, verdict, reason)"
            " VALUES ('2026-03-02T12:00:00.000Z', 'http', '', 'invalid', '')"
        )
        with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
            db.db.execute(f"UPDATE {table} SET {change}")


def test_rows_of_a_migrated_database_may_come_from_wherever_they_come(old_file: Path) -> None:
    with open_database(old_file, "USD") as db, db.transaction():
        for source in ("http", "pixel", "import", "replay", "caught", "operator"):
            db.db.execute(
                "INSERT INTO postbacks (received_at, source, query, verdict, reason, body)"
                " VALUES ('2026-03-02T12:00:00.000Z', ?, '', 'invalid', '', x'00ff')",
                (source,),
            )
        for change in ("forced", "operator", "deleted"):
            db.add_history(1, change, "2026-03-03T12:00:00.000Z", None)
        for column in ("body = x'00'", "body_type = 'a'", "source = 'http'", "replay_of = 1"):
            with pytest.raises(sqlite3.IntegrityError, match="only appended"):
                db.db.execute(f"UPDATE postbacks SET {column}")
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            db.db.execute("UPDATE clicks SET click_cost_micros = 1")

    assert len(read_all(old_file, "postbacks", "body")) == 6


def test_slow_checks_are_gone_from_the_tables_that_every_postback_writes(old_file: Path) -> None:
    open_database(old_file, "USD").close()

    for table in ("conversions", "conversion_history", "postbacks"):
        ((sql,),) = read_all(old_file, f"sqlite_master WHERE name = '{table}'", "sql")
        assert " IN (" not in str(sql)


def test_each_database_has_a_salt_of_its_own(old_file: Path, tmp_path: Path) -> None:
    paths = (old_file, tmp_path / "new.db")
    for path in paths:
        open_database(path, "USD").close()

    salts = {str(read_all(path, "tracker", "key_salt")[0][0]) for path in paths}
    assert len(salts) == 2
    assert {len(salt) for salt in salts} == {32}
