"""Reads pasted text: an address, a command, a tag, a line of a log, a body, a query."""

import quopri
import re
from urllib.parse import quote

from postbackd.explain.addresses import (
    Pasted,
    UnclearError,
    as_server,
    clean,
    decode_whole,
    find_address,
    read_target,
    straighten,
)
from postbackd.explain.request_logs import read_columns, read_json, read_log_line
from postbackd.explain.shell_commands import read_command
from postbackd.intake.query import KNOWN_NAMES

__all__ = ["Pasted", "UnclearError", "read_pasted"]

_PAIRS = frozenset({'""', "''", "``", "<>"})
# Lines of a form as browsers and Postman show it, of PHP's print_r(), of a table.
_FIELDS = (
    re.compile(r"([A-Za-z_][\w.\-\[\]]*)\s*[:=](.*)"),
    re.compile(r"\[([A-Za-z_][\w.\-]*)\]\s*=>(.*)"),
    re.compile(r"\|?\s*([A-Za-z_][\w.\-]*)[ ]*[|\t](.*)"),
)
_FRAME = re.compile(r"Array|[()]")
# Parameters with blanks or commas between them, as logs and chats show them.
_PART = re.compile(r"([A-Za-z_]\w*)=(\S*)")
_BETWEEN_PARTS = re.compile(r"\s*[,;]\s*|\s+")
# `[2026-11-25 10:00:00] Received postback: subid=C1&status=sale`, and a path in its place.
_BEFORE_QUERY = re.compile(r"[^=&?]*[\s:\]\"'(]\??(?=([A-Za-z_]\w*)=)")
_QUERY = re.compile(r"[^\"<>]*&[A-Za-z_]\w*=[^\s\"'<>]*|[^\s\"'<>]+")
_PATH_BEHIND_WORDS = re.compile(
    r"[^=&?]*[\s\]\"'(](/?[^\s\"'()\[\]=&?]*/postback(?:\.gif)?/?\?[^\s\"'<>]+)"
)
_ENDS_WITH_NAME = re.compile(r"/postback(?:\.gif)?/?$")
_LEFT_OUT = "what stands around it is left out"
_RAW_REQUEST = re.compile(
    r"(GET|POST|HEAD) (\S+)(?: HTTP/[0-9.]+)?\s*\n((?:[A-Za-z0-9\-]+:[^\n]*(?:\n|$))*)"
    r"(?:\s*\n(.*))?",
    re.DOTALL,
)
_BROWSER = re.compile(r"(?:Request URL|:path)\s*:?\s*(\S+)", re.IGNORECASE)
_BROWSER_METHOD = re.compile(r"(?:Request Method|:method)\s*:?\s*([A-Z]+)", re.IGNORECASE)
_ENDS_OPEN = re.compile(r"[?&=%\\`^]$")
_BEGINS_OPEN = re.compile(r"[?&=]")
# One parameter a line, as many as PHP reads.
_LINES_AT_MOST = 1000
# Mail programs break lines from this length on; a shorter line was ended on purpose.
_WRAPPED_CHARACTERS = 60


def read_pasted(text: str) -> Pasted:
    """Find the request in pasted text; UnclearError where it has none, or several."""
    text, notes = clean(text)
    if not text:
        raise UnclearError("the text is empty: paste the URL, the query or a line of a log")
    fenced = re.fullmatch(r"```[a-z]*\n?(.*?)\n?```", text, re.DOTALL)
    pasted = _read(fenced[1].strip() if fenced else text)
    return pasted._replace(notes=(*notes, *pasted.notes))


def _read(text: str) -> Pasted:
    if "\n" not in text and (line := read_columns(text)):
        # The program that sent it may be called as a command is.
        return line
    readers = [_read_raw_request, _read_browser, read_command, read_json]
    if text[0] in "{[":
        # First as JSON: a line of a log or a body may quote a command.
        readers.insert(0, read_json)
    for read in readers:
        if request := read(text):
            return request
    if mail := _read_quoted_printable(text):
        return mail
    joined = _join_lines(text)
    if "\n" in joined:
        return _read_lines(joined)
    found = read_log_line(joined) or find_address(joined) or _read_plain(joined)
    if joined == text:
        return found
    return found.note("the lines are joined to one address")


def _read_raw_request(text: str) -> Pasted | None:
    """Read a request as it goes over the wire: its line, headers, an empty line, the body."""
    found = _RAW_REQUEST.fullmatch(text.replace("\r\n", "\n"))
    if found is None or not found[3]:
        return None
    method, target, headers, body = found.groups(default="")
    kind = re.search(r"^content-type:\s*(.*)$", headers, re.IGNORECASE | re.MULTILINE)
    return read_target(as_server(target))._replace(
        method=method,
        body=as_server(body.strip()).encode("latin-1"),
        content_type=kind[1].strip() if kind and body.strip() else "",
        notes=("read as a request with its headers",),
    )


def _read_browser(text: str) -> Pasted | None:
    found = _BROWSER.search(text)
    if found is None or not re.search(r"Request URL|:path", text):
        return None
    method = _BROWSER_METHOD.search(text)
    pasted = read_target(as_server(found[1]))
    return pasted._replace(
        method=method[1].upper() if method else "GET",
        notes=("read as text of a browser's network panel",),
    )


def _read_quoted_printable(text: str) -> Pasted | None:
    """Read the source of a mail, where '=' is `=3D` and lines end with '='."""
    if "=3D" not in text or re.search(r"=(?![0-9A-F]{2}|\s*\n)", text):
        return None
    plain = quopri.decodestring(text.encode("utf-8", "surrogateescape"))
    found = _read(plain.decode("utf-8", "surrogateescape"))
    return found.note("the text is the source of a mail (quoted-printable), and is decoded")


