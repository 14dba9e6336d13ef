"""The file itself: transactions that hold, indexes that are used, trouble that is told plainly."""

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from at_once import run_at_once
from hypothesis import given
from hypothesis import strategies as st

import storage
from postbackd.db.rows import ClickRow, PostbackRow
from postbackd.db.sqlite import schema
from postbackd.db.sqlite.connection import DatabaseError
from rates import decimal_text, from_micros
from statuses import Verdict
from storage import Storage, open_database

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
NOW_TEXT = "2026-03-02T12:00:00.000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "postback.db"


@pytest.fixture
def db(path: Path) -> Iterator[Storage]:
    with open_database(path, "USD") as opened:
        yield opened


def test_the_file_is_made_for_its_owner_alone_with_what_durability_asks(db: Storage) -> None:
    pragmas = {
        name: db.db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys")
    }

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    for suffix in ("", "-wal", "-shm", "-lock"):
        mode = os.stat(f"{db.path}{suffix}").st_mode
        assert stat.S_IMODE(mode) == 0o600, suffix


def test_a_transaction_that_breaks_changes_nothing(db: Storage) -> None:
    def half_a_transaction() -> None:
        with db.transaction():
            db.set_offer("O1", allow_rebills=True)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        half_a_transaction()

    assert db.db.execute("SELECT count(*) FROM offers").fetchone() == (0,)


class Interrupted:
    """A connection during which Ctrl-C comes just as a statement is done."""

    def __init__(self, db: sqlite3.Connection, statement: str) -> None:
        """Take the connection and the statement."""
        self._db = db
        self._statement = statement

    def __getattr__(self, name: str) -> Any:
        """Be the connection in all else."""
        return getattr(self._db, name)

    def execute(self, statement: str) -> sqlite3.Cursor:
        """Do it, and be interrupted."""
        done = self._db.execute(statement)
        if statement == self._statement:
            raise KeyboardInterrupt
        return done


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
def test_ctrl_c_leaves_no_transaction_open(db: Storage, statement: str) -> None:
    connection = db.db
    db.db = Interrupted(connection, statement)  # type: ignore[assignment]

    with pytest.raises(KeyboardInterrupt), db.transaction():
        pass

    assert not connection.in_transaction
    db.db = connection
    db.checkpoint()
    with db.transaction():
        db.set_offer("O1", allow_rebills=True)


def test_a_savepoint_that_breaks_takes_only_its_own_along(db: Storage) -> None:
    def half_a_savepoint() -> None:
        with db.savepoint():
            db.set_offer("O2", allow_rebills=True)
            raise RuntimeError("boom")

    with db.transaction():
        db.set_offer("O1", allow_rebills=True)
        with pytest.raises(RuntimeError, match="boom"):
            half_a_savepoint()
        db.set_offer("O3", allow_rebills=True)

    names = db.db.execute("SELECT name FROM offers ORDER BY id").fetchall()
    assert names == [("O1",), ("O3",)]


def replace_by_another(path: Path) -> None:
    with open_database(path.with_name("other.db"), "USD"):
        pass
    path.with_name("other.db").rename(path)


@pytest.mark.parametrize(
    "meddle",
    [
        replace_by_another,
        Path.unlink,
        lambda path: path.rename(path.with_name("moved.db")),
        lambda path: Path(f"{path}-wal").unlink(),
    ],
    ids=["replaced", "unlinked", "moved", "log unlinked"],
)
def test_a_commit_into_a_file_that_is_not_at_its_path_is_not_acknowledged(
    db: Storage, meddle: Any
) -> None:
    with db.transaction():
        db.set_offer("O1", allow_rebills=True)
    meddle(db.path)

    with pytest.raises(DatabaseError, match="moved, replaced or removed"), db.transaction():
        db.set_offer("O2", allow_rebills=True)


def test_a_file_that_was_there_and_is_gone_is_not_made_anew(path: Path) -> None:
    with pytest.raises(DatabaseError, match="is not there: put it back"):
        open_database(path, "USD", create=False)

    assert not path.exists()


def test_an_empty_file_in_the_place_of_one_that_was_there_is_not_begun(path: Path) -> None:
    path.touch()

    with pytest.raises(DatabaseError, match="is empty: put it back"):
        open_database(path, "USD", create=False)

    assert path.read_bytes() == b""


def spoil_header(path: Path) -> None:
    path.write_bytes(b"This is no database, it is a sentence. " * 100)


def spoil_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("CREATE TABLE affiliates (name TEXT)")


