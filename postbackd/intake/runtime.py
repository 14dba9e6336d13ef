"""The receiver's working half in one process: the config in force, the writer, the housekeeping."""

import atexit
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from postbackd.config.settings import Settings
from postbackd.config.watch import ConfigWatch
from postbackd.db.key_usage import KeyUses
from postbackd.db.refusals import Kind, Refusals, list_tallies
from postbackd.db.sqlite.connection import DoubtedError
from postbackd.db.sqlite.soundness import Recheck
from postbackd.db.stray_calls import FORMER_KEY, StrayCalls, describe_former_key
from postbackd.exchange import repricing
from postbackd.exchange.runner import RateKeeper
from postbackd.intake import booking
from postbackd.intake.booking import BookingOptions
from postbackd.intake.client_address import anonymize, find_client
from postbackd.intake.group_commit import Committer, Job, UnavailableError, Writer, attempt_all
from postbackd.masking import KeyMask
from storage import Storage, open_database

LOG = logging.getLogger("postback.service")

Clock = Callable[[], datetime]

# How long a write check is believed: /health may be asked by several balancers at once.
HEALTH_SECONDS = 2.0

# How long a server's only thread keeps house before it looks at its connections again.
HOUSE_SECONDS = 0.1

# How often the log says that somebody calls with a former key.
FORMER_KEY_PAUSE = timedelta(hours=1)


class ActiveConfig(NamedTuple):
    """What the settings come to on a day: keys by kind, terms, what is secret, who is a proxy."""

    settings: Settings
    today: date
    keys: Mapping[str, tuple[bytes, ...]]
    terms: BookingOptions
    mask: KeyMask
    find_client: Callable[[str, str], str | None]


def read_clock() -> datetime:
    """Give the present moment."""
    return datetime.now(UTC)


def _keys_by_kind(settings: Settings, today: date) -> dict[str, tuple[bytes, ...]]:
    """Give the keys that open something on a day; kinds without any are left out."""
    keys = {
        "postback": settings.postback_keys(today),
        "pixel": (settings.pixel_key,),
        "click": (settings.click_key,),
    }
    return {kind: some for kind, some in keys.items() if any(some)}


def read_orders(settings: Settings, today: date) -> ActiveConfig:
    """Give what the settings come to on a day."""
    mask = KeyMask(settings.secrets())
    return ActiveConfig(
        settings,
        today,
        _keys_by_kind(settings, today),
        booking.read_booking_options(settings),
        mask,
        # A network calls from a handful of addresses, and reading one takes longer than the
        # status engine.
        lru_cache(maxsize=1024)(partial(_find_shown_client, settings, mask)),
    )


def _find_shown_client(settings: Settings, mask: KeyMask, peer: str, forwarded: str) -> str | None:
    """Find the client's address as far as it is to be kept."""
    client = find_client(peer, forwarded, settings.trusted_proxies)
    if not client:
        return client
    # An IPv6 address may have any text for a zone: fe80::1%text.
    return anonymize(client) if settings.anonymize_ip else mask.hide(client)


