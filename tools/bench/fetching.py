"""`python -m tools.bench.fetching`: does a hanging service of exchange rates delay postbacks?

Two servers run side by side: one fetches nothing, the fetch of the other hangs in a service that
sends a byte now and then. The same load runs in short bursts, on one and the other in turn, so that
other work of the machine affects both. Printed: latencies, and the ratio of p99, burst by burst.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.bench.generator import KEY, Load, run_load

CONFIG = """\
;<?php exit; ?>
[system]
postback_key = "{key}"
[postback]
unknown_subid = "accept"
[rates]
source = "{source}"
ecb_url = "{url}"
"""

# A fetch ends after thirty seconds: a window of bursts must be over by then.
WINDOW_SECONDS = 26
PATIENCE_SECONDS = 60


# More clicks than a burst can use, so that no click id is sent twice.
CLICKS_EACH_BURST = 100_000

# Below this, the p99 of a burst is its worst answer.
ANSWERS_AT_LEAST = 200


class HangingService:
    """Answers a request for rates with a byte every tenth of a second, for ever."""

    def __init__(self) -> None:
        """Listen on a free port."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.asked = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self.asked += 1
            threading.Thread(target=self._drip, args=(connection,), daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n\r\n")
            while True:
                time.sleep(0.1)
                connection.sendall(b" ")


def main() -> int:
    """Run the windows and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.fetching", description=__doc__)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=1, help="length of a burst")
    parser.add_argument("--senders", type=int, default=16)
    parser.add_argument("--directory", default=None, help="where the databases go; default: /tmp")
    args = parser.parse_args()
    service = HangingService()
    pairs: list[tuple[Load, Load]] = []
    for _ in range(args.windows):
        pairs += _run_window(service, args)
    # A burst with few answers, on a busy disk, says nothing about either server.
    dropped = sum(
        min(plain.answers, hanging.answers) < ANSWERS_AT_LEAST for plain, hanging in pairs
    )
    pairs = [pair for pair in pairs if min(load.answers for load in pair) >= ANSWERS_AT_LEAST]
    print(f"{dropped} pairs of bursts dropped: fewer than {ANSWERS_AT_LEAST} answers\n")
    print("| | without | with a hanging fetch |\n|---|---|---|")
    for name in ("p50_ms", "p99_ms", "p999_ms", "per_second"):
        plain, hanging = (
            statistics.median(getattr(load, name) for load in side)
            for side in zip(*pairs, strict=True)
        )
        print(f"| {name}, median of {len(pairs)} bursts | {plain:,.2f} | {hanging:,.2f} |")
    ratios = sorted(hanging.p99_ms / plain.p99_ms for plain, hanging in pairs)
    low, high = ratios[len(ratios) // 4], ratios[len(ratios) * 3 // 4]
    print(
        f"\nRatio of p99, pair by pair: median {statistics.median(ratios):.3f},"
        f" the middle half from {low:.2f} to {high:.2f}"
    )
    return 0


def _run_window(service: HangingService, args: argparse.Namespace) -> list[tuple[Load, Load]]:
    asked = service.asked
    first = 0
    pairs: list[tuple[Load, Load]] = []
    with _serve("none", service, args) as plain, _serve("ecb", service, args) as hanging:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while service.asked == asked:
            if time.monotonic() > deadline:
                raise SystemExit("the service of rates was not asked")
            time.sleep(0.05)
        end = time.monotonic() + WINDOW_SECONDS
        while time.monotonic() + 2 * args.seconds + 1 < end:
            # The order alternates.
            order = (plain, hanging) if len(pairs) % 2 else (hanging, plain)
            loads = {server: _burst(server, first, args) for server in order}
            first += CLICKS_EACH_BURST
            pairs.append((loads[plain], loads[hanging]))
    # The first burst of each is a warm-up.
    return pairs[1:]


def _burst(server: tuple[int, Path], first: int, args: argparse.Namespace) -> Load:
    port, directory = server
    load = run_load(port, args.senders, args.seconds, first, directory, keeps_alive=True)
    if load.refused:
        raise SystemExit(f"{load.refused} postbacks were refused")
    return load


@contextmanager
def _serve(
    source: str, service: HangingService, args: argparse.Namespace
) -> Iterator[tuple[int, Path]]:
    with tempfile.TemporaryDirectory(dir=args.directory, prefix="bench-") as scratch:
        directory = Path(scratch)
        config = CONFIG.format(key=KEY, source=source, url=service.url)
        (directory / "config.ini.php").write_text(config)
        with _run_server(directory) as port:
            yield port, directory


@contextmanager
def _run_server(directory: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "gunicorn", "--config", "python:postbackd.server.gunicorn_conf"),
        *("--bind", f"127.0.0.1:{port}", "--log-level", "error", "postback:application"),
    ]
    environment = {**os.environ, "POSTBACK_CONFIG": str(directory / "config.ini.php")}
    process = subprocess.Popen(command, env=environment, cwd=directory)
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    raise SystemExit(main())