def spoil_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def spoil_currency(path: Path) -> None:
    open_database(path, "EUR").close()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_header, "is no SQLite database: check"),
        (spoil_tables, "another program's .it has a table 'affiliates'"),
        (spoil_version, "has schema 99, and this program knows up to"),
        (spoil_currency, "keeps its amounts in EUR, and the config says currency = 'USD'"),
        (Path.mkdir, "is a directory: give"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_a_sentence(
    path: Path, spoil: Any, sentence: str
) -> None:
    spoil(path)

    with pytest.raises(DatabaseError, match=sentence) as trouble:
        open_database(path, "USD")

    assert str(path) in str(trouble.value)


def test_a_missing_directory_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="No such file or directory"):
        open_database(tmp_path / "nowhere" / "postback.db", "USD")


def test_a_lock_that_another_program_holds_is_waited_for_and_then_told(
    db: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postbackd.db.sqlite.connection.BUSY_TIMEOUT_SECONDS", 0.05)
    with (
        open_database(db.path, "USD") as other,
        other.transaction(),
        pytest.raises(DatabaseError, match="another program holds a write lock"),
        db.transaction(),
    ):
        pass

    with db.transaction():
        db.set_offer("O1", allow_rebills=True)


def open_when_told(path: Path, link: Connection) -> None:
    link.send("ready")
    link.recv()
    open_database(path, "USD").close()
    link.send("opened")


def test_workers_that_start_at_once_migrate_once(path: Path) -> None:
    assert run_at_once(open_when_told, [(path,)] * 4) == ["opened"] * 4


def test_a_migration_that_breaks_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_database(path, "USD").close()
    broken = (*schema.MIGRATIONS, "CREATE TABLE half (id);\nINSERT INTO nowhere VALUES (1);")
    monkeypatch.setattr(schema, "MIGRATIONS", broken)

    with pytest.raises(DatabaseError, match="nowhere"):
        open_database(path, "USD")

    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(broken) - 1,)
        assert db.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchone() is None


def test_received_postbacks_are_only_appended_to(db: Storage) -> None:
    row = PostbackRow(
        *(NOW_TEXT, "http", "GET", None, "subid=c1", "c1", "", None),
        *(Verdict.PARKED, "no click", "[]", None, None),
    )
    with db.transaction():
        db.add_postback(row)

    with pytest.raises(sqlite3.IntegrityError, match="only appended to"), db.transaction():
        db.db.execute("UPDATE postbacks SET verdict = 'recorded'")


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.integers(1, 4))
def test_a_flood_of_parked_postbacks_is_read_as_a_few_are(
    tmp_path_factory: pytest.TempPathFactory, queries: list[str], different: int
) -> None:
    with open_database(tmp_path_factory.mktemp("parked") / "postback.db", "USD") as db:
        with db.transaction():
            for query in queries:
                parked = (Verdict.PARKED, "no click", "[]", None, None)
                db.add_postback(
                    PostbackRow(NOW_TEXT, "http", "GET", None, query, "c1", "", None, *parked)
                )

        few = db.find_parked("c1", len(queries), 100)
        many = db.find_parked("c1", different, 100)

    taken = list(dict.fromkeys(queries))[:different]
    assert many == [row for row in few if row.query in taken]


PLANS = [
    (storage._find_clicks_sql(1), "SEARCH clicks USING INDEX"),
    (storage._find_clicks_sql(4), "SEARCH clicks USING INDEX"),
    (storage._find_due_sql(4), "SEARCH clicks USING COVERING INDEX"),
    (storage._find_conversions_sql(4), "SEARCH conversions USING INTEGER PRIMARY KEY (rowid=?)"),
    (storage._FIND_ONE_PARKED, "SEARCH postbacks USING INDEX postbacks_parked (subid=?)"),
    (storage._count_parked_sql(4), "SEARCH postbacks USING INDEX postbacks_parked (subid=?)"),
    (
        storage._find_conversions_of_sql(4),
        "SEARCH conversions USING INDEX sqlite_autoindex_conversions_1 (click_id=?)",
    ),
    (storage._FIND_PARKED, "SEARCH postbacks USING INDEX postbacks_parked (subid=?)"),
    (storage._FIND_MANY_PARKED, "SEARCH postbacks USING INDEX postbacks_parked (subid=?)"),
    (storage._SETTLE_COPIES, "SEARCH postbacks USING INDEX postbacks_parked (subid=?)"),
    (storage._FIND_PAST, "SEARCH postbacks USING INDEX postbacks_by_conversion (conversion_id=?)"),
    (storage._FIND_PAST, "SEARCH postbacks USING INDEX postbacks_without_conversion (subid=?)"),
    (storage._FIND_WAITING["payout"], "USING INDEX conversions_without_payout (currency=?"),
    (storage._FIND_WAITING["cost"], "USING INDEX conversions_without_cost (cost_currency=?"),
    (storage._FIND_WAITING_DAYS["payout"], "INDEX conversions_without_payout (currency=?"),
    (storage._FIND_WAITING_DAYS["cost"], "INDEX conversions_without_cost (cost_currency=?"),
    (storage._FIND_RATE_BY_HAND, "USING INDEX rates_by_hand (currency=?)"),
    (storage._FIND_RATE_BY_THEN, "(currency=? AND day<?)"),
    (storage._FIND_NEWEST_RATE, "(currency=?)"),
    (
        "SELECT 1 FROM conversions_view WHERE created_at >= ?",
        "USING INDEX conversions_by_time (created_at>?)",
    ),
    (
        "SELECT 1 FROM postbacks WHERE received_at >= ?",
        "INDEX postbacks_by_time (received_at>?)",
    ),
]


