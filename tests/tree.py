"""Where the project's files are, and which of them are installed."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

# However deep below it a test is.
ROOT = next(path for path in Path(__file__).parents if (path / "setup.cfg").is_file())
TESTS = ROOT / "tests"


def find_data(name: str) -> Path:
    """Find a file or directory that tests read, wherever in their tree it is."""
    [found] = TESTS.rglob(name)
    return found


class Distribution(NamedTuple):
    """What an installation gets: modules by their dotted names, and the other files of packages."""

    modules: dict[str, Path]
    files: list[Path]


# What setuptools makes of setup.cfg, in a process of its own: it patches what it imports.
_ASK_SETUPTOOLS = """
import json
from setuptools import Distribution
found = Distribution({"script_name": "setup.py"})
found.parse_config_files()
build = found.get_command_obj("build_py")
build.ensure_finalized()
found = build.find_all_modules()
modules = {f"{package}.{name}".lstrip("."): path for package, name, path in found}
files = [f"{place}/{name}" for _, place, _, names in build.data_files for name in names]
print(json.dumps([modules, files]))
"""


@cache
def read_distribution() -> Distribution:
    """Ask setuptools what it would install."""
    asked = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ASK_SETUPTOOLS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    modules, files = json.loads(asked.stdout.splitlines()[-1])
    return Distribution(
        {name.removesuffix(".__init__"): ROOT / path for name, path in modules.items()},
        [ROOT / path for path in files],
    )
