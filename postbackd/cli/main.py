"""Builds the parser of all subcommands, runs one, and prints its error as a sentence."""

import argparse
import importlib
import io
import logging
import os
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from postbackd.bulk.csv_file import UnusableFileError
from postbackd.cli import output
from postbackd.cli.context import INTERRUPTED, REFUSED, WRONG_USAGE, RefusedError, load_keyless
from postbackd.config.entries import ConfigError
from postbackd.db.sqlite.connection import DatabaseError
from postbackd.masking import hide_in_tracebacks

# Each command and its module, in the order of `postback --help`.
FAMILIES = {
    "serve": "serve",
    "url": "url",
    "check": "check",
    "log": "log",
    "explain": "explain",
    "replay": "replay",
    "conversions": "conversions",
    "import": "import_",
    "reconcile": "reconcile",
    "report": "report",
    "clicks": "clicks",
    "offers": "offers",
    "campaigns": "campaigns",
    "rates": "rates",
    "key": "key",
    "backup": "backup",
    "restore": "restore",
    "purge": "purge",
    "completion": "manuals",
    "man": "manuals",
}

# Without duplicates.
MODULES = tuple(dict.fromkeys(FAMILIES.values()))

DESCRIPTION = """\
Receives the postbacks of affiliate networks and stores the conversions.
`postback COMMAND --help` explains a command. Options follow the command."""


class _Parser(argparse.ArgumentParser):
    """Explains wrong usage in one line that quotes the wrong word."""

    def error(self, message: str) -> NoReturn:
        raise _WrongUsageError(self, message)

    # Typed as argparse has it, with its overloads.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the command line; an option's value may begin with '-': `--tz -05:00`."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args(self._join_values(words), namespace)

    def _join_values(self, words: Sequence[str]) -> list[str]:
        # argparse takes such a word for an option, unless it is a plain number.
        joined: list[str] = []
        rest = iter(words)
        for word in rest:
            joined.append(word)
            if word == "--":
                joined += rest
            elif self._takes_value(word) and (value := next(rest, None)) is not None:
                joined += self._join(joined.pop(), value)
        return joined

    def _join(self, option: str, value: str) -> list[str]:
        # A word such as `--limt` is a mistyped option, not a value.
        is_value = value[:1] == "-" != value[1:2] and value not in self._option_string_actions
        return [f"{option}={value}"] if is_value else [option, value]

    def _takes_value(self, word: str) -> bool:
        action = self._option_string_actions.get(word) if word.startswith("--") else None
        return action is not None and action.nargs is None


class _WrongUsageError(Exception):
    """The command line is not valid."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        """Remember the parser that refused it, for its usage line."""
        super().__init__(f"{message} (`{parser.prog} --help` explains)")
        self.parser = parser


def build_parser(modules: Iterable[str] = MODULES) -> argparse.ArgumentParser:
    """Build the parser of all subcommands, or of the subcommands of some modules."""
    parser = _Parser(
        prog="postback",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in modules:
        importlib.import_module(f"postbackd.cli.commands.{module}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    output.reveal_keys()
    try:
        _prepare_streams()
        status = _run(words)
        sys.stdout.flush()
    except SystemExit as left:
        # argparse exits so after --help.
        return left.code if isinstance(left.code, int) else WRONG_USAGE
    except _WrongUsageError as wrong:
        _hide_keys(words)
        wrong.parser.print_usage(sys.stderr)
        output.print_error(str(wrong))
        return WRONG_USAGE
    except BrokenPipeError:
        # The reader of the pipe (`| head`) has seen enough: this is no error.
        _silence_stdout()
        return REFUSED
    except KeyboardInterrupt:
        output.print_error("stopped")
        return INTERRUPTED
    except _EXPECTED_ERRORS as error:
        output.print_error(_describe_error(error))
        return REFUSED
    return status


def hide_keys_in_what_python_writes() -> None:
    """Hide keys in tracebacks, and in warnings that are logged without a service."""
    hide_in_tracebacks(output.hide)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_HidingFormatter())


class _HidingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return output.hide(super().format(record))


def _hide_keys(words: Sequence[str]) -> None:
    """Hide the config's keys in the message about a wrong command line.

    The command has not read the config yet, and a word of the command line may be a key.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config")
    with suppress(argparse.ArgumentError, ConfigError, RefusedError, OSError):
        args, _ = parser.parse_known_args(words)
        load_keyless(args)


# The errors that end a command with a sentence instead of a traceback.
_EXPECTED_ERRORS = (
    *(RefusedError, UnusableFileError, ConfigError, DatabaseError),
    *(UnicodeEncodeError, OSError, sqlite3.Error),
)


def _describe_error(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        # A word of the command line that SQLite cannot take as a parameter.
        return f"{output.hide(error.object)[:64]!r} is no UTF-8: write it in that encoding"
    if isinstance(error, OSError):
        return f"{_describe_refusal(error)}; nothing more was done"
    if isinstance(error, sqlite3.Error):
        return f"{error}; nothing more was done"
    return str(error)


def _describe_refusal(error: OSError) -> str:
    """Return the system's message without its number."""
    if isinstance(error, FileNotFoundError) and error.filename is None:
        # Only getcwd fails without a file name.
        return "the current directory has been deleted: change to another"
    why = error.strerror or str(error)
    return why if error.filename is None else f"{str(error.filename)!r}: {why}"


def _run(argv: Sequence[str]) -> int:
    # Importing all other commands would make a quick one slow.
    modules = [FAMILIES[argv[0]]] if argv and argv[0] in FAMILIES else MODULES
    args, rest = build_parser(modules).parse_known_args(argv)
    if rest and not args.takes_rest:
        args.parser.error(f"unknown: {' '.join(rest)}")
    args.rest = rest
    status: int = args.run(args)
    return status


def _prepare_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Cyrillic letters must not end the command.
            stream.reconfigure(errors="backslashreplace")


def _silence_stdout() -> None:
    # Python flushes stdout when it exits, and would print an error then.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
