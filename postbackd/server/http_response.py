"""Answers written as bytes: status line, headers, body, gunicorn's own error pages."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from gunicorn import SERVER, util

# An answer is held in memory until the commit. The receiver's own answers are below 10 KiB.
ANSWER_LIMIT_BYTES = 16 * 1024 * 1024

# Header blocks cached: a network's machines send the same headers with every postback.
REMEMBERED_BLOCKS = 256

Headers = Sequence[tuple[str, str]]


class FakeSocket:
    """Stands in for a socket where gunicorn's code sends at once: the bytes are collected."""

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


class Response:
    """The status, headers and bytes that a callable passes to `start_response` and `write`."""

    __slots__ = ("headers", "status", "written")

    def __init__(self) -> None:
        """Start without status, headers and bytes."""
        self.status: str | None = None
        self.headers: Headers = ()
        self.written: list[bytes] = []

    def start(
        self, status: str, headers: Headers, exc_info: object = None
    ) -> Callable[[bytes], None]:
        """Set status and headers; with `exc_info` they replace earlier ones: none were sent."""
        if self.status is not None and exc_info is None:
            raise AssertionError("start_response was called twice")
        self.status, self.headers = status, headers
        return self.written.append

    def gather(self, parts: Iterable[bytes]) -> bytes:
        """Return the whole body, and close the callable's iterable."""
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
    """Status line and headers, without those that differ from answer to answer."""

    text: bytes
    code: int
    length: int | None


_STATUS = re.compile(r"[1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?", re.ASCII)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
# No control character: a CR or LF in a value would start another header, or another answer.
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

VERSIONS = (b"HTTP/1.0 ", b"HTTP/1.1 ")
CLOSE, KEEP_ALIVE = b"Connection: close\r\n", b"Connection: keep-alive\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


# The receiver sends few different heads.
@lru_cache(REMEMBERED_BLOCKS)
def write_head(status: str, headers: tuple[tuple[str, str], ...]) -> AnswerHead:
    """Check status and headers and write them as bytes; raises ValueError or TypeError."""
    if not _STATUS.fullmatch(status):
        raise ValueError(f"{status!r} is no status")
    code = int(status[:3])
    lines = [f"{status}\r\nServer: {SERVER}\r\n"]
    length = None
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            # The name without the value: a value may hold a key.
            raise ValueError(f"the header {name!r} cannot be sent")
        if name.lower() == "content-length":
            length = int(value)
            if code < 200 or code == 204:
                continue
        elif util.is_hoppish(name):
            # The worker alone decides about the connection.
            continue
        lines.append(f"{name}: {value.strip()}\r\n")
    return AnswerHead("".join(lines).encode("latin-1"), code, length)


def write_error(status: int, reason: str) -> bytes:
    """Return gunicorn's own page for an error; it closes the connection."""
    sink = FakeSocket()
    util.write_error(sink, status, reason, "")
    return sink.sent
