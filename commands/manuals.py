"""`postback completion` and `postback man`, both made from the parser of all subcommands."""

import argparse
from importlib import metadata

import display
from commands.options import Subparsers, add_command

# The libraries are imported where they are used: every other command would wait for them.

SHELLS = ("bash", "zsh", "fish", "tcsh")

# What stands for a file's name in our usage lines.
FILE_METAVAR = "FILE"


def add_parser(subparsers: Subparsers) -> None:
    """Add `completion` and `man`."""
    completion = add_command(
        subparsers,
        "completion",
        run_completion,
        "print what makes a shell complete the command's words",
        "postback completion bash > /etc/bash_completion.d/postback\n"
        '  postback completion zsh > "${fpath[1]}/_postback"\n'
        "  postback completion fish > ~/.config/fish/completions/postback.fish",
        more="The shell reads it when it is started anew. Print it again after an upgrade.",
    )
    completion.add_argument("shell", choices=SHELLS)
    add_command(
        subparsers,
        "man",
        run_man,
        "print the manual page",
        "postback man > /usr/local/share/man/man1/postback.1\n  postback man | man -l -",
        more="It says what --help says of every command.",
    )


def run_completion(args: argparse.Namespace) -> int:
    """Print the script of a shell."""
    import shtab  # noqa: PLC0415  # see above

    _name_files(args.root, shtab.FILE)
    display.write(shtab.complete(args.root, args.shell))
    return 0


def run_man(args: argparse.Namespace) -> int:
    """Print the manual page."""
    from argparse_manpage.manpage import Manpage  # noqa: PLC0415  # see above

    page = Manpage(args.root)
    page.source = f"postback {metadata.version('postback')}"
    page.manual = "Postback"
    page.description = metadata.metadata("postback")["Summary"]
    display.write(str(page))
    return 0


def _name_files(parser: argparse.ArgumentParser, files: object) -> None:
    """Mark what takes a file's name, in a parser and in those of its subcommands."""
    for action in parser._actions:  # argparse has no other way to them
        if action.metavar == FILE_METAVAR:
            action.complete = files  # type: ignore[attr-defined]  # shtab's own attribute
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _name_files(subparser, files)
