"""Power cuts: a load on a server with the preloaded shim, cuts at many moments, their results."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import storage
from postbackd.db.sqlite.connection import DatabaseError
from tools.durability.audit import Findings, audit
from tools.durability.powercut import Disk, Mode, Operation, Record, Shim, read_trace
from tools.durability.senders import Ack, Click, Load, make_postbacks
from tools.durability.servers import Home, Setup, serving

SENDERS = 6

# SQLite writes at most a page with each call.
WRITE_BYTES = 4096


class Cut(NamedTuple):
    """The result of one power cut: when in the trace, in which mode, and the faults after it."""

    share: float
    mode: Mode
    acknowledged: int
    findings: Findings

    def __str__(self) -> str:
        """Describe the cut in a line."""
        state = "sound" if self.findings.is_sound else str(self.findings)
        return f"cut at {self.share:.0%}, {self.mode}: {self.acknowledged} acknowledged, {state}"


class Run(NamedTuple):
    """A load with the shim: the calls to the disk, and the answers to the senders."""

    records: list[Record]
    acks: list[Ack]

    @property
    def syncs(self) -> int:
        """Count the syncs."""
        return sum(record.operation == Operation.SYNC_END for record in self.records)

    @property
    def checkpoints(self) -> int:
        """Count the syncs of the database file itself, which are checkpoints."""
        files = {
            record.inode: record.path
            for record in self.records
            if record.operation == Operation.OPEN
        }
        return sum(
            record.operation == Operation.SYNC_END
            and files.get(record.inode, "").endswith("postback.db")
            for record in self.records
        )


def run_load(library: Path, home: Home, setup: Setup, postbacks: int, seed: int) -> Run:
    """Send postbacks to a server with the shim, and kill it meanwhile."""
    chance = random.Random(f"{seed}-load")  # noqa: S311 a seeded run can be repeated
    offered = make_postbacks(f"p{seed}", postbacks, [Click.UNKNOWN, Click.LATE])
    kill_after = int(postbacks * chance.uniform(0.85, 0.98))
    with Shim(library, home, traces=True) as shim:
        with serving(home, setup, shim.environ) as server:
            server.wait_until_healthy()
            load = Load(server.port, offered, str(seed), SENDERS)
            load.start()
            while len(load.ledger.acks) < kill_after and load.is_busy:
                time.sleep(0.001)
            server.kill_all()
            ledger = load.stop()
        return Run(read_trace(shim.trace), ledger.acks)


def find_untraced(run: Run) -> list[str]:
    """List files of the database that differ from the trace: it has missed a write.

    The very last write may be missing, if the kill came between it and its record.
    """
    disk = Disk()
    for record in run.records:
        disk.take(record)
    written = disk.read_all()
    return [
        path
        for path, content in written.items()
        if Path(path).name.startswith("postback.db")
        and _measure_difference(Path(path).read_bytes(), content) > WRITE_BYTES
    ]


def _measure_difference(one: bytes, other: bytes) -> int:
    """Count the bytes from the first that differs to the last."""
    if one == other:
        return 0
    length = max(len(one), len(other))
    apart = [at for at in range(length) if one[at : at + 1] != other[at : at + 1]]
    return apart[-1] - apart[0] + 1


def cut_power(directory: Path, run: Run, moments: int, seed: int) -> Iterator[Cut]:
    """Cut the power at random moments and once at the end, in each mode."""
    chance = random.Random(f"{seed}-cuts")  # noqa: S311 a seeded run can be repeated
    chosen = sorted(chance.sample(range(len(run.records)), min(moments, len(run.records))))
    disk = Disk()
    done = 0
    for number, end in enumerate([*chosen, len(run.records)]):
        for record in run.records[done:end]:
            disk.take(record)
        done = end
        for mode in Mode:
            left = directory / f"cut-{number}-{mode.name.lower()}"
            disk.cut(mode, chance, left)
            cut = _look(left, run, end, mode)
            if cut.findings.is_sound:
                shutil.rmtree(left)
            yield cut


def _look(left: Path, run: Run, end: int, mode: Mode) -> Cut:
    """Open the files after a cut as the receiver does, and compare."""
    # What followed the last record taken had not happened yet. At the end, all acks had been read.
    at_end = end == len(run.records)
    moment = 1 << 63 if at_end else run.records[end].at_ns
    acks = [ack for ack in run.acks if ack.read_at_ns < moment]
    database = left / "postback.db"
    try:
        storage.open_database(database, "USD").close()
        findings = audit(database, acks)
    except DatabaseError as error:
        findings = Findings([], [], str(error))
    return Cut(end / len(run.records), mode, len(acks), findings)
