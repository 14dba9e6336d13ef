"""What a replay changes in sums: the conversions that it moves or makes, before and after."""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from postbackd.db.rows import to_json
from postbackd.db.sqlite.schema import sum_sql
from rates import micros_text, sum_of_halves
from statuses import MONEY, Status

# As many ids as a page of rows.
IDS_AT_ONCE = 500


class Sums(NamedTuple):
    """How many conversions have each status, and their money in micros of the tracker's currency.

    `waiting`: of how many the payout waits for a rate, and is in no sum.
    """

    counts: Mapping[Status, int]
    revenue_micros: int
    hold_micros: int
    waiting: int

    def describe(self) -> dict[str, Any]:
        """Give them by the names of the report."""
        counts = {f"{status}s": self.counts[status] for status in (Status.LEAD, Status.SALE)}
        return {
            **counts,
            "rejected": self.counts[Status.REJECTED],
            "rebills": self.counts[Status.REBILL],
            "revenue": micros_text(self.revenue_micros),
            "hold": micros_text(self.hold_micros),
            "waiting": self.waiting,
        }


class Touched:
    """The conversions that replays have changed so far."""

    def __init__(self, last_id: int) -> None:
        """Begin with none; the replays' rows of the log have higher ids than this."""
        self._last_id = last_id
        self._ids: set[int] = set()

    def note(self, conversion_ids: Iterable[int]) -> None:
        """Note some that were changed."""
        self._ids.update(conversion_ids)

    def add_up(self, db: sqlite3.Connection) -> tuple[Sums, Sums]:
        """Add up what they were before their first replay, and what they are now."""
        ids = sorted(self._ids)
        before: list[tuple[Any, ...]] = []
        after: list[tuple[Any, ...]] = []
        for start in range(0, len(ids), IDS_AT_ONCE):
            values = {"ids": to_json(ids[start : start + IDS_AT_ONCE]), "last_id": self._last_id}
            before += db.execute(_BEFORE, values)
            after += db.execute(_AFTER, values)
        return _build_sums(before), _build_sums(after)


def _build_sums(rows: Iterable[tuple[Any, ...]]) -> Sums:
    counts = dict.fromkeys(Status, 0)
    revenue = hold = waiting = 0
    for name, count, units, micros, unpriced in rows:
        status = Status(name)
        counts[status] += count
        payout = sum_of_halves(units, micros)
        revenue += payout if status in MONEY else 0
        hold += payout if status is Status.LEAD else 0
        # What is rejected counts nowhere, and so waits for nothing.
        waiting += 0 if status is Status.REJECTED else unpriced
    return Sums(counts, revenue, hold, waiting)


_FIRST_REPLAYS = """
    SELECT changed.conversion_id AS id, min(seq) AS first FROM conversion_history AS changed
    JOIN postbacks ON postbacks.id = postback_id AND source = 'replay'
    WHERE changed.conversion_id IN (SELECT value FROM json_each(:ids)) AND postback_id > :last_id
    GROUP BY changed.conversion_id
"""
_SUMS = f"""
    SELECT status, count(*), {sum_sql("payout_micros")},
        count(*) FILTER (WHERE payout_micros IS NULL AND amount_micros IS NOT NULL)
    FROM ({_FIRST_REPLAYS}) AS replayed
    JOIN conversion_history AS stood ON stood.conversion_id = replayed.id AND stood.seq =
"""
_BEFORE = f"{_SUMS} replayed.first - 1 GROUP BY status"
_AFTER = f"""{_SUMS}
    (SELECT max(seq) FROM conversion_history WHERE conversion_id = replayed.id) GROUP BY status
"""
