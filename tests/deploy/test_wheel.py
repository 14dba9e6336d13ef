"""The program as installed: what the wheel holds, and that no stranger's module takes its place."""

import configparser
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import POSTBACK_KEY, write_config
from live import PATIENCE_SECONDS, wait_until
from tree import ROOT

# What the wheel is built from.
SOURCES = (
    *("postbackd", "config.ini.php.example", "setup.cfg"),
    *("pyproject.toml", "README.md", "LICENSE"),
)
MODULES = ("postback.py", "rates.py", "statuses.py", "storage.py")

# Names that a package of the index has, or that somebody gives a module of theirs.
STRANGERS = ("config", "schema", "database", "server", "query", "logs", "commands", "cli", "worker")
NOT_OURS = "raise SystemExit('this module is not of postback')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it from a copy, so that the sources stay as they are."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in (*SOURCES, *MODULES):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    script = f"from setuptools import build_meta; build_meta.build_wheel({str(built)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [found] = built.glob("*.whl")
    return found


def test_a_wheel_holds_four_modules_and_a_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    by_top: dict[str, set[str]] = {}
    for name in names:
        by_top.setdefault(name.partition("/")[0], set()).add(name)
    [about] = [top for top in by_top if top.endswith(".dist-info")]
    [beside] = [top for top in by_top if top.endswith(".data")]

    assert set(by_top) == {*MODULES, "postbackd", about, beside}
    assert by_top[beside] == {f"{beside}/data/share/postback/config.ini.php.example"}
    assert by_top["postbackd"] == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "postbackd").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_setup_cfg_lists_no_module_but_those() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["py_modules"].split()

    assert sorted(f"{name}.py" for name in listed) == sorted(MODULES)


# Installed, among strangers


class Installed:
    """An environment with the wheel, beside modules of somebody else's."""

    def __init__(self, home: Path) -> None:
        self.python = home / "bin" / "python"
        self.command = home / "bin" / "postback"
        self.gunicorn = home / "bin" / "gunicorn"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False)
    found = Installed(home)
    [packages] = home.glob("lib/python*/site-packages")
    # What it depends on comes from here, behind its own: no network is asked.
    here = [path for path in sys.path if path.endswith("-packages")]
    (packages / "here.pth").write_text("".join(f"{path}\n" for path in here))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(found.python), "install", "--quiet"),
            *("--no-index", "--no-deps", "--disable-pip-version-check", str(wheel)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # As pip writes it where gunicorn is installed into the same environment.
    found.gunicorn.write_text(
        f"#!{found.python}\nimport sys\nfrom gunicorn.app.wsgiapp import run\nsys.exit(run())\n"
    )
    found.gunicorn.chmod(0o755)
    write_strangers(packages, STRANGERS)
    return found


def write_strangers(directory: Path, names: Sequence[str]) -> None:
    for name in names:
        (directory / f"{name}.py").write_text(NOT_OURS)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A working directory with a config, and modules of somebody else's."""
    write_config(tmp_path, {})
    write_strangers(tmp_path, STRANGERS)
    return tmp_path


def clean_environment(**more: str) -> dict[str, str]:
    """Without what would lead to the sources."""
    unwanted = {"PYTHONPATH", "POSTBACK_CONFIG", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in unwanted} | more


@contextmanager
def serving(command: Sequence[object], directory: Path) -> Iterator[str]:
    """Run a server on a port that the kernel chooses; returns where it listens."""
    log = directory / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=directory,
            env=clean_environment(),
            stdout=output,
            stderr=output,
        )
    try:
        pattern = r"Listening at: (http://127\.0\.0\.1:[0-9]+)"
        wait_until(
            lambda: bool(re.search(pattern, log.read_text())) or process.poll() is not None,
            "the server to listen",
        )
        found = re.search(pattern, log.read_text())
        assert found, log.read_text()
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)


def ask(url: str) -> str | None:
    with urlopen(url, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310 an address of ours
        verdict: str | None = answer.headers["X-Postback-Result"]
        return verdict


def test_the_command_runs_among_strangers(installed: Installed, home: Path) -> None:
    ran = subprocess.run(
        [installed.command, "key", "show"],
        cwd=home,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[0] == POSTBACK_KEY


def test_serve_answers_among_strangers(installed: Installed, home: Path) -> None:
    # Started by it, not even our own four may be somebody else's.
    write_strangers(home, [Path(name).stem for name in MODULES])
    write_strangers(home, ["gunicorn", "json", "postbackd"])

    with serving([installed.command, "serve", "--bind", "127.0.0.1:0"], home) as url:
        assert ask(f"{url}/{POSTBACK_KEY}/postback?subid=c1") == "parked"


@pytest.mark.parametrize(
    "options", [(), ("--config", "python:postbackd.server.gunicorn_conf")], ids=["bare", "ours"]
)
def test_gunicorn_answers_among_strangers(
    installed: Installed, home: Path, options: tuple[str, ...]
) -> None:
    command = [installed.gunicorn, *options, "--bind", "127.0.0.1:0", "postback:application"]
    with serving(command, home) as url:
        assert ask(f"{url}/{POSTBACK_KEY}/postback?subid=c1") == "parked"


def test_the_example_of_the_config_is_installed(installed: Installed, tmp_path: Path) -> None:
    with serving([installed.command, "serve", "--bind", "127.0.0.1:0"], tmp_path) as url:
        assert ask(f"{url}/health") is None

    assert "postback_key" in (tmp_path / "config.ini.php").read_text()
