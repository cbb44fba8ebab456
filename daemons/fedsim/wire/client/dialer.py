"""Makes TCP connections to one peer: resolves its host name, tries its addresses in turn, pauses after failures."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from fedsim.wire.client.backoff import pause_seconds
from fedsim.wire.peer import Peer
from fedsim.wire.transport.reactor import Job
from fedsim.wire.transport.stream import start_connecting


class Dialer:
    """One attempt at a time. Not thread-safe.

    Args:
        peer: to connect to.
        timeout_seconds: for each address.
        run: runs a job that may block.
        post: runs a job in the owner's turn, from any thread.
        on_failure: called with the problem when all addresses have failed, or the connection that was made.
    """

    def __init__(
        self,
        peer: Peer,
        timeout_seconds: float,
        *,
        run: Callable[[Job], None],
        post: Callable[[Job], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._peer = peer
        self._timeout_seconds = timeout_seconds
        self._run = run
        self._post = post
        self._on_failure = on_failure
        self._socket: socket.socket | None = None
        self._until = 0.0
        self._addresses: list[tuple[int, Any]] = []
        self._resolving = False
        self._failures = 0
        self._retry_at = 0.0

    def interest(self) -> tuple[int, int]:
        """Descriptor (-1: none) and epoll events to wait for."""
        return (-1, 0) if self._socket is None else (self._socket.fileno(), select.EPOLLOUT)

    @property
    def deadline(self) -> float | None:
        """When `advance` must be called if a connection is needed."""
        if self._socket is not None:
            return self._until
        return None if self._resolving else self._retry_at

    def advance(self, events: int, *, needed: bool) -> socket.socket | None:
        """Continue; begin an attempt if one is due and a connection is `needed`. Returns the connected socket."""
        connected = None if self._socket is None else self._check(self._socket, events)
        idle = connected is None and self._socket is None and not self._resolving
        if idle and needed and time.monotonic() >= self._retry_at:
            self._begin()
        return connected

    def reset(self) -> None:
        """Forget past failures: the next attempt is due at once."""
        self._failures = 0
        self._retry_at = 0.0

    def works(self) -> None:
        """The connection carried something: if it ends, the next pause is short."""
        self._failures = 0

    def failed(self, problem: str) -> None:
        """An attempt, or the connection that it made, has ended: try the next address at once, or pause."""
        if self._addresses:
            return
        self._failures += 1
        self._retry_at = time.monotonic() + pause_seconds(self._failures)
        self._on_failure(problem)

    def close(self) -> None:
        """Abandon the attempt."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _begin(self) -> None:
        if self._addresses:
            self._try_next_address()
            return
        self._resolving = True

        def resolve() -> None:
            try:
                found = socket.getaddrinfo(self._peer.host, self._peer.port, type=socket.SOCK_STREAM)
            except OSError as error:
                problem = f"{self._peer.host} cannot be resolved: {error}"
                self._post(lambda: self._resolved([], problem))
            else:
                addresses: list[tuple[int, Any]] = [(family, address) for family, _, _, _, address in found]
                self._post(lambda: self._resolved(addresses, ""))

        self._run(resolve)

    def _resolved(self, addresses: list[tuple[int, Any]], problem: str) -> None:
        self._resolving = False
        if problem:
            self.failed(problem)
        else:
            self._addresses = addresses
            self._try_next_address()

    def _try_next_address(self) -> None:
        while self._addresses:
            family, address = self._addresses.pop(0)
            try:
                self._socket = start_connecting(family, address)
            except OSError as error:
                self.failed(f"no connection: {error.strerror}")
                continue
            self._until = time.monotonic() + self._timeout_seconds
            return

    def _check(self, sock: socket.socket, events: int) -> socket.socket | None:
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error and events & select.EPOLLOUT:
            self._socket = None
            self._addresses = []
            return sock
        if error or time.monotonic() >= self._until:
            self.close()
            self.failed(f"no connection: {os.strerror(error) if error else 'no answer'}")
        return None
