"""Compares the answers that senders read with the rows in the database."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from tools.durability.senders import Ack, Click, Postback

# Verdicts after which a conversion of the postback must exist.
BOOKED = frozenset({"recorded", "repeated"})

SOUND = "ok"


class Row(NamedTuple):
    """A row of the postback log, and its conversion if it has one."""

    subid: str
    tid: str
    verdict: str
    settled_verdict: str | None
    conversion_id: int | None


class Conversion(NamedTuple):
    """A stored conversion, with the number of `recorded` rows in its history."""

    id: int
    status: str
    payout: Decimal
    recordings: int


Key = tuple[str, str]


class Findings(NamedTuple):
    """The faults found, a sentence each; the receiver promises that there are none."""

    lost: list[str]
    doubled: list[str]
    integrity: str

    @property
    def is_sound(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.lost and not self.doubled and self.integrity == SOUND

    def __str__(self) -> str:
        """List the faults, the first of each kind."""
        return (
            f"{len(self.lost)} lost {self.lost[:3]}, {len(self.doubled)} doubled"
            f" {self.doubled[:3]}, integrity {self.integrity}"
        )


class Books:
    """All postbacks and conversions in a database, read at once."""

    def __init__(self, path: Path) -> None:
        """Read the database; a server may be running on it."""
        self.rows: dict[Key, list[Row]] = {}
        self.conversions: dict[Key, list[Conversion]] = {}
        with closing(sqlite3.connect(path, timeout=20)) as db:
            db.execute("BEGIN")
            for row in map(Row._make, db.execute(_POSTBACKS)):
                self.rows.setdefault((row.subid, row.tid), []).append(row)
            for subid, tid, number, status, payout, recordings in db.execute(_CONVERSIONS):
                conversion = Conversion(number, status, Decimal(payout or 0), recordings)
                self.conversions.setdefault((subid, tid), []).append(conversion)
            db.execute("COMMIT")
            self.integrity = _check(db)


_POSTBACKS = "SELECT subid, tid, verdict, settled_verdict, conversion_id FROM postbacks ORDER BY id"
_CONVERSIONS = """
    SELECT subid, tid, id, status, payout, (SELECT count(*) FROM conversion_history
        WHERE conversion_id = conversions_view.id AND change = 'recorded')
    FROM conversions_view
"""


def _check(db: sqlite3.Connection) -> str:
    trouble = [text for (text,) in db.execute("PRAGMA integrity_check") if text != SOUND]
    trouble += [f"foreign key {row}" for row in db.execute("PRAGMA foreign_key_check")]
    return "; ".join(trouble) or SOUND


def audit(path: Path, acks: Iterable[Ack]) -> Findings:
    """Compare the acknowledged postbacks with a database."""
    try:
        books = Books(path)
    except sqlite3.DatabaseError as error:
        return Findings([], [], f"unreadable: {error}")
    return Findings(list(_find_lost(books, acks)), list(_find_doubled(books)), books.integrity)


def _find_lost(books: Books, acks: Iterable[Ack]) -> Iterator[str]:
    told = Counter((ack.postback, ack.verdict) for ack in acks)
    for (postback, verdict), count in told.items():
        key = (postback.subid, postback.tid)
        kept = sum(row.verdict == verdict for row in books.rows.get(key, ()))
        if kept < count:
            yield f"{key} was answered {verdict!r} {count} times, {kept} times in the postback log"
        if verdict in BOOKED:
            yield from _find_missing_conversion(books, postback)


def _find_missing_conversion(books: Books, postback: Postback) -> Iterator[str]:
    key = (postback.subid, postback.tid)
    standing = books.conversions.get(key, [])
    if not any((x.status, x.payout) == ("sale", Decimal(postback.payout)) for x in standing):
        yield f"{key} is acknowledged as a sale of {postback.payout}, what stands is {standing}"


def _find_doubled(books: Books) -> Iterator[str]:
    for key, rows in books.rows.items():
        recorded = sum("recorded" in (row.verdict, row.settled_verdict) for row in rows)
        if recorded > 1:
            yield f"{key} was recorded {recorded} times"
    per_click: Counter[str] = Counter()
    for (subid, tid), conversions in books.conversions.items():
        per_click[subid] += len(conversions)
        if any(conversion.recordings != 1 for conversion in conversions):
            yield f"{(subid, tid)} has a history of {conversions}"
        if (subid, tid) not in books.rows:
            yield f"{(subid, tid)} is a conversion of no postback in the postback log"
    for subid, count in per_click.items():
        # Every click of the harness has postbacks of one transaction id only.
        if count > 1:
            yield f"{subid!r} has {count} conversions"


def find_unbooked(path: Path, sent: Iterable[Postback], unknown_subid: str) -> list[str]:
    """List answered postbacks without the conversion that they should have."""
    books = Books(path)
    flaws = []
    for postback in set(sent):
        wanted = 0 if postback.click is Click.UNKNOWN and unknown_subid == "park" else 1
        standing = len(books.conversions.get((postback.subid, postback.tid), ()))
        if standing != wanted:
            flaws.append(f"{postback} has {standing} conversions and should have {wanted}")
    return flaws
