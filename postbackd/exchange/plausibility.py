"""Checks fetched rates: sources in order of preference, jumps refused until the third day.

Tables read by `sources` are compared with `rate_book` and stored there. The caller opens the
transaction; nothing here commits.
"""

import sqlite3
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from postbackd.db import rate_book
from postbackd.db.rate_book import Refusal, RefusedRate
from postbackd.db.rows import utc_text
from postbackd.exchange.sources import RateTable
from rates import Rate, decimal_text, find_factor

# The next source replaces one that fails only if its last rates are older than this: an hour
# without the first source must not change where a rate comes from. Source: the contract, whose
# `check` warns after as many days.
DAYS_A_SOURCE_MAY_FAIL = 3

# After a devaluation rates go on moving by several per cent a day. An error, such as a lost decimal
# point, a swapped column or the rate of ten units, repeats itself far more exactly than that, or
# not at all.
SAME_WITHIN = Decimal("1.1")

# Days in a row with the same rate before a jump is accepted. Source: the contract's issue.
DAYS_TO_ACCEPT = 3

# The longest gap between two days in a row of a source: from the Thursday before Easter to the
# Tuesday after it are five.
DAYS_BETWEEN_AT_MOST = 5


class SourceAnswer(NamedTuple):
    """A source's answer: its rate table, or the sentence why there is none."""

    source: str
    table: RateTable | None
    trouble: str = ""


class Plausibility(NamedTuple):
    """The limits for rates: the tracker's currency, the largest accepted change, the time now."""

    tracker: str
    max_change: Decimal
    now: datetime


class FetchResult(NamedTuple):
    """The result for one source: the number of new rates, and a sentence for each new refusal."""

    taken: int
    accepted: tuple[str, ...]
    refused: tuple[str, ...]


def save_plausible(
    db: sqlite3.Connection, answers: Sequence[SourceAnswer], place: int, limits: Plausibility
) -> FetchResult:
    """Store the answer of the source at `place` in the order: its plausible rates, or its error."""
    source, table, trouble = answers[place]
    if table is None:
        rate_book.save_trouble(db, source, trouble, limits.now)
        return FetchResult(0, (), ())
    rate_book.save_answer(db, source, table.day, limits.now)
    store = _TableStore(db, table, answers[place + 1 :], limits)
    today = limits.now.date()
    for currency in sorted({*table.rates, *table.flaws}):
        if not _belongs_to_an_earlier(db, currency, answers[:place], today):
            store.add(currency)
    return FetchResult(store.taken, tuple(store.accepted), tuple(store.refused))


def _belongs_to_an_earlier(
    db: sqlite3.Connection, currency: str, earlier: Sequence[SourceAnswer], today: date
) -> bool:
    for source, table, _ in earlier:
        if table is not None:
            if currency in table.rates or currency in table.flaws:
                return True
            continue
        standing = rate_book.find_standing_rate(db, currency, today)
        oldest = today - timedelta(days=DAYS_A_SOURCE_MAY_FAIL)
        if standing is not None and standing.source == source and standing.day >= oldest:
            return True
    return False


