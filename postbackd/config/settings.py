"""Reads config.ini.php into Settings, with defaults, checks and warnings."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from postbackd.config.editor_marks import find_marks, plain_name
from postbackd.config.entries import (
    ConfigError,
    ConfigReader,
    decode_text,
    either,
    parse_text,
    split_lines,
    warn_of_strangers,
)
from postbackd.config.php_ini import WORDS, Entry
from postbackd.masking import HIDDEN
from postbackd.raw_text import is_single_byte
from postbackd.zones import describe_strange_zone, read_zone

Proxies: TypeAlias = "tuple[IPv4Network | IPv6Network, ...]"

DEFAULT_CURRENCY = "USD"
DEFAULT_PUBLIC_URL = "http://127.0.0.1:8000"
DEFAULT_TRUSTED_PROXIES = "127.0.0.1, ::1"
DEFAULT_TIMEZONE = "UTC"
DEFAULT_DB_PATH = "postback.db"
DEFAULT_PARK_DAYS = 90
DEFAULT_RATE_SOURCES = "ecb,cbr"
# Above the wildest days of freely traded currencies (a third), far below a lost decimal point;
# docs/rates.md has the cases.
DEFAULT_MAX_CHANGE = Decimal("1.5")

KNOWN_RATE_SOURCES = ("ecb", "cbr", "er-api", "openexchangerates")
UNKNOWN_SUBID_WAYS = ("park", "accept")
REPEATS_WAYS = ("ignore", "update")

# A hundred years: a larger number is a typing error, and dates must stay within the calendar.
MAX_PARK_DAYS = 36500

# A real file has a few kilobytes. The limit keeps a path such as /dev/zero from filling memory.
MAX_FILE_BYTES = 1024 * 1024

_GUARD = re.compile(r"\ufeff?[ \t]*;?[ \t]*<\?php\b")
_OLD_KEY = re.compile(r"(\S+)(?:\s+until\s+(\S+))?")
# Names of fields in a source's address that hold a key, such as app_id, access_key, token.
_NAMES_OF_KEYS = "(?i)key|token|secret|pass|auth|app_?id"
# Only text that looks like a date is quoted in an error: any other could be a key.
_LIKE_A_DATE = re.compile(r"[0-9]{1,4}[-./][0-9]{1,2}[-./][0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class OldKey:
    """A key that networks may still use, through a last day or for good."""

    key: bytes = field(repr=False)
    until: date | None  # that day included, UTC

    def is_good_on(self, today: date) -> bool:
        """Return whether the key is accepted on that UTC day."""
        return self.until is None or today <= self.until


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of config.ini.php, defaults filled in; its repr holds no key."""

    path: Path
    postback_key: bytes = field(repr=False)
    old_keys: tuple[OldKey, ...]
    pixel_key: bytes = field(repr=False)
    click_key: bytes = field(repr=False)
    currency: str
    public_url: str
    public_url_is_set: bool
    trusted_proxies: Proxies
    timezone: str  # as it is written, even where it is none
    db_path: Path
    unknown_subid: str
    park_days: int
    repeats: str
    rebills: bool
    unreject: bool
    decimal_comma: bool
    fallback_encoding: str
    rate_sources: tuple[str, ...]
    rate_urls: Mapping[str, str] = field(repr=False, hash=False)
    app_id: str = field(repr=False)
    max_change: Decimal
    logs_postbacks: bool
    anonymize_ip: bool
    warnings: tuple[str, ...]

    def postback_keys(self, today: date) -> tuple[bytes, ...]:
        """Return the present key, then the old ones still good on that UTC day."""
        return (self.postback_key, *(old.key for old in self.old_keys if old.is_good_on(today)))

    def secrets(self) -> tuple[bytes, ...]:
        """Return the values that no text may show (fields with repr=False), expired ones too."""
        keys = (
            self.postback_key,
            *(old.key for old in self.old_keys),
            self.pixel_key,
            self.click_key,
            *find_rate_secrets(self.app_id, self.rate_urls),
        )
        return tuple(dict.fromkeys(key for key in keys if key))


