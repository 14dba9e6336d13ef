"""The WSGI callable: a request in, a verdict out. Run it as `gunicorn postback:application`.

A request travels one way: read the query (`query`), judge it (`statuses`), keep the outcome
(`booking`, `writer`), answer. Only here is HTTP spoken.
"""

import hmac
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import booking
import clicks
from answers import (
    CORS,
    EXPOSED,
    NO_STORE,
    RETRY_AFTER,
    Answer,
    Headers,
    text_answer,
    unavailable_answer,
)
from body import BODY_LIMIT_BYTES, CutShortError, Environ, read_body
from booking import Arrival, Intake, Outcome
from config import Settings, find_config, load
from masking import NO_KEYS
from query import (
    names_click,
    read_cookies,
    read_fields,
    read_postback,
    says_all_of,
    store_query,
    warn_of_nested,
    warn_of_query,
)
from refusals import Kind
from rows import ClickRow, utc_text
from service import Clock, Orders, Service, read_clock
from sheet import ConfigError
from statuses import Verdict
from storage import Storage
from unpacking import TooLargeError
from writer import Job, UnavailableError

LOG = logging.getLogger("postback")

REASON_LIMIT_CHARACTERS = 200

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

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        (answer,) = self._answer([environ], self._find_service().run_one)
        headers = answer.headers
        if answer.status is not HTTPStatus.NO_CONTENT:
            headers = [*headers, ("Content-Length", str(len(answer.body)))]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def answer_all(self, environs: Sequence[Environ]) -> list[Answer]:
        """Answer requests that share one commit, made by this thread, for a server that can wait.

        What they did is on disk when this returns. A HEAD's answer has its body still. One thread
        at a time, and not beside `__call__`: each would be a user of the database in one process.
        """
        return self._answer(environs, self._find_service().commit)

    def answer_on(self, environ: Environ, storage: Storage) -> Answer:
        """Answer a request, and do what it asks on a database of the caller's, not on ours."""
        (answer,) = self._answer([environ], lambda jobs: [job(storage) for job in jobs])
        # Nobody used the key: it was only tried. At its end the service would write the use down.
        self._find_service().key_uses.seen.clear()
        return answer

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

    def start(self) -> None:
        """Begin the housekeeping before the first request comes."""
        self._find_service().start()

    def keep_house(self) -> None:
        """Do what is due beside the requests; for a server that uses `answer_all`."""
        self._find_service().keep_house()

    def note_refusal(self, status: int, reason: str, address: str) -> None:
        """Count a request that the server refused by itself; `postback check` shows the counts."""
        self._find_service().note_refusal(Kind(status, reason), address)

    def close(self) -> None:
        """Commit and answer what was taken, and let the database go."""
        if self._service is not None:
            self._service.close()
            self._service = None

    def _find_service(self) -> Service:
        service = self._service
        if service is None or service.pid != os.getpid():
            if service is not None:
                self._left_behind.append(service)
            path = self._find_config()
            service = self._service = Service(path, self._clock, self._started_with)
        return service

    def _find_config(self) -> Path:
        return self._config_path or find_config(os.environ)

    def _answer(self, environs: Sequence[Environ], run: "Run") -> list[Answer]:
        """Read the requests, have what they ask of the database done, answer."""
        service = self._find_service()
        orders = service.find_orders()
        moment = service.read_clock()
        turn = Turn(service, orders, moment, utc_text(moment))
        readings = [_read(environ, turn) for environ in environs]
        jobs = [reading.job for reading in readings if isinstance(reading, Pending)]
        outcomes = iter(_run_jobs(jobs, run, turn) if jobs else ())
        return [
            _finish(reading, next(outcomes), turn) if isinstance(reading, Pending) else reading
            for reading in readings
        ]


application = Receiver()


class Turn(NamedTuple):
    """What holds for the requests that are answered together."""

    service: Service
    orders: Orders | None
    now: datetime
    received_at: str


class Pending(NamedTuple):
    """A request that the database has a part in: what is asked of it, and the answer to make of it.

    `unavailable` is the answer where the database failed.
    """

    job: Job[Any]
    answer: Callable[[Any], Answer]
    unavailable: Callable[[], Answer]


