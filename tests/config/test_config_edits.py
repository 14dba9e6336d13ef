"""Writing a new config.ini.php, and changing the key in one that a person keeps."""

import datetime
import os
import re
import stat
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbackd.config import edit
from postbackd.config import settings as config
from postbackd.config.edit import rotate_key, write_new
from postbackd.config.entries import ConfigError
from postbackd.config.settings import OldKey, load

DAY = datetime.date(2026, 12, 31)
GUARD = ";<?php exit; ?>\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.ini.php"


def only(file: Path) -> list[str]:
    """What stands in the directory."""
    return sorted(os.listdir(file.parent))


# A new file.


def test_a_new_file_is_the_example_with_a_fresh_key(file: Path) -> None:
    settings = write_new(file)

    assert re.fullmatch(rb"[0-9a-f]{32}", settings.postback_key)
    assert settings == load(file)
    key = settings.postback_key.decode()
    assert file.read_text() == config.example_text().replace(
        'postback_key = ""', f'postback_key = "{key}"', 1
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert only(file) == [file.name]


def test_two_new_files_have_two_keys(tmp_path: Path) -> None:
    assert write_new(tmp_path / "a").postback_key != write_new(tmp_path / "b").postback_key


def test_a_new_file_takes_a_key_of_ones_own(file: Path) -> None:
    settings = write_new(file, postback_key='my "$own\\ key')

    assert settings.postback_key == b'my "$own\\ key'
    assert load(file) == settings


@pytest.mark.parametrize("there", ["a file", "a dangling link"])
def test_an_existing_file_is_never_overwritten(file: Path, there: str) -> None:
    if there == "a file":
        file.write_text("mine")
    else:
        file.symlink_to("nowhere")

    with pytest.raises(ConfigError, match="exists already"):
        write_new(file)

    assert file.is_symlink() or file.read_text() == "mine"
    assert only(file) == [file.name]


@pytest.mark.parametrize("key", ["", "a\nb", "a\x00b"])
def test_a_new_file_needs_a_usable_key(file: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="control character"):
        write_new(file, postback_key=key)

    assert only(file) == []


def test_a_missing_directory_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing/config.ini.php cannot be written: No such"):
        write_new(file.parent / "missing" / file.name)


# Another key in an existing file.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '[system]\npostback_key = "old" ; mine\nsalt = x\n',
            '[system]\npostback_key = "new" ; mine\npostback_key_old = "old until 2026-12-31"\n'
            "salt = x\n",
        ),
        (
            "\t[system]\r\n\tpostback_key\t=\t'old'\r\n; end",
            "\t[system]\r\n\tpostback_key\t=\t'new'\r\n"
            '\tpostback_key_old = "old until 2026-12-31"\r\n; end',
        ),
        (
            "postback_key = old",
            'postback_key = new\npostback_key_old = "old until 2026-12-31"',
        ),
        (
            'postback_key="o\\"l\\$d"\r\n[system]\r\n',
            'postback_key="new"\r\npostback_key_old = "o\\"l\\$d until 2026-12-31"\r\n[system]\r\n',
        ),
        (
            '[x]\npostback_key = "o\nl"d\n',
            None,
        ),
        (
            "[x]\npostback_key = o\"l\"'d' ; three pieces\n",
            '[x]\npostback_key = new ; three pieces\npostback_key_old = "old until 2026-12-31"\n',
        ),
        (
            "[system]\npostback_key_old = a,b until 2020-01-01 ; two\n\npostback_key = old\n",
            '[system]\npostback_key_old = "a,b until 2020-01-01, old until 2026-12-31" ; two\n'
            "\npostback_key = new\n",
        ),
        (
            "[system]\npostback_key = old\npostback_key_old = 'new until 2027-01-01, a'\n",
            "[system]\npostback_key = new\npostback_key_old = 'a, old until 2026-12-31'\n",
        ),
        (
            "[system]\npostback_key = old\npostback_key_old =\n",
            '[system]\npostback_key = new\npostback_key_old = "old until 2026-12-31"\n',
        ),
        (
            "[system]\npostback_key = lost\npostback_key = old\n[db]\npath = x.db",
            "[system]\npostback_key = lost\npostback_key = new\n"
            'postback_key_old = "old until 2026-12-31"\n[db]\npath = x.db',
        ),
        (
            "[system]\npostback_key = ''\n",
            "[system]\npostback_key = 'new'\n",
        ),
        (
            "[system]\npostback_key =\n",
            '[system]\npostback_key = "new"\n',
        ),
        (
            "[system]\npostback_key = no;c\n",
            "[system]\npostback_key = new;c\n",
        ),
    ],
)
def test_only_the_key_changes_and_the_old_one_is_kept(
    file: Path, before: str, after: str | None
) -> None:
    file.write_bytes((GUARD + before).encode())

    if after is None:
        with pytest.raises(ConfigError, match="blank or a comma"):
            rotate_key(file, new_key="new", keep_old_until=DAY)
        assert file.read_bytes() == (GUARD + before).encode()
    else:
        settings = rotate_key(file, new_key="new", keep_old_until=DAY)
        assert file.read_bytes() == (GUARD + after).encode()
        assert settings.postback_key == b"new"
        assert settings == load(file)
    assert only(file) == [file.name]


