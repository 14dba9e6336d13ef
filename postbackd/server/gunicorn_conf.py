"""gunicorn's settings for the receiver, each with its reason; `postback serve` uses them.

By hand: `gunicorn --config python:postbackd.server.gunicorn_conf postback:application`; in the
checkout, whose `gunicorn.conf.py` gunicorn finds by itself, `gunicorn postback:application`.
"""

import gc
from typing import Any

import postback
from postbackd.server.logs import MaskingLogger, describe_start

# This machine only: nginx is in front. Source: the contract's default public_url.
bind = "127.0.0.1:8000"

# One process commits all requests that wait; several would wait for each other's fsync.
workers = 1
# Answers all that is ready and commits once, in one thread: three to four times what `gthread`
# reaches, whose threads spend their time handing locks to each other.
worker_class = "postbackd.server.worker.GroupCommitWorker"
# With `--worker-class gthread` a thread waits for the commit of its request: up to this many
# requests share one fsync. GroupCommitWorker does not use it.
threads = 32
# Open connections, idle ones included. When one more arrives, the worker closes the one that has
# been silent for longest.
worker_connections = 2000

# A worker whose main loop is silent for so long is replaced; a slow request does not count.
timeout = 30
# A stopping worker commits and answers the requests it has received, for at most so long.
graceful_timeout = 30
# Longer than nginx keeps its upstream connections (60 seconds): the proxy closes first, so that
# it never writes a postback into a connection we are closing.
keepalive = 75

# A postback's whole request line. Source: the contract.
limit_request_line = 8190
# No request is refused for a long Cookie or Referer, or for fields that a chain of proxies adds:
# GroupCommitWorker reads a head of up to 64 KiB, however many fields it has. Under gunicorn's own
# workers a connection may hold the product of the two.
limit_request_fields = 256
limit_request_field_size = 64 * 1024
# No answer depends on whether a proxy says https, so two of these fields that disagree, or a value
# that gunicorn does not expect, are no reason to refuse a postback.
secure_scheme_headers: dict[str, str] = {}
# Nor may a client of this machine name another SCRIPT_NAME or PATH_INFO.
forwarder_headers = ""
# With gunicorn's default, `auto`, installing gunicorn[fast] would change what is refused, and when.
http_parser = "python"

# systemd and the config file control the receiver; a control socket in the home directory would be
# one more thing that can fail.
control_socket_disable = True

# New objects before Python looks for cycles among them: more than a batch of 256 leaves alive.
COLLECTED_AT_ONCE = 20_000

# Requests are told by `postback log`; gunicorn's access log is off unless asked for.
accesslog = None
errorlog = "-"


def post_worker_init(worker: Any) -> None:
    """Start the housekeeping: changes made by other programs do not wait for a request."""
    spare_collector()
    # A worker that runs the housekeeping in its own loop needs no thread for it.
    if not getattr(worker, "runs_housekeeping", False):
        postback.application.service.start()


def spare_collector() -> None:
    """Have Python's collector of cycles look through less: it took a twentieth of a postback."""
    # What is alive when a worker begins lives as long as it does.
    gc.freeze()
    # A batch makes thousands of tuples, and no cycles. Python's own 700 would look through all
    # that are alive twenty times a batch.
    gc.set_threshold(COLLECTED_AT_ONCE, 10, 10)


def worker_exit(server: Any, worker: Any) -> None:
    """Commit and answer the requests that were received."""
    del server, worker
    postback.application.close()


def on_starting(server: Any) -> None:
    """Read `currency` and `[db] path` once in the master: workers forked later use the same."""
    del server
    postback.application.remember_start()


# HUP replaces all workers, and a change of the two comes into force.
on_reload = on_starting


def when_ready(server: Any) -> None:
    """Log what was started, once and not per worker."""
    server.log.info("%s", describe_start(server.cfg))


logger_class = MaskingLogger
