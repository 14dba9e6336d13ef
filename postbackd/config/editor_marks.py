"""Names the marks that editors, word processors and chats leave in the text of a config file."""

import codecs
import re
import unicodedata
from collections.abc import Iterator

# The longer mark first: UTF-32's starts with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
# First bytes of other programs' files. Source: the formats' own descriptions.
_FORMATS = (
    (b"PK\x03\x04", "a document of a word processor, or an archive"),
    (b"\xd0\xcf\x11\xe0", "a document of an old word processor"),
    (b"{\\rtf", "rich text (RTF)"),
    (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "packed with gzip"),
    (b"<!DOCTYPE html", "a web page"),
    (b"<html", "a web page"),
)

_QUOTES = "“”„‟«»‘’‚‛‹›″′´"
_BLANKS = "\u00a0\u2000-\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_DASHES = "\u2010-\u2015\u2212"
_FULL_WIDTH = "\uff01-\uff5e"
_KINDS = (
    (_QUOTES, 'typographic quotes, as word processors write them: write straight ones, "'),
    (_BLANKS, "blanks that are none to PHP: write plain ones"),
    (_INVISIBLE, "characters that nobody sees: delete the line and write it by hand"),
    (_FULL_WIDTH, "full-width characters: write plain ones"),
)
# Small letters of Cyrillic and Greek that look like Latin ones: a keyboard was in another layout.
_FOREIGN, _LATIN = "асеорхуѕіјһкмт\u03bf\u03b1\u03c1\u03bd", "aceopxysijhkmtoapv"
_NAME_KINDS = (
    (_DASHES, "a dash that an editor made longer: write '-' or '_'"),
    (_FOREIGN, "letters that only look like Latin ones: write the name anew"),
)
_ENTITY = re.compile(r"&(?:quot|apos|amp|lt|gt|nbsp|#[0-9]+|#x[0-9A-Fa-f]+)(?:;|$)")
_WRAPPED = re.compile(rf"^[{_QUOTES}]|[{_QUOTES}]$|^`.*`$|^&(?:quot|apos|#34|#39)\b")
_ODD = re.compile(f"[{_BLANKS}{_INVISIBLE}]")
_ALL_DASHES = re.compile(f"[{_DASHES}]")


def name_encoding(content: bytes) -> str | None:
    """Name the encoding of a file that is not UTF-8 text; None if it may be UTF-8."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding
    # Without a byte order mark: each ASCII letter has one zero byte, or three.
    start = content[:64]
    zeros = start.count(0)
    if zeros * 4 >= len(start) * 3 - 4 and zeros > len(start) // 2 and len(start) > 4:
        return "UTF-32"
    places = {at % 2 for at, byte in enumerate(start) if byte == 0}
    if len(places) == 1 and zeros * 3 >= len(start):
        return "UTF-16"
    return None


def name_format(content: bytes) -> str | None:
    """Name the program that a file belongs to; None if it may be text."""
    head = content[:64].lstrip().lower()
    return next((name for begin, name in _FORMATS if head.startswith(begin.lower())), None)


def plain_name(name: str) -> str:
    """Return a key's name as it was before an editor changed its characters."""
    name = _ODD.sub("", _ALL_DASHES.sub("-", unicodedata.normalize("NFKC", name)))
    name = name.strip(f" {_QUOTES}\"'`").lower().replace("-", "_")
    written = name.translate(str.maketrans(_FOREIGN, _LATIN))
    return written if written.isascii() else name


def find_marks(line: str) -> str:
    """Name what an editor did to a line of the file; empty if nothing is seen."""
    # A word that is foreign as a whole is no slip.
    head = line.partition("=")[0]
    head = head if plain_name(head).isascii() else ""
    kinds = (*((line, *kind) for kind in _KINDS), *((head, *kind) for kind in _NAME_KINDS))
    said = [
        f"{_list_signs(found)}, {sentence}"
        for text, signs, sentence in kinds
        if (found := re.findall(f"[{signs}]", text.lower()))
    ]
    if _ENTITY.search(line):
        said.append("HTML's escapes, such as '&quot;': write the signs themselves")
    return f"It holds {'; '.join(said)}." if said else ""


def find_marks_of_value(value: str) -> str:
    """Name what an editor put around or into a value; empty if it may be meant."""
    if _WRAPPED.search(value):
        signs = sorted({value[0], value[-1]} & set(f"{_QUOTES}`"))
        shown = f" ({' '.join(signs)})" if signs else ""
        return f"has typographic quotes{shown} or HTML's around it; write straight ones, \""
    if found := _ODD.findall(value):
        return (
            f"holds {_list_signs(found)}, which nobody sees; delete the value and write it by hand"
        )
    return ""


def _list_signs(signs: list[str]) -> str:
    return ", ".join(_describe_signs(dict.fromkeys(signs)))


def _describe_signs(signs: dict[str, None]) -> Iterator[str]:
    for sign in list(signs)[:4]:
        shown = f"{sign} " if sign.isprintable() and not sign.isspace() else ""
        yield f"{shown}(U+{ord(sign):04X})" if shown else f"U+{ord(sign):04X}"
