"""gunicorn's worker for the receiver: what is ready is answered together and shares one commit.

One thread, epoll, no blocking on a client. Each turn of the loop reads what has come, calls the
WSGI callable for every request that is whole, holds the answers back, commits once
(`Receiver.one_commit`), and only then sends them; where the commit fails, all of them become 503.
From here down: reading (bytes to environ), writing (an answer to bytes), connections, the loop.

Any WSGI callable runs under it; one without `one_commit` is just called. Answers are held whole,
so a callable that streams without end has no place here. TLS, uwsgi and the PROXY protocol are
refused at start, and HTTP/2 is not spoken: nginx stands in front.
"""

import io
import logging
import os
import re
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from gunicorn import SERVER, util
from gunicorn.http import wsgi
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import (
    ChunkMissingTerminator,
    InvalidChunkSize,
    InvalidHeader,
    LimitRequestHeaders,
)
from gunicorn.http.message import Request
from gunicorn.http.unreader import Unreader
from gunicorn.workers.base import Worker

from postback import BODY_LIMIT_BYTES, Environ, unavailable_answer
from writer import BATCH_LIMIT, WAIT_LIMIT_SECONDS, UnavailableError

# One read of a connection; also what a sender may have us hold of requests not served yet.
READ_BYTES = 64 * 1024

# A request's whole head. nginx passes on at most 4 x 8 KiB; gunicorn's own bound, a hundred fields
# of 8 KiB, would let 2,000 connections hold 1.6 GB.
HEAD_LIMIT_BYTES = 64 * 1024

# A chunk's size line and the trailers behind the last chunk: nobody sends more than a few bytes.
CHUNK_LINE_LIMIT_BYTES = 4 * 1024

# An answer is held in memory until the commit. The receiver's own are below 10 KiB.
ANSWER_LIMIT_BYTES = 16 * 1024 * 1024

# How much of one connection goes into one batch: with the rest of the batch left to others, one
# that pipelines cannot make them wait, and its unread answers stay within what it sent.
PIPELINE_LIMIT = 32

# A request must be whole so long after its first byte (the first one: after the connection was
# opened). 64 KiB on a bad mobile line take 13 seconds; a graceful stop has 30.
REQUEST_LIMIT_SECONDS = 20.0

# A client that takes no byte of its answer for so long is let go.
SEND_LIMIT_SECONDS = 10.0

# After the last answer the other side gets so long to read it: closing with its bytes unread
# would reset the connection, and the reset can overtake the answer.
LINGER_SECONDS = 2.0

# How long a stopping worker leaves idle connections open, for a request that is under way.
STOP_IDLE_SECONDS = 1.0

# How often clocks are looked at: a tenth of the shortest limit above that people notice.
TICK_SECONDS = 0.25

# Connections taken in one turn. Several workers share the listening socket: small bites leave
# the others theirs; one alone wants all that is there in its next commit.
ACCEPT_LIMIT_ALONE = 256
ACCEPT_LIMIT_AMONG_OTHERS = 4

# Files beside the connections: listeners, database, logs, config.
SPARE_FILES = 64

# Header blocks remembered: a network's machines send the same headers with every postback.
REMEMBERED_BLOCKS = 256
REMEMBERED_BLOCK_BYTES = 2048

NO_LIMIT = 1 << 30

Headers = Sequence[tuple[str, str]]
Address = Any  # what accept() gives: a tuple, or for a unix socket a string


# --- Reading: bytes to environ ---------------------------------------------------------------


class IncompleteError(Exception):
    """More bytes are needed."""


class Received(Unreader):  # type: ignore[misc]  # gunicorn is untyped
    """Feeds gunicorn's parsers what has been received, and never waits for more."""

    def __init__(self, received: bytes) -> None:
        """Take the bytes."""
        super().__init__()
        self._received = received

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Give the bytes once; raises IncompleteError where they are not enough."""
        del size_hint
        received, self._received = self._received, b""
        if not received:
            raise IncompleteError
        return received


class Sink:
    """Stands in for a socket where gunicorn's code wants to send at once."""

    def __init__(self) -> None:
        """Start empty."""
        self.sent = b""

    def gettimeout(self) -> float:
        """Claim to be non-blocking."""
        return 0.0

    def sendall(self, block: bytes) -> None:
        """Keep the bytes."""
        self.sent += block

    send = sendall


class Peer(NamedTuple):
    """Both ends of a connection, and what every environ on it begins with."""

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
    """A plain block of header fields, as far as it does not depend on the connection."""

    environ: dict[str, str]
    length: int
    connection: str | None
    scheme: str | None


