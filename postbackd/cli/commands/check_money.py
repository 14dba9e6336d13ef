"""The `money` lines of `postback check`: money that came and was not booked as it came."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal

from postbackd.cli.commands.check_networks import Finding, Level
from postbackd.db.rows import utc_text
from postbackd.intake.booking import BookingOptions, know_currency, parse_stored
from postbackd.reports.queries import Questions
from rates import decimal_text
from statuses import MONEY, read_word

DAY = timedelta(days=1)


class Sums:
    """Sums by currency, negative amounts apart from the others.

    A refused correction must not cancel out a refused sale.
    """

    def __init__(self) -> None:
        """Begin with no sums."""
        self.count = 0
        self._sums: dict[tuple[str, bool], Decimal] = {}

    def add(self, amount: Decimal, currency: str | None) -> None:
        """Add an amount."""
        key = (currency or "(currency unknown)", amount < 0)
        self.count += 1
        self._sums[key] = self._sums.get(key, Decimal(0)) + amount

    def describe(self) -> str:
        """Write the sums for people."""
        sums = self._sums.items()
        return ", ".join(f"{decimal_text(amount)} {currency}" for (currency, _), amount in sums)


def check_money(questions: Questions, terms: BookingOptions, now: datetime) -> Iterator[Finding]:
    """Report the last day's money that was refused, repeated with another amount, or unknown."""
    since = utc_text(now - DAY)
    yield from _check_refused(questions, terms, since)
    yield from _check_repeated(questions, terms, since)
    yield from _check_unknown(questions, since)


def _check_refused(questions: Questions, terms: BookingOptions, since: str) -> Iterator[Finding]:
    sums = Sums()
    for query in questions.find_refused_queries(since):
        incoming = know_currency(questions, parse_stored(query, terms), terms).incoming
        if incoming.amount and read_word(incoming) in MONEY:
            sums.add(incoming.amount, incoming.currency)
    if sums.count:
        yield Finding(
            Level.WARNING,
            "money",
            f"{sums.describe()} in 24 hours came with sales or rebills that were refused"
            f" ({sums.count}): `postback log --verdict refused --since 1d` says why",
        )


def _check_repeated(questions: Questions, terms: BookingOptions, since: str) -> Iterator[Finding]:
    sums = Sums()
    for query, amount, currency in questions.find_repeats(since):
        incoming = know_currency(questions, parse_stored(query, terms), terms).incoming
        if incoming.amount is None or (incoming.amount, incoming.currency) == (amount, currency):
            continue
        # In one currency the difference is what may be missing, or too much.
        known = amount if amount is not None and currency == incoming.currency else Decimal(0)
        sums.add(incoming.amount - known, incoming.currency)
    if sums.count:
        yield Finding(
            Level.WARNING,
            "money",
            f"{sums.count} conversions came again in 24 hours with another amount than the stored"
            f" one (the difference is {sums.describe()}): `postback log --verdict repeated --since"
            " 1d` shows both; `repeats = update` below [postback] stores the later one",
        )


def _check_unknown(questions: Questions, since: str) -> Iterator[Finding]:
    count, total = questions.count_sales_without_amount(since)
    if count:
        # Some networks send no amounts, which is no fault; where only some sales lack one, a macro
        # is wrong.
        yield Finding(
            Level.OK if count == total else Level.WARNING,
            "money",
            f"{count} of {total} sales and rebills of 24 hours have no amount, or none in a known"
            " currency: `postback log --since 1d` shows what came; a repeat with the amount fills"
            " it in",
        )
