"""`postback rates update`, `accept` and `recompute`: the commands about fetched rates."""

import argparse
import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal

from postbackd.cli import output
from postbackd.cli.context import RefusedError, load_keyless, writing
from postbackd.cli.options import (
    FORMATS,
    Subparsers,
    add_command,
    add_json,
    add_since,
    add_until,
    add_zone,
    settle_times,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.config.settings import Settings
from postbackd.db import rate_book
from postbackd.db.rate_book import Refusal, SourceState
from postbackd.exchange import fetch, plausibility, repricing, schedule
from postbackd.exchange.repricing import DateRange, Recomputed
from postbackd.zones import write_in_zone
from rates import decimal_text, read_currency
from storage import Storage

COLUMNS = (
    Column("conversion_id", Kind.WORD),
    Column("subid"),
    Column("tid"),
    Column("what", Kind.WORD),
    Column("amount", Kind.MONEY),
    Column("currency", Kind.WORD),
    Column("old_rate"),
    Column("rate"),
    Column("rate_day", Kind.WORD),
    Column("old_worth", Kind.MONEY),
    Column("worth", Kind.MONEY),
)
NOTHING = "Nothing would change."


def add_parsers(family: Subparsers) -> None:
    """Add `rates update`, `rates accept` and `rates recompute`."""
    updating = add_command(
        family,
        "update",
        run_update,
        "fetch the rates now, as the service does daily",
        "postback rates update",
        more="Exit status 1 where a source failed, or an implausible rate was refused.",
    )
    # The service starts the command with the token of the lease that it holds.
    updating.add_argument("--leased", metavar="TOKEN", help=argparse.SUPPRESS)
    accepting = add_command(
        family,
        "accept",
        run_accept,
        "accept a fetched rate that was refused",
        "postback rates accept EUR",
        more="`postback rates show` lists the refused rates, with reasons.",
    )
    accepting.add_argument("currency", metavar="CURRENCY", help="such as EUR")
    recomputing_ = add_command(
        family,
        "recompute",
        run_recompute,
        "convert again, at the rates of their days as they are known now, or at another day's",
        "postback rates recompute --since 2026-03-01 --until 2026-03-31 --dry-run",
        more="Each conversion that changes gets a row of history. " + FORMATS,
    )
    add_since(recomputing_)
    add_until(recomputing_)
    add_zone(recomputing_)
    recomputing_.add_argument(
        "--day", type=_read_day, metavar="DAY", help="use this day's rates for all: 2026-03-31"
    )
    recomputing_.add_argument(
        "--dry-run", action="store_true", help="only show what would change; write nothing"
    )
    add_json(recomputing_)


def run_update(args: argparse.Namespace) -> int:
    """Fetch now."""
    settings = load_keyless(args)
    if not settings.rate_sources:
        raise RefusedError('[rates] source is "none": name a source, such as "ecb,cbr"')
    if args.leased is not None:
        fetch.bound_this_process()
    with writing(settings, makes=args.leased is None) as storage:
        token = args.leased or _take_lease(storage, settings)
        try:
            is_good = fetch.fetch_rates(storage, settings, token, datetime.now(UTC), _print_event)
        except fetch.LostLeaseError as error:
            raise RefusedError(f"the fetched rates were not stored: {error}") from error
        except KeyboardInterrupt:
            fetch.give_up_lease(storage, token)
            raise
        if args.leased is None:
            _fill_in(storage)
    return 0 if is_good else 1


def _print_event(level: int, sentence: str) -> None:
    (output.print_line if level < logging.WARNING else output.print_error)(sentence)


def describe_refusal(refusal: Refusal | None) -> str | None:
    """Write which rate was refused, and for how many days in a row."""
    if refusal is None:
        return None
    days = f"for {refusal.days_in_row} days in a row" if refusal.days_in_row > 1 else "once"
    return f"{refusal.source}, {refusal.day}: {refusal.reason}; refused {days}"


def describe_sources(
    settings: Settings, states: Sequence[SourceState], zone: tzinfo
) -> Iterator[str]:
    """Write the result of the last fetch from each source in the config."""
    yield from describe_troubles(settings, states, zone)
    for state in states:
        if state.source in settings.rate_sources and state.trouble is None:
            asked_at = write_in_zone(state.asked_at, zone)
            yield f"{state.source}: asked {asked_at}, its newest rates are of {state.day}"


def describe_troubles(
    settings: Settings, states: Sequence[SourceState], zone: tzinfo
) -> Iterator[str]:
    """Write which sources in the config failed when they were last asked."""
    troubles = {state.source: state for state in states}
    for source in settings.rate_sources:
        state = troubles.get(source)
        if state is None:
            yield (
                f"{source}: not asked yet; the service does so soon after it starts, and"
                " `postback rates update` at once"
            )
        elif state.trouble is not None:
            asked = f"asked {write_in_zone(state.asked_at, zone)}"
            yield f"{source}: {state.trouble}, {asked}; the stored rates stay in force"


def _take_lease(storage: Storage, settings: Settings) -> str:
    now = datetime.now(UTC)
    token = schedule.new_token()
    with storage.transaction():
        current = rate_book.read_fetch_state(storage.db)
        if schedule.is_under_way(current, now):
            raise RefusedError("rates are being fetched right now: see `postback rates show`")
        rate_book.write_fetch_state(storage.db, schedule.take_lease(current, settings, now, token))
    return token


def run_accept(args: argparse.Namespace) -> int:
    """Accept a refused rate."""
    settings = load_keyless(args)
    currency = read_currency(args.currency)
    with writing(settings) as storage:
        with storage.transaction():
            rate = plausibility.accept(storage.db, currency or "", datetime.now(UTC))
        if rate is None:
            raise RefusedError(f"no refused rate of {args.currency!r}: see `postback rates show`")
        _fill_in(storage)
    output.print_line(
        f"1 {currency} is worth {decimal_text(rate.value)} {settings.currency} from"
        f" {rate.day} on, says {rate.source}."
    )
    return 0


def _fill_in(storage: Storage) -> None:
    now = datetime.now(UTC)
    converted = 0
    while True:
        # Piece by piece, so that a running service gets the lock in between.
        with storage.transaction():
            filled = repricing.fill_in_waiting(storage, now)
        if not filled:
            break
        converted += filled
    if converted:
        output.print_line(f"Amounts and costs converted that waited for a rate: {converted}.")


def run_recompute(args: argparse.Namespace) -> int:
    """Show the amounts at other rates, and book them where it is no dry run."""
    if args.since is None:
        args.parser.error("say since when: --since 2026-03-01")
    settings = load_keyless(args)
    settle_times(args, settings)
    span = DateRange(args.since, args.until, args.day)
    tally = Tally()
    with writing(settings) as storage:
        changes = tally.count(_recompute(storage, span, is_dry=args.dry_run))
        if args.json:
            output.print_json(change._asdict() for change in changes)
            return 0
        output.print_table(COLUMNS, map(_build_cells, changes), NOTHING)
    if output.is_terminal() and tally.changes:
        output.print_line(tally.describe(settings.currency, is_dry=args.dry_run))
    return 0


def _recompute(storage: Storage, span: DateRange, *, is_dry: bool) -> Iterator[Recomputed]:
    for chunk in repricing.list_id_chunks(storage.db, span):
        if is_dry:
            yield from repricing.recompute(storage, span, chunk)
            continue
        # Piece by piece, so that a running service gets the lock in between.
        with storage.transaction():
            changes = repricing.book_recomputed(storage, span, chunk, datetime.now(UTC))
        yield from changes


class Tally:
    """The sums of changes."""

    def __init__(self) -> None:
        """Begin with no changes."""
        self.changes = 0
        self._differences = {"payout": Decimal(0), "cost": Decimal(0)}

    def count(self, changes: Iterable[Recomputed]) -> Iterator[Recomputed]:
        """Yield the changes unchanged, and add them up."""
        for change in changes:
            self.changes += 1
            self._differences[change.kind] += Decimal(change.worth) - Decimal(change.old_worth)
            yield change

    def describe(self, currency: str, *, is_dry: bool) -> str:
        """Write the sums."""
        payouts, costs = (f"{value:+f}" for value in self._differences.values())
        verb = "would change" if is_dry else "changed"
        return (
            f"{self.changes} {verb}: payouts by {payouts} {currency}, costs by {costs} {currency}."
        )


def _build_cells(change: Recomputed) -> list[str]:
    return [
        str(change.conversion_id),
        change.subid,
        change.tid,
        change.kind,
        change.amount,
        change.currency,
        change.old_rate,
        change.rate,
        change.rate_day,
        change.old_worth,
        change.worth,
    ]


def _read_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write 2026-03-31") from None
