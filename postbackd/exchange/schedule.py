"""When rates are fetched and by whom: the schedule and the lease. Reads and writes nothing."""

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

# The process that fetches ends itself after the first, whatever it hangs in; the worker that
# started it kills it after the second, and the lease runs out after the third: then the process
# holds nothing, dead or alive.
ALARM_SECONDS = 50
CHILD_SECONDS = 60.0
LEASE_SECONDS = 90.0

# A failed round is tried again after a minute, then after twice as long each time, up to an hour:
# a service with an outage is asked a dozen times in its first half day, then at publication again.
FIRST_RETRY_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 3600.0
TRIES_AT_MOST = 12

# After a publication: later by up to this, so that receivers all over do not ask in one second.
PUBLICATION_JITTER_SECONDS = 1200.0
RETRY_JITTER = 0.25

# A due time farther off than the longest wait comes from a clock that was wrong.
LONGEST_WAIT = timedelta(days=2)


def source_signature(settings: Settings) -> str:
    """Give a short mark of what is asked and where; another mark is due at once."""
    asked = (settings.rate_sources, sorted(settings.rate_urls.items()), settings.app_id)
    return sha256(repr(asked).encode()).hexdigest()[:16]


def is_due(current: FetchState, settings: Settings, now: datetime) -> bool:
    """Tell whether rates are to be fetched and nobody is at it."""
    if not settings.rate_sources or is_under_way(current, now):
        return False
    if current.asked != source_signature(settings):
        return True
    return not _is_ahead(current.due_at, now, LONGEST_WAIT.total_seconds())


def is_under_way(current: FetchState, now: datetime) -> bool:
    """Tell whether somebody fetches now."""
    return _is_ahead(current.held_until, now, LEASE_SECONDS)


def _is_ahead(moment: str | None, now: datetime, seconds_at_most: float) -> bool:
    if moment is None:
        return False
    return utc_text(now) < moment <= utc_text(now + timedelta(seconds=seconds_at_most))


def take_lease(current: FetchState, settings: Settings, now: datetime, token: str) -> FetchState:
    """Give the round with the lease taken, counted as a failed try until it ends well."""
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
    """Give when to try again after so many tries without success."""
    publication = find_next_publication(now, sources)
    if tries > TRIES_AT_MOST:
        return publication
    seconds = min(FIRST_RETRY_SECONDS * 2 ** (tries - 1), LONGEST_RETRY_SECONDS)
    seconds *= random.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER)  # noqa: S311 no secret
    return min(now + timedelta(seconds=seconds), publication)


def find_next_publication(now: datetime, sources: Sequence[str]) -> datetime:
    """Give when one of the sources has news next."""
    delay = timedelta(seconds=random.uniform(0, PUBLICATION_JITTER_SECONDS))  # noqa: S311
    return min(_next(now, at) for source in sources for at in FEEDS[source].published) + delay


def _next(now: datetime, at: time) -> datetime:
    today = datetime.combine(now.astimezone(UTC).date(), at, UTC)
    return today if today > now else today + timedelta(days=1)


def new_token() -> str:
    """Give a name for a holder of the lease that nobody else has."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"
