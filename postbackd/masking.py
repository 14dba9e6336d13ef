r"""Takes keys out of text: one algorithm for all text that leaves the program.

How it works:

1. *Readings.* A key may be written with escapes: `%2F`, `\x2f`, `\u002f`, `\/`. The text is read
   as it is, with one layer of escapes undone and with two, percent escapes and backslash escapes
   in any order, and after a layer of backslashes with one more. Text beyond ASCII is read as
   characters, and as the bytes of UTF-8.
2. *Stretches.* In each reading every stretch is taken that is as long as a key and has a word
   border at both ends; in a log message a border at one end is enough.
3. *Hashes.* The hash of each stretch is looked up in the set of the hashes of the keys.
4. *Places.* Only where a key was found, its place is followed back through the layers to the text
   as it came. Those characters become `***`; every other character stays as it is.

The time is linear in the text. It depends on the text and on the lengths of the keys, and not on
how many letters of a key are right: a stretch is hashed as a whole, and hashes are compared. `hash`
is Python's own: SipHash for text, under a random key that each process draws when it starts
(https://peps.python.org/pep-0456/).

Where it is used: on the stored parts of a request (`postback`, `intake.runtime`), of an imported
line and of a replay; on every line of gunicorn's logs and the service log (`server.logs`); on all
output of a command (`cli.output`); on messages about the config (`config.entries`); on messages of
the sources of rates (`exchange.fetch`, `exchange.runner`); on tracebacks (`hide_in_tracebacks`).
`tests/contract/test_no_key_leaves.py` lists every way out and walks it.
"""

import re
import sys
import threading
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

# Written in place of a key.
HIDDEN = "***"

# A shorter key could be a word of the trade ("sale"): hiding it would change the text.
HIDEABLE_KEY_BYTES = 6

# A network escapes the address that it was given, and a page or a log escapes that once more. If
# the outermost escapes are backslashes, they may be a log's or JSON's, around both.
LAYERS = 2

# Patterns are compiled at first use: a command must start without them.

# Letters and digits of folded text, and all else: a key between two letters or digits is a part of
# a longer word.
_WORD = "[a-z0-9]"
_BORDER = "[^a-z0-9]"

# Put at both ends of a text, so that it starts and ends with a border. No key contains it: PHP
# reads no further than a NUL byte.
_END = "\0"

# The part of an address that holds a key, known or not: rotated keys leave the config file. The
# directory of a postback.db is no key, nor are directories named like the service, such as
# /var/lib/postback: error messages must be able to name them.
_KEY_IN_ADDRESS = (
    r"/(?!(?:lib|log|opt|run)/postback/)([^/\s\"']*[^/\s\"'\\])"
    r"(?=\\?/(?:postback|click)\b(?!\.(?!gif)))"
)

Span = tuple[int, int]
Patterns = Sequence[re.Pattern[str]]


