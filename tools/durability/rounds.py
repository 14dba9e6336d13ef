"""Kill rounds: a load on a real server, a kill at a random moment, a restart, the comparison."""

import random
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from tools.durability.audit import Findings, audit, find_unbooked
from tools.durability.senders import Ack, Click, Ledger, Load, Postback, make_postbacks, resend
from tools.durability.servers import Home, Server, Setup, is_alive, kill, wait_until

SENDERS = 6

# More than a round can send at 4,000 postbacks a second.
POSTBACKS_PER_ROUND = 2500

# The kill comes so long after the senders have started: from the first transaction to many.
KILL_SECONDS = (0.01, 0.45)

# Rounds that share a database: later rounds find losses of earlier ones too, and reading all of it
# again stays cheap.
ROUNDS_PER_DATABASE = 20

# A worker without a master notices that within a second, and then ends its requests.
ORPHAN_SECONDS = 30.0


class Target(StrEnum):
    """What is killed."""

    WORKER = "worker"
    MASTER = "master"
    ALL = "all"


class Round(NamedTuple):
    """The result of one round."""

    number: int
    setup: Setup
    target: Target
    kill_after: float
    requests: int
    acknowledged: int
    resent: int
    unavailable: int
    findings: Findings

    def __str__(self) -> str:
        """Describe the round in a line."""
        state = "sound" if self.findings.is_sound else str(self.findings)
        return (
            f"round {self.number}: {self.setup}, {self.target} killed after"
            f" {self.kill_after * 1000:.0f} ms, {self.requests} requests,"
            f" {self.acknowledged} acknowledged, {self.resent} sent again, {state}"
        )


def run_rounds(
    directory: Path,
    setups: Sequence[Setup],
    numbers: Iterable[int],
    seed: int,
) -> Iterator[Round]:
    """Run rounds, the setups in turn, with one database for each group of them."""
    batch: list[int] = []
    for number in numbers:
        batch.append(number)
        if len(batch) == ROUNDS_PER_DATABASE:
            yield from _run_batch(directory, setups, batch, seed)
            batch = []
    if batch:
        yield from _run_batch(directory, setups, batch, seed)


def _run_batch(
    directory: Path,
    setups: Sequence[Setup],
    numbers: Sequence[int],
    seed: int,
) -> Iterator[Round]:
    first = numbers[0] // ROUNDS_PER_DATABASE
    setup = setups[first % len(setups)]
    unknown_subid = ("park", "accept")[first // len(setups) % 2]
    home = Home(directory / f"batch-{numbers[0]}", unknown_subid=unknown_subid)
    is_sound = True
    with KillRounds(home, setup, seed) as rounds:
        for number in numbers:
            done = rounds.run(number)
            is_sound = is_sound and done.findings.is_sound
            yield done
    if is_sound:
        shutil.rmtree(home.directory)


class KillRounds:
    """Rounds on one database; each continues with the server of the one before."""

    def __init__(self, home: Home, setup: Setup, seed: int) -> None:
        """Start the first server."""
        self._home = home
        self._setup = setup
        self._seed = seed
        self._acks: list[Ack] = []
        self._sent: list[Postback] = []
        self._orphans: list[int] = []
        self._server = Server(home, setup)
        self._server.wait_until_healthy()

    def __enter__(self) -> "KillRounds":
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop all processes."""
        self._server.kill_all()
        for orphan in self._orphans:
            kill(orphan)

    def run(self, number: int) -> Round:
        """Run one round: load, kill, restart, send again, compare."""
        chance = random.Random(f"{self._seed}-{number}")  # noqa: S311 a seeded round can be repeated
        target = chance.choice(list(Target))
        kill_after = chance.uniform(*KILL_SECONDS)
        load = self._start_load(number)
        time.sleep(kill_after)
        self._kill(target, chance.randrange(64))
        ledger = load.stop()
        self._restart(target)
        resent = resend(self._server.port, ledger)
        self._await_orphans()
        return Round(
            number,
            self._setup,
            target,
            kill_after,
            requests=len(ledger.sent),
            acknowledged=len(ledger.acks),
            resent=resent,
            unavailable=ledger.unavailable,
            findings=self._compare(ledger),
        )

    def _start_load(self, number: int) -> Load:
        postbacks = make_postbacks(f"r{number}", POSTBACKS_PER_ROUND, list(Click))
        known = [postback.subid for postback in postbacks if postback.click is Click.KNOWN]
        add_clicks(self._home.database, known)
        load = Load(self._server.port, postbacks, f"{self._seed}-{number}", SENDERS)
        load.start()
        return load

    def _kill(self, target: Target, index: int) -> None:
        if target is Target.WORKER:
            self._server.kill_worker(index)
        elif target is Target.MASTER:
            self._orphans = self._server.kill_master()
        else:
            self._server.kill_all()

    def _restart(self, target: Target) -> None:
        # The master replaces a worker by itself. After the kill of a master the new server starts
        # beside the workers left over, which are still writing.
        if target is not Target.WORKER:
            self._server = Server(self._home, self._setup)
        self._server.wait_until_healthy()

    def _await_orphans(self) -> None:
        wait_until(
            lambda: not any(map(is_alive, self._orphans)),
            ORPHAN_SECONDS,
            "the workers of a killed master have gone",
            self._home.log,
        )
        self._orphans = []

    def _compare(self, ledger: Ledger) -> Findings:
        self._acks += ledger.acks
        self._sent += ledger.sent
        database, unknown_subid = self._home.database, self._home.unknown_subid
        findings = audit(database, self._acks)
        lost = findings.lost + find_unbooked(database, self._sent, unknown_subid) + ledger.flaws
        return findings._replace(lost=lost)


def add_clicks(database: Path, subids: Iterable[str]) -> None:
    """Write clicks beside the service, as another program may."""
    with closing(sqlite3.connect(database, timeout=20)) as db, db:
        db.executemany("INSERT INTO clicks (subid) VALUES (?)", ((subid,) for subid in subids))
