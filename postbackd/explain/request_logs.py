"""Finds the request in a line of a log of web servers, proxies, clouds and this service."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from postbackd.explain.addresses import Pasted, as_server, names_postback, read_target
from postbackd.intake.query import SUBID_NAMES

_METHODS = "GET|POST|HEAD|PUT|PATCH|DELETE|OPTIONS"
# nginx, Apache, gunicorn, Envoy, HAProxy, AWS: the request in quotes, perhaps cut off.
_IN_QUOTES = re.compile(rf"\"({_METHODS}) (\S+?)(?: HTTP/[0-9.]+)?(?:\"|$)")
_REQUEST_LINE = re.compile(
    rf"(?:^|[\s|])({_METHODS}) (/\S*|https?://\S+)(?: HTTP/[0-9.]+)?(?=\s|$)"
)
# IIS and others in W3C's extended format: path and query are fields of their own.
_W3C = re.compile(rf"\s({_METHODS}) (/\S*) (-|\S*=\S*) [0-9-]")
# CloudFront: tabs; six fields on, the query.
_CLOUDFRONT = re.compile(
    rf"\t({_METHODS})\t[^\t]+\t(/[^\t]*)\t[0-9]{{3}}\t[^\t]*\t[^\t]*\t([^\t]*)"
)
_LOGFMT = re.compile(r"(?:^|\s)([A-Za-z_.\-]+)=(?:\"((?:[^\"\\]|\\.)*)\"|(\S+))(?=\s|$)")
# How nginx and Apache escape a byte.
_LOG_ESCAPE = re.compile(r"\\x([0-9A-Fa-f]{2})")

# Names of members in lower case and without signs, by meaning; the first that is there counts. For
# nginx they are the usual ones; the others are from the manuals of Caddy, Traefik, Cloudflare
# (Logpush), Google, AWS and Azure.
_TARGETS = (
    *("requesturi", "clientrequesturi", "requesturl", "requestpath", "originalurl", "originaluri"),
    *("uri", "url", "rawurl", "rawpath", "clientrequestpath", "path", "csuristem", "httppath"),
    *("target", "endpoint", "request", "httprequest", "requestline", "httpurl", "urlfull"),
)
_QUERIES = (
    *("args", "querystring", "rawquerystring", "csuriquery", "requestquery", "urlquery"),
    *("clientrequestquery", "query", "queryparams", "querystringparameters", "isargs"),
)
_METHOD_NAMES = (
    *("requestmethod", "clientrequestmethod", "httpmethod", "method", "verb", "csmethod"),
)
_BODIES = ("requestbody", "body", "postdata", "postdatatext", "rawbody")
_TYPES = ("requestcontenttype", "contenttype", "mimetype")
JSON_TYPE = "application/json"

# Not `{macro}`.
_OBJECT = re.compile(r"(?:\[\s*)?\{\s*[\"}]")

# No log has deeper levels.
_LEVELS = 8


def read_log_line(text: str) -> Pasted | None:
    """Find the request in a line of a log that is no JSON; None where it has none."""
    if line := read_columns(text):
        return line
    if found := _IN_QUOTES.search(text) or _REQUEST_LINE.search(text):
        return _read(found[2], found[1], "a line of a log or of a request")
    fields = {name.lower(): quoted or bare for name, quoted, bare in _LOGFMT.findall(text)}
    return _find_request(fields) if len(fields) > 1 else None


def read_columns(text: str) -> Pasted | None:
    """Find the request in a line in which path and query are columns of their own."""
    for pattern in (_CLOUDFRONT, _W3C):
        if found := pattern.search(text):
            query = "" if found[3] == "-" else found[3]
            return _read(f"{found[2]}?{query}", found[1], "a line of a log")
    return None


def read_json(text: str) -> Pasted | None:
    """Find the request in a JSON object, a log's or a body; None where there is no such object."""
    found = _load(text)
    if found is None:
        return None
    value, literal = found
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    if not isinstance(value, dict):
        return None
    if own := _read_own(value):
        return own
    if not _names_click(value):
        for level in _list_levels(value):
            if request := _find_request(level):
                return request
    if literal != text:
        # With words before or behind it: a line of a log whose JSON has no request.
        return None
    return Pasted(
        "",
        method="POST",
        body=as_server(text).encode("latin-1"),
        content_type=JSON_TYPE,
        notes=("a JSON object: read as the body of a POST",),
    )


