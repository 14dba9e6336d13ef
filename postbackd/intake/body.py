"""Reads the body of a request: its fields, and the bytes that are stored.

A body is read as a form, as JSON or as multipart/form-data, by its type; without a type, or with a
vague one, by its content. `Body.form` has its fields written as a form: they become a part of the
stored query, and are parsed from there again.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from postbackd.intake.json_fields import decode_json, json_bytes, read_json_fields, read_json_string
from postbackd.intake.multipart_fields import read_multipart_fields
from postbackd.intake.query import MAX_INPUT_VARS, quote_value
from postbackd.intake.unpacking import GZIP_SIGNATURE, CodingError, TooLargeError, unpack
from postbackd.masking import KeyMask
from postbackd.raw_text import read_text

# The longest body that is read. Source: the contract; a postback is a few hundred bytes.
BODY_LIMIT_BYTES = 64 * 1024
FORM_TYPE = "application/x-www-form-urlencoded"
MULTIPART_TYPE = "multipart/form-data"

# Senders' types for JSON; types of their own end with the suffix (RFC 6839).
_JSON_TYPES = frozenset({"application/json", "text/json", "application/x-json"})
_JSON_SUFFIX = "+json"
# The types of clients that know no type.
_VAGUE_TYPES = frozenset({"", "text/plain", "application/octet-stream", "*/*"})

# The characters of a type that are stored; usual ones have some forty, with their boundary.
TYPE_CHARACTERS = 255

Environ = dict[str, Any]


class CutShortError(Exception):
    """The sender closed the connection before its body was whole."""


class Body(NamedTuple):
    """The fields of a body, written as a form (each character one byte), and warnings.

    `kept` is the body itself, unpacked, where the form does not have all of it. Keys are hidden.
    """

    form: str = ""
    warnings: tuple[str, ...] = ()
    kept: bytes | None = None
    content_type: str | None = None


class Reading(NamedTuple):
    """The fields of a body as a form, warnings, and whether the form has all of the body.

    `in_utf_8` is the body decoded from another encoding, in which no key would be found.
    """

    form: str
    warnings: tuple[str, ...] = ()
    says_all: bool = False
    in_utf_8: bytes | None = None


def read_body(environ: Environ, mask: KeyMask) -> Body:
    """Read a body; TooLargeError where it is too long, packed or unpacked."""
    if _has_none(environ):
        # Nearly every postback.
        return NO_BODY
    raw = _take(environ)
    if not raw:
        return NO_BODY
    # Keys are hidden before the type is cut: a part of a key would not be found.
    content_type = mask.hide(environ.get("CONTENT_TYPE", "").strip())
    encoding = mask.hide(environ.get("HTTP_CONTENT_ENCODING", "").strip())
    content, warnings = _unpack(raw, encoding)
    reading = Reading("") if content is None else _read_content(content, content_type)
    kept = None if reading.says_all else reading.in_utf_8 or content or raw
    return Body(
        form=mask.hide_in_bytes(reading.form.encode("latin-1")).decode("latin-1"),
        warnings=warnings + reading.warnings,
        kept=None if kept is None else mask.hide_in_bytes(kept),
        content_type=read_text(content_type[:TYPE_CHARACTERS].encode("latin-1")) or None,
    )


NO_BODY = Body()


def _has_none(environ: Environ) -> bool:
    return (
        not environ.get("CONTENT_LENGTH")
        and environ["REQUEST_METHOD"] != "POST"
        and "HTTP_TRANSFER_ENCODING" not in environ
    )


def _take(environ: Environ) -> bytes:
    length = _read_length(environ)
    if length > BODY_LIMIT_BYTES:
        raise TooLargeError
    is_chunked = bool(environ.get("wsgi.input_terminated")) and not environ.get("CONTENT_LENGTH")
    if length == 0 and not is_chunked:
        return b""
    raw: bytes = environ["wsgi.input"].read(BODY_LIMIT_BYTES + 1 if is_chunked else length)
    if len(raw) > BODY_LIMIT_BYTES:
        raise TooLargeError
    if len(raw) < length:
        # "payout=100" cut to "payout=10" would be misread money.
        raise CutShortError
    return raw


def _read_length(environ: Environ) -> int:
    text = environ.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isascii() and text.isdigit() else 0


def _unpack(raw: bytes, encoding: str) -> tuple[bytes | None, tuple[str, ...]]:
    """Unpack a body by its Content-Encoding or its first bytes; None where that fails."""
    if not encoding:
        return _unpack_unsaid(raw) if raw.startswith(GZIP_SIGNATURE) else (raw, ())
    try:
        return unpack(raw, encoding, BODY_LIMIT_BYTES), ()
    except CodingError as error:
        if not _BINARY.search(raw):
            # A proxy has unpacked the body, and left the header.
            return raw, (
                f"Content-Encoding is {quote_value(encoding)}, and the body is not packed",
            )
        return None, (f"the body was left unread, {error}: send it plain, or with gzip",)


def _unpack_unsaid(raw: bytes) -> tuple[bytes | None, tuple[str, ...]]:
    try:
        content = unpack(raw, "gzip", BODY_LIMIT_BYTES)
    except (CodingError, TooLargeError):
        return None, ("the body was left unread: it is gzip, and no Content-Encoding says so",)
    return content, ("the body is gzip, and no Content-Encoding says so",)


# Text of any encoding with one byte a character has none of these.
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def _read_content(content: bytes, content_type: str) -> Reading:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == FORM_TYPE:
        return _read_said_form(content)
    if media_type in _JSON_TYPES or media_type.endswith(_JSON_SUFFIX):
        return _read_said_json(content)
    if media_type == MULTIPART_TYPE:
        return _read_multipart(content, content_type)
    shown = quote_value(content_type) if content_type else "without a type"
    if media_type in _VAGUE_TYPES or "/" not in media_type:
        if not content.strip():
            return Reading("", says_all=True)
        found = _read_json(content) or _read_form(content) or _read_lines(content)
        unread = f"the body ({shown}) is no form and no JSON, and was left unread"
        return found or Reading("", (unread,))
    unread = f"the body is {shown} and was left unread: send {FORM_TYPE} or application/json"
    return Reading("", (unread,))


def _read_said_form(content: bytes) -> Reading:
    # `curl -d '{…}'` sends this type.
    if content.lstrip().startswith(b"{") and (found := _read_json(content)):
        return found._replace(warnings=("the body is JSON, and its type a form's", *found.warnings))
    return Reading(content.decode("latin-1"), says_all=True)


def _read_said_json(content: bytes) -> Reading:
    found = _read_json(content)
    if found is not None:
        return found
    form = _read_form(content)
    if form is not None:
        return form._replace(warnings=("the body is a form, and its type JSON's",))
    return Reading("", ("the body's type is JSON, and it is none: it was left unread",))


def _read_json(content: bytes) -> Reading | None:
    text = decode_json(content)
    found = read_json_fields(text, MAX_INPUT_VARS)
    if found is None:
        return None
    if not found.fields and (inner := read_json_string(text)) is not None:
        # Serialised twice.
        within = _read_json(json_bytes(inner)) or _read_form(json_bytes(inner))
        if within is not None and within.form:
            return within._replace(
                warnings=("the body is a JSON string with all of it within", *within.warnings),
                says_all=False,
                in_utf_8=json_bytes(text),
            )
    warnings = []
    if not found.is_object:
        warnings.append("the body is JSON, and no object: fields of a list are named 0[…], 1[…]")
    if not found.is_whole:
        warnings.append("the body's JSON has more fields than are read, or deeper ones")
    fields = ((json_bytes(name), json_bytes(value)) for name, value in found.fields)
    return Reading(_write_form(fields), tuple(warnings), in_utf_8=json_bytes(text))


def _read_multipart(content: bytes, content_type: str) -> Reading:
    found = read_multipart_fields(content, content_type, MAX_INPUT_VARS)
    if found is None:
        unread = f"the body is {MULTIPART_TYPE} with a mistake in it, and was left unread"
        return Reading("", (unread,))
    warnings = (f"{found.files} files in the body were left unread",) if found.files else ()
    return Reading(_write_form(found.fields), warnings)


def _read_form(content: bytes) -> Reading | None:
    """Read a body that looks like a form: a name, `=`, and no line break or control character."""
    stripped = content.strip()
    if _FORM_BEGIN.match(stripped) is None or _NO_FORM.search(stripped):
        return None
    return Reading(stripped.decode("latin-1"), says_all=True)


_FORM_BEGIN = re.compile(rb"""[^\s=&<>{}"']+=""")
_NO_FORM = re.compile(rb"[\x00-\x1f\x7f]")


def _read_lines(content: bytes) -> Reading | None:
    """Read lines of `name=value`, as an HTML form with `enctype="text/plain"` sends them."""
    lines = content.strip().splitlines()
    if not all(_FORM_BEGIN.match(line) and not _NO_FORM.search(line) for line in lines):
        return None
    pairs = (line.partition(b"=")[::2] for line in lines)
    return Reading(_write_form(pairs))


def _write_form(fields: Iterable[tuple[bytes, bytes]]) -> str:
    return "&".join(f"{_escape(name)}={_escape(value)}" for name, value in fields)


def _escape(text: bytes) -> str:
    """Escape the signs of a form; letters beyond ASCII are escaped when the query is stored."""
    return _MEANINGFUL.sub(lambda sign: f"%{ord(sign[0]):02X}", text.decode("latin-1"))


_MEANINGFUL = re.compile(r"[\x00-\x20%&+=]")
