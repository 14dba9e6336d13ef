"""The WSGI callable: a request in, a verdict out. Run it as `gunicorn postback:application`.

A request travels one way: read the query (`query`), judge it (`statuses`), keep the outcome
(`booking`, `writer`), answer. Only here is HTTP spoken.
"""

import hmac
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import clicks
from booking import Arrival, Outcome
from config import find_config
from query import (
    HIDDEN,
    hide_secrets,
    read_cookies,
    read_fields,
    read_postback,
    read_subid,
    store_query,
)
from service import Clock, Orders, Service, read_clock
from statuses import Verdict
from storage import utc_text
from writer import UnavailableError

LOG = logging.getLogger("postback")

# The longest body that is read. Source: the contract; a postback is a few hundred bytes.
BODY_LIMIT_BYTES = 64 * 1024
FORM_TYPE = "application/x-www-form-urlencoded"

# How soon a sender may try again: long enough for a locked database to be free again.
RETRY_AFTER_SECONDS = 5

REASON_LIMIT_CHARACTERS = 200

# The transparent pixel: 1x1, two colours, the first of them transparent. Source: GIF89a.
PIXEL = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]


class Answer(NamedTuple):
    """A response before it is sent."""

    status: HTTPStatus
    headers: Headers
    body: bytes = b""


class TooLargeError(Exception):
    """The body is longer than we read."""


class IncompleteError(Exception):
    """The sender hung up before its body was whole."""


class Body(NamedTuple):
    """A form body as it came (each character one byte), or a warning that it was left unread."""

    form: str = ""
    warnings: tuple[str, ...] = ()


CORS = ("Access-Control-Allow-Origin", "*")
NO_STORE = ("Cache-Control", "no-store")
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
        # Services of the process we were forked from: closing their database here would be unsafe.
        self._left_behind: list[Service] = []

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        answer = self._answer(environ)
        headers = answer.headers
        if answer.status is not HTTPStatus.NO_CONTENT:
            headers = [*headers, ("Content-Length", str(len(answer.body)))]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def start(self) -> None:
        """Begin the housekeeping before the first request comes."""
        self._find_service().start()

    @contextmanager
    def one_commit(self) -> Iterator[None]:
        """Let calls made inside share one commit: for a server that holds their answers back.

        They are good only once this has returned; where it raises UnavailableError, each is to be
        `unavailable_answer` instead. See `Service.one_commit`.
        """
        with self._find_service().one_commit():
            yield

    def keep_house(self) -> None:
        """Do what is due beside the requests; for a server that uses `one_commit`."""
        self._find_service().keep_house()

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
            path = self._config_path or find_config(os.environ)
            service = self._service = Service(path, self._clock)
        return service

    def _answer(self, environ: Environ) -> Answer:
        service = self._find_service()
        orders = service.find_orders()
        try:
            return _route(environ, service, orders)
        except UnavailableError:
            return unavailable_answer()
        except IncompleteError:
            return unavailable_answer()
        except Exception:  # the one edge: whatever it is, the sender must know to send again
            # Not LOG.exception: it would print keys that stand in the exception's message.
            LOG.error("a request broke off:\n%s", _mask(traceback.format_exc(), orders))  # noqa: TRY400
            return unavailable_answer()


application = Receiver()


def _route(environ: Environ, service: Service, orders: Orders | None) -> Answer:
    path = environ.get("PATH_INFO", "").encode("latin-1")
    if path == b"/health":
        return _answer_health(environ, service, orders)
    if orders is None:
        # A 404 would tell networks that the address is wrong for good: it would lose money.
        return unavailable_answer()
    key, name = _split_path(path)
    # Every accepted key is compared, whatever the name: the time taken tells nothing.
    held = [kind for kind, keys in orders.keys.items() if _is_among(key, keys)]
    for route in ROUTES:
        if route.name == name and route.key in held:
            return _answer_under_key(route, environ, service, orders)
    return _text(HTTPStatus.NOT_FOUND, "Not found")


