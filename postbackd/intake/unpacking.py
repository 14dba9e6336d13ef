"""Packed bodies (Content-Encoding), unpacked within a bound."""

import zlib

# Windows of zlib for each coding, tried in turn. `deflate` is zlib's format (RFC 9110, 8.4.1.2);
# what some clients send under that name is the bare stream.
_WINDOWS = {
    "gzip": (16 + zlib.MAX_WBITS,),
    "x-gzip": (16 + zlib.MAX_WBITS,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),
}
# Names for a body that is not packed.
_PLAIN = frozenset({"", "identity", "none"})

# One is what senders use; each further one costs as much again.
CODINGS_AT_MOST = 2
# A gzip file may be several, one behind the other: for each the rest is copied.
MEMBERS_AT_MOST = 8

GZIP_SIGNATURE = b"\x1f\x8b"


class TooLargeError(Exception):
    """The body is longer than we read, as it came or unpacked."""


class CodingError(Exception):
    """The body cannot be unpacked; the sentence says why."""


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """Unpack a body by its Content-Encoding; raises CodingError, beyond the limit TooLargeError.

    Not more than the limit is ever unpacked, however much a body would come to.
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
        # gzip's tools fill blocks up with NUL bytes.
        packed = unpacker.unused_data.lstrip(b"\0")
        if not packed:
            return content
    raise zlib.error("too many members")
