"""docs/recipes.md is true: its commands are run, in order, and print what the page shows.

`PYTHONPATH=tests python tests/cli/test_recipes.py` runs them and writes their output into the page.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_calls import build_command, build_environment, without_styles
from conftest import Client, Clock, write_config
from tree import ROOT

import postback
from postbackd.cli import entry as cli

RECIPES = ROOT / "docs" / "recipes.md"
# A terminal for people, wherever the tests are run.
LOOKS = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100", "TTY_INTERACTIVE": "0"}

# Codes that move the cursor, and the line that a progress bar leaves.
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")

# Parts that differ at each run: key, directory, time, disk.
MASKS = (
    (re.compile(r"^\w+ +disk .*\n(?: +.*\n)*", re.MULTILINE), "disk\n"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?Z?"), "2026-11-22 12:00:00"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "2026-11-22"),
    (re.compile(r"\d+(?:\.\d+)? ([GM]B)"), r"0 \1"),
    (re.compile(r"\S*/(?=(?:config\.ini\.php|postback\.db|copy\.db))"), "/srv/postback/"),
)

SETTINGS = {
    "postback_key": "your-key-your-key-your-key",
    "click_key": None,
    "pixel_key": None,
    "public_url": "https://tracker.example",
}
CLICKS = (("c1", "Summer"), ("c2", "Summer"), ("c3", "Winter"), ("c4", "Winter"), ("c5", "Summer"))
POSTBACKS = (
    "subid=c1&status=sale&payout=12.50&tid=t1&from=alfa",
    "subid=c2&status=lead&payout=8&tid=t2&from=alfa",
    "subid=c3&status=approved&payout=20&tid=t3&from=alfa",
    "subid=c4&status=sale&payout=15&tid=t4&from=alfa",
    "subid=c5&status=sale&payout=9&currency=EUR&tid=t5&from=beta",
    "subid=c9&status=sale&payout=11&tid=t9&from=beta",
)
FILES = {
    "report.csv": "Click ID,Transaction ID,Commission,Status\n"
    "c1,t1,12.50,approved\nc2,t2,8,approved\nc3,t3,21,approved\nc6,t6,7,approved\n",
    "mail.txt": "c7,5,t7\nc1,,t1,rejected\nc8,1O,t8\n",
}


class Block(NamedTuple):
    """A block of the page: its place, and its commands with their output."""

    start: int
    end: int
    commands: list[tuple[str, str]]


def read_blocks(page: str) -> Iterator[Block]:
    """List the blocks of the page."""
    for found in re.finditer(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        parts = re.split(r"^\$ (.*)\n", found[1], flags=re.MULTILINE)
        commands = list(zip(parts[1::2], parts[2::2], strict=True))
        yield Block(found.start(1), found.end(1), commands)


def prepare(home: Path) -> None:
    """Make the small tracker of the page."""
    clock = Clock()
    clock.now = datetime.now(UTC)
    receiver = postback.Receiver(write_config(home, SETTINGS), clock=clock)
    client = Client(home, home / "postback.db", receiver, clock)
    client.get("/health")
    for subid, campaign in (*CLICKS, ("c6", "Winter"), ("c7", "Winter"), ("c8", "Winter")):
        client.write("INSERT OR IGNORE INTO campaigns (name) VALUES (?)", campaign)
        client.write(
            "INSERT INTO clicks (subid, campaign_id) SELECT ?, id FROM campaigns WHERE name = ?",
            *(subid, campaign),
        )
    for query in POSTBACKS:
        assert client.get(f"/{SETTINGS['postback_key']}/postback?{query}").status == 200
    receiver.close()
    (home / "config.ini.php").chmod(0o600)
    for name, content in FILES.items():
        (home / name).write_text(content)
    shim = home / "postback"
    shim.write_text(f'#!/bin/sh\nexec {" ".join(build_command())} "$@"\n')
    shim.chmod(0o755)


def run(home: Path, command: str) -> str:
    """Run a command of the page; returns its output as seen on a terminal."""
    if command.startswith("postback ") and not {"|", ">"} & set(command):
        printed = run_here(home, shlex.split(command)[1:])
    else:
        printed = run_in_shell(home, command)
    seen = unfold(CONTROLS.sub("", without_styles(printed)), home)
    # A finished progress bar leaves an empty line.
    return "".join(f"{line.rstrip()}\n" for line in seen.splitlines() if line.strip())


def unfold(text: str, home: Path) -> str:
    """Join paths that are so long that a line ends within them."""
    for name in ("config.ini.php", "postback.db", "copy.db"):
        path = f"{home}/{name}"
        text = re.sub(r"\s*".join(map(re.escape, path)), path, text)
    return text


def run_here(home: Path, words: list[str]) -> str:
    """Run it in this process: a dozen take no longer than one in a shell."""
    # With an encoding: where there is none, bars are drawn in ASCII.
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    before = dict(os.environ)
    try:
        os.environ.pop("POSTBACK_CONFIG", None)
        os.environ.update(LOOKS)
        with contextlib.chdir(home), redirect_stdout(printed), redirect_stderr(printed):
            cli.main(words)
    finally:
        os.environ.clear()
        os.environ.update(before)
    printed.seek(0)
    return printed.read()


def run_in_shell(home: Path, command: str) -> str:
    """Run a line that needs a shell."""
    environment = build_environment(LOOKS)
    environment["PATH"] = f"{home}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],  # noqa: S607  # wherever it is
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=60,
    )
    return done.stdout.decode()


def mask(text: str) -> list[str]:
    """Split a text into words, without the parts that differ at each run."""
    for pattern, instead in MASKS:
        text = pattern.sub(instead, text)
    # Where a line is folded depends on how long a path is.
    return text.split()


def test_the_recipes_print_what_the_page_says(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    prepare(tmp_path)
    page = RECIPES.read_text()

    for block in read_blocks(page):
        for command, printed in block.commands:
            assert mask(run(tmp_path, command)) == mask(printed), command


def test_there_are_ten_questions_each_with_a_command() -> None:
    _, *questions = RECIPES.read_text().split("\n## ")

    assert [question.partition(".")[0] for question in questions] == [
        str(number) for number in range(1, len(questions) + 1)
    ]
    assert len(questions) >= 10
    assert all("\n$ postback " in question for question in questions)


def write_page(home: Path) -> None:
    """Run the page's commands and write what they print into it."""
    prepare(home)
    page = RECIPES.read_text()
    written, end = "", 0
    for block in read_blocks(page):
        written += page[end : block.start]
        for command, _ in block.commands:
            printed = run(home, command)
            for pattern, instead in MASKS[-1:]:
                printed = pattern.sub(instead, printed)
            written += f"$ {command}\n{printed}"
        end = block.end
    RECIPES.write_text(written + page[end:])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        write_page(Path(directory))
    sys.stdout.write("docs/recipes.md is written anew\n")
