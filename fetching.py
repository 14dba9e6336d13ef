"""The process that fetches: asks the sources side by side, and keeps what they say.

Started by `rounds` with an errand on standard input; says what happened on standard output, a
level and a sentence a line. Status 0: all went well; 1: some source failed or was not believed.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from time import monotonic
from urllib.parse import quote, urlsplit, urlunsplit

import ratebook
from config import find_rate_secrets
from database import DatabaseError
from download import DownloadError, download
from feeds import FEEDS, Sheet, UnreadableDocumentError, read_sheet
from masking import KeyMask, hide_in_tracebacks
from rounds import ALARM_SECONDS, ASKING_SECONDS, Errand, find_next_publication
from rows import utc_text
from sifting import Answer, Sifted, Yardstick, sift
from storage import Storage, open_database

Say = Callable[[int, str], None]

# Refusals told one by one; a document that is wrong altogether has hundreds, all alike.
REFUSALS_TOLD = 5

# Below everything that answers postbacks: a document is parsed in a millisecond, in a minute too.
NICENESS = 10


class LostLeaseError(Exception):
    """Somebody else fetches by now; nothing more may be written."""


def main() -> int:
    """Do the errand that stands on standard input."""
    # Even a name lookup that hangs in the C library ends here.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(ALARM_SECONDS)
    os.nice(NICENESS)
    errand = Errand(**json.load(sys.stdin))
    mask = KeyMask(find_rate_secrets(errand.app_id, errand.urls))
    hide_in_tracebacks(mask.hide)
    try:
        is_good = run_round(errand, datetime.now(UTC), partial(_print, mask))
    except (DatabaseError, LostLeaseError) as error:
        _print(mask, logging.WARNING, f"fetched rates were not kept: {error}")
        is_good = False
    # Threads that still wait for a source are left behind with the process.
    sys.stdout.flush()
    os._exit(0 if is_good else 1)


def _print(mask: KeyMask, level: int, sentence: str) -> None:
    line = " ".join(mask.hide(sentence).split())
    print(logging.getLevelName(level), line)  # noqa: T201 read by `rounds`


def run_round(errand: Errand, now: datetime, say: Say) -> bool:
    """Ask all sources and keep what they say; True where nothing is to be tried again."""
    answers = ask_all(errand, now)
    yardstick = Yardstick(errand.tracker, Decimal(errand.max_change), now)
    is_good = True
    with open_database(Path(errand.db_path), errand.tracker, create=False) as db:
        for place, answer in enumerate(answers):
            with db.transaction():
                _refuse_lost_lease(db, errand)
                sifted = sift(db, answers, place, yardstick)
            is_good &= not (answer.trouble or sifted.refused)
            _tell(say, answer, sifted)
        with db.transaction():
            _refuse_lost_lease(db, errand)
            _end_round(db, errand, now, is_good=is_good)
    return is_good


def ask_all(errand: Errand, now: datetime) -> list[Answer]:
    """Ask the sources side by side; one that takes too long is left behind."""
    late = f"gave no whole answer within {ASKING_SECONDS:g} seconds"
    answers = {source: Answer(source, None, late) for source in errand.sources}

    def ask(source: str) -> None:
        answers[source] = ask_source(errand, source, now)

    threads = [
        threading.Thread(target=ask, args=(source,), daemon=True) for source in errand.sources
    ]
    deadline = monotonic() + ASKING_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    return [answers[source] for source in errand.sources]


def ask_source(errand: Errand, source: str, now: datetime) -> Answer:
    """Ask one source for its newest document and read it; nothing it says repeats our keys."""
    mask = KeyMask(find_rate_secrets(errand.app_id, errand.urls))
    try:
        document = download(_address(errand, source), FEEDS[source].content_types)
        sheet = read_sheet(source, document, errand.tracker, now.date())
    except (DownloadError, UnreadableDocumentError) as error:
        return Answer(source, None, mask.hide(str(error)))
    flaws = {currency: mask.hide(flaw) for currency, flaw in sheet.flaws.items()}
    return Answer(source, sheet._replace(flaws=flaws))


def _address(errand: Errand, source: str) -> str:
    url = errand.urls.get(source) or FEEDS[source].url
    url = url.replace("{base}", errand.tracker)
    parts = urlsplit(url)
    if source != "openexchangerates" or not errand.app_id or "app_id=" in parts.query:
        return url
    query = "&".join(filter(None, (parts.query, f"app_id={quote(errand.app_id, safe='')}")))
    return urlunsplit(parts._replace(query=query))


def _refuse_lost_lease(db: Storage, errand: Errand) -> None:
    # A process that slept through its lease (a suspended machine) must not write beside another.
    if ratebook.read_round(db).holder != errand.token:
        raise LostLeaseError("another process has taken over meanwhile")


def _end_round(db: Storage, errand: Errand, now: datetime, *, is_good: bool) -> None:
    ended = ratebook.read_round(db)._replace(holder=None, held_until=None)
    if is_good:
        due_at = utc_text(find_next_publication(now, errand.sources))
        ended = ended._replace(due_at=due_at, tries=0)
    ratebook.write_round(db, ended)


def _tell(say: Say, answer: Answer, sifted: Sifted) -> None:
    if answer.sheet is None:
        say(
            logging.WARNING,
            f"rates from {answer.source}: {answer.trouble}; the rates at hand stay in force",
        )
        return
    say(logging.INFO, f"rates from {answer.source}: {_describe(answer.sheet, sifted)}")
    for sentence in sifted.believed:
        say(logging.WARNING, f"rates from {sentence}")
    for sentence in sifted.refused[:REFUSALS_TOLD]:
        say(logging.WARNING, f"rates from {sentence}: the rate at hand stays in force")
    if len(sifted.refused) > REFUSALS_TOLD:
        more = len(sifted.refused) - REFUSALS_TOLD
        say(logging.WARNING, f"rates from {answer.source}: {more} more refused, see `rates show`")


def _describe(sheet: Sheet, sifted: Sifted) -> str:
    if not sheet.rates and not sheet.flaws:
        return "it has none for the tracker's currency"
    if sifted.taken == 0:
        return f"nothing new, its newest are of {sheet.day}"
    return f"{sifted.taken} of {sheet.day} taken"


if __name__ == "__main__":
    raise SystemExit(main())
