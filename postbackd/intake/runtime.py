"""The receiver's working half in one process: config in force, commits, housekeeping."""

import atexit
import logging
import os
import threading
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
from postbackd.intake.group_commit import (
    TICK_SECONDS,
    WAIT_LIMIT_SECONDS,
    Committer,
    Job,
    Line,
    UnavailableError,
    cut,
)
from postbackd.masking import KeyMask
from storage import Storage, open_database

LOG = logging.getLogger("postback.service")

Clock = Callable[[], datetime]

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
        self.clock = clock
        self._watch = ConfigWatch(config_path, started_with=started_with)
        self._active_config: ActiveConfig | None = None
        self._committer = Committer(self._open_storage)
        # Held while a commit is made, and the housekeeping looked at.
        self._turn = threading.Lock()
        self._line = Line()
        self._closing = threading.Event()
        self._is_closed = False
        self._ticker: threading.Thread | None = None
        self._rate_keeper = RateKeeper()
        self._recheck = Recheck()
        self.key_uses = KeyUses()
        self._refusals = Refusals()
        self.stray_calls = StrayCalls()
        self._has_news_of_former_key = False
        self._former_key_logged_at: datetime | None = None
        self._filled_to_rate_id = -1
        self._next_tick = self._rests_until = 0.0
        self._has_opened = False
        self.healthy_until = 0.0
        atexit.register(self.close)

    def close(self) -> None:
        """Commit and answer what was taken, and stop."""
        atexit.unregister(self.close)
        if self.pid != os.getpid():
            return
        self._closing.set()
        with suppress(UnavailableError):
            last = self._line.close()
            self._line.wait(last, WAIT_LIMIT_SECONDS)
            if last.leads:
                self._line.hand_out(self._line.take(), [None])
        if self._turn.acquire(timeout=WAIT_LIMIT_SECONDS):
            self._leave_storage()
            self._turn.release()
        self._rate_keeper.close()

    def _leave_storage(self) -> None:
        self._is_closed = True
        news = self.key_uses.list_news(precision=timedelta())
        if news or self._refusals.has_any or self.stray_calls.has_any:

            def write(db: Storage) -> None:
                self.key_uses.write(db.db, news)
                self._sort_stray_calls(db)
                self._refusals.write(db.db, self.clock(), precision=timedelta())

            self._committer.commit([Job(write)])
        self._committer.leave_storage()

    def find_active_config(self) -> ActiveConfig | None:
        """Give what is in force now; None while no usable key has been read since the start."""
        settings = self._watch.current(monotonic())
        if settings is None:
            return None
        today = self.clock().astimezone(UTC).date()
        active = self._active_config
        if active is None or active.settings is not settings or active.today != today:
            active = self._active_config = read_orders(settings, today)
        return active

    # Commits

    def commit(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Do jobs in a commit made by this thread, with what is due: what each gave, or its error.

        For a server that answers many requests together.
        """
        with self._turn:
            if self._is_closed:
                return [UnavailableError("the service is stopping")] * len(jobs)
            due = self._list_due()
            outcomes: list[Any] = []
            for batch in cut([*due, *jobs]):
                outcomes += self._committer.commit(batch)
            self._note_due(outcomes[: len(due)])
        return outcomes[len(due) :]

    def run(self, job: Job[Any]) -> Any:
        """Have a job done in a commit with others, made by one of their threads: its outcome.

        For a server that gives each request a thread.
        """
        self.start()
        try:
            place = self._line.stand(job)
            self._line.wait(place, WAIT_LIMIT_SECONDS)
        except UnavailableError as error:
            return error
        if place.leads:
            self._lead()
        return place.outcome

    def _lead(self) -> None:
        batch = self._line.take()
        outcomes: list[Any] = [UnavailableError("a commit broke off")] * len(batch)
        try:
            outcomes = self.commit([place.job for place in batch])
        finally:
            self._line.hand_out(batch, outcomes)

    # Housekeeping

    def start(self) -> None:
        """See to it that the housekeeping is done where nobody else ticks, and no request comes."""
        if (
            self._ticker is None
            and not self._closing.is_set()
            and self.find_active_config() is not None
        ):
            with self._turn:
                if self._ticker is None:
                    self._ticker = threading.Thread(target=self._tick, name="ticker", daemon=True)
                    self._ticker.start()

    def _tick(self) -> None:
        # It does what a request does that comes now and then, and owns nothing.
        while not self._closing.wait(max(0.0, self._next_tick - monotonic())):
            self.run_housekeeping()

    def run_housekeeping(self) -> None:
        """Do the housekeeping where it is due."""
        if self.find_active_config() is None:
            return
        deadline = monotonic() + HOUSE_SECONDS
        while self._next_tick <= monotonic() < deadline:
            self.commit([])

    def note_refusal(self, status: int, reason: str, address: str) -> None:
        """Count a request that the server refused by itself; `postback check` shows the counts."""
        active = self.find_active_config()
        # Before a config has said how much of an address may be kept, nothing of it is.
        client = None if active is None else active.find_client(address, "")
        self._refusals.note(Kind(status, reason), client or "", self.clock())

    def _list_due(self) -> list[Job[Any]]:
        """List what is due beside the jobs of a commit."""
        active = self.find_active_config()
        if active is None or monotonic() < self._rests_until:
            return []
        now = self.clock()
        return [
            Job(partial(_settle_some, now=now, terms=active.terms)),
            Job(partial(self._fill_in, now=now)),
            Job(partial(self._rate_keeper.look, settings=active.settings, now=now)),
            Job(lambda db: self.key_uses.write(db.db, self.key_uses.list_news())),
            Job(self._sort_stray_calls),
            Job(lambda db: self._refusals.write(db.db, now)),
            Job(partial(self._log_former_key, now=now)),
        ]

    def _note_due(self, outcomes: Sequence[Any]) -> None:
        has_more = bool(outcomes) and outcomes[0] is True
        self._next_tick = monotonic() + (0 if has_more else TICK_SECONDS)
        for outcome in outcomes:
            # What the database refused has been told already.
            if isinstance(outcome, Exception) and not isinstance(outcome, UnavailableError):
                LOG.error("housekeeping broke off", exc_info=outcome)
                # What breaks once may break again, and with it all that is done along with it.
                self._rests_until = self._next_tick

    def _fill_in(self, db: Storage, now: datetime) -> None:
        last_rate_id = db.find_last_rate_id()
        if last_rate_id != self._filled_to_rate_id and repricing.fill_in_waiting(db, now) == 0:
            self._filled_to_rate_id = last_rate_id

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

    def _log_former_key(self, db: Storage, now: datetime) -> None:
        last = self._former_key_logged_at
        if not self._has_news_of_former_key or (last and now - last < FORMER_KEY_PAUSE):
            return
        # Not there yet: counts are written once a minute.
        for tally in list_tallies(db.db, now):
            if (tally.status, tally.reason) == FORMER_KEY:
                self._has_news_of_former_key = False
                self._former_key_logged_at = now
                LOG.warning("%s", describe_former_key(tally))

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


def _settle_some(db: Storage, now: datetime, terms: BookingOptions) -> bool:
    """Settle some of the clicks that are due; True where more of them wait."""
    limit = booking.DUE_CLICKS_AT_ONCE
    return booking.settle_due_clicks(db, now, terms, limit=limit) == limit
