"""The WSGI callable: a request in, a verdict out. Run it as `gunicorn postback:application`.

Requests are answered in batches, since a sync of the disk costs as much for one as for a hundred:

    read      `_read`: the environ becomes an `Answer`, or a `DatabaseWork`: a job for the database
              and the answer to make of its outcome (`query` and `click` read what was sent)
    judge     `booking.record`, one job after the other in one transaction (`statuses` decides)
    commit    `group_commit.Committer`: the rows of all of them, one sync
    answer    `_finish`: each `DatabaseWork` makes its answer of what came of its job, a 503 where
              nothing was committed

`Receiver.answer_all` goes these steps for a server that gathers requests, such as our worker;
`Receiver.__call__`, plain WSGI, for one request, and shares the commit with other threads. Only
judging and the commit hold the write lock. HTTP is spoken here alone.
"""

import hmac
import logging
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache, partial
from http import HTTPStatus
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from postbackd.config.entries import ConfigError
from postbackd.config.settings import Settings, find_config, load
from postbackd.db.rows import utc_text
from postbackd.intake import booking, click
from postbackd.intake.answers import (
    CORS,
    EXPOSED,
    NO_STORE,
    RETRY_AFTER,
    Answer,
    Headers,
    text_answer,
    unavailable_answer,
    write_text,
)
from postbackd.intake.body import BODY_LIMIT_BYTES, CutShortError, Environ, read_body
from postbackd.intake.booking import Arrival, Outcome
from postbackd.intake.group_commit import Job, UnavailableError, attempt
from postbackd.intake.query import (
    names_click,
    read_cookies,
    read_fields,
    read_postback,
    says_all_of,
    store_query,
    warn_of_nested,
    warn_of_query,
)
from postbackd.intake.runtime import ActiveConfig, Clock, Service, read_clock
from postbackd.intake.unpacking import TooLargeError
from postbackd.masking import NO_KEYS
from statuses import Verdict
from storage import Storage

LOG = logging.getLogger("postback")

REASON_LIMIT_CHARACTERS = 200

# How long a write check is believed: /health may be asked by several balancers at once.
HEALTH_SECONDS = 2.0

# The transparent pixel: 1x1, two colours, the first of them transparent. Source: GIF89a.
PIXEL = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)

StartResponse = Callable[..., Any]

METHODS = "GET, HEAD, POST, OPTIONS"
# What a browser asks before a script of a landing page may call us.
_PREFLIGHT = [
    ("Access-Control-Allow-Methods", METHODS),
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Max-Age", "86400"),
    ("Allow", METHODS),
]


class Receiver:
    """The receiver for one config file, as a WSGI callable; opens nothing before a request."""

    def __init__(self, config_path: Path | None = None, clock: Clock = read_clock) -> None:
        """Take the config file (None: POSTBACK_CONFIG or the working directory) and a clock."""
        self._config_path = config_path
        self._clock = clock
        self._service: Service | None = None
        self._started_with: Settings | None = None
        # Services of the process we were forked from: closing their database here would be unsafe.
        self._left_behind: list[Service] = []
        self._making = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; its commit is shared with those of other threads."""
        batch = self._begin()
        reading = _read(environ, batch)
        if isinstance(reading, DatabaseWork):
            reading = _finish(reading, batch.service.run(reading.job), batch)
        headers = reading.headers
        if reading.status is not HTTPStatus.NO_CONTENT:
            headers = [*headers, ("Content-Length", str(len(reading.body)))]
        start_response(f"{reading.status.value} {reading.status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [reading.body]

    def answer_all(self, environs: Sequence[Environ]) -> list[Answer]:
        """Answer requests that share one commit, made by this thread, for a server that can wait.

        What they did is on disk when this returns. A HEAD's answer has its body still.
        """
        batch = self._begin()
        readings = [_read(environ, batch) for environ in environs]
        jobs = [reading.job for reading in readings if isinstance(reading, DatabaseWork)]
        outcomes = iter(batch.service.commit(jobs) if jobs else ())
        return [
            _finish(reading, next(outcomes), batch)
            if isinstance(reading, DatabaseWork)
            else reading
            for reading in readings
        ]

    def answer_on(self, environ: Environ, storage: Storage) -> Answer:
        """Answer a request, and do what it asks on a database of the caller's, not on ours."""
        batch = self._begin()
        reading = _read(environ, batch)
        if isinstance(reading, DatabaseWork):
            reading = _finish(reading, attempt(storage, reading.job), batch)
        # Nobody used the key: it was only tried. At its end the service would write the use down.
        batch.service.key_uses.seen.clear()
        batch.service.stray_calls.forget()
        return reading

    def remember_start(self) -> None:
        """Hold what is read at start only, for all processes that are forked from now on.

        A worker that takes the place of a dead one would otherwise open another database than
        those beside it, where the config names one by now.
        """
        try:
            self._started_with = load(self._find_config())
        except ConfigError:
            # Each process tells what is wrong, and begins with what it reads first.
            self._started_with = None

    def close(self) -> None:
        """Commit and answer what was taken, and let the database go."""
        if self._service is not None:
            self._service.close()
            self._service = None

    @property
    def service(self) -> Service:
        """The working half of this process, made when it is first asked for."""
        service = self._service
        if service is not None and service.pid == os.getpid():
            return service
        # Of two threads that come first one makes it.
        with self._making:
            service = self._service
            if service is None or service.pid != os.getpid():
                if service is not None:
                    self._left_behind.append(service)
                path = self._find_config()
                service = self._service = Service(path, self._clock, self._started_with)
        return service

    def _find_config(self) -> Path:
        return self._config_path or find_config(os.environ)

    def _begin(self) -> "Batch":
        service = self.service
        active = service.find_active_config()
        moment = service.clock()
        return Batch(service, active, moment, utc_text(moment))


