"""The transfers to one peer: hashed, offered on a connection, retried after a refusal, ended with an outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from fedsim.errors import BadInput, Refused
from fedsim.spool.files import FileHeader
from fedsim.wire.body import FileBody
from fedsim.wire.client.backoff import pause_seconds
from fedsim.wire.client.schedule import TransferSchedule
from fedsim.wire.client.transfer import Outcome, Status, Transfer
from fedsim.wire.peer import Peer
from fedsim.wire.protocol.events import OfferEnded
from fedsim.wire.protocol.frames import Refusal
from fedsim.wire.protocol.outgoing import Outgoing
from fedsim.wire.transport.reactor import Job
from fedsim.wire.transport.stream_connection import StreamConnection

_MOST_WRONG_DIGESTS: Final = 3
_HASHED_AT_ONCE_BYTES: Final = 1 << 20
# These refuse the identity, not the file: a connection may outlive a change of the peer's configuration.
_UNWELCOME: Final = frozenset({"unknown_peer", "wrong_name"})


class PeerTransfers:
    """The transfers to one peer, sent over the connection that their owner has at the time. Not thread-safe.

    Args:
        peer: the receiver.
        run: runs a job that may block.
        post: runs a job in the owner's turn, from any thread.
        on_change: called when a transfer was answered or has ended.
    """

    def __init__(
        self, peer: Peer, *, run: Callable[[Job], None], post: Callable[[Job], None], on_change: Callable[[], None]
    ) -> None:
        self._peer = peer
        self._run = run
        self._post = post
        self._on_change = on_change
        self._schedule = TransferSchedule()
        self._offered: dict[Outgoing, Transfer] = {}
        self._connection: StreamConnection | None = None

    def __len__(self) -> int:
        """The number of transfers that have not ended."""
        return len(self._schedule)

    @property
    def deadline(self) -> float | None:
        """When `check_time` must be called."""
        return self._schedule.deadline

    @property
    def refused(self) -> Transfer | None:
        """The oldest transfer that was refused and is retried."""
        return self._schedule.refused

    # -- requests

    def add(self, transfer: Transfer) -> None:
        """Send a file."""
        self._schedule.add(transfer)
        self._open(transfer)

    def _open(self, transfer: Transfer) -> None:
        """Open the file and compute its digest; tried again where this host cannot read any file at present."""
        try:
            what = transfer.what
            body = transfer.body = what if isinstance(what, FileBody) else FileBody(what)
        except BadInput as error:
            self._end(transfer, Status.REFUSED, "source_missing", str(error))
            return
        except OSError as error:
            self._open_later(transfer, error)
            return
        if transfer.digest is not None or body.size <= _HASHED_AT_ONCE_BYTES:
            self._hash(transfer, body)
            return
        body.hold()

        def hash_body() -> None:
            self._hash(transfer, body)
            self._post(body.close)

        self._run(hash_body)

    def cancel(self, transfer: Transfer, *, unless_offered: bool = False) -> None:
        """End a transfer; with `unless_offered` only if it has not been offered."""
        if unless_offered and transfer.outgoing is not None and transfer.outgoing.offered:
            return
        self._end(transfer, Status.CANCELLED, "cancelled", "it was cancelled")
        self._on_change()

    def cancel_all(self, message: str) -> None:
        """End every transfer."""
        for transfer in self._schedule:
            self._end(transfer, Status.CANCELLED, "closed", message)

    # -- the connection

    def offer_ready(self, connection: StreamConnection) -> None:
        """Offer on this connection what is ready."""
        self._connection = connection
        for transfer in self._schedule.take_ready():
            if transfer.body is None:
                self._open(transfer)
            if transfer.header is not None and transfer.body is not None and transfer.queued:
                transfer.outgoing = Outgoing(transfer.header, transfer.body, transfer.body.available)
                self._offered[transfer.outgoing] = transfer
                connection.offer(transfer.outgoing)

    def offer_ended(self, end: OfferEnded) -> None:
        """The peer has stored or refused an offered file."""
        transfer = self._offered.get(end.outgoing)
        if transfer is None:
            return
        self._settle(transfer)
        if end.refused is None:
            self._end(transfer, Status.DELIVERED, already_there=end.already_there)
        else:
            self._refused(transfer, end.refused)
        self._on_change()

    def connection_closed(self, reason: Refusal | None) -> bool:
        """Offer everything again on the next connection; whether the peer had answered an offer on this one."""
        self._connection = None
        answered = False
        for transfer in list(self._offered.values()):
            answered |= transfer.outgoing is not None and transfer.outgoing.answered
            self._settle(transfer)
            self._schedule.set_ready(transfer)
            if reason is not None and transfer.body is not None and transfer.body.shrunk:
                self._end(transfer, Status.REFUSED, "source_changed", reason.message)
        return answered

    # -- time

    def check_time(self, problem: str) -> None:
        """Give up transfers whose time is over; `problem` is what is wrong with the connection, if anything."""
        now = time.monotonic()
        for transfer in self._schedule.take_expired(now):
            waited = f"{self._peer} did not accept it within {now - transfer.started:.3g} seconds"
            trouble = problem or transfer.trouble
            message = f"{waited}; last problem: {trouble}" if trouble else waited
            self._end(transfer, Status.GAVE_UP, "gave_up", message)
            self._on_change()

    # -- one transfer

    def _hash(self, transfer: Transfer, body: FileBody) -> None:
        """Compute the digest if it was not given; runs on a thread for jobs if that takes a while."""
        try:
            digest = transfer.digest or body.digest()
        except OSError as error:
            self._post(partial(self._open_later, transfer, error))
        else:
            self._post(lambda: self._ready(transfer, digest))

    def _ready(self, transfer: Transfer, digest: str) -> None:
        if transfer.body is None or transfer not in self._schedule:
            return
        transfer.header = FileHeader(id=transfer.file_id, size=transfer.body.size, digest=digest, meta=transfer.meta)
        self._schedule.set_ready(transfer)

    def _open_later(self, transfer: Transfer, error: OSError) -> None:
        if transfer not in self._schedule:
            return
        if transfer.body is not None:
            transfer.body.close()
            transfer.body = None
        transfer.trouble = f"{transfer.what!r} cannot be read: {error.strerror}"
        self._try_later(transfer)

    def _try_later(self, transfer: Transfer) -> None:
        transfer.refusals += 1
        self._schedule.retry_at(transfer, time.monotonic() + pause_seconds(transfer.refusals))

    def _refused(self, transfer: Transfer, refused: Refused) -> None:
        transfer.trouble = f"it refused the {transfer.file_id.kind}: {refused}"
        transfer.refusal_code = refused.code
        transfer.wrong_digests += refused.code == "wrong_digest"
        may_pass = refused.retry or refused.code in _UNWELCOME
        if transfer.wrong_digests >= _MOST_WRONG_DIGESTS:
            message = f"{transfer.what!s} is damaged: its bytes are not those whose digest was recorded ({refused})"
            self._end(transfer, Status.REFUSED, refused.code, message)
        elif not may_pass:
            self._end(transfer, Status.REFUSED, refused.code, str(refused))
        else:
            self._try_later(transfer)

    def _settle(self, transfer: Transfer) -> None:
        """An attempt has ended."""
        if transfer.outgoing is not None:
            self._offered.pop(transfer.outgoing, None)
            transfer.bytes_sent += transfer.outgoing.bytes_on_wire
            transfer.outgoing = None

    def _end(
        self, transfer: Transfer, status: Status, code: str = "", message: str = "", *, already_there: bool = False
    ) -> None:
        if transfer not in self._schedule:
            return
        self._schedule.remove(transfer)
        if transfer.outgoing is not None and self._connection is not None:
            self._connection.cancel(transfer.outgoing)
        self._settle(transfer)
        if transfer.body is not None:
            transfer.body.close()
        seconds = time.monotonic() - transfer.started
        transfer.on_done(
            Outcome(self._peer, transfer.file_id, status, code, message, transfer.bytes_sent, seconds, already_there)
        )
