"""gunicorn's settings for the receiver, each with its reason; `postback serve` uses them.

By hand: `gunicorn --config python:postbackd.server.gunicorn_conf postback:application`; in the
checkout, whose `gunicorn.conf.py` gunicorn finds by itself, `gunicorn postback:application`.
"""

import gc
from typing import Any

import postback
from postbackd.server.logs import MaskingLogger, describe_start

# Only the machine itself: nginx stands in front. Source: the contract's default public_url.
bind = "127.0.0.1:8000"

# One process commits what waits together; more of them would wait for each other's syncs.
workers = 1
# Answers all that is ready and commits once, in one thread: three to four times what `gthread`
# reaches, whose threads spend their time handing locks to each other.
worker_class = "postbackd.server.worker.GroupCommitWorker"
# With `--worker-class gthread` a thread waits for the commit of its request: this many share one
# sync of the disk. The worker above has no use for them.
threads = 32
# Connections held open, those that are only kept alive included. When there is one more, the worker
# closes the one that has been silent for longest.
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
# Nothing is refused for a long Cookie or Referer, or for what a chain of proxies adds: the worker
# above takes a head of 64 KiB, however it is made up. For gunicorn's own workers the product is
# what a connection may have them hold.
limit_request_fields = 256
limit_request_field_size = 64 * 1024
# Whether a proxy says https means nothing here, so a contradiction of two of these fields, or a
# value that gunicorn does not expect, is no reason to refuse a postback.
secure_scheme_headers: dict[str, str] = {}
# Nor may a client of this machine name another SCRIPT_NAME or PATH_INFO.
forwarder_headers = ""
# With gunicorn's default, `auto`, installing gunicorn[fast] would change what is refused, and when.
http_parser = "python"

# The receiver is looked after by systemd and its own config file; a control socket in the home
# directory would be one more thing that can be in the way.
control_socket_disable = True

# New objects before Python looks for cycles among them: more than a batch of 256 leaves alive.
COLLECTED_AT_ONCE = 20_000

# Requests are told by `postback log`; gunicorn's access log is off unless asked for.
accesslog = None
errorlog = "-"


def post_worker_init(worker: Any) -> None:
    """Begin the housekeeping: what other programs wrote does not wait for a request."""
    spare_collector()
    # A worker whose own loop ticks needs nothing beside it.
    if not getattr(worker, "keeps_house", False):
        postback.application.service.start()


def spare_collector() -> None:
    """Have Python's collector of cycles look through less: it took a twentieth of a postback."""
    # What is alive when a worker begins lives as long as it does.
    gc.freeze()
    # A batch makes thousands of tuples, and no cycles. Python's own 700 would look through all
    # that are alive twenty times a batch.
    gc.set_threshold(COLLECTED_AT_ONCE, 10, 10)


def worker_exit(server: Any, worker: Any) -> None:
    """Commit and answer what was taken."""
    del server, worker
    postback.application.close()


def on_starting(server: Any) -> None:
    """Hold the currency and the database for all workers, those to come too."""
    del server
    postback.application.remember_start()


# With a HUP, which starts all workers anew, a change of them comes into force.
on_reload = on_starting


def when_ready(server: Any) -> None:
    """Say once, not per worker, what was started."""
    server.log.info("%s", describe_start(server.cfg))


logger_class = MaskingLogger
