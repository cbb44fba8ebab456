"""One connection that a peer opened."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from fedsim.config import Limits
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.tls import judge
from fedsim.wire.transport.stream import make_stream
from fedsim.wire.transport.stream_connection import StreamConnection

if TYPE_CHECKING:
    from fedsim.receiver.service import Receiver


class IncomingConnection:
    """The actor of one connection."""

    def __init__(self, receiver: Receiver, sock: socket.socket, address: str) -> None:
        self.address = address
        self.peer: str | None = None
        self._receiver = receiver
        self._review = False
        context = None if receiver.credentials is None else receiver.credentials.listening
        self.stream_connection = StreamConnection(
            make_stream(sock, context, listening=True),
            receiver.me,
            connection_limits(receiver.config.limits),
            initiator=False,
            judge=lambda encoded: judge(receiver.credentials, encoded, listens=False),
            welcome=lambda peer: receiver.welcome(self, peer),
            offer_ended=lambda _: None,
            inbox=receiver.inbox,
            run=receiver.reactor.run,
            wake=lambda: receiver.reactor.wake(self),
        )

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return self.stream_connection.interest()

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        return self.stream_connection.deadline

    def review(self) -> None:
        """Check soon whether this peer is still welcome; from any thread."""
        self._review = True
        self._receiver.reactor.wake(self)

    def handle(self, _: int) -> bool:
        """See Actor."""
        if self._review:
            self._review = False
            self.stream_connection.review()
        more = self.stream_connection.handle(self._receiver.reactor.buffer)
        if self.stream_connection.closed is not None:
            self._receiver.ended(self)
        return more


def connection_limits(limits: Limits) -> ConnectionLimits:
    """The limits enforced on a connection, from the configuration."""
    return ConnectionLimits(
        max_header_bytes=limits.max_header_bytes,
        quiet_seconds=limits.handshake_seconds,
        idle_seconds=limits.idle_seconds,
        stall_seconds=limits.idle_seconds,
        min_bytes_per_second=limits.min_bytes_per_second,
    )
