"""The threaded worker of gunicorn, whose threads never wait for a client.

gunicorn gives a connection to a thread when its first byte has come, and the thread reads and writes the socket: as
many clients that send half a request, or take an answer byte by byte, as there are threads hold the whole site. Here
the one loop reads requests and sends answers, without blocking; a thread gets a request when all of it is there, and
is free when the answer is made.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from fedsim.web.connection import CONTINUE, MAX_HEAD_BYTES, Connection, find_end

# After the last answer the client may still be sending; closing at once could take the answer away from it.
LINGER_SECONDS = 2.0
LOOK_SECONDS = 0.5
_NOT_ACCEPTED = {errno.EAGAIN, errno.ECONNABORTED, errno.EINTR}
_NO_ROOM = {errno.EMFILE, errno.ENFILE}


class PatientWorker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """Serves as `gthread` does, with a deadline on each request and each answer.

    The application says how long: `app.request_seconds`, `app.min_bytes_per_second` and `app.max_body_bytes`. Where
    there are too many connections, the one that has kept its request to itself the longest makes room for the newest.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: dict[Connection, None] = {}  # in the order in which they began to wait
        self._others: set[Connection] = set()
        self._look_at = 0.0

    # -- connections come and go
    def accept(self, listener: socket.socket) -> None:
        """A new client: its request is awaited here, not in a thread."""
        try:
            accepted, client = listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._make_room()
            elif error.errno not in _NOT_ACCEPTED:
                raise
            return
        connection = Connection(self.cfg, accepted, client, listener.getsockname())
        self._read_next(connection, self.app.request_seconds)
        if self.nr_conns >= self.worker_connections:
            self._make_room()

    def _make_room(self) -> None:
        oldest = next(iter(self._reading), None)
        if oldest is not None:
            self._drop(oldest)

    def _drop(self, connection: Connection) -> None:
        self._forget(connection)
        connection.close()

    def _forget(self, connection: Connection) -> None:
        self._reading.pop(connection, None)
        self._others.discard(connection)
        if connection.socket in self.poller.get_map():
            self.poller.unregister(connection.socket)
        self._count()

    def _count(self) -> None:
        self.nr_conns = len(self._reading) + len(self._others)

    def _wait(self, connection: Connection, event: int, step: Any, seconds: float) -> None:
        """Call `step` whenever the socket is ready, until the deadline."""
        self.poller.register(connection.socket, event, partial(self._step, connection, step))
        connection.deadline = time.monotonic() + seconds

    def _step(self, connection: Connection, step: Any, _socket: Any) -> None:
        if connection not in self._reading and connection not in self._others:
            return  # it was let go after the poller had told of it
        try:
            step(connection)
        except OSError:  # the client is gone
            self._drop(connection)

    # -- a request comes
    def _read_next(self, connection: Connection, seconds: float) -> None:
        self._forget(connection)
        self._reading[connection] = None
        self._count()
        self._wait(connection, selectors.EVENT_READ, self._read, seconds)

    def _read(self, connection: Connection) -> None:
        began = bool(connection.received)
        if not connection.receive():
            self._drop(connection)
            return
        if not began and connection.received:  # a kept connection's next request has a deadline of its own
            connection.deadline = time.monotonic() + self.app.request_seconds
        self._take(connection)

    def _take(self, connection: Connection) -> None:
        """Give the request to a thread, if it is whole."""
        framing = find_end(connection.received, self.app.max_body_bytes)
        if framing is None:
            if len(connection.received) > MAX_HEAD_BYTES:
                self._refuse(connection, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif not framing.measured or len(connection.received) >= framing.size:
            self._forget(connection)
            self._others.add(connection)
            self._count()
            connection.deadline = None
            connection.begin(framing)
            self.enqueue_req(connection)
        elif framing.expects_continue and not connection.told_to_continue:
            connection.told_to_continue = True
            connection.socket.send(CONTINUE)

    def _refuse(self, connection: Connection, status: HTTPStatus) -> None:
        """Answer what never became a request; a client that does not take even this is not waited for."""
        text = f"{status.phrase}\n"
        connection.sock.sendall(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
            f"Connection: close\r\n\r\n{text}".encode()
        )
        connection.sock.send_some(connection.socket)
        self._linger(connection)

    # -- an answer goes
    def _keepalive_after(self, connection: Connection, keepalive: bool) -> bool:
        """Nothing is left to read of a request that was whole; gunicorn would wait for the rest of any other."""
        return keepalive and connection.measured

    def finish_request(self, connection: Connection, made: Future[Any]) -> None:
        """The thread is done: send what it made. Whoever takes it too slowly is not waited for."""
        keep = not made.cancelled() and made.exception() is None and bool(made.result())
        seconds = self.app.request_seconds + connection.sock.size / self.app.min_bytes_per_second
        self._wait(connection, selectors.EVENT_WRITE, partial(self._send, keep=keep), seconds)
        self._step(connection, partial(self._send, keep=keep), None)

    def _send(self, connection: Connection, *, keep: bool) -> None:
        if not connection.sock.send_some(connection.socket):
            return
        connection.sock.close()
        if not keep:
            self._linger(connection)
            return
        self._read_next(connection, self.cfg.keepalive)
        if connection.received:
            connection.deadline = time.monotonic() + self.app.request_seconds
            self._take(connection)

    def _linger(self, connection: Connection) -> None:
        self._forget(connection)
        connection.socket.shutdown(socket.SHUT_WR)
        self._others.add(connection)
        self._count()
        self._wait(connection, selectors.EVENT_READ, self._discard, LINGER_SECONDS)

    def _discard(self, connection: Connection) -> None:
        open_still = connection.receive()
        connection.received.clear()
        if not open_still:
            self._drop(connection)

    # -- deadlines; gunicorn's loop calls these
    def murder_pending(self) -> None:
        """Let go of those whose time is over."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for connection in [*self._reading, *self._others]:
            if connection.deadline is None or connection.deadline > now:
                continue
            if connection in self._reading and connection.received:
                self._step(connection, partial(self._refuse, status=HTTPStatus.REQUEST_TIMEOUT), None)
            else:
                self._drop(connection)

    def murder_keepalived(self, force: bool = False) -> None:
        """At the very end: let go of all."""
        for connection in [*self._reading, *self._others] if force else ():
            self._drop(connection)

    def _cap_keepalive(self, deadline: float) -> None:
        """The worker stops: whoever has no request under way is let go soon."""
        for connection in self._reading:
            if connection.deadline is not None:
                connection.deadline = min(connection.deadline, deadline)