@pytest.mark.parametrize(
    ("keep", "old_keys"),
    [(DAY, (OldKey(b"old", DAY),)), (None, (OldKey(b"old", None),)), ("drop", ())],
)
def test_the_present_key_is_kept_or_dropped(
    file: Path, keep: datetime.date | Literal["drop"] | None, old_keys: tuple[OldKey, ...]
) -> None:
    file.write_text(GUARD + "[system]\npostback_key = old\n")

    settings = rotate_key(file, new_key="new", keep_old_until=keep)

    assert settings.old_keys == old_keys
    assert load(file) == settings


def test_a_dropped_key_leaves_the_list_of_old_ones_too(file: Path) -> None:
    file.write_text(GUARD + "[system]\npostback_key = old\npostback_key_old = old, older\n")

    settings = rotate_key(file, new_key="new", keep_old_until="drop")

    assert settings.old_keys == (OldKey(b"older", None),)


def test_a_multi_line_key_gives_way_when_it_is_dropped(file: Path) -> None:
    file.write_text(GUARD + '[system]\npostback_key = "o\nl\nd" ; mine\nsalt = x\n')

    rotate_key(file, new_key="new", keep_old_until="drop")

    assert file.read_text() == GUARD + '[system]\npostback_key = "new" ; mine\nsalt = x\n'


def test_a_key_that_is_not_text_survives(file: Path) -> None:
    file.write_bytes(GUARD.encode() + b"[system]\n; \xe9t\xe9\npostback_key = k\xff\n")

    settings = rotate_key(file, new_key="new", keep_old_until=None)

    assert settings.old_keys == (OldKey(b"k\xff", None),)
    assert b"; \xe9t\xe9\n" in file.read_bytes()


@pytest.mark.parametrize("new_key", ["yes", "E_ALL", "a!b", 'a"b\\', "it's", "${HOME}", "a;b", "ж"])
@pytest.mark.parametrize("written", ["old", "'old'", '"old"'])
def test_a_new_key_is_quoted_as_it_needs(file: Path, new_key: str, written: str) -> None:
    file.write_text(GUARD + f"[system]\npostback_key = {written}\n")

    rotate_key(file, new_key=new_key, keep_old_until=None)

    assert load(file).postback_key == new_key.encode()


KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@given(KEYS, KEYS, st.sampled_from([DAY, None, "drop"]))
def test_a_rotation_gives_exactly_the_wanted_keys_or_changes_nothing(
    file: Path, old: str, new: str, keep: datetime.date | Literal["drop"] | None
) -> None:
    file.unlink(missing_ok=True)
    write_new(file, postback_key=old)
    before = file.read_bytes()

    try:
        settings = rotate_key(file, new_key=new, keep_old_until=keep)
    except ConfigError:
        assert file.read_bytes() == before
        return
    kept = keep != "drop" and old != new
    assert settings == load(file)
    assert settings.postback_key == new.encode()
    assert [key.key for key in settings.old_keys] == ([old.encode()] if kept else [])


