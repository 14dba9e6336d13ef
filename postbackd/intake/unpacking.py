"""Unpacks bodies (Content-Encoding) up to a limit."""

import zlib

# zlib's window sizes for each coding, tried in turn. `deflate` is zlib's format (RFC 9110,
# 8.4.1.2); some clients send the bare stream under that name.
_WINDOWS = {
    "gzip": (16 + zlib.MAX_WBITS,),
    "x-gzip": (16 + zlib.MAX_WBITS,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),
}
# Names for a body that is not packed.
_PLAIN = frozenset({"", "identity", "none"})

# Senders use one; each further one costs as much again.
CODINGS_AT_MOST = 2
# A gzip file may consist of several members: for each the rest is copied.
MEMBERS_AT_MOST = 8

GZIP_SIGNATURE = b"\x1f\x8b"


class TooLargeError(Exception):
    """The body is longer than the limit, packed or unpacked."""


class CodingError(Exception):
    """The body cannot be unpacked; the sentence says why."""


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """Unpack a body by its Content-Encoding; raises CodingError, beyond the limit TooLargeError.

    No more than the limit is ever unpacked.
    """
    named = (coding.strip().lower() for coding in encoding.split(","))
    codings = [coding for coding in named if coding not in _PLAIN]
    if len(codings) > CODINGS_AT_MOST:
        raise CodingError(f"it is packed {len(codings)} times over")
    for coding in codings:
        if coding not in _WINDOWS:
            raise CodingError(f"the coding {coding[:20]!r} is not known here")
    for coding in reversed(codings):
        body = _unpack_one(body, coding, limit)
    return body


def _unpack_one(body: bytes, coding: str, limit: int) -> bytes:
    for window in _WINDOWS[coding]:
        try:
            return _inflate(body, window, limit)
        except zlib.error:
            continue
    raise CodingError(f"it is not whole, or no {coding}")


def _inflate(packed: bytes, window: int, limit: int) -> bytes:
    content = b""
    for _ in range(MEMBERS_AT_MOST):
        unpacker = zlib.decompressobj(window)
        content += unpacker.decompress(packed, limit + 1 - len(content))
        if len(content) > limit:
            raise TooLargeError
        if not unpacker.eof:
            raise zlib.error("cut short")
        # gzip's tools pad blocks with NUL bytes.
        packed = unpacker.unused_data.lstrip(b"\0")
        if not packed:
            return content
    raise zlib.error("too many members")
