"""Writes files atomically: under a temporary name beside the target, synced, renamed."""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

# The suffix of all our temporary files. Files left by a killed command are found by it, so no other
# program may use it.
PART_SUFFIX = ".postback.part"


class Part(NamedTuple):
    """A temporary file: its path, and an open descriptor with a lock on it."""

    path: Path
    handle: int


def sync_directory(directory: Path) -> None:
    """Sync the names in a directory."""
    # Without it a power cut may remove a new file's name, and the file with it.
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_or_make(path: Path) -> tuple[int, bool]:
    """Open a file to read and write; True if it was created, for its owner only.

    A link is not followed, whoever made it: OSError.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            # EXCL: a file created by this call is nobody else's.
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileExistsError:
            pass
        try:
            return os.open(path, flags), False
        except FileNotFoundError:
            # Removed between the two calls.
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise OSError(error.errno, _IS_LINK, str(path)) from None


_IS_LINK = "is a link, which is not followed: remove it"


@contextmanager
def part_beside(target: Path) -> Iterator[Part]:
    """Create an empty file beside the target, readable for its owner only; removed at the end.

    `give_name` renames it to the target. Parts left in the directory by killed commands are
    removed.
    """
    remove_abandoned(target.parent)
    part = _make_part(target)
    try:
        yield part
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part.path)
        os.close(part.handle)


def give_name(part: Part, target: Path, *, replaces: bool) -> None:
    """Sync the part and rename it to the target; FileExistsError if it may not replace one."""
    os.fsync(part.handle)
    if replaces:
        os.replace(part.path, target)
    else:
        _give_new_name(part.path, target)
    sync_directory(target.parent)


@contextmanager
def private_directory(name: str) -> Iterator[Path]:
    """Create a directory for temporary files, for this user only; removed at the end.

    Such directories of the same user left by killed commands are removed.
    """
    place = Path(tempfile.gettempdir())
    remove_abandoned(place)
    path, handle = _make_directory(place, name)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def find_abandoned(directory: Path) -> Iterator[Path]:
    """Find this user's parts and private directories that no living process has locked."""
    try:
        names = [name for name in os.listdir(directory) if name.endswith(PART_SUFFIX)]
    except OSError:
        return
    for name in sorted(names):
        with suppress(OSError), _holding(directory / name):
            yield directory / name


def remove_abandoned(directory: Path) -> None:
    """Remove the files that `find_abandoned` finds, as far as this user may."""
    for path in find_abandoned(directory):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(path)


def _make_part(target: Path) -> Part:
    while True:
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}.", suffix=PART_SUFFIX
        )
        path = Path(name)
        if _hold(handle, path):
            return Part(path, handle)


def _make_directory(place: Path, name: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(dir=place, prefix=f".{name}.", suffix=PART_SUFFIX))
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if _hold(handle, path):
                return path, handle


def _hold(handle: int, path: Path) -> bool:
    """Lock a new part; False, and closed, if another command has removed it as abandoned."""
    # The kernel releases the lock when its process ends, however it ends. A process id in the name
    # would mean nothing in another container, and is used again later.
    fcntl.flock(handle, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), os.lstat(path)):
            return True
    os.close(handle)
    return False


@contextmanager
def _holding(path: Path) -> Iterator[None]:
    """Lock the file at a path; OSError if a process has locked it, or it is not this user's."""
    # NONBLOCK: opening a pipe at this path would wait for its other end.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        is_part = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
        if not is_part or found.st_uid != os.geteuid():
            raise PermissionError(f"{str(path)!r} is none of ours")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _give_new_name(path: Path, target: Path) -> None:
    try:
        # Unlike a rename, a link replaces no file that was created meanwhile.
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links.
        if os.path.lexists(target):
            raise FileExistsError(f"{str(target)!r} was created meanwhile") from None
        os.rename(path, target)
