"""Power cuts: the possible states of a disk at a moment, rebuilt from a server's system calls.

The preloaded shim (`powercut.c`) records every write, sync and name change of the server. A `Disk`
takes these in order and can be cut at any point: what was synced is there, and of the rest nothing
or anything.
"""

import random
import shutil
import struct
import subprocess
from bisect import bisect_left
from collections.abc import Callable, Iterator
from enum import IntEnum, StrEnum
from mmap import mmap
from pathlib import Path
from typing import NamedTuple, Self

from tools.durability.servers import Home

SOURCE = Path(__file__).with_name("powercut.c")

# struct control of the shim: seven numbers of 32 bits (the last two padding), one of 64.
_CONTROL = struct.Struct("<iiiiiiq")
# struct record of the shim.
_RECORD = struct.Struct("<QQQIIII")

# A disk writes whole sectors: of a write that was not synced, any of them may have arrived.
SECTOR_BYTES = 512


class NoCompilerError(Exception):
    """There is no C compiler here, so the shim cannot be built."""


def build_shim(directory: Path) -> Path:
    """Build the shim; raises NoCompilerError without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NoCompilerError("no gcc and no cc: power cuts and disk faults cannot be played here")
    shim = directory / "powercut.so"
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
    subprocess.run([compiler, *flags, "-o", str(shim), str(SOURCE), "-ldl"], check=True)
    return shim


class Faults(NamedTuple):
    """The faults of disk and clock; the fields are those of `struct control`."""

    write_errno: int = 0
    grow_errno: int = 0
    sync_errno: int = 0
    sync_faults: int = -1
    open_errno: int = 0
    sync_delay_us: int = 0
    clock_offset_seconds: int = 0


class Shim:
    """The shim for the servers of one home: its environment, its faults, its trace."""

    def __init__(self, library: Path, home: Home, *, traces: bool = False) -> None:
        """Create the control page, and the trace if wanted."""
        control = home.directory.with_suffix(".control")
        control.write_bytes(bytes(4096))
        self.trace = home.directory.with_suffix(".trace")
        self._control_file = control.open("r+b")
        self._page = mmap(self._control_file.fileno(), 4096)
        self.environ = {
            "LD_PRELOAD": str(library),
            "DURABILITY_DIRECTORY": str(home.directory),
            "DURABILITY_CONTROL": str(control),
        }
        if traces:
            self.environ["DURABILITY_TRACE"] = str(self.trace)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Unmap the control page."""
        self._page.close()
        self._control_file.close()

    def play(self, faults: Faults) -> None:
        """Set the faults from now on, in place of any others."""
        _CONTROL.pack_into(self._page, 0, *faults)

    def mend(self) -> None:
        """Remove all faults."""
        self.play(Faults())


class Operation(IntEnum):
    """A system call of the server; `enum operation` of the shim."""

    OPEN = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC_BEGIN = 4
    SYNC_END = 5
    SYNC_FAILED = 6
    RENAME = 7
    UNLINK = 8


class Record(NamedTuple):
    """One record of the trace; the operation decides which fields are used."""

    at_ns: int
    inode: int
    offset: int
    operation: int
    thread: int
    path: str
    content: bytes


def read_trace(path: Path) -> list[Record]:
    """Read a trace; one torn by a kill ends with its last whole record."""
    trace = path.read_bytes() if path.exists() else b""
    return list(_read_records(trace))


def _read_records(trace: bytes) -> Iterator[Record]:
    place = 0
    while place + _RECORD.size <= len(trace):
        at_ns, inode, offset, operation, thread, path_bytes, content_bytes = _RECORD.unpack_from(
            trace, place
        )
        place += _RECORD.size
        path_end = place + path_bytes
        end = path_end + content_bytes
        if end > len(trace):
            return
        path, content = trace[place:path_end].decode(), trace[path_end:end]
        yield Record(at_ns, inode, offset, operation, thread, path, content)
        place = end


class Change(NamedTuple):
    """A write (content) or a truncation (None) of a file that waits for a sync."""

    order: int
    offset: int
    content: bytes | None


class File:
    """A file as it is on disk, and its changes that were not synced yet."""

    def __init__(self, inode: int, path: str) -> None:
        """Begin empty."""
        self.inode = inode
        self.path = path
        self.synced = bytearray()
        self.seen = bytearray()
        self.waiting: list[Change] = []

    def change(self, change: Change) -> None:
        """Add a change, seen by the running system; the disk follows with a sync."""
        _apply(self.seen, change)
        self.waiting.append(change)

    def take_in(self, before: int) -> None:
        """Apply the changes before a moment of the trace to the disk."""
        count = bisect_left(self.waiting, before, key=lambda change: change.order)
        for change in self.waiting[:count]:
            _apply(self.synced, change)
        del self.waiting[:count]

    def forget(self, before: int) -> None:
        """Drop changes whose sync failed: Linux takes their pages for clean, and tries no more."""
        self.waiting = [change for change in self.waiting if change.order >= before]


def _apply(content: bytearray, change: Change) -> None:
    if change.content is None:
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.content)] = change.content


# Selects the unsynced changes that survive a power cut.
Survival = Callable[[list[Change], random.Random], list[Change]]


def _keep_nothing(waiting: list[Change], chance: random.Random) -> list[Change]:
    del waiting, chance
    return []


def _keep_some_first(waiting: list[Change], chance: random.Random) -> list[Change]:
    return waiting[: chance.randint(0, len(waiting))]


