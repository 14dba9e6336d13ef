"""What somebody pasted: an address as a network shows it, a path, a query, a line of an access log.

Text is handled as the server gets it: each character one byte.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

# A line of the logs of nginx, Apache and gunicorn: the request in quotes.
_LOG_LINE = re.compile(r'"([A-Z]{3,7}) (\S+)(?: HTTP/[0-9.]+)?"')
# How nginx writes a byte that it does not trust.
_LOG_ESCAPE = re.compile(r"\\x([0-9A-Fa-f]{2})")
_PAIRS = frozenset({'""', "''", "``", "<>"})


class Pasted(NamedTuple):
    """A request: `path` as the callable gets it, decoded once; None where only a query came."""

    query: str
    path: bytes | None = None
    method: str = "GET"


def read_pasted(text: str) -> Pasted:
    """Find the request in what was pasted. Never raises: what is nothing else is a query."""
    text = text.strip()
    if found := _LOG_LINE.search(text):
        target = _LOG_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), found[2])
        return _read_target(target)._replace(method=found[1])
    if text[:1] + text[-1:] in _PAIRS:
        text = text[1:-1].strip()
    return _read_target(text)


def _read_target(text: str) -> Pasted:
    # Not where it stands in a value: `ref=http://…` is a part of a query.
    head, scheme, rest = text.partition("://")
    if scheme and not re.search(r"[=&?]", head):
        address, _, query = rest.partition("?")
        _, _, path = address.partition("/")
        return Pasted(query, _decode(f"/{path}"))
    head, mark, query = text.partition("?")
    if text.startswith("/") or (mark and not re.search(r"[=&]", head)):
        return Pasted(query, _decode(head if head.startswith("/") else f"/{head}"))
    if not mark and "/" in text and not re.search(r"[=&]", text):
        return Pasted("", _decode(f"/{text}"))
    return Pasted(text)


def _decode(path: str) -> bytes:
    return unquote_to_bytes(path.encode("latin-1"))
