"""HTTP requests read from bytes: heads and bodies.

Common heads are read here, as gunicorn's parser would read them; unusual ones are passed to it.
"""

import io
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from gunicorn.http import wsgi
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import (
    ChunkMissingTerminator,
    ExpectationFailed,
    InvalidChunkExtension,
    InvalidChunkSize,
    InvalidHeader,
    InvalidHeaderName,
    InvalidHTTPVersion,
    InvalidRequestLine,
    InvalidRequestMethod,
    LimitRequestHeaders,
    LimitRequestLine,
    ObsoleteFolding,
    UnsupportedTransferCoding,
)
from gunicorn.http.message import PP_V2_SIGNATURE, Request
from gunicorn.http.unreader import Unreader

from postbackd.intake.body import BODY_LIMIT_BYTES, Environ
from postbackd.server.http_response import REMEMBERED_BLOCKS, FakeSocket

# A request's whole head. nginx takes as much (4 x 16 KiB); gunicorn's own limit, the number of
# fields times their size, would be 16 MiB a connection.
HEAD_LIMIT_BYTES = 64 * 1024

# A chunk's size line and the trailers after the last chunk: a few bytes are usual.
CHUNK_LINE_LIMIT_BYTES = 4 * 1024

# A longer block of header fields is not remembered.
REMEMBERED_BLOCK_BYTES = 2048

NO_LIMIT = 1 << 30
Address = Any  # what accept() gives: a tuple, or for a unix socket a string


class IncompleteError(Exception):
    """More bytes are needed."""


class ForeignProtocolError(InvalidRequestLine):  # type: ignore[misc]  # gunicorn is untyped
    """The first bytes belong to another protocol: such a client does not wait for an HTTP line."""


class TlsHandshakeError(ForeignProtocolError):
    """A TLS handshake: a client speaks https to the port for plain HTTP."""


class ProxyProtocolError(ForeignProtocolError):
    """The PROXY protocol: a balancer sends it, and we do not read it."""


class SshBannerError(ForeignProtocolError):
    """An SSH client."""


class NoHostError(InvalidHeader):  # type: ignore[misc]  # gunicorn is untyped
    """A request of HTTP/1.1 without a Host field. Source: RFC 9112, 3.2."""


# Why a request is refused, in words that quote no part of the request.
_MALFORMED_FIELD = "a field of the head is malformed"
_MALFORMED_CHUNK = "malformed chunks"
_REASONS: dict[type[Exception], str] = {
    TlsHandshakeError: "TLS, where plain HTTP is spoken",
    ProxyProtocolError: "the PROXY protocol, where plain HTTP is spoken",
    SshBannerError: "SSH, where plain HTTP is spoken",
    NoHostError: "HTTP/1.1 without a Host field",
    InvalidRequestLine: "the first line is no request line",
    InvalidRequestMethod: "the first word is no method",
    InvalidHTTPVersion: "no version of HTTP/1",
    LimitRequestLine: "the request line is too long",
    LimitRequestHeaders: "the head is too long or has too many fields",
    InvalidHeader: _MALFORMED_FIELD,
    InvalidHeaderName: _MALFORMED_FIELD,
    ObsoleteFolding: _MALFORMED_FIELD,
    ExpectationFailed: "an unknown expectation",
    UnsupportedTransferCoding: "an unknown transfer coding",
    InvalidChunkSize: _MALFORMED_CHUNK,
    ChunkMissingTerminator: _MALFORMED_CHUNK,
    InvalidChunkExtension: _MALFORMED_CHUNK,
}


def describe_refusal(error: Exception) -> str:
    """Return why a request was refused, without quoting it."""
    known = (kind for kind in type(error).__mro__ if kind in _REASONS)
    return _REASONS.get(next(known, Exception), "reading it broke off, see the service log")


