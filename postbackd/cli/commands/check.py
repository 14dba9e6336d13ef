"""`postback check`: whether everything is in order, and how to correct what is not."""

import argparse
import itertools
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

from postbackd.cli import output
from postbackd.cli.commands import rates_fetched
from postbackd.cli.commands.check_money import check_money
from postbackd.cli.commands.check_networks import Finding, Level, check_networks, span_text
from postbackd.cli.context import (
    RefusedError,
    find_config_path,
    load_keyless,
    load_settings,
    reading,
)
from postbackd.cli.options import Subparsers, add_command, add_json, add_zone
from postbackd.cli.sanitize import Column, Kind
from postbackd.config.entries import ConfigError
from postbackd.config.settings import Settings
from postbackd.db.refusals import list_tallies
from postbackd.db.rows import utc_text
from postbackd.db.sqlite import integrity, soundness
from postbackd.db.sqlite.connection import DatabaseError, describe_stopped, find_holder, name_beside
from postbackd.db.sqlite.lock_holders import find_stopped_users
from postbackd.db.stray_calls import FORMER_KEY, STRAY_KINDS, describe_former_key
from postbackd.files import find_abandoned
from postbackd.intake.booking import read_booking_options
from postbackd.reports import anomalies
from postbackd.reports.queries import CurrencyRate, Questions, Tally
from postbackd.zones import read_zone, write_in_zone
from rates import decimal_text, find_slip

COLUMNS = (Column("level", Kind.WORD), Column("check"), Column("message", Kind.SENTENCE))

# Guessing at a thousand tries a second, sixteen letters and digits outlast the sun.
SHORTEST_KEY_BYTES = 16
FEWEST_DIFFERENT_BYTES = 6
# Keys from our own examples and those of others.
EXAMPLE_KEYS = frozenset(
    {
        b"your_postback_key",
        b"your-postback-key",
        b"this_is_a_secret_key",
        b"0123456789abcdef",
        b"0123456789abcdef0123456789abcdef",
        b"d41d8cd98f00b204e9800998ecf8427e",
        b"changemechangeme",
        b"s3cret-key-of-the-tests",
    }
)

# A tenth of a gigabyte is a day at a hundred thousand postbacks; a gigabyte leaves time to act.
LITTLE_DISK_BYTES = 100_000_000
WARNING_DISK_BYTES = 1_000_000_000

# Source: the contract, on rates. Weekends and holidays have no rates of their own.
OLD_RATE_DAYS = 3
# A rate set by hand bridges a failure of some days; an older one was probably forgotten.
OLD_HAND_RATE_DAYS = 7
OLD_KEY_WARNING_DAYS = 7

# The time that it takes to order a disk.
FULL_DISK_DAYS = 30
# Fewer rows are not enough to estimate the growth.
FEWEST_ROWS_TO_GROW = 1000

WORDS_SHOWN = 5