def _join_lines(text: str) -> str:
    """Join the lines of an address that was broken."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > _LINES_AT_MOST:
        raise UnclearError(f"{len(lines)} lines came: paste one postback, on one line")
    joined = lines[:1]
    sign = "?"
    for line in lines[1:]:
        if _PART.match(line) and (sign == "&" or _ENDS_WITH_NAME.search(joined[-1])):
            # The address, and below it a parameter a line.
            joined[-1] += f"{sign}{line}"
            sign = "&"
        elif _is_broken(joined[-1], line):
            joined[-1] = re.sub(r"\s*[\\`^]$", "", joined[-1]) + line
        else:
            joined.append(line)
    return "\n".join(joined)


def _is_broken(before: str, line: str) -> bool:
    if _ENDS_OPEN.search(before) or _BEGINS_OPEN.match(line):
        return True
    is_part = " " not in line and "://" not in line and not line.startswith("/")
    return is_part and "://" in before and len(before.rsplit(maxsplit=1)[-1]) >= _WRAPPED_CHARACTERS


def _read_lines(text: str) -> Pasted:
    lines = text.splitlines()
    framed = [line for line in lines if not _FRAME.fullmatch(line)]
    fields = [found for line in framed if (found := _read_field(line))]
    names = [found[1] for found in fields]
    if len(fields) == len(framed) == len(set(names)) and not set(names).isdisjoint(KNOWN_NAMES):
        return _put_together(fields).note("the lines are read as the parameters of one postback")
    requests = [request for line in lines if (request := read_log_line(line))]
    if not requests and (address := find_address(text)):
        return address
    if len(requests) == 1:
        return requests[0]
    raise UnclearError(f"{len(lines)} lines came: paste one postback, on one line")


def _read_field(line: str) -> re.Match[str] | None:
    if "://" in line:
        return None
    return next(filter(None, (form.fullmatch(line) for form in _FIELDS)), None)


def _put_together(fields: list[re.Match[str]]) -> Pasted:
    return Pasted("&".join(f"{found[1]}={_quote(found[2])}" for found in fields))


def _quote(value: str) -> str:
    value = straighten(value.strip().rstrip(" \t,;|"))
    value = re.sub(r"^([\"'])(.*)\1$", r"\2", value)
    return quote(value, safe="%{}[]", errors="surrogateescape")


def _read_plain(text: str) -> Pasted:
    """Read a path or a query, with quotes or words around it or without."""
    if found := _read_parts(text) or _read_behind_words(text):
        return found
    if "=" not in text or text[:1] in "<{[":
        _refuse_others(text)
    while len(text) > 1 and straighten(text[:1] + text[-1:]) in _PAIRS:
        text = text[1:-1].strip()
    if "=" not in text and "%3d" in text.lower() and "/" not in text:
        decoded = read_target(as_server(decode_whole(text)))
        return decoded.note("the query was percent-encoded as a whole, and is decoded once more")
    pasted = read_target(as_server(text))
    if pasted.path is None and "=" not in text:
        return pasted.note(
            "this is one word without '=', neither an address nor a query; `postback log --subid`"
            " shows the postbacks of a click"
        )
    return pasted


def _read_parts(text: str) -> Pasted | None:
    """Read parameters that have blanks, commas or semicolons between them."""
    parts = _BETWEEN_PARTS.split(text.strip(" ,;")) if "&" not in text else []
    fields = [found for part in parts if (found := _PART.fullmatch(part))]
    names = {found[1] for found in fields}
    if (
        len(fields) != len(parts)
        or len(names) != len(parts)
        or len(names.intersection(KNOWN_NAMES)) < 2
    ):
        return None
    return _put_together(fields).note("the words are read as the parameters of one postback")


def _read_behind_words(text: str) -> Pasted | None:
    """Read the path or the query behind words, as programs write it into their logs."""
    if found := _PATH_BEHIND_WORDS.match(text):
        return read_target(as_server(found[1])).note(f"the path is taken, and {_LEFT_OUT}")
    found = _BEFORE_QUERY.match(text)
    query = _QUERY.match(text, found.end()) if found else None
    if found is None or query is None or found[1].lower() not in KNOWN_NAMES:
        return None
    if not found[0].strip("\"'(? "):
        # Nothing but signs.
        return None
    return Pasted(as_server(query[0])).note(f"the query is taken, and {_LEFT_OUT}")


def _refuse_others(text: str) -> None:
    """Raise UnclearError where the text is something else that is known; it says what."""
    for pattern, sentence in _OTHERS:
        if re.search(pattern, text, re.DOTALL):
            raise UnclearError(sentence)


_OTHERS = (
    (r"^<(?:\?xml|!|[A-Za-z]+[\s>/])", "this is XML or HTML, and has no address of a postback"),
    (
        r"^[\[\s]*\{\s*[\"'\w]+\s*:",
        "this begins like JSON, and is not valid: a quote, a comma or a bracket is missing, or the"
        " quotes are not double ones",
    ),
    (r"^\[\s*(?:[\"\d\[]|\])", "this is a JSON array: a postback is one object"),
    (r"^[^\s@/]+@[^\s@/]+\.\w+$", "this is a mail address: paste the network's URL"),
    (r"^[^\s,;\t]+(?:[,;\t][^,;\t]*){1,}$", "this is a line of a file: see `postback import`"),
    (r"^[^/]*\s", "this is a text without an address or a query: paste the network's URL"),
)
