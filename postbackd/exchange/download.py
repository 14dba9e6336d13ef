"""Downloads one document, with limits on time, size and redirects; an error is a sentence.

A redirect is written by somebody else: it may lead to the public internet, or back to the machine
that the settings name, and nowhere else. A host name is resolved once for each request; that
address is checked, and that address is connected to.
"""

import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit, urlunsplit

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import port_by_scheme
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
from urllib3.util import Url, parse_url

from postbackd.exchange.public_address import is_public

# A working service answers within a second; a bad line may take ten.
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0

# The largest document of a known service has some 20 KB; counted after unpacking, so that a gzip
# bomb is stopped too.
DOCUMENT_LIMIT_BYTES = 1024 * 1024
BLOCK_BYTES = 64 * 1024

# From http to https, from one host to another; more is a loop.
REDIRECTS_AT_MOST = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Types that tell nothing about the content: mirrors and file stores use them for everything.
PLAIN_TYPES = ("", "text/plain", "application/octet-stream", "binary/octet-stream")

HEADERS = {
    "User-Agent": "postback (exchange rates, a few times a day)",
    "Accept-Encoding": "gzip",
}


class DownloadError(Exception):
    """No document was received; the sentence says why, without anything that could be a key."""


class _Place(NamedTuple):
    """The target of a request: the address as written, and the addresses of its host."""

    url: Url
    addresses: Sequence[str]

    @property
    def port(self) -> int:
        """The port to connect to."""
        return self.url.port or port_by_scheme[str(self.url.scheme)]

    @property
    def host(self) -> str:
        """The host name for the Host field and TLS, without the brackets of IPv6."""
        return (self.url.host or "").strip("[]")


def download(url: str, content_types: tuple[str, ...]) -> bytes:
    """Download a document of one of the types; raises DownloadError."""
    place = _find(_read_address(url, "its address"))
    # The user may have set a mirror inside the own network.
    own = frozenset(place.addresses)
    for _ in range(REDIRECTS_AT_MOST + 1):
        response = _open(place)
        try:
            if response.status not in REDIRECTS:
                return _read_document(response, place.host, content_types)
            target = _follow(place.url, response.headers.get("Location", ""))
        finally:
            response.close()
        place = _find(target)
        _refuse_private(place, own)
    raise DownloadError(f"it redirects more than {REDIRECTS_AT_MOST} times")


def _read_address(url: str, what: str) -> Url:
    """Parse an address as the connection does: a second parser could understand another host."""
    try:
        parsed = parse_url(url)
    except ValueError:
        raise DownloadError(f"{what} cannot be read") from None
    if parsed.scheme not in port_by_scheme or not parsed.host:
        raise DownloadError(f"{what} is {shorten(url)!r}, which is no web address")
    return parsed


def _find(url: Url) -> _Place:
    """Resolve a host once, so that the address that is checked is the one connected to."""
    place = _Place(url, ())
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        # ValueError: no possible name, such as one with a label of a hundred letters.
        raise DownloadError(_CANNOT_BE_FOUND.format(host=place.host)) from None
    return place._replace(addresses=list(dict.fromkeys(str(entry[4][0]) for entry in found)))


def _refuse_private(place: _Place, own: frozenset[str]) -> None:
    for address in place.addresses:
        if address not in own and not is_public(address):
            raise DownloadError(
                f"it redirects to {shorten(place.url.url)!r}, and {address} is no address of the"
                " public internet: if that is meant, set it as the source's address in [rates]"
            )


def _open(place: _Place) -> Any:
    """Send the request to the first of the addresses that accepts a connection."""
    trouble: Exception | None = None
    for address in place.addresses:
        try:
            return _ask(place, address)
        except (HTTPError, ValueError) as error:
            trouble = error
            if not isinstance(error, (ConnectTimeoutError, NewConnectionError)):
                break
    raise DownloadError(_describe(trouble, place.host)) from None


def _ask(place: _Place, address: str) -> Any:
    timeout = Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
    if place.url.scheme == "https":
        # The certificate is checked for the host name.
        pool: HTTPConnectionPool = HTTPSConnectionPool(
            address, place.port, timeout=timeout, server_hostname=place.host
        )
    else:
        pool = HTTPConnectionPool(address, place.port, timeout=timeout)
    return pool.request(
        "GET",
        place.url.request_uri,
        headers={**HEADERS, "Host": str(place.url.netloc)},
        redirect=False,
        # The schedule alone decides whether and when to try again.
        retries=False,
        preload_content=False,
    )


def _follow(url: Url, location: str) -> Url:
    try:
        joined = urljoin(url.url, location)
    except ValueError:
        raise DownloadError("the target of its redirect cannot be read") from None
    target = _read_address(joined, "the target of its redirect")
    if (url.scheme, target.scheme) == ("https", "http"):
        raise DownloadError(
            f"it redirects from https to {shorten(joined)!r}, which anybody can forge"
        )
    return target


def _read_document(response: Any, host: str, content_types: tuple[str, ...]) -> bytes:
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
        raise DownloadError(_describe(error, host)) from None
    if not document:
        raise DownloadError("its document is empty")
    return document


def _stream(response: Any) -> Iterator[bytes]:
    """Yield the unpacked document in blocks."""
    yield from response.stream(BLOCK_BYTES, decode_content=True)


def shorten(url: str) -> str:
    """Return an address without parts that may be a key: user, query, fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:100]


def _describe(error: Exception | None, host: str) -> str:
    """Describe an error in our words; urllib3's contain the whole address, and so perhaps a key."""
    for kind, sentence in _SENTENCES.items():
        if isinstance(error, kind):
            return sentence.format(host=host)
    return f"the connection to {host} broke ({type(error).__name__})"


_CANNOT_BE_FOUND = "{host} cannot be found: is there a network?"

_SENTENCES: dict[type[Exception], str] = {
    NameResolutionError: _CANNOT_BE_FOUND,
    NewConnectionError: "{host} takes no connection",
    ConnectTimeoutError: f"{{host}} took no connection within {CONNECT_SECONDS:g} seconds",
    ReadTimeoutError: f"{{host}} was silent for {READ_SECONDS:g} seconds",
    SSLError: "{host} cannot prove who it is (TLS)",
    DecodeError: "its document cannot be unpacked",
    IncompleteRead: "its document broke off",
    ProtocolError: "the connection to {host} broke off",
}