Run = Callable[[Sequence[Job[Any]]], list[Any]]


def _read(environ: Environ, turn: Turn) -> Answer | Pending:
    try:
        return _route(environ, turn)
    except CutShortError:
        return unavailable_answer()
    except Exception as error:  # the one edge: the sender must know to send again
        return _break_off(error, turn)


def _run_jobs(jobs: Sequence[Job[Any]], run: Run, turn: Turn) -> Sequence[Any]:
    try:
        return run(jobs)
    except UnavailableError as error:
        return [error] * len(jobs)
    except Exception as error:  # the same edge
        _break_off(error, turn)
        return [UnavailableError("a request broke off")] * len(jobs)


def _finish(pending: Pending, outcome: Any, turn: Turn) -> Answer:
    if isinstance(outcome, UnavailableError):
        return pending.unavailable()
    if isinstance(outcome, Exception):
        return _break_off(outcome, turn)
    try:
        return pending.answer(outcome)
    except Exception as error:  # the same edge
        return _break_off(error, turn)


def _break_off(error: Exception, turn: Turn) -> Answer:
    # Not LOG.exception: it would print keys that stand in the exception's message.
    told = "".join(traceback.format_exception(error))
    mask = NO_KEYS if turn.orders is None else turn.orders.mask
    LOG.error("a request broke off:\n%s", mask.hide_in_message(told))
    return unavailable_answer()


def _route(environ: Environ, turn: Turn) -> Answer | Pending:
    path = environ.get("PATH_INFO", "").encode("latin-1")
    if path == b"/health":
        return _read_health(environ, turn)
    orders = turn.orders
    if orders is None:
        # A 404 would tell networks that the address is wrong for good: it would lose money.
        return unavailable_answer()
    key, name = split_path(path)
    answer = _find_answer(key, name, environ, turn, orders)
    if answer is None and (found := _MISADDRESSED.fullmatch(path)) is not None:
        environ = mend_address(environ)
        answer = _find_answer(found["key"], found["name"], environ, turn, orders)
    return answer or text_answer(HTTPStatus.NOT_FOUND, "Not found")


