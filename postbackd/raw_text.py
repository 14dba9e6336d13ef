"""Reads text from any bytes: as UTF-8, else in a fallback encoding, else byte by byte.

A byte that is no UTF-8 is stored as a character of a private plane of Unicode: SQLite and
PostgreSQL store it, two words never become equal, and the bytes can be read back. It is shown as
U+FFFD. If a sender sends such a character, it is read as its four bytes.
"""

import codecs
import re

_FIRST = 0x10FE80
_LAST = 0x10FEFF
_TO_STAND_INS = {0xDC80 + place: _FIRST + place for place in range(_LAST - _FIRST + 1)}
_FROM_STAND_INS = {stand_in: surrogate for surrogate, stand_in in _TO_STAND_INS.items()}
STAND_INS = f"{chr(_FIRST)}-{chr(_LAST)}"
_STAND_IN = re.compile(f"[{STAND_INS}]")
# How `repr` writes such a character, in a sentence that quotes a value; JSON doubles the backslash.
_WRITTEN_STAND_IN = re.compile(r"\\{1,2}U0010fe[89a-f][0-9a-f]")

# ISO 8859-6 has 83 characters beyond ASCII, fewer than any other set of one byte a character.
_FEWEST_BEYOND_ASCII = 80


def read_text(raw: bytes, fallback: str = "") -> str:
    """Read bytes as UTF-8, else in the fallback (empty: none), else byte by byte. Never raises."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return _read_otherwise(raw, fallback)
    return _STAND_IN.sub(_read_bytes, text) if b"\xf4\x8f" in raw else text


def _read_otherwise(raw: bytes, fallback: str) -> str:
    if fallback:
        try:
            return raw.decode(fallback)
        except UnicodeDecodeError:
            # A byte without a meaning there, such as 0x98 of windows-1251.
            pass
    text = _STAND_IN.sub(_read_bytes, raw.decode("utf-8", "surrogateescape"))
    return text.translate(_TO_STAND_INS)


def _read_bytes(found: re.Match[str]) -> str:
    return "".join(chr(_FIRST - 0x80 + byte) for byte in found[0].encode())


def has_stand_ins(text: str) -> bool:
    """Return whether a text holds bytes that are no UTF-8."""
    return not text.isascii() and _STAND_IN.search(text) is not None


def give_bytes(text: str) -> bytes:
    """Return the bytes that a text without fallback was read from."""
    return text.translate(_FROM_STAND_INS).encode("utf-8", "surrogateescape")


def show_text(text: str) -> str:
    """Show bytes that are no UTF-8 as U+FFFD, in a value or in a sentence that quotes one."""
    if _STAND_IN.search(text):
        text = give_bytes(text).decode("utf-8", "replace")
    return _WRITTEN_STAND_IN.sub("\ufffd", text) if "U0010fe" in text else text


def is_single_byte(encoding: str) -> bool:
    """Return whether an encoding is ASCII, and beyond it one byte a character.

    With more bytes, a cut or broken value could swallow the characters after it.
    """
    try:
        codecs.lookup(encoding)
        # Each by itself; the last is the form of Python's own escapes.
        for text in (*map(chr, range(128)), r"\u0041"):
            if text.encode().decode(encoding) != text:
                return False
        pairs = [
            bytes((high, low)).decode(encoding, "replace")
            for high in range(128, 256)
            for low in (0x41, 0xA1)
        ]
    except (LookupError, ValueError):
        return False
    known = sum(pair[:1] != "\ufffd" for pair in pairs[::2])
    return all(map(_has_two, pairs)) and known >= _FEWEST_BEYOND_ASCII


def _has_two(pair: str) -> bool:
    return len(pair) == 2
