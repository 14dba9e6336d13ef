"""A client's connection: what it sent and was not served yet, what it is answered."""

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

# One read of a connection; also what a sender may have us hold of requests not served yet.
READ_BYTES = 64 * 1024


class Hold(IntEnum):
    """What a connection takes its place for; where there is no room, the first kinds go first."""

    SILENT = 0  # nothing has come on it yet
    IDLE = 1  # all requests have been answered, and another may come
    BEGUN = 2  # a part of a request has come
    DEAF = 3  # its answers are not read


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
    # Bytes of its target and its body: what reading it and storing it cost.
    size: int = 0
    answer: bytes = b""
    status: str = ""
    headers: Headers = ()
    sent: int = 0

    def write(self, status: str | None, headers: Headers, body: bytes, date: bytes) -> None:
        """Write the answer down; raises ValueError or TypeError where it cannot be sent."""
        if status is None:
            raise ValueError("the callable did not call start_response")
        text, code, length = write_head(status, tuple(headers))
        has_body = code >= 200 and code not in {204, 304}
        if has_body and length is None and (body or self.wants_body):
            # A HEAD is told how long a GET's answer is.
            text += b"Content-Length: %d\r\n" % len(body)
        elif has_body and self.wants_body and length != len(body):
            raise ValueError(f"the callable promised {length} bytes and gave {len(body)}")
        if not has_body or not self.wants_body:
            body = b""
        self.status, self.headers, self.sent = status, headers, len(body)
        connection = KEEP_ALIVE if self.keeps_alive else CLOSE
        version = VERSIONS[self.minor_version]
        self.answer = b"".join((version, text, date, connection, b"\r\n", body))


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
    # Since when it has been held for this; None while it is served.
    hold: Hold | None = None
    held_since: float = 0.0
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
    def unserved_bytes(self) -> int:
        """Tell how much has come of requests that are not served yet."""
        decoded = 0 if self.chunked is None else len(self.chunked.content)
        return len(self.inbox) - self.start + decoded

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
            return Call(self, keeps_alive=True, answer=CONTINUE)
        self.head = self.chunked = None
        self.looked_to = self.start
        self.is_timed = False
        is_cut = isinstance(body, TruncatedBody)
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
            len(environ["RAW_URI"]) + body.getbuffer().nbytes,
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
