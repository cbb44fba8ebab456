"""The connection to one peer: kept open, made again when it breaks, with the transfers to that peer."""

from __future__ import annotations

import os
import random
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog

from fedsim.errors import BadInput, Refused
from fedsim.spool.files import FileHeader
from fedsim.spool.kinds import permitted_kinds
from fedsim.wire.body import FileBody
from fedsim.wire.client.schedule import TransferSchedule
from fedsim.wire.client.transfer import Outcome, Status, Transfer
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.protocol.events import OfferEnded
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.protocol.outgoing import Outgoing
from fedsim.wire.tls import Credentials, judge
from fedsim.wire.transport.reactor import Reactor
from fedsim.wire.transport.stream import make_stream, start_connecting
from fedsim.wire.transport.stream_connection import StreamConnection

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 3.0
_MOST_WRONG_DIGESTS: Final = 3
_HASHED_AT_ONCE_BYTES: Final = 1 << 20
# These refuse the identity, not the file: a connection may outlive a change of the peer's configuration.
_UNWELCOME: Final = frozenset({"unknown_peer", "wrong_name"})


def _pause(failures: int) -> float:
    """Exponential with jitter, so that many nodes do not come back in step."""
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * float(2 ** min(failures, 10)))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


class PeerConnection:
    """An actor of the reactor. The methods in the first section may be called from any thread, the others by it only.

    `on_trouble` is called with what keeps files from the peer, once for each change; with an empty text when nothing
    does any more.
    """

    def __init__(
        self,
        reactor: Reactor,
        me: Identity,
        peer: Peer,
        limits: ConnectionLimits,
        credentials: Credentials | None,
        on_trouble: Callable[[Peer, str], None],
    ) -> None:
        self._reactor = reactor
        self._me = me
        self._peer = peer
        self._limits = limits
        self._credentials = credentials
        self._on_trouble = on_trouble
        self._mail: deque[Callable[[], None]] = deque()
        self._transfers = TransferSchedule()
        self._offered: dict[Outgoing, Transfer] = {}
        self._connection: StreamConnection | None = None
        self._connecting: socket.socket | None = None
        self._connecting_until = 0.0
        self._addresses: list[tuple[int, Any]] = []
        self._resolving = False
        self._failures = 0
        self._retry_at = 0.0
        self._lost = ""
        self._problem = ""
        self._reported = ""
        self._log = structlog.get_logger(peer=str(peer))

    # -- from any thread

    def submit(self, transfer: Transfer) -> None:
        """Add a transfer; a pause before the next connection attempt ends."""
        self._post(lambda: self._accept(transfer))

    def cancel(self, transfer: Transfer, *, unless_offered: bool = False) -> None:
        """End a transfer; with `unless_offered` only if it has not been offered."""
        self._post(lambda: self._cancelled(transfer, unless_offered=unless_offered))

    def _cancelled(self, transfer: Transfer, *, unless_offered: bool) -> None:
        if unless_offered and transfer.outgoing is not None and transfer.outgoing.offered:
            return
        self._end(transfer, Status.CANCELLED, "cancelled", "it was cancelled")
        self._report()

    def reload(self, credentials: Credentials | None) -> None:
        """Use these for new connections; an open one ends if the peer is not trusted any more."""
        self._post(lambda: self._renew(credentials))

    def dismiss(self) -> None:
        """The peer is not configured any more: end the connection; a new one is made only for remaining transfers."""
        self._post(self._dismiss)

    def _post(self, letter: Callable[[], None]) -> None:
        self._mail.append(letter)
        self._reactor.wake(self)

    # -- for the reactor

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        if self._connection is not None:
            return self._connection.interest()
        if self._connecting is not None:
            return self._connecting.fileno(), select.EPOLLOUT
        return -1, 0

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        due = [self._transfers.deadline]
        if self._connection is not None:
            due.append(self._connection.deadline)
        elif self._connecting is not None:
            due.append(self._connecting_until)
        elif self._transfers and not self._resolving:
            due.append(self._retry_at)
        return min((when for when in due if when is not None), default=None)

    def handle(self, events: int) -> bool:
        """See Actor."""
        while self._mail:
            self._mail.popleft()()
        self._give_up_expired()
        if self._connecting is not None:
            self._check_connecting(events)
        if self._connection is None:
            self._connect_if_due()
        if self._connection is None:
            return False
        self._offer_ready(self._connection)
        more = self._connection.handle(self._reactor.buffer)
        if self._connection.closed is not None:
            self._on_closed(self._connection)
            return True
        return more

    def close(self) -> None:
        """The reactor has stopped: end everything that is left."""
        while self._mail:
            self._mail.popleft()()
        if self._connection is not None:  # before its transfers end: what the peer has is kept for resuming
            self._connection.close("closed", f"{self._me} ends", retry=True)
            self._connection = None
        if self._connecting is not None:
            self._connecting.close()
        for transfer in self._transfers:
            self._end(transfer, Status.CANCELLED, "closed", "the sender was closed")

    def _renew(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._failures = 0
        self._retry_at = 0.0
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

    # -- transfers

    def _accept(self, transfer: Transfer) -> None:
        self._transfers.add(transfer)
        self._failures = 0
        self._retry_at = 0.0
        try:
            transfer.body = FileBody(transfer.what)
        except BadInput as error:
            self._end(transfer, Status.REFUSED, "source_missing", str(error))
            return
        body = transfer.body
        if transfer.digest is not None or body.size <= _HASHED_AT_ONCE_BYTES:
            self._hash(transfer, body)
            return
        body.hold()

        def hash_body() -> None:
            self._hash(transfer, body)
            self._post(body.close)

        self._reactor.run(hash_body)

    def _hash(self, transfer: Transfer, body: FileBody) -> None:
        """Find the digest, if it was not given; on a thread for jobs where that takes a while."""
        try:
            digest = transfer.digest or body.digest()
        except OSError as error:
            problem = f"{transfer.what!r} cannot be read: {error.strerror}"
            self._post(lambda: self._end(transfer, Status.REFUSED, "source_missing", problem))
        else:
            self._post(lambda: self._ready(transfer, digest))

    def _ready(self, transfer: Transfer, digest: str) -> None:
        if transfer.body is None or transfer not in self._transfers:
            return
        transfer.header = FileHeader(id=transfer.file_id, size=transfer.body.size, digest=digest, meta=transfer.meta)
        self._transfers.set_ready(transfer)

    def _offer_ready(self, connection: StreamConnection) -> None:
        for transfer in self._transfers.take_ready():
            if transfer.header is not None and transfer.body is not None:
                transfer.outgoing = Outgoing(transfer.header, transfer.body)
                self._offered[transfer.outgoing] = transfer
                connection.offer(transfer.outgoing)

    def _offer_ended(self, end: OfferEnded) -> None:
        transfer = self._offered.get(end.outgoing)
        if transfer is None:
            return
        self._settle(transfer)
        self._failures = 0
        self._problem = ""
        if end.refused is None:
            self._end(transfer, Status.DELIVERED, already_there=end.already_there)
        else:
            self._refused(transfer, end.refused)
        self._report()

    def _refused(self, transfer: Transfer, refused: Refused) -> None:
        transfer.trouble = f"it refused the {transfer.file_id.kind}: {refused}"
        transfer.refusal_code = refused.code
        transfer.wrong_digests += refused.code == "wrong_digest"
        may_pass = refused.retry or refused.code in _UNWELCOME
        if not may_pass or transfer.wrong_digests >= _MOST_WRONG_DIGESTS:
            self._end(transfer, Status.REFUSED, refused.code, str(refused))
            return
        transfer.refusals += 1
        self._transfers.retry_at(transfer, time.monotonic() + _pause(transfer.refusals))

    def _settle(self, transfer: Transfer) -> None:
        """An attempt has ended."""
        if transfer.outgoing is not None:
            self._offered.pop(transfer.outgoing, None)
            transfer.bytes_sent += transfer.outgoing.bytes_on_wire
            transfer.outgoing = None

    def _end(
        self, transfer: Transfer, status: Status, code: str = "", message: str = "", *, already_there: bool = False
    ) -> None:
        if transfer not in self._transfers:
            return
        self._transfers.remove(transfer)
        if transfer.outgoing is not None and self._connection is not None:
            self._connection.cancel(transfer.outgoing)
        self._settle(transfer)
        if transfer.body is not None:
            transfer.body.close()
        seconds = time.monotonic() - transfer.started
        transfer.on_done(
            Outcome(self._peer, transfer.file_id, status, code, message, transfer.bytes_sent, seconds, already_there)
        )

    def _give_up_expired(self) -> None:
        now = time.monotonic()
        for transfer in self._transfers.take_expired(now):
            waited = f"{self._peer} did not take it within {now - transfer.started:.3g} seconds"
            trouble = self._problem or transfer.trouble
            message = f"{waited}; last trouble: {trouble}" if trouble else waited
            self._end(transfer, Status.GAVE_UP, "gave_up", message)
            self._report()

    # -- the connection

    def _connect_if_due(self) -> None:
        idle = self._connecting is not None or self._resolving
        if idle or not self._transfers or time.monotonic() < self._retry_at:
            return
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

        self._reactor.run(resolve)

    def _resolved(self, addresses: list[tuple[int, Any]], problem: str) -> None:
        self._resolving = False
        if problem:
            self._failed(problem)
        else:
            self._addresses = addresses
            self._try_next_address()

    def _try_next_address(self) -> None:
        """Begin connecting to the next of the addresses; after the last, pause."""
        while self._addresses:
            family, address = self._addresses.pop(0)
            try:
                self._connecting = start_connecting(family, address)
            except OSError as error:
                self._failed(f"no connection: {error.strerror}")
                continue
            self._connecting_until = time.monotonic() + self._limits.quiet_seconds
            return

    def _check_connecting(self, events: int) -> None:
        sock = self._connecting
        if sock is None:
            return
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        late = time.monotonic() >= self._connecting_until
        if not error and events & select.EPOLLOUT:
            self._connecting = None
            self._addresses = []
            self._open(sock)
        elif error or late:
            self._connecting = None
            sock.close()
            self._failed(f"no connection: {os.strerror(error) if error else 'no answer'}")

    def _open(self, sock: socket.socket) -> None:
        try:
            context = None if self._credentials is None else self._credentials.dialing
            stream = make_stream(sock, context, listening=False)
        except OSError as error:  # it broke again at once
            sock.close()
            self._failed(f"no connection: {error}")
            return
        self._connection = StreamConnection(
            stream,
            self._me,
            self._limits,
            initiator=True,
            judge=lambda encoded: judge(self._credentials, encoded, listens=True),
            welcome=self._check_name,
            offer_ended=self._offer_ended,
            inbox=None,
            run=self._reactor.run,
            wake=lambda: self._reactor.wake(self),
        )

    def _check_name(self, identity: Identity) -> None:
        if identity.name != self._peer.name:
            raise Refused("wrong_name", f"{self._peer} says that it is {identity.name}; check its name and address")
        if not permitted_kinds(self._me.role, identity.role):
            raise Refused("wrong_name", f"{self._peer} says that it is {identity}; nothing is sent to such a one")
        self._lost = ""
        self._report()

    def _on_closed(self, connection: StreamConnection) -> None:
        """The transfers stay: a peer that refuses the handshake can be reconfigured at any time."""
        self._connection = None
        reason = connection.closed
        for transfer in list(self._offered.values()):
            if transfer.outgoing is not None and transfer.outgoing.answered:
                self._failures = 0  # it works, it only broke
            self._settle(transfer)
            self._transfers.set_ready(transfer)
            if reason is not None and transfer.body is not None and transfer.body.shrunk:
                self._end(transfer, Status.REFUSED, "source_changed", reason.message)
        if reason is not None and reason.code != "idle":
            refused = connection.peer is None and not reason.retry
            self._failed(f"the connection was refused: {reason.message}" if refused else reason.message)

    def _failed(self, problem: str) -> None:
        """Note why there is no connection; try the next address at once, or pause."""
        self._problem = problem
        if self._addresses:
            return
        self._failures += 1
        self._retry_at = time.monotonic() + _pause(self._failures)
        if self._transfers:
            self._lost = problem
            self._report()

    def _report(self) -> None:
        """Report what keeps files from the peer, if that has changed; a refusal is the same while its code is."""
        refused = self._transfers.refused
        trouble = self._lost or (refused.trouble if refused else "")
        kind = self._lost or (refused.refusal_code if refused else "")
        if kind == self._reported:
            return
        self._reported = kind
        if trouble:
            self._log.warning("peer_unreachable" if self._lost else "peer_refuses", problem=trouble)
        else:
            self._log.info("peer_reached")
        self._on_trouble(self._peer, trouble)
