"""Finds the address of a postback in pasted text: links of chats, tags, sentences, paths.

The text is Unicode; bytes that are no UTF-8 are surrogates (`surrogateescape`). A found address is
returned as the server gets it: each character one byte.
"""

import html
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlsplit

from postbackd.intake.query import quote_value


class Pasted(NamedTuple):
    """A request: `path` as the WSGI callable gets it, decoded once; None for a query alone.

    `notes` are sentences about how the request was found.
    """

    query: str
    path: bytes | None = None
    method: str = "GET"
    body: bytes = b""
    content_type: str = ""
    notes: tuple[str, ...] = ()

    def note(self, *sentences: str) -> "Pasted":
        """Add sentences about how the request was found."""
        return self._replace(notes=(*self.notes, *sentences))


class UnclearError(Exception):
    """The text has no request, or several; the sentence says what it is instead."""


# Invisible characters that chats and word processors add; no address has them.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_BLANKS = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")

_QUOTES = {"“": '"', "”": '"', "„": '"', "‟": '"', "«": '"', "»": '"', "″": '"'}
_QUOTES |= {"‘": "'", "’": "'", "‚": "'", "‛": "'", "‹": "'", "›": "'", "′": "'"}
_STRAIGHT = str.maketrans(_QUOTES)
_OPENING = "\"'`<(["
_CLOSING = "\"'`>)]"

_ADDRESS = r"https?://"
# An address without brackets or quotes around it, which would show where it ends.
_BARE = re.compile(rf"{_ADDRESS}[^\s\"<>`]+", re.IGNORECASE)
_ENCODED = re.compile(r"https?%(?:25)*3A%(?:25)*2F%(?:25)*2F[^\s\"'<>`]+", re.IGNORECASE)
_TAG = re.compile(r"<[A-Za-z][^<]*?=[^<]*")
_ATTRIBUTE = re.compile(
    r"\b(?:src|href|action|data|content|url|srcset|data-[a-z]+)\s*=\s*"
    r"(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_IN_BRACKETS = r"(?:[^()\s]|\([^()\s]*\))+"

# How chats, forums, wikis and sheets write a link with its text; the first pattern that matches
# counts.
_LINKS = (
    re.compile(rf"<({_ADDRESS}[^<>|\s]+)(?:\|[^<>]*)?>", re.IGNORECASE),  # Slack, mail
    re.compile(rf"\]\(\s*<?({_ADDRESS}{_IN_BRACKETS})", re.IGNORECASE),  # Markdown
    re.compile(rf"\[[^\]|\[]*\|({_ADDRESS}[^\]\s|]+)", re.IGNORECASE),  # Jira
    re.compile(rf"\[(?:url|img|link)\]\s*({_ADDRESS}.{{1,2000}}?)\s*\[/", re.IGNORECASE),  # BBCode
    re.compile(rf"\[(?:url|link)=[\"']?({_ADDRESS}[^\]\"']+)", re.IGNORECASE),
    re.compile(rf"=\s*(?:HYPERLINK|IMAGE|IMPORTDATA)\(\s*\"({_ADDRESS}[^\"]+)", re.IGNORECASE),
    re.compile(rf"^\s*\[({_ADDRESS}[^\s\]]+) [^\]]*\]", re.IGNORECASE),  # MediaWiki
)

_SENTENCE_SIGNS = frozenset(".,;:!?…'*|)]}")
# More signs than any sentence ends with; each costs a search of the whole address.
_SIGNS_AT_MOST = 32
_MACRO_CHARACTERS = 100
_SHOWN_SIGNS = 3
_MACRO_END = re.compile(r"(?:!+[\w.\-]+!+|:[\w.\-]+:|\{[^{}]*\}+|\[[^\[\]]*\]+|\([^()]*\))$")
_POSTBACK_PATH = re.compile(r"/postback(?:\.gif)?/?(?:[?&#]|$)", re.IGNORECASE)
_HOST = re.compile(r"(?:localhost|[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)+|\[[0-9a-f:]+\])(?::[0-9]+)?")


def as_server(text: str) -> str:
    """Return text as the server gets it: UTF-8, each byte a character."""
    return _LONE_SURROGATE.sub("�", text).encode("utf-8", "surrogateescape").decode("latin-1")


def clean(text: str) -> tuple[str, tuple[str, ...]]:
    """Remove invisible characters; returns the text, and notes about it."""
    seen, count = _INVISIBLE.subn("", text)
    seen = _BLANKS.sub(" ", seen).strip()
    if not count:
        return seen, ()
    return seen, (
        f"{count} invisible characters (such as zero-width spaces) are left out: chats and word"
        " processors add them to copied text",
    )


def straighten(text: str) -> str:
    """Replace typographic quotes by straight ones, as commands and tags need them."""
    return text.translate(_STRAIGHT)


def unescape(text: str) -> str:
    """Replace HTML's entities that end with ';': browsers do not replace `&currency=` either."""
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text)


