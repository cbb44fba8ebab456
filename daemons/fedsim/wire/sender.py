"""Sending files: what server, client daemon and web call. It goes on until delivered, refused for good, or given up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, Self

from fedsim.errors import EX_UNAVAILABLE, BadInput, FedsimError, Refused, Unavailable
from fedsim.spool.files import FileHeader, FileId
from fedsim.wire.client.peer_connection import PeerConnection
from fedsim.wire.client.transfer import Outcome, Status, Transfer
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.tls import Credentials
from fedsim.wire.transport.expiry import ExpiryWatch
from fedsim.wire.transport.reactor import Reactor

__all__ = ["Identity", "Outcome", "Peer", "Sender", "Status", "Transfer"]

_RULES: Final = ConnectionLimits(
    max_header_bytes=64 << 10,
    quiet_seconds=10.0,
    idle_seconds=3600.0,
    stall_seconds=60.0,
    min_bytes_per_second=0,
)


def _check(file_id: FileId, meta: dict[str, Any], digest: str | None) -> None:
    """What cannot be told in a header shall fail where it was given."""
    try:
        json.dumps(meta, allow_nan=False).encode()
        FileHeader(id=file_id, size=0, digest=digest or "0" * 64, meta=meta)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"a {file_id.kind} cannot be sent with this digest or metadata: {error}") from error


class SenderFailedError(FedsimError):
    """A thread of the sender died of a fault in fedsim; nothing can be sent any more, the daemon should end."""

    exit_code = EX_UNAVAILABLE


class Sender:
    """Owns the connections to all peers this side sends to, one for each, kept open and made again when they break.

    Args:
        identity: who sends.
        credentials: for TLS; None for plain sockets.
        threads: of the hub: one waits for sockets, the others hash files whose digest was not given.
        rules: what a connection puts up with; the default suits everybody but tests.
        on_trouble: called with a peer and what keeps files from it, once for each change, with an empty text when
            nothing does any more; from a thread of the sender, so it must not block or raise.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        credentials: Credentials | None = None,
        threads: int = 2,
        rules: ConnectionLimits = _RULES,
        on_trouble: Callable[[Peer, str], None] = lambda _peer, _trouble: None,
    ) -> None:
        self.identity = identity
        self._credentials = credentials
        self._rules = rules
        self._on_trouble = on_trouble
        self._hub = Reactor(f"sender-{identity.name}", threads)
        self._channels: dict[Peer, PeerConnection] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._expiry = ExpiryWatch(credentials)
        self._hub.start()
        self._hub.add(self._expiry)

    def reload(self, credentials: Credentials | None, peers: Collection[Peer]) -> None:
        """Connect with other credentials from now on; `peers` are those that are configured.

        Connections that stand go on, and so do their transfers; but those to peers that are not believed or not
        configured any more end at once.
        """
        with self._lock:
            self._credentials = credentials
            channels = dict(self._channels)
        for peer, channel in channels.items():
            channel.reload(credentials)
            if peer not in peers:
                channel.dismiss()
        self._expiry.credentials = credentials
        self._hub.wake(self._expiry)

    def check(self) -> None:
        """Raises `SenderFailedError` if a thread has died: what is on its way would never end."""
        if self._hub.failure is not None:
            raise SenderFailedError(f"the sender of {self.identity} has ended: {self._hub.failure!r}")

    def send(
        self,
        peer: Peer,
        file_id: FileId,
        source: Path | bytes,
        *,
        meta: dict[str, Any] | None = None,
        digest: str | None = None,
        give_up_after: float | None = None,
        on_done: Callable[[Outcome], None],
    ) -> Transfer:
        """Begin to send a file; returns at once.

        A connection that breaks, or that is refused, is made again and the file goes on where it stopped. Refusals that
        may pass are tried again. The file must stay as it is until the end; replacing it by a rename is allowed.

        Args:
            peer: where to.
            file_id: which file it is; the receiver decides from it where it lies.
            source: a path, or the bytes themselves where they are few.
            meta: small JSON metadata that lies beside a `.npy` file over there.
            digest: its blake3, if known (64 hex digits): then the file is not read for hashing.
            give_up_after: seconds; without it, it goes on until `cancel` or `close`.
            on_done: called once with the outcome, from a thread of the sender: it must not block or raise.

        Raises:
            BadInput: if `meta` is not JSON or `digest` is no digest.
            SenderFailedError: if the sender cannot work any more.
        """
        _check(file_id, meta or {}, digest)
        with self._lock:
            if self._closed or self._hub.failure is not None:
                raise SenderFailedError(f"the sender of {self.identity} has ended: {self._hub.failure or 'closed'}")
            channel = self._channels.get(peer)
            if channel is None:
                channel = PeerConnection(
                    self._hub, self.identity, peer, self._rules, self._credentials, self._on_trouble
                )
                self._channels[peer] = channel
                self._hub.add(channel)
            transfer = Transfer(channel.cancel, file_id, source, meta or {}, digest, give_up_after, on_done)
            channel.submit(transfer)
        return transfer

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
            Refused: if the peer will not take this file.
            Unavailable: if it was not delivered within `give_up_after` seconds; the message says why.
        """
        done = threading.Event()
        outcomes: list[Outcome] = []

        def on_done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done.set()

        self.send(peer, file_id, source, meta=meta, digest=digest, give_up_after=give_up_after, on_done=on_done)
        done.wait(give_up_after + self._rules.stall_seconds)
        if not outcomes:
            raise SenderFailedError(f"the sender of {self.identity} does not work: {self._hub.failure}")
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
        self._hub.close()
        for channel in self._channels.values():
            channel.close()

    def __enter__(self) -> Self:
        """The sender itself; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
