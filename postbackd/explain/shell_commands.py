"""Finds the request in a pasted command or piece of code: curl, wget, fetch and so on.

Nothing is run and no file is read: words are split as a shell would, and options are looked up.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import quote

from postbackd.explain.addresses import Pasted, UnclearError, as_server, read_target, straighten
from postbackd.intake.body import FORM_TYPE

JSON_TYPE = "application/json"
BOUNDARY = "pasted-into-explain"

_SHELL = re.compile(r"(?:^|[\s/\\;|&(`\"'])(curl|wget)(?:\.exe)?\s+(?=\S)", re.IGNORECASE)
_HTTPIE = re.compile(r"^\s*(?:[$#>%]\s+)?(https?|xhs?)\s+(?![0-9]{4}-)(?=\S)")
_POWERSHELL = re.compile(r"\b(?:Invoke-WebRequest|Invoke-RestMethod|iwr|irm)\b", re.IGNORECASE)
_CODE = re.compile(
    r"\b(?:fetch|sendBeacon|axios(?:\.\w+)?|requests\.\w+|\$\.(?:get|post|ajax|getJSON)|open"
    r"|file_get_contents|urlopen|curl_init|http\.(?:Get|Post)\w*|httpx\.\w+)\s*\("
    r"|CURLOPT_URL\b|\.src\s*=",
)

# Options with a value. Source: the manuals, curl(1) and wget(1). Other options have no value, or
# are so rare that the address is found without knowing them.
_CURL_SHORT = "AbcCdDeEFhHKmoPQrtTuUwxXyYz"
_CURL_LONG = """
    data data-ascii data-binary data-raw data-urlencode json form form-string url-query request
    header url user-agent referer cookie cookie-jar output output-dir max-time connect-timeout
    retry retry-delay retry-max-time proxy proxy-user proxy-header noproxy user cert key cacert
    capath pass resolve connect-to interface write-out upload-file config limit-rate max-redirs
    dump-header range ciphers tls-max proto proto-default dns-servers unix-socket local-port
    oauth2-bearer aws-sigv4 stderr trace trace-ascii keepalive-time max-filesize quote
    expect100-timeout rate variable socks4 socks4a socks5 socks5-hostname time-cond
"""
_WGET_SHORT = "oaeitBOTwQPlARDIXUY"
_WGET_LONG = """
    output-document output-file append-output execute input-file tries timeout dns-timeout
    connect-timeout read-timeout wait waitretry quota directory-prefix user password header
    user-agent referer post-data post-file method body-data body-file load-cookies save-cookies
    max-redirect bind-address limit-rate http-user http-password ca-certificate
"""
_HTTPIE_SHORT = "apAsoPTh"
_HTTPIE_LONG = """
    auth auth-type print style pretty output session session-read-only timeout proxy verify cert
    cert-key raw boundary
