"""When rates are fetched, and by which process: the schedule and the lease. No input or output."""

import os
import random
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from hashlib import sha256

from postbackd.config.settings import Settings
from postbackd.db.rate_book import FetchState
from postbackd.db.rows import utc_text
from postbackd.exchange.sources import FEEDS

# The process that fetches ends itself after the first, even if it hangs; the worker that started it
# kills it after the second; the lease runs out after the third, when the process cannot hold
# anything any more.
ALARM_SECONDS = 50
CHILD_SECONDS = 60.0
LEASE_SECONDS = 90.0

# A failed fetch is tried again after a minute, then after twice as long each time, up to an hour: a
# service with an outage is asked a dozen times in its first half day, then at publication.
FIRST_RETRY_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 3600.0
TRIES_AT_MOST = 12

# A fetch is up to this later than the publication, so that receivers do not all ask in one second.
PUBLICATION_JITTER_SECONDS = 1200.0
RETRY_JITTER = 0.25

# A due time farther away than the longest wait was written by a wrong clock.
LONGEST_WAIT = timedelta(days=2)


def source_signature(settings: Settings) -> str:
    """Return a hash of the sources and their addresses; rates are due at once if it changes."""
    asked = (settings.rate_sources, sorted(settings.rate_urls.items()), settings.app_id)
    return sha256(repr(asked).encode()).hexdigest()[:16]


def is_due(current: FetchState, settings: Settings, now: datetime) -> bool:
    """Return whether rates are due and no process fetches them."""
    if not settings.rate_sources or is_under_way(current, now):
        return False
    if current.asked != source_signature(settings):
        return True
    return not _is_ahead(current.due_at, now, LONGEST_WAIT.total_seconds())


def is_under_way(current: FetchState, now: datetime) -> bool:
    """Return whether a process fetches now."""
    return _is_ahead(current.held_until, now, LEASE_SECONDS)


def _is_ahead(moment: str | None, now: datetime, seconds_at_most: float) -> bool:
    if moment is None:
        return False
    return utc_text(now) < moment <= utc_text(now + timedelta(seconds=seconds_at_most))


def take_lease(current: FetchState, settings: Settings, now: datetime, token: str) -> FetchState:
    """Return the state with the lease taken; it counts as a failed try until it succeeds."""
    mark = source_signature(settings)
    tries = 1 + (current.tries if current.asked == mark else 0)
    return FetchState(
        holder=token,
        held_until=utc_text(now + timedelta(seconds=LEASE_SECONDS)),
        due_at=utc_text(find_retry(now, tries, settings.rate_sources)),
        asked=mark,
        tries=tries,
    )


def find_retry(now: datetime, tries: int, sources: Sequence[str]) -> datetime:
    """Return the time of the next try after so many failed ones."""
    publication = find_next_publication(now, sources)
    if tries > TRIES_AT_MOST:
        return publication
    seconds = min(FIRST_RETRY_SECONDS * 2 ** (tries - 1), LONGEST_RETRY_SECONDS)
    seconds *= random.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER)  # noqa: S311 no secret
    return min(now + timedelta(seconds=seconds), publication)


def find_next_publication(now: datetime, sources: Sequence[str]) -> datetime:
    """Return the time of the next publication by one of the sources."""
    delay = timedelta(seconds=random.uniform(0, PUBLICATION_JITTER_SECONDS))  # noqa: S311
    return min(_next(now, at) for source in sources for at in FEEDS[source].published) + delay


def _next(now: datetime, at: time) -> datetime:
    today = datetime.combine(now.astimezone(UTC).date(), at, UTC)
    return today if today > now else today + timedelta(days=1)


def new_token() -> str:
    """Return a random name for a holder of the lease."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"
