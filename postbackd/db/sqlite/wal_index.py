"""Reads SQLite's write-ahead log (WAL) and its index from the files -wal and -shm.

Source: https://sqlite.org/walformat.html, "The WAL File Format" and "The WAL-Index File Format".
Nothing is locked or changed here.
"""

import os
import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

WAL_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24

# The salts in the header of the WAL, and the fields of a frame's header.
_WAL_SALTS = slice(16, 24)
_FRAME_SALTS = slice(8, 16)
_FRAME_CHECKSUM = struct.Struct(">16x2I")

# The header of the index, stored twice, and the progress of checkpoints after it.
_HEADER = struct.Struct("=8xI2xHII2I8s8x")
_PROGRESS = struct.Struct("=96xI28xI")
INDEX_BYTES = _PROGRESS.size

# Page numbers of frames, in blocks of 32 KiB with a hash table after each. The first block holds
# the header too.
_BLOCK_BYTES = 32 * 1024
_FIRST_PAGES_AT = 136
_FIRST_BLOCK_FRAMES = 4062
_BLOCK_FRAMES = 4096


class Index(NamedTuple):
    """The wal-index: the WAL that it belongs to, and how much was committed and checkpointed."""

    # The two salts of the WAL: they change each time that the WAL is begun anew.
    generation: bytes
    # Grows by one with each commit; starts at 0 when SQLite rebuilds the index.
    changes: int
    page_bytes: int
    # The last committed frame, the size of the database after it, and the frame's checksum.
    frames: int
    pages: int
    checksum: tuple[int, int]
    # A checkpoint sets `attempted` before its first write to the database file, and `backfilled`
    # after its last: if they differ, one is running or was interrupted.
    backfilled: int
    attempted: int

    @property
    def is_moved(self) -> bool:
        """Return whether all commits are in the database file too."""
        return self.backfilled == self.attempted == self.frames

    @property
    def is_under_way(self) -> bool:
        """Return whether a checkpoint may be writing to the database file."""
        return self.backfilled != self.attempted


def read_index(descriptor: int) -> Index | None:
    """Read the index; None while a commit changes it, or if there is none."""
    found = os.pread(descriptor, INDEX_BYTES, 0)
    if len(found) < INDEX_BYTES or found[:48] != found[48:96]:
        return None
    changes, size, frames, pages, one, other, generation = _HEADER.unpack_from(found)
    backfilled, attempted = _PROGRESS.unpack_from(found)
    # 65,536 does not fit its field, and is stored as 1.
    page_bytes = (size & 0xFE00) + ((size & 1) << 16)
    return Index(
        generation, changes, page_bytes, frames, pages, (one, other), backfilled, attempted
    )


def list_pages(descriptor: int, frames: int) -> Sequence[int]:
    """List the page that each of the first frames holds."""
    pages = array("I")
    at, room = _FIRST_PAGES_AT, _FIRST_BLOCK_FRAMES
    while frames > 0:
        pages.frombytes(os.pread(descriptor, min(room, frames) * pages.itemsize, at))
        frames -= room
        at, room = (at // _BLOCK_BYTES + 1) * _BLOCK_BYTES, _BLOCK_FRAMES
    return pages


def has_last_frame(log: int, index: Index) -> bool:
    """Return whether the WAL's last frame is the one in the index; True for an empty WAL.

    The checksum of a frame covers all frames before it.
    """
    if not index.frames:
        return True
    frame_bytes = FRAME_HEADER_BYTES + index.page_bytes
    frame = os.pread(log, frame_bytes, WAL_HEADER_BYTES + (index.frames - 1) * frame_bytes)
    return (
        len(frame) == frame_bytes
        and frame[_FRAME_SALTS] == index.generation
        and _FRAME_CHECKSUM.unpack_from(frame) == index.checksum
    )


def read_generation(log_header: bytes) -> bytes:
    """Return the salts of a WAL from its first bytes; empty if the WAL is empty."""
    return log_header[_WAL_SALTS]