def names_postback(address: str) -> bool:
    """Return whether an address is one of a postback."""
    return _POSTBACK_PATH.search(address) is not None


def find_address(text: str) -> Pasted | None:
    """Find the one address in a text; None where it has none, UnclearError where it has several."""
    if _begins_with_query(text):
        return None
    text = _undo_spelling(text)
    for find in (_find_in_tags, _find_in_links, _find_bare, _find_encoded):
        if found := list(dict.fromkeys(find(text))):
            return _read_address(_choose(found), text)
    return None


def _undo_spelling(text: str) -> str:
    """Undo changes that pages, programs, mail filters and typesetters make to an address."""
    if re.match(r"\s*&lt;[a-z]", text, re.IGNORECASE):
        text = unescape(text)
    for wrong, right in _SPELLINGS:
        text = wrong.sub(right, text)
    return text


_SPELLINGS = (
    # A string in the source of a program, and in JSON.
    (re.compile(r"\\/(?=[^\s])"), "/"),
    (re.compile(r"\\u0026", re.IGNORECASE), "&"),
    # zsh escapes these characters of an address that is pasted into it.
    (re.compile(r"\\(?=[?&=%#])"), ""),
    # People write suspicious links so.
    (re.compile(r"\bhxxp(?=s?\[?:)", re.IGNORECASE), "http"),
    (re.compile(r"\[:\](?=//)"), ":"),
    (re.compile(r"\[\.\](?=\w)"), "."),
    # Blanks added for easier reading: `…?subid=C1 &status=sale & payout=5`.
    (re.compile(r"(?<=\w)[ \t]+(?=[&?][ \t]*\w[\w.\[\]\-]*=)"), ""),
    (re.compile(r"(?<=[&?])[ \t]+(?=\w[\w.\[\]\-]*=)"), ""),
)


def _begins_with_query(text: str) -> bool:
    """Return whether an address is only a part of a query: `subid=c1&ref=http://…`."""
    head, scheme, _ = text.partition("://")
    return (
        bool(scheme) and re.fullmatch(r"\??[^\s\"'<>(\[|?]*[=&][^\s\"'<>(\[|]*", head) is not None
    )


def _find_in_tags(text: str) -> Iterator[str]:
    for tag in _TAG.findall(straighten(text)):
        for values in _ATTRIBUTE.findall(tag):
            value = unescape("".join(values)).strip()
            if "://" in value or value.startswith("/"):
                yield value


def _find_in_links(text: str) -> Iterator[str]:
    for link in _LINKS:
        if found := link.findall(text):
            yield from found
            return


def _find_bare(text: str) -> Iterator[str]:
    for found in _BARE.finditer(text):
        before = straighten(text[found.start() - 1 : found.start()])
        address = found[0]
        if before and before in _OPENING:
            closing = _CLOSING[_OPENING.index(before)]
            address = _cut_at_quote(address, closing)
        yield _trim_sentence(address)


def _cut_at_quote(address: str, closing: str) -> str:
    if closing in "\"'`":
        return address[: (straighten(address) + closing).index(closing)]
    return address