# A request line that needs no second thought: an absolute path of printable ASCII.
_PATH = r"/(?!/)[\x21\x22\x24-\x3e\x40-\x7e]*"
_QUERY = r"[\x21\x22\x24-\x7e]*"
_PLAIN_LINE = re.compile(rf"(GET|HEAD|POST) (({_PATH})(?:\?({_QUERY}))?) HTTP/1\.([01])", re.ASCII)

# Fields that need no second thought; a name with an underscore does (gunicorn's `header_map`).
_PLAIN_BLOCK = re.compile(rb"(?:[!#$%&'*+\-.^`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*")
_PLAIN_LENGTH = re.compile(r"[0-9]{1,15}", re.ASCII)
_UNUSUAL_FIELDS = frozenset({"EXPECT", "TRANSFER-ENCODING"})
_SINGLE_FIELDS = frozenset({"HOST", "CONTENT-TYPE", "CONTENT-LENGTH"})
_CGI_NAMES = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}

# A line that ends without CR: gunicorn refuses it at once instead of waiting for the rest.
_BARE_LF = re.compile(rb"(?<!\r)\n")


class HeadReader:
    """Reads heads: plain ones by itself, everything else through gunicorn's parser.

    What it reads by itself comes out as gunicorn would have read it (a test compares the two on
    whatever hypothesis thinks of); in doubt it reads nothing. It takes a tenth of the time.
    """

    def __init__(self, cfg: Any, *, reads_plain: bool) -> None:
        """Take gunicorn's settings; without `reads_plain` every head is gunicorn's to read."""
        self._cfg = cfg
        # What gunicorn strips from every path; it is rare enough to leave all to gunicorn.
        self._reads_plain = reads_plain and not os.environ.get("SCRIPT_NAME")
        # The settings as gunicorn understands them.
        line, fields, size = (
            cfg.limit_request_line,
            cfg.limit_request_fields,
            cfg.limit_request_field_size,
        )
        self.line_limit = NO_LIMIT if line == 0 else line if 0 < line < 8190 else 8190
        self._field_limit = fields if 0 < fields <= 32768 else 32768
        self._field_size_limit = size if size > 0 else 8190
        self._remembered = lru_cache(REMEMBERED_BLOCKS)(self._read_block)
        self._trusts = lru_cache(REMEMBERED_BLOCKS)(self._ask_for_trust)

    def read(self, received: bytes, start: int, end: int, peer: Peer) -> Head:
        """Read the head that ends with the empty line at `end`; raises gunicorn's errors."""
        if end - start > HEAD_LIMIT_BYTES:
            raise LimitRequestHeaders("the head is too long")
        head = self._read_plain(received, start, end, peer) if self._reads_plain else None
        return self._read_unusual(received[start : end + 4], peer) if head is None else head

    def refuse_hopeless(self, received: bytes, start: int, looked_to: int, peer: Peer) -> None:
        """Raise gunicorn's error where no further byte could mend an unfinished head."""
        length = len(received) - start
        if length > HEAD_LIMIT_BYTES:
            raise LimitRequestHeaders("the head is too long")
        is_long = length > self.line_limit + 2 and (
            received.find(b"\r\n", start, start + self.line_limit + 2) < 0
        )
        if is_long or _BARE_LF.search(received, looked_to):
            with suppress(IncompleteError):
                Request(self._cfg, Received(received[start:]), peer.address)

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
        environ = peer.environ | fields.environ
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = target
        environ["PATH_INFO"] = _unquote(path) if "%" in path else path
        environ["QUERY_STRING"] = query or ""
        if minor == "0":
            environ["SERVER_PROTOCOL"] = "HTTP/1.0"
        if fields.scheme is not None and self._trusts(_host_of(peer.address)):
            environ["wsgi.url_scheme"] = fields.scheme
        if isinstance(peer.server, str):
            _name_server(environ, peer.server)
        keeps_alive = fields.connection == "keep-alive" or (
            minor == "1" and fields.connection != "close"
        )
        return Head(environ, int(minor), keeps_alive, fields.length)

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
        schemes = self._cfg.secure_scheme_headers
        scheme_pairs = [pair for pair in pairs if pair[0] in schemes]
        if (
            len(scheme_pairs) > 1
            or not _UNUSUAL_FIELDS.isdisjoint(names)
            or any(names.count(name) > 1 for name in _SINGLE_FIELDS)
        ):
            return None
        environ: dict[str, str] = {}
        for name, value in pairs:
            key = _CGI_NAMES.get(name) or "HTTP_" + name.replace("-", "_")
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        length = environ.get("CONTENT_LENGTH", "0")
        if not _PLAIN_LENGTH.fullmatch(length):
            return None
        connection = next((value.lower() for name, value in pairs if name == "CONNECTION"), None)
        scheme = None
        for name, value in scheme_pairs:
            scheme = "https" if value == schemes[name] else "http"
        return Fields(environ, int(length), connection, scheme)

    def _ask_for_trust(self, host: str | None) -> bool:
        """Ask gunicorn whether this peer may say that its own side was https."""
        name, value = next(iter(self._cfg.secure_scheme_headers.items()))
        question = f"GET / HTTP/1.1\r\n{name}: {value}\r\n\r\n".encode("latin-1")
        address = "" if host is None else (host, 0)
        asked = Request(self._cfg, Received(question), address)
        return bool(asked.scheme == "https")

    def _read_unusual(self, received: bytes, peer: Peer) -> Head:
        try:
            request = Request(self._cfg, Received(received), peer.address)
        except IncompleteError:
            # gunicorn looks for more behind the empty line where we saw the end: no two readers
            # may see different requests in the same bytes.
            raise InvalidHeader("the head has no end") from None
        interim = Sink()
        _, environ = wsgi.create(request, interim, peer.address, peer.server, self._cfg)
        for name in _NOT_OURS:
            environ.pop(name, None)
        environ["wsgi.errors"] = peer.environ["wsgi.errors"]
        reader = request.body.reader
        return Head(
            environ,
            min(request.version[1], 1),
            not request.should_close(),
            None if isinstance(reader, ChunkedReader) else reader.length,
            expects_continue=bool(interim.sent),
            request=request,
        )