class BufferUnreader(Unreader):  # type: ignore[misc]  # gunicorn is untyped
    """Gives gunicorn's parsers the bytes received so far, and never waits for more."""

    def __init__(self, received: bytes) -> None:
        """Take the bytes."""
        super().__init__()
        self._received = received

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the bytes once; a second call raises IncompleteError: they were not enough."""
        del size_hint
        received, self._received = self._received, b""
        if not received:
            raise IncompleteError
        return received


class Peer(NamedTuple):
    """Both ends of a connection, and the environ that all its requests start from."""

    address: Address
    server: Any
    environ: Environ


@dataclass(slots=True)
class Head:
    """A request up to its body. `length` is None for a chunked body."""

    environ: Environ
    minor_version: int
    keeps_alive: bool
    length: int | None = 0
    expects_continue: bool = False
    request: Any = None


class Fields(NamedTuple):
    """A plain block of header fields: the values that do not depend on the connection."""

    environ: dict[str, str]
    length: int
    # One value for HTTP/1.0, one for HTTP/1.1.
    keeps_alive: tuple[bool, bool]


# A request line that we read ourselves: an absolute path of printable ASCII (RFC 9112, 3.2.1).
_PATH = r"/(?!/)[\x21\x22\x24-\x3e\x40-\x7e]*"
_QUERY = r"[\x21\x22\x24-\x7e]*"
_PLAIN_LINE = re.compile(rf"(GET|HEAD|POST) (({_PATH})(?:\?({_QUERY}))?) HTTP/1\.([01])", re.ASCII)

# Fields that we read ourselves (RFC 9112, 5.1), but for a name with an underscore, which is
# gunicorn's (`header_map`). Expect and Transfer-Encoding (RFC 9112, 6.1) are gunicorn's too, and so
# is a second Host, Content-Type or Content-Length (RFC 9112, 3.2 and 6.3).
_PLAIN_BLOCK = re.compile(rb"(?:[!#$%&'*+\-.^`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*")
_PLAIN_LENGTH = re.compile(r"[0-9]{1,15}", re.ASCII)
_UNUSUAL_FIELDS = frozenset({"EXPECT", "TRANSFER-ENCODING"})
_SINGLE_FIELDS = frozenset({"HOST", "CONTENT-TYPE", "CONTENT-LENGTH"})
_CGI_NAMES = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}

# A line end without CR (RFC 9112, 2.2): refused at once, as gunicorn does, not waited on.
_BARE_LF = re.compile(rb"(?<!\r)\n")

_ASCII = bytes(range(128))

# Fields that decide where a request ends and whether its connection stays open: exact, or refused.
_FRAMING_FIELDS = frozenset(
    {b"HOST", b"CONTENT-LENGTH", b"TRANSFER-ENCODING", b"CONNECTION", b"EXPECT", b"TRAILER", b"TE"}
)
# RFC 9110, 5.5: control characters in a value are invalid. CR, LF and NUL are dangerous too, since
# another reader may see a line end in them, and are answered 400. The others become spaces.
_CONTROLS = bytes(code for code in (*range(1, 32), 127) if code not in b"\t\n\r")
_CONTROL = re.compile(b"[%s]" % re.escape(_CONTROLS))
_AS_SPACES = bytes.maketrans(_CONTROLS, b" " * len(_CONTROLS))

# First bytes of other protocols: a TLS handshake record (RFC 8446, 5.1), the PROXY protocol's
# versions 1 and 2 (HAProxy, proxy-protocol.txt, 2.1 and 2.2), SSH.
_FOREIGN: dict[bytes, type[ForeignProtocolError]] = {
    b"\x16\x03": TlsHandshakeError,
    b"PROXY ": ProxyProtocolError,
    PP_V2_SIGNATURE: ProxyProtocolError,
    b"SSH-": SshBannerError,
}

# The start of a method that gunicorn accepts; a complete request line that it accepts.
_METHOD_BEGIN = re.compile(rb"[!$%&'*+\-.^_`|~0-9A-Z]{3,20} |[!$%&'*+\-.^_`|~0-9A-Z]{0,20}\Z")
_WHOLE_LINE = re.compile(rb"[^ ]+ [^\x00-\x20\x7f]+ HTTP/1\.[01]")


def escape_target(line: bytes) -> bytes:
    """Percent-encode the bytes beyond ASCII in a request line's target; the meaning is the same.

    Networks put a name or a status of theirs into the URL as it is; nginx passes it on and PHP
    reads it, but gunicorn would refuse the line: a lost postback.
    """
    method, blank, target = line.partition(b" ")
    if target.isascii():
        return line
    return method + blank + quote(target, safe=_ASCII).encode("ascii")


def blank_controls(block: bytes) -> bytes:
    """Replace control characters by spaces in the values of fields that do not affect the framing.

    A request whose User-Agent holds a control character is still a postback.
    """
    if not _CONTROL.search(block):
        return block
    return b"\r\n".join(map(_blank_controls, block.split(b"\r\n")))


def _blank_controls(field: bytes) -> bytes:
    name, colon, value = field.partition(b":")
    if name.upper() in _FRAMING_FIELDS:
        return field
    return name + colon + value.translate(_AS_SPACES)


def keeps_alive(connection: str, minor_version: int) -> bool:
    """Return whether the Connection field allows further requests. Source: RFC 9112, 9.3."""
    options = {option.strip(" \t").lower() for option in connection.split(",")}
    return "close" not in options and (minor_version >= 1 or "keep-alive" in options)


def refuse_foreign(received: bytes, start: int) -> None:
    """Raise ForeignProtocolError if the first bytes are those of another protocol."""
    for begin, error in _FOREIGN.items():
        if received.startswith(begin, start):
            raise error(begin)


class HeadReader:
    """Reads heads: plain ones by itself, everything else through gunicorn's parser.

    A plain head gives the values that gunicorn's parser gives (a test compares the two on heads
    that hypothesis generates); a head in doubt goes to gunicorn. It takes a tenth of the time.
    """

    def __init__(self, cfg: Any, *, reads_plain: bool) -> None:
        """Use gunicorn's settings; without `reads_plain` gunicorn's parser reads every head."""
        self._cfg = cfg
        # gunicorn strips SCRIPT_NAME from every path; it is rare, so gunicorn reads those heads.
        self._reads_plain = reads_plain and not os.environ.get("SCRIPT_NAME")
        # The limits as gunicorn computes them.
        line, fields, size = (
            cfg.limit_request_line,
            cfg.limit_request_fields,
            cfg.limit_request_field_size,
        )
        self.line_limit = NO_LIMIT if line == 0 else line if 0 < line < 8190 else 8190
        self._field_limit = fields if 0 < fields <= 32768 else 32768
        self._field_size_limit = size if size > 0 else 8190
        self._remembered = lru_cache(REMEMBERED_BLOCKS)(self._read_block)
        # Our settings name no such fields; if a user's settings do, gunicorn decides whom to trust.
        self._unusual_fields = _UNUSUAL_FIELDS | frozenset(cfg.secure_scheme_headers)

    def read(self, received: bytes, start: int, end: int, peer: Peer) -> Head:
        """Read the head that ends with the empty line at `end`; raises gunicorn's errors."""
        if end - start > HEAD_LIMIT_BYTES:
            raise LimitRequestHeaders("the head is too long")
        head = self._read_plain(received, start, end, peer) if self._reads_plain else None
        if head is not None:
            return head
        # With the bytes after the head: the PROXY protocol, version 2, begins like an empty head.
        refuse_foreign(received, start)
        return self._read_unusual(received[start : end + 4], peer)

    def refuse_hopeless(self, received: bytes, start: int, looked_to: int, peer: Peer) -> None:
        """Raise gunicorn's error if no further byte could make an unfinished head valid."""
        length = len(received) - start
        if length > HEAD_LIMIT_BYTES:
            raise LimitRequestHeaders("the head is too long")
        refuse_foreign(received, start)
        is_long = length > self.line_limit + 2 and (
            received.find(b"\r\n", start, start + self.line_limit + 2) < 0
        )
        if is_long or _BARE_LF.search(received, looked_to):
            self._ask_gunicorn(received[start:], peer)
        # RFC 9112, 2.2: an empty line before a request is skipped.
        begin = start + 2 if received.startswith(b"\r\n", start) else start
        self._refuse_line(received, begin, peer)

    def _refuse_line(self, received: bytes, begin: int, peer: Peer) -> None:
        """Raise gunicorn's error if the first line, as far as received, is no request line."""
        method = received[begin : begin + 21]
        is_strict = not self._cfg.permit_unconventional_http_method
        if is_strict and method != b"\r" and not _METHOD_BEGIN.match(method):
            raise InvalidRequestMethod(method)
        end = received.find(b"\r\n", begin)
        if end >= 0 and not _WHOLE_LINE.fullmatch(received, begin, end):
            self._ask_gunicorn(escape_target(received[begin:end]) + b"\r\n\r\n", peer)

    def _ask_gunicorn(self, received: bytes, peer: Peer) -> None:
        with suppress(IncompleteError):
            Request(self._cfg, BufferUnreader(received), peer.address)

    def _read_plain(self, received: bytes, start: int, end: int, peer: Peer) -> Head | None:
        line_end = received.find(b"\r\n", start)
        if line_end - start > self.line_limit:
            return None
        line = _PLAIN_LINE.fullmatch(received[start:line_end].decode("latin-1"))
        if line is None:
            return None
        block = received[line_end + 2 : end + 2]
        is_short = len(block) <= REMEMBERED_BLOCK_BYTES
        fields = self._remembered(block) if is_short else self._read_block(block)
        if fields is None:
            return None
        method, target, path, query, minor = line.groups()
        if minor == "1" and "HTTP_HOST" not in fields.environ:
            return None
        environ = peer.environ | fields.environ
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = target
        environ["PATH_INFO"] = _unquote(path) if "%" in path else path
        environ["QUERY_STRING"] = query or ""
        if minor == "0":
            environ["SERVER_PROTOCOL"] = "HTTP/1.0"
        if isinstance(peer.server, str):
            _name_server(environ, peer.server)
        minor_version = int(minor)
        return Head(environ, minor_version, fields.keeps_alive[minor_version], fields.length)

    def _read_block(self, block: bytes) -> Fields | None:
        lines = block.decode("latin-1").split("\r\n")[:-1]
        if (
            len(lines) > self._field_limit
            or max(map(len, lines), default=0) + 2 > self._field_size_limit
            or not _PLAIN_BLOCK.fullmatch(block)
        ):
            return None
        pairs = [(name.upper(), value.strip(" \t")) for name, _, value in map(_split, lines)]
        names = [name for name, _ in pairs]
        if not self._unusual_fields.isdisjoint(names) or any(
            names.count(name) > 1 for name in _SINGLE_FIELDS
        ):
            return None
        environ: dict[str, str] = {}
        for name, value in pairs:
            key = _CGI_NAMES.get(name) or "HTTP_" + name.replace("-", "_")
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        length = environ.get("CONTENT_LENGTH", "0")
        if not _PLAIN_LENGTH.fullmatch(length):
            return None
        connection = environ.get("HTTP_CONNECTION", "")
        return Fields(
            environ, int(length), (keeps_alive(connection, 0), keeps_alive(connection, 1))
        )

    def _read_unusual(self, received: bytes, peer: Peer) -> Head:
        # RFC 9112, 2.2: an empty line before a request is skipped.
        line, line_end, block = received.removeprefix(b"\r\n").partition(b"\r\n")
        mended = escape_target(line) + line_end + blank_controls(block)
        try:
            request = Request(self._cfg, BufferUnreader(mended), peer.address)
        except IncompleteError:
            # gunicorn looks for more after the empty line that we took for the end: two readers
            # must not see different requests in the same bytes.
            raise InvalidHeader("the head has no end") from None
        interim = FakeSocket()
        _, environ = wsgi.create(request, interim, peer.address, peer.server, self._cfg)
        for name in _NOT_OURS:
            environ.pop(name, None)
        environ["wsgi.errors"] = peer.environ["wsgi.errors"]
        minor_version = min(request.version[1], 1)
        if minor_version and "HTTP_HOST" not in environ:
            raise NoHostError("HOST", req=request)
        # gunicorn reads only the first Connection field, and only a single word in it.
        goes_on = keeps_alive(environ.get("HTTP_CONNECTION", ""), minor_version)
        reader = request.body.reader
        return Head(
            environ,
            minor_version,
            goes_on and not request.must_close and request.method != "CONNECT",
            None if isinstance(reader, ChunkedReader) else reader.length,
            expects_continue=bool(interim.sent),
            request=request,
        )


