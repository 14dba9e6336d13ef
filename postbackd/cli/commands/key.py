"""`postback key`: the key in the Postback URL, shown and rotated."""

import argparse
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any, Literal

from postbackd.cli import output
from postbackd.cli.commands.url import DEFAULT_MACROS, build_url
from postbackd.cli.context import (
    RefusedError,
    find_written_config,
    load_keyless,
    load_settings,
    reading,
)
from postbackd.cli.options import (
    Subparsers,
    add_command,
    add_family,
    add_json,
    add_zone,
    settle_times,
)
from postbackd.config.edit import rotate_key
from postbackd.config.settings import OldKey, Settings
from postbackd.zones import write_in_zone

# Long enough to change the URL at every network, short enough that a leaked key soon expires.
KEEP_OLD_DAYS = 30

KEY_BYTES = 16


def add_parser(subparsers: Subparsers) -> None:
    """Add `key show` and `key rotate`."""
    family = add_family(subparsers, "key", "the key in the Postback URL")
    show = add_command(
        family,
        "show",
        run_show,
        "print the key in force, then the old ones that are still accepted",
        "postback key show | head -1",
        more="The first line is the key and nothing else; an old key is followed by its last day.",
    )
    show.add_argument(
        "--last-used",
        action="store_true",
        help="show when each key was last used, to the minute: an old key that has not been used"
        " for long can be removed",
    )
    add_zone(show)
    add_json(show)
    rotate = add_command(
        family,
        "rotate",
        run_rotate,
        "write a fresh random key into the config file",
        "postback key rotate --keep-old-until 2026-12-31",
        more=f"Without an option the present key is accepted for {KEEP_OLD_DAYS} more days, so that"
        " no postback\nis lost while you change the URL at the networks.",
    )
    keeping = rotate.add_mutually_exclusive_group()
    keeping.add_argument(
        "--keep-old-until",
        type=_read_day,
        metavar="DATE",
        help="the last day (UTC) of the present key",
    )
    keeping.add_argument("--keep-old", action="store_true", help="accept the present key for ever")
    keeping.add_argument(
        "--drop-old",
        action="store_true",
        help="refuse the present key at once: networks that still use it lose their postbacks",
    )


def run_show(args: argparse.Namespace) -> int:
    """Print the keys."""
    settings = load_settings(args)
    uses = _find_uses(settings) if args.last_used else {}
    zone = settle_times(args, settings) if args.last_used else UTC
    output.reveal_keys()
    if args.json:
        output.print_json(_describe_keys(settings, uses))
        return 0
    output.print_line(
        _key_text(settings.postback_key)
        + _in_brackets(*_describe_use(settings.postback_key, uses, zone))
    )
    for old in settings.old_keys:
        output.print_line(
            _key_text(old.key)
            + _in_brackets(_describe_end(old), *_describe_use(old.key, uses, zone))
        )
    return 0


Uses = Mapping[bytes, str | None]


def _find_uses(settings: Settings) -> Uses:
    with reading(settings) as questions:
        return questions.find_key_uses(
            [settings.postback_key, *(old.key for old in settings.old_keys)]
        )


def _describe_use(key: bytes, uses: Uses, zone: tzinfo) -> Sequence[str]:
    if key not in uses:
        return ()
    at = uses[key]
    if at is None:
        return ("not used yet",)
    return (f"last used {write_in_zone(at, zone)[:16].replace('T', ' ')} {zone}",)


def _in_brackets(*parts: str) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def run_rotate(args: argparse.Namespace) -> int:
    """Write a fresh key into the file and print the new address."""
    until = _choose_end(args)
    path = find_written_config(args)
    # The file may have no key yet.
    had_key = bool(load_keyless(args).postback_key)
    settings = rotate_key(path, new_key=secrets.token_hex(KEY_BYTES), keep_old_until=until)
    output.reveal_keys()
    output.print_line(build_url(settings, DEFAULT_MACROS))
    old = _describe_old(until) if had_key else "There was no key before"
    output.print_line(f"# {old}; the new key is in force within a second.")
    return 0


def _choose_end(args: argparse.Namespace) -> date | Literal["drop"] | None:
    if args.drop_old:
        return "drop"
    if args.keep_old:
        return None
    today = _today()
    until: date = args.keep_old_until or today + timedelta(days=KEEP_OLD_DAYS)
    if until < today:
        raise RefusedError(f"{until} is in the past: write a later day, or --drop-old")
    return until


def _describe_old(until: date | Literal["drop"] | None) -> str:
    if until == "drop":
        return "The old key is refused from now on"
    if until is None:
        return "The old key is accepted for ever"
    return f"The old key is accepted until the end of {until} (UTC)"


def _describe_keys(settings: Settings, uses: Uses) -> Iterator[dict[str, Any]]:
    for old in (OldKey(settings.postback_key, None), *settings.old_keys):
        described = {
            "key": _key_text(old.key),
            "until": None if old.until is None else old.until.isoformat(),
            "is_old": old.key != settings.postback_key,
        }
        if old.key in uses:
            described["last_used_at"] = uses[old.key]
        yield described


def _describe_end(old: OldKey) -> str:
    if old.until is None:
        return "old, no end"
    return f"old, until {old.until}{'' if old.is_good_on(_today()) else ' (over)'}"


def _key_text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _read_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write 2026-12-31") from None


def _today() -> date:
    return datetime.now(UTC).date()