@pytest.mark.parametrize(
    ("text", "new_key", "said"),
    [
        ("[system]\nsalt = x\n", "new", "has no postback_key"),
        ("[system]\npostback_key = s3cret(\n", "new", "line 3: '(' needs quotes"),
        ("[system]\npostback_key[] = s3cret\n", "new", "written as a list"),
        ("[system]\npostback_key = s3cret\n", "", "is empty"),
        ("[system]\npostback_key = s3cret\n", "a\nb", "control character"),
        ("[system]\npostback_key = s3cret\npixel_key = 0ther\n", "0ther", "also a postback key"),
        ('[system]\npostback_key = "s3,cret"\n', "new", "blank or a comma"),
        ("[system]\npostback_key = s3cret\n[postback]\npark_days = x\n", "new", "park_days is 'x'"),
        ("[system]\npostback_key = s3cret$\n\n", "new", "blank or a comma"),
        ("[system]\npostback_key = s3cret'\n", "new", "left as it is"),
    ],
)
def test_a_file_that_cannot_be_edited_safely_is_left_as_it_is(
    file: Path, text: str, new_key: str, said: str
) -> None:
    file.write_text(GUARD + text)

    with pytest.raises(ConfigError) as refusal:
        rotate_key(file, new_key=new_key, keep_old_until=DAY)

    assert said in str(refusal.value)
    assert not re.search("s3,?cret|0ther", str(refusal.value))
    assert file.read_text() == GUARD + text
    assert only(file) == [file.name]


def test_the_mode_of_the_file_stays(file: Path) -> None:
    file.write_text(GUARD + "postback_key = old\n")
    file.chmod(0o640)

    rotate_key(file, new_key="new", keep_old_until="drop")

    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_the_owner_of_the_file_stays(file: Path) -> None:
    file.write_text(GUARD + "postback_key = old\n")
    os.chown(file, 1234, 5678)

    rotate_key(file, new_key="new", keep_old_until="drop")

    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 5678)


def test_who_may_not_give_a_file_away_still_rotates(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(GUARD + "postback_key = old\n")

    def refused(*_args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)

    assert rotate_key(file, new_key="new", keep_old_until="drop").postback_key == b"new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(
    ("owner", "group", "mode", "is_refused"),
    [(1234, -1, 0o600, True), (-1, 1234, 0o640, True), (-1, 1234, 0o600, False)],
)
def test_a_file_that_others_would_lose_is_left_to_them(
    file: Path, monkeypatch: pytest.MonkeyPatch, owner: int, group: int, mode: int, is_refused: bool
) -> None:
    file.write_text(GUARD + "postback_key = old\n")
    os.chown(file, owner, group)
    file.chmod(mode)

    def refused(*_args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)

    said = ""
    try:
        rotate_key(file, new_key="new", keep_old_until="drop")
    except ConfigError as refusal:
        said = str(refusal)
    assert ("belongs to another user or group" in said) == is_refused
    assert file.read_text() == GUARD + f"postback_key = {'old' if is_refused else 'new'}\n"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    target = tmp_path / "etc" / "real.ini.php"
    target.write_text(GUARD + "postback_key = old\n")
    file.symlink_to(target)

    settings = rotate_key(file, new_key="new", keep_old_until="drop")

    assert file.is_symlink()
    assert load(target).postback_key == b"new"
    assert settings == load(file)


def test_a_change_by_someone_else_meanwhile_is_not_lost(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(GUARD + "postback_key = old\n")
    real_checked = edit._checked

    def slowly(*args: object) -> config.Settings:
        file.write_text(GUARD + "postback_key = theirs\n")
        return real_checked(*args)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(edit, "_checked", slowly)
    with pytest.raises(ConfigError, match="changed by someone else"):
        rotate_key(file, new_key="new", keep_old_until="drop")

    assert load(file).postback_key == b"theirs"
    assert only(file) == [file.name]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_full_disk_leaves_the_file_whole(
    file: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GUARD + "postback_key = old\n"
    file.write_text(text)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ConfigError, match="cannot be changed: No space left on device"):
        rotate_key(file, new_key="new", keep_old_until="drop")

    assert file.read_text() == text
    assert only(file) == [file.name]


def test_the_new_file_is_synced_before_it_takes_the_place(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(GUARD + "postback_key = old\n")
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_fsync(handle)

    def put_in_place(new: str, old: Path) -> None:
        steps.append("replace")
        real_replace(new, old)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", put_in_place)
    rotate_key(file, new_key="new", keep_old_until="drop")

    assert steps == ["file", "replace", "directory"]