class Service:
    """Belongs to the process that made it; a fork makes its own. Opens everything when needed."""

    def __init__(
        self, config_path: Path, clock: Clock = read_clock, started_with: Settings | None = None
    ) -> None:
        """Take the config file's path, where to read the time, what the server was started with."""
        self.pid = os.getpid()
        self._clock = clock
        self._watch = ConfigWatch(config_path, started_with=started_with)
        self._active_config: ActiveConfig | None = None
        self._committer = Committer(self._open_storage, self._housekeep)
        self._writer = Writer(self._committer)
        self._rate_keeper = RateKeeper()
        self._recheck = Recheck()
        self.key_uses = KeyUses()
        self._refusals = Refusals()
        self.stray_calls = StrayCalls()
        self._has_news_of_former_key = False
        self._told_of_former_key: datetime | None = None
        self._filled_to_rate_id = -1
        self._has_opened = False
        self._healthy_until = 0.0
        atexit.register(self.close)

    def close(self) -> None:
        """Commit and answer what was taken, and stop."""
        atexit.unregister(self.close)
        self._write_last_news()
        self._writer.close()
        if not self._writer.has_run:
            self._committer.leave_storage()
        self._rate_keeper.close()

    def _write_last_news(self) -> None:
        news = self.key_uses.list_news(precision=timedelta())
        if not news and not self._refusals.has_any and not self.stray_calls.has_any:
            return

        def write(db: Storage) -> None:
            self.key_uses.write(db.db, news)
            self._sort_stray_calls(db)
            self._refusals.write(db.db, self._clock(), precision=timedelta())

        # Whoever stops a service does not wait for this.
        with suppress(UnavailableError):
            if self._writer.has_run:
                self._writer.run(write, seconds=1)
            else:
                self._committer.commit([write])

    def start(self) -> None:
        """Begin the housekeeping without waiting for a request, where a config is in force."""
        if self.find_active_config() is not None:
            self._writer.start()

    def find_active_config(self) -> ActiveConfig | None:
        """Give what is in force now; None while no usable key has been read since the start."""
        settings = self._watch.current(monotonic())
        if settings is None:
            return None
        today = self._clock().astimezone(UTC).date()
        active = self._active_config
        if active is None or active.settings is not settings or active.today != today:
            active = self._active_config = read_orders(settings, today)
        return active

    def read_clock(self) -> datetime:
        """Give the present moment."""
        return self._clock()

    def run_one(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Have the writer's thread do a job, for a server that answers each request by itself."""
        (job,) = jobs
        return [self._writer.run(job)]

    def commit(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Do jobs in one commit made by this thread: what each gave, or its exception.

        For a server whose only thread answers many requests together. Not beside `run_one`.
        """
        return self._committer.commit(jobs)

    def run_housekeeping(self) -> None:
        """Do the housekeeping where it is due, for a server that uses `commit`."""
        if self.find_active_config() is None:
            return
        deadline = monotonic() + HOUSE_SECONDS
        while self._committer.next_tick <= monotonic() < deadline:
            self._committer.commit([])

    @property
    def was_healthy_lately(self) -> bool:
        """Tell whether the database has just taken a write check."""
        return monotonic() < self._healthy_until

    def note_refusal(self, kind: Kind, address: str) -> None:
        """Count a request that the server refused; the housekeeping writes the count."""
        active = self.find_active_config()
        # Before a config has said how much of an address may be kept, nothing of it is.
        client = None if active is None else active.find_client(address, "")
        self._refusals.note(kind, client or "", self._clock())

    def save_health(self) -> None:
        """Remember that the database has taken one now."""
        self._healthy_until = monotonic() + HEALTH_SECONDS

    def _open_storage(self) -> Storage:
        active = self.find_active_config()
        if active is None:
            raise UnavailableError("no usable key is in force")
        # A file that this process has seen and that is gone now is not made anew: somebody is
        # moving it, and an empty one in its place would be in the way.
        settings = active.settings
        path, currency, create = settings.db_path, settings.currency, not self._has_opened
        try:
            storage = open_database(path, currency, create=create)
        except DoubtedError:
            self._recheck.settle(path)
            storage = open_database(path, currency, create=create)
        self._has_opened = True
        # What the last commit was to bring may be gone with it.
        self.key_uses.forget_written()
        self._filled_to_rate_id = -1
        return storage

    def _housekeep(self, db: Storage) -> bool:
        """Do what is due beside the jobs; True where more of it waits already."""
        active = self.find_active_config()
        if active is None:
            return False
        now = self._clock()
        steps: list[Job[Any]] = [
            partial(_settle_some, now=now, terms=active.terms),
            partial(self._fill_in, now=now),
            partial(self._rate_keeper.look, settings=active.settings, now=now),
            lambda db: self.key_uses.write(db.db, self.key_uses.list_news()),
            self._sort_stray_calls,
            lambda db: self._refusals.write(db.db, now),
            partial(self._tell_of_former_key, now=now),
        ]
        # One that breaks does not keep the others from their turn.
        more, *others = attempt_all(db, steps)
        for outcome in (more, *others):
            if isinstance(outcome, Exception):
                LOG.error("housekeeping broke off", exc_info=outcome)
        return more is True

    def _sort_stray_calls(self, db: Storage) -> None:
        active = self.find_active_config()
        if active is None or not self.stray_calls.has_any:
            return
        accepted = {key for keys in active.keys.values() for key in keys}
        ended = {old.key for old in active.settings.old_keys}
        for kind, sighting in self.stray_calls.sort(db.db, accepted, ended):
            self._refusals.note(kind, sighting.address, sighting.at, sighting.calls)
            if kind == FORMER_KEY:
                self._has_news_of_former_key = True

    def _tell_of_former_key(self, db: Storage, now: datetime) -> None:
        told = self._told_of_former_key
        if not self._has_news_of_former_key or (told and now - told < FORMER_KEY_PAUSE):
            return
        # Not there yet: counts are written once a minute.
        for tally in list_tallies(db.db, now):
            if (tally.status, tally.reason) == FORMER_KEY:
                self._has_news_of_former_key = False
                self._told_of_former_key = now
                LOG.warning("%s", describe_former_key(tally))

    def _fill_in(self, db: Storage, now: datetime) -> None:
        last_rate_id = db.find_last_rate_id()
        if last_rate_id != self._filled_to_rate_id and repricing.fill_in_waiting(db, now) == 0:
            self._filled_to_rate_id = last_rate_id


def _settle_some(db: Storage, now: datetime, terms: BookingOptions) -> bool:
    """Settle some of the clicks that are due; True where more of them wait."""
    limit = booking.DUE_CLICKS_AT_ONCE
    return booking.settle_due_clicks(db, now, terms, limit=limit) == limit
