"""One connection that a peer opened."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from fedsim.config import Address, Limits
from fedsim.wire.client.queue_delivery import QueueDelivery
from fedsim.wire.protocol.events import OfferEnded
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.tls import judge
from fedsim.wire.transport.reactor import Job, Mailbox
from fedsim.wire.transport.stream import make_stream
from fedsim.wire.transport.stream_connection import StreamConnection

if TYPE_CHECKING:
    from fedsim.receiver.service import Receiver

_REPLACED: Final = "it had not identified itself when another connection came: see limits.max_pending_connections"


class IncomingConnection:
    """An actor of the reactor. The methods in the first section may be called from any thread, the others by it only.

    Attributes:
        address: of the other side, with the port.
        ip_address: of the other side.
        peer: its name, once it is admitted.
        stream_connection: serves it once it has begun.
    """

    stream_connection: StreamConnection

    def __init__(self, receiver: Receiver, sock: socket.socket, address: Address) -> None:
        self.address = str(address)
        self.ip_address = address.address
        self.peer: str | None = None
        self._receiver = receiver
        self._sock = sock
        self._mail = Mailbox(lambda: receiver.reactor.wake(self))
        self._delivery: QueueDelivery | None = None
        self._broken = False
        self._begun = False
        self._has_turn = False
        self._waits = False

    # -- from any thread

    def begin(self) -> None:
        """Serve the connection; called once, by what admits it."""
        receiver = self._receiver
        context = None if receiver.credentials is None else receiver.credentials.listening
        try:
            stream = make_stream(self._sock, context, listening=True)
        except OSError:  # it has been closed already
            self._sock.close()
            receiver.admission.discard(self)
            return
        self.stream_connection = StreamConnection(
            stream,
            receiver.me,
            connection_limits(receiver.config.limits),
            initiator=False,
            judge=lambda encoded: judge(receiver.credentials, encoded, listens=False),
            welcome=lambda peer: receiver.welcome(self, peer),
            offer_ended=self._offer_ended,
            inbox=receiver.inbox,
            run=self._run,
            wake=lambda: receiver.reactor.wake(self),
        )
        self._begun = True
        receiver.begun(self)

    def take_turn(self) -> None:
        """Go on, although the budget of strangers was empty."""
        self._has_turn = True
        self._receiver.reactor.wake(self)

    def replace(self) -> None:
        """Close it, because another connection came and the other side has not identified itself."""
        if self._begun:
            self.post(lambda: self.close("busy", _REPLACED))
        else:
            self._sock.close()
            self._receiver.replaced(self.address)

    def post(self, job: Job) -> None:
        """Run a job in this actor's turn."""
        self._mail.post(job)

    def review(self) -> None:
        """Check soon whether this peer is still admitted."""
        self.post(self.stream_connection.review)

    def entry_changed(self, entry: Path) -> None:
        """An entry of the peer's queue was added or removed."""
        self._on_queue(lambda delivery: delivery.entry_changed(entry))

    def scan_queue(self) -> None:
        """Any entry of the peer's queue may have changed."""
        self._on_queue(QueueDelivery.scan)

    def _on_queue(self, action: Callable[[QueueDelivery], None]) -> None:
        self.post(lambda: None if self._delivery is None else action(self._delivery))

    # -- for the reactor

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return (-1, 0) if self._waits else self.stream_connection.interest()

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        if self._waits:
            return None
        due = [self.stream_connection.deadline, None if self._delivery is None else self._delivery.deadline]
        return min((when for when in due if when is not None), default=None)

    def handle(self, _: int) -> bool:
        """See Actor. Until the other side has identified itself, this is paid from the budget of strangers."""
        if self.peer is not None:
            return self._handle()
        admission = self._receiver.admission
        self._waits = not self._has_turn and admission.must_wait(self)
        if self._waits:
            return False
        self._has_turn = False
        with admission.charged():
            return self._handle()

    def _handle(self) -> bool:
        more = False
        with self._contained():
            self._mail.deliver()
            if self._delivery is not None:
                self._delivery.advance(self.stream_connection)
            more = self.stream_connection.handle(self._receiver.reactor.buffer)
        if self._broken:
            self.stream_connection.close("internal_error", "an internal error; see the receiver's journal", retry=True)
        if self.stream_connection.closed is not None:
            self._end_delivery()
            self._receiver.ended(self)
        elif self._delivery is None and self.peer is not None and self.stream_connection.peer_accepts_files:
            self._delivery = self._receiver.serve(self, self.peer)
        return more

    def close(self, code: str, message: str) -> None:
        """Close the connection with this reason; the peer may open another one."""
        self.stream_connection.close(code, message, retry=True)
        self._end_delivery()

    def _offer_ended(self, end: OfferEnded) -> None:
        if self._delivery is not None:
            self._delivery.offer_ended(end)

    def _end_delivery(self) -> None:
        if self._delivery is not None:
            self._delivery.close(self.stream_connection.closed)
            self._delivery = None

    def _run(self, job: Job) -> None:
        """Run a job of this connection on a thread of the reactor."""

        def run() -> None:
            with self._contained():
                job()

        self._receiver.reactor.run(run)

    @contextmanager
    def _contained(self) -> Iterator[None]:
        """Contain an exception: it ends this connection alone."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - one of the few boundaries at which every exception is caught
            problem = f"{type(error).__name__}: {error}"
            structlog.get_logger().exception("internal_error", address=self.address, node=self.peer, problem=problem)
            self._broken = True
            self._receiver.reactor.wake(self)


def connection_limits(limits: Limits) -> ConnectionLimits:
    """The limits enforced on a connection, from the configuration."""
    return ConnectionLimits(
        max_header_bytes=limits.max_header_bytes,
        quiet_seconds=limits.handshake_seconds,
        idle_seconds=limits.idle_seconds,
        stall_seconds=limits.idle_seconds,
        min_bytes_per_second=limits.min_bytes_per_second,
    )
