"""Defers Ctrl-Z to the end of a transaction: a process stopped in it would keep the write lock.

The signals are caught from the first transaction on. SIGSTOP and a debugger cannot be caught.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-Z, and the signals for a background job that reads from its terminal or writes to it.
STOP_SIGNALS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


class _Deferral:
    """State of this process: whether it catches the signals, and which ones are deferred."""

    is_catching = False
    holds = 0
    asked: set[int] = set()  # noqa: RUF012  # there is one process


@contextmanager
def deferred() -> Iterator[None]:
    """Defer a stop that is requested inside the block to its end."""
    _catch_stops()
    _Deferral.holds += 1
    try:
        yield
    finally:
        _Deferral.holds -= 1
        if _Deferral.asked and not _Deferral.holds:
            _stop_where_allowed()


def stop_if_asked() -> bool:
    """Stop now if requested, inside `deferred` while no lock is held; True after the stop."""
    if not _Deferral.asked:
        return False
    _stop_where_allowed()
    return True


def _catch_stops() -> None:
    if _Deferral.is_catching or threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers; where other threads make transactions, as under
        # gthread, a stop is not deferred.
        return
    _Deferral.is_catching = True
    for number in STOP_SIGNALS:
        # A signal that is ignored, by a shell without job control, stays ignored.
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
    """Stop as the kernel would have done; returns when the process goes on."""
    # Not SIGSTOP: it would also stop a process without a shell's job control; these do not.
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    signal.signal(number, _note_stop)
