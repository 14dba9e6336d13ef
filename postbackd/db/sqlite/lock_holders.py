"""Finds the process that holds a database's write lock, and whether that process is stopped."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# All locks of the machine, a line each; not readable for a service that sees only processes
# (systemd's ProcSubset=pid, as in our unit). Source: proc_locks(5).
KERNEL_LOCKS = Path("/proc/locks")

# The byte of the -shm file that SQLite locks for writing. Source:
# https://sqlite.org/walformat.html, "WAL Locks".
WRITE_LOCK_BYTE = 120

# struct flock of Linux on 64 bits. Source: fcntl(2).
_FLOCK = struct.Struct("hhqqi4x")


class Holder(NamedTuple):
    """A process: its id, its name, and whether it is stopped."""

    pid: int
    name: str
    is_stopped: bool

    def __str__(self) -> str:
        """Name the process in a sentence."""
        return f"process {self.pid} ({self.name})" if self.name else f"process {self.pid}"


class _Lock(NamedTuple):
    kind: str
    is_exclusive: bool
    pid: int
    first: int
    last: str


def find_holder(lock: Path, index: Path) -> Holder | None:
    """Find the other process that holds a write lock; needs the `-lock` and the `-shm` file."""
    pid = next(_find_writers(lock, index), None) or _ask_kernel(index)
    return None if pid is None else _describe(pid)


def find_stopped_users(path: Path, index: Path) -> list[Holder]:
    """Find stopped processes that have the database open, if the kernel lists locks."""
    pids = {found.pid for file in (path, index) for found in _list_locks(file)}
    return [holder for holder in map(_describe, sorted(pids)) if holder.is_stopped]


def find_descriptor(path: Path) -> int | None:
    """Find a descriptor under which this process has a file open.

    For the -shm file, which must not be opened beside SQLite: closing any descriptor of a file
    releases all of the process's locks on it. Source: fcntl(2), "Record locks".
    """
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return None
    for name in os.listdir("/proc/self/fd"):
        # The directory's own descriptor is in the list, and already closed.
        with suppress(OSError):
            if os.path.samestat(os.fstat(int(name)), wanted):
                return int(name)
    return None


def _find_writers(lock: Path, index: Path) -> Iterator[int]:
    for found in _list_locks(lock):
        if found.kind == "FLOCK":
            yield found.pid
    for found in _list_locks(index):
        if found.is_exclusive and found.first <= WRITE_LOCK_BYTE <= int(found.last):
            yield found.pid


def _list_locks(path: Path) -> Iterator[_Lock]:
    """List the locks that other processes hold on a file."""
    try:
        state = os.stat(path)
        lines = KERNEL_LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return
    device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    for line in lines:
        # `12: POSIX  ADVISORY  WRITE 4711 fe:01:131 120 120`; a waiting one has `->` after the
        # number.
        words = line.split()
        if len(words) == 8 and words[5] == device and int(words[4]) not in (os.getpid(), -1, 0):
            yield _Lock(words[1], words[3] == "WRITE", int(words[4]), int(words[6]), words[7])


def _ask_kernel(index: Path) -> int | None:
    """Ask for the process that would block the write lock, through SQLite's own descriptor."""
    descriptor = find_descriptor(index)
    if descriptor is None:
        return None
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, WRITE_LOCK_BYTE, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted))
    # 0: the process is in another container.
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None


def _describe(pid: int) -> Holder:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Ended, or another user's while the service sees only its own.
        return Holder(pid, "", is_stopped=False)
    # The name may hold blanks and brackets. Not the arguments: they may hold a key.
    before, _, after = stat.rpartition(")")
    return Holder(pid, before.partition("(")[2], after.split()[0] in "Tt")