def find_rate_secrets(app_id: str, urls: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the secrets in the addresses of the rate sources: keys, users, passwords."""
    yield app_id.encode("utf-8", "surrogateescape")
    for url in urls.values():
        parts = urlsplit(url)
        query = parse_qsl(parts.query, errors="surrogateescape")
        for secret in (
            *(unquote(part) for part in (parts.username, parts.password) if part),
            *(value for name, value in query if re.search(_NAMES_OF_KEYS, name)),
        ):
            yield secret.encode("utf-8", "surrogateescape")


def find_config(environ: Mapping[str, str]) -> Path:
    """Return the absolute path of the config file: POSTBACK_CONFIG, or the working directory's."""
    return absolute(Path(environ.get("POSTBACK_CONFIG") or "config.ini.php"))


def load(path: Path) -> Settings:
    """Read the file; ConfigError if it cannot be read, is refused, or has no key."""
    path = absolute(path)
    return judge_settings(path, read_file(path))


def load_keyless(path: Path) -> Settings:
    """Read the file for commands that need no key; without a usable key the settings have none."""
    path = absolute(path)
    content = read_file(path)
    reader = _build_reader(path, content)
    key: bytes = b""
    old_keys: tuple[OldKey, ...] = ()
    try:
        key = _postback_key(reader)
        old_keys = read_old_keys(reader)
    except ConfigError:
        # A command that lists what came in is not helped by a refusal; `postback check` reports it.
        # But PHP reads no further than a NUL byte, and [db] path may come after it.
        if b"\0" in content:
            raise ConfigError(f"{path} holds NUL bytes: save it as UTF-8.") from None
    return _finish_settings(reader, _read_settings(reader, key, old_keys))


def example_text() -> str:
    """Return the shipped config.ini.php.example."""
    beside = Path(__file__).parents[2] / "config.ini.php.example"
    if beside.is_file():
        return beside.read_text("utf-8")
    # Imported here: it takes longer than all other imports, and is hardly ever needed.
    from importlib import metadata  # noqa: PLC0415

    with contextlib.suppress(metadata.PackageNotFoundError):
        for shipped in metadata.files("postback") or ():
            if shipped.name == beside.name:
                return Path(str(shipped.locate())).read_text("utf-8")
    raise ConfigError(f"{beside.name} is missing; install the package again.")


def absolute(path: Path) -> Path:
    """Make a path absolute, links left as they are."""
    return Path(os.path.abspath(path))  # resolve() would follow links


def read_file(path: Path) -> bytes:
    """Read a config file; ConfigError if it is no file or cannot be read."""
    return read_file_of(path)[0]


def read_file_of(path: Path, flags: int = 0) -> tuple[bytes, os.stat_result]:
    """Read a config file; return its state too, for its owner. `flags` may be O_NOFOLLOW."""
    try:
        # Opening a pipe would wait for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(f"{path} is not a file; point POSTBACK_CONFIG at config.ini.php.")
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags), "rb") as file:
            state = os.fstat(file.fileno())
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read: {name_reason(problem)}.") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; it is no config file.")
    return content, state


def name_reason(problem: OSError | ValueError) -> str:
    """Return the reason without the path, which the sentence around it names."""
    return str(getattr(problem, "strerror", None) or problem)


# From text to settings.


def judge_settings(path: Path, content: bytes) -> Settings:
    """Read the settings and their warnings from a file's content."""
    reader = _build_reader(path, content)
    return _finish_settings(
        reader, _read_settings(reader, _postback_key(reader), read_old_keys(reader))
    )


def _build_reader(path: Path, content: bytes) -> ConfigReader:
    text = decode_text(path, content)
    reader = ConfigReader(path, parse_text(path, text), text)
    if not _GUARD.match(content.decode("latin-1").removeprefix("\xef\xbb\xbf")):
        reader.warn(
            1,
            "the first line should be ;<?php exit; ?> - without it a web server that serves"
            " this directory shows the key.",
        )
    return reader


def _finish_settings(reader: ConfigReader, settings: Settings) -> Settings:
    warn_of_strangers(reader)
    return replace(settings, warnings=reader.all_warnings())


def _read_settings(
    reader: ConfigReader, postback_key: bytes, old_keys: tuple[OldKey, ...]
) -> Settings:
    settings = Settings(
        path=reader.path,
        postback_key=postback_key,
        old_keys=old_keys,
        pixel_key=reader.secret("pixel_key"),
        click_key=reader.secret("click_key"),
        currency=_currency(reader),
        public_url=_url(reader, "system", "public_url") or DEFAULT_PUBLIC_URL,
        public_url_is_set=bool(reader.text("system", "public_url", "")),
        trusted_proxies=_trusted_proxies(reader),
        timezone=_timezone(reader),
        db_path=absolute(reader.path.parent / reader.text("db", "path", DEFAULT_DB_PATH)),
        unknown_subid=reader.choice("postback", "unknown_subid", UNKNOWN_SUBID_WAYS),
        park_days=_park_days(reader),
        repeats=reader.choice("postback", "repeats", REPEATS_WAYS),
        rebills=_switch(reader, "postback", "rebills"),
        unreject=_switch(reader, "postback", "unreject"),
        decimal_comma=_switch(reader, "postback", "decimal_comma"),
        fallback_encoding=_fallback_encoding(reader),
        rate_sources=_rate_sources(reader),
        rate_urls=_rate_urls(reader),
        app_id=reader.optional("rates", "app_id"),
        max_change=_max_change(reader),
        logs_postbacks=_switch(reader, "log", "postbacks"),
        anonymize_ip=_switch(reader, "log", "anonymize_ip"),
        warnings=(),
    )
    _refuse_shared_keys(reader, settings)
    return settings


