"""The body of a request: how much of it is read, and what it is read as."""

from typing import Any, NamedTuple

from masking import KeyMask
from query import quote_value

# The longest body that is read. Source: the contract; a postback is a few hundred bytes.
BODY_LIMIT_BYTES = 64 * 1024
FORM_TYPE = "application/x-www-form-urlencoded"

Environ = dict[str, Any]


class TooLargeError(Exception):
    """The body is longer than we read."""


class CutShortError(Exception):
    """The sender hung up before its body was whole."""


class Body(NamedTuple):
    """A form body as it came (each character one byte), or a warning that it was left unread."""

    form: str = ""
    warnings: tuple[str, ...] = ()


def read_body(environ: Environ, mask: KeyMask) -> Body:
    """Read a form body; other types stay unread, a longer one raises TooLargeError."""
    length = _read_length(environ)
    if length > BODY_LIMIT_BYTES:
        raise TooLargeError
    is_chunked = bool(environ.get("wsgi.input_terminated")) and not environ.get("CONTENT_LENGTH")
    if length == 0 and not is_chunked:
        return Body()
    content_type = environ.get("CONTENT_TYPE", "")
    if content_type.partition(";")[0].strip().lower() != FORM_TYPE:
        if is_chunked and not environ["wsgi.input"].read(1):
            return Body()
        # Hidden before it is cut: a part of a key would be no key.
        shown = quote_value(mask.hide(content_type))
        return Body(warnings=(f"the body is {shown} and was left unread: send {FORM_TYPE}",))
    body = environ["wsgi.input"].read(BODY_LIMIT_BYTES + 1 if is_chunked else length)
    if len(body) > BODY_LIMIT_BYTES:
        raise TooLargeError
    if len(body) < length:
        # "payout=100" cut to "payout=10" would be misread money.
        raise CutShortError
    return Body(body.decode("latin-1"))


def _read_length(environ: Environ) -> int:
    text = environ.get("CONTENT_LENGTH") or "0"
    return int(text) if text.isascii() and text.isdigit() else 0
