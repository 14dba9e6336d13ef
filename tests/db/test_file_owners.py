"""Links and second names in the database's directory: no file of somebody else's is given away.

The directory belongs to the service's user, and root runs commands there: what lies at a name of
ours may have been put there on purpose.
"""

import os
from pathlib import Path

import pytest
from cli_calls import call_process
from conftest import Client, write_config

from postbackd.config.edit import rotate_key
from postbackd.config.entries import ConfigError
from postbackd.db.sqlite.connection import DatabaseError, open_connection
from storage import open_database

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")

SERVICE_USER = 1234


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database that belongs to the service's user, where there is one."""
    path = tmp_path / "tracker" / "postback.db"
    path.parent.mkdir()
    open_database(path, "USD").close()
    Path(f"{path}-lock").unlink()
    if os.geteuid() == 0:
        for each in (path.parent, path):
            os.chown(each, SERVICE_USER, SERVICE_USER)
    return path


@pytest.fixture
def shadow(tmp_path: Path) -> Path:
    """A file that is none of the service's."""
    shadow = tmp_path / "shadow"
    shadow.touch(mode=0o600)
    return shadow


@pytest.mark.parametrize("suffix", ["-lock", "-wal", "-shm"])
def test_a_link_in_the_place_of_a_file_of_ours_is_not_followed(
    path: Path, shadow: Path, suffix: str
) -> None:
    Path(f"{path}{suffix}").symlink_to(shadow)

    with pytest.raises(DatabaseError) as refused:
        open_connection(path, "USD")

    assert str(path) in str(refused.value)
    assert suffix != "-lock" or "is a link, which is not followed: remove it" in str(refused.value)
    assert (shadow.stat().st_uid, shadow.stat().st_size) == (os.geteuid(), 0)


def test_a_new_database_is_not_made_where_a_link_leads(path: Path, shadow: Path) -> None:
    path.unlink()
    shadow.unlink()
    path.symlink_to(shadow)

    with pytest.raises(DatabaseError, match="is a link, which is not followed"):
        open_connection(path, "USD")

    assert not shadow.exists()


@AS_ROOT
@pytest.mark.parametrize("suffix", ["-lock", "-wal", "-shm"])
def test_root_gives_no_second_name_of_its_own_file_away(
    path: Path, shadow: Path, suffix: str
) -> None:
    Path(f"{path}{suffix}").hardlink_to(shadow)

    try:
        open_database(path, "USD").close()
        was_refused = False
    except DatabaseError as error:
        was_refused = f"postback.db{suffix}' is another name of a file" in str(error)

    assert shadow.stat().st_uid == 0
    assert shadow.read_bytes() == b""
    assert was_refused


@AS_ROOT
@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_root_gives_none_away_by_reading_either(client: Client, shadow: Path, suffix: str) -> None:
    client.get("/health")
    client.receiver.close()
    os.chown(client.database, SERVICE_USER, SERVICE_USER)
    Path(f"{client.database}{suffix}").hardlink_to(shadow)

    ran = call_process(client.directory, "log")

    assert "is another name of a file" in ran.err
    assert shadow.stat().st_uid == 0


@AS_ROOT
def test_a_lock_that_root_makes_is_the_services(path: Path) -> None:
    open_database(path, "USD").close()

    assert Path(f"{path}-lock").stat().st_uid == SERVICE_USER


def test_a_database_behind_a_link_is_locked_and_watched_where_it_is(path: Path) -> None:
    link = path.parent.parent / "link.db"
    link.symlink_to(path)

    with open_database(link, "USD") as db:
        assert Path(f"{path}-lock").exists()
        Path(f"{path}-wal").unlink()
        with pytest.raises(DatabaseError, match="replaced or removed"), db.transaction():
            pass

    assert sorted(each.name for each in link.parent.iterdir()) == ["link.db", "tracker"]


def test_a_link_that_takes_the_configs_place_is_not_read(
    tmp_path: Path, shadow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, {})
    shadow.write_bytes(config.read_bytes())
    config.unlink()
    config.symlink_to(shadow)
    # As if the link came right behind the look at where the name leads.
    monkeypatch.setattr(os.path, "realpath", str)

    with pytest.raises(ConfigError, match="cannot be read"):
        rotate_key(config, new_key="a-key-that-is-long-enough", keep_old_until="drop")

    assert config.is_symlink()
