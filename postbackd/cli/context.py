"""What each command opens: the config, and the database to read or to write."""

import argparse
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from postbackd.cli import output
from postbackd.config import settings as config
from postbackd.config.settings import Settings, find_config, load
from postbackd.db.sqlite import soundness
from postbackd.db.sqlite.connection import DatabaseError, DoubtedError, describe_trouble
from postbackd.masking import KeyMask
from postbackd.reports.queries import Questions, open_to_read
from storage import Storage, open_database

# The exit statuses of commands.
REFUSED = 1
WRONG_USAGE = 2
# The status that shells use for a program ended by Ctrl-C: 128 and the number of the signal.
INTERRUPTED = 130


class RefusedError(Exception):
    """The command is not carried out; the sentence says why and what to do."""


def find_config_path(args: argparse.Namespace) -> Path:
    """Return the path of the config file, which may not exist."""
    return Path(os.path.abspath(args.config)) if args.config else find_config(os.environ)


def load_settings(args: argparse.Namespace) -> Settings:
    """Read the config; a faulty one raises ConfigError, a missing one RefusedError.

    From now on its keys are hidden in all output, except in commands that print keys.
    """
    return _hide_keys(load(find_written_config(args)))


def load_keyless(args: argparse.Namespace) -> Settings:
    """Read the config for a command that needs no key: it may have none."""
    return _hide_keys(config.load_keyless(find_written_config(args)))


def _hide_keys(settings: Settings) -> Settings:
    output.hide_keys(KeyMask(settings.secrets()))
    return settings


def find_written_config(args: argparse.Namespace) -> Path:
    """Return the path of the config file; RefusedError where there is none."""
    path = find_config_path(args)
    if not os.path.lexists(path):
        raise RefusedError(
            f"there is no config file yet: looked for {str(path)!r}; `postback serve` writes one"
        )
    return path


@contextmanager
def reading(settings: Settings) -> Iterator[Questions]:
    """Open the database to read beside a running service; RefusedError where there is none."""
    path = settings.db_path
    _refuse_missing(path)
    try:
        with closing(open_to_read(path)) as questions:
            yield questions
    except sqlite3.Error as error:
        raise DatabaseError(describe_trouble(error, path)) from error


def _refuse_missing(path: Path) -> None:
    if not path.exists():
        raise RefusedError(
            f"there is no database yet: looked for {str(path)!r}; `postback serve` creates it"
        )


def _open_to_write(settings: Settings, *, checks: bool) -> Storage:
    try:
        return open_database(settings.db_path, settings.currency)
    except DoubtedError:
        if not checks:
            raise
        soundness.settle_now(settings.db_path)
        return open_database(settings.db_path, settings.currency)


@contextmanager
def writing(settings: Settings, *, makes: bool = True, checks: bool = True) -> Iterator[Storage]:
    """Open the database to write; a missing one is created with `makes`.

    A database in which damage was found is checked first; without `checks` that is a DoubtedError.
    """
    path = settings.db_path
    if not makes:
        _refuse_missing(path)
    try:
        storage = _open_to_write(settings, checks=checks)
    except OSError as error:
        raise DatabaseError(describe_trouble(error, path)) from error
    try:
        with storage:
            yield storage
    except sqlite3.Error as error:
        raise DatabaseError(describe_trouble(error, path)) from error
