"""Books the requests that nginx caught while the receiver was away, at their own time."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from io import BytesIO
from typing import NamedTuple

from postback import ROUTES, mend_address, read_arrival, read_click
from postbackd.bulk.caught_file import Caught, Line, tag_key
from postbackd.config.settings import Settings
from postbackd.db.rows import ClickRow, KnownClick, utc_text
from postbackd.db.sqlite.connection import LOCK_POLL_SECONDS
from postbackd.intake import booking
from postbackd.intake.body import Environ
from postbackd.intake.booking import Arrival, BookingOptions, read_booking_options
from postbackd.intake.runtime import ActiveConfig, read_orders
from postbackd.intake.sandbox import LAST_REAL_ID, Rehearsal
from postbackd.intake.unpacking import TooLargeError
from statuses import MONEY, Status, Verdict
from storage import Storage

# The request was read and not booked: it is in the file only.
LEFT = "left"
# The line has no readable request.
SKIPPED = "skipped"

# How long requests are booked before a commit. With the commit's sync the write lock is held for
# some 45 ms, and no live postback waits longer.
WORK_SECONDS = 0.03
# By then the write-ahead log has some two thousand pages, after which SQLite would checkpoint it
# itself.
PIECES_A_CHECKPOINT = 16

_STRANGE_KEY = (
    "its key is none that the config has for that day: a stranger's, or one that was removed since"
    " (put it into postback_key_old again to book it)"
)
_NO_CLICK = (
    "its click is not known: import the click and then this file again, or park the postback with"
    " --park"
)
_OVERTAKEN = (
    "its conversion became a sale after this rejection had come, and with `unreject = yes` the"
    " later one counts"
)
_KNOWN_CLICK = "the click is known already"


class Entry(NamedTuple):
    """A line of a file."""

    file: str
    line: Line


class BookedRequest(NamedTuple):
    """The verdict of a line; `is_in` where its request is in the database, or was before."""

    entry: Entry
    verdict: str
    reason: str
    warnings: tuple[str, ...] = ()
    arrival: Arrival | None = None
    conversion_id: int | None = None
    is_in: bool = True


class CaughtImporter:
    """Books caught requests at their own time, in pieces that hold the write lock for a moment.

    A postback without a click is tried again at the end: the file may have the click, too.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        *,
        parks: bool = False,
    ) -> None:
        """Remember the database, the config, and whether to park postbacks without a click."""
        self._storage = storage
        self._terms = read_booking_options(settings)
        self._keyring = Keyring(settings)
        self._parks = parks
        self._waiting: list[Entry] = []
        self._pieces = 0

    def take(self, entries: Sequence[Entry]) -> Iterator[list[BookedRequest]]:
        """Book the requests that can be booked; yielded ones are on disk."""
        yield from self._take(entries, self._book_or_wait)

    def finish(self) -> Iterator[list[BookedRequest]]:
        """Book the postbacks that waited for a click; park or leave those still without one."""
        waiting, self._waiting = self._waiting, []
        yield from self._take(waiting, self._book_or_end)

    def list_queries(self, entries: Sequence[Entry]) -> list[str]:
        """List the queries of the requests with our keys, as they would be stored."""
        queries = []
        for entry in entries:
            caught = entry.line.caught
            if caught is not None and (route := self._keyring.find_route(caught)) is not None:
                queries.append(_read(caught, route).query)
        return queries

    def _take(
        self, entries: Sequence[Entry], book: Callable[[Entry], BookedRequest | None]
    ) -> Iterator[list[BookedRequest]]:
        start = 0
        while start < len(entries):
            deadline = time.monotonic() + WORK_SECONDS
            piece: list[BookedRequest | None] = []
            with self._storage.transaction():
                while start + len(piece) < len(entries):
                    piece.append(book(entries[start + len(piece)]))
                    # After the line: on a busy machine the time may be over before the first one.
                    if time.monotonic() >= deadline:
                        break
            start += len(piece)
            yield [told for told in piece if told is not None]
            self._let_others_through()

    def _book_or_wait(self, entry: Entry) -> BookedRequest | None:
        told = self._book(entry)
        if told is None:
            self._waiting.append(entry)
        return told

    def _book_or_end(self, entry: Entry) -> BookedRequest:
        return self._book(entry) or self._end(entry)

    def _book(self, entry: Entry) -> BookedRequest | None:
        """Book a request; None where its click is not known, or not named."""
        caught = entry.line.caught
        if caught is None:
            return BookedRequest(entry, SKIPPED, entry.line.flaw, is_in=False)
        route = self._keyring.find_route(caught)
        if route is None:
            return BookedRequest(entry, LEFT, _STRANGE_KEY, is_in=False)
        try:
            if route.is_click:
                return self._take_click(entry, caught, route)
            return self._take_postback(entry, _read(caught, route))
        except TooLargeError:
            return BookedRequest(entry, LEFT, "its body is longer than 64 KiB", is_in=False)

    def _take_postback(self, entry: Entry, arrival: Arrival) -> BookedRequest | None:
        incoming = arrival.postback.incoming
        came = self._storage.find_same_request(
            incoming.subid, arrival.query, arrival.body, arrival.received_at
        )
        if came is not None:
            reason = f"the same request was received at {came} and is stored already"
            return BookedRequest(entry, Verdict.REPEATED, reason, (), arrival)
        known = self._storage.find_click(incoming.subid) if incoming.subid else None
        if known is None:
            return None
        if incoming.leads_only and (no_lead := self._find_no_lead(arrival)):
            return BookedRequest(entry, LEFT, no_lead, (), arrival, is_in=False)
        terms = self._find_terms(known, arrival)
        if terms is not self._terms and self._is_overtaken(arrival):
            return BookedRequest(entry, LEFT, _OVERTAKEN, (), arrival, is_in=False)
        return self._keep(entry, arrival, terms)

    def _keep(self, entry: Entry, arrival: Arrival, terms: BookingOptions) -> BookedRequest:
        outcome = booking.record(self._storage, arrival, terms)
        return BookedRequest(
            entry,
            outcome.verdict,
            outcome.reason.detail,
            outcome.warnings,
            arrival,
            outcome.conversion_id,
        )

    def _find_no_lead(self, arrival: Arrival) -> str | None:
        """Return why a request with the pixel's key is no lead; None for a lead.

        Such a request is not written: its row would not say that its key was the pixel's, and a
        replay could make a sale of a request that a visitor invented.
        """
        outcome = booking.preview(self._storage, arrival, self._terms)
        is_none = outcome.verdict in {Verdict.REFUSED, Verdict.UNMAPPED}
        return outcome.reason.detail if is_none else None

    def _find_terms(self, known: KnownClick, arrival: Arrival) -> BookingOptions:
        """Return the options; a request older than a conversion's last change changes no value."""
        if not self._storage.has_moved_since(known.id, arrival.received_at):
            return self._terms
        policy = self._terms.policy._replace(updates_on_repeat=False, unrejects=False)
        return self._terms._replace(policy=policy)

    def _is_overtaken(self, arrival: Arrival) -> bool:
        if not self._terms.policy.unrejects:
            # A rejection is final, whenever it comes.
            return False
        decision, _ = booking.judge_arrival(self._storage, arrival, self._terms)
        change = decision.change
        return (
            change is not None
            and change.status is Status.REJECTED
            and change.conversion is not None
            and change.conversion.status in MONEY
        )

    def _end(self, entry: Entry) -> BookedRequest:
        """Park a postback without a click, as the receiver would have done, or leave it."""
        caught = entry.line.caught
        route = None if caught is None else self._keyring.find_route(caught)
        assert caught is not None
        assert route is not None
        arrival = _read(caught, route)
        outcome = booking.preview(self._storage, arrival, self._terms)
        if self._parks and not (arrival.postback.incoming.leads_only and outcome.verdict in _BAD):
            return self._keep(entry, arrival, self._terms)
        reason = outcome.reason.detail if outcome.verdict in _BAD else _NO_CLICK
        return BookedRequest(entry, LEFT, reason, outcome.warnings, arrival, is_in=False)

    def _take_click(self, entry: Entry, caught: Caught, route: "Opened") -> BookedRequest:
        reading = read_click(_build_environ(caught), route.active)
        arrival = _read(caught, route)
        row = reading.row
        if row is None:
            return BookedRequest(entry, LEFT, reading.flaw, reading.warnings, arrival, is_in=False)
        known = self._storage.find_click(row.subid)
        new = row if known is None else self._keep_unknown(row, known)
        if known is not None and new == ClickRow(row.subid):
            return BookedRequest(entry, Verdict.REPEATED, _KNOWN_CLICK, reading.warnings, arrival)
        # Applies the postbacks that were parked for this click meanwhile.
        booking.record_clicks(self._storage, [new], caught.received_at, self._terms)
        verdict = Verdict.RECORDED if known is None else Verdict.UPDATED
        return BookedRequest(entry, verdict, "a click", reading.warnings, arrival)

    def _keep_unknown(self, row: ClickRow, known: KnownClick) -> ClickRow:
        """Reduce the row to values that the stored click lacks: its own may be newer."""
        gaps = self._storage.find_click_gaps(known.id)
        said = json.loads(known.sub_ids)
        return ClickRow(
            row.subid,
            campaign=row.campaign if "campaign" in gaps else None,
            offer=row.offer if "offer" in gaps else None,
            clicked_at=row.clicked_at if "clicked_at" in gaps else None,
            cost_model=row.cost_model if "cost_model" in gaps else None,
            sub_ids={name: value for name, value in row.sub_ids.items() if name not in said},
            external_id=row.external_id if "external_id" in gaps else None,
            source=row.source if "source" in gaps else None,
            cost=row.cost if "cost" in gaps else None,
            currency=row.currency if "cost" in gaps else None,
        )

    def _let_others_through(self) -> None:
        self._pieces += 1
        if self._pieces % PIECES_A_CHECKPOINT == 0:
            # Without the write lock, so that no postback's commit has to do it.
            self._storage.checkpoint()
        # Waiting processes try the lock every LOCK_POLL_SECONDS: without a pause we would get it
        # each time.
        time.sleep(2 * LOCK_POLL_SECONDS)


