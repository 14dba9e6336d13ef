"""ConfigReader: reads the entries of one config file, and collects refusals and warnings."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from postbackd.config.editor_marks import (
    find_marks,
    find_marks_of_value,
    name_encoding,
    name_format,
    plain_name,
)
from postbackd.config.php_ini import Entry, Ini, IniError, Note, parse_ini
from postbackd.masking import KeyMask

KNOWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "system": (
        "postback_key",
        "postback_key_old",
        "pixel_key",
        "click_key",
        "currency",
        "public_url",
        "trusted_proxies",
        "timezone",
    ),
    "db": ("path",),
    "postback": (
        "unknown_subid",
        "park_days",
        "repeats",
        "rebills",
        "unreject",
        "decimal_comma",
        "fallback_encoding",
    ),
    "rates": (
        "source",
        "ecb_url",
        "cbr_url",
        "er-api_url",
        "er_api_url",
        "openexchangerates_url",
        "app_id",
        "max_change",
    ),
    "log": ("postbacks", "anonymize_ip"),
}

# Keys of the original's config files, for people who bring theirs along: a warning about each of
# these would hide the one that matters.
KEITARO_KEYS: Mapping[str, frozenset[str]] = {
    "system": frozenset(
        {
            "salt",
            "lang",
            "language",
            "dp",
            "draft_storage",
            "draft_data_storage",
            "redis_uri",
            "clickhouse_uri",
            "clickhouse_host",
            "clickhouse_port",
            "clickhouse_name",
            "clickhouse_user",
            "clickhouse_password",
            "debug",
            "log_level",
            "cache_storage",
        }
    ),
    "db": frozenset(
        {
            "host",
            "name",
            "user",
            "username",
            "password",
            "prefix",
            "port",
            "server",
            "engine",
            "driver",
            "charset",
            "socket",
        }
    ),
}
KEITARO_SECTIONS = frozenset({"redis", "clickhouse", "ch", "olap", "mysql", "memcached", "cache"})

# Keys for which a bare no, none or yes means what it says; PHP's reading does no harm.
_TAKES_WORDS = frozenset(
    {
        "decimal_comma",
        "fallback_encoding",
        "rebills",
        "unreject",
        "source",
        "trusted_proxies",
        "pixel_key",
        "click_key",
        "postback_key_old",
        "postbacks",
        "anonymize_ip",
    }
)
_KEYS_FOUND_ANYWHERE = frozenset({"postback_key", "postback_key_old"})

# Values that no sentence about the file may repeat, wherever they are in the file; the passwords of
# the original's databases too. Sources of rates have keys in their addresses.
_HIDDEN_ENTRIES = (
    *("postback_key", "postback_key_old", "pixel_key", "click_key", "app_id"),
    *("salt", "password", "clickhouse_password"),
)

# Characters that a URL's path cannot hold as they are (RFC 3986, 2.2 and 3.3), or that have another
# meaning there.
_BREAKS_A_URL = (
    (rb"/", "a slash"),
    (rb"[?#]", "'?' or '#'"),
    (rb"%", "'%'"),
    (rb"\s", "a blank"),
    (rb"[\x00-\x08\x0e-\x1f\x7f]", "a control character"),
    (rb"[\x80-\xff]", "a letter beyond ASCII"),
    (rb"[\"<>\\^`{|}]", "a quote, bracket or other sign that is escaped in URLs"),
    (rb"^\.\.?$", "nothing but a dot or two, which mean a directory"),
)


class ConfigError(Exception):
    """A sentence that names file, line, value and what to do; it never holds a key."""


def decode_text(path: Path, content: bytes) -> str:
    """Decode a file's bytes; ConfigError if they are in another encoding or format."""
    if encoding := name_encoding(content):
        raise ConfigError(f"{path}: the file is {encoding}: save it as UTF-8.")
    if other := name_format(content):
        raise ConfigError(f"{path}: the file is {other}: save it as plain text, in UTF-8.")
    return content.decode("utf-8", "surrogateescape")


def parse_text(path: Path, text: str) -> Ini:
    """Read INI text; ConfigError with the line that PHP refuses."""
    try:
        return parse_ini(text, os.environ)
    except IniError as refusal:
        lines = split_lines(text)
        marks = find_marks(lines[refusal.line - 1]) if refusal.line <= len(lines) else ""
        told = " ".join(filter(None, (refusal.sentence, marks)))
        raise ConfigError(f"{path}, line {refusal.line}: {told}") from None


