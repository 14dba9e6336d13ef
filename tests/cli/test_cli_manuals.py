"""Completion and the manual page agree with the parser."""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_calls import build_environment, call_process
from tree import read_distribution

from postbackd.cli import entry as cli
from postbackd.cli.commands.manuals import DIRECTORY, SHELLS
from postbackd.cli.main import build_parser


def list_commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    """Every subcommand as words: ("clicks", "import")."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                inner = list(list_commands(subparser))
                yield from [(name, *words) for words in inner] or [(name,)]


def list_options(parser: argparse.ArgumentParser) -> set[str]:
    """Every long option of every subcommand, except those that only the service uses."""
    told = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    found = {option for action in told for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {o for subparser in action.choices.values() for o in list_options(subparser)}
    return {option for option in found if option.startswith("--")}


def print_out(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def test_what_is_shipped_is_what_the_parsers_say_now(tmp_path: Path) -> None:
    """Else: `python -m tools.manuals`."""
    made = subprocess.run(
        [sys.executable, "-m", "tools.manuals", str(tmp_path)],
        env=build_environment({}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (made.returncode, made.stderr) == (0, "")
    assert read_words(tmp_path) == read_words(DIRECTORY)
    assert set(read_distribution().files) >= set(DIRECTORY.iterdir())


def read_words(directory: Path) -> dict[str, list[str]]:
    """Read a directory's files: Python 3.13 breaks the same lines elsewhere."""
    return {path.name: path.read_text().split() for path in directory.iterdir()}


def test_the_command_needs_nothing_of_what_made_the_files(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["shtab"] = sys.modules["argparse_manpage"] = None
from postbackd.cli import entry as cli
assert cli.main(["man"]) == cli.main(["completion", "zsh"]) == 0
"""

    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=build_environment({}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(".TH POSTBACK")
    assert "#compdef postback" in ran.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_in_the_script_of_every_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = print_out(capsys, "completion", shell)

    parser = build_parser()
    for words in list_commands(parser):
        assert all(word in script for word in words), words
    for option in list_options(parser):
        assert option.removeprefix("--") in script


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_read_its_script(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(print_out(capsys, "completion", shell))

    done = subprocess.run([shell, "-n", str(script)], capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")


# What bash runs when Tab is pressed behind the words.
PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
[[ "$(complete -p postback)" =~ -F\\ ([a-z_]+) ]]
"${BASH_REMATCH[1]}" postback "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
echo "${COMPREPLY[*]}"
"""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("imp", "import"),
        ("clicks ", "import list"),
        ("clicks i", "import"),
        ("log --verd", "--verdict"),
        ("log --verdict unm", "unmapped"),
        ("conversions --status re", "rejected rebill"),
        ("import lin", "lines.csv"),
        ("backup --config con", "config.ini.php"),
        ("completion z", "zsh"),
    ],
)
def test_bash_completes(
    line: str, offered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bash = shutil.which("bash") or pytest.skip("bash is not installed")
    for name in ("lines.csv", "config.ini.php"):
        (tmp_path / name).touch()
    script = tmp_path / "script"
    script.write_text(print_out(capsys, "completion", "bash"))

    done = subprocess.run(
        [bash, "-c", PRESS_TAB, "bash", str(script), "postback", *line.split(" ")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.split() == offered.split(), done.stderr


def test_every_command_and_option_is_in_the_manual(capsys: pytest.CaptureFixture[str]) -> None:
    page = print_out(capsys, "man").replace("\\-", "-")

    parser = build_parser()
    assert page.startswith(".TH POSTBACK")
    for words in list_commands(parser):
        assert f"postback {' '.join(words)}" in page
    for option in list_options(parser):
        assert option in page


def test_the_manual_can_be_set(tmp_path: Path) -> None:
    groff = shutil.which("groff") or pytest.skip("groff is not installed")
    page = tmp_path / "postback.1"
    page.write_text(call_process(tmp_path, "man").out)

    done = subprocess.run(
        [groff, "-man", "-Kutf8", "-Tutf8", "-ww", "-z", str(page)],
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, b"")