# gunicorn's own additions to WSGI: they write to the socket before the commit.
_NOT_OURS = ("gunicorn.socket", "wsgi.early_hints")


def make_peer(cfg: Any, errors: Any, address: Address, server: Any) -> Peer:
    """Build the values that are the same for all requests of a connection."""
    environ: Environ = {
        "wsgi.errors": errors,
        "wsgi.version": (1, 0),
        "wsgi.multithread": False,
        "wsgi.multiprocess": cfg.workers > 1,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": wsgi.FileWrapper,
        "wsgi.input_terminated": True,
        "wsgi.url_scheme": "http",
        "SERVER_SOFTWARE": wsgi.SERVER_SOFTWARE,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
        "REMOTE_ADDR": address if isinstance(address, str) else address[0],
    }
    if not isinstance(address, str):
        environ["REMOTE_PORT"] = str(address[1])
    if not isinstance(server, str):
        environ["SERVER_NAME"] = server[0]
        environ["SERVER_PORT"] = str(server[1])
    return Peer(address, server, environ)


def _split(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _unquote(path: str) -> str:
    return unquote_to_bytes(path).decode("latin-1")


def _name_server(environ: Environ, server: str) -> None:
    """Name the server behind a unix socket by the Host field, as gunicorn does."""
    parts = server.split(":")
    host = environ.get("HTTP_HOST")
    if len(parts) == 1:
        default_port = "443" if environ["wsgi.url_scheme"] == "https" else "80"
        parts = [*host.split(":"), default_port] if host else [*parts, ""]
    environ["SERVER_NAME"], environ["SERVER_PORT"] = parts[:2]


class ChunkedBody:
    """Decodes a chunked body as its bytes arrive (RFC 9112, 7.1); raises the errors of gunicorn."""

    def __init__(self, request: Any) -> None:
        """Set the gunicorn request that the body belongs to."""
        self._request = request
        self._left = 0
        self._step: Callable[[bytes, int], int] | None = self._take_size
        self.content = bytearray()

    @property
    def is_whole(self) -> bool:
        """Return whether the end has been received."""
        return self._step is None

    @property
    def is_too_long(self) -> bool:
        """Return whether the body is longer than the limit."""
        return len(self.content) > BODY_LIMIT_BYTES

    def take(self, received: bytes, start: int) -> int:
        """Decode the received bytes; return the index of the first one not decoded."""
        with suppress(IncompleteError):
            while self._step is not None and not self.is_too_long:
                start = self._step(received, start)
        return start

    def _take_size(self, received: bytes, start: int) -> int:
        end = received.find(b"\r\n", start)
        if end < 0:
            if len(received) - start > CHUNK_LINE_LIMIT_BYTES:
                raise InvalidChunkSize(b"no end of line")
            raise IncompleteError
        self._left = self._read_size(received[start:end])
        self._step = self._take_content if self._left else self._take_trailers
        return end + 2

    def _read_size(self, line: bytes) -> int:
        if _PLAIN_SIZE.fullmatch(line):
            return int(line, 16)
        # Extensions and malformed sizes: gunicorn decides. The end of a last chunk is read here.
        unreader = BufferUnreader(line + b"\r\n\r\n")
        size, _ = ChunkedReader(self._request, unreader).parse_chunk_size(unreader)
        return int(size)

    def _take_content(self, received: bytes, start: int) -> int:
        part = received[start : start + self._left]
        if not part:
            raise IncompleteError
        self.content += part
        self._left -= len(part)
        if not self._left:
            self._step = self._take_chunk_end
        return start + len(part)

    def _take_chunk_end(self, received: bytes, start: int) -> int:
        end = received[start : start + 2]
        if end != b"\r\n":
            if b"\r\n".startswith(end):
                raise IncompleteError
            raise ChunkMissingTerminator(end)
        self._step = self._take_size
        return start + 2

    def _take_trailers(self, received: bytes, start: int) -> int:
        if received.startswith(b"\r\n", start):
            self._step = None
            return start + 2
        end = received.find(b"\r\n\r\n", start)
        if _BARE_LF.search(received, start, len(received) if end < 0 else end):
            raise InvalidHeader("bare LF as line terminator")
        if (len(received) if end < 0 else end) - start > CHUNK_LINE_LIMIT_BYTES:
            raise LimitRequestHeaders("the trailers are too long")
        if end < 0:
            raise IncompleteError
        self._request.parse_headers(blank_controls(received[start:end]), from_trailer=True)
        self._step = None
        return end + 4


_PLAIN_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")


class TruncatedBody(io.BytesIO):
    """The received part of a body over the limit: reading past that part raises OSError.

    A callable that answers 413 needs no more; one that reads the whole body must not get a part as
    the whole.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as many bytes as are named, where they are there."""
        if size is None or size < 0 or size > len(self.getbuffer()) - self.tell():
            raise OSError(f"the body is longer than the {BODY_LIMIT_BYTES} bytes that are held")
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Refuse: its line may end beyond."""
        return self.read(NO_LIMIT if size is None or size < 0 else size)

    def readlines(self, hint: int | None = None, /) -> list[bytes]:
        """Refuse: the lines go on beyond."""
        del hint
        return [self.read()]

    def __next__(self) -> bytes:
        """Refuse as `readline` does."""
        return self.readline()
