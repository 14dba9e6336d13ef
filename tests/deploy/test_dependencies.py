"""requirements.lock against setup.cfg, and the images that are pulled: all of it pinned."""

import configparser
import re
import tomllib
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tree import ROOT

LOCK = ROOT / "requirements.lock"


class Pin(NamedTuple):
    """A package in the lock."""

    version: str
    hashes: list[str]
    wanted_by: list[str]


def read_lock() -> dict[str, Pin]:
    """Read the lock: each package, its version, its hashes, and what wants it."""
    pins = {}
    for block in re.split(r"^(?=[a-z0-9])", LOCK.read_text(), flags=re.MULTILINE)[1:]:
        name, _, version = block.split()[0].partition("==")
        wanted_by = re.findall(r"^    #(?: via)?\s+(?!via$)(\S+)", block, re.MULTILINE)
        pins[name] = Pin(version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block), wanted_by)
    return pins


def read_requirements() -> dict[str, Requirement]:
    """Read what the package needs, and what builds it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split("\n")
    lines += tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_the_lock_has_every_package_that_setup_cfg_asks_for_and_no_other() -> None:
    pins = read_lock()

    asked = {
        name
        for name, pin in pins.items()
        if {"postback", "(pyproject.toml:build)"} & {*pin.wanted_by}
    }
    brought = {name: pin.wanted_by for name, pin in pins.items() if name not in asked}

    assert asked == set(read_requirements())
    assert brought, "rich brings packages of its own"
    assert {wanting for wanted_by in brought.values() for wanting in wanted_by} <= set(pins)


@pytest.mark.parametrize("name", sorted(read_requirements()))
def test_the_lock_satisfies_setup_cfg(name: str) -> None:
    assert read_requirements()[name].specifier.contains(read_lock()[name].version)


def test_every_package_of_the_lock_has_its_hashes() -> None:
    assert [name for name, pin in read_lock().items() if not (pin.version and pin.hashes)] == []


def test_the_lock_says_how_it_was_made_and_names_no_host() -> None:
    text = LOCK.read_text()

    assert f" --output-file {LOCK.name} " in text.splitlines()[1]
    assert "://" not in text


def test_what_is_locked_for_building_is_what_builds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml"])
def test_every_image_is_pulled_by_its_digest(file: str) -> None:
    text = (ROOT / "deploy" / "docker" / file).read_text()

    images = re.findall(r"^(?:FROM| +image:) (\S+)", text, re.MULTILINE)

    assert len(images) == 2
    for image in images:
        assert re.fullmatch(r"[a-z/]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image
    # Both stages of the Dockerfile begin from one image: what one builds the other runs.
    assert len(set(images)) == {"Dockerfile": 1, "compose.yaml": 2}[file]


def test_the_image_is_installed_from_the_lock_and_nothing_else() -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()

    installing = re.findall(r"pip install (.*?)(?: \\)?$", text, re.MULTILINE)

    assert len(installing) == 2
    assert "--require-hashes -r /src/requirements.lock" in installing[0]
    assert "--no-deps --no-build-isolation /src" in installing[1]
