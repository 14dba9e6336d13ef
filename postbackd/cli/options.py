"""The options that many subcommands share, and how their values are read."""

import argparse
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import TypeAlias

from postbackd.db.rows import utc_text
from postbackd.intake import click
from postbackd.intake.click import read_moment
from postbackd.intake.query import PHP_WHITE_SPACE
from rates import read_currency

Run: TypeAlias = Callable[[argparse.Namespace], int]
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# Rows that fit on a screen, and that answer "what came in just now?".
DEFAULT_LIMIT = 50

FORMATS = (
    "On a terminal the output is a table. In a pipe or a file it is one line a row with tabs"
    " between the\ncells, after a line of titles; a cell that a spreadsheet would take for a"
    " formula gets a ' before it.\nControl characters and invisible letters are shown as escapes"
    " such as \\x1b."
)

_AGO = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add_command(
    subparsers: Subparsers, name: str, run: Run, summary: str, example: str, more: str = ""
) -> argparse.ArgumentParser:
    """Add a subcommand with `--config`, an example, and the function that runs it."""
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n{more}",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the config file (default: POSTBACK_CONFIG, else config.ini.php in this directory)",
    )
    parser.set_defaults(run=run, parser=parser, takes_rest=False)
    return parser


def add_family(subparsers: Subparsers, name: str, summary: str) -> Subparsers:
    """Add a command that has subcommands, such as `clicks`."""
    parser = subparsers.add_parser(name, help=summary, description=f"{summary}.")
    return parser.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for scripts")


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add `--limit`."""
    parser.add_argument(
        "--limit",
        type=read_limit,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"the newest N (default {DEFAULT_LIMIT}, 0: all)",
    )


def add_since(parser: argparse.ArgumentParser) -> None:
    """Add `--since`."""
    parser.add_argument(
        "--since",
        type=read_since,
        metavar="TIME",
        help="from this time on: 2026-01-31, 2026-01-31T12:00 (UTC unless it says +03:00), or"
        " 90m, 2h, 3d ago",
    )


def add_until(parser: argparse.ArgumentParser) -> None:
    """Add `--until`."""
    parser.add_argument(
        "--until",
        type=read_until,
        metavar="TIME",
        help="before this time, in the same forms; a date without a time includes that whole day",
    )


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """Add `--encoding`."""
    parser.add_argument(
        "--encoding",
        type=_read_encoding,
        help="the file's encoding, such as windows-1251 (default UTF-8)",
    )


def read_name(text: str) -> str:
    """Read the name of an offer or a campaign, trimmed as those of clicks are."""
    name = text.strip(PHP_WHITE_SPACE)
    if not name:
        raise argparse.ArgumentTypeError("the name is empty")
    return name


def read_code(text: str) -> str:
    """Read a currency code."""
    currency = read_currency(text)
    if currency is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no currency code such as EUR")
    return currency


def read_limit(text: str) -> int:
    """Read a number of rows."""
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows; write 100, or 0 for all")
    return int(text)


def read_zone(text: str) -> tzinfo:
    """Read an IANA name or an offset such as +03:00."""
    zone = click.read_zone(text)
    if zone is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time zone; write Europe/Moscow or +03:00")
    return zone


def read_since(text: str, zone: tzinfo = UTC) -> str:
    """Read a time, or how long ago it was, into the form that the database stores."""
    if found := _AGO.fullmatch(text):
        try:
            ago = timedelta(**{_UNITS[found[2]]: int(found[1])})
            return utc_text(datetime.now(UTC) - ago)
        except OverflowError:
            # Longer ago than the calendar's first day: everything.
            return utc_text(datetime.min.replace(tzinfo=UTC))
    moment = read_moment(text, zone)
    if moment is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; write 2026-01-31, 2026-01-31T12:00, 90m, 2h or 3d"
        )
    return utc_text(moment)


def read_until(text: str, zone: tzinfo = UTC) -> str:
    """Read an end time in the same forms; a date without a time means its whole day."""
    try:
        tomorrow = date.fromisoformat(text) + timedelta(days=1)
        return utc_text(datetime.combine(tomorrow, time(), zone).astimezone(UTC))
    except ValueError:
        return read_since(text, zone)
    except OverflowError:
        return utc_text(datetime.max.replace(tzinfo=UTC))


def _read_encoding(text: str) -> str:
    try:
        # Unlike codecs.lookup, this refuses base64 and its like.
        "x".encode(text)
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no encoding; write utf-8, utf-16 or windows-1251"
        ) from None
    return text
