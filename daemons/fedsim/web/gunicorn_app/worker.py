"""The threaded worker of gunicorn, whose threads never wait for a client.

gunicorn hands a connection to a thread when its first byte has arrived, and the thread reads and writes the socket. So
a few clients that send half a request, or read a response byte by byte, occupy all threads and block the site. Here a
single loop reads requests and sends responses without blocking; a thread receives a request when it is complete, and is
free as soon as the response is computed.
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

from fedsim.web.gunicorn_app.connection import CONTINUE, MAX_HEAD_BYTES, BufferedConnection, find_end

# The client may still be sending when the response ends; closing at once could reset the connection before it is read.
LINGER_SECONDS = 2.0
DEADLINE_CHECK_SECONDS = 0.5
_NOT_ACCEPTED = {errno.EAGAIN, errno.ECONNABORTED, errno.EINTR}
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}


class BufferingWorker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """Serves like `gthread`, with a deadline for each request and each response.

    The limits are `app.request_seconds`, `app.min_bytes_per_second` and `app.max_body_bytes`. When there are too many
    connections, the one that has been waiting for its request the longest is closed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: dict[BufferedConnection, None] = {}  # ordered by the start of the wait
        self._others: set[BufferedConnection] = set()
        self._next_check = 0.0

    # -- opening and closing
    def accept(self, listener: socket.socket) -> None:
        """Accept a client; the loop reads its request, not a thread."""
        try:
            accepted, client = listener.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                self._close_oldest()
            elif error.errno not in _NOT_ACCEPTED:
                raise
            return
        connection = BufferedConnection(self.cfg, accepted, client, listener.getsockname())
        self._read_next(connection, self.app.request_seconds)
        if self.nr_conns >= self.worker_connections:
            self._close_oldest()

    def _close_oldest(self) -> None:
        oldest = next(iter(self._reading), None)
        if oldest is not None:
            self._drop(oldest)

    def _drop(self, connection: BufferedConnection) -> None:
        self._unregister(connection)
        connection.close()

    def _unregister(self, connection: BufferedConnection) -> None:
        self._reading.pop(connection, None)
        self._others.discard(connection)
        if connection.socket in self.poller.get_map():
            self.poller.unregister(connection.socket)
        self._count()

    def _count(self) -> None:
        self.nr_conns = len(self._reading) + len(self._others)

    def _wait(self, connection: BufferedConnection, event: int, step: Any, seconds: float) -> None:
        """Call `step` whenever the socket is ready, until the deadline."""
        self.poller.register(connection.socket, event, partial(self._step, connection, step))
        connection.deadline = time.monotonic() + seconds

    def _step(self, connection: BufferedConnection, step: Any, _socket: Any) -> None:
        if connection not in self._reading and connection not in self._others:
            return  # closed after the poller had reported it
        try:
            step(connection)
        except OSError:  # the client is gone
            self._drop(connection)

    # -- reading a request
    def _read_next(self, connection: BufferedConnection, seconds: float) -> None:
        self._unregister(connection)
        self._reading[connection] = None
        self._count()
        self._wait(connection, selectors.EVENT_READ, self._read, seconds)

    def _read(self, connection: BufferedConnection) -> None:
        began = bool(connection.received)
        if not connection.receive():
            self._drop(connection)
            return
        if not began and connection.received:  # each request on a kept-alive connection has its own deadline
            connection.deadline = time.monotonic() + self.app.request_seconds
        self._dispatch(connection)

    def _dispatch(self, connection: BufferedConnection) -> None:
        """Hand the request to a thread if it is complete."""
        framing = find_end(connection.received, self.app.max_body_bytes)
        if framing is None:
            if len(connection.received) > MAX_HEAD_BYTES:
                self._refuse(connection, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif not framing.measured or len(connection.received) >= framing.size:
            self._unregister(connection)
            self._others.add(connection)
            self._count()
            connection.deadline = None
            connection.begin(framing)
            self.enqueue_req(connection)
        elif framing.expects_continue and not connection.sent_continue:
            connection.sent_continue = True
            connection.socket.send(CONTINUE)

    def _refuse(self, connection: BufferedConnection, status: HTTPStatus) -> None:
        """Send an error for an incomplete request, without waiting for the client to read it."""
        text = f"{status.phrase}\n"
        connection.sock.sendall(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
            f"Connection: close\r\n\r\n{text}".encode()
        )
        connection.sock.send_some(connection.socket)
        self._linger(connection)

    # -- sending a response
    def _keepalive_after(self, connection: BufferedConnection, keepalive: bool) -> bool:
        """Only if the request was read completely; gunicorn would wait for the rest of any other."""
        return keepalive and connection.measured

    def finish_request(self, connection: BufferedConnection, response: Future[Any]) -> None:
        """Send the response that the thread computed; a client that reads too slowly is disconnected."""
        keep = not response.cancelled() and response.exception() is None and bool(response.result())
        seconds = self.app.request_seconds + connection.sock.size / self.app.min_bytes_per_second
        self._wait(connection, selectors.EVENT_WRITE, partial(self._send, keep=keep), seconds)
        self._step(connection, partial(self._send, keep=keep), None)

    def _send(self, connection: BufferedConnection, *, keep: bool) -> None:
        if not connection.sock.send_some(connection.socket):
            return
        connection.sock.close()
        if not keep:
            self._linger(connection)
            return
        self._read_next(connection, self.cfg.keepalive)
        if connection.received:
            connection.deadline = time.monotonic() + self.app.request_seconds
            self._dispatch(connection)

    def _linger(self, connection: BufferedConnection) -> None:
        self._unregister(connection)
        connection.socket.shutdown(socket.SHUT_WR)
        self._others.add(connection)
        self._count()
        self._wait(connection, selectors.EVENT_READ, self._discard, LINGER_SECONDS)

    def _discard(self, connection: BufferedConnection) -> None:
        still_open = connection.receive()
        connection.received.clear()
        if not still_open:
            self._drop(connection)

    # -- deadlines; called by gunicorn's loop
    def murder_pending(self) -> None:
        """Close the connections whose deadline has passed."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + DEADLINE_CHECK_SECONDS
        for connection in [*self._reading, *self._others]:
            if connection.deadline is None or connection.deadline > now:
                continue
            if connection in self._reading and connection.received:
                self._step(connection, partial(self._refuse, status=HTTPStatus.REQUEST_TIMEOUT), None)
            else:
                self._drop(connection)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close all connections, at the end."""
        for connection in [*self._reading, *self._others] if force else ():
            self._drop(connection)

    def _cap_keepalive(self, deadline: float) -> None:
        """While the worker stops: close connections without a request soon."""
        for connection in self._reading:
            if connection.deadline is not None:
                connection.deadline = min(connection.deadline, deadline)
