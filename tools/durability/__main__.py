"""Run kill rounds, power cuts and an overload by one command: `python -m tools.durability --rounds
1000`.

Prints the findings in tables; exit status 1 if anything was lost, doubled or damaged.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.durability.cuts import Cut, cut_power, run_load
from tools.durability.overload import Figures, overload, slow_senders_for
from tools.durability.powercut import NoCompilerError, build_shim
from tools.durability.rounds import Round, run_rounds
from tools.durability.servers import WORKER_CLASSES, Home, Setup

# A load with a few checkpoints: cuts fall into those too.
POSTBACKS_BEFORE_A_CUT = 1500
CUTS_PER_LOAD = 20

OVERLOAD_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the exit status."""
    asked = _read_arguments(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    setups = [Setup(name, count) for name in asked.worker_class for count in asked.workers]
    console.print(f"seed {asked.seed}")
    directory = Path(tempfile.mkdtemp(prefix="durability-"))
    is_sound = all(
        [
            _kill(console, directory, setups, asked.rounds, asked.seed),
            _cut(console, directory, setups, asked.cut_loads, asked.seed),
            _overload(console, directory, setups) if asked.overload else True,
        ]
    )
    if is_sound:
        shutil.rmtree(directory)
    else:
        console.print(f"what is wrong can be looked at in {directory}")
    return 0 if is_sound else 1


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.durability", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="kill rounds in all (%(default)s)")
    parser.add_argument(
        "--cut-loads", type=int, default=0, help="loads with power cuts, each setup"
    )
    parser.add_argument("--overload", action="store_true", help="measure an overload, each setup")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--worker-class", nargs="+", default=WORKER_CLASSES)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    return parser.parse_args(arguments)


def _kill(
    console: Console, directory: Path, setups: Sequence[Setup], count: int, seed: int
) -> bool:
    rounds = []
    began = time.monotonic()
    for done in run_rounds(directory / "kills", setups, range(count), seed):
        rounds.append(done)
        console.print(str(done), soft_wrap=True, highlight=False)
    table = Table("setup", "killed", "rounds", "requests", "acknowledged", "sent again")
    for column in ("lost", "doubled", "damaged"):
        table.add_column(column, justify="right")
    for setup in setups:
        ours = [each for each in rounds if each.setup == setup]
        for target in sorted({each.target for each in ours}):
            _add_rounds(table, setup, target, [each for each in ours if each.target is target])
    _add_rounds(table, "all", "", rounds)
    console.print(table)
    console.print(f"{len(rounds)} rounds in {time.monotonic() - began:.0f} s")
    return all(each.findings.is_sound for each in rounds)


def _add_rounds(table: Table, setup: Setup | str, target: str, rounds: Sequence[Round]) -> None:
    numbers: Iterable[int] = (
        len(rounds),
        sum(each.requests for each in rounds),
        sum(each.acknowledged for each in rounds),
        sum(each.resent for each in rounds),
        sum(len(each.findings.lost) for each in rounds),
        sum(len(each.findings.doubled) for each in rounds),
        sum(each.findings.integrity != "ok" for each in rounds),
    )
    table.add_row(str(setup), target, *map(str, numbers))


def _cut(console: Console, directory: Path, setups: Sequence[Setup], loads: int, seed: int) -> bool:
    if not loads:
        return True
    try:
        directory.joinpath("shim").mkdir()
        library = build_shim(directory / "shim")
    except NoCompilerError as reason:
        console.print(f"no power cuts: {reason}")
        return True
    table = Table("setup", "loads", "postbacks", "syncs", "checkpoints", "cuts", "unsound cuts")
    is_sound = True
    for setup in setups:
        cuts: list[Cut] = []
        sums = [0, 0, 0]
        for load in range(loads):
            place = directory / f"cuts-{setup.worker_class}-{setup.workers}-{load}"
            home = Home(place / "tracker", unknown_subid=("park", "accept")[load % 2])
            run = run_load(library, home, setup, POSTBACKS_BEFORE_A_CUT, seed + load)
            cuts += cut_power(place / "cuts", run, CUTS_PER_LOAD, seed + load)
            found = (len(run.acks), run.syncs, run.checkpoints)
            sums = [total + more for total, more in zip(sums, found, strict=True)]
        unsound = [cut for cut in cuts if not cut.findings.is_sound]
        for cut in unsound:
            console.print(f"{setup}: {cut}", soft_wrap=True, highlight=False)
        is_sound = is_sound and not unsound
        table.add_row(str(setup), str(loads), *map(str, [*sums, len(cuts), len(unsound)]))
    console.print(table)
    return is_sound


def _overload(console: Console, directory: Path, setups: Sequence[Setup]) -> bool:
    figures: list[Figures] = []
    for setup in setups:
        home = Home(
            directory / f"overload-{setup.worker_class}-{setup.workers}", unknown_subid="accept"
        )
        slow = slow_senders_for(setup)
        figures.append(overload(home, setup, OVERLOAD_SECONDS, slow=slow))
        console.print(f"{setup}, {slow} slow: {figures[-1]}", soft_wrap=True, highlight=False)
    return all(each.findings.is_sound and not each.workers_replaced for each in figures)


if __name__ == "__main__":
    sys.exit(main())
