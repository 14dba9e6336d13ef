"""What the worker reads by itself is what gunicorn reads: heads and chunked bodies, any bytes."""

import re
from typing import Any
from urllib.parse import quote

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from postbackd.server import gunicorn_conf
from postbackd.server.http_request import (
    BufferUnreader,
    ChunkedBody,
    Head,
    HeadReader,
    IncompleteError,
    NoHostError,
    Peer,
    make_peer,
)
from postbackd.server.http_response import FakeSocket, write_head

TCP = (("203.0.113.9", 5000), ("127.0.0.1", 8000))
PROXY = (("127.0.0.1", 5000), ("127.0.0.1", 8000))
UNIX = ("", "/run/postback.sock")

# What gunicorn adds for its own workers, and objects that are made anew for each request.
ASIDE = {"gunicorn.socket", "wsgi.early_hints", "wsgi.input", "wsgi.errors"}


def make_reader(*, reads_plain: bool = True, **changes: object) -> HeadReader:
    return HeadReader(configure(**changes), reads_plain=reads_plain)


def configure(**changes: object) -> Config:
    cfg = Config()
    for name, value in {"limit_request_line": 200, "http_parser": "python", **changes}.items():
        cfg.set(name, value)
    return cfg


def ask_gunicorn(
    received: bytes, peer: Peer, cfg: Config
) -> tuple[Request, dict[str, Any], bool] | type[Exception]:
    """Read with gunicorn's parser and build the environ with gunicorn's function."""
    interim = FakeSocket()
    try:
        request = Request(cfg, IterUnreader([received]), peer.address)
        _, environ = wsgi.create(request, interim, peer.address, peer.server, cfg)
    except Exception as refusal:
        return type(refusal)
    return request, without(environ), bool(interim.sent)


def read_or_refuse(
    reader: HeadReader, received: bytes, end: int, peer: Peer
) -> Head | type[Exception]:
    """Read with the worker's reader."""
    try:
        return reader.read(received, 0, end, peer)
    except Exception as refusal:
        return type(refusal)


def made_acceptable(head: bytes) -> bytes:
    """Mend what gunicorn refuses and our worker takes: raw letters, and controls in values."""
    begin = b"\r\n" if head.startswith(b"\r\n") else b""
    line, line_end, fields = head.removeprefix(begin).partition(b"\r\n")
    method, blank, target = line.partition(b" ")
    escaped = method + blank + quote(target, safe=PRINTABLE).encode()
    return begin + escaped + line_end + b"\r\n".join(map(without_controls, fields.split(b"\r\n")))


def without_controls(field: bytes) -> bytes:
    name, colon, value = field.partition(b":")
    if name.lower() in {b"host", b"content-length", b"connection", b"transfer-encoding", b"expect"}:
        return field
    return name + colon + re.sub(rb"[^\x00\t\n\r -\x7e\x80-\xff]", b" ", value)


PRINTABLE = "".join(map(chr, range(128)))


def without(environ: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environ.items() if name not in ASIDE}


