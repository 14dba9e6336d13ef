"""`postback completion` and `postback man`: files made from the parser of all subcommands.

`python -m tools.manuals` writes them.
"""

import argparse
from pathlib import Path

from postbackd.cli import output
from postbackd.cli.options import Subparsers, add_command

SHELLS = ("bash", "zsh", "fish", "tcsh")
PAGE = "postback.1"
DIRECTORY = Path(__file__).parent / "generated"


def name_script(shell: str) -> str:
    """Return the name of the file with a shell's completion."""
    return f"postback.{shell}"


def add_parser(subparsers: Subparsers) -> None:
    """Add `completion` and `man`."""
    completion = add_command(
        subparsers,
        "completion",
        run_completion,
        "print the file with which a shell completes commands and options",
        "postback completion bash > /etc/bash_completion.d/postback\n"
        '  postback completion zsh > "${fpath[1]}/_postback"\n'
        "  postback completion fish > ~/.config/fish/completions/postback.fish",
        more="The shell reads the file when it starts. Print it again after an upgrade.",
    )
    completion.add_argument("shell", choices=SHELLS)
    add_command(
        subparsers,
        "man",
        run_man,
        "print the manual page",
        "postback man > /usr/local/share/man/man1/postback.1\n  postback man | man -l -",
        more="It has the --help of every command.",
    )


def run_completion(args: argparse.Namespace) -> int:
    """Print the script of a shell."""
    return _print_file(name_script(args.shell))


def run_man(args: argparse.Namespace) -> int:
    """Print the manual page."""
    del args
    return _print_file(PAGE)


def _print_file(name: str) -> int:
    output.write((DIRECTORY / name).read_text(encoding="utf-8"))
    return 0
