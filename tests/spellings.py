"""The ways in which a key comes to stand in a text, and a look through all of them."""

import json
import re
from collections.abc import Callable
from urllib.parse import quote, unquote_to_bytes


def escape_every_letter(raw: bytes) -> str:
    """Escape all, in digits of both cases."""
    return "".join(f"%{byte:02{'xX'[place % 2]}}" for place, byte in enumerate(raw))


def _escape_first(key: str) -> str:
    # What the key itself has of escapes must not be read as such.
    return escape_every_letter(key[0].encode()) + key[1:].replace("%", "%25")


SPELLINGS: dict[str, Callable[[bytes], str]] = {
    "in clear": lambda key: key.decode(),
    "byte by byte": lambda key: key.decode("latin-1"),
    "in other letters": lambda key: key.decode().replace("e", "E").replace("k", "K"),
    "with a plus": lambda key: key.decode().replace(" ", "+"),
    "escaped once": lambda key: quote(key, safe=""),
    "escaped twice": lambda key: quote(quote(key, safe=""), safe=""),
    "every letter escaped": escape_every_letter,
    "every letter escaped twice": lambda key: escape_every_letter(
        escape_every_letter(key).encode()
    ),
    "a letter escaped": lambda key: _escape_first(key.decode()),
    "a letter escaped twice": lambda key: _escape_first(key.decode()).replace("%", "%25"),
    "as repr shows text": lambda key: repr(key.decode())[1:-1],
    "as repr shows bytes": lambda key: repr(key)[2:-1],
    "as repr shows a repr": lambda key: repr(repr(key))[3:-2],
    "as JSON": lambda key: json.dumps(key.decode())[1:-1],
    "as JSON of PHP": lambda key: json.dumps(key.decode())[1:-1].replace("/", r"\/"),
    "as JSON, every letter": lambda key: "".join(rf"\u{ord(c):04X}" for c in key.decode()),
    "as JSON in an address": lambda key: quote(json.dumps(key.decode())[1:-1], safe=""),
    "an address in JSON": lambda key: json.dumps(quote(key, safe=""))[1:-1].replace("%", r"\u0025"),
    "as nginx logs bytes": lambda key: "".join(rf"\x{byte:02X}" for byte in key),
}


def spell_for_transport(key: bytes) -> list[str]:
    """Spell a key in every way that stays text and can bear one more escape, as a log adds it."""
    others = ("byte by byte", "as repr shows a repr")
    return list(dict.fromkeys(SPELLINGS[way](key) for way in SPELLINGS if way not in others))


def find_spelt(key: bytes, text: str) -> list[str]:
    """Find what of a text gives the key away, in three layers of escapes and letters of any case.

    By other means than the program has: nothing is looked up, all is undone and searched.
    """
    found = []
    layer = {text, text.encode("utf-8", "surrogatepass").decode("latin-1")}
    for _ in range(4):
        for read in layer:
            folded = read.lower().replace("+", " ")
            for form in (key.decode(), key.decode("latin-1")):
                place = folded.find(form.lower().replace("+", " "))
                if place >= 0:
                    found.append(read[max(0, place - 40) : place + len(form) + 40])
        layer = {undo(read) for read in layer for undo in (_undo_percent, _undo_backslash)}
    return found


def _undo_percent(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1", "replace")).decode("latin-1")


def _undo_backslash(text: str) -> str:
    text = re.sub(r"\\x([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), text)
    text = re.sub(
        r"\\u([0-9A-Fa-f]{4})",
        lambda found: chr(int(found[1], 16)).encode("utf-8", "replace").decode("latin-1"),
        text,
    )
    return re.sub(r"\\([\\/'\"])", r"\1", text)