LETTERS = st.characters(max_codepoint=255)
ODDITIES = st.sampled_from(["%41", "%", "//", "/../", "?", "#", ":", ";", "[", "@", " ", "é", "\t"])
PATHS = st.lists(st.one_of(st.text("abz-._~/", max_size=5), ODDITIES), max_size=5).map(
    lambda parts: "/" + "".join(parts)
)
TARGETS = st.one_of(
    PATHS, st.sampled_from(["*", "http://h/x?y", "h:80", "", "/x?", "/?a=b&c=%20", "//h/x", "/#f"])
)
METHODS = st.sampled_from(["GET", "GET", "GET", "POST", "HEAD", "OPTIONS", "CONNECT", "get", "PUT"])
VERSIONS = st.sampled_from(
    ["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.10", ""]
)
NAMES = st.one_of(
    st.sampled_from(
        [
            "Host",
            "Connection",
            "Content-Length",
            "Content-Type",
            "X-Forwarded-Proto",
            "Accept",
            "X-Forwarded-Ssl",
            "Transfer-Encoding",
            "Expect",
            "X-A",
            "x-a",
            "X_A",
            "Cookie",
            "Script-Name",
            "Script_Name",
            "Upgrade",
        ]
    ),
    st.text(LETTERS, max_size=6),
)
VALUES = st.one_of(
    st.sampled_from(
        [
            "0",
            "5",
            "05",
            "+5",
            "5,5",
            "²",
            "close",
            "Close",
            "keep-alive",
            "keep-alive, x",
            "keep-alive ,close",
            "https",
            "http",
            "on",
            "chunked",
            "gzip, chunked",
            "100-continue",
            "text/plain",
            "h:80",
            "[::1]:1",
            "a b",
            "",
            "é",
        ]
    ),
    st.text(LETTERS, max_size=8),
)
COLONS = st.sampled_from([": ", ": ", ": ", ":", " : ", ":\t", ":  "])
ENDS = st.sampled_from(["\r\n"] * 30 + ["\n", "\r", "\r\n ", ""])
FIELDS = st.builds(lambda *parts: "".join(parts), NAMES, COLONS, VALUES, ENDS)
HEADS = st.builds(
    lambda begin, method, target, version, host, fields: (
        f"{begin}{method} {target} {version}\r\n{host}{''.join(fields)}\r\n".encode("latin-1")
    ),
    st.sampled_from([""] * 9 + ["\r\n"]),
    METHODS,
    TARGETS,
    VERSIONS,
    st.sampled_from(["Host: h\r\n"] * 9 + [""]),
    st.lists(FIELDS, max_size=6),
)