class _TableStore:
    """Stores one rate table, currency by currency."""

    def __init__(
        self,
        db: sqlite3.Connection,
        table: RateTable,
        later: Sequence[SourceAnswer],
        limits: Plausibility,
    ) -> None:
        self._db = db
        self._table = table
        self._later = later
        self._limits = limits
        self.taken = 0
        self.accepted: list[str] = []
        self.refused: list[str] = []

    def add(self, currency: str) -> None:
        """Store a currency's rate, or a refusal with the reason."""
        source, day = self._table.source, self._table.day
        if rate_book.has_rate(self._db, currency, day, source):
            return
        standing = rate_book.find_standing_rate(self._db, currency, day)
        value = self._table.rates.get(currency)
        if value is None:
            self._refuse_flaw(currency, standing)
            return
        doubt = self._find_doubt(currency, value, standing)
        if doubt is None:
            self._take(currency, value)
        else:
            self._refuse_for_now(currency, value, standing, doubt)

    def _find_doubt(self, currency: str, value: Decimal, standing: Rate | None) -> str | None:
        max_change = self._limits.max_change
        quoted = f"1 {currency} = {_brief(value)} {self._limits.tracker}"
        if standing is None:
            return self._find_disagreement(currency, value, quoted)
        if find_factor(value, standing.value) <= max_change:
            return None
        return (
            f"{quoted} is more than {max_change} times off {_brief(standing.value)}"
            f" of {standing.day} ({standing.source})"
        )

    def _find_disagreement(self, currency: str, value: Decimal, quoted: str) -> str | None:
        # There is no earlier rate; a later source's of the same fetch is compared instead.
        for answer in self._later:
            other = answer.table.rates.get(currency) if answer.table is not None else None
            if other is not None and find_factor(value, other) > self._limits.max_change:
                return f"{quoted}, and {answer.source} says {_brief(other)}"
        return None

    def _take(self, currency: str, value: Decimal) -> None:
        rate = Rate(value, self._table.day, self._table.source)
        rate_book.add_rate(self._db, currency, rate, self._limits.now)
        self.taken += 1

    def _refuse_for_now(
        self, currency: str, value: Decimal, standing: Rate | None, doubt: str
    ) -> None:
        source, day = self._table.source, self._table.day
        since = _day_before_which_nothing_counts(standing)
        refused = rate_book.list_refused_before(self._db, currency, source, day, since)
        days = count_days_in_row(value, day, refused)
        if days < DAYS_TO_ACCEPT:
            self._write_refusal(currency, decimal_text(value), doubt, days)
            return
        self._take(currency, value)
        rate_book.end_refusals(self._db, currency, source, day, self._limits.now)
        self.accepted.append(f"{source}, {day}: {doubt}; accepted after {days} days of the same")

    def _refuse_flaw(self, currency: str, standing: Rate | None) -> None:
        since = _day_before_which_nothing_counts(standing)
        days = 1 + rate_book.count_flawed_days(self._db, currency, self._table.source, since)
        self._write_refusal(currency, "", f"{currency}: {self._table.flaws[currency]}", days)

    def _write_refusal(self, currency: str, rate: str, reason: str, days: int) -> None:
        source, day = self._table.source, self._table.day
        at = utc_text(self._limits.now)
        refusal = Refusal(currency, str(day), source, rate, reason, days, at)
        if rate_book.add_refusal(self._db, refusal):
            self.refused.append(f"{source}, {day}: {reason}; refused")


def accept(db: sqlite3.Connection, currency: str, now: datetime) -> Rate | None:
    """Accept the refused rate of a currency; None if none is refused."""
    refusal = rate_book.find_acceptable(db, currency)
    if refusal is None:
        return None
    rate = Rate(Decimal(refusal.rate), date.fromisoformat(refusal.day), refusal.source)
    rate_book.add_rate(db, currency, rate, now)
    rate_book.end_refusals(db, currency, rate.source, rate.day, now)
    return rate


def count_days_in_row(value: Decimal, day: date, refused: Sequence[RefusedRate]) -> int:
    """Count the source's days up to this one with the same rate; `refused`: newest first."""
    seen = [value]
    days = [day]
    for earlier in refused:
        if earlier.day >= days[-1]:
            continue
        is_next = (days[-1] - earlier.day).days <= DAYS_BETWEEN_AT_MOST
        seen.append(earlier.value)
        if not is_next or find_factor(max(seen), min(seen)) > SAME_WITHIN:
            break
        days.append(earlier.day)
    return len(days)


def _day_before_which_nothing_counts(standing: Rate | None) -> date:
    # Refusals are counted since the last accepted rate of this source; a manual rate does not reset
    # the count.
    return date.min if standing is None or standing.source == "hand" else standing.day


def _brief(rate: Decimal) -> str:
    # For messages; the database has all digits.
    return decimal_text(Decimal(f"{rate:.8g}"))