@pytest.mark.parametrize(("question", "plan"), PLANS)
def test_the_questions_of_the_write_path_use_their_indexes(
    db: Storage, question: str, plan: str
) -> None:
    marks: Any = dict.fromkeys(re.findall(r":([a-z_]+)", question), "x")
    if not marks:
        marks = ["x"] * (6 if "?6" in question else question.count("?"))

    steps = [row[3] for row in db.db.execute(f"EXPLAIN QUERY PLAN {question}", marks)]

    assert any(plan in step for step in steps), steps
    # What a subquery has found is read whole; a table never is.
    found = ("CONSTANT", "(subquery", "parked", "earlier", "copies")
    scans = [step for step in steps if step.startswith("SCAN")]
    assert [step for step in scans if not step.removeprefix("SCAN ").startswith(found)] == []


@given(st.integers(-(10**18), 10**18))
def test_micros_in_a_view_read_as_the_same_decimals(micros: int) -> None:
    question = f"SELECT {schema.decimal_sql('amount')} FROM (SELECT ? AS amount)"
    with closing(sqlite3.connect(":memory:")) as memory:
        row = memory.execute(question, (micros,)).fetchone()

    assert row[0] == decimal_text(from_micros(micros))


def test_names_of_a_click_are_made_and_what_is_empty_changes_nothing(db: Storage) -> None:
    with db.transaction():
        new = db.put_clicks(
            [
                ClickRow("c1", "C1", "O1", NOW_TEXT, "cpa", {"sub_id_1": "a", "sub_id_2": "b"}),
                ClickRow("c2"),
                ClickRow("c1", offer="O2", sub_ids={"sub_id_2": "x"}),
            ],
            NOW_TEXT,
        )

    row = db.db.execute(
        "SELECT campaigns.name, offers.name, clicked_at, clicks.cost_model, sub_ids FROM clicks"
        " JOIN campaigns ON campaigns.id = campaign_id JOIN offers ON offers.id = offer_id"
        " WHERE subid = 'c1'"
    ).fetchone()
    assert new == 2
    assert row == ("C1", "O2", NOW_TEXT, "cpa", '{"sub_id_1":"a","sub_id_2":"x"}')


def test_a_rate_by_hand_wins_until_it_is_ended_then_the_newest_by_the_day(db: Storage) -> None:
    fetched = "INSERT INTO rates (currency, day, source, rate, created_at) VALUES (?, ?, ?, ?, '')"
    with db.transaction():
        for day, source, rate in [
            ("2026-03-01", "ecb", "1.1"),
            ("2026-03-01", "cbr", "9"),
            ("2026-03-03", "ecb", "1.3"),
        ]:
            db.db.execute(fetched, ("EUR", day, source, rate))
        db.add_rate_by_hand("EUR", Decimal("1.5"), NOW)
        by_hand = db.find_rate("EUR", NOW.date())
        db.end_rate_by_hand("EUR", NOW)

    assert by_hand == (Decimal("1.5"), NOW.date(), "hand")
    found = [db.find_rate("EUR", NOW.date().replace(day=day)) for day in (2, 3, 9)]
    assert [(rate.value, rate.source) for rate in found if rate] == [
        (Decimal("1.1"), "ecb"),
        (Decimal("1.3"), "ecb"),
        (Decimal("1.3"), "ecb"),
    ]
    assert db.find_rate("EUR", NOW.date().replace(month=1)) == (
        Decimal("1.3"),
        NOW.date().replace(day=3),
        "ecb",
    )
    assert db.find_rate("RUB", NOW.date()) is None
