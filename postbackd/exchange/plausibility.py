"""Which of the fetched rates are believed: sources in turn, jumps refused, three days believed.

What `sources` read is held against `rate_book` and kept there. The caller holds the
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

# A source that fails is stood in for by the next one only when its last rates are older: an hour
# without the first source must not change where a rate comes from. Source: the contract, which
# has `check` speak up after as many days.
DAYS_A_SOURCE_MAY_FAIL = 3

# After a devaluation rates go on moving by several per cent a day; a slip, such as a lost decimal
# point, a swapped column or the rate of ten units, repeats itself far closer than that or not at
# all.
SAME_WITHIN = Decimal("1.1")

# Days in a row that must say the same before a jump is believed. Source: the contract's issue.
DAYS_TO_BELIEVE = 3

# Between two days of a source that follow each other: from the Thursday before Easter to the
# Tuesday after it are five.
DAYS_BETWEEN_AT_MOST = 5


class SourceAnswer(NamedTuple):
    """What came of asking a source: a sheet, or the sentence why there is none."""

    source: str
    table: RateTable | None
    trouble: str = ""


class Plausibility(NamedTuple):
    """What rates are held against: the tracker's currency, the largest believable move, now."""

    tracker: str
    max_change: Decimal
    now: datetime


class FetchResult(NamedTuple):
    """What came of an answer: how many rates are new, and a sentence for each new refusal."""

    taken: int
    believed: tuple[str, ...]
    refused: tuple[str, ...]


def save_plausible(
    db: sqlite3.Connection, answers: Sequence[SourceAnswer], place: int, yardstick: Plausibility
) -> FetchResult:
    """Keep what the source in one place of the turn answered: its rates, or its trouble."""
    source, table, trouble = answers[place]
    if table is None:
        rate_book.save_trouble(db, source, trouble, yardstick.now)
        return FetchResult(0, (), ())
    rate_book.save_answer(db, source, table.day, yardstick.now)
    sieve = _Sieve(db, table, answers[place + 1 :], yardstick)
    today = yardstick.now.date()
    for currency in sorted({*table.rates, *table.flaws}):
        if not _belongs_to_an_earlier(db, currency, answers[:place], today):
            sieve.put(currency)
    return FetchResult(sieve.taken, tuple(sieve.believed), tuple(sieve.refused))


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


class _Sieve:
    """One sheet on its way into the book."""

    def __init__(
        self,
        db: sqlite3.Connection,
        table: RateTable,
        later: Sequence[SourceAnswer],
        yardstick: Plausibility,
    ) -> None:
        self._db = db
        self._sheet = table
        self._later = later
        self._yardstick = yardstick
        self.taken = 0
        self.believed: list[str] = []
        self.refused: list[str] = []

    def put(self, currency: str) -> None:
        """Take a currency's rate into the book, or write down why it is not believed."""
        source, day = self._sheet.source, self._sheet.day
        if rate_book.has_rate(self._db, currency, day, source):
            return
        standing = rate_book.find_standing_rate(self._db, currency, day)
        value = self._sheet.rates.get(currency)
        if value is None:
            self._refuse_flaw(currency, standing)
            return
        doubt = self._find_doubt(currency, value, standing)
        if doubt is None:
            self._take(currency, value)
        else:
            self._refuse_for_now(currency, value, standing, doubt)

    def _find_doubt(self, currency: str, value: Decimal, standing: Rate | None) -> str | None:
        max_change = self._yardstick.max_change
        quoted = f"1 {currency} = {_brief(value)} {self._yardstick.tracker}"
        if standing is None:
            return self._find_disagreement(currency, value, quoted)
        if find_factor(value, standing.value) <= max_change:
            return None
        return (
            f"{quoted} is more than {max_change} times off {_brief(standing.value)}"
            f" of {standing.day} ({standing.source})"
        )

    def _find_disagreement(self, currency: str, value: Decimal, quoted: str) -> str | None:
        # The very first rate has nothing before it; another source of the same round is as good.
        for answer in self._later:
            other = answer.table.rates.get(currency) if answer.table is not None else None
            if other is not None and find_factor(value, other) > self._yardstick.max_change:
                return f"{quoted}, and {answer.source} says {_brief(other)}"
        return None

    def _take(self, currency: str, value: Decimal) -> None:
        rate = Rate(value, self._sheet.day, self._sheet.source)
        rate_book.add_rate(self._db, currency, rate, self._yardstick.now)
        self.taken += 1

    def _refuse_for_now(
        self, currency: str, value: Decimal, standing: Rate | None, doubt: str
    ) -> None:
        source, day = self._sheet.source, self._sheet.day
        since = _day_before_which_nothing_counts(standing)
        refused = rate_book.list_refused_before(self._db, currency, source, day, since)
        days = count_days_in_row(value, day, refused)
        if days < DAYS_TO_BELIEVE:
            self._write_refusal(currency, decimal_text(value), doubt, days)
            return
        self._take(currency, value)
        rate_book.end_refusals(self._db, currency, source, day, self._yardstick.now)
        self.believed.append(f"{source}, {day}: {doubt}; believed, as it says so for {days} days")

    def _refuse_flaw(self, currency: str, standing: Rate | None) -> None:
        since = _day_before_which_nothing_counts(standing)
        days = 1 + rate_book.count_flawed_days(self._db, currency, self._sheet.source, since)
        self._write_refusal(currency, "", f"{currency}: {self._sheet.flaws[currency]}", days)

    def _write_refusal(self, currency: str, rate: str, reason: str, days: int) -> None:
        source, day = self._sheet.source, self._sheet.day
        at = utc_text(self._yardstick.now)
        refusal = Refusal(currency, str(day), source, rate, reason, days, at)
        if rate_book.add_refusal(self._db, refusal):
            self.refused.append(f"{source}, {day}: {reason}; refused")


def accept(db: sqlite3.Connection, currency: str, now: datetime) -> Rate | None:
    """Take the refused rate of a currency after all; None where none is refused."""
    refusal = rate_book.find_acceptable(db, currency)
    if refusal is None:
        return None
    rate = Rate(Decimal(refusal.rate), date.fromisoformat(refusal.day), refusal.source)
    rate_book.add_rate(db, currency, rate, now)
    rate_book.end_refusals(db, currency, rate.source, rate.day, now)
    return rate


def count_days_in_row(value: Decimal, day: date, refused: Sequence[RefusedRate]) -> int:
    """Count the source's days up to this one that say the same; `refused`: newest first."""
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
    # A rate that was believed breaks the row of refusals; one by hand says nothing of a source.
    return date.min if standing is None or standing.source == "hand" else standing.day


def _brief(rate: Decimal) -> str:
    # For people; the book has all digits.
    return decimal_text(Decimal(f"{rate:.8g}"))
