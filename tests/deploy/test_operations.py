"""docs/operations.md against the command and the repository; the play itself is by hand."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import POSTBACK_KEY, write_config
from tree import ROOT

from postbackd.cli.main import build_parser

GUIDE = ROOT / "docs" / "operations.md"

LINES = [
    line.strip()
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def find_commands() -> Iterator[str]:
    """Return what is typed as `postback …`, in blocks, in the midst of lines and of sentences."""
    for line in LINES:
        if line.startswith("postback "):
            yield line
        yield from re.findall(r"\$\((postback [^|)]*)", line)
    prose = re.sub(r"```.*?```", "", GUIDE.read_text(), flags=re.DOTALL)
    yield from re.findall(r"`(postback [^`]*)`", prose)


@pytest.mark.parametrize("command", sorted(set(find_commands())))
def test_the_guide_names_commands_that_exist(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # What the shell takes for itself.
    words = shlex.split(command.partition(" < ")[0])[1:]

    assert is_understood(words), capsys.readouterr().err


def is_understood(words: list[str]) -> bool:
    try:
        args, rest = build_parser().parse_known_args(words)
    except SystemExit as left:
        # How `--help` leaves, and wrong usage.
        return left.code == 0
    return args.takes_rest or not rest


def test_the_guide_names_files_that_exist() -> None:
    text = GUIDE.read_text()
    named = set(re.findall(r"deploy/[\w./-]*\w", text))
    linked = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}

    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [link for link in linked if not (GUIDE.parent / link).exists()] == []


@pytest.mark.skipif(shutil.which("runuser") is None, reason="runuser is not installed")
def test_the_command_beside_the_service_uses_its_config(tmp_path: Path) -> None:
    config = write_config(tmp_path, {})
    script = (ROOT / "deploy" / "bin" / "postback").read_text()
    for old, new in (
        ("/opt/postback/bin/postback", f"{sys.executable} -m postbackd.cli.entry"),
        ("/var/lib/postback/config.ini.php", str(config)),
        ("runuser -u postback", "runuser -u root"),
    ):
        assert old in script
        script = script.replace(old, new)
    kept = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT)}

    ran = subprocess.run(
        ["/bin/sh", "-c", script, "postback", "key", "show"],
        cwd="/",
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stdout.splitlines()[0]) == (0, POSTBACK_KEY), ran.stderr