_BAD = frozenset({Verdict.INVALID, Verdict.UNMAPPED, Verdict.IGNORED, Verdict.REFUSED})


class RehearsedImporter(CaughtImporter):
    """Books into a sandbox, a throw-away copy of the rows that the requests touch."""

    def __init__(
        self,
        rehearsal: Rehearsal,
        settings: Settings,
        read_clock: Callable[[], datetime],
        *,
        parks: bool = False,
    ) -> None:
        """Remember the sandbox, the config, the clock, and whether to park."""
        super().__init__(rehearsal.storage, settings, parks=parks)
        self._read_clock = read_clock
        self._rehearsal = rehearsal

    def take(self, entries: Sequence[Entry]) -> Iterator[list[BookedRequest]]:
        """Yield the verdicts that requests would get."""
        self._rehearsal.take(self.list_queries(entries))
        booking.settle_all_due_clicks(self._storage, self._terms, self._read_clock)
        yield from map(_without_copied_ids, super().take(entries))

    def finish(self) -> Iterator[list[BookedRequest]]:
        """Yield the verdicts that the waiting postbacks would get."""
        yield from map(_without_copied_ids, super().finish())


def _without_copied_ids(piece: list[BookedRequest]) -> list[BookedRequest]:
    return [
        told._replace(conversion_id=None) if (told.conversion_id or 0) > LAST_REAL_ID else told
        for told in piece
    ]