def _load(text: str) -> tuple[Any, str] | None:
    """Load the first JSON object in a text; nginx's \\x22 in it, which is no JSON, is allowed."""
    begun = _OBJECT.search(text)
    if begun is None:
        return None
    written = text[begun.start() :]
    for written in (written, written.replace("\\x", "\\\\x")):  # noqa: B020
        try:
            value, end = json.JSONDecoder().raw_decode(written)
        except (ValueError, RecursionError):
            continue
        return value, written[:end]
    return None


def _names_click(value: Mapping[str, Any]) -> bool:
    return any(str(name).lower() in SUBID_NAMES for name in value)


def _read_own(value: Mapping[str, Any]) -> Pasted | None:
    """Read an object of `postback log --json`."""
    query = value.get("query")
    if isinstance(query, str) and "verdict" in value and "received_at" in value:
        method = value.get("method")
        return Pasted(
            as_server(query),
            # Its query has the fields of the body, too.
            method="HEAD" if method == "HEAD" else "GET",
            notes=("a line of `postback log --json`: its query is read",),
        )
    return None


def _list_levels(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield each object within a value with all members below it, the outermost first."""
    if depth < _LEVELS and isinstance(value, dict):
        flat: dict[str, Any] = {}
        _flatten(value, flat, 0)
        yield flat
    if depth < _LEVELS and isinstance(value, list):
        for each in value:
            yield from _list_levels(each, depth + 1)


def _flatten(value: Mapping[str, Any], flat: dict[str, Any], depth: int) -> None:
    for name, each in value.items():
        plain = re.sub(r"[^a-z]", "", str(name).lower())
        if isinstance(each, dict) and plain not in _QUERIES and depth < _LEVELS:
            _flatten(each, flat, depth + 1)
        elif isinstance(each, list) and each and isinstance(each[0], dict) and depth < _LEVELS:
            _flatten(each[0], flat, depth + 1)
        else:
            flat.setdefault(plain, each)


def _find_request(fields: Mapping[str, Any]) -> Pasted | None:
    """Find the request in the members of a line: its target, else a line within a member."""
    plain = {re.sub(r"[^a-z]", "", name.lower()): value for name, value in fields.items()}
    targets = [
        plain[name]
        for name in _TARGETS
        if isinstance(plain.get(name), str) and re.match(r"/|https?://", plain[name])
    ]
    if not targets:
        return _find_line(fields)
    target = next(filter(names_postback, targets), targets[0])
    if "?" not in target and (query := _find_query(plain)):
        target = f"{target}?{query.removeprefix('?')}"
    method = next((plain[name] for name in _METHOD_NAMES if name in plain), "GET")
    read = _read(target, str(method).upper(), "a line of a log")
    body = next((plain[name] for name in _BODIES if isinstance(plain.get(name), str)), "")
    kind = next((plain[name] for name in _TYPES if isinstance(plain.get(name), str)), "")
    if not body or body == "-":
        return read
    return read._replace(body=as_server(body).encode("latin-1"), content_type=kind or _guess(body))


def _guess(body: str) -> str:
    is_json = body.lstrip().startswith("{")
    return JSON_TYPE if is_json else "application/x-www-form-urlencoded"


def _find_query(plain: Mapping[str, Any]) -> str:
    for name in _QUERIES:
        value = plain.get(name)
        if isinstance(value, dict):
            return urlencode(value, doseq=True)
        if isinstance(value, str) and "=" in value:
            return value
    return ""


def _find_line(fields: Mapping[str, Any]) -> Pasted | None:
    for value in fields.values():
        if isinstance(value, str) and (found := read_log_line(value)):
            return found
    return None


def _read(target: str, method: str, what: str) -> Pasted:
    target = _LOG_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), as_server(target))
    return read_target(target)._replace(method=method, notes=(f"read as {what}",))
