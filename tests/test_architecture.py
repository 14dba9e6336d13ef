"""The house holds its shape: arrows between rooms point down only, and importing opens nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Each room and the floor it stands on; a room imports rooms of lower floors only, and rooms of the
# core import none. README.md names the rooms in the same order.
FLOORS = {
    "statuses": 0,
    "rates": 0,
    "php_ini": 0,
    "rearm": 0,
    "currencies": 0,
    "file_kinds": 0,
    "proxies": 0,
    "sheet": 1,
    "query": 1,
    "pasted": 1,
    "amounts": 2,
    "titles": 2,
    "odd_rows": 2,
    "rows": 1,
    "schema": 1,
    "feeds": 1,
    "download": 1,
    "config": 2,
    "database": 2,
    "config_watch": 3,
    "config_edit": 3,
    "logs": 3,
    "storage": 3,
    "copying": 3,
    "clicks": 4,
    "booking": 4,
    "writer": 4,
    "ratebook": 4,
    "keyuses": 4,
    "reports": 4,
    "listings": 4,
    "traffic": 4,
    "audit": 4,
    "moments": 5,
    "counting": 5,
    "questions": 5,
    "sifting": 5,
    "recomputing": 5,
    "purging": 5,
    "parts": 5,
    "replaying": 5,
    "rounds": 5,
    "rehearsal": 6,
    "hints": 6,
    "service": 6,
    "fetching": 6,
    "postback": 7,
    "explaining": 8,
    "wire": 8,
    "connections": 9,
    "worker": 10,
    "server": 10,
    "cells": 10,
    "terminal": 11,
    "launch": 11,
    "display": 12,
    "commands": 13,
    "cli": 14,
}


def rooms() -> dict[str, list[Path]]:
    """Every room with its files: the modules at the top and the packages' modules."""
    # Not gunicorn.conf.py: nobody can import a name with a dot in it.
    found = {path.stem: [path] for path in ROOT.glob("*.py") if path.stem.isidentifier()}
    for package in ROOT.glob("*/__init__.py"):
        if package.parent.name in FLOORS:
            found[package.parent.name] = sorted(package.parent.glob("*.py"))
    return found


def imports_of(path: Path) -> set[str]:
    """The top-level names that a file imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_every_room_has_its_floor() -> None:
    assert set(rooms()) == set(FLOORS)


def test_the_readme_shows_every_room_in_order() -> None:
    table = (ROOT / "README.md").read_text().partition("| room |")[2]
    listed = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", table, re.MULTILINE)

    assert set(listed) == set(FLOORS)
    assert [FLOORS[room] for room in listed] == sorted(FLOORS[room] for room in listed)


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"^python3 -m venv .*pytest$", (ROOT / "README.md").read_text(), re.M)

    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_arrows_point_down_only() -> None:
    upward = [
        f"{room} -> {name}"
        for room, paths in rooms().items()
        for path in paths
        for name in imports_of(path) & set(FLOORS) - {room}
        if FLOORS[name] >= FLOORS[room]
    ]

    assert upward == []


def test_every_room_is_installed() -> None:
    listed = (ROOT / "setup.cfg").read_text().partition("py_modules =")[2]
    modules = listed.partition("\ninstall_requires")[0].split()

    assert set(FLOORS) <= {*modules, "packages", "=", "commands"}


def test_importing_the_application_opens_and_starts_nothing(tmp_path: Path) -> None:
    script = """
import os, sys, threading
before = set(os.listdir('/proc/self/fd'))
import postback
assert callable(postback.application)
assert threading.active_count() == 1
assert len(set(os.listdir('/proc/self/fd'))) == len(before), 'an open file'
assert os.listdir('.') == []
"""

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