def _keep_any_sectors(waiting: list[Change], chance: random.Random) -> list[Change]:
    return [sector for change in waiting for sector in _split(change) if chance.random() < 0.5]


def _split(change: Change) -> Iterator[Change]:
    if change.content is None:
        yield change
        return
    for start in range(0, len(change.content), SECTOR_BYTES):
        sector = change.content[start : start + SECTOR_BYTES]
        yield Change(change.order, change.offset + start, sector)


class Mode(StrEnum):
    """How much of the unsynced changes survives a cut."""

    NOTHING = "nothing unsynced survives"
    FIRST = "a first part survives"
    SCATTERED = "any sectors survive"


SURVIVALS: dict[Mode, Survival] = {
    Mode.NOTHING: _keep_nothing,
    Mode.FIRST: _keep_some_first,
    Mode.SCATTERED: _keep_any_sectors,
}


class NameChange(NamedTuple):
    """A new name of a file (None: removed) that waits for a sync."""

    order: int
    path: str
    file: File | None


class Disk:
    """The disk below a server's directory, from an empty start through the records of a trace.

    A file's name is on disk once its directory was synced, or the new file itself was (ext4 then
    commits both). A removal or a rename waits for the directory's sync.
    """

    def __init__(self) -> None:
        """Start with an empty directory."""
        self._order = 0
        self._names: dict[str, File] = {}
        self._synced_names: dict[str, File] = {}
        self._waiting_names: list[NameChange] = []
        self._files: dict[int, File] = {}
        self._sync_begins: dict[tuple[int, int], int] = {}
        self._directories: dict[int, str] = {}

    def take(self, record: Record) -> None:
        """Apply the server's next system call."""
        self._order += 1
        _DO[Operation(record.operation)](self, record)

    def open(self, record: Record) -> None:
        """Find a file by its name; a new name is a new file."""
        if Path(record.path).is_dir():
            self._directories[record.inode] = record.path
            return
        known = self._names.get(record.path)
        if known is None or known.inode != record.inode:
            # An inode number is used again once its file is gone: the number alone says nothing.
            file = File(record.inode, record.path)
            self._files[record.inode] = file
            self._name(record.path, file)

    def write(self, record: Record) -> None:
        """Write to a file, in memory only for now."""
        self._files[record.inode].change(Change(self._order, record.offset, record.content))

    def truncate(self, record: Record) -> None:
        """Truncate or extend a file, in memory only for now."""
        self._files[record.inode].change(Change(self._order, record.offset, None))

    def begin_sync(self, record: Record) -> None:
        """Note the changes that a sync covers: those before it."""
        self._sync_begins[record.thread, record.inode] = self._order

    def end_sync(self, record: Record) -> None:
        """Apply the changes that the sync covers to the disk."""
        begin = self._sync_begins.pop((record.thread, record.inode))
        directory = self._directories.get(record.inode)
        if directory is not None:
            self._sync_names(lambda path: str(Path(path).parent) == directory, begin)
            return
        file = self._files[record.inode]
        file.take_in(begin)
        if self._synced_names.get(file.path) is not file:
            self._sync_names(lambda path: path == file.path, begin)

    def fail_sync(self, record: Record) -> None:
        """Drop the changes that the sync would have put on disk."""
        begin = self._sync_begins.pop((record.thread, record.inode))
        if record.inode in self._files:
            self._files[record.inode].forget(begin)

    def rename(self, record: Record) -> None:
        """Rename a file."""
        file = self._names.get(record.path)
        if file is not None:
            file.path = record.content.decode()
            self._name(file.path, file)
            self._name(record.path, None)

    def unlink(self, record: Record) -> None:
        """Remove a name."""
        self._name(record.path, None)

    def _name(self, path: str, file: File | None) -> None:
        self._waiting_names.append(NameChange(self._order, path, file))
        _apply_name(self._names, path, file)

    def _sync_names(self, covers: Callable[[str], bool], before: int) -> None:
        left = []
        for change in self._waiting_names:
            if change.order < before and covers(change.path):
                _apply_name(self._synced_names, change.path, change.file)
            else:
                left.append(change)
        self._waiting_names = left

    def read_all(self) -> dict[str, bytes]:
        """Return every file as the running system sees it, synced or not."""
        return {path: bytes(file.seen) for path, file in self._names.items()}

    def cut(self, mode: Mode, chance: random.Random, directory: Path) -> None:
        """Write the files that a power cut now would leave into a directory."""
        survive = SURVIVALS[mode]
        names = dict(self._synced_names)
        if mode is not Mode.NOTHING:
            # Names go through the file system's journal, which keeps their order.
            count = chance.randint(0, len(self._waiting_names))
            for change in self._waiting_names[:count]:
                _apply_name(names, change.path, change.file)
        directory.mkdir(parents=True)
        for path, file in names.items():
            content = bytearray(file.synced)
            for surviving in survive(file.waiting, chance):
                _apply(content, surviving)
            (directory / Path(path).name).write_bytes(content)


_DO: dict[Operation, Callable[[Disk, Record], None]] = {
    Operation.OPEN: Disk.open,
    Operation.WRITE: Disk.write,
    Operation.TRUNCATE: Disk.truncate,
    Operation.SYNC_BEGIN: Disk.begin_sync,
    Operation.SYNC_END: Disk.end_sync,
    Operation.SYNC_FAILED: Disk.fail_sync,
    Operation.RENAME: Disk.rename,
    Operation.UNLINK: Disk.unlink,
}


def _apply_name(names: dict[str, File], path: str, file: File | None) -> None:
    if file is None:
        names.pop(path, None)
    else:
        names[path] = file