"""

# Words that a shell does not pass to the command.
_SHELL_ENDS = re.compile(r"^(?:\||\|\||&&|&|;|[0-9]?>.*|<)$")
_LITERAL = r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`)"
_ADDRESS_LITERAL = re.compile(r"[\"'`]\s*((?:https?://|/[^\s\"'`/]+/postback)[^\"'`\s]*)")
_VARIABLE_PART = re.compile(r"[\"'`]\s*(?:\+|\.)\s*(?:\$?\w|[\"'`(])|\$\{\w+")


class _Sent:
    """The request that the options and words of a command describe."""

    def __init__(self) -> None:
        self.method = ""
        self.addresses: list[str] = []
        self.data: list[str] = []
        self.fields: list[tuple[str, str]] = []
        self.in_query: list[str] = []
        self.content_type = ""
        self.notes: list[str] = []
        self.goes_into_query = False
        self.has_body = False

    def add_address(self, word: str) -> None:
        self.addresses.append(word)

    def set_method(self, method: str) -> None:
        self.method = method

    def add_data(self, text: str) -> None:
        self.has_body = True
        if text.startswith("@"):
            self.notes.append(
                "the body is in a file, which is not read: paste its content in its place"
            )
        else:
            self.data.append(text)

    def add_raw_data(self, text: str) -> None:
        self.data.append(text)

    def add_json(self, text: str) -> None:
        self.content_type = self.content_type or JSON_TYPE
        self.add_data(text)

    def add_header(self, text: str) -> None:
        name, _, value = text.partition(":")
        if name.strip().lower() == "content-type":
            self.content_type = value.strip()

    def put_into_query(self, _: str) -> None:
        self.goes_into_query = True

    def build(self, name: str) -> Pasted:
        pasted = read_target(as_server(self._find_target(name)))
        body, query = "&".join(self.data), [pasted.query, *self.in_query]
        if self.goes_into_query:
            query, body = [*query, body], ""
        content_type = self.content_type
        if self.fields:
            body, content_type = _write_multipart(self.fields)
        return pasted._replace(
            query=as_server("&".join(filter(None, query))),
            method=self.method.upper() or ("POST" if body or self.has_body else "GET"),
            body=as_server(body).encode("latin-1"),
            content_type=(content_type or FORM_TYPE) if body else "",
            notes=(f"read as a command for {name}; nothing is run", *self.notes),
        )

    def _find_target(self, name: str) -> str:
        likely = [word for word in self.addresses if re.search(r"://|/", word)]
        if not likely:
            raise UnclearError(f"this is a command for {name} without an address: paste all of it")
        if len(set(likely)) > 1:
            raise UnclearError(f"the command has {len(likely)} addresses: paste one postback")
        return likely[0]


def read_command(text: str) -> Pasted | None:
    """Read the request of a command; None where the text is no command."""
    straight = straighten(text)
    if found := _SHELL.search(straight):
        name = found[1].lower()
        words = _split(straight[found.start(1) :], text)
        sent = _read_curl(words[1:]) if name == "curl" else _read_wget(words[1:])
        return _warn_of_bare_and(sent.build(name), straight)
    if found := _HTTPIE.search(straight):
        sent = _read_httpie(_split(straight[found.start(1) :], text)[1:])
        return _warn_of_bare_and(sent.build("HTTPie"), straight)
    if _POWERSHELL.search(straight):
        return _read_powershell(straight)
    if _CODE.search(straight) and _ADDRESS_LITERAL.search(straight):
        return _read_code(straight)
    return None


def _split(command: str, pasted: str) -> list[str]:
    """Split a command as a shell does; at blanks where a quote is missing."""
    command = re.sub(r"[\\`^]\r?\n", " ", command)
    if re.search(r"\^[&\"%]", command):
        # The shell of Windows, as browsers copy commands for it.
        command = re.sub(r"\^(.)", r"\1", command)
    command = re.sub(r"\$'((?:[^'\\]|\\.)*)'", _read_ansi_quote, command)
    try:
        words = shlex.split(command)
    except ValueError:
        words = [word.strip("\"'") for word in command.split()]
    ends = [at for at, word in enumerate(words) if _SHELL_ENDS.match(word)]
    return [word.rstrip("`") for word in words[: ends[0] if ends else None]]


def _read_ansi_quote(found: re.Match[str]) -> str:
    """Read $'…' as bash does: browsers use it for text with an exclamation mark or a quote."""
    signs = {"n": "\n", "t": "\t", "r": "\r"}

    def read(escape: re.Match[str]) -> str:
        code = escape[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else signs.get(code, code)

    return shlex.quote(re.sub(r"\\(u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|.)", read, found[1]))


def _warn_of_bare_and(pasted: Pasted, command: str) -> Pasted:
    if re.search(r"\s(?:https?://|/)[^\s\"']*(?<!\\)(?<!\^)&[^\s\"']", command):
        return pasted.note(
            "the address has no quotes around it: a shell ends it at the first '&', and the rest"
            " is not sent; here all of it is read"
        )
    return pasted


def _walk(words: Sequence[str], shorts: str, longs: str) -> Iterator[tuple[str, str]]:
    """Yield each option with its value, and each other word with the option ''."""
    with_value = frozenset(longs.split())
    rest = iter(words)
    for word in rest:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            yield name, value if equals else (next(rest, "") if name in with_value else "")
        elif word.startswith("-") and len(word) > 1:
            yield from _walk_letters(word[1:], shorts, rest)
        else:
            yield "", word


def _walk_letters(letters: str, shorts: str, rest: Iterator[str]) -> Iterator[tuple[str, str]]:
    for at, letter in enumerate(letters):
        if letter in shorts:
            yield letter, letters[at + 1 :].removeprefix("=") or next(rest, "")
            return
        yield letter, ""


def _read_curl(words: Sequence[str]) -> _Sent:
    sent = _Sent()
    for option, value in _walk(words, _CURL_SHORT, _CURL_LONG):
        if take := _CURL.get(option):
            take(sent, value)
    if sent.goes_into_query and not sent.method:
        sent.method = "GET"
    return sent


def _encode_data(text: str) -> str:
    """Encode as `curl --data-urlencode` does: `name=content`, `=content` or `content`."""
    name, equals, content = text.partition("=")
    if not equals:
        return quote(text, safe="", errors="surrogateescape")
    value = quote(content, safe="", errors="surrogateescape")
    return f"{name}={value}" if name else value


def _read_form(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value.partition(";type=")[0]


def _write_multipart(fields: Iterable[tuple[str, str]]) -> tuple[str, str]:
    parts = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields
    )
    return f"{''.join(parts)}--{BOUNDARY}--\r\n", f"multipart/form-data; boundary={BOUNDARY}"


def _read_wget(words: Sequence[str]) -> _Sent:
    sent = _Sent()
    for option, value in _walk(words, _WGET_SHORT, _WGET_LONG):
        if take := _WGET.get(option):
            take(sent, value)
    return sent


# The meaning of each option. Source: the manuals; other options say nothing about the request.
_Take: TypeAlias = Callable[[_Sent, str], object]
_CURL: dict[str, _Take] = {
    **dict.fromkeys(("", "url"), _Sent.add_address),
    **dict.fromkeys(("X", "request"), _Sent.set_method),
    **dict.fromkeys(("d", "data", "data-ascii", "data-binary"), _Sent.add_data),
    "data-raw": _Sent.add_raw_data,
    "data-urlencode": lambda sent, value: sent.add_raw_data(_encode_data(value)),
    "url-query": lambda sent, value: sent.in_query.append(_encode_data(value)),
    "json": _Sent.add_json,
    **dict.fromkeys(
        ("F", "form", "form-string"), lambda sent, value: sent.fields.append(_read_form(value))
    ),
    **dict.fromkeys(("H", "header"), _Sent.add_header),
    **dict.fromkeys(("G", "get"), _Sent.put_into_query),
    **dict.fromkeys(("I", "head"), lambda sent, _: sent.set_method(sent.method or "HEAD")),
}
_WGET: dict[str, _Take] = {
    "": _Sent.add_address,
    "method": _Sent.set_method,
    **dict.fromkeys(("post-data", "body-data"), _Sent.add_raw_data),
    **dict.fromkeys(("post-file", "body-file"), lambda sent, name: sent.add_data(f"@{name}")),
    "header": _Sent.add_header,
    "spider": lambda sent, _: sent.set_method("HEAD"),
}


# The separators of name and value in HTTPie, the longer ones first.
_ITEM = re.compile(r"([^=:@\s]+?)(==|:=@|:=|=@|=|@|:)(.*)", re.DOTALL)


def _read_httpie(words: Sequence[str]) -> _Sent:
    sent, is_form, fields = _Sent(), False, dict[str, Any]()
    for option, value in _walk(words, _HTTPIE_SHORT, _HTTPIE_LONG):
        if option in {"f", "form"}:
            is_form = True
        elif option == "raw":
            sent.data.append(value)
        elif option == "":
            _add_word(sent, fields, value)
    if fields and is_form:
        sent.data.append("&".join(f"{n}={quote(str(v), safe='')}" for n, v in fields.items()))
    elif fields:
        sent.content_type = JSON_TYPE
        sent.data.append(json.dumps(fields, ensure_ascii=False))
    return sent


def _add_word(sent: _Sent, fields: dict[str, Any], word: str) -> None:
    if sent.addresses:
        if item := _ITEM.fullmatch(word):
            _add_item(sent, fields, item)
    elif word.isupper() and word.isalpha():
        sent.method = word
    else:
        sent.addresses.append(re.sub(r"^(?=[:/])", "http://localhost", word))


def _add_item(sent: _Sent, fields: dict[str, Any], item: re.Match[str]) -> None:
    name, sign, value = item.groups()
    if sign == "==":
        sent.in_query.append(f"{name}={quote(value, safe='')}")
    elif sign == "=":
        fields[name] = value
    elif sign == ":=":
        fields[name] = _read_json(value)
    elif sign == ":":
        sent.add_header(f"{name}:{value}")
    else:
        sent.add_data("@")


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_powershell(text: str) -> Pasted:
    text = re.sub(r"`\r?\n", " ", text)
    address = re.search(r"-Uri\s+[\"']?([^\"'\s]+)", text, re.IGNORECASE) or re.search(
        r"[\"']?(https?://[^\"'\s]+)", text
    )
    if address is None:
        raise UnclearError("this is a command for PowerShell without an address: paste all of it")
    method = re.search(r"-Method\s+[\"']?([A-Za-z]+)", text, re.IGNORECASE)
    kind = re.search(r"-ContentType\s+[\"']?([^\"'\s]+)", text, re.IGNORECASE)
    body = _read_powershell_body(text)
    pasted = read_target(as_server(re.sub(r"`(.)", r"\1", address[1])))
    return _build(pasted, "PowerShell", method[1] if method else "", body, kind[1] if kind else "")


def _read_powershell_body(text: str) -> str:
    if found := re.search(rf"-Body\s+\(?{_LITERAL}", text, re.IGNORECASE):
        return re.sub(r"`(.)", r"\1", found[1][1:-1])
    if table := re.search(r"-Body\s+@\{([^}]{0,5000})\}", text, re.IGNORECASE):
        pairs = re.findall(r"[\"']?([\w.\-\[\]]+)[\"']?\s*=\s*[\"']?([^\"';\n]*)", table[1])
        return "&".join(f"{name}={quote(value.strip(), safe='')}" for name, value in pairs)
    return ""


def _read_code(text: str) -> Pasted:
    """Read a call in JavaScript, PHP or Python: its first address, and the body beside it."""
    address = _ADDRESS_LITERAL.search(text)
    assert address is not None  # a pattern above has found it
    pasted = read_target(as_server(address[1].replace("\\/", "/").replace("\\u0026", "&")))
    behind = text[address.end() :]
    method = re.search(r"\bmethod[\"']?\s*[:=]\s*[\"'`](\w+)", behind, re.IGNORECASE)
    sends = re.search(r"\.post\s*\(|sendBeacon|http\.Post", text[: address.start()])
    kind = re.search(r"content-type[\"']?\s*[:=]\s*[\"'`]([^\"'`]+)", behind, re.IGNORECASE)
    body = _read_code_body(behind, is_next=bool(sends))
    is_json = body.startswith("{") and not (kind and kind[1])
    pasted = _build(
        pasted,
        "a program",
        method[1] if method else ("POST" if sends else ""),
        body,
        kind[1] if kind else (JSON_TYPE if is_json else ""),
    )
    if _VARIABLE_PART.match(text[address.end() :]) or "${" in address[1]:
        return pasted.note("a part of the address comes from a variable, which is not known here")
    return pasted


def _read_code_body(text: str, *, is_next: bool) -> str:
    named = r"\b(?:body|data|params|json)[\"']?\s*[:=]\s*|CURLOPT_POSTFIELDS,\s*"
    first = rf"(?:{named}|^[\"'`]?\s*,\s*)" if is_next else f"(?:{named})"
    wraps = r"(?:JSON\.stringify\(\s*|new URLSearchParams\(\s*|http_build_query\(\s*)?"
    if found := re.search(rf"{first}{wraps}{_LITERAL}", text):
        return _read_literal(found[1])
    if found := re.search(rf"{first}({wraps})[{{\[]([^{{}}\[\]]*)[}}\]]", text):
        pairs = re.findall(
            r"[\"']?([\w.\-]+)[\"']?\s*(?::|=>)\s*(?:[\"'`]([^\"'`]*)[\"'`]|([^,\s]+))", found[2]
        )
        fields = {name: quoted or bare for name, quoted, bare in pairs}
        return _write_fields(fields, as_json="stringify" in found[1])
    return ""


def _write_fields(fields: Mapping[str, str], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(fields, ensure_ascii=False)
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in fields.items())


def _read_literal(literal: str) -> str:
    return re.sub(r"\\(.)", r"\1", literal[1:-1])


def _build(pasted: Pasted, name: str, method: str, body: str, content_type: str) -> Pasted:
    return pasted._replace(
        method=method.upper() or ("POST" if body else "GET"),
        body=as_server(body).encode("latin-1"),
        content_type=(content_type or FORM_TYPE) if body else "",
        notes=(f"read as a call by {name}; nothing is run",),
    )
