"""Receivers that break a promise on purpose, so that the harness is seen to notice.

gunicorn runs them in place of `postback:application`: `tools.durability.sabotage:answer_early()`,
and so on. Nothing in the receiver itself can be switched to behave so.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from queue import SimpleQueue
from typing import Any

from postback import application
from postbackd.config.settings import find_config, load
from postbackd.db.sqlite import connection

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

EARLY = "tools.durability.sabotage:answer_early()"
DOUBLING = "tools.durability.sabotage:keep_twice()"
UNSYNCED = "tools.durability.sabotage:sync_less('OFF')"
HALF_SYNCED = "tools.durability.sabotage:sync_less('NORMAL')"

_SUCCESS = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Length", "7"),
    ("X-Postback-Result", "recorded"),
]

_COPY_THE_LAST = """
    INSERT INTO postbacks (received_at, source, query, subid, tid, verdict, reason)
    SELECT received_at, source, query, subid, tid, verdict, reason FROM postbacks
    WHERE verdict = 'recorded' ORDER BY id DESC LIMIT 1
"""


def answer_early() -> Application:
    """Answer at once and store the postback later, as fast receivers are tempted to."""
    put_off: SimpleQueue[Environ] = SimpleQueue()

    def keep_later() -> None:
        while True:
            application(put_off.get(), lambda *answer: None)

    threading.Thread(target=keep_later, daemon=True).start()

    def receive(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if "/postback" not in environ["PATH_INFO"] or not environ["QUERY_STRING"]:
            return application(environ, start_response)
        put_off.put({**environ, "REQUEST_METHOD": "GET"})
        start_response("200 OK", _SUCCESS)
        return [b"Success"]

    return receive


def keep_twice() -> Application:
    """Store every postback, and the row of a recorded one twice."""
    path = load(find_config(os.environ)).db_path

    def receive(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        answer = application(environ, start_response)
        with closing(sqlite3.connect(path, timeout=20)) as db, db:
            db.execute(_COPY_THE_LAST)
        return answer

    return receive


def sync_less(synchronous: str) -> Application:
    """Ask SQLite for fewer syncs than the receiver does: `NORMAL` or `OFF`."""
    configure = connection._configure

    def configure_worse(db: sqlite3.Connection) -> None:
        configure(db)
        db.execute(f"PRAGMA synchronous = {synchronous}")

    connection._configure = configure_worse
    return application
