"""The connection to one peer: kept open, made again when it breaks, with the transfers to that peer."""

from __future__ import annotations

import socket
from collections.abc import Callable

import structlog

from fedsim.errors import Refused
from fedsim.spool.kinds import permitted_kinds
from fedsim.wire.client.dialer import Dialer
from fedsim.wire.client.transfer import Transfer
from fedsim.wire.client.transfers import PeerTransfers
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.protocol.events import OfferEnded
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.tls import Credentials, judge
from fedsim.wire.transport.reactor import Mailbox, Reactor
from fedsim.wire.transport.receiving import Inbox
from fedsim.wire.transport.stream import make_stream
from fedsim.wire.transport.stream_connection import StreamConnection


class PeerConnection:
    """An actor of the reactor. The methods in the first section may be called from any thread, the others by it only.

    Args:
        reactor: runs this actor.
        me: the identity of this side.
        peer: the other side.
        limits: enforced on the connection.
        credentials: for TLS; None for plain sockets.
        inbox: accepts the files that the peer offers; with one, the connection is kept open without transfers too.
        on_trouble: called with what keeps files from the peer, once for each change; with an empty text when nothing
            does any more.
        announced: whether only files are sent that the server has announced to the peer.
    """

    def __init__(
        self,
        reactor: Reactor,
        me: Identity,
        peer: Peer,
        limits: ConnectionLimits,
        *,
        credentials: Credentials | None,
        inbox: Inbox | None,
        on_trouble: Callable[[Peer, str], None],
        announced: bool = False,
    ) -> None:
        self._reactor = reactor
        self._me = me
        self._peer = peer
        self._limits = limits
        self._credentials = credentials
        self._inbox = inbox
        self._on_trouble = on_trouble
        self._announced = announced
        self._mail = Mailbox(lambda: reactor.wake(self))
        self._transfers = PeerTransfers(peer, run=reactor.run, post=self._mail.post, on_change=self._report)
        self._dialer = Dialer(
            peer, limits.quiet_seconds, run=reactor.run, post=self._mail.post, on_failure=self._on_failure
        )
        self._connection: StreamConnection | None = None
        self._unreachable = ""
        self._problem = ""
        self._reported = ""
        self._log = structlog.get_logger(peer=str(peer))

    # -- from any thread

    def submit(self, transfer: Transfer) -> None:
        """Add a transfer; a pause before the next connection attempt ends."""
        self._mail.post(lambda: self._add(transfer))

    def body_grew(self) -> None:
        """More bytes of a file exist that is sent while it arrives."""
        self._reactor.wake(self)

    def cancel(self, transfer: Transfer, *, unless_offered: bool = False) -> None:
        """End a transfer; with `unless_offered` only if it has not been offered."""
        self._mail.post(lambda: self._transfers.cancel(transfer, unless_offered=unless_offered))

    def reload(self, credentials: Credentials | None) -> None:
        """Use these for new connections; an open one ends if the peer is not trusted any more."""
        self._mail.post(lambda: self._renew(credentials))

    def dismiss(self) -> None:
        """The peer is not configured any more: end the connection; a new one is made only for remaining transfers."""
        self._mail.post(self._dismiss)

    # -- for the reactor

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return self._dialer.interest() if self._connection is None else self._connection.interest()

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        due = [self._transfers.deadline]
        if self._connection is not None:
            due.append(self._connection.deadline)
        elif self._needed or self._dialer.interest() != (-1, 0):
            due.append(self._dialer.deadline)
        return min((when for when in due if when is not None), default=None)

    @property
    def _needed(self) -> bool:
        """Whether a connection is to be made if there is none."""
        return bool(self._transfers) or self._inbox is not None

    def handle(self, events: int) -> bool:
        """See Actor."""
        self._mail.deliver()
        self._transfers.check_time(self._problem)
        if self._connection is None:
            connected = self._dialer.advance(events, needed=self._needed)
            if connected is not None:
                self._open(connected)
        if self._connection is None:
            return False
        self._transfers.offer_ready(self._connection)
        more = self._connection.handle(self._reactor.buffer)
        if self._connection.closed is not None:
            self._on_closed(self._connection)
            return True
        return more

    def close(self) -> None:
        """The reactor has stopped: end everything that is left."""
        self._mail.deliver()
        if self._connection is not None:  # before its transfers end: what the peer has is kept for resuming
            self._connection.close("closed", f"{self._me} ends", retry=True)
            self._transfers.connection_closed(None)
            self._connection = None
        self._dialer.close()
        self._transfers.cancel_all("the sender was closed")

    def _add(self, transfer: Transfer) -> None:
        self._dialer.reset()
        self._transfers.add(transfer)

    def _renew(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._dialer.reset()
        if self._connection is not None:
            self._connection.review()
            self._report_end(self._connection)

    def _dismiss(self) -> None:
        if self._connection is not None:
            self._connection.close(
                "unknown_peer", f"{self._peer.name} is not configured at {self._me} any more", retry=False
            )
            self._report_end(self._connection)

    def _report_end(self, connection: StreamConnection) -> None:
        if connection.closed is not None:
            self._log.warning("connection_closed", code=connection.closed.code, problem=connection.closed.message)

    # -- the connection

    def _open(self, sock: socket.socket) -> None:
        try:
            context = None if self._credentials is None else self._credentials.dialing
            stream = make_stream(sock, context, listening=False)
        except OSError as error:  # it broke again at once
            sock.close()
            self._dialer.failed(f"no connection: {error}")
            return
        self._connection = StreamConnection(
            stream,
            self._me,
            self._limits,
            initiator=True,
            judge=lambda encoded: judge(self._credentials, encoded, listens=True),
            welcome=self._check_name,
            offer_ended=self._offer_ended,
            inbox=self._inbox,
            run=self._reactor.run,
            wake=lambda: self._reactor.wake(self),
        )

    def _check_name(self, identity: Identity) -> None:
        if identity.name != self._peer.name:
            raise Refused("wrong_name", f"{self._peer} says that it is {identity.name}; check its name and address")
        if not permitted_kinds(self._me.role, identity.role, announced=self._announced):
            raise Refused("wrong_name", f"{self._peer} says that it is {identity}, which receives no files from here")
        self._unreachable = ""
        self._report()

    def _offer_ended(self, end: OfferEnded) -> None:
        self._dialer.works()
        self._problem = ""
        self._transfers.offer_ended(end)

    def _on_closed(self, connection: StreamConnection) -> None:
        """The transfers stay: a peer that refuses the handshake can be reconfigured at any time."""
        self._connection = None
        reason = connection.closed
        if self._transfers.connection_closed(reason):
            self._dialer.works()
        if reason is not None and reason.code != "idle":
            refused = connection.peer is None and not reason.retry
            self._dialer.failed(f"the connection was refused: {reason.message}" if refused else reason.message)

    # -- reports

    def _on_failure(self, problem: str) -> None:
        self._problem = problem
        if self._needed:
            self._unreachable = problem
            self._report()

    def _report(self) -> None:
        """Report what keeps files from the peer, if that has changed; a refusal is the same while its code is."""
        refused = self._transfers.refused
        trouble = self._unreachable or (refused.trouble if refused else "")
        kind = self._unreachable or (refused.refusal_code if refused else "")
        if kind == self._reported:
            return
        self._reported = kind
        if trouble:
            self._log.warning("peer_unreachable" if self._unreachable else "peer_refuses", problem=trouble)
        else:
            self._log.info("peer_reached")
        self._on_trouble(self._peer, trouble)
