"""`postback rates`: exchange rates to the tracker's currency."""

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from postbackd.cli import output
from postbackd.cli.commands import rates_fetched
from postbackd.cli.context import RefusedError, load_keyless, reading, writing
from postbackd.cli.options import (
    FORMATS,
    Subparsers,
    add_command,
    add_family,
    add_json,
    add_zone,
    settle_times,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.config.settings import Settings
from postbackd.db import rate_book
from postbackd.exchange import repricing
from postbackd.reports.queries import CurrencyRate
from rates import UnreadableRateError, decimal_text, find_slip, read_currency, read_rate
from storage import Storage

COLUMNS = (
    Column("currency", Kind.WORD),
    Column("rate", Kind.WORD),
    Column("day", Kind.WORD),
    Column("source", Kind.WORD),
    Column("age_days", Kind.WORD),
    Column("waiting", Kind.WORD),
    Column("refused", Kind.SENTENCE),
)
NOTHING = "No rate is known, and no conversion waits for one."


def add_parser(subparsers: Subparsers) -> None:
    """Add `rates set`, `rates unset`, `rates show`, and the commands about fetched rates."""
    family = add_family(subparsers, "rates", "what other currencies are worth")
    setting = add_command(
        family,
        "set",
        run_set,
        "set a rate by hand: one unit's worth in the tracker's currency",
        "postback rates set EUR 1.0876",
        more="It takes precedence over fetched rates until it is unset. Amounts that waited for it"
        " are converted.\nA rate more than max_change times off the fetched one (else the one"
        " set by hand), or nearer to its\ninverse, is refused without --force.",
    )
    setting.add_argument("currency", metavar="CURRENCY", help="such as EUR")
    setting.add_argument("rate", metavar="RATE", help="such as 1.0876")
    setting.add_argument(
        "--force", action="store_true", help="set it even where it looks like a slip"
    )
    unsetting = add_command(
        family,
        "unset",
        run_unset,
        "end a rate that was set by hand",
        "postback rates unset EUR",
        more="Amounts that it has converted stay as they are.",
    )
    unsetting.add_argument("currency", metavar="CURRENCY", help="such as EUR")
    showing = add_command(
        family,
        "show",
        run_show,
        "show the rates in force, their age, the amounts that wait, and refused rates",
        "postback rates show",
        more=FORMATS,
    )
    add_zone(showing)
    add_json(showing)
    rates_fetched.add_parsers(family)


def run_set(args: argparse.Namespace) -> int:
    """Set a rate by hand and convert the amounts that waited."""
    settings = load_keyless(args)
    currency = _read_foreign_currency(args.currency, settings)
    try:
        rate = read_rate(args.rate)
    except UnreadableRateError as error:
        raise RefusedError(str(error)) from error
    now = datetime.now(UTC)
    with writing(settings) as storage:
        if not args.force:
            _refuse_slip(storage, currency, rate, settings, now)
        converted = repricing.set_rate(storage, currency, rate, now)
        converted += _fill_in(storage, now)
    output.print_line(f"1 {currency} is worth {decimal_text(rate)} {settings.currency} now.")
    if converted:
        output.print_line(f"Amounts and costs converted that waited for a rate: {converted}.")
    return 0


def _refuse_slip(
    storage: Storage, currency: str, rate: Decimal, settings: Settings, now: datetime
) -> None:
    standing = rate_book.find_standing_rate(storage.db, currency, now.date())
    slip = standing and find_slip(rate, standing.value, settings.max_change)
    if standing is None or slip is None:
        return
    raise RefusedError(
        f"1 {currency} = {decimal_text(rate)} {settings.currency} {slip}"
        f" {decimal_text(standing.value)} of {standing.day} ({standing.source}): write what one"
        f" {currency} is worth in {settings.currency}, or add --force if it is right"
    )


def _fill_in(storage: Storage, now: datetime) -> int:
    """Convert the waiting amounts piece by piece, so that a running service gets the lock."""
    converted = 0
    while True:
        with storage.transaction():
            filled = repricing.fill_in_waiting(storage, now)
        if not filled:
            return converted
        converted += filled


def run_unset(args: argparse.Namespace) -> int:
    """End a rate by hand."""
    settings = load_keyless(args)
    currency = _read_foreign_currency(args.currency, settings)
    with writing(settings, makes=False) as storage:
        now = datetime.now(UTC)
        was_set = repricing.unset_rate(storage, currency, now)
        _fill_in(storage, now)
    if not was_set:
        raise RefusedError(f"no rate for {currency} is set by hand")
    output.print_line(f"The rate for {currency} set by hand has ended.")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Show the rates."""
    settings = load_keyless(args)
    zone = settle_times(args, settings)
    today = datetime.now(UTC).date().isoformat()
    with reading(settings) as questions:
        rates = questions.list_rates(today)
        refused = {refusal.currency: refusal for refusal in questions.list_refused_rates()}
        states = questions.list_rate_sources()
    known = {rate.currency: rate for rate in rates}
    for currency in refused:
        known.setdefault(currency, CurrencyRate(currency))
    rows = [
        {
            **known[currency]._asdict(),
            "refused": rates_fetched.describe_refusal(refused.get(currency)),
        }
        for currency in sorted(known)
    ]
    if args.json:
        output.print_json(rows)
        return 0
    output.print_table(COLUMNS, map(_build_cells, rows), NOTHING)
    if output.is_terminal():
        for sentence in rates_fetched.describe_sources(settings, states, zone):
            output.print_line(sentence)
    return 0


def _read_foreign_currency(text: str, settings: Settings) -> str:
    currency = read_currency(text)
    if currency is None:
        raise RefusedError(f"{text!r} is no currency code such as EUR")
    if currency == settings.currency:
        raise RefusedError(f"{currency} is the tracker's own currency: it needs no rate")
    return currency


def _build_cells(row: Mapping[str, Any]) -> list[str]:
    return ["" if value is None else str(value) for value in row.values()]
