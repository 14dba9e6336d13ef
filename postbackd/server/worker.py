"""gunicorn's worker for the receiver: requests that are ready are answered with one commit.

One thread, epoll, no blocking on a client. Each turn of the loop reads the sockets, has all
complete requests answered together (`Receiver.answer_all`, which commits once), and only then
sends the answers; if the commit fails, all of them are 503.

Any WSGI callable runs under it; one without `answer_all` is just called, and only a `service` of
the receiver's kind is ticked. Answers are held whole, so a callable that streams without end has no
place here. TLS, uwsgi and the PROXY protocol are refused at start, and HTTP/2 is not spoken: nginx
stands in front.
"""

import logging
import os
import resource
import select
import socket
import time
from collections import deque
from datetime import timedelta
from functools import cache
from http import HTTPStatus
from typing import Any, NamedTuple

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.workers.base import Worker

from postbackd.intake.answers import Answer, unavailable_answer
from postbackd.intake.group_commit import BATCH_LIMIT, WAIT_LIMIT_SECONDS
from postbackd.server.connection import READ_BYTES, Call, Connection, Hold
from postbackd.server.http_request import Address, HeadReader, describe_refusal, make_peer
from postbackd.server.http_response import FakeSocket, Headers, Response, write_error

# How many requests of one connection go into one batch: a client that pipelines leaves the rest of
# the batch to others, and its unread answers stay within the size of what it sent.
PIPELINE_LIMIT = 32

# How many bytes of requests go into one batch: 256 postbacks have some 100 KiB; five of the longest
# bodies fill it, and take up to 20 ms each. A full batch takes no more connections with much input:
# the other clients wait one batch for a sender of long bodies.
TURN_LIMIT_BYTES = 256 * 1024
# Twice the longest request line: no GET waits for the next batch.
MUCH_BYTES = 16 * 1024

# A request must be complete so long after its first byte (the first request: after the accept). 64
# KiB on a bad mobile line take 13 seconds; a graceful stop has 30.
REQUEST_LIMIT_SECONDS = 20.0

# A client that reads no byte of its answer for so long is disconnected.
SEND_LIMIT_SECONDS = 10.0

# A connection that has been silent for so long may be closed when all connections are taken. A
# sender's first bytes arrive within the time of one way, some 0.3 s around the world.
QUIET_SECONDS = 0.5

# Limit of the kernel's buffers for one connection, each way; the kernel doubles it for its own use.
# By default it holds some 6 MiB of a client that sends and does not read. The longest body or
# `return` fits.
SOCKET_BYTES = 64 * 1024

# How long the client may take to read the last answer: a close with unread input resets the
# connection, and the reset can overtake the answer.
LINGER_SECONDS = 2.0

# How long a stopping worker leaves idle connections open, for a request that is on its way.
STOP_IDLE_SECONDS = 1.0

# How often deadlines are checked: a tenth of the shortest limit above that people notice.
TICK_SECONDS = 0.25

# How often a lasting problem is logged: each tick meets it again.
WARNING_SECONDS = 60.0

# Connections accepted in one turn. Several workers share the listening socket: a small number
# leaves some to the others; a single worker takes all of them into its next commit.
ACCEPT_LIMIT_ALONE = 256
ACCEPT_LIMIT_AMONG_OTHERS = 4

# Open files other than connections: listeners, database, logs, config.
SPARE_FILES = 64


class AccessLogEntry(NamedTuple):
    """An answer with the attributes that gunicorn's access log and hooks read."""

    status: str
    headers: Headers
    sent: int
    response_length: int


