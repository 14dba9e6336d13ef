"""Reads nginx's log of requests that the receiver could not answer (`deploy/nginx/postback.conf`).

Each line is a JSON object of texts. Bytes that are no ASCII are in it unescaped, so lines are read
as bytes, and each character of a text is one byte. A line has a tag of the key, not the key.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, NamedTuple, cast

# A body of 64 KiB has six characters for each byte at most, a head a quarter of that.
LONGEST_LINE_BYTES = 1024 * 1024

TAG_DIGITS = 10

# Every line begins so, and nothing else in it does: quotes within a text are escaped. Where nginx
# could write only a part of a line, the next line follows directly behind that part.
_BEGIN = re.compile(rb'(?=\{"time":")')
_GZIP_MAGIC = b"\x1f\x8b"

_NO_SUCH_LINE = (
    "this is no line of the log in which deploy/nginx stores requests that were not answered"
)
_CUT = "the line is cut off: the disk was full, or nginx was still writing"
_LONG = f"the line is longer than {LONGEST_LINE_BYTES} bytes"
_NO_BODY = (
    "its body was sent and not read, because the sender was over a limit or the body came in too"
    " many pieces: the parameters in it are not known"
)


class Caught(NamedTuple):
    """A request as nginx wrote it down.

    Of the path `tag` replaces the key, `name` is the next part (`postback`), and `tail` the text
    behind that where the `?` was missing.
    """

    received_at: datetime
    tag: str
    name: str
    tail: str
    method: str
    address: str
    query: str
    cookies: str
    content_type: str
    encoding: str
    body: str


class Line(NamedTuple):
    """A line or a part of one: its number, and its request or the flaw."""

    number: int
    caught: Caught | None
    flaw: str = ""


# Reading a file


@contextmanager
def open_plain(source: BinaryIO) -> Iterator[BinaryIO]:
    """Open a file, unpacking it where its first bytes are gzip's."""
    # Standard input is not seekable.
    if source.peek(2)[:2] == _GZIP_MAGIC:  # type: ignore[attr-defined]  # every open file has it
        with gzip.open(source) as unpacked:
            yield cast(BinaryIO, unpacked)
    else:
        yield source


def read_lines(source: BinaryIO) -> Iterator[Line]:
    """Read the lines of a log; empty lines are left out, a line without a request has a flaw."""
    number = 0
    try:
        while line := source.readline(LONGEST_LINE_BYTES):
            number += 1
            if len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
                _skip_rest(source)
                yield Line(number, None, _LONG)
            else:
                yield from _read_pieces(number, line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Line(number + 1, None, f"the rest of the file cannot be unpacked: {error}")


def _skip_rest(source: BinaryIO) -> None:
    """Skip the rest of a line that is too long."""
    while rest := source.readline(LONGEST_LINE_BYTES):
        if rest.endswith(b"\n"):
            break


def _read_pieces(number: int, line: bytes) -> Iterator[Line]:
    for piece in filter(bytes.strip, _BEGIN.split(line)):
        caught = read_caught(piece)
        if isinstance(caught, str):
            yield Line(number, None, caught)
        else:
            yield Line(number, caught)


# Reading a line


def read_caught(line: bytes) -> Caught | str:
    """Read the request of a line, or return the flaw as text."""
    text = line.decode("latin-1").strip()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return _CUT if _BEGIN.match(line) else _NO_SUCH_LINE
    if not isinstance(said, dict) or not all(isinstance(said.get(name), str) for name in _NAMES):
        return _NO_SUCH_LINE
    received_at = _read_time(said)
    if received_at is None:
        return _NO_SUCH_LINE
    if not said["body"] and (said["coding"] or said["length"].strip("0")):
        return _NO_BODY
    return Caught(
        received_at=received_at,
        tag=said["key"],
        name=said["asked"],
        tail=said["tail"],
        method=said["method"],
        address=said["address"],
        query=said["query"],
        cookies="; ".join(f"{name}={said[name]}" for name in _COOKIES if said[name]),
        content_type=said["type"],
        encoding=said["encoding"],
        body=said["body"],
    )


# As in `log_format postback_caught`.
_COOKIES = ("subid", "_subid")
_NAMES = (
    *("ended", "took", "key", "asked", "tail", "method", "address", "query", *_COOKIES),
    *("type", "encoding", "length", "coding", "body"),
)
_SECONDS = re.compile(r"[0-9]{1,11}\.[0-9]{3}")


def _read_time(said: dict[str, str]) -> datetime | None:
    """Compute when a request came: nginx logs when it was answered, and how long it took."""
    ended, took = said["ended"], said["took"]
    if not _SECONDS.fullmatch(ended) or not _SECONDS.fullmatch(took):
        return None
    try:
        return datetime.fromtimestamp(0, UTC) + timedelta(
            milliseconds=int(ended.replace(".", "")) - int(took.replace(".", ""))
        )
    except OverflowError:
        return None


# Tags of keys


def tag_key(key: bytes) -> str:
    """Compute the tag that nginx writes for a key: a digit from each of ten hashes.

    nginx merges repeated slashes of a path, so they are merged here, too.
    """
    seen = re.sub(b"/+", b"/", key).strip(b"/")
    hashes = (_hash(b"%d" % digit + seen) for digit in range(TAG_DIGITS))
    return "".join(f"{min(found // _SIXTEENTH, 15):x}" for found in hashes)


# `split_clients` in nginx: MurmurHash2 of 32 bits from seed 0, and the share of 6.25 % as a number,
# cut off. Source: nginx, documentation of ngx_http_split_clients_module; the hash: its author's
# description, https://en.wikipedia.org/wiki/MurmurHash. A test holds both against nginx.
_SIXTEENTH = 0xFFFFFFFF * 625 // 10000
_FACTOR = 0x5BD1E995
_32_BITS = 0xFFFFFFFF


def _hash(text: bytes) -> int:
    found = len(text)
    whole = len(text) - len(text) % 4
    for place in range(0, whole, 4):
        block = int.from_bytes(text[place : place + 4], "little") * _FACTOR & _32_BITS
        block = (block ^ block >> 24) * _FACTOR & _32_BITS
        found = found * _FACTOR & _32_BITS ^ block
    if rest := text[whole:]:
        found = (found ^ int.from_bytes(rest, "little")) * _FACTOR & _32_BITS
    found = (found ^ found >> 13) * _FACTOR & _32_BITS
    return found ^ found >> 15
