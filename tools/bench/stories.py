"""`python -m tools.bench.stories`: how long commands take on a busy tracker's database.

A million clicks and a hundred thousand conversions by default. Each command runs several times,
after one that is not timed, with its output in a pipe; Python's own start is a row of the table.
"""

import argparse
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tools.bench.build import subid_of
from tools.bench.years import build_tracker

CONFIG = """\
;<?php exit; ?>
[system]
postback_key = "Yae2ohph9Ahm3eiG"
[rates]
source = "none"
"""


def main() -> int:
    """Build the database if it is missing, run the commands, print the table."""
    args = _read_arguments()
    with _find_home(args) as home:
        print(
            f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version},"
            f" {os.cpu_count()} cores; {args.clicks:,} clicks, {args.conversions:,} conversions,"
            f" {(home / 'postback.db').stat().st_size / 1e6:,.0f} MB.\n"
        )
        print("| command | median s | fastest s | CPU s |\n|---|---|---|---|")
        for name, command in _list_commands(args):
            print(_time(name, command, home, args.times), flush=True)
    return 0


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.stories", description=__doc__)
    parser.add_argument("--clicks", type=int, default=1_000_000)
    parser.add_argument("--conversions", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=5, help="how often each command is run")
    parser.add_argument(
        "--directory", type=Path, help="where the database is built, once, and left for next time"
    )
    return parser.parse_args()


@contextmanager
def _find_home(args: argparse.Namespace) -> Iterator[Path]:
    if args.directory is None:
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            yield _build(Path(scratch), args)
    else:
        args.directory.mkdir(parents=True, exist_ok=True)
        yield _build(args.directory, args)


def _build(home: Path, args: argparse.Namespace) -> Path:
    database = home / "postback.db"
    if not database.exists():
        config = home / "config.ini.php"
        config.write_text(CONFIG)
        config.chmod(0o600)
        build_tracker(database, args.clicks, args.conversions, datetime.now(UTC))
    return home


def _list_commands(args: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    cli = [sys.executable, "-m", "postbackd.cli.entry"]
    # A click in the middle, with a conversion.
    number = args.clicks // 2
    subid = subid_of(number - number % max(args.clicks // args.conversions, 1))
    yield "python -c pass", [sys.executable, "-c", "pass"]
    for words in (
        ["--help"],
        ["log", "--subid", subid],
        ["conversions", "--subid", subid, "--history"],
        ["explain", f"subid={subid}&status=sale&payout=1"],
        ["clicks", "list", "--subid", subid],
        ["log", "--limit", "50"],
        ["log", "--verdict", "unmapped", "--limit", "50"],
        ["conversions", "--since", "1d", "--limit", "50"],
        ["check"],
        *(["report", "--by", by] for by in _REPORTS),
        ["report", "--by-click-time", "--tz", "Europe/Berlin"],
        ["report", "--by", "campaign", "--since", "7d"],
    ):
        shown = " ".join(words).replace(subid, "SUBID").replace("explain subid", "explain 'subid")
        yield f"postback {shown}{chr(39) if words[0] == 'explain' else ''}", [*cli, *words]


_REPORTS = (
    *("day", "hour", "campaign", "offer", "network", "currency", "sub_id_1", "sub_id_3"),
    *("day,campaign", "campaign,offer", "day,sub_id_1"),
)


def _time(name: str, command: list[str], home: Path, times: int) -> str:
    taken, cpu = [], []
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    # As if installed: pip compiles our modules, and here the first run does, untimed.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for turn in range(times + 1):
        before = os.times()
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, check=False)
        seconds = time.perf_counter() - begun
        after = os.times()
        if turn:
            taken.append(seconds)
            cpu.append(
                after.children_user
                - before.children_user
                + after.children_system
                - before.children_system
            )
        # `check` finds amounts that wait for a rate.
        if done.returncode not in {0, 1} or done.stderr:
            raise SystemExit(f"{name}: {done.stderr.decode()}")
    return (
        f"| `{name}` | {statistics.median(taken):.2f} | {min(taken):.2f} |"
        f" {statistics.median(cpu):.2f} |"
    )


if __name__ == "__main__":
    raise SystemExit(main())
