"""Ctrl-Z waits for the end of a transaction: a process stopped within would hold the write lock.

The signals are caught from the first transaction on. SIGSTOP and a debugger cannot be.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-Z, and what a job in the background is sent that reads from its terminal or writes to it.
STOP_SIGNALS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


class _Deferral:
    """What this process does at present: whether it catches the signals, what it has put off."""

    is_catching = False
    holds = 0
    asked: set[int] = set()  # noqa: RUF012  # there is one process


@contextmanager
def deferred() -> Iterator[None]:
    """Put a stop that is asked for inside off until the end."""
    _catch_stops()
    _Deferral.holds += 1
    try:
        yield
    finally:
        _Deferral.holds -= 1
        if _Deferral.asked and not _Deferral.holds:
            _stop_where_allowed()


def stop_if_asked() -> bool:
    """Stop now where that was asked for, within `deferred` while nothing is held; True after it."""
    if not _Deferral.asked:
        return False
    _stop_where_allowed()
    return True


def _catch_stops() -> None:
    if _Deferral.is_catching or threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers; where transactions are made in others, as under
        # gthread, a stop is a stop.
        return
    _Deferral.is_catching = True
    for number in STOP_SIGNALS:
        # What was ignored, by a shell without job control, stays ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _note_stop)


def _note_stop(number: int, frame: FrameType | None) -> None:
    del frame
    if _Deferral.holds:
        _Deferral.asked.add(number)
    else:
        _stop(number)


def _stop_where_allowed() -> None:
    asked = sorted(_Deferral.asked)
    _Deferral.asked.clear()
    for number in asked:
        if threading.current_thread() is threading.main_thread():
            _stop(number)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, number)


def _stop(number: int) -> None:
    """Do what the kernel would have done; returns when the process goes on."""
    # Not SIGSTOP in its place: a process that no shell looks after is not stopped by these.
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    signal.signal(number, _note_stop)
