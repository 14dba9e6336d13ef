"""README's code map is true: arrows between its rows point down only, and none is hidden."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest
from tree import ROOT, read_distribution

# The rows of the code map, from the lowest on: what is in a row imports rows of lower numbers only.
LEVELS = {
    "statuses.py": 1,
    "rates.py": 1,
    "postbackd/files.py": 1,
    "postbackd/masking.py": 1,
    "postbackd/raw_text.py": 1,
    "postbackd/zones.py": 1,
    "postbackd/escapes.py": 2,
    "postbackd/db": 3,
    "postbackd/config": 3,
    "storage.py": 4,
    "postbackd/reports": 5,
    "postbackd/exchange": 5,
    "postbackd/intake": 6,
    "postback.py": 7,
    "postbackd/bulk": 8,
    "postbackd/server": 8,
    "postbackd/explain": 8,
    "postbackd/cli": 9,
}

# Rows whose code starts a process of a higher row by its name. Nothing of it is imported.
STARTS = {
    # Rates are fetched by the command `postback rates update`.
    ("postbackd/exchange", "postbackd/cli"),
}

# Code that is not installed: it may import anything, and nothing may import it.
NOT_INSTALLED = ("tools", "tests", "conftest")


@cache
def modules() -> dict[str, Path]:
    """Every module that is installed: its dotted name, and its file."""
    return read_distribution().modules


def row_of(module: str) -> str:
    """The row of the code map that a module belongs to."""
    parts = module.split(".")
    if len(parts) == 1 or (len(parts) == 2 and not is_package(module)):
        return f"{'/'.join(parts)}.py"
    return "/".join(parts[:2])


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


@cache
def read(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


def imports_of(module: str) -> set[str]:
    """The modules of ours that a module imports, at the top or anywhere within."""
    return {name for found in find_imports(read(module)) if (name := find_module(found))}


def find_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_module(dotted: str) -> str | None:
    """The longest part of a dotted name that is a module of ours."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in modules():
            return name
    return None


def names_in_strings(module: str) -> set[str]:
    """The modules of ours that a module names in strings: for `-m`, gunicorn, importlib."""
    tree = read(module)
    docstrings = {
        ast.get_docstring(node, clean=False) for node in ast.walk(tree) if may_speak(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value not in docstrings:
            for dotted in re.findall(r"\bpostbackd(?:\.\w+)+", str(node.value)):
                found |= with_all_inside(dotted)
    return found


def may_speak(node: ast.AST) -> TypeGuard[ast.Module | ast.ClassDef | ast.FunctionDef]:
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)


def with_all_inside(dotted: str) -> set[str]:
    """A module; of a package that is named up to a dot (`postbackd.cli.commands.{name}`) all."""
    name = find_module(dotted)
    if name is None or not is_package(name):
        return set() if name is None else {name}
    return {each for each in modules() if each.startswith(f"{name}.")}


def arrows() -> set[tuple[str, str]]:
    """From which row to which other row code is imported, or named in a string."""
    return {
        (row_of(module), row_of(other))
        for module in modules()
        for other in imports_of(module) | names_in_strings(module)
        if row_of(module) != row_of(other) and other != "postbackd"
    }


def test_every_module_is_installed() -> None:
    # Not gunicorn.conf.py: nobody can import a name with a dot in it.
    there = [path for path in ROOT.glob("*.py") if path.stem.isidentifier()]
    there += (ROOT / "postbackd").rglob("*.py")

    assert set(modules().values()) == set(there)


def test_every_module_is_in_a_row() -> None:
    assert {row_of(module) for module in modules() if module != "postbackd"} == set(LEVELS)


def test_the_code_map_has_these_rows_in_this_order() -> None:
    table = (ROOT / "README.md").read_text().partition("## Code map")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([\w/.]+)` \|", table, re.MULTILINE)

    assert sorted(listed) == sorted(LEVELS)
    assert [LEVELS[row] for row in listed] == sorted(LEVELS[row] for row in listed)


def test_the_code_map_names_functions_that_exist() -> None:
    table = (ROOT / "README.md").read_text().partition("## Code map")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)` in `([\w/]+\.py)`", table)
    named += [(name, path) for path, name in re.findall(r"^\| `(\w+\.py)` .*`(_\w+)`", table, re.M)]

    assert len(named) >= 3
    for name, path in named:
        tree = ast.parse((ROOT / path).read_text())
        assert any(isinstance(n, ast.FunctionDef) and n.name == name for n in tree.body), name


def test_arrows_point_down_only() -> None:
    upward = [arrow for arrow in arrows() if LEVELS[arrow[1]] >= LEVELS[arrow[0]]]

    assert sorted(set(upward) - STARTS) == []
    # What is gone is no exception any more.
    assert set(upward) >= STARTS


def test_no_module_reaches_itself() -> None:
    """No circle of imports, within a row neither."""
    below = {module: imports_of(module) | names_in_strings(module) for module in modules()}
    started = {
        module: {other for other in below[module] if (row_of(module), row_of(other)) in STARTS}
        for module in below
    }
    left = {module: below[module] - started[module] - {module} for module in below}
    while leaves := [module for module, others in left.items() if not others & set(left)]:
        for module in leaves:
            del left[module]

    assert left == {}


def test_the_worker_imports_nothing_of_the_receiver() -> None:
    """Any WSGI callable runs under it; only gunicorn's settings name ours."""
    for name in ("http_request", "http_response", "connection", "worker"):
        assert "postback" not in imports_of(f"postbackd.server.{name}"), name


def test_nothing_installed_imports_what_is_not() -> None:
    found = [
        f"{module}: {name}"
        for module in modules()
        for name in find_imports(read(module))
        if name.partition(".")[0] in NOT_INSTALLED
    ]

    assert found == []


@pytest.mark.parametrize("directory", ["", "postbackd", "tools", "tests"])
def test_every_module_says_in_its_first_line_what_is_in_it(directory: str) -> None:
    paths = (ROOT / directory).rglob("*.py") if directory else ROOT.glob("*.py")
    silent = [path for path in paths if not ast.get_docstring(ast.parse(path.read_text()))]

    assert silent == []


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"^python3 -m venv .*pytest$", (ROOT / "README.md").read_text(), re.M)

    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()


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
