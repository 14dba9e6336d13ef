"""What the log says of the networks: who is silent, and what is turned away more than before.

A look at the last four weeks, bounded however busy they were: of each hour the newest postbacks
only. On a tracker that gets fewer, that is all of them; on others a fair sample.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from postbackd.db.rows import utc_text
from statuses import Verdict

DAYS_LOOKED_AT = 28
# Times the hours of four weeks: a hundred thousand rows at most, some 0.2 seconds of reading.
ROWS_AN_HOUR = 150

# A network is silent if it has been so for ten times the mean time between two of its postbacks,
# and for a quarter longer than ever in these weeks. The first alone would call every night and
# weekend a silence; the second alone, the first minutes of a network that has been steady. Chance
# alone, without nights, brings the first about once in twenty thousand postbacks (e^-10).
MEANS_OF_SILENCE = 10
BEYOND_THE_LONGEST = 1.25
FEWEST_TO_KNOW_A_RHYTHM = 10
# A restart, or a network's own maintenance, is no silence.
SHORTEST_SILENCE = timedelta(minutes=30)

# An unwanted verdict has grown if it befell a tenth of a day's postbacks and three times the share
# of the two weeks before; five of them at least, for two out of three is no tendency.
UNWANTED = (Verdict.UNMAPPED, Verdict.REFUSED, Verdict.INVALID, Verdict.PARKED)
DAYS_BEFORE = 14
LEAST_SHARE = 0.1
GROWN_TIMES = 3
FEWEST_TO_GROW = 5


class RecentPostback(NamedTuple):
    """A postback that was looked at; `about` is its word if unmapped, else why."""

    network: str | None
    at: datetime
    verdict: str
    about: str


class Silence(NamedTuple):
    """A network from which nothing comes any more."""

    network: str | None
    every: timedelta
    silent: timedelta
    last: datetime


class Growth(NamedTuple):
    """A verdict that befalls a network more than before; the shares are of all its postbacks.

    `before` is None where the network had sent nothing in the two weeks before.
    """

    network: str | None
    verdict: str
    share: float
    before: float | None
    about: str


class Size(NamedTuple):
    """How many clicks and postbacks there are and came lately, and when the oldest postback did."""

    rows: int
    recent: int
    oldest: str | None


def estimate_size(db: sqlite3.Connection, since: str) -> Size:
    """Estimate from ids and indexes, without counting: fast, and right but for rows purged."""
    rows = recent = 0
    for table, column in _GROWING.items():
        first, last = db.execute(f"SELECT min(id), max(id) FROM {table}").fetchone()
        if last is None:
            continue
        rows += last - first + 1
        sql = f"SELECT id FROM {table} WHERE {column} >= ? ORDER BY {column} LIMIT 1"
        row = db.execute(sql, (since,)).fetchone()
        recent += 0 if row is None else last - row[0] + 1
    (oldest,) = db.execute("SELECT min(received_at) FROM postbacks").fetchone()
    return Size(rows, recent, oldest)


def look(db: sqlite3.Connection, now: datetime) -> list[RecentPostback]:
    """Look at the last weeks, oldest first."""
    seen: list[RecentPostback] = []
    start = (now - timedelta(days=DAYS_LOOKED_AT)).replace(minute=0, second=0, microsecond=0)
    while start <= now:
        end = start + timedelta(hours=1)
        rows = db.execute(_HOUR, (utc_text(start), utc_text(end), ROWS_AN_HOUR)).fetchall()
        seen += [
            RecentPostback(network, datetime.fromisoformat(at), verdict, about or "")
            for network, at, verdict, about in reversed(rows)
        ]
        start = end
    return seen


def find_silences(seen: Sequence[RecentPostback], now: datetime) -> Iterator[Silence]:
    """Find the networks that have fallen silent, by their own rhythms."""
    for network, theirs in _by_network(seen):
        times = [each.at for each in theirs]
        if len(times) < FEWEST_TO_KNOW_A_RHYTHM:
            continue
        every = (times[-1] - times[0]) / (len(times) - 1)
        longest = max(later - earlier for earlier, later in pairwise(times))
        silent = now - times[-1]
        if silent > max(SHORTEST_SILENCE, every * MEANS_OF_SILENCE, longest * BEYOND_THE_LONGEST):
            yield Silence(network, every, silent, times[-1])


def find_growths(seen: Sequence[RecentPostback], now: datetime) -> Iterator[Growth]:
    """Find what is turned away more than before, by network."""
    since = now - timedelta(days=1)
    earlier = since - timedelta(days=DAYS_BEFORE)
    for network, theirs in _by_network(seen):
        recent = [each for each in theirs if each.at >= since]
        before = [each for each in theirs if earlier <= each.at < since]
        for verdict in UNWANTED:
            befallen = [each for each in recent if each.verdict == verdict]
            if len(befallen) < FEWEST_TO_GROW:
                continue
            share = len(befallen) / len(recent)
            usual = sum(each.verdict == verdict for each in before) / max(len(before), 1)
            if share >= max(LEAST_SHARE, GROWN_TIMES * usual):
                [(about, _)] = Counter(each.about for each in befallen).most_common(1)
                yield Growth(network, verdict, share, usual if before else None, about)


def _by_network(seen: Sequence[RecentPostback]) -> list[tuple[str | None, list[RecentPostback]]]:
    networks: dict[str | None, list[RecentPostback]] = {}
    for each in seen:
        networks.setdefault(each.network, []).append(each)
    return sorted(networks.items(), key=lambda pair: pair[0] or "")


_GROWING = {"postbacks": "received_at", "clicks": "coalesce(clicked_at, created_at)"}

# What people import or replay has no rhythm.
_HOUR = """
    SELECT network, received_at, coalesce(settled_verdict, verdict),
        CASE verdict WHEN 'unmapped' THEN original_status ELSE coalesce(settled_reason, reason) END
    FROM postbacks
    WHERE received_at >= ? AND received_at < ? AND source IN ('http', 'pixel', 'caught')
    ORDER BY received_at DESC LIMIT ?
"""