class KeyMask:
    """Hides keys in text; stores their hashes and lengths, and no key."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        """Use the keys; those shorter than HIDEABLE_KEY_BYTES are not hidden."""
        folded = {_fold(key.decode("latin-1")) for key in keys if len(key) >= HIDEABLE_KEY_BYTES}
        self._hashes = frozenset(map(hash, folded))
        self._between_borders = _compile(_list_patterns_between_borders(folded))
        self._written_at_a_border = tuple(_list_patterns_at_a_border(folded))

    @cached_property
    def _at_a_border(self) -> Patterns:
        return _compile(self._written_at_a_border)

    def hide(self, text: str) -> str:
        """Hide keys between word borders in text that is stored, read or shown."""
        patterns = self._between_borders
        if not patterns:
            return text
        is_plain = text.isascii() and "%" not in text and "\\" not in text
        if is_plain and not self._is_in(text, patterns):
            # Nearly every query returns here.
            return text
        return self._hide_in_readings(text, _list_readings(text))

    def hide_in_bytes(self, content: bytes) -> bytes:
        """Hide keys in bytes, which are read as bytes only."""
        text = content.decode("latin-1")
        return self._hide_in_readings(text, _undo_layers([(text, ())])).encode("latin-1")

    def _hide_in_readings(self, text: str, readings: "Sequence[Reading]") -> str:
        patterns = self._between_borders
        return _replace(
            text,
            [
                span
                for reading, layers in readings
                if self._is_in(reading, patterns)
                for span in _follow_back(text, layers, self._find(reading, patterns))
            ],
        )

    def hide_in_message(self, text: str) -> str:
        """Hide keys in a log message, also inside a longer word, and keys in addresses."""
        spans: list[Span] = []
        for reading, layers in _list_readings(text):
            found = [match.span(1) for match in re.finditer(_KEY_IN_ADDRESS, reading)]
            if self._is_in(reading, self._at_a_border):
                found += self._find(reading, self._at_a_border)
            spans += _follow_back(text, layers, found)
        return _replace(text, spans)

    def _is_in(self, reading: str, patterns: Patterns) -> bool:
        folded = _fold(f"{_END}{reading}{_END}")
        for pattern in patterns:
            stretches = pattern.findall(folded)
            if stretches and not self._hashes.isdisjoint(map(hash, stretches)):
                return True
        return False

    def _find(self, reading: str, patterns: Patterns) -> Iterator[Span]:
        """Find the places of keys, which takes longer than to see that there is none."""
        folded = _fold(f"{_END}{reading}{_END}")
        for pattern in patterns:
            for match in pattern.finditer(folded):
                if hash(match[1]) in self._hashes:
                    yield match.start(1) - len(_END), match.end(1) - len(_END)


def _fold(text: str) -> str:
    """Make texts equal that give a key away equally: upper and lower case, a blank and its plus."""
    return text.lower().replace("+", " ")


# The patterns depend on a key's length, whether it is one word, and whether its ends are letters.


def _compile(patterns: Iterable[str]) -> Patterns:
    return [re.compile(pattern, re.DOTALL) for pattern in sorted(set(patterns))]


def _list_patterns_between_borders(keys: Iterable[str]) -> Iterator[str]:
    lengths = [len(key) for key in keys if _is_word(key)]
    if lengths:
        # One pattern for all lengths: else a postback's time would grow with the number of lengths.
        yield f"{_BORDER}({_WORD}{{{min(lengths)},{max(lengths)}}}+)(?={_BORDER})"
    for key in keys:
        if not _is_word(key):
            # A key that starts or ends with a border character needs no other border there.
            before = _BORDER if _is_word(key[0]) else ""
            behind = f"(?={_BORDER})" if _is_word(key[-1]) else ""
            stretch = f"{_kind(key[0])}.{{{len(key) - 2}}}{_kind(key[-1])}"
            yield f"{before}(?=({stretch}){behind})"


def _list_patterns_at_a_border(keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        rest = f"{_kind(key)}{{{len(key) - 1}}}"
        begin, end = f"({_kind(key[0])}{rest})", f"({rest}{_kind(key[-1])})"
        yield f"{_BORDER}(?={begin})" if _is_word(key[0]) else f"(?={begin})"
        yield f"{_BORDER}(?<={end}.)" if _is_word(key[-1]) else f"(?<={end})"


def _kind(part: str) -> str:
    """Return the pattern of any character in a part of a key."""
    if _is_word(part):
        return _WORD
    return _BORDER if len(part) == 1 else "."


def _is_word(part: str) -> bool:
    return re.fullmatch(f"{_WORD}+", part) is not None


# Layers of escapes.


class _Layer(NamedTuple):
    """One kind of escape: a sign that all of them contain, their pattern, their meaning.

    `undo` reads all of them in a text; `escape` and `read` find and read a single one.
    """

    sign: str
    undo: Callable[[str], str]
    escape: str
    read: Callable[[re.Match[str]], str]


Layers = tuple[_Layer, ...]
Reading = tuple[str, Layers]


def _undo_percent(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("latin-1")


def _undo_backslash(text: str) -> str:
    return re.sub(_BACKSLASH_ESCAPE, _read_backslash, text)


def _read_backslash(escape: re.Match[str]) -> str:
    if escape["letter"] is not None:
        return _LETTERS.get(escape["letter"], escape["letter"])
    if escape["byte"] is not None:
        return chr(int(escape["byte"], 16))
    if escape["high"] is not None:
        return _to_bytes(bytes.fromhex(escape["high"] + escape["low"]).decode("utf-16-be"))
    return _to_bytes(chr(int(escape["point"] or escape["long"], 16)))


def _to_bytes(text: str) -> str:
    """Write text as the bytes of its UTF-8, one character each."""
    try:
        # A character that was read from a byte that is no UTF-8 becomes that byte.
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", "replace")
    return encoded.decode("latin-1")


# As Python's repr, JSON and nginx write them.
_BACKSLASH_ESCAPE = r"""(?x)\\(?:
      (?P<letter>[abfnrtv\\/'"])
    | x(?P<byte>[0-9A-Fa-f]{2})
    | u(?P<high>[Dd][89ABab][0-9A-Fa-f]{2})\\u(?P<low>[Dd][C-Fc-f][0-9A-Fa-f]{2})
    | u(?P<point>[0-9A-Fa-f]{4})
    | U(?P<long>00(?:0[0-9A-Fa-f]|10)[0-9A-Fa-f]{4})
)"""
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

_PERCENT = _Layer("%", _undo_percent, "%[0-9A-Fa-f]{2}", lambda _: "?")
_BACKSLASH = _Layer("\\", _undo_backslash, _BACKSLASH_ESCAPE, _read_backslash)
# In this order: readings through a layer of backslashes come first, and are read further.
_ESCAPES = (_BACKSLASH, _PERCENT)
# Not an escape: characters beyond ASCII are read as the bytes of their UTF-8.
_UTF_8 = _Layer("", _to_bytes, r"[^\x00-\x7f]", lambda match: _to_bytes(match[0]))
_NO_BYTE = r"[^\x00-\xff]"
_LATIN_1 = _Layer("", lambda text: re.sub(_NO_BYTE, "?", text), _NO_BYTE, lambda _: "?")


def _list_readings(text: str) -> list[Reading]:
    """List the text with no layer of escapes undone, with one, and with two; each reading once.

    Each character of a reading is one byte. A reading comes with the layers that were undone.
    """
    if text.isascii():
        return _undo_layers([(text, ())])
    return _undo_layers([(layer.undo(text), (layer,)) for layer in (_LATIN_1, _UTF_8)])


def _undo_layers(readings: list[Reading]) -> list[Reading]:
    """Add the readings with one more layer of escapes undone, and with two more."""
    outermost = len(readings[0][1])
    seen = {reading for reading, _ in readings}
    # The list grows in this loop.
    for reading, layers in readings:
        is_in_backslashes = len(layers) > outermost and layers[outermost] is _BACKSLASH
        if len(layers) < outermost + LAYERS + is_in_backslashes:
            for layer in _ESCAPES:
                if layer.sign in reading and (undone := layer.undo(reading)) not in seen:
                    seen.add(undone)
                    readings.append((undone, (*layers, layer)))
    return readings


# Places.


class _Escapes(NamedTuple):
    """The places of a layer's escapes in a text, and of their meanings in its reading."""

    written: list[Span]
    begins: list[int]
    ends: list[int]

    def find_written(self, place: int) -> Span:
        """Find the text that one character of the reading was written as."""
        number = bisect_right(self.begins, place) - 1
        if number < 0:
            return place, place + 1
        if place < self.ends[number]:
            return self.written[number]
        begin = self.written[number][1] + place - self.ends[number]
        return begin, begin + 1


def _find_escapes(text: str, layer: _Layer) -> _Escapes:
    escapes = _Escapes([], [], [])
    shift = 0
    for match in re.finditer(layer.escape, text):
        begin = match.start() - shift
        end = begin + len(layer.read(match))
        shift = match.end() - end
        escapes.written.append(match.span())
        escapes.begins.append(begin)
        escapes.ends.append(end)
    return escapes


def _follow_back(text: str, layers: Layers, spans: Iterable[Span]) -> list[Span]:
    """Return the places in the text of the given places in a reading of it."""
    found = list(spans)
    if not found:
        return []
    undone = []
    for layer in layers:
        undone.append(_find_escapes(text, layer))
        text = layer.undo(text)
    for escapes in reversed(undone):
        found = [
            (escapes.find_written(begin)[0], escapes.find_written(end - 1)[1])
            for begin, end in found
        ]
    return found


def _replace(text: str, spans: Iterable[Span]) -> str:
    """Replace each key by HIDDEN; overlapping places are replaced once."""
    parts: list[str] = []
    done = 0
    for begin, end in sorted(spans):
        if begin >= done:
            parts += [text[done:begin], HIDDEN]
        done = max(done, end)
    return "".join([*parts, text[done:]]) if parts else text


NO_KEYS = KeyMask(())


# Python's own tracebacks.


def hide_in_tracebacks(hide: Callable[[str], str]) -> None:
    """Make Python write uncaught exceptions, in any thread, without keys."""

    def write(error: BaseException | None, before: str = "") -> None:
        told = "" if error is None else "".join(traceback.format_exception(error))
        sys.stderr.write(hide(before + told))

    def write_unraisable(broken: "sys.UnraisableHookArgs") -> None:
        before = broken.err_msg or "Exception ignored in"
        write(broken.exc_value, f"{before}: {broken.object!r}\n")

    sys.excepthook = lambda kind, error, trace: write(error)
    threading.excepthook = lambda broken: write(
        broken.exc_value, f"Exception in thread {broken.thread and broken.thread.name}:\n"
    )
    sys.unraisablehook = write_unraisable
