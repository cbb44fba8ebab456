"""The listening socket: opened on an address, accepts connections."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from fedsim.config import Address
from fedsim.errors import Unavailable
from fedsim.refusal_log import RefusalLog

_BACKLOG: Final = 512
_PAUSE_SECONDS: Final = 0.5
_MAPPED: Final = "::ffff:"
"""Begins the addresses of IPv4 on a socket of IPv6."""


def listen(address: Address) -> socket.socket:
    """Open the port, for IPv4 and IPv6 if the address is `::`; `Unavailable` says why that is not possible."""
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.address, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise Unavailable(f"{address} cannot be listened on: {error}; correct `listen:`") from error
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:  # the address :: includes all of IPv4
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        hint = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror
        raise Unavailable(
            f"port {address.port} on {address.address} cannot be used: {hint}; change `listen:`"
        ) from error
    return sock


class Listener:
    """The actor of the listening socket: passes each connection, with the address of its peer, to `admit`."""

    def __init__(
        self, sock: socket.socket, admit: Callable[[socket.socket, Address], None], refusals: RefusalLog
    ) -> None:
        sock.setblocking(False)
        self._admit = admit
        self._refusals = refusals
        self._sock = sock
        self._paused_until: float | None = None
        self.port = int(sock.getsockname()[1])

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return (-1, 0) if self._paused_until is not None else (self._sock.fileno(), select.EPOLLIN)

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        return self._paused_until

    def handle(self, _: int) -> bool:
        """Accept the connections that wait; if this process has no descriptor left, try again later."""
        if self._paused_until is not None and time.monotonic() < self._paused_until:
            return False
        self._paused_until = None
        while True:
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return False
            except ConnectionAbortedError:
                continue
            except OSError as error:
                problem = f"no connection can be accepted: {error}"
                self._refusals.warning(
                    None, "connection_refused", address="listener", code="resources", problem=problem
                )
                self._paused_until = time.monotonic() + _PAUSE_SECONDS
                return False
            self._admit(sock, Address(address=address[0].removeprefix(_MAPPED), port=address[1]))

    def close(self) -> None:
        """Close the port."""
        self._sock.close()