application = Receiver()


class Batch(NamedTuple):
    """What holds for the requests that are answered together."""

    service: Service
    active: ActiveConfig | None
    now: datetime
    received_at: str


class DatabaseWork(NamedTuple):
    """A request that the database has a part in: what is asked of it, and the answer to make of it.

    `unavailable` is the answer where the database failed.
    """

    job: Job[Any]
    answer: Callable[[Any], Answer]
    unavailable: Callable[[], Answer]


def _read(environ: Environ, batch: Batch) -> Answer | DatabaseWork:
    try:
        return _route(environ, batch)
    except CutShortError:
        return unavailable_answer()
    except Exception as error:  # the one edge: the sender must know to send again
        return _break_off(error, batch)


def _finish(work: DatabaseWork, outcome: Any, batch: Batch) -> Answer:
    if isinstance(outcome, UnavailableError):
        return work.unavailable()
    if isinstance(outcome, Exception):
        return _break_off(outcome, batch)
    try:
        return work.answer(outcome)
    except Exception as error:  # the same edge
        return _break_off(error, batch)


def _break_off(error: Exception, batch: Batch) -> Answer:
    # Not LOG.exception: it would print keys that stand in the exception's message.
    told = "".join(traceback.format_exception(error))
    mask = NO_KEYS if batch.active is None else batch.active.mask
    LOG.error("a request broke off:\n%s", mask.hide_in_message(told))
    return unavailable_answer()


def _route(environ: Environ, batch: Batch) -> Answer | DatabaseWork:
    path = environ.get("PATH_INFO", "").encode("latin-1")
    if path == b"/health":
        return _read_health(environ, batch)
    active = batch.active
    if active is None:
        # A 404 would tell networks that the address is wrong for good: it would lose money.
        return unavailable_answer()
    key, name = split_path(path)
    answer = _find_answer(key, name, environ, batch, active)
    if answer is None and (found := _MISADDRESSED.fullmatch(path)) is not None:
        environ = mend_address(environ)
        key, name = found["key"], found["name"]
        answer = _find_answer(key, name, environ, batch, active)
    if answer is None:
        if name in _ROUTE_NAMES:
            client = _find_client(environ, active) or ""
            batch.service.stray_calls.note(key, client, batch.now)
        return text_answer(HTTPStatus.NOT_FOUND, "Not found")
    return answer


def _find_answer(
    key: bytes, name: bytes, environ: Environ, batch: Batch, active: ActiveConfig
) -> Answer | DatabaseWork | None:
    # Every accepted key is compared, whatever the name: the time taken tells nothing.
    held = [kind for kind, keys in active.keys.items() if _is_among(key, keys)]
    if held:
        for route in ROUTES:
            if route.name == name and route.key in held:
                batch.service.key_uses.seen[key] = batch.now
                return _read_under_key(route, environ, batch, active)
    return None


