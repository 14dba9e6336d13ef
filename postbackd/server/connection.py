"""A client's connection: received bytes that are not answered yet, answers not sent yet."""

import io
import socket
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from postbackd.intake.body import BODY_LIMIT_BYTES, Environ
from postbackd.server.http_request import ChunkedBody, Head, HeadReader, Peer, TruncatedBody
from postbackd.server.http_response import (
    CLOSE,
    CONTINUE,
    KEEP_ALIVE,
    VERSIONS,
    Headers,
    write_head,
)

# Bytes of one read. A connection whose requests wait for a batch is not read from meanwhile.
READ_BYTES = 64 * 1024


class Hold(IntEnum):
    """What a connection waits for; when all connections are taken, the lowest value goes first."""

    SILENT = 0  # no byte has been received
    IDLE = 1  # all requests have been answered, and another may come
    BEGUN = 2  # a part of a request has been received
    DEAF = 3  # the client does not read its answers


@dataclass(slots=True, eq=False)
class Call:
    """A complete request, and its answer; a call without environ has its answer from the start."""

    connection: "Connection"
    environ: Environ | None = None
    # Read from the request before the callable runs, which may write into its environ.
    wants_body: bool = True
    minor_version: int = 1
    keeps_alive: bool = False
    began_at: float = 0.0
    request: Any = None
    # Bytes of target and body: a measure of the work that reading and storing it takes.
    size: int = 0
    answer: bytes = b""
    status: str = ""
    headers: Headers = ()
    sent: int = 0

    def write(self, status: str | None, headers: Headers, body: bytes, date: bytes) -> None:
        """Write the answer's bytes; raises ValueError or TypeError for one that cannot be sent."""
        if status is None:
            raise ValueError("the callable did not call start_response")
        text, code, length = write_head(status, tuple(headers))
        has_body = code >= 200 and code not in {204, 304}
        if has_body and length is None and (body or self.wants_body):
            # The answer to HEAD names the length of the answer to GET.
            text += b"Content-Length: %d\r\n" % len(body)
        elif has_body and self.wants_body and length != len(body):
            raise ValueError(f"the callable announced {length} bytes and returned {len(body)}")
        if not has_body or not self.wants_body:
            body = b""
        self.status, self.headers, self.sent = status, headers, len(body)
        connection = KEEP_ALIVE if self.keeps_alive else CLOSE
        version = VERSIONS[self.minor_version]
        self.answer = b"".join((version, text, date, connection, b"\r\n", body))


@dataclass(slots=True, eq=False)
class Connection:
    """One client's socket, the bytes received and not answered yet, the answers not sent yet."""

    sock: socket.socket
    peer: Peer
    deadline: float
    fd: int
    # The events that epoll watches; 0: not watched.
    watched: int = 0
    # Received bytes, served up to `start` and searched for the end of a head up to `looked_to`.
    inbox: bytes = b""
    start: int = 0
    looked_to: int = 0
    head: Head | None = None
    chunked: ChunkedBody | None = None
    outbox: bytes | memoryview = b""
    # `hold` has had its value since `held_since`; None while a request is being answered.
    hold: Hold | None = None
    held_since: float = 0.0
    # `is_queued`: in the worker's queue, since `queued_at`. `calls`: its requests in this batch.
    is_queued: bool = False
    queued_at: float = 0.0
    calls: int = 0
    # `deadline` counts from a request's first byte; for the first request, from the accept.
    is_timed: bool = True
    # `has_ended`: the client sends no more, but may still read. `is_gone`: it has disconnected.
    has_ended: bool = False
    is_gone: bool = False
    # `is_closing`: close once the outbox is empty. `must_linger`: shut down writing
    # first and wait for the client's FIN. `is_lingering`: we are waiting for it.
    is_closing: bool = False
    must_linger: bool = False
    is_lingering: bool = False

    def receive(self) -> bool:
        """Read from the socket; False where there was nothing, or the client has ended."""
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
    def unserved_bytes(self) -> int:
        """Return how many received bytes belong to requests that are not answered yet."""
        decoded = 0 if self.chunked is None else len(self.chunked.content)
        return len(self.inbox) - self.start + decoded

    @property
    def is_amid_request(self) -> bool:
        """Return whether a part of a request has been received."""
        return self.head is not None or self.start < len(self.inbox)

    @property
    def is_idle(self) -> bool:
        """Return whether no request, answer or close is under way."""
        is_busy = self.is_queued or self.outbox or self.is_lingering or self.is_amid_request
        return not is_busy

    def take_call(self, reader: HeadReader) -> Call | None:
        """Return the next complete request, or None; raises gunicorn's errors."""
        head = self.head or self._take_head(reader)
        if head is None:
            return None
        body = self._take_body(head)
        if body is None:
            if not head.expects_continue:
                return None
            head.expects_continue = False
            return Call(self, keeps_alive=True, answer=CONTINUE)
        self.head = self.chunked = None
        self.looked_to = self.start
        self.is_timed = False
        is_cut = isinstance(body, TruncatedBody)
        # The rest of a body that we do not read may still arrive, and so may the next request of a
        # client that did not ask for the close.
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
            len(environ["RAW_URI"]) + body.getbuffer().nbytes,
        )

    def _take_head(self, reader: HeadReader) -> Head | None:
        end = self.inbox.find(b"\r\n\r\n", self.looked_to)
        if end < 0:
            if self.start < len(self.inbox):
                reader.refuse_hopeless(self.inbox, self.start, self.looked_to, self.peer)
            # The first bytes of the end may be there.
            self.looked_to = max(self.start, len(self.inbox) - 3)
            return None
        self.head = reader.read(self.inbox, self.start, end, self.peer)
        self.start = end + 4
        return self.head

    def _take_body(self, head: Head) -> io.BytesIO | None:
        """Return the body if it is complete, or a TruncatedBody if it is longer than the limit."""
        if head.length is None:
            return self._take_chunked(head)
        if head.length > BODY_LIMIT_BYTES:
            return TruncatedBody()
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
            return TruncatedBody(self.chunked.content)
        return io.BytesIO(self.chunked.content) if self.chunked.is_whole else None

    def flush(self) -> None:
        """Send as much of the outbox as the socket takes."""
        try:
            sent = self.sock.send(self.outbox)
        except BlockingIOError:
            return
        except OSError:
            # The client has disconnected. Requests it sent before are served, those still in the
            # kernel too.
            self.is_gone = True
            self.outbox = b""
            return
        self.outbox = b"" if sent == len(self.outbox) else memoryview(self.outbox)[sent:]

    def refuse(self) -> None:
        """Ignore what the client sends from now on, and close once the outbox is empty."""
        self.head = self.chunked = None
        self.start = len(self.inbox)
        self.is_closing = self.must_linger = True