# What gunicorn's own workers offer beside the specification, and writes past the commit.
_NOT_OURS = ("gunicorn.socket", "wsgi.early_hints")


def make_peer(cfg: Any, errors: Any, address: Address, server: Any) -> Peer:
    """Prepare what does not change on a connection."""
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


def _host_of(address: Address) -> str | None:
    return None if isinstance(address, str) else address[0]


def _name_server(environ: Environ, server: str) -> None:
    """Name the server behind a unix socket by the Host field, as gunicorn does."""
    parts = server.split(":")
    host = environ.get("HTTP_HOST")
    if len(parts) == 1:
        default_port = "443" if environ["wsgi.url_scheme"] == "https" else "80"
        parts = [*host.split(":"), default_port] if host else [*parts, ""]
    environ["SERVER_NAME"], environ["SERVER_PORT"] = parts[:2]


class ChunkedBody:
    """Decodes a chunked body as its bytes come; as strict as gunicorn, whose errors it raises."""

    def __init__(self, request: Any) -> None:
        """Take gunicorn's request that the body belongs to."""
        self._request = request
        self._left = 0
        self._step: Callable[[bytes, int], int] | None = self._take_size
        self.content = bytearray()

    @property
    def is_whole(self) -> bool:
        """Tell whether the end has come."""
        return self._step is None

    @property
    def is_too_long(self) -> bool:
        """Tell whether it is longer than we hold."""
        return len(self.content) > BODY_LIMIT_BYTES

    def take(self, received: bytes, start: int) -> int:
        """Decode what has come; gives where the undecoded rest begins."""
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
        # Extensions and nonsense: gunicorn says which. The end of a last chunk is ours to read.
        unreader = Received(line + b"\r\n\r\n")
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
        self._request.parse_headers(received[start:end], from_trailer=True)
        self._step = None
        return end + 4


_PLAIN_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")


