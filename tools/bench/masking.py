"""`python -m tools.bench.masking`: the time of hiding keys, and whether it depends on the key.

All is measured in this one run, in turn, so that other work of the machine affects all of it.
"""

import argparse
import random
import re
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import postback
from postbackd.masking import KeyMask
from tools.bench.__main__ import CONFIG
from tools.bench.build import build_database, make_ready
from tools.bench.generator import KEY
from tools.bench.requests import make_environ

KEYS = {
    "one random key": [secrets.token_hex(16).encode()],
    "four random keys": [secrets.token_hex(16).encode() for _ in range(4)],
    "the bench's key, of six words": [KEY.encode()],
    "three keys of three lengths": [secrets.token_hex(n).encode() for n in (16, 12, 8)],
}

QUERY = "subid=0a1b2c3d4e5f6071&status=sale&payout=12.50&currency=usd&tid=t123456"
QUERIES = {
    "plain query": QUERY,
    "long plain query": f"{QUERY}&sub_id_1=campaign&sub_id_2=adset-name&from=network&offer_id=77"
    "&country=de&device=mobile&session=fedcba9876543210fedcba9876543210",
    "query with escapes": f"{QUERY}&ref=http%3A%2F%2Fnetwork.example%2Fa%2Fb&name=J%C3%BCrgen",
}
LINE = (
    '127.0.0.1 - - [02/Mar/2026:12:00:00 +0000] "GET /another-key-of-former-days/postback?'
    f'{QUERY} HTTP/1.1" 404 9 "-" "Mozilla/5.0 (X11; Linux x86_64)"'
)

Calls = dict[Any, tuple[Callable[[str], str], str]]

# A line of a log may be as long as a request line, a body has 64 KiB.
LINE_BYTES = 8000
BODY_BYTES = 65_000


