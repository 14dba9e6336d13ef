"""A private copy of what is known about some clicks: what would come of a postback is tried there.

Whatever is asked of the copy goes the one way of a live postback, and nothing of it reaches the
database. Only the rows that a postback of these clicks could meet are copied, so that the copy is
quick, and each time in one read of a moment.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from postbackd.db.rows import to_json
from postbackd.db.sqlite.connection import DatabaseError, connect_to_read
from postbackd.files import private_directory
from postbackd.intake.booking import BookingOptions, parse_stored
from storage import Storage, open_database

# Ids that the copy gives begin behind this one: no row that is copied later has such an id, and
# whoever sees one knows that the row is not in the database.
LAST_REAL_ID = 2**62


class Rehearsal:
    """The copy (`storage`, to do as one likes), and what fills it from the database."""

    def __init__(self, source: sqlite3.Connection, storage: Storage, terms: BookingOptions) -> None:
        """Take a connection that reads the database, and an empty one of its own."""
        self._source = source
        self.storage = storage
        self._terms = terms
        self._subids: set[str] = set()
        self._currencies: set[str] = set()
        # A sync would keep nothing that anybody wants, and of what is not copied rows may speak.
        storage.db.execute("PRAGMA synchronous = OFF")
        storage.db.execute("PRAGMA foreign_keys = OFF")
        with storage.transaction():
            for statement in _BEGIN_IDS_BEHIND:
                storage.db.execute(statement, {"id": LAST_REAL_ID})

    def take(self, queries: Iterable[str], postback_ids: Iterable[int] = ()) -> None:
        """Copy what these queries could meet, and these postbacks with their replays."""
        with self.storage.transaction(), _one_moment(self._source):
            ids = to_json(list(postback_ids))
            self._copy("postbacks", f"id IN {_LISTED} OR replay_of IN {_LISTED}", ids)
            self._take_clicks_and_rates(queries)

    def _take_clicks_and_rates(self, queries: Iterable[str]) -> None:
        read = [parse_stored(query, self._terms).incoming for query in queries]
        subids = {incoming.subid for incoming in read if incoming.subid} - self._subids
        self._take_rates({incoming.currency for incoming in read if incoming.currency})
        if not subids:
            return
        self._subids |= subids
        listed = to_json(sorted(subids))
        # In this order: the trigger that looks for parked postbacks finds none yet, and what is
        # due is copied as it stands.
        for table, condition in _OF_CLICKS:
            self._copy(table, condition, listed)
        parked = self._source.execute(f"SELECT query FROM postbacks WHERE {_PARKED}", (listed,))
        # Of the same clicks, but maybe in other currencies.
        self._take_clicks_and_rates([query for (query,) in parked])

    def _take_rates(self, currencies: set[str]) -> None:
        wanted = currencies - self._currencies
        self._currencies |= wanted
        self._copy("rates", f"currency IN {_LISTED}", to_json(sorted(wanted)))

    def _copy(self, table: str, condition: str, listed: str) -> None:
        rows = self._source.execute(f"SELECT * FROM {table} WHERE {condition}", {"listed": listed})
        names = [column[0] for column in rows.description]
        marks = ", ".join("?" * len(names))
        # IGNORE: a postback may be wanted twice, and a click may have been made in the copy.
        self.storage.db.executemany(
            f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({marks})", rows
        )


@contextmanager
def rehearse(path: Path, terms: BookingOptions) -> Iterator[Rehearsal]:
    """Open an empty copy beside the database; it is gone afterwards."""
    with (
        closing(connect_to_read(path)) as source,
        private_directory("rehearsal") as directory,
    ):
        (currency,) = source.execute("SELECT currency FROM tracker").fetchone()
        if currency != terms.currency:
            raise DatabaseError(
                f"database {str(path)!r} keeps its amounts in {currency}, and the config says"
                f" currency = {terms.currency!r}: until they agree nothing is taken"
            )
        with open_database(directory / "rehearsal.db", currency) as storage:
            yield Rehearsal(source, storage, terms)


@contextmanager
def _one_moment(source: sqlite3.Connection) -> Iterator[None]:
    source.execute("BEGIN")
    try:
        yield
    finally:
        source.execute("COMMIT")


_LISTED = "(SELECT value FROM json_each(:listed))"
_CLICK_IDS = f"(SELECT id FROM clicks WHERE subid IN {_LISTED})"
_PARKED = f"subid IN {_LISTED} AND verdict = 'parked' AND settled_at IS NULL"

_OF_CLICKS = (
    *(
        (
            f"{name}s",
            f"id IN (SELECT {name}_id FROM clicks WHERE subid IN {_LISTED} UNION"
            f" SELECT {name}_id FROM conversions WHERE click_id IN {_CLICK_IDS})",
        )
        for name in ("campaign", "offer")
    ),
    ("clicks", f"subid IN {_LISTED}"),
    ("conversions", f"click_id IN {_CLICK_IDS}"),
    (
        "conversion_history",
        f"conversion_id IN (SELECT id FROM conversions WHERE click_id IN {_CLICK_IDS})",
    ),
    ("due_clicks", f"click_id IN {_CLICK_IDS}"),
    # The log of these clicks says what has come before.
    (
        "postbacks",
        f"conversion_id IN (SELECT id FROM conversions WHERE click_id IN {_CLICK_IDS})",
    ),
    ("postbacks", f"conversion_id IS NULL AND subid IN {_LISTED}"),
    ("postbacks", _PARKED),
    ("postbacks", f"id IN (SELECT replay_of FROM postbacks WHERE {_PARKED})"),
)

_BEGIN_IDS_BEHIND = (
    "INSERT INTO clicks (id, subid) VALUES (:id, char(0))",
    "INSERT INTO conversions (id, click_id, tid, status, created_at, updated_at)"
    " VALUES (:id, :id, '', 'rejected', '', '')",
    "INSERT INTO postbacks (id, received_at, source, query, verdict, reason)"
    " VALUES (:id, '', 'import', '', 'ignored', '')",
)