def _answer_under_key(route: "Route", environ: Environ, service: Service, orders: Orders) -> Answer:
    method = environ["REQUEST_METHOD"]
    if method == "OPTIONS":
        return Answer(HTTPStatus.NO_CONTENT, [*_PREFLIGHT, CORS, NO_STORE])
    if method not in {"GET", "POST", "HEAD"}:
        allow = ("Allow", METHODS)
        return _text(HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed", CORS, allow)
    try:
        return route.answer(environ, service, orders)
    except TooLargeError:
        text = f"The body is longer than {BODY_LIMIT_BYTES} bytes: send less."
        return _text(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, CORS)


def _split_path(path: bytes) -> tuple[bytes, bytes]:
    """Split `/KEY/NAME`, one trailing slash allowed; a key may hold slashes itself."""
    if not path.startswith(b"/"):
        return b"", path
    key, _, name = path[1:].removesuffix(b"/").rpartition(b"/")
    return key, name


def _is_among(candidate: bytes, keys: Sequence[bytes]) -> bool:
    """Compare with every key in constant time, so that answers do not tell how close one came."""
    matches = [hmac.compare_digest(candidate, key) for key in keys]
    return bool(candidate) and any(matches)


def _answer_postback(environ: Environ, service: Service, orders: Orders) -> Answer:
    arrival = _read_arrival(environ, service, orders)
    if _is_image_request(environ) and arrival.postback.answer is None:
        return _answer_as_pixel(environ, service, orders, arrival)
    outcome = _keep_or_preview(environ, service, orders, arrival)
    body = _RETURNED_BODY if arrival.postback.answer is None else arrival.postback.answer
    if outcome.verdict in {Verdict.INVALID, Verdict.UNMAPPED}:
        body = outcome.reason.summary
    return _text(HTTPStatus.OK, body, CORS, *_verdict_headers(outcome))


# Source: Keitaro docs, "Postback": what a network gets when nothing else was asked for.
_RETURNED_BODY = "Success"


def _answer_pixel(environ: Environ, service: Service, orders: Orders) -> Answer:
    return _answer_as_pixel(environ, service, orders, _read_arrival(environ, service, orders))


def _answer_lead_pixel(environ: Environ, service: Service, orders: Orders) -> Answer:
    arrival = _read_arrival(environ, service, orders)
    incoming = arrival.postback.incoming._replace(leads_only=True)
    arrival = arrival._replace(postback=arrival.postback._replace(incoming=incoming))
    return _answer_as_pixel(environ, service, orders, arrival)


def _answer_as_pixel(
    environ: Environ, service: Service, orders: Orders, arrival: Arrival
) -> Answer:
    outcome = _keep_or_preview(environ, service, orders, arrival._replace(source="pixel"))
    headers = [("Content-Type", "image/gif"), CORS, NO_STORE, *_verdict_headers(outcome)]
    return Answer(HTTPStatus.OK, headers, PIXEL)


def _answer_click(environ: Environ, service: Service, orders: Orders) -> Answer:
    fields, _, warnings = _read_sent(environ, orders)
    reading = clicks.read_click(fields)
    reasons = _reason_headers((*warnings, *reading.warnings))
    if reading.row is None:
        verdict, body = Verdict.INVALID, reading.flaw
    elif environ["REQUEST_METHOD"] == "HEAD":
        verdict, body = service.preview_click(reading.row), _RETURNED_BODY
    else:
        verdict = service.keep_click(reading.row, service.read_clock(), orders.terms)
        body = _RETURNED_BODY
    return _text(HTTPStatus.OK, body, CORS, ("X-Postback-Result", verdict.value), *reasons)


class Route(NamedTuple):
    """What stands at `/KEY/NAME`, and which kind of key opens it."""

    name: bytes
    key: str
    answer: Callable[[Environ, Service, Orders], Answer]


# Everything we answer, but for /health.
ROUTES = (
    Route(b"postback", "postback", _answer_postback),
    Route(b"postback.gif", "postback", _answer_pixel),
    Route(b"postback.gif", "pixel", _answer_lead_pixel),
    Route(b"click", "click", _answer_click),
)


def _answer_health(environ: Environ, service: Service, orders: Orders | None) -> Answer:
    if orders is not None and environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
        return _text(HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed", ("Allow", "GET, HEAD"))
    ailment = service.find_ailment()
    if ailment is None:
        return _text(HTTPStatus.OK, "ok")
    return _text(HTTPStatus.SERVICE_UNAVAILABLE, ailment, _RETRY_AFTER)


def _keep_or_preview(
    environ: Environ, service: Service, orders: Orders, arrival: Arrival
) -> Outcome:
    if environ["REQUEST_METHOD"] == "HEAD":
        return service.preview(arrival.postback, orders.terms)
    return service.keep(arrival, orders.terms)


def _read_arrival(environ: Environ, service: Service, orders: Orders) -> Arrival:
    """Read the request into what is judged and kept."""
    fields, query, warnings = _read_sent(environ, orders)
    cookies = _read_cookies(environ, orders)
    postback = read_postback(
        fields,
        cookies,
        tracker_currency=orders.terms.currency,
        decimal_comma=orders.terms.decimal_comma,
    )
    if warnings:
        postback = postback._replace(warnings=warnings + postback.warnings)
    if cookies and read_subid(fields, []) is None:
        query = store_query(query, cookie_subid=postback.incoming.subid)
    return Arrival(
        received_at=utc_text(service.read_clock()),
        source="http",
        method=environ["REQUEST_METHOD"],
        remote_addr=_find_client(environ, orders),
        query=query,
        postback=postback,
    )


def _read_sent(environ: Environ, orders: Orders) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """Read query and body: the fields, the two as one stored query, warnings."""
    query = hide_secrets(environ.get("QUERY_STRING", ""), orders.secrets)
    if environ["REQUEST_METHOD"] != "POST":
        return read_fields(query), store_query(query), ()
    body = _read_body(environ)
    form = hide_secrets(body.form, orders.secrets)
    fields = {**read_fields(form), **read_fields(query)} if form else read_fields(query)
    return fields, store_query(query, form), body.warnings


def _read_cookies(environ: Environ, orders: Orders) -> dict[str, str]:
    header = environ.get("HTTP_COOKIE")
    if not header or environ["REQUEST_METHOD"] == "POST":
        return {}
    return read_cookies(hide_secrets(header, orders.secrets))


def _read_body(environ: Environ) -> Body:
    """Read a form body; other types stay unread, a longer one is refused."""
    length = _read_length(environ)
    if length > BODY_LIMIT_BYTES:
        raise TooLargeError
    is_chunked = bool(environ.get("wsgi.input_terminated")) and not environ.get("CONTENT_LENGTH")
    if length == 0 and not is_chunked:
        return Body()
    content_type = environ.get("CONTENT_TYPE", "")
    if content_type.partition(";")[0].strip().lower() != FORM_TYPE:
        if is_chunked and not environ["wsgi.input"].read(1):
            return Body()
        return Body(
            warnings=(f"the body is {content_type!r} and was left unread: send {FORM_TYPE}",)
        )
    body = environ["wsgi.input"].read(BODY_LIMIT_BYTES + 1 if is_chunked else length)
    if len(body) > BODY_LIMIT_BYTES:
        raise TooLargeError
    if len(body) < length:
        # "payout=100" cut to "payout=10" would be misread money.
        raise IncompleteError
    return Body(body.decode("latin-1"))


def _read_length(environ: Environ) -> int:
    text = environ.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isascii() and text.isdigit() else 0


def _is_image_request(environ: Environ) -> bool:
    """Tell whether an `<img>` asks: browsers say so, the older ones by the type they want first."""
    if environ.get("HTTP_SEC_FETCH_DEST") == "image":
        return True
    return bool(environ.get("HTTP_ACCEPT", "").lstrip().lower().startswith("image/"))


def _find_client(environ: Environ, orders: Orders) -> str | None:
    peer = environ.get("REMOTE_ADDR", "")
    forwarded = environ.get("HTTP_X_FORWARDED_FOR")
    return orders.find_client(peer, forwarded) if forwarded else peer or None


def _verdict_headers(outcome: Outcome) -> Headers:
    reasons: list[str] = []
    if outcome.verdict is not Verdict.RECORDED:
        reasons.append(outcome.reason.summary)
    if outcome.warnings:
        reasons.append(f"warnings: {len(outcome.warnings)}, see the log")
    return [("X-Postback-Result", outcome.verdict.value), *_reason_headers(reasons)]


def _reason_headers(reasons: Sequence[str]) -> Headers:
    if not reasons:
        return []
    text = "; ".join(reasons).encode("ascii", "replace").decode("ascii")
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return [("X-Postback-Reason", printable[:REASON_LIMIT_CHARACTERS])]


def _text(status: HTTPStatus, body: str, *headers: tuple[str, str]) -> Answer:
    plain = ("Content-Type", "text/plain; charset=utf-8")
    # nosniff: `return=<script>` stays text.
    no_sniff = ("X-Content-Type-Options", "nosniff")
    return Answer(status, [plain, no_sniff, NO_STORE, *headers], body.encode())


_RETRY_AFTER = ("Retry-After", str(RETRY_AFTER_SECONDS))


def unavailable_answer() -> Answer:
    """Ask the sender to send it again: nothing was kept."""
    text = "Not accepted at present: send it again."
    return _text(HTTPStatus.SERVICE_UNAVAILABLE, text, CORS, _RETRY_AFTER)


def _mask(text: str, orders: Orders | None) -> str:
    return text if orders is None or orders.secrets is None else orders.secrets.sub(HIDDEN, text)