class CutInput(io.BytesIO):
    """The part that was received of a body too long to hold: reading past it is an error.

    A callable that answers 413 needs no more; one that wanted the whole must not take the part
    for the whole.
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


# --- Writing: an answer to bytes -------------------------------------------------------------


class Response:
    """What the callable says through `start_response` and `write`."""

    __slots__ = ("headers", "status", "written")

    def __init__(self) -> None:
        """Start with nothing said."""
        self.status: str | None = None
        self.headers: Headers = ()
        self.written: list[bytes] = []

    def start(
        self, status: str, headers: Headers, exc_info: object = None
    ) -> Callable[[bytes], None]:
        """Take status and headers; with `exc_info` they replace those before: none were sent."""
        if self.status is not None and exc_info is None:
            raise AssertionError("start_response was called twice")
        self.status, self.headers = status, headers
        return self.written.append

    def gather(self, parts: Iterable[bytes]) -> bytes:
        """Collect the whole body, and let the callable's iterable go."""
        try:
            if type(parts) is list and len(parts) == 1 and not self.written:
                self.written = parts
            else:
                self._gather_many(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return b"".join(self.written)

    def _gather_many(self, parts: Iterable[bytes]) -> None:
        length = 0
        for part in parts:
            self.written.append(part)
            length += len(part)
            if length > ANSWER_LIMIT_BYTES:
                raise ValueError(f"an answer is over the {ANSWER_LIMIT_BYTES} bytes that are held")


class AnswerHead(NamedTuple):
    """Status line and headers, but for those that differ from answer to answer."""

    text: bytes
    code: int
    length: int | None


_STATUS = re.compile(r"[1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?", re.ASCII)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
# No control character: a CR or LF in a value would be another header, or another answer.
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

_VERSIONS = (b"HTTP/1.0 ", b"HTTP/1.1 ")
_CLOSE, _KEEP_ALIVE = b"Connection: close\r\n", b"Connection: keep-alive\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


# The receiver says the same few things over and over.
@lru_cache(REMEMBERED_BLOCKS)
def write_head(status: str, headers: tuple[tuple[str, str], ...]) -> AnswerHead:
    """Write status and headers down, checked; raises ValueError or TypeError."""
    if not _STATUS.fullmatch(status):
        raise ValueError(f"{status!r} is no status")
    code = int(status[:3])
    lines = [f"{status}\r\nServer: {SERVER}\r\n"]
    length = None
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            # The name alone: a value may hold what must not stand in a log.
            raise ValueError(f"the header {name!r} cannot be sent")
        if name.lower() == "content-length":
            length = int(value)
            if code < 200 or code == 204:
                continue
        elif util.is_hoppish(name):
            # The connection is ours to speak of.
            continue
        lines.append(f"{name}: {value.strip()}\r\n")
    return AnswerHead("".join(lines).encode("latin-1"), code, length)


@dataclass(slots=True, eq=False)
class Call:
    """A request that is whole, and its answer. Without an environ the answer stands already."""

    connection: "Connection"
    environ: Environ | None = None
    # As it was sent: the callable may write into its environ.
    wants_body: bool = True
    minor_version: int = 1
    keeps_alive: bool = False
    began_at: float = 0.0
    request: Any = None
    answer: bytes = b""
    status: str = ""
    headers: Headers = ()
    sent: int = 0

    def write(self, status: str | None, headers: Headers, body: bytes, date: bytes) -> None:
        """Write the answer down; raises ValueError or TypeError where it cannot be sent."""
        if status is None:
            raise ValueError("the callable did not call start_response")
        text, code, length = write_head(status, tuple(headers))
        if not self.wants_body or code in {204, 304} or code < 200:
            body = b""
        elif length is None:
            text += b"Content-Length: %d\r\n" % len(body)
        elif length != len(body):
            raise ValueError(f"the callable promised {length} bytes and gave {len(body)}")
        self.status, self.headers, self.sent = status, headers, len(body)
        connection = _KEEP_ALIVE if self.keeps_alive else _CLOSE
        version = _VERSIONS[self.minor_version]
        self.answer = b"".join((version, text, date, connection, b"\r\n", body))


def write_error(status: int, reason: str) -> bytes:
    """Write gunicorn's own page for an error; it closes the connection."""
    sink = Sink()
    util.write_error(sink, status, reason, "")
    return sink.sent


# --- Connections -----------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Connection:
    """One client: what it sent and was not served yet, what it was answered and did not take."""

    sock: socket.socket
    peer: Peer
    deadline: float
    fd: int
    # What epoll watches for; 0: not watched.
    watched: int = 0
    # Received bytes, served up to `start` and searched for the end of a head up to `looked_to`.
    inbox: bytes = b""
    start: int = 0
    looked_to: int = 0
    head: Head | None = None
    chunked: ChunkedBody | None = None
    outbox: bytes | memoryview = b""
    # In the queue of connections to look at, and since when; its calls in the present batch.
    is_queued: bool = False
    queued_at: float = 0.0
    calls: int = 0
    # `deadline` is a request's: it runs from its first byte, for the first request from the start.
    is_timed: bool = True
    # The other side sends no more, but may still read; or it is gone altogether.
    has_ended: bool = False
    is_gone: bool = False
    # It is closed after what is to be sent; not before the other side has read that; that is being
    # waited for.
    is_closing: bool = False
    must_linger: bool = False
    is_lingering: bool = False

    def receive(self) -> bool:
        """Read what has come; False where there was nothing, or the other side ended."""
        try:
            received = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            self.is_gone = self.has_ended = True
            return False
        if not received:
            self.has_ended = True
            return False
        if self.start == len(self.inbox):
            self.inbox = received
            self.looked_to = 0
        else:
            self.inbox = self.inbox[self.start :] + received
            self.looked_to = max(0, self.looked_to - self.start)
        self.start = 0
        return True

    @property
    def is_amid_request(self) -> bool:
        """Tell whether a part of a request has come."""
        return self.head is not None or self.start < len(self.inbox)

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing is under way here."""
        is_busy = self.is_queued or self.outbox or self.is_lingering or self.is_amid_request
        return not is_busy

    def take_call(self, reader: HeadReader) -> Call | None:
        """Take the next whole request; None where there is none; raises gunicorn's errors."""
        head = self.head or self._take_head(reader)
        if head is None:
            return None
        body = self._take_body(head)
        if body is None:
            if not head.expects_continue:
                return None
            head.expects_continue = False
            return Call(self, keeps_alive=True, answer=_CONTINUE)
        self.head = self.chunked = None
        self.looked_to = self.start
        self.is_timed = False
        is_cut = isinstance(body, CutInput)
        # The rest of a body that we do not read is still under way, and so may be a next request
        # of those who did not ask for the close.
        self.must_linger = is_cut or head.keeps_alive
        environ = head.environ
        environ["wsgi.input"] = body
        return Call(
            self,
            environ,
            environ["REQUEST_METHOD"] != "HEAD",
            head.minor_version,
            head.keeps_alive and not is_cut,
            self.queued_at,
            head.request,
        )

    def _take_head(self, reader: HeadReader) -> Head | None:
        end = self.inbox.find(b"\r\n\r\n", self.looked_to)
        if end < 0:
            if self.start < len(self.inbox):
                reader.refuse_hopeless(self.inbox, self.start, self.looked_to, self.peer)
            # The end may have come in part.
            self.looked_to = max(self.start, len(self.inbox) - 3)
            return None
        self.head = reader.read(self.inbox, self.start, end, self.peer)
        self.start = end + 4
        return self.head

    def _take_body(self, head: Head) -> io.BytesIO | None:
        """Take the body where it is whole, or longer than is held."""
        if head.length is None:
            return self._take_chunked(head)
        if head.length > BODY_LIMIT_BYTES:
            return CutInput()
        end = self.start + head.length
        if end > len(self.inbox):
            return None
        body = io.BytesIO(self.inbox[self.start : end])
        self.start = end
        return body

    def _take_chunked(self, head: Head) -> io.BytesIO | None:
        if self.chunked is None:
            self.chunked = ChunkedBody(head.request)
        self.start = self.chunked.take(self.inbox, self.start)
        if self.chunked.is_too_long:
            return CutInput(self.chunked.content)
        return io.BytesIO(self.chunked.content) if self.chunked.is_whole else None

    def flush(self) -> None:
        """Send what the other side takes."""
        try:
            sent = self.sock.send(self.outbox)
        except BlockingIOError:
            return
        except OSError:
            # It hung up. What it sent before, the part still in the kernel too, counts.
            self.is_gone = True
            self.outbox = b""
            return
        self.outbox = b"" if sent == len(self.outbox) else memoryview(self.outbox)[sent:]

    def refuse(self) -> None:
        """Look at nothing more of what it sends, and close after what is to be sent."""
        self.head = self.chunked = None
        self.start = len(self.inbox)
        self.is_closing = self.must_linger = True


# --- The loop --------------------------------------------------------------------------------


class Told(NamedTuple):
    """An answer as gunicorn's access log and hooks look at it."""

    status: str
    headers: Headers
    sent: int
    response_length: int


class HoldingWorker(Worker):  # type: ignore[misc]  # gunicorn is untyped
    """Holds answers back until the commit that they share."""

    # For the settings' hooks: no thread of the receiver's is to do what this loop does.
    keeps_house = True

    alive: bool
    nr: int

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what this worker does not speak."""
        del log
        refusals = {
            "TLS (certfile, keyfile)": cfg.is_ssl,
            f"protocol = {cfg.protocol!r}": cfg.protocol != "http",
            "proxy_protocol": cfg.proxy_protocol != "off",
        }
        for what, is_wanted in refusals.items():
            if is_wanted:
                raise RuntimeError(
                    f"{cls.__name__} does not do {what}: let nginx do it in front of plain HTTP,"
                    " or choose --worker-class gthread"
                )

    def run(self) -> None:
        """Serve until told to stop, then finish what was begun."""
        self._prepare()
        while self.alive:
            self._turn()
        self._stop()

    def _prepare(self) -> None:
        self._connections: dict[int, Connection] = {}
        # Connections that may hold a whole request, in the order they are looked at.
        self._queue: deque[Connection] = deque()
        self._poller = select.epoll()
        self._poller.register(self.PIPE[0], select.EPOLLIN)
        self._listeners = {listener.fileno(): listener for listener in self.sockets}
        self._is_accepting = False
        self._connection_limit: int = max(1, self.cfg.worker_connections)
        # Connections that the other side is to close; the longest lingering first. They keep nobody
        # out: where they become too many, the first ones have to go.
        self._parting: dict[int, Connection] = {}
        allow_files(2 * self._connection_limit + SPARE_FILES)
        self._tells = is_told(self.cfg, self.log)
        # http_parser = python or fast asks for gunicorn's own by name.
        is_free = self.cfg.http_parser == "auto" and not self._tells
        self._reader = HeadReader(self.cfg, reads_plain=is_free)
        self._errors = wsgi.WSGIErrorsWrapper(self.cfg)
        self._one_commit = getattr(self.wsgi, "one_commit", None)
        self._keep_house = getattr(self.wsgi, "keep_house", None)
        self._now = time.monotonic()
        self._next_tick = self._next_notice = 0.0
        self._date, self._date_second = b"", 0
        for listener in self.sockets:
            listener.settimeout(0)
        self._resume_accepting()

    def _turn(self) -> None:
        """Read what has come, answer what is whole, commit, send; look at the clocks."""
        self._take_events(0.0 if self._queue else max(0.0, self._next_tick - time.monotonic()))
        batch = self._collect()
        if batch:
            self._answer(batch)
            self._now = time.monotonic()
            for call in batch:
                self._send(call)
        if self._now >= self._next_tick:
            self._tick()

    # Taking in

    def _take_events(self, patience: float) -> None:
        events = self._poller.poll(patience)
        self._now = time.monotonic()
        for fd, _ in events:
            connection = self._connections.get(fd)
            if connection is not None:
                self._attend(connection)
            elif fd in self._listeners:
                alone = self.cfg.workers == 1
                self._accept(fd, ACCEPT_LIMIT_ALONE if alone else ACCEPT_LIMIT_AMONG_OTHERS)
            elif fd == self.PIPE[0]:
                os.read(fd, 4096)

    def _attend(self, connection: Connection) -> None:
        """See to a connection that epoll speaks of."""
        if connection.is_lingering:
            self._drain(connection)
        elif connection.outbox:
            connection.flush()
            if not connection.outbox and not connection.is_closing:
                self._enqueue(connection)
            self._settle(connection)
        elif connection.is_queued:
            # It has whole requests that wait; no more is taken in before they are served.
            self._watch(connection, 0)
        elif connection.receive() or connection.has_ended:
            self._enqueue(connection)

    @property
    def _has_room(self) -> bool:
        return len(self._connections) - len(self._parting) < self._connection_limit

    def _accept(self, fd: int, limit: int) -> None:
        for _ in range(limit):
            if not self._has_room:
                self._pause_accepting()
                return
            try:
                sock, address = self._listeners[fd].accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # No files or no memory left. epoll would speak of it without end; the next tick
                # tries again.
                self.log.warning("no connection can be accepted at present: %s", error)
                self._pause_accepting()
                return
            self._welcome(sock, address, self._listeners[fd].getsockname())

    def _welcome(self, sock: socket.socket, address: Address, server: Any) -> None:
        sock.settimeout(0)
        peer = make_peer(self.cfg, self._errors, address, server)
        deadline = self._now + (REQUEST_LIMIT_SECONDS if self.alive else STOP_IDLE_SECONDS)
        connection = Connection(sock, peer, deadline, sock.fileno())
        self._connections[connection.fd] = connection
        # Most have sent their request by now.
        if connection.receive() or connection.has_ended:
            self._enqueue(connection)
        else:
            self._watch(connection, select.EPOLLIN)

    def _pause_accepting(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            for fd in self._listeners:
                self._poller.unregister(fd)

    def _resume_accepting(self) -> None:
        if not self._is_accepting and self.alive and self._has_room:
            self._is_accepting = True
            for fd in self._listeners:
                # EXCLUSIVE: a new connection wakes one worker, not all of them.
                self._poller.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def _watch(self, connection: Connection, events: int) -> None:
        """Have epoll speak of these events only; with 0, of nothing, not even a reset."""
        if events == connection.watched:
            return
        if not events:
            self._poller.unregister(connection.fd)
        elif connection.watched:
            self._poller.modify(connection.fd, events)
        else:
            self._poller.register(connection.fd, events)
        connection.watched = events

    def _enqueue(self, connection: Connection) -> None:
        if not connection.is_queued:
            connection.is_queued = True
            connection.queued_at = self._now
            self._queue.append(connection)

    # Answering

    def _collect(self) -> list[Call]:
        """Take whole requests for one commit, one of each connection in turn."""
        batch: list[Call] = []
        others: list[Connection] = []
        while self._queue and len(batch) < BATCH_LIMIT:
            connection = self._queue.popleft()
            call = None if connection.outbox else self._take_call(connection)
            if call is not None:
                batch.append(call)
                connection.calls += 1
                if not connection.is_closing and connection.is_amid_request:
                    is_done = connection.calls >= PIPELINE_LIMIT
                    (others if is_done else self._queue).append(connection)
                    continue
            connection.is_queued = False
            if not connection.calls:
                self._settle(connection)
        self._queue.extend(others)
        return batch

    def _take_call(self, connection: Connection) -> Call | None:
        try:
            call = connection.take_call(self._reader)
        except Exception as error:  # the edge of one connection; gunicorn tells which is whose
            sink = Sink()
            self.handle_error(None, sink, connection.peer.address, error)
            connection.refuse()
            # gunicorn's page quotes the request, and so perhaps the key: only its status is sent.
            _, status, reason = sink.sent.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)
            return Call(connection, answer=write_error(int(status), reason))
        if call is not None and call.environ is not None:
            self._admit(call)
        return call

    def _admit(self, call: Call) -> None:
        """Count a request, and decide whether its connection goes on after it."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        # A server that is full lets go of those it has served, so that others get in.
        if not (self.alive and self.cfg.keepalive and self._is_accepting):
            call.keeps_alive = False
        call.connection.is_closing = not call.keeps_alive
        if self._one_commit and self._now - call.connection.queued_at > WAIT_LIMIT_SECONDS:
            self._write_unavailable(call)

    def _answer(self, batch: list[Call]) -> None:
        """Call the callable for a batch, and commit: nothing is sent before this returns."""
        calls = [call for call in batch if not call.answer]
        if not calls:
            return
        self._tell_date()
        try:
            with self._one_commit() if self._one_commit else nullcontext():
                for call in calls:
                    self._answer_one(call)
        except UnavailableError:
            self._withdraw(calls)
        except Exception:
            self.log.exception("Error committing %s answers", len(calls))
            self._withdraw(calls)

    def _answer_one(self, call: Call) -> None:
        if time.monotonic() >= self._next_notice:
            self._notice()
        response = Response()
        try:
            if self._tells:
                self.cfg.pre_request(self, call.request)
            body = response.gather(self.wsgi(call.environ, response.start))
            call.write(response.status, response.headers, body, self._date)
        except Exception:
            environ = call.environ or {}
            method, target = environ.get("REQUEST_METHOD"), environ.get("RAW_URI")
            self.log.exception("Error handling request %s %s", method, target)
            plain = [("Content-Type", "text/plain; charset=utf-8")]
            call.write("500 Internal Server Error", plain, b"Internal Server Error", self._date)

    def _withdraw(self, calls: list[Call]) -> None:
        """Ask all senders of a failed batch to send again: nothing of theirs was kept."""
        for call in calls:
            self._write_unavailable(call)

    def _write_unavailable(self, call: Call) -> None:
        status, headers, body = unavailable_answer()
        length = ("Content-Length", str(len(body)))
        self._tell_date()
        call.write(f"{status.value} {status.phrase}", [*headers, length], body, self._date)

    def _tell_date(self) -> None:
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = f"Date: {util.http_date(second)}\r\n".encode("latin-1")

    # Letting out

    def _send(self, call: Call) -> None:
        """Let an answer out, together with the others of its connection."""
        connection = call.connection
        if not connection.is_gone:
            connection.outbox = bytes(connection.outbox) + call.answer
        connection.calls -= 1
        if not connection.calls:
            if connection.outbox:
                connection.flush()
            self._settle(connection)
        if self._tells and call.request is not None:
            self._tell(call)

    def _settle(self, connection: Connection) -> None:
        """Decide what a connection waits for next, and until when."""
        if connection.outbox:
            self._watch(connection, select.EPOLLOUT)
            connection.deadline = self._now + SEND_LIMIT_SECONDS
        elif connection.is_closing:
            self._part(connection)
        elif connection.is_queued:
            return
        elif connection.has_ended:
            self._close(connection)
        else:
            self._watch(connection, select.EPOLLIN)
            self._set_deadline(connection)

    def _set_deadline(self, connection: Connection) -> None:
        if connection.is_timed:
            return
        if connection.is_amid_request:
            connection.is_timed = True
            connection.deadline = self._now + REQUEST_LIMIT_SECONDS
        else:
            connection.deadline = self._now + self.cfg.keepalive

    def _part(self, connection: Connection) -> None:
        """Close after the last answer, once the other side has had time to read it."""
        if connection.has_ended or connection.is_gone or not connection.must_linger:
            self._close(connection)
            return
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        connection.is_lingering = True
        connection.deadline = self._now + LINGER_SECONDS
        self._watch(connection, select.EPOLLIN)
        self._parting[connection.fd] = connection
        if len(self._parting) > self._connection_limit:
            self._close(next(iter(self._parting.values())))
        self._resume_accepting()

    def _drain(self, connection: Connection) -> None:
        """Throw away what comes after the last answer, until the other side closes too."""
        try:
            is_over = not connection.sock.recv(READ_BYTES)
        except BlockingIOError:
            is_over = False
        except OSError:
            is_over = True
        if is_over:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._watch(connection, 0)
        del self._connections[connection.fd]
        self._parting.pop(connection.fd, None)
        connection.sock.close()
        self._resume_accepting()

    def _tell(self, call: Call) -> None:
        """Let gunicorn's access log and the hook behind each request have their say."""
        told = Told(call.status, call.headers, call.sent, call.sent)
        taken = timedelta(seconds=self._now - call.began_at)
        self.log.access(told, call.request, call.environ, taken)
        try:
            self.cfg.post_request(self, call.request, call.environ, told)
        except Exception:
            self.log.exception("Exception in post_request hook")

    # Looking at the clocks

    def _notice(self) -> None:
        """Show the arbiter that we are alive: between calls too, a batch of slow ones goes on."""
        self.notify()
        self._next_notice = time.monotonic() + TICK_SECONDS

    def _tick(self) -> None:
        self._notice()
        if self.alive and self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self.alive = False
        if self._keep_house is not None:
            self._do_housekeeping()
        for connection in list(self._connections.values()):
            if connection.deadline <= self._now and not connection.is_queued:
                self._expire(connection)
        self._resume_accepting()
        self._next_tick = time.monotonic() + TICK_SECONDS

    def _do_housekeeping(self) -> None:
        assert self._keep_house is not None
        try:
            self._keep_house()
        except UnavailableError:
            # The committer has told the log; the next turn tries again.
            pass
        except Exception:
            self.log.exception("Error keeping house")

    def _expire(self, connection: Connection) -> None:
        """Let a connection go whose time is up."""
        if connection.is_lingering or connection.outbox:
            self._close(connection)
        elif connection.is_amid_request:
            connection.refuse()
            connection.outbox = write_error(408, "Request Timeout")
            connection.flush()
            self._settle(connection)
        elif connection.receive() or connection.has_ended:
            # A request came in the last moment.
            self._enqueue(connection)
        else:
            self._close(connection)

    def _stop(self) -> None:
        """Answer what has come, and go."""
        # The arbiter kills at the end of the grace; the database is to be closed before.
        deadline = time.monotonic() + 0.9 * self.cfg.graceful_timeout
        self._now = time.monotonic()
        for fd in self._listeners:
            # Whoever waits to be accepted has perhaps been told so by nobody else.
            self._accept(fd, self._connection_limit)
        self._pause_accepting()
        for connection in self._connections.values():
            if connection.is_idle:
                connection.deadline = min(connection.deadline, self._now + STOP_IDLE_SECONDS)
        while self._connections and time.monotonic() < deadline:
            self._turn()
        for connection in list(self._connections.values()):
            self._close(connection)
        self._poller.close()
        for listener in self.sockets:
            listener.close()


def allow_files(count: int) -> None:
    """Raise the limit of open files as far as needed and permitted: 1,024 is a usual default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def is_told(cfg: Any, log: Any) -> bool:
    """Tell whether anybody wants to see gunicorn's request objects: a log or a hook."""
    hooks = (cfg.settings["pre_request"], cfg.settings["post_request"])
    return (
        log.access_log_enabled
        or log.error_log.isEnabledFor(logging.DEBUG)
        or any(hook.get() is not hook.default for hook in hooks)
    )