def split_lines(text: str) -> list[str]:
    """Split a file's text at the line ends that PHP knows."""
    return re.split(r"\r\n|\r|\n", text)


class ConfigReader:
    """The entries of one file, read one by one into settings, and the warnings about them."""

    def __init__(self, path: Path, ini: Ini, text: str = "") -> None:
        """Use a parsed file; `text` is searched for keys that PHP did not read."""
        self.path = path
        self.ini = ini
        self.text_of_file = text
        self._warnings = [(n.line, n.sentence) for n in ini.warnings if _matters(n)]
        secrets = (e.value for e in ini.entries if plain_name(e.key) in _HIDDEN_ENTRIES)
        self._mask = KeyMask(_split_secrets(secrets))

    def hide(self, sentence: str) -> str:
        """Mask the file's keys in a sentence: a key may be on the wrong line."""
        return self._mask.hide(sentence)

    def refuse(self, entry: Entry, sentence: str) -> NoReturn:
        """Raise ConfigError about an entry."""
        if marks := find_marks_of_value(entry.value):
            sentence = f"{sentence} It {marks}."
        told = self.hide(f"{_place(entry)} {sentence}")
        raise ConfigError(f"{self.path}, line {entry.line}: {told}")

    def warn(self, line: int, sentence: str) -> None:
        """Add a warning about a line."""
        self._warnings.append((line, sentence))

    def all_warnings(self) -> tuple[str, ...]:
        """Return the warnings in the order of their lines, each once."""
        ordered = sorted(self._warnings, key=lambda warning: warning[0])
        told = (f"line {line}: {self.hide(sentence)}" for line, sentence in ordered)
        return tuple(dict.fromkeys(told))

    def entry(self, section: str | None, key: str) -> Entry | None:
        """Find an entry, which must be a plain value."""
        entry = self.ini.entry(section, key)
        if entry and entry.in_list:
            self.refuse(entry, "is written as a list; write one value, without brackets.")
        if entry and (marks := find_marks_of_value(entry.value)):
            # Not refused: such a key works in its escaped form, and may be in use.
            self.warn(entry.line, f"{_place(entry)} {marks}.")
        return entry

    def text(self, section: str, key: str, default: str) -> str:
        """Return a trimmed value; a bare word such as no is refused, PHP would read it as empty."""
        entry = self.entry(section, key)
        if entry and entry.word:
            self.refuse(
                entry,
                f"is the bare word {entry.word!r}, which PHP reads as"
                f" {entry.value!r}; write a value in double quotes, or leave the line out.",
            )
        return (entry.value.strip() if entry else "") or default

    def optional(self, section: str, key: str) -> str:
        """Read a text that may be empty."""
        entry = self.entry(section, key)
        return entry.value.strip() if entry else ""

    def choice(self, section: str, key: str, ways: tuple[str, ...]) -> str:
        """Read one of some words; the first of them is the default."""
        value = self.text(section, key, ways[0])
        if value.lower() not in ways:
            self.refuse_value(section, key, f"write {either(ways)}")
        return value.lower()

    def refuse_value(self, section: str, key: str, advice: str) -> NoReturn:
        """Raise ConfigError that quotes a value and says what to write instead."""
        entry = self.ini.entry(section, key)
        assert entry is not None  # a default is never refused
        self.refuse(entry, f"is {entry.word or entry.value!r}; {advice}.")

    def words(self, section: str, key: str, default: str) -> list[str] | None:
        """Return the parts of a comma list, lower case; None if the value is none."""
        entry = self.entry(section, key)
        value = (entry.word or entry.value if entry else "").strip().lower() or default
        if value == "none" or (entry and entry.word and not entry.value):
            return None
        return [part.strip() for part in value.split(",") if part.strip()]

    def secret(self, key: str) -> bytes:
        """Read an optional key of [system]."""
        entry = self.entry("system", key)
        if not entry or not entry.value:
            return b""
        return self.key_bytes(entry)

    def key_bytes(self, entry: Entry) -> bytes:
        """Return a key as the bytes that a request's path is compared with."""
        if entry.word and entry.key in _TAKES_WORDS:
            self.warn(entry.line, f'{_place(entry)} is a bare word that PHP reads as "1".')
        key = entry.value.encode("utf-8", "surrogateescape")
        self.warn_of_a_key(entry, key)
        return key

    def warn_of_a_key(self, entry: Entry, key: bytes) -> None:
        """Warn of a key that no URL can carry as it is."""
        found = [name for signs, name in _BREAKS_A_URL if re.search(signs, key)]
        if found:
            self.warn(
                entry.line,
                f"{_place(entry)} breaks the Postback URL, which cannot carry it as it is: it holds"
                f" {', '.join(found)}; letters and digits are safe.",
            )