# An address whose `?` is missing, is another sign, or was escaped (a path is unescaped once): what
# follows begins with such a sign, or is `name=` at once. It is nobody's query for sure: what the
# network made of it may be cut or glued anywhere, so that it is written down and books nothing.
_MISADDRESSED = re.compile(
    rb"/(?P<key>.+?)/(?P<name>postback(?:\.gif)?|click)"
    rb"(?:/?(?:[&?]|%3[Ff]|%26)|/?(?=[A-Za-z_][\w.\[\]-]*=))(?P<query>.*)",
    re.DOTALL | re.ASCII,
)
# Stands in the environ of such a request.
_NO_QUESTION_MARK = "postback.lacks_question_mark"


def mend_address(environ: Environ) -> Environ:
    """Read as a query what stands in the path, where the `?` is missing."""
    found = _MISADDRESSED.fullmatch(environ["PATH_INFO"].encode("latin-1"))
    if found is None:
        return environ
    return {**environ, "QUERY_STRING": _join_query(found, environ), _NO_QUESTION_MARK: True}


def _join_query(found: re.Match[bytes], environ: Environ) -> str:
    """Write the path's part as the query that it was to be, with the query behind a later `?`."""
    query = found["query"].replace(b"%", b"%25").decode("latin-1")
    return "&".join(filter(None, (query, environ.get("QUERY_STRING", ""))))


def _read_under_key(
    route: "Route", environ: Environ, batch: Batch, active: ActiveConfig
) -> Answer | DatabaseWork:
    method = environ["REQUEST_METHOD"]
    if method == "OPTIONS":
        return Answer(HTTPStatus.NO_CONTENT, [*_PREFLIGHT, CORS, NO_STORE])
    if method not in {"GET", "POST", "HEAD"}:
        allow = ("Allow", METHODS)
        return text_answer(HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed", CORS, allow)
    try:
        return route.read(environ, batch, active)
    except TooLargeError:
        text = f"The body is longer than {BODY_LIMIT_BYTES} bytes: send less."
        return text_answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, CORS)


def split_path(path: bytes) -> tuple[bytes, bytes]:
    """Split `/KEY/NAME`, one trailing slash allowed; a key may hold slashes itself."""
    if not path.startswith(b"/"):
        return b"", path
    key, _, name = path[1:].removesuffix(b"/").rpartition(b"/")
    return key, name


def _is_among(candidate: bytes, keys: Sequence[bytes]) -> bool:
    """Compare with every key in constant time, so that answers do not tell how close one came."""
    matches = [hmac.compare_digest(candidate, key) for key in keys]
    return bool(candidate) and any(matches)


def _read_postback(environ: Environ, batch: Batch, active: ActiveConfig) -> DatabaseWork:
    arrival = read_arrival(environ, batch.received_at, active)
    if arrival.postback.answer is None and _is_image_request(environ):
        return _as_pixel(environ, active, arrival)
    returned = arrival.postback.answer

    def answer(outcome: Outcome) -> Answer:
        told = _tell_verdict(
            outcome.verdict,
            outcome.reason.summary,
            arrival.postback.notices,
            len(outcome.warnings),
        )
        # A promise whatever came of it: some senders repeat until they read what they asked for.
        return told if returned is None else told._replace(body=write_text(returned))

    return _pend(environ, active, arrival, answer)


# The same few answers over and over: nothing in them was sent.
@lru_cache(maxsize=256)
def _tell_verdict(
    verdict: Verdict, summary: str, notices: tuple[str, ...], warnings: int
) -> Answer:
    body = summary if verdict in _UNUSABLE else _RETURNED_BODY
    headers = _verdict_headers(verdict, summary, notices, warnings)
    return text_answer(HTTPStatus.OK, body, CORS, *headers)


# Source: Keitaro docs, "Postback": what a network gets when nothing else was asked for.
_RETURNED_BODY = "Success"

# The answer says what is wrong instead. Source: the contract's section on answers.
_UNUSABLE = frozenset({Verdict.INVALID, Verdict.UNMAPPED})


def _read_pixel(environ: Environ, batch: Batch, active: ActiveConfig) -> DatabaseWork:
    return _as_pixel(environ, active, read_arrival(environ, batch.received_at, active))


def _read_lead_pixel(environ: Environ, batch: Batch, active: ActiveConfig) -> DatabaseWork:
    arrival = read_arrival(environ, batch.received_at, active)
    incoming = arrival.postback.incoming._replace(leads_only=True)
    arrival = arrival._replace(postback=arrival.postback._replace(incoming=incoming))
    return _as_pixel(environ, active, arrival)