# Keys.


def find_key_entry(reader: ConfigReader) -> Entry:
    """Find the key: in [system], else above the first section, else in the last section with it."""
    places = [e.section for e in reader.ini.entries if e.key == "postback_key"]
    sections = [section for section in reader.ini.values if section in places]
    for section in ("system", None, *reversed(sections)):
        if entry := reader.entry(section, "postback_key"):
            return entry
    lost = "".join(
        f" Line {note.line}: {note.sentence}"
        for note in reader.ini.warnings
        if note.kind == "structure"
    )
    raise ConfigError(
        f'{reader.path} has no postback_key; write postback_key = "..." below [system].'
        f"{reader.hide(lost)[:500]}{_find_marked_key(reader)}"
    )


def _find_marked_key(reader: ConfigReader) -> str:
    """Name the line that holds the key in a form that an editor spoilt."""
    for number, line in enumerate(split_lines(reader.text_of_file), 1):
        if plain_name(line).startswith("postback_key") and (marks := find_marks(line)):
            return f" Line {number} is not read as that key: {marks}"
    return ""


def _postback_key(reader: ConfigReader) -> bytes:
    entry = find_key_entry(reader)
    if not entry.value and entry.word:
        reader.refuse(
            entry,
            f"is the bare word {entry.word!r}, which PHP reads as empty; write the key in"
            " double quotes.",
        )
    if not entry.value:
        reader.refuse(entry, "is empty; write the key in double quotes behind '='.")
    for other in reader.ini.entries:
        if other.key == entry.key and other.section != entry.section:
            reader.warn(other.line, f"this key is not used; the one on line {entry.line} is.")
    return reader.key_bytes(entry)


def find_old_keys_entry(reader: ConfigReader) -> Entry | None:
    """Find the old keys: in [system], else beside the key itself."""
    return reader.entry("system", "postback_key_old") or reader.entry(
        find_key_entry(reader).section, "postback_key_old"
    )


def read_old_keys(reader: ConfigReader) -> tuple[OldKey, ...]:
    """Read the keys that are, or were, accepted beside the present one."""
    entry = find_old_keys_entry(reader)
    if not entry or entry.word:
        return ()
    parts = [part.strip() for part in entry.value.split(",")]
    return tuple(_old_key(reader, entry, part) for part in parts if part)


def _old_key(reader: ConfigReader, entry: Entry, part: str) -> OldKey:
    found = _OLD_KEY.fullmatch(part)
    if not found:
        reader.refuse(entry, "holds something else than KEY or KEY until 2026-12-31, with commas.")
    key = found[1].encode("utf-8", "surrogateescape")
    reader.warn_of_a_key(entry, key)
    if found[2] is None:
        return OldKey(key, None)
    try:
        # ISO dates of other shapes (20261231, 2026-W53-4) would pass fromisoformat alone.
        return OldKey(
            key, date.fromisoformat(found[2] if found[2][4:5] + found[2][7:8] == "--" else "")
        )
    except ValueError:
        shown = f" {found[2]!r}" if _LIKE_A_DATE.fullmatch(found[2]) else ""
        reader.refuse(entry, f"has a bad date{shown} behind 'until'; write it like 2026-12-31.")


def _refuse_shared_keys(reader: ConfigReader, settings: Settings) -> None:
    """Refuse a key used for two purposes: a pixel shows its key, and networks know theirs."""
    booking = {settings.postback_key, *(old.key for old in settings.old_keys)}
    for name in ("pixel_key", "click_key"):
        key = settings.pixel_key if name == "pixel_key" else settings.click_key
        entry = reader.ini.entry("system", name)
        if not entry or not key:
            continue
        if key in booking:
            reader.refuse(entry, "is also a postback key; give each its own, this one a new one.")
        if name == "click_key" and key == settings.pixel_key:
            reader.refuse(entry, "is also the pixel_key, which every visitor sees; write another.")


