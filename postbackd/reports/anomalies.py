"""Finds networks that have fallen silent, and verdicts that have become more frequent.

Reads the last four weeks of the postback log, of each hour only the newest postbacks: all of them
on a tracker with few, a fair sample on others.
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
# Times the hours of four weeks: at most a hundred thousand rows, some 0.2 seconds of reading.
ROWS_AN_HOUR = 150

# A network is silent after ten times the mean time between two of its postbacks, and a quarter more
# than its longest pause in these weeks. The first rule alone would report every night and weekend;
# the second alone, a steady network after minutes. Chance alone, without nights, satisfies the
# first about once in twenty thousand postbacks (e^-10).
MEANS_OF_SILENCE = 10
BEYOND_THE_LONGEST = 1.25
FEWEST_TO_KNOW_A_RHYTHM = 10
# A restart, or a network's own maintenance, is shorter than this.
SHORTEST_SILENCE = timedelta(minutes=30)

# An unwanted verdict has grown if a tenth of a day's postbacks have it, and three times the share
# of the two weeks before; at least five postbacks, since two of three show no tendency.
UNWANTED = (Verdict.UNMAPPED, Verdict.REFUSED, Verdict.INVALID, Verdict.PARKED)
DAYS_BEFORE = 14
LEAST_SHARE = 0.1
GROWN_TIMES = 3
FEWEST_TO_GROW = 5


class RecentPostback(NamedTuple):
    """A recent postback; `about` is its status word if unmapped, else the reason."""

    network: str | None
    at: datetime
    verdict: str
    about: str


class Silence(NamedTuple):
    """A network that sends no postbacks any more."""

    network: str | None
    every: timedelta
    silent: timedelta
    last: datetime


class Growth(NamedTuple):
    """A verdict that a network gets more often than before; the shares are of all its postbacks.

    `before` is None if the network had sent nothing in the two weeks before.
    """

    network: str | None
    verdict: str
    share: float
    before: float | None
    about: str


class Size(NamedTuple):
    """Numbers of clicks and postbacks, in all and lately, and the time of the oldest postback."""

    rows: int
    recent: int
    oldest: str | None


def estimate_size(db: sqlite3.Connection, since: str) -> Size:
    """Estimate the numbers from ids and indexes, without counting: fast, but with purged rows."""
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
    """Read the sample of the last weeks, oldest first."""
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
    """Find the networks that have fallen silent, each by its own rhythm."""
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
    """Find the verdicts that have become more frequent, by network."""
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

# Imported and replayed postbacks have no rhythm.
_HOUR = """
    SELECT network, received_at, coalesce(settled_verdict, verdict),
        CASE verdict WHEN 'unmapped' THEN original_status ELSE coalesce(settled_reason, reason) END
    FROM postbacks
    WHERE received_at >= ? AND received_at < ? AND source IN ('http', 'pixel', 'caught')
    ORDER BY received_at DESC LIMIT ?
"""
