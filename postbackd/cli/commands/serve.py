"""`postback serve`: create a missing config and database, print the Postback URL, run gunicorn."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from postbackd.cli import output
from postbackd.cli.commands.url import DEFAULT_MACROS, build_url
from postbackd.cli.context import find_config_path, writing
from postbackd.cli.options import Subparsers, add_command
from postbackd.config.edit import write_new
from postbackd.config.settings import Settings, load
from postbackd.db.sqlite.connection import DoubtedError
from postbackd.server import logs

_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]*\]|[^:/\[\]]*):(?P<port>[0-9]{1,5})")
# Addresses that mean "every interface"; the printed URL has 127.0.0.1 instead.
_EVERYWHERE = frozenset({"", "0.0.0.0", "[::]"})  # noqa: S104


def add_parser(subparsers: Subparsers) -> None:
    """Add `serve`."""
    parser = add_command(
        subparsers,
        "serve",
        run,
        "receive postbacks",
        "postback serve --bind 0.0.0.0:8080 --workers 2",
        more="Creates config.ini.php with a fresh random key, and the database, where they are"
        " missing.\nAll other options go to gunicorn, such as --log-level warning.",
    )
    parser.add_argument(
        "-b",
        "--bind",
        action="append",
        metavar="ADDR",
        help="where to listen: HOST:PORT or unix:PATH (default 127.0.0.1:8000)",
    )
    parser.add_argument("-w", "--workers", metavar="N", help="the number of worker processes")
    parser.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        help="lines for people, or a JSON object a line (default: text)",
    )
    parser.set_defaults(takes_rest=True)


def run(args: argparse.Namespace) -> int:
    """Create missing files and become gunicorn; returns only where that fails."""
    path = find_config_path(args)
    settings = load(path) if os.path.lexists(path) else write_new(path)
    # The service checks a damaged database itself: it takes a while, and 503 is answered meanwhile.
    with contextlib.suppress(DoubtedError), writing(settings, checks=False):
        pass
    if args.log_format is not None:
        os.environ[logs.FORMAT_VARIABLE] = args.log_format
    _announce(settings, args.bind or [])
    _become_gunicorn(path, build_options(args))
    return 1


def build_options(args: argparse.Namespace) -> list[str]:
    """Build gunicorn's options: our options that gunicorn has too, then all others."""
    options = [part for address in args.bind or () for part in ("--bind", address)]
    if args.workers is not None:
        options += ["--workers", args.workers]
    return [*options, *args.rest]


def find_base(settings: Settings, addresses: Sequence[str]) -> str:
    """Return the begin of the printed URL: public_url, else the address that is listened on."""
    if settings.public_url_is_set:
        return settings.public_url
    for address in addresses:
        if found := _HOST_AND_PORT.fullmatch(address.removeprefix("tcp://")):
            host = "127.0.0.1" if found["host"] in _EVERYWHERE else found["host"]
            return f"http://{host}:{found['port']}"
    return settings.public_url


def _announce(settings: Settings, addresses: Sequence[str]) -> None:
    # The output of a service goes to a journal that many people may read: it must not have the key.
    if sys.stdout.isatty():
        output.print_line(
            f"Postback URL: {build_url(settings, DEFAULT_MACROS, find_base(settings, addresses))}"
        )
        output.print_line(f"Config file:  {settings.path}")
    else:
        # In the form of the service log: the journal has both.
        sentence = "The Postback URL contains the key: run `postback url` to see it."
        output.print_line(logs.format_event(sentence))


def _become_gunicorn(path: Path, options: Sequence[str]) -> None:
    # -P: a module of the working directory must not shadow `statuses` or another of ours;
    # `postbackd.server` imports them first.
    command = [
        sys.executable,
        "-P",
        "-m",
        "postbackd.server",
        "--config",
        "python:postbackd.server.gunicorn_conf",
        *options,
    ]
    os.environ["POSTBACK_CONFIG"] = str(path)
    # Text in the buffers would be lost when gunicorn replaces this program.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os.execv(sys.executable, [*command, "postback:application"])  # noqa: S606  # no shell wanted
