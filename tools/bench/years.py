"""Builds a busy tracker's database: clicks, and postbacks booked by the service's own code."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path

from postbackd.db.rows import ClickRow, utc_text
from postbackd.exchange import repricing
from postbackd.intake import booking
from postbackd.intake.booking import Arrival, BookingOptions
from postbackd.intake.query import read_fields, read_postback
from storage import Storage, open_database
from tools.bench.build import subid_of

CURRENCY = "USD"
DAYS = 60
CAMPAIGNS = 40
OFFERS = 12
NETWORKS = ("alfa", "bravo", "charlie", "delta", "echo")
# The status word of each network; the last sends `approved`, which is mapped nowhere.
STATUSES = ("sale", "lead", "lead", "rejected")
CURRENCIES = ("usd", "usd", "usd", "eur", "gbp", "pln")
# The last currency has no rate: its payouts are not in the sums.
RATES = {"EUR": Decimal("1.0876"), "GBP": Decimal("1.27")}

CLICKS_AT_ONCE = 20_000
POSTBACKS_AT_ONCE = 2_000


def build_tracker(path: Path, clicks: int, conversions: int, now: datetime) -> None:
    """Write clicks of the last days, a tenth of them with conversions, by the service's code."""
    chance = random.Random(1)  # noqa: S311  # the same database each time
    with open_database(path, CURRENCY) as storage:
        # The database can be built again if it is lost: no sync until it is complete.
        storage.db.execute("PRAGMA synchronous = OFF")
        for currency, rate in RATES.items():
            repricing.set_rate(storage, currency, rate, now - timedelta(days=DAYS + 1))
        for offer in range(0, OFFERS, 2):
            storage.set_offer(f"offer {offer}", allow_rebills=True)
        step = timedelta(days=DAYS) / max(clicks, 1)
        first = now - timedelta(days=DAYS)
        rows = (_click(number, first + step * number, chance) for number in range(clicks))
        while some := list(islice(rows, CLICKS_AT_ONCE)):
            with storage.transaction():
                storage.put_clicks(some, utc_text(now))
        _send_postbacks(storage, clicks, conversions, first, step, chance)
        storage.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _click(number: int, at: datetime, chance: random.Random) -> ClickRow:
    return ClickRow(
        subid=subid_of(number),
        campaign=f"campaign {chance.randrange(CAMPAIGNS)}",
        offer=f"offer {chance.randrange(OFFERS)}",
        clicked_at=utc_text(at),
        sub_ids={
            "sub_id_1": f"source {chance.randrange(200)}",
            "sub_id_2": f"creative {chance.randrange(30)}",
            "sub_id_3": f"placement {chance.randrange(5000)}",
        },
    )


def _send_postbacks(
    storage: Storage,
    clicks: int,
    conversions: int,
    first: datetime,
    step: timedelta,
    chance: random.Random,
) -> None:
    apart = max(clicks // max(conversions, 1), 1)
    arrivals = (
        arrival
        for place in range(conversions)
        for arrival in _list_arrivals(place * apart, first + step * place * apart, chance)
    )
    terms = BookingOptions(CURRENCY)
    while some := list(islice(arrivals, POSTBACKS_AT_ONCE)):
        with storage.transaction():
            for arrival in some:
                booking.record(storage, arrival, terms)


def _list_arrivals(number: int, clicked: datetime, chance: random.Random) -> Iterator[Arrival]:
    """Yield a network's postbacks about a click: a status, often one more, sometimes noise."""
    subid = subid_of(number)
    at = clicked + timedelta(minutes=chance.randrange(1, 60))
    network = chance.choice(NETWORKS)
    status = chance.choice(STATUSES)
    payout = f"{chance.randrange(100, 5000) / 100:.2f}"
    says = f"payout={payout}&currency={chance.choice(CURRENCIES)}&tid=t{number}&from={network}"
    if chance.random() < 0.1:
        says += f"&cost={chance.randrange(10, 200) / 100:.2f}"
    yield _arrive(f"subid={subid}&status={status}&{says}", at)
    if status == "lead" and chance.random() < 0.5:
        yield _arrive(f"subid={subid}&status=sale&{says}", at + timedelta(minutes=20))
    noise = chance.random()
    if noise < 0.2:
        yield _arrive(f"subid={subid}&status={status}&{says}", at + timedelta(seconds=30))
    elif noise < 0.24:
        yield _arrive(f"subid={subid}&status=approved&{says}", at)
    elif noise < 0.26:
        yield _arrive(f"subid={subid}x&status=lead&{says}", at)
    elif noise < 0.27:
        yield _arrive(f"status=sale&{says}", at)


def _arrive(query: str, at: datetime) -> Arrival:
    postback = read_postback(read_fields(query), {}, tracker_currency=CURRENCY)
    return Arrival(utc_text(at), "http", "GET", "203.0.113.9", query, postback)