def main() -> int:
    """Measure, and print four tables."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.masking", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="rounds of what is compared")
    args = parser.parse_args()
    _print_ordinary(args.rounds)
    _print_hostile()
    _print_oracle(args.rounds)
    _print_path(args.rounds)
    return 0


# The time without a key in the text.


def _search_plainly(keys: list[bytes]) -> Callable[[str], str]:
    """Return the earlier search, whose time grows with the number of right letters."""
    words = "|".join(re.escape(key.decode()) for key in keys)
    pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])")

    def search(text: str) -> str:
        read = text
        if "%" in text:
            raw = text.replace("+", " ").encode("latin-1")
            read = unquote_to_bytes(raw).decode("latin-1")
        return "***" if pattern.search(read) else text

    return search


def _print_ordinary(rounds: int) -> None:
    print("| keys | text | a plain search µs | KeyMask µs |\n|---|---|---|---|")
    for name, keys in KEYS.items():
        mask, search = KeyMask(keys), _search_plainly(keys)
        calls = {
            (kind, hide): (hide, text)
            for kind, text in QUERIES.items()
            for hide in (search, mask.hide)
        }
        calls |= {("line of a log", hide): (hide, LINE) for hide in (search, mask.hide_in_message)}
        times = _time_in_turn(calls, rounds)
        for kind in dict.fromkeys(kind for kind, _ in calls):
            before, now = (statistics.median(t) for (k, _), t in times.items() if k == kind)
            print(f"| {name} | {kind} | {before:.2f} | {now:.2f} |")
    print()


def _print_hostile() -> None:
    key = KEYS["one random key"][0]
    chosen = KEY.encode()
    mixed = r"%2541%5Cx41\x41\\x41\x2541"
    parts = {
        "31 right letters, escaped": f"/{_escape(key[:31])}",
        "31 right letters, escaped twice": f"/{quote(_escape(key[:31]))}",
        "right letters of two keys": f"/{key[:31].decode()}/{chosen[:-1].decode()}",
        "a border everywhere": "ab-",
        "escapes of every kind": f"{mixed}-",
        "escapes of every kind, then borders": "ab-",
        "the key itself": f"/{key.decode()}",
    }
    mask = KeyMask([key, chosen])
    print(f"| text, over and over | line of {LINE_BYTES:,} ms | body of {BODY_BYTES:,} ms |")
    print("|---|---|---|")
    for name, part in parts.items():
        text = (mixed if name.endswith("borders") else "") + part * (BODY_BYTES // len(part))
        line = min(_time(mask.hide_in_message, text[:LINE_BYTES]) for _ in range(5))
        body = min(_time(mask.hide, text) for _ in range(5))
        print(f"| {name} | {line / 1000:.2f} | {body / 1000:.2f} |")
    print()


# Whether right letters take longer than wrong ones.


def _print_oracle(rounds: int) -> None:
    print("| key, guesses | right against wrong ns | wrong against wrong ns | the whole µs |")
    print("|---|---|---|---|")
    for name in ("one random key", "the bench's key, of six words"):
        key = KEYS[name][0]
        mask = KeyMask([key])
        for place, hide in (("stored", mask.hide), ("log", mask.hide_in_message)):
            for right in (1, len(key) // 2, len(key) - 1):
                for spell in (bytes.decode, _escape):
                    beginnings = [key[:right], _make_wrong(key[:right]), _make_wrong(key[:right])]
                    texts = [_write_guesses(b, key[right:], spell) for b in beginnings]
                    calls: Calls = {number: (hide, text) for number, text in enumerate(texts)}
                    told, wrong, other = _time_in_turn(calls, rounds).values()
                    escaped = ", escaped" if spell is _escape else ""
                    print(
                        f"| {name}, {place}, {right} right{escaped} | {_describe(told, wrong)} |"
                        f" {_describe(other, wrong)} | {statistics.median(wrong):.0f} |"
                    )
    print()


def _write_guesses(beginning: bytes, rest: bytes, spell: Callable[[bytes], str]) -> str:
    """Write guesses with the same beginning and different wrong ends."""
    text = ""
    while len(text) < LINE_BYTES:
        text += spell(b"/" + beginning + _make_wrong(rest))
    return text[:LINE_BYTES]


def _make_wrong(right: bytes) -> bytes:
    """Replace letters by other letters, digits by other digits: digits take longer in any guess."""
    return re.sub(rb"[a-z0-9]", _choose_another, right)


def _choose_another(letter: re.Match[bytes]) -> bytes:
    kind = b"0123456789" if letter[0].isdigit() else b"abcdefghijklmnopqrstuvwxyz"
    return bytes([random.choice(kind.replace(letter[0], b""))])  # noqa: S311 no secret


def _escape(raw: bytes) -> str:
    return "".join(f"%{byte:02x}" for byte in raw)


def _describe(some: list[float], others: list[float]) -> str:
    """Return the median difference and the quarters around it, in ns."""
    low, middle, high = statistics.quantiles(
        [(a - b) * 1000 for a, b in zip(some, others, strict=True)], n=4
    )
    return f"{middle:+.0f} ({low:+.0f} to {high:+.0f})"


# A whole postback.


def _print_path(rounds: int) -> None:
    batch = 16
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        directory = Path(scratch)
        (directory / "config.ini.php").write_text(CONFIG)
        build_database(directory / "postback.db", 0)
        make_ready(directory / "postback.db", 2 * batch * rounds)
        receiver = postback.Receiver(directory / "config.ini.php")
        hide = {
            "with a plain search": _as_method(_search_plainly([KEY.encode()])),
            "with KeyMask": KeyMask.hide,
        }
        times: dict[str, list[float]] = {name: [] for name in hide}
        numbers = iter(range(2 * batch * rounds))
        for _ in range(rounds):
            for name, method in hide.items():
                setattr(KeyMask, "hide", method)  # noqa: B010 put back below
                environs = [make_environ(next(numbers)) for _ in range(batch)]
                times[name].append(_time(receiver.answer_all, environs) / batch)
        setattr(KeyMask, "hide", hide["with KeyMask"])  # noqa: B010
        receiver.close()
    print("| a new sale, 16 in a commit | first decile µs |\n|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {statistics.quantiles(taken, n=10)[0]:.1f} |")
    ratios = [before / now for before, now in zip(*times.values(), strict=True)]
    print(f"\nOf the speed before, median of neighbours: {statistics.median(ratios):.3f}")


def _as_method(search: Callable[[str], str]) -> Callable[[KeyMask, str], str]:
    return lambda self, text: search(text)


# Clocks.


def _time(call: Callable[..., Any], *args: Any) -> float:
    """Time one call, in µs."""
    began = time.perf_counter()
    call(*args)
    return (time.perf_counter() - began) * 1e6


def _time_in_turn(calls: Calls, rounds: int) -> dict[Any, list[float]]:
    """Time calls in turn, so many rounds, each in another order; short ones many times at once."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            hide, text = calls[name]
            repeats = max(1, 2000 // len(text))
            times[name].append(_time(_repeat, hide, text, repeats) / repeats)
    return times


def _repeat(hide: Callable[[str], str], text: str, times: int) -> None:
    for _ in range(times):
        hide(text)


if __name__ == "__main__":
    raise SystemExit(main())
