"""Writes config.ini.php: a new file, or a new key in an existing one, atomically."""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Literal

from postbackd.config.entries import ConfigError, ConfigReader, decode_text, parse_text
from postbackd.config.php_ini import Entry, is_plain
from postbackd.config.settings import (
    OldKey,
    Settings,
    absolute,
    example_text,
    find_key_entry,
    find_old_keys_entry,
    judge_settings,
    name_reason,
    read_file_of,
    read_old_keys,
)
from postbackd.files import Part, give_name, part_beside

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NEWLINE = re.compile(r"\r\n|\r|\n")


def write_new(path: Path, *, postback_key: str | None = None) -> Settings:
    """Write a new config file, mode 0600, from the shipped example with a fresh random key.

    An existing file is never overwritten: that is a ConfigError.
    """
    path = absolute(path)
    key = secrets.token_hex(16) if postback_key is None else postback_key
    text = example_text()
    content = _encoded(_with_key(ConfigReader(path, parse_text(path, text)), text, key))
    settings = _checked(path, content, key, ())
    with _edge_errors(path, "written"), _written_beside(path, content, 0o600) as new:
        try:
            give_name(new, path, replaces=False)
        except FileExistsError:
            raise ConfigError(f"{path} exists already; it is left as it is.") from None
    return settings


def rotate_key(
    path: Path, *, new_key: str, keep_old_until: date | Literal["drop"] | None
) -> Settings:
    """Replace the postback_key in the file, and change nothing else.

    The present key becomes an old one, valid through keep_old_until (None: for good), or is
    dropped. If the new file would not hold exactly the wanted keys, nothing is changed.
    """
    path = absolute(path)
    target = Path(os.path.realpath(path))
    # Without following a link that now takes the file's place: the link's owner would be given a
    # file that only root may read.
    before, state = read_file_of(target, os.O_NOFOLLOW)
    text = decode_text(path, before)
    reader = ConfigReader(path, parse_text(path, text))
    old_keys = _old_keys_after(reader, new_key, keep_old_until)
    content = _encoded(_rotated(path, text, new_key, old_keys))
    settings = _checked(path, content, new_key, old_keys)
    mode = stat.S_IMODE(state.st_mode)
    with _edge_errors(path, "changed"), _written_beside(target, content, mode, state) as new:
        if read_file_of(target, os.O_NOFOLLOW)[0] != before:
            raise ConfigError(f"{path} was changed by someone else meanwhile; try again.")
        give_name(new, target, replaces=True)
    return settings


def _old_keys_after(
    reader: ConfigReader, new_key: str, keep_old_until: date | Literal["drop"] | None
) -> tuple[OldKey, ...]:
    """Return the old keys to write: without the new key, with the present one if it is kept."""
    present = find_key_entry(reader).value.encode("utf-8", "surrogateescape")
    moved = (present, new_key.encode("utf-8", "surrogateescape"))
    others = tuple(old for old in read_old_keys(reader) if old.key not in moved)
    if keep_old_until == "drop" or not present or moved[0] == moved[1]:
        return others
    if re.search(rb"[\s,]", present):
        reader.refuse(
            find_key_entry(reader),
            "holds a blank or a comma and cannot be kept in postback_key_old; drop it instead.",
        )
    return (*others, OldKey(present, keep_old_until))


def _rotated(path: Path, text: str, new_key: str, old_keys: tuple[OldKey, ...]) -> str:
    reader = ConfigReader(path, parse_text(path, text))
    if read_old_keys(reader) != old_keys:
        text = _with_old_keys(reader, text, old_keys)
        reader = ConfigReader(path, parse_text(path, text))  # the key may be on another line now
    return _with_key(reader, text, new_key)


def _with_old_keys(reader: ConfigReader, text: str, old_keys: tuple[OldKey, ...]) -> str:
    entry = find_old_keys_entry(reader)
    before = read_old_keys(reader)
    if not entry:
        value = ", ".join(_old_key_text(old) for old in old_keys)
        return _with_line_below(
            text, find_key_entry(reader), f"postback_key_old = {_quoted(value)}"
        )
    if before and old_keys[:-1] == before:
        value = f"{entry.value.rstrip(' ,')}, {_old_key_text(old_keys[-1])}"
    else:
        value = ", ".join(_old_key_text(old) for old in old_keys)
    return _with_value(text, entry, value)


def _old_key_text(old: OldKey) -> str:
    key = old.key.decode("utf-8", "surrogateescape")
    return key if old.until is None else f"{key} until {old.until.isoformat()}"


def _with_key(reader: ConfigReader, text: str, key: str) -> str:
    if not key or _CONTROL.search(key):
        raise ConfigError("the new key is empty or holds a control character; take another.")
    return _with_value(text, find_key_entry(reader), key)


def _with_value(text: str, entry: Entry, value: str) -> str:
    """Replace the value in place, in its own quotes if they can hold the new value."""
    written = text[entry.start : entry.end]
    before, after = text[: entry.start], text[entry.end :]
    if written.startswith("'") and value and "'" not in value:
        new = f"'{value}'"
    elif written and written[0] not in "'\"" and is_plain(value):
        new = value
    else:
        new = _quoted(value)
    return before + (" " if before.endswith("=") and not written else "") + new + after


def _with_line_below(text: str, entry: Entry, line: str) -> str:
    """Add a line below an entry's, with its indentation and its line end."""
    line_start = max(text.rfind("\n", 0, entry.start), text.rfind("\r", 0, entry.start)) + 1
    indentation = re.compile(r"\ufeff?([ \t]*)").match(text, line_start)
    line = (indentation[1] if indentation else "") + line
    line_end = _NEWLINE.search(text, entry.end)
    if line_end is None:
        first = _NEWLINE.search(text)
        return text + (first[0] if first else "\n") + line
    return text[: line_end.end()] + line + line_end[0] + text[line_end.end() :]


def _quoted(value: str) -> str:
    return '"' + re.sub(r"([\\\"$])", r"\\\1", value) + '"'


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _checked(path: Path, content: bytes, key: str, old_keys: tuple[OldKey, ...]) -> Settings:
    """Read the new content as load() would, and compare the keys."""
    settings = judge_settings(path, content)
    if (settings.postback_key, settings.old_keys) != (_encoded(key), old_keys):
        raise ConfigError(
            f"{path} is left as it is: with the new key in its place it would not read as"
            " wanted. Put the key in by hand, in double quotes."
        )
    return settings


@contextlib.contextmanager
def _edge_errors(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise ConfigError(f"{path} cannot be {done}: {name_reason(problem)}.") from None


@contextlib.contextmanager
def _written_beside(
    path: Path, content: bytes, mode: int, owner: os.stat_result | None = None
) -> Iterator[Part]:
    """Yield a file with the content in the same directory, which is removed afterwards."""
    with part_beside(path) as part:
        with open(part.handle, "wb", closefd=False) as file:
            file.write(content)
        if owner:
            _give_back(part.handle, owner, path)
        os.fchmod(part.handle, mode)
        yield part


def _give_back(handle: int, owner: os.stat_result, path: Path) -> None:
    """Give a new file the owner and the group of the old one."""
    try:
        os.fchown(handle, owner.st_uid, owner.st_gid)
    except PermissionError:
        made = os.fstat(handle)
        is_others = made.st_gid != owner.st_gid and owner.st_mode & stat.S_IRWXG
        if made.st_uid != owner.st_uid or is_others:
            # A service that may not read the new file could not start again.
            raise ConfigError(
                f"{path} belongs to another user or group and would not stay theirs: do this as"
                " its owner, or as root."
            ) from None
