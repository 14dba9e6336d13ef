"""Judges received postbacks again, as live ones are judged.

A replay is a row of its own in the postback log, with the id of its original. It is booked at the
time at which the original came, and its verdict is stored with the original too. A replay that
would change nothing writes nothing, so a second run does nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from postbackd.db.rows import LastTry, utc_text
from postbackd.intake import booking
from postbackd.intake.booking import BOOKED, Arrival, BookingOptions, Outcome, parse_stored
from postbackd.intake.query import has_field, rewrite_query
from postbackd.masking import NO_KEYS, KeyMask
from statuses import Verdict
from storage import Storage

# How long a batch works under the write lock before its commit: with the commit some 30 ms at most,
# and no live postback waits longer.
AIM_SECONDS = 0.015

# The pause between two batches: waiting processes, which try the lock every 0.3 ms, get it.
PAUSE_SECONDS = 0.002


class Effect(StrEnum):
    """The effect of a replay."""

    ADDED = "added"  # a new conversion
    CHANGED = "changed"  # a conversion changed
    NOTED = "noted"  # another verdict, and no conversion changed
    LEFT = "left"  # nothing at all


class Corrections(NamedTuple):
    """Corrections of queries: parameters that are renamed (old: new), and that are set.

    `mask` hides keys that were not keys, or were not found, when the query was stored. `forces`:
    the replay may make changes that the rules refuse to networks.
    """

    renames: Mapping[str, str] = {}
    values: Mapping[str, str] = {}
    mask: KeyMask = NO_KEYS
    forces: bool = False

    def apply(self, query: str) -> str:
        """Return the corrected query."""
        return self.mask.hide(rewrite_query(query, self.renames, self.values))

    def find_missing(self, query: str) -> list[str]:
        """List the old names under which a query has no field."""
        return [old for old in self.renames if not has_field(query, old)]


class Original(NamedTuple):
    """A postback as it was received."""

    id: int
    received_at: str
    source: str
    query: str


class Replayed(NamedTuple):
    """The result of a replay: the query, the old and the new verdict, and the reason."""

    original: Original
    query: str
    was: Verdict | None
    verdict: Verdict | None
    effect: Effect
    reason: str
    conversion_id: int | None = None


class _NothingNewError(Exception):
    """The replay changes nothing: its savepoint is rolled back."""


def replay_all(
    db: Storage,
    originals: Sequence[Original],
    corrections: Corrections,
    terms: BookingOptions,
    read_clock: Callable[[], datetime],
) -> Iterator[list[Replayed]]:
    """Replay originals in order, in short transactions; yields the results of each."""
    done = 0
    while done < len(originals):
        with db.transaction():
            now, deadline = read_clock(), time.monotonic() + AIM_SECONDS
            batch = [replay(db, originals[done], corrections, terms, now)]
            while done + len(batch) < len(originals) and time.monotonic() < deadline:
                batch.append(replay(db, originals[done + len(batch)], corrections, terms, now))
        done += len(batch)
        yield batch
        time.sleep(PAUSE_SECONDS)


def replay(
    db: Storage, original: Original, corrections: Corrections, terms: BookingOptions, now: datetime
) -> Replayed:
    """Replay one postback within the caller's transaction."""
    query = corrections.apply(original.query)
    last = db.find_last_try(original.id)
    if last is None:
        return Replayed(original, query, None, None, Effect.LEFT, "purged meanwhile")
    if (
        query == last.query
        and last.verdict in BOOKED
        and not _brings_amount(db, query, last, terms)
    ):
        # Not tried: with `repeats = update` an older amount would be stored again.
        return _leave(original, query, last, "booked already")
    if query == last.query and last.verdict is Verdict.PARKED:
        return _leave(original, query, last, "applied by itself when its click comes")
    try:
        with db.savepoint():
            db.withdraw_parked_replays(original.id, utc_text(now))
            arrival = _read_arrival(original, query, terms, now)
            outcome = booking.record(db, arrival._replace(is_forced=corrections.forces), terms)
            _undo_nothing_new(last, outcome)
            if not corrections.forces:
                _undo_older_amount(db, original, outcome)
            if outcome.verdict is not Verdict.PARKED:
                _settle(db, original, outcome, now)
    except _NothingNewError as nothing:
        return _leave(original, query, last, str(nothing))
    return Replayed(
        original,
        query,
        last.verdict,
        outcome.verdict,
        _EFFECTS.get(outcome.verdict, Effect.NOTED),
        "; ".join((outcome.reason.detail, *outcome.warnings)),
        outcome.conversion_id,
    )


def _brings_amount(db: Storage, query: str, last: LastTry, terms: BookingOptions) -> bool:
    """Return whether an unreadable amount is readable now, as after `decimal_comma = yes`."""
    if not last.lacks_amount:
        return False
    incoming = booking.know_currency(db, parse_stored(query, terms), terms).incoming
    return incoming.amount is not None and incoming.currency is not None


_EFFECTS = {Verdict.RECORDED: Effect.ADDED, Verdict.UPDATED: Effect.CHANGED}


def _read_arrival(original: Original, query: str, terms: BookingOptions, now: datetime) -> Arrival:
    postback = parse_stored(query, terms)
    if original.source == "pixel":
        # The key is not stored, and pixel_key is valid for leads only: a mapping must not make a
        # sale of a request that a visitor invented.
        postback = postback._replace(incoming=postback.incoming._replace(leads_only=True))
    return Arrival(
        received_at=original.received_at,
        source="replay",
        method=None,
        remote_addr=None,
        query=query,
        postback=postback,
        replay_of=original.id,
        replayed_at=utc_text(now),
    )


def _undo_nothing_new(last: LastTry, outcome: Outcome) -> None:
    if last.verdict in BOOKED and outcome.verdict is Verdict.RECORDED:
        raise _NothingNewError("booked already: this would be a second conversion of it")
    if outcome.verdict in _EFFECTS:
        return
    if last.verdict is Verdict.PARKED and last.is_replay and outcome.verdict is Verdict.PARKED:
        return
    if outcome.verdict is last.verdict or last.verdict in BOOKED | {Verdict.PARKED}:
        raise _NothingNewError(outcome.reason.detail)


def _undo_older_amount(db: Storage, original: Original, outcome: Outcome) -> None:
    """Undo a replay that has replaced the amount of a later postback by its older one.

    With `repeats = update` the replay of a refused postback would do so.
    """
    if outcome.verdict is not Verdict.UPDATED or outcome.conversion_id is None:
        return
    if db.brought_older_amount(outcome.conversion_id, original.received_at):
        raise _NothingNewError("a later postback has brought another amount, which stays")


def _settle(db: Storage, original: Original, outcome: Outcome, now: datetime) -> None:
    reason = "; ".join((f"replayed: {outcome.reason.detail}", *outcome.warnings))
    db.settle_postback(original.id, utc_text(now), outcome.verdict, reason, outcome.conversion_id)


def _leave(original: Original, query: str, last: LastTry, reason: str) -> Replayed:
    return Replayed(original, query, last.verdict, last.verdict, Effect.LEFT, reason)