class Opened(NamedTuple):
    """The address that a request's key opens, a click's or a postback's, and its settings."""

    active: ActiveConfig
    is_click: bool
    leads_only: bool


class Keyring:
    """Finds keys by their tags, among those that the config has for the day of a request."""

    def __init__(self, settings: Settings) -> None:
        """Remember the config."""
        self._settings = settings
        self._days: dict[date, tuple[ActiveConfig, Mapping[str, set[str]]]] = {}

    def find_route(self, caught: Caught) -> Opened | None:
        """Find the address that a request's key opens; None for a key that does not open it."""
        day = caught.received_at.astimezone(UTC).date()
        if day not in self._days:
            self._days[day] = self._read_day(day)
        active, kinds_by_tag = self._days[day]
        kinds = kinds_by_tag.get(caught.tag, ())
        for route in ROUTES:
            if route.name.decode() == caught.name and route.key in kinds:
                return Opened(active, route.key == "click", route.key == "pixel")
        return None

    def _read_day(self, day: date) -> tuple[ActiveConfig, Mapping[str, set[str]]]:
        active = read_orders(self._settings, day)
        kinds: dict[str, set[str]] = {}
        for kind, keys in active.keys.items():
            for key in filter(None, keys):
                kinds.setdefault(tag_key(key), set()).add(kind)
        return active, kinds


def _read(caught: Caught, route: Opened) -> Arrival:
    """Read a request as the receiver reads it."""
    at = utc_text(caught.received_at)
    arrival = read_arrival(_build_environ(caught), at, route.active)
    incoming = arrival.postback.incoming._replace(leads_only=route.leads_only)
    return arrival._replace(source="caught", postback=arrival.postback._replace(incoming=incoming))


def _build_environ(caught: Caught) -> Environ:
    body = caught.body.encode("latin-1")
    environ = {
        "REQUEST_METHOD": caught.method,
        "QUERY_STRING": caught.query,
        "REMOTE_ADDR": caught.address,
        "CONTENT_TYPE": caught.content_type,
        "CONTENT_LENGTH": str(len(body)) if body else "",
        "HTTP_CONTENT_ENCODING": caught.encoding,
        "HTTP_COOKIE": caught.cookies,
    }
    said = {name: text for name, text in environ.items() if text}
    # nginx has removed the key from the path; which key it was is known by its tag.
    path = f"/-/{caught.name}{caught.tail}"
    return mend_address({**said, "PATH_INFO": path, "wsgi.input": BytesIO(body)})