# Other values.


def _currency(reader: ConfigReader) -> str:
    value = reader.text("system", "currency", DEFAULT_CURRENCY).upper()
    if not re.fullmatch(r"[A-Z]{3}", value):
        reader.refuse_value("system", "currency", "write three letters, such as 'USD'")
    return value


def _url(reader: ConfigReader, section: str, key: str) -> str:
    """Return an http or https address without trailing slash, or an empty text."""
    value = reader.optional(section, key) if section == "rates" else reader.text(section, key, "")
    if value and not _is_url(value, may_have_query=section == "rates"):
        entry = reader.ini.entry(section, key)
        assert entry is not None  # a value came from it
        shown = value.partition("?")[0]
        if section == "rates":
            # Neither the query nor the user name: a mirror's address may have keys there.
            shown = re.sub("//.*@", f"//{HIDDEN}@", shown)
        reader.refuse(entry, f"is {shown!r}; write an address such as 'https://example.com'.")
    return value if section == "rates" else value.rstrip("/")


def _is_url(value: str, *, may_have_query: bool) -> bool:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port != 0
        and value.isprintable()
        and not re.search(r"[\s\"<>\\]", value)
        and (may_have_query or not (re.search(r"[?#]", value) or "@" in parts.netloc))
    )


def _trusted_proxies(reader: ConfigReader) -> Proxies:
    networks = []
    for part in reader.words("system", "trusted_proxies", DEFAULT_TRUSTED_PROXIES) or ():
        try:
            networks.append(ipaddress.ip_network(part, strict=False))
        except ValueError:
            reader.refuse_value(
                "system",
                "trusted_proxies",
                f"{part!r} is no address or network; write '10.0.0.1', '10.0.0.0/8', '::1' or"
                " 'none', with commas",
            )
    return tuple(networks)


def _timezone(reader: ConfigReader) -> str:
    """Return the zone of commands; a wrong one is warned of: no postback may wait for that."""
    value = reader.optional("system", "timezone") or DEFAULT_TIMEZONE
    if read_zone(value) is None:
        entry = reader.ini.entry("system", "timezone")
        assert entry is not None  # the default is a zone
        reader.warn(entry.line, f"[system] timezone: {describe_strange_zone(value)}.")
    return value


def _park_days(reader: ConfigReader) -> int:
    value = reader.text("postback", "park_days", str(DEFAULT_PARK_DAYS))
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 1 <= int(value) <= MAX_PARK_DAYS:
        reader.refuse_value(
            "postback", "park_days", f"write a whole number of days, 1 to {MAX_PARK_DAYS}"
        )
    return int(value)


def _switch(reader: ConfigReader, section: str, key: str) -> bool:
    value = reader.optional(section, key).lower()
    if WORDS.get(value, value) not in ("1", "0", ""):
        reader.refuse_value(section, key, "write 'yes' or 'no'")
    return WORDS.get(value, value) == "1"


def _fallback_encoding(reader: ConfigReader) -> str:
    value = reader.optional("postback", "fallback_encoding")
    if value.lower() == "none":
        return ""
    if value and not is_single_byte(value):
        reader.refuse_value(
            "postback",
            "fallback_encoding",
            "write 'windows-1251', 'latin-1' or another of one byte a character, or 'none'",
        )
    return value


def _rate_sources(reader: ConfigReader) -> tuple[str, ...]:
    sources = reader.words("rates", "source", DEFAULT_RATE_SOURCES) or ()
    if any(source not in KNOWN_RATE_SOURCES for source in sources):
        advice = "write 'none', or a comma list of " + either(KNOWN_RATE_SOURCES)
        reader.refuse_value("rates", "source", advice)
    entry = reader.entry("rates", "source")
    if entry and "openexchangerates" in sources and not reader.optional("rates", "app_id"):
        reader.warn(entry.line, "openexchangerates needs app_id, the key it gave you.")
    return tuple(dict.fromkeys(sources))


def _rate_urls(reader: ConfigReader) -> Mapping[str, str]:
    urls = {}
    for source in KNOWN_RATE_SOURCES:
        for key in dict.fromkeys((f"{source}_url", f"{source.replace('-', '_')}_url")):
            if url := _url(reader, "rates", key):
                urls[source] = url
    return MappingProxyType(urls)


def _max_change(reader: ConfigReader) -> Decimal:
    value = reader.text("rates", "max_change", str(DEFAULT_MAX_CHANGE))
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) or Decimal(value) <= 1:
        reader.refuse_value("rates", "max_change", "write a number above 1, such as '1.5'")
    return Decimal(value)