def _as_pixel(environ: Environ, active: ActiveConfig, arrival: Arrival) -> DatabaseWork:
    answer = partial(_answer_pixel, arrival.postback.notices)
    return _pend(environ, active, arrival._replace(source="pixel"), answer)


def _answer_pixel(notices: Sequence[str], outcome: Outcome) -> Answer:
    told = _verdict_headers(outcome.verdict, outcome.reason.summary, notices, len(outcome.warnings))
    headers = [("Content-Type", "image/gif"), CORS, NO_STORE, *told]
    return Answer(HTTPStatus.OK, headers, PIXEL)


def _pend(
    environ: Environ, active: ActiveConfig, arrival: Arrival, answer: Callable[[Outcome], Answer]
) -> DatabaseWork:
    if active.settings.logs_postbacks and environ["REQUEST_METHOD"] != "HEAD":
        answer = partial(_log_and_answer, arrival, answer)
    return DatabaseWork(_job_of(environ, active, arrival), answer, unavailable_answer)


def _log_and_answer(
    arrival: Arrival, answer: Callable[[Outcome], Answer], outcome: Outcome
) -> Answer:
    # No click id and no query: whoever may read those asks `postback log`.
    LOG.info(
        "%s: %s %s from %s, network %r%s",
        outcome.verdict,
        arrival.source,
        arrival.method,
        arrival.remote_addr or "a unix socket",
        arrival.postback.network or "",
        "" if outcome.verdict is Verdict.RECORDED else f": {outcome.reason.summary}",
    )
    return answer(outcome)


def _job_of(environ: Environ, active: ActiveConfig, arrival: Arrival) -> Job[Outcome]:
    subid, terms = arrival.postback.incoming.subid, active.terms
    about = (subid,) if subid else ()
    size = len(arrival.query) + len(arrival.body or b"")
    if environ["REQUEST_METHOD"] == "HEAD":
        return Job(lambda db: booking.preview(db, arrival, terms), about)
    return Job(lambda db: booking.record(db, arrival, terms), about, size)


def _read_click(environ: Environ, batch: Batch, active: ActiveConfig) -> Answer | DatabaseWork:
    reading = read_click(environ, active)
    reasons = _reason_headers(reading.warnings)
    row = reading.row
    if row is None:
        return _answer_click(Verdict.INVALID, reading.flaw, reasons)
    is_head = environ["REQUEST_METHOD"] == "HEAD"

    def do(db: Storage) -> Verdict:
        if is_head:
            is_new = db.find_click(row.subid) is None
        else:
            is_new = booking.record_clicks(db, [row], batch.now, active.terms).new > 0
        return Verdict.RECORDED if is_new else Verdict.UPDATED

    return DatabaseWork(
        Job(do),
        lambda verdict: _answer_click(verdict, _RETURNED_BODY, reasons),
        unavailable_answer,
    )


def read_click(environ: Environ, active: ActiveConfig) -> click.ClickReading:
    """Read what the request says about a click."""
    sent = _read_sent(environ, active)
    terms = active.terms
    reading = click.read_request(sent.fields, terms.currency, decimal_comma=terms.decimal_comma)
    if _NO_QUESTION_MARK in environ:
        reading = reading._replace(row=None, flaw=click.NO_QUESTION_MARK)
    return reading._replace(warnings=sent.warnings + reading.warnings)


def _answer_click(verdict: Verdict, body: str, reasons: Headers) -> Answer:
    told = ("X-Postback-Result", verdict.value)
    return text_answer(HTTPStatus.OK, body, CORS, EXPOSED, told, *reasons)


class Route(NamedTuple):
    """What stands at `/KEY/NAME`, and which kind of key opens it."""

    name: bytes
    key: str
    read: Callable[[Environ, Batch, ActiveConfig], Answer | DatabaseWork]


# Everything we answer, but for /health.
ROUTES = (
    Route(b"postback", "postback", _read_postback),
    Route(b"postback.gif", "postback", _read_pixel),
    Route(b"postback.gif", "pixel", _read_lead_pixel),
    Route(b"click", "click", _read_click),
)


_ROUTE_NAMES = frozenset(route.name for route in ROUTES)


