"""Writes the output of `postback completion` and `postback man`: `python -m tools.manuals`.

It is built from the parsers of all subcommands, and shipped as files: the libraries that build it
are needed here only. Run it whenever a command or an option changes; a test fails otherwise.
"""

import argparse
import os
import sys
from importlib import metadata
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

from postbackd.cli.commands import manuals
from postbackd.cli.main import build_parser

# argparse must break lines at this width, not at that of somebody's terminal.
COLUMNS = "80"

# The word for a file's name in our usage lines.
FILE_METAVAR = "FILE"


def main() -> None:
    """Write the files, into the package or the directory given."""
    os.environ["COLUMNS"] = COLUMNS
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else manuals.DIRECTORY
    for name, text in _build_all().items():
        (directory / name).write_text(text, encoding="utf-8")


def _build_all() -> dict[str, str]:
    parser = build_parser()
    texts = {manuals.PAGE: _build_page(parser)}
    _name_files(parser)
    for shell in manuals.SHELLS:
        texts[manuals.name_script(shell)] = shtab.complete(parser, shell)
    return {name: text if text.endswith("\n") else f"{text}\n" for name, text in texts.items()}


def _build_page(parser: argparse.ArgumentParser) -> str:
    page = Manpage(parser)
    # Without the day of the build, which would change the file with the same text.
    page.date = ""
    page.source = f"postback {metadata.version('postback')}"
    page.manual = "Postback"
    page.description = metadata.metadata("postback")["Summary"]
    return str(page)


def _name_files(parser: argparse.ArgumentParser) -> None:
    """Mark the arguments that are file names, in a parser and in those of its subcommands."""
    for action in parser._actions:  # argparse has no other way to them
        if action.metavar == FILE_METAVAR:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own attribute
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _name_files(subparser)


if __name__ == "__main__":
    main()
