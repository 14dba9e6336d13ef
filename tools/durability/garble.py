"""Requests of every kind from a seed: sound, odd, hostile, and cut or mangled bytes.

Each request under a right key has a mark of its own in the query, by which its row in the postback
log is found.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple
from urllib.parse import quote, quote_from_bytes

from tools.durability.servers import CLICK_KEY, POSTBACK_KEY

PIXEL_KEY = "durability-pixel-key"

# How many requests one connection carries at most, one behind the other without waiting.
LONGEST_PIPELINE = 48

# A longer line is refused before its key is read. Source: server/gunicorn_conf.py.
LONGEST_LINE = 8190


class Kind(Enum):
    """The possible results of a request."""

    SOUND = "sound"  # a right key and nothing wrong with the HTTP: 200, and in the postback log
    ODD = "odd"  # a right key, and the server may refuse it: if 200, in the postback log
    SILENT = "silent"  # no row in the postback log: HEAD, OPTIONS, clicks, /health
    STRANGER = "stranger"  # no right key: never 200
    MANGLED = "mangled"  # bytes of a sound one, cut and mixed: if 200, in the postback log


class Request(NamedTuple):
    """The bytes of a request, its possible results, and its mark in the postback log."""

    raw: bytes
    kind: Kind
    method: str
    mark: str = ""
    # The bytes after it on the connection may be read as a part of it.
    is_last: bool = False


class Dice(random.Random):
    """Random choices from a seed: a failure can be repeated."""

    def happens(self, share: float) -> bool:
        """Return whether something with this likelihood happens."""
        return self.random() < share


NAMES = (
    *(
        "subid",
        "sub_id",
        "clickid",
        "click_id",
        "status",
        "payout",
        "revenue",
        "profit",
        "currency",
    ),
    *(
        "tid",
        "cost",
        "sub_id_1",
        "sub_id_30",
        "sub_id_31",
        "lead_status",
        "sale_status",
        "rejected",
    ),
    *("reject_status", "rejected_status", "rebill_status", "ignore", "ignore_status", "return"),
    *("from", "a.b", "a b", "a[", "a[]", "[x]", "%00", "", "\0x", "subid[]", "s\xfcbid", "SUBID"),
)
# Values of attackers, and of networks that mean no harm; as bytes.
VALUES: Sequence[bytes] = (
    *(b"", b" ", b"0", b"1", b"12.50", b"-3", b"1e3", b"NaN", b"12,50", b"$10", b"9" * 40),
    *(b"999999999.999999", b".5", b"5.", b"+.1", b"lead", b"sale", b"rejected", b"rebill", b"EUR"),
    *(
        b"SALE",
        b"sale,lead",
        b"{status}",
        b"{{x}}",
        b"${x}",
        b"[=x=]",
        b"##x##",
        b"REPLACE",
        b"usdt",
    ),
    *(
        b"'; DROP TABLE postbacks; --",
        b'" OR 1=1',
        b"\x1b]0;owned\x07\x1b[2J",
        b"\x9b31m",
        b"a\r\nb: c",
    ),
    *(
        b"=cmd|' /C calc'!A0",
        b"@SUM(A1)",
        b"<script>alert(1)</script>",
        b"../../etc/passwd",
        b"%s%n",
    ),
    *(
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xc3",
        b"\xf0\x9f\x92\xb0",
        "\u202etxt".encode(),
        b"%",
    ),
    *(b"%zz", b"%25", b"+", b"&", b";", b"#", b"\\", b"x" * 255, b"x" * 256, "\u0130".encode() * 9),
    *(b'{"a": 1}', b"null", b"None", POSTBACK_KEY.encode(), f"/{CLICK_KEY}/click".encode()),
)
HEADERS = (
    *("Accept: */*", "Accept: image/png", "Sec-Fetch-Dest: image", "User-Agent: curl/8", "X: "),
    *("X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: a, b, c", "X-Forwarded-For: [::1]:80"),
    *("X-Forwarded-For: ::ffff:1.2.3.4%eth0", "X-Forwarded-Proto: https", "X-Forwarded-For: ,,,"),
    *(
        "Cookie: subid=cookie",
        "Cookie: _subid=%ff; subid",
        "Cookie: ;;=;",
        "Cookie: subid=\x80\xff",
    ),
    *("Referer: http://h/?\xe9", "Forwarded: for=_x", "Origin: null", "X-Real-IP: 1.2.3.4"),
    *(
        "Content-Type: text/plain",
        "If-None-Match: *",
        "Range: bytes=0-1",
        "Via: 1.1 x",
        "TE: chunked",
    ),
)
# Headers that a server may refuse, and then must refuse whole.
ODD_HEADERS = (
    *("Bad Header: x", "X_Forwarded_For: 1.2.3.4", "Host: twice", "Expect: cake", ": nameless"),
    *("X: a\0b", "X: \x1b[2J", " folded: x", "nocolon", "Upgrade: h2c", "X: " + "y" * 9000),
    *("Transfer-Encoding: gzip", "Connection: Upgrade, close", "Content-Length: -1", "X: \x7f"),
    "Content-Length: 1, 1",
)
STRANGE_PATHS = (
    *(
        "/",
        "//",
        "*",
        "/postback",
        "//postback",
        "/x/postback",
        "/postback/",
        "/%00/postback",
        "/..",
    ),
    *(
        f"/{POSTBACK_KEY}",
        f"/{POSTBACK_KEY}/",
        f"/{POSTBACK_KEY}x/postback",
        f"/{POSTBACK_KEY}/click",
    ),
    *(
        f"/{POSTBACK_KEY[:-1]}/postback",
        f"/{POSTBACK_KEY.upper()}/postback",
        f"/{CLICK_KEY}/postback",
    ),
    *(f"/{POSTBACK_KEY}/postback//", f"/x/../{POSTBACK_KEY}/postback", f"/{PIXEL_KEY}/postback"),
    *(
        f"/{POSTBACK_KEY}/postback%00",
        f"/{POSTBACK_KEY}%2fpostback%2f%2f",
        f"/{POSTBACK_KEY}/p%6fstback.",
    ),
    *(f"/{quote(quote(POSTBACK_KEY[:1]) + '%64')}/postback", f"/{POSTBACK_KEY}/postback;x=1"),
)
STRANGE_METHODS = (
    "PUT",
    "DELETE",
    "PATCH",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "get",
    "G",
    "GETGETGET",
)
FORM = "application/x-www-form-urlencoded"


def make_pipeline(dice: Dice, marks: Iterator[str]) -> list[Request]:
    """Make the requests of one connection; a mangled one only as the last."""
    requests: list[Request] = []
    for _ in range(dice.randint(1, LONGEST_PIPELINE)):
        requests.append(_make_request(dice, next(marks)))
        if requests[-1].is_last:
            break
    return requests


def _make_request(dice: Dice, mark: str) -> Request:
    (make,) = dice.choices(*_MAKERS)
    return make(dice, mark)


def _make_sound(dice: Dice, mark: str) -> Request:
    method = dice.choice(("GET", "GET", "GET", "POST"))
    query, form = _make_query(dice, mark), ""
    headers = dice.sample(HEADERS, dice.randint(0, 4))
    if method == "POST":
        headers = [header for header in headers if not header.startswith("Content-Type")]
        form = _make_query(dice, "") if dice.happens(0.5) else ""
    target = f"{_spell_address(dice)}?{query}"
    if len(target) + 20 > LONGEST_LINE or _repeats(headers):
        target, headers = f"/{POSTBACK_KEY}/postback?subid=c&mark={mark}", []
    raw = _write(dice, method, target, headers, form)
    return Request(raw, Kind.SOUND, method, mark)


def _make_odd(dice: Dice, mark: str) -> Request:
    method = dice.choice(("GET", "POST"))
    headers = [*dice.sample(HEADERS, 2), *dice.sample(ODD_HEADERS, dice.randint(0, 2))]
    target = dice.choice(
        (
            f"http://elsewhere{_spell_address(dice)}?{_make_query(dice, mark)}",
            f"{_spell_address(dice)}?{_make_query(dice, mark)}#fragment",
            f"{_spell_address(dice)}?mark={mark}&{'x' * dice.randint(7000, 9000)}",
            f"/{POSTBACK_KEY}/postback?mark={mark}&raw=\xe9\x80",
        )
    )
    body = "y" * dice.choice((0, 1, 65536, 65537, 70000)) if dice.happens(0.1) else "a=1"
    raw = _write(dice, method, target, headers, body if method == "POST" else "")
    return Request(raw, Kind.ODD, method, mark, is_last=True)


def _make_silent(dice: Dice, mark: str) -> Request:
    method, name = dice.choice(
        (("HEAD", "postback"), ("OPTIONS", "postback"), ("HEAD", "postback.gif"), ("GET", "click"))
    )
    key = CLICK_KEY if name == "click" else POSTBACK_KEY
    target = f"/{key}/{name}?{_make_query(dice, mark)}"
    if len(target) > LONGEST_LINE - 20:
        target = f"/{key}/{name}"
    if dice.happens(0.02):
        method, target = "GET", "/health"
    return Request(_write(dice, method, target, (), ""), Kind.SILENT, method)


def _make_stranger(dice: Dice, mark: str) -> Request:
    if dice.happens(0.3):
        target, method = f"/{POSTBACK_KEY}/postback?mark={mark}", dice.choice(STRANGE_METHODS)
    else:
        target = f"{dice.choice(STRANGE_PATHS)}?{_make_query(dice, mark)}"
        method = dice.choice(("GET", "POST", "HEAD", "OPTIONS"))
    raw = _write(dice, method, target, dice.sample(HEADERS, 1), "")
    return Request(raw, Kind.STRANGER, method, is_last=True)


def _make_mangled(dice: Dice, mark: str) -> Request:
    raw = bytearray(_make_sound(dice, mark).raw)
    for _ in range(dice.randint(1, 6)):
        place = dice.randrange(len(raw))
        change = dice.randrange(4)
        if change == 0:
            raw[place] = dice.randrange(256)
        elif change == 1:
            del raw[place : place + dice.randint(1, 20)]
        elif change == 2:
            raw[place:place] = dice.choice((b"\r\n", b"\n", b"\0", b"\r\n\r\n", b" ", b"\xff" * 9))
        else:
            raw[place:place] = raw[place : place + dice.randint(1, 60)]
        if not raw:
            raw = bytearray(b"\r")
    if dice.happens(0.3):
        del raw[dice.randrange(len(raw)) :]
    return Request(bytes(raw) or b"\r", Kind.MANGLED, "GET", is_last=True)


_MAKERS: tuple[Sequence[Callable[[Dice, str], Request]], Sequence[int]] = (
    (_make_sound, _make_silent, _make_odd, _make_stranger, _make_mangled),
    (85, 6, 3, 3, 3),
)


def _make_query(dice: Dice, mark: str) -> str:
    pairs = [
        f"{_spell(dice, dice.choice(NAMES))}={_make_value(dice)}" for _ in range(dice.randint(0, 5))
    ]
    if dice.happens(0.9):
        pairs.append(f"subid=c{dice.randrange(100_000)}")
    dice.shuffle(pairs)
    if mark:
        pairs.append(f"mark={mark}")
    return dice.choice(("&", "&", "&", "&&")).join(pairs)


def _make_value(dice: Dice) -> str:
    value = dice.choice(VALUES)
    if dice.happens(0.02):
        value = dice.randbytes(dice.randint(1, 300))
    elif dice.happens(0.005):
        value *= dice.randint(1, 40)
    return quote_from_bytes(value, safe="{}[]$'()*!,;:@/=~|")


def _spell(dice: Dice, name: str) -> str:
    return (
        quote(name, safe="[]") if dice.happens(0.9) else "".join(f"%{b:02x}" for b in name.encode())
    )


def _spell_address(dice: Dice) -> str:
    """Write one of the addresses that store rows, some letters as escapes."""
    key, name = dice.choice(
        (
            *[(POSTBACK_KEY, "postback")] * 6,
            (POSTBACK_KEY, "postback/"),
            (POSTBACK_KEY, "postback.gif"),
            (PIXEL_KEY, "postback.gif"),
        )
    )
    address = f"/{key}/{name}"
    if dice.happens(0.05):
        place = dice.randrange(1, len(address))
        address = f"{address[:place]}%{ord(address[place]):02X}{address[place + 1 :]}"
    return address


def _repeats(headers: Sequence[str]) -> bool:
    """Return whether a name that is allowed once is there twice."""
    names = [header.partition(":")[0] for header in headers]
    return names.count("Content-Type") > 1 or names.count("X-Forwarded-Proto") > 1


def _write(dice: Dice, method: str, target: str, headers: Sequence[str], form: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: h", *headers]
    body = form.encode("latin-1")
    if method == "POST" and form:
        lines.append(f"Content-Type: {FORM}")
        if dice.happens(0.3):
            lines.append("Transfer-Encoding: chunked")
            body = _chunk(dice, body)
        else:
            lines.append(f"Content-Length: {len(body)}")
        if dice.happens(0.05):
            lines.append("Expect: 100-continue")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _chunk(dice: Dice, body: bytes) -> bytes:
    parts = []
    while body:
        size = dice.randint(1, len(body))
        parts.append(b"%x\r\n%b\r\n" % (size, body[:size]))
        body = body[size:]
    return b"".join([*parts, b"0\r\n\r\n"])