def _split_secrets(values: Iterable[str]) -> Iterator[bytes]:
    """Yield each value and each part of it: old keys are a comma list with a day after each."""
    for value in values:
        parts = (part.split() for part in value.split(","))
        for secret in (value, *(words[0] for words in parts if words)):
            yield secret.encode("utf-8", "surrogateescape")


def _matters(note: Note) -> bool:
    """Leave out notes about other programs' keys, and about words that mean what they say."""
    if note.key is None:
        return True
    ours = note.key in KNOWN_KEYS.get(note.section or "", ()) or note.key in _KEYS_FOUND_ANYWHERE
    return ours and not (note.kind == "word" and note.key in _TAKES_WORDS)


def _place(entry: Entry) -> str:
    return entry.key if entry.section is None else f"[{entry.section}] {entry.key}"


def either(ways: tuple[str, ...]) -> str:
    """Name the words of which one is to be written."""
    return ", ".join(repr(way) for way in ways[:-1]) + f" or {ways[-1]!r}"


def warn_of_strangers(reader: ConfigReader) -> None:
    """Warn of unknown keys and sections, with the nearest known name."""
    strange_sections = set()
    for entry in reader.ini.entries:
        if entry.key in _KEYS_FOUND_ANYWHERE or entry.section in KEITARO_SECTIONS:
            continue
        if entry.section is None or entry.section in KNOWN_KEYS:
            _warn_of_a_strange_key(reader, entry)
        elif entry.section not in strange_sections and not _holds_the_key(reader, entry.section):
            strange_sections.add(entry.section)
            reader.warn(entry.line, f"section [{entry.section}] is unknown{_section_hint(entry)}.")


def _holds_the_key(reader: ConfigReader, section: str) -> bool:
    return reader.ini.entry(section, "postback_key") is not None


def _section_hint(entry: Entry) -> str:
    near = difflib.get_close_matches((entry.section or "").strip().lower(), KNOWN_KEYS, 1)
    return f"; the nearest is [{near[0]}]" if near else ""


def _warn_of_a_strange_key(reader: ConfigReader, entry: Entry) -> None:
    section = entry.section or ""
    keitaros = KEITARO_KEYS.get(section) or frozenset().union(*KEITARO_KEYS.values())
    if entry.key in KNOWN_KEYS.get(section, ()) or entry.key in keitaros:
        return
    if entry.key.startswith("#"):
        reader.warn(entry.line, "'#' begins no comment, and PHP reads a key here; use ';'.")
    elif marks := find_marks(entry.key):
        reader.warn(entry.line, f"{_place(entry)} is unknown. {marks}")
    else:
        reader.warn(entry.line, f"{_place(entry)} is unknown{_key_hint(entry)}.")


# A tenth of the letters may differ, or a word be missing: `pixelkey`, `park_day`, `decimal`. A name
# that differs more is another program's key, not a typing error.
_NEARNESS = 0.7
_STEM_NEARNESS = 0.6


def _key_hint(entry: Entry) -> str:
    homes = {key: section for section, keys in KNOWN_KEYS.items() for key in keys}
    if entry.key in homes:
        return f"; it belongs below [{homes[entry.key]}]"
    plain = plain_name(entry.key)
    here = KNOWN_KEYS.get(entry.section or "", tuple(homes))
    near = difflib.get_close_matches(plain, here, 1, _NEARNESS)
    near = near or difflib.get_close_matches(plain, homes, 1, _NEARNESS)
    near = [key for key in near if not _shares_only_its_end(plain, key)]
    return f"; the nearest known key is [{homes[near[0]]}] {near[0]}" if near else " here"


def _shares_only_its_end(name: str, key: str) -> bool:
    """Tell whether two names are near for `_key` alone: `license_key` is no `click_key`."""
    stems = name.removesuffix("_key"), key.removesuffix("_key")
    if stems == (name, key) or name in stems or key in stems:
        return False
    return difflib.SequenceMatcher(None, *stems).ratio() < _STEM_NEARNESS
