"""gunicorn's settings for the receiver, each with its reason; `postback serve` uses them.

By hand: `gunicorn --config python:server postback:application`; in the checkout, whose
`gunicorn.conf.py` gunicorn finds by itself, `gunicorn postback:application`.
"""

import logging
import os
import re
import sys
from typing import Any
from urllib.parse import quote, quote_plus

from gunicorn.glogging import Logger

import postback
from config import ConfigError, Settings, find_config, load
from query import HIDDEN, HIDEABLE_KEY_BYTES

# Only the machine itself: nginx stands in front. Source: the contract's default public_url.
bind = "127.0.0.1:8000"

# One process commits what waits together; more of them would wait for each other's syncs.
workers = 1
# Answers all that is ready and commits once, in one thread: three to four times what `gthread` and
# its writer thread reach, whose threads spend their time handing locks to each other.
worker_class = "worker.HoldingWorker"
# With `--worker-class gthread` a thread waits for the commit of its request: this many share one
# sync of the disk. The worker above has no use for them.
threads = 32
# Connections held open, those that are only kept alive included.
worker_connections = 2000

# A worker whose main loop is silent for so long is replaced; requests have no part in this limit.
timeout = 30
# What was taken is committed and answered before a worker goes.
graceful_timeout = 30
# Longer than nginx keeps its upstream connections (60 seconds): the proxy closes first, so that
# it never writes a postback into a connection we are closing.
keepalive = 75

# A postback's whole request line. Source: the contract.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190

# The receiver is looked after by systemd and its own config file; a control socket in the home
# directory would be one more thing that can be in the way.
control_socket_disable = True

# Requests are told by `postback log`; gunicorn's access log is off unless asked for.
accesslog = None
errorlog = "-"


def post_worker_init(worker: Any) -> None:
    """Begin the housekeeping: what other programs wrote does not wait for a request."""
    # A worker that commits and keeps house in its own loop wants no writer thread beside it: that
    # would be a second user of the database in one process.
    if not getattr(worker, "keeps_house", False):
        postback.application.start()


def worker_exit(server: Any, worker: Any) -> None:
    """Commit and answer what was taken."""
    del server, worker
    postback.application.close()


class MaskingFormatter(logging.Formatter):
    """Formats as the one it wraps, with keys masked in what comes out, tracebacks included."""

    def __init__(self, wrapped: logging.Formatter) -> None:
        """Wrap another formatter."""
        super().__init__()
        self._wrapped = wrapped

    def format(self, record: logging.LogRecord) -> str:
        """Format and mask."""
        return mask_keys(self._wrapped.format(record))


class MaskingLogger(Logger):  # type: ignore[misc]  # gunicorn is untyped
    """gunicorn's logger, whose logs show no key."""

    def setup(self, cfg: Any) -> None:
        """Set the handlers up as gunicorn does, mask them, and let our own loggers speak there."""
        super().setup(cfg)
        for log in (self.error_log, self.access_log):
            for handler in log.handlers:
                if handler.formatter is not None:
                    handler.setFormatter(MaskingFormatter(handler.formatter))
        ours = logging.getLogger("postback")
        ours.handlers = self.error_log.handlers
        ours.setLevel(self.error_log.level)
        ours.propagate = False

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log a warning; a malformed request is told by its kind, never by what stood in it."""
        found = _INVALID_REQUEST.match(str(msg))
        kind = sys.exc_info()[0]
        if found and kind is not None:
            msg = f"{found[0]}{kind.__name__}"
        super().warning(msg, *args, **kwargs)


# What gunicorn says of a request it cannot read; the rest of the line quotes the request.
_INVALID_REQUEST = re.compile(r"Invalid request from ip=\S*: ")

# The part of an address that holds a key, known or not: rotated keys leave our config file.
_KEY_IN_PATH = re.compile(r"/[^/\s\"']+(?=/(?:postback|click)\b)")

logger_class = MaskingLogger


def mask_keys(text: str) -> str:
    """Mask what is or looks like a key in a line of a log."""
    text = _KEY_IN_PATH.sub(f"/{HIDDEN}", text)
    for key in _known_keys():
        text = text.replace(key, HIDDEN)
    return text


_loaded: tuple[tuple[int, int], tuple[str, ...]] = ((0, 0), ())


def _known_keys() -> tuple[str, ...]:
    """Give the keys of the config file as they may be spelt in a log."""
    global _loaded  # noqa: PLW0603 one small cache, read anew when the file changes
    path = find_config(os.environ)
    try:
        stat = os.stat(path)
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != _loaded[0]:
            _loaded = (stamp, _spell_keys(load(path)))
    except (OSError, ConfigError):
        # The keys of the last good file stay masked.
        pass
    return _loaded[1]


def _spell_keys(settings: Settings) -> tuple[str, ...]:
    spellings = set()
    for key in settings.secrets():
        if len(key) >= HIDEABLE_KEY_BYTES:
            text = key.decode("utf-8", "backslashreplace")
            spellings |= {text, quote(key, safe=""), quote(key), quote_plus(key), repr(key)[2:-1]}
    # The longest first: a key may begin with another.
    return tuple(sorted(spellings, key=len, reverse=True))