def _find_answer(
    key: bytes, name: bytes, environ: Environ, turn: Turn, orders: Orders
) -> Answer | Pending | None:
    # Every accepted key is compared, whatever the name: the time taken tells nothing.
    held = [kind for kind, keys in orders.keys.items() if _is_among(key, keys)]
    if held:
        for route in ROUTES:
            if route.name == name and route.key in held:
                turn.service.key_uses.seen[key] = turn.now
                return _read_under_key(route, environ, turn, orders)
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
    route: "Route", environ: Environ, turn: Turn, orders: Orders
) -> Answer | Pending:
    method = environ["REQUEST_METHOD"]
    if method == "OPTIONS":
        return Answer(HTTPStatus.NO_CONTENT, [*_PREFLIGHT, CORS, NO_STORE])
    if method not in {"GET", "POST", "HEAD"}:
        allow = ("Allow", METHODS)
        return text_answer(HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed", CORS, allow)
    try:
        return route.read(environ, turn, orders)
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


def _read_postback(environ: Environ, turn: Turn, orders: Orders) -> Pending:
    arrival = read_arrival(environ, turn.received_at, orders)
    if arrival.postback.answer is None and _is_image_request(environ):
        return _as_pixel(environ, orders, arrival)
    returned = arrival.postback.answer

    def answer(outcome: Outcome) -> Answer:
        body = outcome.reason.summary if outcome.verdict in _UNUSABLE else _RETURNED_BODY
        # A promise whatever came of it: some senders repeat until they read what they asked for.
        body = body if returned is None else returned
        headers = _verdict_headers(outcome, arrival.postback.notices)
        return text_answer(HTTPStatus.OK, body, CORS, *headers)

    return _pend(environ, orders, arrival, answer)


# Source: Keitaro docs, "Postback": what a network gets when nothing else was asked for.
_RETURNED_BODY = "Success"

# The answer says what is wrong instead. Source: the contract's section on answers.
_UNUSABLE = frozenset({Verdict.INVALID, Verdict.UNMAPPED})


def _read_pixel(environ: Environ, turn: Turn, orders: Orders) -> Pending:
    return _as_pixel(environ, orders, read_arrival(environ, turn.received_at, orders))


def _read_lead_pixel(environ: Environ, turn: Turn, orders: Orders) -> Pending:
    arrival = read_arrival(environ, turn.received_at, orders)
    incoming = arrival.postback.incoming._replace(leads_only=True)
    arrival = arrival._replace(postback=arrival.postback._replace(incoming=incoming))
    return _as_pixel(environ, orders, arrival)


def _as_pixel(environ: Environ, orders: Orders, arrival: Arrival) -> Pending:
    answer = partial(_answer_pixel, arrival.postback.notices)
    return _pend(environ, orders, arrival._replace(source="pixel"), answer)


def _answer_pixel(notices: Sequence[str], outcome: Outcome) -> Answer:
    headers = [("Content-Type", "image/gif"), CORS, NO_STORE, *_verdict_headers(outcome, notices)]
    return Answer(HTTPStatus.OK, headers, PIXEL)


def _pend(
    environ: Environ, orders: Orders, arrival: Arrival, answer: Callable[[Outcome], Answer]
) -> Pending:
    if orders.settings.logs_postbacks and environ["REQUEST_METHOD"] != "HEAD":
        answer = partial(_log_and_answer, arrival, answer)
    return Pending(_job_of(environ, orders, arrival), answer, unavailable_answer)


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


def _job_of(environ: Environ, orders: Orders, arrival: Arrival) -> Job[Outcome]:
    if environ["REQUEST_METHOD"] == "HEAD":
        return lambda db: booking.preview(db, arrival, orders.terms)
    return lambda db: booking.keep(db, arrival, orders.terms)


def _read_click(environ: Environ, turn: Turn, orders: Orders) -> Answer | Pending:
    reading = read_click(environ, orders)
    reasons = _reason_headers(reading.warnings)
    row = reading.row
    if row is None:
        return _answer_click(Verdict.INVALID, reading.flaw, reasons)
    if environ["REQUEST_METHOD"] == "HEAD":
        job = partial(_preview_click, row=row)
    else:
        job = partial(booking.keep_clicks, rows=[row], now=turn.now, terms=orders.terms)
    return Pending(
        lambda db: Verdict.RECORDED if job(db).new else Verdict.UPDATED,
        lambda verdict: _answer_click(verdict, _RETURNED_BODY, reasons),
        unavailable_answer,
    )


def read_click(environ: Environ, orders: Orders) -> clicks.ClickReading:
    """Read what the request says about a click."""
    sent = _read_sent(environ, orders)
    terms = orders.terms
    reading = clicks.read_request(sent.fields, terms.currency, decimal_comma=terms.decimal_comma)
    if _NO_QUESTION_MARK in environ:
        reading = reading._replace(row=None, flaw=clicks.NO_QUESTION_MARK)
    return reading._replace(warnings=sent.warnings + reading.warnings)


def _preview_click(db: Storage, row: ClickRow) -> Intake:
    return Intake(new=int(db.find_click(row.subid) is None), settled=0)


def _answer_click(verdict: Verdict, body: str, reasons: Headers) -> Answer:
    told = ("X-Postback-Result", verdict.value)
    return text_answer(HTTPStatus.OK, body, CORS, EXPOSED, told, *reasons)


class Route(NamedTuple):
    """What stands at `/KEY/NAME`, and which kind of key opens it."""

    name: bytes
    key: str
    read: Callable[[Environ, Turn, Orders], Answer | Pending]


# Everything we answer, but for /health.
ROUTES = (
    Route(b"postback", "postback", _read_postback),
    Route(b"postback.gif", "postback", _read_pixel),
    Route(b"postback.gif", "pixel", _read_lead_pixel),
    Route(b"click", "click", _read_click),
)


def _read_health(environ: Environ, turn: Turn) -> Answer | Pending:
    if turn.orders is None:
        return _answer_unwell("no usable key is in force")
    if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
        return text_answer(
            HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed", ("Allow", "GET, HEAD")
        )
    if turn.service.was_healthy_lately:
        return text_answer(HTTPStatus.OK, "ok")

    def answer(_: None) -> Answer:
        turn.service.note_health()
        return text_answer(HTTPStatus.OK, "ok")

    return Pending(
        lambda db: db.note_health_check(turn.received_at),
        answer,
        lambda: _answer_unwell("the database takes no writes"),
    )


def _answer_unwell(ailment: str) -> Answer:
    return text_answer(HTTPStatus.SERVICE_UNAVAILABLE, ailment, RETRY_AFTER)


def read_arrival(environ: Environ, received_at: str, orders: Orders) -> Arrival:
    """Read the request into what is judged and kept."""
    sent = _read_sent(environ, orders)
    fields, query = sent.fields, sent.query
    cookies = _read_cookies(environ, orders)
    postback = read_postback(
        fields,
        cookies,
        tracker_currency=orders.terms.currency,
        decimal_comma=orders.terms.decimal_comma,
    )
    if sent.warnings:
        postback = postback._replace(warnings=sent.warnings + postback.warnings)
    if _NO_QUESTION_MARK in environ:
        incoming = postback.incoming._replace(lacks_question_mark=True)
        postback = postback._replace(incoming=incoming)
    if postback.incoming.subid is None and (nested := warn_of_nested(query)):
        postback = postback._replace(warnings=postback.warnings + nested)
    if cookies and not names_click(fields):
        query = store_query(query, cookie_subid=postback.incoming.subid)
    return Arrival(
        received_at=received_at,
        source="http",
        method=environ["REQUEST_METHOD"],
        remote_addr=_find_client(environ, orders),
        query=query,
        postback=postback,
        body=sent.body,
        body_type=sent.body_type,
    )


class Sent(NamedTuple):
    """What query and body say: the fields, the two as one query to be stored, warnings.

    `body` is what of the body does not stand in that query.
    """

    fields: dict[str, str]
    query: str
    warnings: tuple[str, ...]
    body: bytes | None
    body_type: str | None


def _read_sent(environ: Environ, orders: Orders) -> Sent:
    """Read query and body; whatever the method, for some clients send a body with GET."""
    query = orders.mask.hide(environ.get("QUERY_STRING", ""))
    body = read_body(environ, orders.mask)
    # What is kept is what is read: a parked postback is read from there again.
    stored = store_query(query, body.form)
    kept = body.kept
    if kept is None and body.form and not says_all_of(stored, query, body.form):
        kept = body.form.encode("latin-1")
    return Sent(
        read_fields(stored, orders.terms.fallback_encoding),
        stored,
        (*body.warnings, *warn_of_query(stored)),
        kept,
        None if kept is None else body.content_type,
    )


def _read_cookies(environ: Environ, orders: Orders) -> dict[str, str]:
    header = environ.get("HTTP_COOKIE")
    if not header or environ["REQUEST_METHOD"] == "POST":
        return {}
    return read_cookies(orders.mask.hide(header), orders.terms.fallback_encoding)


def _is_image_request(environ: Environ) -> bool:
    """Tell whether an `<img>` asks: browsers say so, the older ones by the type they want first."""
    if environ.get("HTTP_SEC_FETCH_DEST") == "image":
        return True
    return bool(environ.get("HTTP_ACCEPT", "").lstrip().lower().startswith("image/"))


def _find_client(environ: Environ, orders: Orders) -> str | None:
    peer = environ.get("REMOTE_ADDR", "")
    forwarded = environ.get("HTTP_X_FORWARDED_FOR")
    if forwarded or orders.settings.anonymize_ip:
        return orders.find_client(peer, forwarded or "")
    return peer or None


def _verdict_headers(outcome: Outcome, notices: Sequence[str]) -> Headers:
    reasons: list[str] = []
    if outcome.verdict is not Verdict.RECORDED:
        reasons.append(outcome.reason.summary)
    reasons += notices
    if outcome.warnings:
        reasons.append(f"warnings: {len(outcome.warnings)}, see the log")
    return [EXPOSED, ("X-Postback-Result", outcome.verdict.value), *_reason_headers(reasons)]


def _reason_headers(reasons: Sequence[str]) -> Headers:
    if not reasons:
        return []
    text = "; ".join(reasons).encode("ascii", "replace").decode("ascii")
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return [("X-Postback-Reason", printable[:REASON_LIMIT_CHARACTERS])]
