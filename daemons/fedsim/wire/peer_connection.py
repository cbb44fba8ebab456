"""The way to one peer: a connection kept open, made again when it breaks, and the transfers that want to go there."""

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
from fedsim.wire.body import Source
from fedsim.wire.limits import ConnectionLimits
from fedsim.wire.outgoing import Outgoing
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.reactor import Reactor
from fedsim.wire.session import ProtocolSession
from fedsim.wire.stream import make_stream, start_connecting
from fedsim.wire.tls import Credentials, judge
from fedsim.wire.transfer import Outcome, Status, Transfer

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 3.0
_MOST_WRONG_DIGESTS: Final = 3
_HASHED_AT_ONCE_BYTES: Final = 1 << 20
# Said of who we are, not of the file: a connection may outlive a change of the peer's configuration.
_UNWELCOME: Final = frozenset({"unknown_peer", "wrong_name"})


def _pause(failures: int) -> float:
    """Exponential with jitter, so that many nodes do not come back in step."""
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * float(2 ** min(failures, 10)))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


class PeerConnection:
    """An actor of the hub. Its methods below "from any thread" may be called by all, the others by the hub only.

    `on_trouble` is told what keeps files from the peer, once for each change; an empty text when nothing does any more.
    """

    def __init__(
        self,
        hub: Reactor,
        me: Identity,
        peer: Peer,
        rules: ConnectionLimits,
        credentials: Credentials | None,
        on_trouble: Callable[[Peer, str], None],
    ) -> None:
        self._hub = hub
        self._me = me
        self._peer = peer
        self._rules = rules
        self._credentials = credentials
        self._on_trouble = on_trouble
        self._mail: deque[Callable[[], None]] = deque()
        self._transfers: list[Transfer] = []
        self._link: ProtocolSession | None = None
        self._connecting: socket.socket | None = None
        self._connecting_until = 0.0
        self._addresses: list[tuple[int, Any]] = []
        self._resolving = False
        self._failures = 0
        self._retry_at = 0.0
        self._lost = ""
        self._told = ""
        self._log = structlog.get_logger(peer=str(peer))

    # -- from any thread

    def submit(self, transfer: Transfer) -> None:
        """Take a transfer in; it wakes a channel that waits before trying again."""
        self._post(lambda: self._accept(transfer))

    def cancel(self, transfer: Transfer, *, unless_offered: bool = False) -> None:
        """End a transfer; or, with `unless_offered`, only if the peer has not heard of it."""
        self._post(lambda: self._cancelled(transfer, unless_offered=unless_offered))

    def _cancelled(self, transfer: Transfer, *, unless_offered: bool) -> None:
        if unless_offered and transfer.outgoing is not None and transfer.outgoing.offered:
            return
        self._end(transfer, Status.CANCELLED, "cancelled", "it was cancelled")
        self._tell()

    def reload(self, credentials: Credentials | None) -> None:
        """Connections made from now on use these; one that stands ends if the peer is not believed any more."""
        self._post(lambda: self._renew(credentials))

    def dismiss(self) -> None:
        """The peer is not configured any more: end the connection; it is made again only for what is still sent."""
        self._post(self._dismiss)

    def _post(self, letter: Callable[[], None]) -> None:
        self._mail.append(letter)
        self._hub.wake(self)

    # -- for the hub

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        if self._link is not None:
            return self._link.interest()
        if self._connecting is not None:
            return self._connecting.fileno(), select.EPOLLOUT
        return -1, 0

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        due = [item.give_up_at for item in self._transfers if item.give_up_at is not None]
        if self._link is not None:
            due += [item.retry_at for item in self._transfers if item.header is not None and item.outgoing is None]
            if self._link.deadline is not None:
                due.append(self._link.deadline)
        elif self._connecting is not None:
            due.append(self._connecting_until)
        elif self._transfers and not self._resolving:
            due.append(self._retry_at)
        return min(due, default=None)

    def handle(self, events: int) -> bool:
        """See Actor."""
        while self._mail:
            self._mail.popleft()()
        self._look_at_time()
        if self._connecting is not None:
            self._check_connecting(events)
        if self._link is None:
            self._connect_if_due()
        if self._link is None:
            return False
        self._offer_due()
        more = self._link.handle(self._hub.buffer)
        if self._link.closed is not None:
            self._on_closed(self._link)
            return True
        return more

    def close(self) -> None:
        """The hub has stopped: end everything that is left."""
        while self._mail:
            self._mail.popleft()()
        if self._link is not None:  # before its transfers end: what is there over there stays, for resuming
            self._link.close("closed", f"{self._me} ends", retry=True)
            self._link.take_back()
            self._link = None
        if self._connecting is not None:
            self._connecting.close()
        for transfer in list(self._transfers):
            self._end(transfer, Status.CANCELLED, "closed", "the sender was closed")

    def _renew(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._failures = 0
        self._retry_at = 0.0
        if self._link is not None:
            self._link.review()
            self._tell_end(self._link)

    def _dismiss(self) -> None:
        if self._link is not None:
            self._link.close("unknown_peer", f"{self._peer.name} is not configured at {self._me} any more", retry=False)
            self._tell_end(self._link)

    def _tell_end(self, link: ProtocolSession) -> None:
        if link.closed is not None:
            self._log.warning("connection_closed", code=link.closed.code, problem=link.closed.message)

    # -- transfers

    def _accept(self, transfer: Transfer) -> None:
        self._transfers.append(transfer)
        self._failures = 0
        self._retry_at = 0.0
        try:
            transfer.source = Source(transfer.what)
        except BadInput as error:
            self._end(transfer, Status.REFUSED, "source_missing", str(error))
            return
        source = transfer.source
        if transfer.digest is not None or source.size <= _HASHED_AT_ONCE_BYTES:
            self._hash(transfer, source)
            return
        source.hold()

        def hash_source() -> None:
            self._hash(transfer, source)
            self._post(source.close)

        self._hub.run(hash_source)

    def _hash(self, transfer: Transfer, source: Source) -> None:
        """Find the digest, if it was not given; on a thread for jobs where that takes a while."""
        try:
            digest = transfer.digest or source.digest()
        except OSError as error:
            problem = f"{transfer.what!r} cannot be read: {error.strerror}"
            self._post(lambda: self._end(transfer, Status.REFUSED, "source_missing", problem))
        else:
            self._post(lambda: self._ready(transfer, digest))

    def _ready(self, transfer: Transfer, digest: str) -> None:
        if transfer.source is None or transfer not in self._transfers:
            return
        transfer.header = FileHeader(id=transfer.file_id, size=transfer.source.size, digest=digest, meta=transfer.meta)

    def _offer_due(self) -> None:
        now = time.monotonic()
        for transfer in self._transfers:
            due = transfer.outgoing is None and transfer.retry_at <= now
            if due and self._link is not None and transfer.header is not None and transfer.source is not None:
                transfer.outgoing = Outgoing(transfer.header, transfer.source, self._finisher(transfer))
                self._link.offer(transfer.outgoing)

    def _finisher(self, transfer: Transfer) -> Callable[[Refused | None, bool], None]:
        def finished(refused: Refused | None, already_there: bool) -> None:
            self._settle(transfer)
            self._failures = 0
            if refused is None:
                self._end(transfer, Status.DELIVERED, already_there=already_there)
            else:
                self._refused(transfer, refused)
            self._tell()

        return finished

    def _refused(self, transfer: Transfer, refused: Refused) -> None:
        transfer.trouble = f"it refused the {transfer.file_id.kind}: {refused}"
        transfer.refusal_code = refused.code
        transfer.wrong_digests += refused.code == "wrong_digest"
        may_pass = refused.retry or refused.code in _UNWELCOME
        if not may_pass or transfer.wrong_digests >= _MOST_WRONG_DIGESTS:
            self._end(transfer, Status.REFUSED, refused.code, str(refused))
            return
        transfer.refusals += 1
        transfer.retry_at = time.monotonic() + _pause(transfer.refusals)

    def _settle(self, transfer: Transfer) -> None:
        """A try has ended."""
        if transfer.outgoing is not None:
            transfer.bytes_sent += transfer.outgoing.bytes_on_wire
            transfer.outgoing = None

    def _end(
        self, transfer: Transfer, status: Status, code: str = "", message: str = "", *, already_there: bool = False
    ) -> None:
        if transfer not in self._transfers:
            return
        self._transfers.remove(transfer)
        if transfer.outgoing is not None and self._link is not None:
            self._link.cancel(transfer.outgoing)
        self._settle(transfer)
        if transfer.source is not None:
            transfer.source.close()
        seconds = time.monotonic() - transfer.started
        transfer.on_done(
            Outcome(self._peer, transfer.file_id, status, code, message, transfer.bytes_sent, seconds, already_there)
        )

    def _look_at_time(self) -> None:
        now = time.monotonic()
        for transfer in list(self._transfers):
            if transfer.give_up_at is not None and transfer.give_up_at <= now:
                waited = f"{self._peer} did not take it within {now - transfer.started:.3g} seconds"
                message = f"{waited}; last trouble: {transfer.trouble}" if transfer.trouble else waited
                self._end(transfer, Status.GAVE_UP, "gave_up", message)
                self._tell()

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

        self._hub.run(resolve)

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
            self._connecting_until = time.monotonic() + self._rules.quiet_seconds
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
        self._link = ProtocolSession(
            stream,
            self._me,
            self._rules,
            initiator=True,
            judge=lambda encoded: judge(self._credentials, encoded, listens=True),
            welcome=self._check_name,
            inbox=None,
            run=self._hub.run,
            wake=lambda: self._hub.wake(self),
        )

    def _check_name(self, identity: Identity) -> None:
        if identity.name != self._peer.name:
            raise Refused("wrong_name", f"{self._peer} says that it is {identity.name}; check its name and address")
        if not permitted_kinds(self._me.role, identity.role):
            raise Refused("wrong_name", f"{self._peer} says that it is {identity}; nothing is sent to such a one")
        self._lost = ""
        self._tell()

    def _on_closed(self, link: ProtocolSession) -> None:
        """The files stay: whoever refuses the handshake is not there yet, and may be set right at any time."""
        self._link = None
        link.take_back()
        reason = link.closed
        for transfer in list(self._transfers):
            if transfer.outgoing is not None and transfer.outgoing.answered:
                self._failures = 0  # it works, it only broke
            self._settle(transfer)
            if reason is None:
                continue
            transfer.trouble = reason.message
            if transfer.source is not None and transfer.source.shrunk:
                self._end(transfer, Status.REFUSED, "source_changed", reason.message)
        if reason is not None and reason.code != "idle":
            refused = not link.established and not reason.retry
            self._failed(f"the connection was refused: {reason.message}" if refused else reason.message)

    def _failed(self, problem: str) -> None:
        """Note why there is no connection; try the next address at once, or pause."""
        for transfer in self._transfers:
            transfer.trouble = problem
        if self._addresses:
            return
        self._failures += 1
        self._retry_at = time.monotonic() + _pause(self._failures)
        if self._transfers:
            self._lost = problem
            self._tell()

    def _tell(self) -> None:
        """Tell what keeps files from the peer, if that has changed; a refusal is the same while its code is."""
        refused = next((transfer for transfer in self._transfers if transfer.refusal_code), None)
        trouble = self._lost or (refused.trouble if refused else "")
        told = self._lost or (refused.refusal_code if refused else "")
        if told == self._told:
            return
        self._told = told
        if trouble:
            self._log.warning("peer_unreachable" if self._lost else "peer_refuses", problem=trouble)
        else:
            self._log.info("peer_reached")
        self._on_trouble(self._peer, trouble)
