"""What has changed between two readings of the config file, for the service log: no key is said."""

from collections.abc import Iterator
from dataclasses import fields

from postbackd.config.settings import OldKey, Settings

# Where a field stands in the file, where its name there is not its own, or its section [system].
_PLACES = {
    "old_keys": "[system] postback_key_old",
    "pixel_key": "[system] pixel_key",
    "rate_sources": "[rates] source",
    "rate_urls": "[rates] addresses",
    "app_id": "[rates] app_id",
    "max_change": "[rates] max_change",
    "logs_postbacks": "[log] postbacks",
    "anonymize_ip": "[log] anonymize_ip",
    **{
        name: f"[postback] {name}"
        for name in ("unknown_subid", "park_days", "repeats", "rebills", "unreject")
    },
    "decimal_comma": "[postback] decimal_comma",
    "fallback_encoding": "[postback] fallback_encoding",
}
# Of the file, not in it; or told by sentences of their own.
_LEFT_OUT = frozenset({"path", "warnings", "public_url_is_set", "currency", "db_path"})


def describe_changes(was: Settings, now: Settings) -> list[str]:
    """Say what has changed, a part each; of what is secret only that it has."""
    return [part for name in _list_changed(was, now) for part in _describe(name, was, now)]


def _list_changed(was: Settings, now: Settings) -> Iterator[str]:
    for field in fields(Settings):
        if field.name not in _LEFT_OUT and getattr(was, field.name) != getattr(now, field.name):
            yield field.name


def _describe(name: str, was: Settings, now: Settings) -> Iterator[str]:
    place = _PLACES.get(name, f"[system] {name}")
    before, after = getattr(was, name), getattr(now, name)
    if name == "old_keys":
        yield f"{place} {_describe_old(before)} -> {_describe_old(after)}"
    elif isinstance(before, bytes) or name in {"app_id", "rate_urls"}:
        yield f"{place} {_say_set(before)} -> {'another' if after and before else _say_set(after)}"
    else:
        yield f"{place} {_show(before)} -> {_show(after)}"


def _describe_old(keys: tuple[OldKey, ...]) -> str:
    ends = (f"*** until {old.until}" if old.until else "***" for old in keys)
    return ", ".join(ends) or "none"


def _say_set(value: object) -> str:
    return "***" if value else "none"


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value) or "none"


def find_dropped_keys(was: Settings, now: Settings) -> int:
    """Count the keys for postbacks that were accepted and are in the file no more."""
    before = {was.postback_key, *(old.key for old in was.old_keys)}
    return len(before - {now.postback_key, *(old.key for old in now.old_keys)})
