"""The house holds its shape: arrows between rooms point down only, and importing opens nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from tree import ROOT, read_distribution

# Each room and the floor it stands on; a room imports rooms of lower floors only, and rooms of the
# core import none. README.md names the rooms in the same order.
FLOORS = {
    "statuses": 0,
    "rates": 0,
    "raw_text": 0,
    "php_ini": 0,
    "json_fields": 0,
    "multipart_fields": 0,
    "unpacking": 0,
    "currencies": 0,
    "masking": 0,
    "rearm": 0,
    "file_kinds": 0,
    "editor_marks": 0,
    "proxies": 0,
    "public_address": 0,
    "files": 0,
    "stops": 0,
    "lock_holders": 0,
    "wal_index": 0,
    "caught": 0,
    "near_names": 0,
    "macros": 0,
    "nested_names": 1,
    "escapes": 1,
    "wire_amounts": 1,
    "overwriting": 1,
    "sheet": 1,
    "answers": 1,
    "rows": 1,
    "schema": 1,
    "feeds": 1,
    "download": 1,
    "query": 2,
    "config": 2,
    "database": 2,
    "amounts": 3,
    "titles": 3,
    "odd_rows": 3,
    "body": 3,
    "addresses": 3,
    "config_watch": 3,
    "config_edit": 3,
    "logs": 3,
    "storage": 3,
    "copying": 3,
    "ratebook": 3,
    "shell_commands": 4,
    "request_logs": 4,
    "clicks": 4,
    "booking": 4,
    "writer": 4,
    "keyuses": 4,
    "refusals": 4,
    "reports": 4,
    "listings": 4,
    "traffic": 4,
    "audit": 4,
    "rounds": 4,
    "pasted": 5,
    "moments": 5,
    "questions": 5,
    "sifting": 5,
    "recomputing": 5,
    "purging": 5,
    "parts": 5,
    "replaying": 5,
    "soundness": 5,
    "restoring": 5,
    "runner": 5,
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
    """Every room that is installed, with its files: the modules at the top and the packages'."""
    found: dict[str, list[Path]] = {}
    for module, path in read_distribution().modules.items():
        found.setdefault(module.partition(".")[0], []).append(path)
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


def test_the_server_imports_nothing_of_the_receiver() -> None:
    """Any WSGI callable runs under the worker; only the settings name ours."""
    for room in ("wire", "connections", "worker"):
        assert "postback" not in imports_of(ROOT / f"{room}.py"), room


def test_every_module_is_installed() -> None:
    tops = [ROOT / path for paths in rooms().values() for path in paths if path.parent == ROOT]
    packages = {path.parent for path in read_distribution().modules.values()} - {ROOT}
    # Not gunicorn.conf.py: nobody can import a name with a dot in it.
    there = [path for path in ROOT.glob("*.py") if path.stem.isidentifier()]
    there += [path for package in packages for path in package.rglob("*.py")]

    assert {*tops, *read_distribution().modules.values()} == set(there)


def test_what_a_module_imports_of_the_tree_is_installed() -> None:
    """Tests and benches may import what is not."""
    installed = set(read_distribution().modules)
    in_the_tree = {path.stem for path in ROOT.glob("*.py")}
    in_the_tree |= {path.parent.name for path in ROOT.glob("*/*.py")}

    for paths in rooms().values():
        for path in paths:
            assert imports_of(path) & in_the_tree <= installed, path


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
