"""One document from one address: bounded in time, size and redirects; a sentence where it fails."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    IncompleteRead,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

# A service that lives answers within a second; a bad line gets the benefit of ten.
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0

# The largest document of a known service has some 20 KB; counted after unpacking, so that a
# gzip bomb ends there too.
DOCUMENT_LIMIT_BYTES = 1024 * 1024
BLOCK_BYTES = 64 * 1024

# From http to https, from one host to another; more is a loop.
REDIRECTS_AT_MOST = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Types that say nothing: mirrors and file stores give them to everything.
PLAIN_TYPES = ("", "text/plain", "application/octet-stream", "binary/octet-stream")

HEADERS = {
    "User-Agent": "postback (exchange rates, a few times a day)",
    "Accept-Encoding": "gzip",
}


class DownloadError(Exception):
    """No document came; the sentence says why, without what could be a key."""


def download(url: str, content_types: tuple[str, ...]) -> bytes:
    """Fetch a document of one of the types; raises DownloadError."""
    # No retries: who asks again, and when, is decided once, by the schedule.
    with urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS), retries=False
    ) as pool:
        for _ in range(REDIRECTS_AT_MOST + 1):
            with _opened(pool, url) as response:
                if response.status not in REDIRECTS:
                    return _read_document(response, url, content_types)
                url = _follow(url, response.headers.get("Location", ""))
    raise DownloadError(f"it redirects more than {REDIRECTS_AT_MOST} times")


def _opened(pool: urllib3.PoolManager, url: str) -> Any:
    try:
        return pool.request("GET", url, headers=HEADERS, redirect=False, preload_content=False)
    except (HTTPError, ValueError) as error:
        raise DownloadError(_describe(error, url)) from None


def _follow(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        scheme, host = urlsplit(target).scheme, urlsplit(target).hostname
    except ValueError:
        raise DownloadError("it redirects to what is no address") from None
    if scheme not in ("http", "https") or not host:
        raise DownloadError(f"it redirects to {shorten(target)!r}, which is no web address")
    if scheme == "http" and url.startswith("https:"):
        raise DownloadError(
            f"it redirects from https to {shorten(target)!r}, which anybody can forge"
        )
    return target


def _read_document(response: Any, url: str, content_types: tuple[str, ...]) -> bytes:
    if response.status != 200:
        raise DownloadError(f"it answers with status {response.status}")
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind not in (*content_types, *PLAIN_TYPES):
        raise DownloadError(f"it answers with {kind[:60]!r}, not with {content_types[0]!r}")
    document = b""
    try:
        for block in _stream(response):
            document += block
            if len(document) > DOCUMENT_LIMIT_BYTES:
                raise DownloadError(f"its document is larger than {DOCUMENT_LIMIT_BYTES} bytes")
    except HTTPError as error:
        raise DownloadError(_describe(error, url)) from None
    if not document:
        raise DownloadError("its document is empty")
    return document


def _stream(response: Any) -> Iterator[bytes]:
    """Give the unpacked document in blocks."""
    yield from response.stream(BLOCK_BYTES, decode_content=True)


def shorten(url: str) -> str:
    """Give an address without what may be a key: user, query, fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:100]


def _describe(error: Exception, url: str) -> str:
    """Say what failed; urllib3's own sentences hold the whole address, with a key in it maybe."""
    host = urlsplit(url).hostname
    for kind, sentence in _SENTENCES.items():
        if isinstance(error, kind):
            return sentence.format(host=host)
    return f"the connection to {host} broke ({type(error).__name__})"


_SENTENCES: dict[type[Exception], str] = {
    NameResolutionError: "{host} cannot be found: is there a network?",
    NewConnectionError: "{host} takes no connection",
    ConnectTimeoutError: f"{{host}} took no connection within {CONNECT_SECONDS:g} seconds",
    ReadTimeoutError: f"{{host}} was silent for {READ_SECONDS:g} seconds",
    SSLError: "{host} cannot prove who it is (TLS)",
    DecodeError: "its document cannot be unpacked",
    IncompleteRead: "its document broke off",
    ProtocolError: "the connection to {host} broke off",
}