def add_parser(subparsers: Subparsers) -> None:
    """Add `check`."""
    parser = add_command(
        subparsers,
        "check",
        run,
        "check that everything is in order, and say what to correct",
        "postback check && echo fine",
        more="Exit status 1 where there is a problem; warnings leave it 0, except with --strict."
        " Without\n--deep it is quick enough to run each minute: of a large database it reads the"
        " newest rows. A\nnetwork counts as silent when nothing came from it for ten times its"
        " usual interval, and for\nlonger than ever in four weeks.",
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="read the whole database too: SQLite's integrity check, lost references, and whether"
        " conversions, their history and their money agree; takes minutes on a large one",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit status 1 where there are only warnings, too"
    )
    add_zone(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check everything."""
    findings = list(find_all(args, datetime.now(UTC)))
    if args.json:
        output.print_json(finding._asdict() for finding in findings)
    else:
        output.print_table(COLUMNS, findings, head=False)
    bad = {Level.PROBLEM, Level.WARNING} if args.strict else {Level.PROBLEM}
    return int(any(finding.level in bad for finding in findings))


def find_all(args: argparse.Namespace, now: datetime) -> Iterator[Finding]:
    """Check the config, then the database as far as it can be read."""
    settings: Settings | None = None
    try:
        settings = load_settings(args)
    except (ConfigError, RefusedError) as error:
        yield Finding(Level.PROBLEM, "config", str(error))
        # The database can be checked without a key.
        with suppress(ConfigError, RefusedError):
            settings = load_keyless(args)
    else:
        yield from _check_config(settings)
        yield from _check_keys(settings)
    if settings is not None:
        yield from _check_files(args, settings, now)


def _check_files(args: argparse.Namespace, settings: Settings, now: datetime) -> Iterator[Finding]:
    yield from _check_modes(find_config_path(args), settings.db_path)
    yield from _check_abandoned(find_config_path(args), settings.db_path)
    yield from _check_stopped(settings.db_path)
    if doubt := soundness.describe_doubt(settings.db_path):
        yield Finding(Level.PROBLEM, "integrity", doubt)
    try:
        with reading(settings) as questions:
            yield Finding(Level.OK, "database", f"{settings.db_path} can be read")
            yield from _check_old_keys(questions, settings, now)
            yield from _check_database(questions, settings, deep=args.deep)
            if args.deep:
                yield from _check_agreement(questions)
            yield _check_disk(questions, settings.db_path, now)
            # A wrong zone is a warning about the config already.
            zone = args.tz or read_zone(settings.timezone) or UTC
            yield from _check_traffic(questions, now, zone)
            yield from _check_refusals(questions, now, zone)
            yield from check_networks(questions, now)
            yield from check_money(questions, read_booking_options(settings), now)
            yield from _check_rates(questions, settings, now, zone)
    except (DatabaseError, RefusedError) as error:
        yield Finding(Level.PROBLEM, "database", str(error))


def _check_config(settings: Settings) -> Iterator[Finding]:
    for warning in settings.warnings:
        yield Finding(Level.WARNING, "config", warning)
    if not settings.warnings:
        yield Finding(Level.OK, "config", f"{settings.path} is valid")
    if not settings.public_url_is_set:
        yield Finding(
            Level.WARNING,
            "config",
            "[system] public_url is not set: networks cannot reach the address that `url` prints",
        )


def _check_keys(settings: Settings) -> Iterator[Finding]:
    keys = {"postback_key": settings.postback_key, "click_key": settings.click_key}
    for name, key in keys.items():
        if key:
            yield _check_strength(name, key)


def _check_old_keys(questions: Questions, settings: Settings, now: datetime) -> Iterator[Finding]:
    good = [old for old in settings.old_keys if old.is_good_on(now.date())]
    uses = questions.find_key_uses([old.key for old in good])
    for old in good:
        ends_soon = old.until is not None and (old.until - now.date()).days < OLD_KEY_WARNING_DAYS
        name = "an old key" if old.until is None else f"an old key ends with {old.until}"
        used_at = uses[old.key]
        if used_at is None:
            message = f"{name}: no use of it has been recorded"
        else:
            days = (now - datetime.fromisoformat(used_at)).days
            message = f"{name}: last used {_describe_days(days)}; do all networks have the new one?"
        yield Finding(Level.WARNING if ends_soon else Level.OK, "key", message)


def _describe_days(days: int) -> str:
    return "today" if days <= 0 else "yesterday" if days == 1 else f"{days} days ago"


def _check_strength(name: str, key: bytes) -> Finding:
    flaw = None
    if len(key) < SHORTEST_KEY_BYTES:
        flaw = f"is shorter than {SHORTEST_KEY_BYTES} characters"
    elif key.lower() in EXAMPLE_KEYS:
        flaw = "is a key from an example"
    elif len(set(key)) < FEWEST_DIFFERENT_BYTES:
        flaw = "repeats a few characters"
    if flaw is None:
        return Finding(Level.OK, "key", f"{name} is long enough")
    mend = "run `postback key rotate`" if name == "postback_key" else "write 32 random letters"
    return Finding(Level.PROBLEM, "key", f"{name} {flaw} and can be guessed: {mend}")


def _check_modes(config_path: Path, db_path: Path) -> Iterator[Finding]:
    found = False
    for path in (config_path, db_path, name_beside(db_path, "-wal")):
        if path.exists() and path.stat().st_mode & stat.S_IRWXO:
            found = True
            yield Finding(
                Level.PROBLEM, "files", f"every user of this machine may read {path}: chmod o= it"
            )
    for directory in sorted({config_path.parent, db_path.parent}):
        mode = directory.stat().st_mode if directory.is_dir() else 0
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            found = True
            message = f"every user of this machine may replace files in {directory}: chmod o-w it"
            yield Finding(Level.PROBLEM, "files", message)
    if not found:
        yield Finding(Level.OK, "files", "other users of this machine cannot read key and database")


def _check_abandoned(config_path: Path, db_path: Path) -> Iterator[Finding]:
    places = {config_path.parent, db_path.parent, Path(tempfile.gettempdir())}
    for path in itertools.chain.from_iterable(map(find_abandoned, sorted(places))):
        message = (
            f"{path} was left by a command that was killed: the next `postback backup`,"
            " `key rotate` or `replay --dry-run` that writes there removes it, and so may you"
        )
        yield Finding(Level.WARNING, "files", message)


def _check_stopped(db_path: Path) -> Iterator[Finding]:
    """Report processes that are stopped (Ctrl-Z, most likely) and that others wait for."""
    holder = find_holder(db_path)
    if holder is not None and holder.is_stopped:
        yield Finding(Level.PROBLEM, "lock", f"nothing can be written: {describe_stopped(holder)}")
    for user in find_stopped_users(db_path, name_beside(db_path, "-shm")):
        if user != holder:
            message = (
                f"{user} is stopped with the database open: until it continues (`kill -CONT"
                f" {user.pid}`) or ends, the -wal file may grow"
            )
            yield Finding(Level.WARNING, "lock", message)


def _check_database(questions: Questions, settings: Settings, *, deep: bool) -> Iterator[Finding]:
    kept = questions.find_currency()
    if kept != settings.currency:
        yield Finding(
            Level.PROBLEM,
            "currency",
            f"the database has its amounts in {kept}, the config says {settings.currency}:"
            f" put {kept} back",
        )
    else:
        yield Finding(Level.OK, "currency", f"{kept}, in the config and in the database")
    damage = (
        integrity.find_all_damage(questions.db) if deep else integrity.find_damage(questions.db)
    )
    for line in damage:
        yield Finding(
            Level.PROBLEM,
            "integrity",
            f"{line}: put the latest backup in its place with `postback restore FILE`",
        )
    if not damage:
        is_whole = deep or integrity.is_small(questions.db)
        sound = "the database is undamaged"
        part = "the newest rows can be read; `postback check --deep` reads them all"
        yield Finding(Level.OK, "integrity", sound if is_whole else part)


def _check_agreement(questions: Questions) -> Iterator[Finding]:
    found = False
    for sentence, count, first in integrity.find_contradictions(questions.db):
        found = True
        message = (
            f"{count} {sentence}, the first with id {first}: was the database changed by hand?"
            " `postback conversions --history` shows what came of which postback"
        )
        yield Finding(Level.PROBLEM, "agreement", message)
    if not found:
        yield Finding(Level.OK, "agreement", "conversions, their history and their money agree")


def _check_disk(questions: Questions, db_path: Path, now: datetime) -> Finding:
    free = shutil.disk_usage(db_path.parent).free
    level = Level.OK
    if free < WARNING_DISK_BYTES:
        level = Level.PROBLEM if free < LITTLE_DISK_BYTES else Level.WARNING
    said = f"{free / 1e9:.1f} GB free for {db_path}"
    growth = _estimate_growth(questions, db_path, now)
    if growth:
        days = free / growth
        said += f", enough for {span_text(timedelta(days=min(days, 36500)))}"
        said += f" at {growth / 1e6:.1f} MB a day"
        if days < FULL_DISK_DAYS:
            level = max(level, Level.PROBLEM if days < 1 else Level.WARNING, key=list(Level).index)
    mend = "" if level is Level.OK else ": free some space in time, or see `postback purge`"
    return Finding(level, "disk", f"{said}{mend}")


def _estimate_growth(questions: Questions, db_path: Path, now: datetime) -> float:
    """Estimate the bytes a day from the last week; 0 where there are too few rows."""
    week = timedelta(days=7)
    size = anomalies.estimate_size(questions.db, utc_text(now - week))
    if size.recent < FEWEST_ROWS_TO_GROW or size.oldest is None:
        return 0
    age = now - datetime.fromisoformat(size.oldest)
    if age < timedelta(days=1):
        return 0
    bytes_a_row = db_path.stat().st_size / size.rows
    return bytes_a_row * size.recent / (min(age, week) / timedelta(days=1))


def _check_traffic(questions: Questions, now: datetime, zone: tzinfo) -> Iterator[Finding]:
    since = utc_text(now - timedelta(days=1))
    last = questions.find_last_postback()
    if last is None:
        yield Finding(
            Level.WARNING, "postbacks", "none has come in yet: paste `postback url` at a network"
        )
        return
    last_at = write_in_zone(last[0], zone)
    yield Finding(Level.OK, "postbacks", f"the last one came at {last_at}, {last[1]}")
    yield _judge_tally(
        "parked",
        questions.count_parked(since),
        "waiting for their click; import the clicks, or see `postback log --verdict parked`",
    )
    words = ", ".join(
        f"{word or '(none)'} ({count})"
        for word, count in questions.find_unmapped_words(WORDS_SHOWN)
    )
    yield _judge_tally(
        "unmapped",
        questions.count_unmapped(since),
        f"a status without a meaning: {words}; name them in the Postback URL, see"
        " `postback url --help`",
    )


def _check_refusals(questions: Questions, now: datetime, zone: tzinfo) -> Iterator[Finding]:
    tallies = list_tallies(questions.db, now)
    for tally in tallies:
        if (tally.status, tally.reason) == FORMER_KEY:
            yield Finding(Level.WARNING, "key", describe_former_key(tally, zone))
            continue
        at = datetime.fromisoformat(tally.last_at).astimezone(zone)
        what = f"requests answered {tally.status} before they were read as postbacks, in 24 hours:"
        if (tally.status, tally.reason) in STRAY_KINDS:
            what = "requests for an address of ours under no key that opens it, in 24 hours:"
        message = (
            f"{what} {tally.requests} ({tally.reason}), the last at {at:%Y-%m-%d %H:%M} {zone} from"
            f" {tally.last_address or 'a unix socket'}"
        )
        # Any stranger can cause these: they are reported, and are no reason for an alarm.
        yield Finding(Level.OK, "refused", message)
    if not tallies:
        yield Finding(Level.OK, "refused", "no request in 24 hours before it was read")


def _judge_tally(check: str, tally: Tally, sentence: str) -> Finding:
    if tally.total == 0:
        return Finding(Level.OK, check, "none")
    level = Level.WARNING if tally.recent else Level.OK
    return Finding(level, check, f"{tally.total} in all, {tally.recent} in 24 hours: {sentence}")


def _check_rates(
    questions: Questions, settings: Settings, now: datetime, zone: tzinfo
) -> Iterator[Finding]:
    rates = questions.list_rates(now.date().isoformat())
    waiting = [rate for rate in rates if rate.waiting]
    for rate in waiting:
        yield Finding(Level.PROBLEM, "rates", _describe_waiting(rate))
    ages = [rate.age_days for rate in rates if rate.source != "hand" and rate.age_days is not None]
    if settings.rate_sources and ages and min(ages) > OLD_RATE_DAYS:
        yield _judge_old_rates(questions, min(ages), now)
    elif not waiting:
        yield Finding(Level.OK, "rates", f"{len(rates)} known, nothing waits for one")
    yield from _check_rates_by_hand(questions, settings, now)
    yield from _check_sources(questions, settings, zone)


def _describe_waiting(rate: CurrencyRate) -> str:
    currency = rate.currency
    if rate.rate is None:
        said = f"{rate.waiting} conversions wait for a rate of {currency}"
        return f"{said}: run `postback rates set {currency} …`"
    return (
        f"{rate.waiting} conversions in {currency} are not converted at its rate {rate.rate}"
        f" ({rate.source}): where that does not pass by itself they are too large for it, and the"
        f" rate is wrong; run `postback rates set {currency} …`"
    )


def _check_rates_by_hand(
    questions: Questions, settings: Settings, now: datetime
) -> Iterator[Finding]:
    for currency, rate, fetched in questions.list_rates_by_hand(now.date()):
        if fetched is None:
            continue
        age = (now.date() - rate.day).days
        slip = find_slip(rate.value, fetched.value, settings.max_change)
        said = f"1 {currency} = {decimal_text(rate.value)} {settings.currency}, set by hand"
        beside = f"{decimal_text(fetched.value)} of {fetched.day} ({fetched.source})"
        if slip is not None:
            message = (
                f"{said} on {rate.day}, {slip} {beside}: `postback rates unset {currency}`, then"
                f" `postback rates recompute --since {rate.day}`, where it is wrong"
            )
            yield Finding(Level.WARNING, "rates", message)
        elif age > OLD_HAND_RATE_DAYS and fetched.day > rate.day:
            message = (
                f"{said} {age} days ago, still takes precedence over {beside}: run `postback rates"
                f" unset {currency}` if it is not wanted any more"
            )
            yield Finding(Level.WARNING, "rates", message)


def _judge_old_rates(questions: Questions, age: int, now: datetime) -> Finding:
    yesterday = utc_text(now - timedelta(days=1))
    answered = [state.answered_at or "" for state in questions.list_rate_sources()]
    if any(at > yesterday for at in answered):
        # Around Easter the ECB publishes nothing for five days.
        message = f"the newest fetched rate is {age} days old: the sources publish no newer one"
        return Finding(Level.WARNING, "rates", message)
    message = (
        f"the newest fetched rate is {age} days old: see the service log, run `postback rates"
        " update`, or set rates by hand"
    )
    return Finding(Level.PROBLEM, "rates", message)


def _check_sources(questions: Questions, settings: Settings, zone: tzinfo) -> Iterator[Finding]:
    states = questions.list_rate_sources()
    for sentence in rates_fetched.describe_troubles(settings, states, zone):
        yield Finding(Level.WARNING, "rates", sentence)
    for refusal in questions.list_refused_rates():
        told = rates_fetched.describe_refusal(refusal)
        mend = f": `postback rates accept {refusal.currency}` accepts it" if refusal.rate else ""
        yield Finding(Level.WARNING, "rates", f"{told}{mend}")