def _read_health(environ: Environ, batch: Batch) -> Answer | DatabaseWork:
    if batch.active is None:
        return _answer_unwell("no usable key is in force")
    if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
        return text_answer(
            HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed", ("Allow", "GET, HEAD")
        )
    service = batch.service
    if monotonic() < service.healthy_until:
        return text_answer(HTTPStatus.OK, "ok")

    def answer(_: None) -> Answer:
        service.healthy_until = monotonic() + HEALTH_SECONDS
        return text_answer(HTTPStatus.OK, "ok")

    return DatabaseWork(
        Job(lambda db: db.save_health_check(batch.received_at)),
        answer,
        lambda: _answer_unwell("the database takes no writes"),
    )


def _answer_unwell(ailment: str) -> Answer:
    return text_answer(HTTPStatus.SERVICE_UNAVAILABLE, ailment, RETRY_AFTER)


def read_arrival(environ: Environ, received_at: str, active: ActiveConfig) -> Arrival:
    """Read the request into what is judged and kept."""
    sent = _read_sent(environ, active)
    fields, query = sent.fields, sent.query
    cookies = _read_cookies(environ, active)
    postback = read_postback(
        fields,
        cookies,
        tracker_currency=active.terms.currency,
        decimal_comma=active.terms.decimal_comma,
    )
    if sent.warnings:
        postback = postback._replace(warnings=sent.warnings + postback.warnings)
    if _NO_QUESTION_MARK in environ:
        incoming = postback.incoming._replace(lacks_question_mark=True)
        postback = postback._replace(incoming=incoming)
    has_click = postback.incoming.subid is not None
    if nested := warn_of_nested(query, fields, has_click=has_click):
        postback = postback._replace(warnings=postback.warnings + nested)
    if cookies and not names_click(fields):
        query = store_query(query, cookie_subid=postback.incoming.subid)
    arrival = Arrival(
        received_at,
        "http",
        environ["REQUEST_METHOD"],
        _find_client(environ, active),
        query,
        postback,
    )
    if sent.body is None:
        return arrival
    return arrival._replace(body=sent.body, body_type=sent.body_type)


class Sent(NamedTuple):
    """What query and body say: the fields, the two as one query to be stored, warnings.

    `body` is what of the body does not stand in that query.
    """

    fields: dict[str, str]
    query: str
    warnings: tuple[str, ...]
    body: bytes | None
    body_type: str | None


def _read_sent(environ: Environ, active: ActiveConfig) -> Sent:
    """Read query and body; whatever the method, for some clients send a body with GET."""
    query = active.mask.hide(environ.get("QUERY_STRING", ""))
    body = read_body(environ, active.mask)
    # What is kept is what is read: a parked postback is read from there again.
    stored = store_query(query, body.form)
    kept = body.kept
    if kept is None and body.form and not says_all_of(stored, query, body.form):
        kept = body.form.encode("latin-1")
    return Sent(
        read_fields(stored, active.terms.fallback_encoding),
        stored,
        (*body.warnings, *warn_of_query(stored)),
        kept,
        None if kept is None else body.content_type,
    )


def _read_cookies(environ: Environ, active: ActiveConfig) -> dict[str, str]:
    header = environ.get("HTTP_COOKIE")
    if not header or environ["REQUEST_METHOD"] == "POST":
        return {}
    return read_cookies(active.mask.hide(header), active.terms.fallback_encoding)


def _is_image_request(environ: Environ) -> bool:
    """Tell whether an `<img>` asks: browsers say so, the older ones by the type they want first."""
    if environ.get("HTTP_SEC_FETCH_DEST") == "image":
        return True
    accepted: str = environ.get("HTTP_ACCEPT", "")
    return bool(accepted) and accepted.lstrip().lower().startswith("image/")


def _find_client(environ: Environ, active: ActiveConfig) -> str | None:
    peer = environ.get("REMOTE_ADDR", "")
    forwarded = environ.get("HTTP_X_FORWARDED_FOR")
    if forwarded or active.settings.anonymize_ip:
        return active.find_client(peer, forwarded or "")
    return peer or None


def _verdict_headers(
    verdict: Verdict, summary: str, notices: Sequence[str], warnings: int
) -> Headers:
    reasons: list[str] = []
    if verdict is not Verdict.RECORDED:
        reasons.append(summary)
    reasons += notices
    if warnings:
        reasons.append(f"warnings: {warnings}, see the log")
    return [EXPOSED, ("X-Postback-Result", verdict.value), *_reason_headers(reasons)]


def _reason_headers(reasons: Sequence[str]) -> Headers:
    if not reasons:
        return []
    text = "; ".join(reasons).encode("ascii", "replace").decode("ascii")
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return [("X-Postback-Reason", printable[:REASON_LIMIT_CHARACTERS])]