class GroupCommitWorker(Worker):  # type: ignore[misc]  # gunicorn is untyped
    """Sends no answer before the commit that its request is part of."""

    # Read by `post_worker_init`: this loop runs the housekeeping, so no thread has to.
    runs_housekeeping = True

    alive: bool
    nr: int

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse settings that this worker does not support."""
        del log
        refusals = {
            "TLS (certfile, keyfile)": cfg.is_ssl,
            f"protocol = {cfg.protocol!r}": cfg.protocol != "http",
            "proxy_protocol": cfg.proxy_protocol != "off",
        }
        for what, is_wanted in refusals.items():
            if is_wanted:
                raise RuntimeError(
                    f"{cls.__name__} does not do {what}: let nginx do it in front of plain HTTP,"
                    " or choose --worker-class gthread"
                )
        if cfg.http_parser == "fast":
            raise RuntimeError(
                f"{cls.__name__} does not use http_parser = 'fast', it has a quick reader of its"
                " own: leave the setting out, or choose --worker-class gthread"
            )

    def run(self) -> None:
        """Serve until told to stop, then finish the requests that have begun."""
        self._prepare()
        while self.alive:
            self._turn()
        self._stop()

    def _prepare(self) -> None:
        self._connections: dict[int, Connection] = {}
        # Connections that wait for the client, by the reason; the longest waiting first.
        self._held: dict[Hold, dict[int, Connection]] = {hold: {} for hold in Hold}
        # Connections that may hold a complete request, in the order they are looked at.
        self._queue: deque[Connection] = deque()
        self._poller = select.epoll()
        self._poller.register(self.PIPE[0], select.EPOLLIN)
        self._listeners = {listener.fileno(): listener for listener in self.sockets}
        self._is_accepting = False
        # gunicorn looks a setting up by way of an exception: once is enough.
        self._keepalive: int = self.cfg.keepalive
        self._connection_limit: int = max(1, self.cfg.worker_connections)
        # Connections that wait for the client's FIN; the longest waiting first. They do not count
        # towards the limit; where they become too many, the first ones are closed.
        self._lingering: dict[int, Connection] = {}
        allow_files(2 * self._connection_limit + SPARE_FILES)
        self._has_observers = has_observers(self.cfg, self.log)
        # Under `auto` gunicorn would use another parser as soon as gunicorn[fast] is installed.
        # `HeadReader.refuse_hopeless` refuses early what this parser would refuse.
        self.cfg.set("http_parser", "python")
        # The access log and the hooks need gunicorn's request objects; only its own parser makes
        # them.
        self._reader = HeadReader(self.cfg, reads_plain=not self._has_observers)
        self._errors = wsgi.WSGIErrorsWrapper(self.cfg)
        self._answer_all = getattr(self.wsgi, "answer_all", None)
        self._has_service = hasattr(getattr(self.wsgi, "service", None), "run_housekeeping")
        self._now = time.monotonic()
        self._next_tick = self._next_notice = 0.0
        self._next_warnings: dict[str, float] = {}
        self._date, self._date_second = b"", 0
        for listener in self.sockets:
            listener.settimeout(0)
        self._resume_accepting()

    def _turn(self) -> None:
        """Read sockets, answer complete requests, commit, send; check deadlines if they are due."""
        self._take_events(0.0 if self._queue else max(0.0, self._next_tick - time.monotonic()))
        batch = self._collect()
        if batch:
            self._answer(batch)
            self._now = time.monotonic()
            for call in batch:
                self._send(call)
        if self._now >= self._next_tick:
            self._tick()

    # Receiving.

    def _take_events(self, patience: float) -> None:
        events = self._poller.poll(patience)
        self._now = time.monotonic()
        for fd, _ in events:
            connection = self._connections.get(fd)
            if connection is not None:
                self._attend(connection)
            elif fd in self._listeners:
                alone = self.cfg.workers == 1
                self._accept(fd, ACCEPT_LIMIT_ALONE if alone else ACCEPT_LIMIT_AMONG_OTHERS)
            elif fd == self.PIPE[0]:
                os.read(fd, 4096)

    def _attend(self, connection: Connection) -> None:
        """Handle an event on a connection."""
        if connection.calls:
            # It has a request in this commit: the rest of its input waits for the next event.
            return
        if connection.is_lingering:
            self._drain(connection)
        elif connection.outbox:
            connection.flush()
            if not connection.outbox and not connection.is_closing:
                self._enqueue(connection)
            self._settle(connection)
        elif connection.is_queued:
            # Its complete requests wait; nothing more is read before they are answered.
            self._watch(connection, 0)
        elif connection.receive() or connection.has_ended:
            self._enqueue(connection)

    @property
    def _has_capacity(self) -> bool:
        return len(self._connections) - len(self._lingering) < self._connection_limit

    def _accept(self, fd: int, limit: int) -> None:
        for _ in range(limit):
            leaving = None if self._has_capacity else self._find_dispensable()
            if leaving is None and not self._has_capacity:
                self._pause_accepting()
                return
            try:
                sock, address = self._listeners[fd].accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # No files or no memory left. epoll would report the listener without end; the next
                # tick tries again.
                self._warn_rarely("no connection can be accepted at present: %s", error)
                self._pause_accepting()
                return
            if leaving is not None:
                self._evict(leaving)
            self._add_connection(sock, address, self._listeners[fd].getsockname())

    def _warn_rarely(self, sentence: str, detail: object) -> None:
        """Log a lasting problem, once a minute."""
        if self._now >= self._next_warnings.get(sentence, 0.0):
            self.log.warning(sentence, detail)
            self._next_warnings[sentence] = self._now + WARNING_SECONDS

    def _find_dispensable(self) -> Connection | None:
        """Find the connection to close so that another is accepted: the longest silent one."""
        for hold, connections in self._held.items():
            for connection in connections.values():
                if self._now - connection.held_since < QUIET_SECONDS:
                    break
                if connection.is_queued:
                    continue
                if hold <= Hold.IDLE and (connection.receive() or connection.has_ended):
                    # A request has just arrived.
                    self._enqueue(connection)
                    continue
                return connection
        return None

    def _evict(self, connection: Connection) -> None:
        """Close a connection so that another is accepted; half a request is answered 503."""
        limit = self._connection_limit
        self._warn_rarely("all %s connections are taken: the longest silent ones are closed", limit)
        if connection.hold is Hold.BEGUN:
            self._count_refusal(connection, 503, "not whole when all connections were taken")
            connection.refuse()
            call = Call(connection)
            self._write_unavailable(call)
            connection.outbox = call.answer
            connection.flush()
            if not connection.outbox:
                self._linger(connection)
                return
        self._close(connection)

    def _hold(self, connection: Connection, hold: Hold | None) -> None:
        """Set what a connection waits for; a changed one goes to the end of its new list."""
        if hold is connection.hold:
            return
        if connection.hold is not None:
            del self._held[connection.hold][connection.fd]
        connection.hold = hold
        if hold is not None:
            connection.held_since = self._now
            self._held[hold][connection.fd] = connection

    def _add_connection(self, sock: socket.socket, address: Address, server: Any) -> None:
        sock.settimeout(0)
        # Not inherited from the listener: connections may have waited there before it was
        # configured.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        peer = make_peer(self.cfg, self._errors, address, server)
        deadline = self._now + (REQUEST_LIMIT_SECONDS if self.alive else STOP_IDLE_SECONDS)
        connection = Connection(sock, peer, deadline, sock.fileno())
        self._connections[connection.fd] = connection
        # Most clients have sent their request by now.
        if connection.receive() or connection.has_ended:
            self._enqueue(connection)
        else:
            self._watch(connection, select.EPOLLIN)
            self._hold(connection, Hold.SILENT)

    def _pause_accepting(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            for fd in self._listeners:
                self._poller.unregister(fd)

    def _resume_accepting(self) -> None:
        if self._is_accepting or not self.alive:
            return
        if self._has_capacity or self._find_dispensable() is not None:
            self._is_accepting = True
            for fd in self._listeners:
                # EXCLUSIVE: a new connection wakes one worker, not all of them.
                self._poller.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def _watch(self, connection: Connection, events: int) -> None:
        """Let epoll report these events only; with 0, none, not even a reset."""
        if events == connection.watched:
            return
        if not events:
            self._poller.unregister(connection.fd)
        elif connection.watched:
            self._poller.modify(connection.fd, events)
        else:
            self._poller.register(connection.fd, events)
        connection.watched = events

    def _enqueue(self, connection: Connection) -> None:
        if not connection.is_queued:
            connection.is_queued = True
            connection.queued_at = self._now
            self._queue.append(connection)

    # Answering.

    def _collect(self) -> list[Call]:
        """Take complete requests for one commit, with those that arrive meanwhile.

        A client that was just answered has often sent its next request: taken too, it saves a
        commit.
        """
        batch: list[Call] = []
        others: list[Connection] = []
        self._fill(batch, others)
        size = 0
        while size < len(batch) < BATCH_LIMIT:
            size = len(batch)
            self._take_events(0.0)
            self._fill(batch, others)
        self._queue.extend(others)
        return batch

    def _fill(self, batch: list[Call], others: list[Connection]) -> None:
        """Add complete requests, one of each connection in turn; `others` wait."""
        size = sum(call.size for call in batch)
        while self._queue and len(batch) < BATCH_LIMIT:
            connection = self._queue.popleft()
            if size >= TURN_LIMIT_BYTES and connection.unserved_bytes > MUCH_BYTES:
                others.append(connection)
                continue
            call = None if connection.outbox else self._take_call(connection)
            if call is not None:
                batch.append(call)
                size += call.size
                connection.calls += 1
                if not connection.is_closing and connection.is_amid_request:
                    is_done = connection.calls >= PIPELINE_LIMIT
                    (others if is_done else self._queue).append(connection)
                    continue
            connection.is_queued = False
            if not connection.calls:
                self._settle(connection)

    def _take_call(self, connection: Connection) -> Call | None:
        try:
            call = connection.take_call(self._reader)
        except Exception as error:  # one connection's error; gunicorn chooses its status
            sink = FakeSocket()
            self.handle_error(None, sink, connection.peer.address, error)
            connection.refuse()
            # gunicorn's page quotes the request, which may hold a key: only its status is sent.
            _, status, phrase = sink.sent.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)
            self._count_refusal(connection, int(status), describe_refusal(error))
            return Call(connection, answer=write_error(int(status), phrase))
        if call is not None and call.environ is not None:
            self._admit(call)
        return call

    def _count_refusal(self, connection: Connection, status: int, reason: str) -> None:
        """Tell the callable, where it wants to know, what it never gets to see."""
        if self._has_service:
            address = connection.peer.address
            host = address if isinstance(address, str) else address[0]
            self.wsgi.service.note_refusal(status, reason, host)

    def _admit(self, call: Call) -> None:
        """Count a request, and decide whether its connection stays open after it."""
        self._hold(call.connection, None)
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        # A server that is full lets go of those it has served, so that others get in.
        if not (self.alive and self._keepalive and self._is_accepting):
            call.keeps_alive = False
        call.connection.is_closing = not call.keeps_alive
        if self._answer_all and self._now - call.connection.queued_at > WAIT_LIMIT_SECONDS:
            self._write_unavailable(call)

    def _answer(self, batch: list[Call]) -> None:
        """Have a batch answered and committed: nothing is sent before this returns."""
        calls = [call for call in batch if not call.answer]
        if not calls:
            return
        self._update_date()
        if self._answer_all is None:
            for call in calls:
                self._answer_one(call)
            return
        if self._has_observers:
            calls = [call for call in calls if self._ask_hook(call)]
        try:
            answers = self._answer_all([call.environ for call in calls])
            for call, answer in zip(calls, answers, strict=True):
                self._write(call, answer)
        except Exception:
            self.log.exception("Error answering %s requests", len(calls))
            self._refuse_batch(calls)

    def _ask_hook(self, call: Call) -> bool:
        """Call the hook before a request; False if it failed: only that request is refused."""
        try:
            self.cfg.pre_request(self, call.request)
        except Exception:
            self.log.exception("Exception in pre_request hook")
            self._write_unavailable(call)
            return False
        return True

    def _write(self, call: Call, answer: Answer) -> None:
        status, headers, body = answer
        call.write(_write_status(status), headers, body, self._date)

    def _answer_one(self, call: Call) -> None:
        if time.monotonic() >= self._next_notice:
            self._notify_arbiter()
        response = Response()
        try:
            if self._has_observers:
                self.cfg.pre_request(self, call.request)
            body = response.gather(self.wsgi(call.environ, response.start))
            call.write(response.status, response.headers, body, self._date)
        except Exception:
            environ = call.environ or {}
            method, target = environ.get("REQUEST_METHOD"), environ.get("RAW_URI")
            self.log.exception("Error handling request %s %s", method, target)
            plain = [("Content-Type", "text/plain; charset=utf-8")]
            call.write("500 Internal Server Error", plain, b"Internal Server Error", self._date)

    def _refuse_batch(self, calls: list[Call]) -> None:
        """Answer 503 to all requests of a failed batch: nothing of them was stored."""
        for call in calls:
            self._write_unavailable(call)

    def _write_unavailable(self, call: Call) -> None:
        self._update_date()
        self._write(call, unavailable_answer())

    def _update_date(self) -> None:
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = f"Date: {util.http_date(second)}\r\n".encode("latin-1")

    # Sending.

    def _send(self, call: Call) -> None:
        """Send an answer, together with the others of its connection."""
        connection = call.connection
        if not connection.is_gone:
            connection.outbox = bytes(connection.outbox) + call.answer
        connection.calls -= 1
        if not connection.calls:
            if connection.outbox:
                connection.flush()
            self._settle(connection)
        if self._has_observers and call.request is not None:
            self._report(call)

    def _settle(self, connection: Connection) -> None:
        """Decide what a connection waits for next, and until when."""
        if connection.outbox:
            self._watch(connection, select.EPOLLOUT)
            self._hold(connection, Hold.DEAF)
            connection.deadline = self._now + SEND_LIMIT_SECONDS
        elif connection.is_closing:
            self._linger(connection)
        elif connection.is_queued:
            return
        elif connection.has_ended:
            self._close(connection)
        else:
            self._watch(connection, select.EPOLLIN)
            self._hold(connection, Hold.BEGUN if connection.is_amid_request else Hold.IDLE)
            self._set_deadline(connection)

    def _set_deadline(self, connection: Connection) -> None:
        if connection.is_timed:
            return
        if connection.is_amid_request:
            connection.is_timed = True
            connection.deadline = self._now + REQUEST_LIMIT_SECONDS
        else:
            connection.deadline = self._now + self._keepalive

    def _linger(self, connection: Connection) -> None:
        """Shut down writing after the last answer, and close once the client has read it."""
        if connection.has_ended or connection.is_gone or not connection.must_linger:
            self._close(connection)
            return
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        self._hold(connection, None)
        connection.is_lingering = True
        connection.deadline = self._now + LINGER_SECONDS
        self._watch(connection, select.EPOLLIN)
        self._lingering[connection.fd] = connection
        if len(self._lingering) > self._connection_limit:
            self._close(next(iter(self._lingering.values())))
        self._resume_accepting()

    def _drain(self, connection: Connection) -> None:
        """Discard input after the last answer, until the client closes too."""
        try:
            is_over = not connection.sock.recv(READ_BYTES)
        except BlockingIOError:
            is_over = False
        except OSError:
            is_over = True
        if is_over:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._watch(connection, 0)
        self._hold(connection, None)
        del self._connections[connection.fd]
        self._lingering.pop(connection.fd, None)
        connection.sock.close()
        self._resume_accepting()

    def _report(self, call: Call) -> None:
        """Write gunicorn's access log and call the hook after a request."""
        entry = AccessLogEntry(call.status, call.headers, call.sent, call.sent)
        taken = timedelta(seconds=self._now - call.began_at)
        self.log.access(entry, call.request, call.environ, taken)
        try:
            self.cfg.post_request(self, call.request, call.environ, entry)
        except Exception:
            self.log.exception("Exception in post_request hook")

    # Deadlines.

    def _notify_arbiter(self) -> None:
        """Show the arbiter that we are alive; between calls too, since slow ones take long."""
        self.notify()
        self._next_notice = time.monotonic() + TICK_SECONDS

    def _tick(self) -> None:
        self._notify_arbiter()
        if self.alive and self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self.alive = False
        if self._is_accepting:
            # epoll wakes one worker for a connection; if that worker was stopped or killed just
            # then, this one accepts it.
            for fd in self._listeners:
                self._accept(fd, ACCEPT_LIMIT_AMONG_OTHERS)
        if self._has_service:
            self._do_housekeeping()
        for connection in list(self._connections.values()):
            if connection.deadline <= self._now and not connection.is_queued:
                self._expire(connection)
        self._resume_accepting()
        self._next_tick = time.monotonic() + TICK_SECONDS

    def _do_housekeeping(self) -> None:
        try:
            self.wsgi.service.run_housekeeping()
        except Exception:
            self.log.exception("Error in the housekeeping")

    def _expire(self, connection: Connection) -> None:
        """Close a connection whose deadline has passed; a part of a request is answered 408."""
        if connection.is_lingering or connection.outbox:
            self._close(connection)
        elif connection.is_amid_request:
            connection.refuse()
            self._count_refusal(connection, 408, "not whole in time")
            connection.outbox = write_error(408, "Request Timeout")
            connection.flush()
            self._settle(connection)
        elif connection.receive() or connection.has_ended:
            # A request has just arrived.
            self._enqueue(connection)
        else:
            self._close(connection)

    def _stop(self) -> None:
        """Answer the requests that have arrived, then close everything."""
        # The arbiter kills the worker at the end of its grace; the database must be closed before.
        deadline = time.monotonic() + 0.9 * self.cfg.graceful_timeout
        self._now = time.monotonic()
        for fd in self._listeners:
            # Accept what is left in the backlog: epoll woke only this worker for it.
            self._accept(fd, self._connection_limit)
        self._pause_accepting()
        for connection in self._connections.values():
            if connection.is_idle:
                connection.deadline = min(connection.deadline, self._now + STOP_IDLE_SECONDS)
        while self._connections and time.monotonic() < deadline:
            self._turn()
        for connection in list(self._connections.values()):
            self._close(connection)
        self._poller.close()
        for listener in self.sockets:
            listener.close()


@cache
def _write_status(status: HTTPStatus) -> str:
    return f"{status.value} {status.phrase}"


def allow_files(count: int) -> None:
    """Raise the limit of open files as far as needed and permitted: 1,024 is a usual default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def has_observers(cfg: Any, log: Any) -> bool:
    """Return whether a log or a hook needs gunicorn's request objects."""
    hooks = (cfg.settings["pre_request"], cfg.settings["post_request"])
    return (
        log.access_log_enabled
        or log.error_log.isEnabledFor(logging.DEBUG)
        or any(hook.get() is not hook.default for hook in hooks)
    )
