"""One fetch of the rates: all sources are asked at the same time, and their rates stored.

`postback rates update` runs it, for an operator or as the process that a worker has started.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from datetime import datetime
from time import monotonic
from urllib.parse import quote, urlsplit, urlunsplit

from postbackd.config.settings import Settings
from postbackd.db import rate_book
from postbackd.db.rows import utc_text
from postbackd.exchange.download import DownloadError, download
from postbackd.exchange.plausibility import FetchResult, Plausibility, SourceAnswer, save_plausible
from postbackd.exchange.schedule import ALARM_SECONDS, find_next_publication
from postbackd.exchange.sources import FEEDS, RateTable, UnreadableDocumentError, read_rate_table
from postbackd.masking import KeyMask
from storage import Storage

Say = Callable[[int, str], None]

# Time limit for all sources together; they are asked at the same time. `download` limits silence,
# this limits a source that sends slowly.
ASKING_SECONDS = 30.0

# Refusals named one by one; a document that is wrong altogether has hundreds of the same kind.
REFUSALS_TOLD = 5

# Below all processes that answer postbacks: a document takes a millisecond to parse, and may wait.
NICENESS = 10


class LostLeaseError(Exception):
    """Another process has the lease now; nothing more may be written."""


def bound_this_process() -> None:
    """Limit this process's time, and give it a lower priority than the workers."""
    # SIGALRM also ends a name lookup that hangs in the C library.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(ALARM_SECONDS)
    os.nice(NICENESS)


def fetch_rates(db: Storage, settings: Settings, token: str, now: datetime, say: Say) -> bool:
    """Ask all sources and store their answers; True if no retry is needed.

    Raises LostLeaseError if the lease of `token` has passed to another process.
    """
    answers = ask_all(settings, now)
    limits = Plausibility(settings.currency, settings.max_change, now)
    is_good = True
    for place, answer in enumerate(answers):
        with db.transaction():
            _refuse_lost_lease(db, token)
            result = save_plausible(db.db, answers, place, limits)
        is_good &= not (answer.trouble or result.refused)
        _tell(say, answer, result)
    with db.transaction():
        _refuse_lost_lease(db, token)
        _end_round(db, settings, now, is_good=is_good)
    return is_good


def ask_all(settings: Settings, now: datetime) -> list[SourceAnswer]:
    """Ask the sources at the same time; one that takes too long is not waited for."""
    late = f"gave no whole answer within {ASKING_SECONDS:g} seconds"
    answers = {source: SourceAnswer(source, None, late) for source in settings.rate_sources}

    def ask(source: str) -> None:
        answers[source] = ask_source(settings, source, now)

    threads = [
        threading.Thread(target=ask, args=(source,), daemon=True)
        for source in settings.rate_sources
    ]
    deadline = monotonic() + ASKING_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    return [answers[source] for source in settings.rate_sources]


def ask_source(settings: Settings, source: str, now: datetime) -> SourceAnswer:
    """Ask one source for its newest document and read it; our keys are masked in its words."""
    mask = KeyMask(settings.secrets())
    try:
        document = download(_address(settings, source), FEEDS[source].content_types)
        table = read_rate_table(source, document, settings.currency, now.date())
    except (DownloadError, UnreadableDocumentError) as error:
        return SourceAnswer(source, None, mask.hide(str(error)))
    flaws = {currency: mask.hide(flaw) for currency, flaw in table.flaws.items()}
    return SourceAnswer(source, table._replace(flaws=flaws))


def _address(settings: Settings, source: str) -> str:
    url = settings.rate_urls.get(source) or FEEDS[source].url
    url = url.replace("{base}", settings.currency)
    parts = urlsplit(url)
    if source != "openexchangerates" or not settings.app_id or "app_id=" in parts.query:
        return url
    query = "&".join(filter(None, (parts.query, f"app_id={quote(settings.app_id, safe='')}")))
    return urlunsplit(parts._replace(query=query))


def _refuse_lost_lease(db: Storage, token: str) -> None:
    # A process that slept past its lease (a suspended machine) must not write beside another one.
    if rate_book.read_fetch_state(db.db).holder != token:
        raise LostLeaseError("another process has taken over meanwhile")


def give_up_lease(db: Storage, token: str) -> None:
    """Release an unused lease: the next fetch need not wait until it runs out."""
    with db.transaction():
        _refuse_lost_lease(db, token)
        current = rate_book.read_fetch_state(db.db)
        rate_book.write_fetch_state(db.db, current._replace(holder=None, held_until=None))


def _end_round(db: Storage, settings: Settings, now: datetime, *, is_good: bool) -> None:
    ended = rate_book.read_fetch_state(db.db)._replace(holder=None, held_until=None)
    if is_good:
        due_at = utc_text(find_next_publication(now, settings.rate_sources))
        ended = ended._replace(due_at=due_at, tries=0)
    rate_book.write_fetch_state(db.db, ended)


def _tell(say: Say, answer: SourceAnswer, result: FetchResult) -> None:
    if answer.table is None:
        say(
            logging.WARNING,
            f"rates from {answer.source}: {answer.trouble}; the rates at hand stay in force",
        )
        return
    say(logging.INFO, f"rates from {answer.source}: {_describe(answer.table, result)}")
    for sentence in result.accepted:
        say(logging.WARNING, f"rates from {sentence}")
    for sentence in result.refused[:REFUSALS_TOLD]:
        say(logging.WARNING, f"rates from {sentence}: the rate at hand stays in force")
    if len(result.refused) > REFUSALS_TOLD:
        more = len(result.refused) - REFUSALS_TOLD
        say(logging.WARNING, f"rates from {answer.source}: {more} more refused, see `rates show`")


def _describe(table: RateTable, result: FetchResult) -> str:
    if not table.rates and not table.flaws:
        return "it has none for the tracker's currency"
    if result.taken == 0:
        return f"nothing new, its newest are of {table.day}"
    return f"{result.taken} of {table.day} taken"