@given(HEADS, st.sampled_from([TCP, PROXY, UNIX]))
@example(b"GET / HTTP/1.1\r\nX-Forwarded-Proto: https\r\nHost: h:1\r\n\r\n", UNIX)
@example(b"GET / HTTP/1.1\r\nX-Forwarded-Proto: https\r\nHost: h\r\n\r\n", PROXY)
@example(b"GET / HTTP/1.1\r\nX-Forwarded-Proto: https\r\nHost: h\r\n\r\n", TCP)
@example(b"GET /%20%e9?%20 HTTP/1.0\r\nA: 1\r\nB: 2\r\na: \t3 \r\n\r\n", TCP)
@example("GET /é?é HTTP/1.1é\r\n\r\n".encode(), TCP)
@example("GETé /é?é HTTP/1.1\r\n\r\n".encode(), TCP)
@example(b"GET /?\xff%C3\xa9 HTTP/1.1\r\nHost: h\r\nA: \xe9\r\n\r\n", TCP)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nUser-Agent: a\x0b:\x7fb\r\n\r\n", TCP)
@example(b"GET / HTTP/1.1\r\nHost: h\x01\r\nUser-Agent: a\r\n\r\n", TCP)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: \x0b5\r\n\r\n", TCP)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nUser\x01-Agent: a\r\n\r\n", TCP)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nUser-Agent: a\0b\r\n\r\n", TCP)
@example("\r\nGET /é?é:\x01 HTTP/1.1\r\nHost: h\r\n\r\n".encode(), TCP)
@example("\r\nGET /é?é HTTP/1.1\r\nHost: h\r\nX: \x01\r\n\r\n".encode(), TCP)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: te\r\nConnection: a, Close\r\n\r\n", TCP)
@example(b"GET / HTTP/1.0\r\nConnection: keep-alive, te\r\nX: y\r\n\r\n", TCP)
@example(b"GET / HTTP/1.1\r\nX: y\r\n\r\n", TCP)
@example(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 007\r\nConnection: close\r\n\r\n", TCP)
@settings(max_examples=300)
def test_a_head_is_read_as_gunicorn_reads_it(received: bytes, ends: Any) -> None:
    end = received.find(b"\r\n\r\n")
    assume(end >= 0)
    cfg = configure()
    peer = make_peer(cfg, None, *ends)
    asked = ask_gunicorn(made_acceptable(received[: end + 4]), peer, cfg)
    for reads_plain in (True, False):
        head = read_or_refuse(HeadReader(cfg, reads_plain=reads_plain), received, end, peer)

        if not isinstance(asked, type) and lacks_host(asked[0]):
            assert head is NoHostError
            continue
        if isinstance(asked, type) or isinstance(head, type):
            assert head is asked
            continue
        request, environ, expects_continue = asked
        assert without(head.environ) == environ
        assert head.keeps_alive == ought_to_be_kept(request)
        assert head.minor_version == min(request.version[1], 1)
        assert head.expects_continue == expects_continue
        assert head.length == getattr(request.body.reader, "length", None)


def lacks_host(request: Request) -> bool:
    """Tell what gunicorn does not look at. Source: RFC 9112, 3.2."""
    return request.version >= (1, 1) and "HOST" not in dict(request.headers)


def ought_to_be_kept(request: Request) -> bool:
    """Tell what gunicorn tells of a single word only. Source: RFC 9112, 9.3."""
    options = [
        option.strip(" \t").lower()
        for name, value in request.headers
        if name == "CONNECTION"
        for option in value.split(",")
    ]
    if request.method == "CONNECT" or request.must_close or "close" in options:
        return False
    return request.version >= (1, 1) or "keep-alive" in options


def read(received: bytes, ends: Any = TCP, **changes: object) -> Head:
    cfg = configure(**changes)
    reader = HeadReader(cfg, reads_plain=True)
    return reader.read(received, 0, received.find(b"\r\n\r\n"), make_peer(cfg, None, *ends))


def test_what_networks_and_nginx_send_is_plain() -> None:
    head = read(
        b"GET /key/postback?subid=c1&payout=1.5 HTTP/1.1\r\nHost: t.example\r\n"
        b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n"
        b"User-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n",
        PROXY,
        secure_scheme_headers=gunicorn_conf.secure_scheme_headers,
    )

    # Only gunicorn's parser leaves a request object.
    assert head.request is None
    assert head.environ["wsgi.url_scheme"] == "http"


@pytest.mark.parametrize(
    "received",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX_A: b\r\n\r\n",
        b"GET //x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: h\r\n\r\n",
        # Who is believed in that is gunicorn's to say, where somebody's settings ask for it.
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Ssl: on\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nUser-Agent: a\x01b\r\n\r\n",
        b"GET /\xe9 HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_what_is_unusual_is_left_to_gunicorn(received: bytes) -> None:
    assert read(received).request is not None


def test_a_remembered_block_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCRIPT_NAME", raising=False)
    cfg = configure()
    reader = HeadReader(cfg, reads_plain=True)
    request = b"GET / HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n"
    end = request.find(b"\r\n\r\n")

    reader.read(request, 0, end, make_peer(cfg, None, *TCP)).environ["HTTP_X_A"] = "changed"

    assert reader.read(request, 0, end, make_peer(cfg, None, *TCP)).environ["HTTP_X_A"] == "b"


@pytest.mark.parametrize(
    ("limit", "received"),
    [
        ({"limit_request_line": 20}, b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n"),
        ({"limit_request_line": 0}, b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n"),
        ({"limit_request_field_size": 20}, b"GET / HTTP/1.1\r\nHost: h\r\nX: %s\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("size", [5, 6, 7, 8, 15, 16, 17, 18])
def test_a_limit_is_gunicorns_to_the_byte(limit: Any, received: bytes, size: int) -> None:
    request = received % (b"x" * size)
    cfg = configure(**limit)
    peer = make_peer(cfg, None, *TCP)

    def is_taken(reads_plain: bool) -> bool:
        try:
            HeadReader(cfg, reads_plain=reads_plain).read(request, 0, len(request) - 4, peer)
        except Exception:
            return False
        return True

    assert is_taken(True) == is_taken(False)


# --- Chunked bodies --------------------------------------------------------------------------

CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZES = st.sampled_from(["0", "1", "3", "03", "a", "A", "0x1", "-1", "+1", "", "g", "1 ", " 1"])
EXTENSIONS = st.sampled_from([""] * 6 + [";x", ";x=y", ' ; x="a b"', ";", ";\r", ";x=\0"])
CHUNK_ENDS = st.sampled_from(["\r\n"] * 12 + ["\n", "", "\r"])
CONTENTS = st.sampled_from(["a", "abc", "0\r\n", "abcdefghij", "", "\r\n"])
CHUNKS = st.builds(
    lambda *parts: "".join(parts), SIZES, EXTENSIONS, CHUNK_ENDS, CONTENTS, CHUNK_ENDS
)
GOOD_CHUNKS = st.binary(min_size=1, max_size=9).map(
    lambda content: f"{len(content):x}\r\n{content.decode('latin-1')}\r\n"
)
TRAILERS = st.sampled_from(
    ["0\r\n\r\n"] * 4
    + ["0\r\nX: y\r\n\r\n", "0\r\nContent-Length: 1\r\n\r\n", "0\r\nX\r\n\r\n", "0\r\nX: y\n\r\n"]
    + ["00;x\r\n\r\n", "0\n\r\n", ""]
)
CHUNKED_BODIES = st.builds(
    lambda chunks, end: ("".join(chunks) + end).encode("latin-1"),
    st.lists(st.one_of(GOOD_CHUNKS, GOOD_CHUNKS, CHUNKS), max_size=4),
    TRAILERS,
)


def read_as_gunicorn(body: bytes) -> tuple[bytes, bytes] | None:
    """Return what gunicorn decodes and leaves over, or None where it refuses or wants more."""
    unreader = IterUnreader([CHUNKED + body])
    try:
        request = Request(configure(), unreader, TCP[0])
        content = request.body.read()
    except Exception:
        return None
    return content, unreader.take_buffered()


def read_in_pieces(body: bytes, cuts: list[int]) -> tuple[bytes, bytes] | None:
    """Decode what comes piece by piece, as a connection does."""
    chunked = ChunkedBody(Request(configure(), IterUnreader([CHUNKED]), TCP[0]))
    received, start = b"", 0
    try:
        for cut in [*sorted(cuts), len(body)]:
            received = body[:cut]
            start = chunked.take(received, start)
    except Exception:
        return None
    return (bytes(chunked.content), received[start:]) if chunked.is_whole else None


@given(CHUNKED_BODIES, st.lists(st.integers(0, 60), max_size=8))
@example(b"3\r\nabcXX0\r\n\r\n", [])
@settings(max_examples=300)
def test_a_chunked_body_is_read_as_gunicorn_reads_it(body: bytes, cuts: list[int]) -> None:
    body += b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"

    assert read_in_pieces(body, cuts) == read_as_gunicorn(body)


def test_a_chunked_body_longer_than_is_held_is_cut() -> None:
    chunked = ChunkedBody(Request(configure(), IterUnreader([CHUNKED]), TCP[0]))
    chunk = b"4000\r\n%s\r\n" % (b"x" * 0x4000)
    for _ in range(20):
        chunked.take(chunk, 0)

    assert chunked.is_too_long
    assert not chunked.is_whole
    assert len(chunked.content) <= 64 * 1024 + 0x4000


def test_more_is_asked_for_only_once() -> None:
    received = BufferUnreader(b"GET")

    assert received.read() == b"GET"
    with pytest.raises(IncompleteError):
        received.read()


# --- Answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("OK", ()),
        ("99 Low", ()),
        ("200 O\nK", ()),
        ("200 OK", (("X", "a\r\nb"),)),
        ("200 OK", (("X", "a\0"),)),
        ("200 OK", (("X Y", "a"),)),
        ("200 OK", (("", "a"),)),
        ("200 OK", (("Content-Length", "x"),)),
        ("200 OK", (("X", "Ā"),)),
    ],
)
def test_an_answer_that_cannot_be_sent_is_not(status: str, headers: Any) -> None:
    with pytest.raises(ValueError, match=r"status|header|int"):
        write_head(status, headers)


def test_the_connection_is_not_for_the_callable_to_speak_of() -> None:
    head = write_head(
        "200 OK",
        (("Connection", "close"), ("transfer-encoding", "chunked"), ("Date", "now"), ("X", " y ")),
    )

    assert head.text == b"200 OK\r\nServer: gunicorn\r\nX: y\r\n"
