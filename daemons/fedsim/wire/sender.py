"""Sends files to peers until they are delivered, refused permanently, or given up; used by the daemons and the web."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, Self

from fedsim.errors import EX_UNAVAILABLE, BadInput, FedsimError, Refused, Unavailable
from fedsim.spool.files import FileHeader, FileId
from fedsim.wire.body import FileBody
from fedsim.wire.client.peer_connection import PeerConnection
from fedsim.wire.client.transfer import Outcome, Status, Transfer
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.tls import Credentials
from fedsim.wire.transport.expiry import ExpiryWatch
from fedsim.wire.transport.reactor import Reactor
from fedsim.wire.transport.receiving import Inbox

__all__ = ["Identity", "Outcome", "Peer", "Sender", "Status", "Transfer"]

_LIMITS: Final = ConnectionLimits(
    max_header_bytes=64 << 10,
    quiet_seconds=10.0,
    idle_seconds=3600.0,
    stall_seconds=60.0,
    min_bytes_per_second=0,
)


def check_sendable(file_id: FileId, meta: dict[str, Any], digest: str | None) -> None:
    """Raise `BadInput` if digest or metadata do not fit into a header."""
    try:
        json.dumps(meta, allow_nan=False).encode()
        FileHeader(id=file_id, size=0, digest=digest or "0" * 64, meta=meta)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"a {file_id.kind} cannot be sent with this digest or metadata: {error}") from error


class SenderFailedError(FedsimError):
    """A thread of the sender died of a fault in fedsim; nothing can be sent any more, the daemon should end."""

    exit_code = EX_UNAVAILABLE


class Sender:
    """Owns one connection to each peer that it sends to, kept open and made again when it breaks.

    Args:
        identity: of this side.
        credentials: for TLS; None for plain sockets.
        threads: one waits for sockets, the others hash files whose digest was not given.
        limits: enforced on each connection; the default is right except in tests.
        inbox: accepts the files that peers offer on these connections; without one they are refused.
        on_trouble: called with a peer and what keeps files from it, once for each change, with an empty text when
            nothing does any more; from a thread of the sender, so it must not block or raise.
        announced: whether it sends what the server has announced to its peers, and nothing else.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        credentials: Credentials | None = None,
        threads: int = 2,
        limits: ConnectionLimits = _LIMITS,
        inbox: Inbox | None = None,
        on_trouble: Callable[[Peer, str], None] = lambda _peer, _trouble: None,
        announced: bool = False,
    ) -> None:
        self.identity = identity
        self._credentials = credentials
        self._limits = limits
        self._inbox = inbox
        self._on_trouble = on_trouble
        self._announced = announced
        self._reactor = Reactor(f"sender-{identity.name}", threads)
        self._connections: dict[Peer, PeerConnection] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._expiry = ExpiryWatch(credentials)

    def open(self) -> Self:
        """Start the threads."""
        self._reactor.start()
        self._reactor.add(self._expiry)
        return self

    def reload(self, credentials: Credentials | None, peers: Collection[Peer]) -> None:
        """Connect with other credentials from now on; `peers` are those that are configured.

        Open connections and their transfers continue, except those to peers that are no longer trusted or configured,
        which end at once.
        """
        with self._lock:
            self._credentials = credentials
            connections = dict(self._connections)
        for peer, connection in connections.items():
            connection.reload(credentials)
            if peer not in peers:
                connection.dismiss()
        self._expiry.credentials = credentials
        self._reactor.wake(self._expiry)

    def check(self) -> None:
        """Raise `SenderFailedError` if a thread has died: transfers under way would never end."""
        if self._reactor.failure is not None:
            raise SenderFailedError(f"the sender of {self.identity} has ended: {self._reactor.failure!r}")

    def send(
        self,
        peer: Peer,
        file_id: FileId,
        source: Path | bytes | FileBody,
        *,
        meta: dict[str, Any] | None = None,
        digest: str | None = None,
        give_up_after: float | None = None,
        on_done: Callable[[Outcome], None],
    ) -> Transfer:
        """Begin to send a file; returns at once.

        After a broken or refused connection the transfer resumes on the next one. Refusals that may pass are retried.
        The file must not change until the end; replacing it by a rename is allowed.

        Args:
            peer: the receiver; it must listen.
            file_id: which file it is; the receiver derives from it where the file is stored.
            source: a path, the bytes themselves if they are few, or an open body, which the transfer closes; one
                that still grows needs `digest` (see `body_grew`).
            meta: small JSON metadata, stored there next to a `.npy` file.
            digest: its blake3, if known (64 hex digits): then the file is not read for hashing.
            give_up_after: seconds; without it, the transfer continues until `cancel` or `close`.
            on_done: called once with the outcome, from a thread of the sender: it must not block or raise.

        Raises:
            BadInput: if `meta` is not JSON or `digest` is no digest.
            SenderFailedError: if the sender cannot work any more.
        """
        check_sendable(file_id, meta or {}, digest)
        with self._lock:
            if self._closed or self._reactor.failure is not None:
                raise SenderFailedError(f"the sender of {self.identity} has ended: {self._reactor.failure or 'closed'}")
            connection = self._connections.get(peer)
            if connection is None:
                connection = self._connections[peer] = self._connect(peer)
            transfer = Transfer(connection.cancel, file_id, source, meta or {}, digest, give_up_after, on_done)
            connection.submit(transfer)
        return transfer

    def _connect(self, peer: Peer) -> PeerConnection:
        connection = PeerConnection(
            self._reactor,
            self.identity,
            peer,
            self._limits,
            credentials=self._credentials,
            inbox=self._inbox,
            on_trouble=self._on_trouble,
            announced=self._announced,
        )
        self._reactor.add(connection)
        return connection

    def body_grew(self, peer: Peer) -> None:
        """More bytes exist of a file that is sent to this peer while it arrives; from any thread."""
        if (connection := self._connections.get(peer)) is not None:
            connection.body_grew()

    def send_and_wait(
        self,
        peer: Peer,
        file_id: FileId,
        source: Path | bytes,
        *,
        give_up_after: float,
        meta: dict[str, Any] | None = None,
        digest: str | None = None,
    ) -> Outcome:
        """Send a file and wait until it is delivered.

        Raises:
            Refused: if the peer refuses this file.
            Unavailable: if it was not delivered within `give_up_after` seconds; the message says why.
        """
        done = threading.Event()
        outcomes: list[Outcome] = []

        def on_done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done.set()

        self.send(peer, file_id, source, meta=meta, digest=digest, give_up_after=give_up_after, on_done=on_done)
        done.wait(give_up_after + self._limits.stall_seconds)
        if not outcomes:
            raise SenderFailedError(f"the sender of {self.identity} does not respond: {self._reactor.failure}")
        outcome = outcomes[0]
        if outcome.status is Status.REFUSED:
            raise Refused(outcome.code, outcome.message)
        if not outcome.delivered:
            raise Unavailable(outcome.message)
        return outcome

    def close(self) -> None:
        """End all connections; what is not delivered gets the outcome `cancelled`. Not to be called from `on_done`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._reactor.close()
        for connection in self._connections.values():
            connection.close()

    def __enter__(self) -> Self:
        """Open the sender; it is closed at the end of the block."""
        return self.open()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