def _find_encoded(text: str) -> Iterator[str]:
    for found in _ENCODED.findall(text):
        yield decode_whole(_trim_sentence(found))


def decode_whole(text: str) -> str:
    """Decode text that was percent-encoded as a whole, perhaps more than once."""
    for _ in range(3):
        text = unquote(text, errors="surrogateescape")
        if "=" in text or "://" in text:
            break
    return text


def _trim_sentence(address: str) -> str:
    """Remove the signs that belong to the sentence around an address."""
    for _ in range(_SIGNS_AT_MOST):
        if not _ends_sentence(address):
            break
        address = address[:-1]
    return address


def _ends_sentence(address: str) -> bool:
    last = straighten(address[-1:])
    if last == '"':
        return True
    if last not in _SENTENCE_SIGNS or _MACRO_END.search(address[-_MACRO_CHARACTERS:]):
        return False
    if last == "?":
        # The only '?': the text behind it was not pasted.
        return "?" in address[:-1]
    opening = {")": "(", "]": "[", "}": "{"}.get(last)
    return opening is None or address.count(opening) < address.count(last)


def _choose(found: list[str]) -> str:
    likely = [address for address in found if names_postback(address)] or found
    if len(likely) > 1:
        raise UnclearError(f"the text has {len(likely)} addresses: paste one postback")
    return likely[0]


def _read_address(address: str, text: str) -> Pasted:
    inner = _find_inner(address)
    pasted = read_target(as_server(inner or address))
    if inner:
        host = urlsplit(address).netloc
        return pasted.note(
            f"the address within a link of {quote_value(host)}, which leads there, is read"
        )
    if address in {text, text.strip("".join(_QUOTES) + _OPENING + _CLOSING)}:
        return pasted
    return pasted.note(_describe_surroundings(address, text))


def _describe_surroundings(address: str, text: str) -> str:
    rest = text.removeprefix(address).strip()
    # A longer text could contain a key.
    if text.startswith(address) and len(rest) <= _SHOWN_SIGNS:
        return f"the text behind the address is left out: {quote_value(rest)}"
    if "://" not in text:
        return "the address was percent-encoded as a whole, and is decoded once more"
    return "the address is read, and the text around it left out"


def _find_inner(address: str) -> str | None:
    """Find the address to which the link of a chat or a mail program leads."""
    if names_postback(address.partition("?")[0]):
        return None
    for _, value in parse_qsl(address.partition("?")[2]):
        if re.match(_ADDRESS, value, re.IGNORECASE) and names_postback(value):
            return value
    return None


def read_target(text: str) -> Pasted:
    """Read an address, a path or a query; each character is one byte. Never raises."""
    # Not within a value: `ref=http://…` is a part of a query.
    head, scheme, rest = text.partition("://")
    if scheme and not re.search(r"[=&?]", head):
        address, _, query = rest.partition("?")
        _, _, path = address.partition("/")
        return Pasted(query, _decode(f"/{path}"))
    text = _drop_host(text)
    head, mark, query = text.partition("?")
    if text.startswith("/") or (mark and not re.search(r"[=&]", head)):
        return Pasted(query, _decode(head if head.startswith("/") else f"/{head}"))
    if not mark and _is_path(text):
        return Pasted("", _decode(f"/{text}"))
    return Pasted(text)


def _is_path(text: str) -> bool:
    """Return whether a text is `KEY/postback`, perhaps with a query whose '?' is missing."""
    if not re.search(r"[=&]", text):
        return "/" in text
    return names_postback(text) and not re.search(r"[=&]", text.partition("/")[0])


def _drop_host(text: str) -> str:
    """Remove a host without `https://` before a key and `postback`."""
    host, _, rest = text.removeprefix("//").partition("/")
    if _HOST.fullmatch(host) and (text.startswith("//") or re.match(r"[^?&=]+/[^?&=]", rest)):
        return f"/{rest}"
    return text


def _decode(path: str) -> bytes:
    return unquote_to_bytes(path.encode("latin-1"))
