"""Several processes that do the same at the same moment."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

# Long enough for any machine; nothing waits for it unless it hangs.
PATIENCE_SECONDS = 180


def run_at_once(work: Callable[..., None], shares: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run a function in a process for each share of arguments, and give what each said.

    It gets one end of a pipe as its last argument: it says that it is ready, hears that all are,
    and says what came of it. Pipes, because barriers and queues live in /dev/shm, where not
    everybody may write.
    """
    spawning = multiprocessing.get_context("spawn")
    links: list[Connection] = []
    workers = []
    for share in shares:
        link, end = spawning.Pipe()
        worker = spawning.Process(target=work, args=(*share, end))
        worker.start()
        # An end that only the worker has closes with it: what it did not say is an EOFError here.
        end.close()
        links.append(link)
        workers.append(worker)
    assert [_hear(link) for link in links] == ["ready"] * len(links)
    for link in links:
        link.send("all are")
    said = [_hear(link) for link in links]
    for worker in workers:
        worker.join(PATIENCE_SECONDS)
    assert [worker.exitcode for worker in workers] == [0] * len(shares)
    return said


def _hear(link: Connection) -> Any:
    assert link.poll(PATIENCE_SECONDS), f"nothing said within {PATIENCE_SECONDS} seconds"
    return link.recv()
