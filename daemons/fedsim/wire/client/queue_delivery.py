"""Sends the files that the daemon of this host has queued for a peer, over a connection that the peer opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from fedsim.errors import BadInput
from fedsim.spool.files import FileId
from fedsim.spool.layout import Spool
from fedsim.spool.peer_queue import PeerQueue, QueueLock, read_entry, record_sent
from fedsim.wire.client.transfer import Outcome, Status, Transfer
from fedsim.wire.client.transfers import PeerTransfers
from fedsim.wire.peer import Peer
from fedsim.wire.protocol.events import OfferEnded
from fedsim.wire.protocol.frames import Refusal
from fedsim.wire.transport.reactor import Job
from fedsim.wire.transport.stream_connection import StreamConnection


class SentOutcome(BaseModel):
    """The outcome of a queued file as one process hands it to another; see `Outcome`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    status: Status
    code: str = ""
    message: str = ""
    bytes_sent: int = 0
    seconds: float = 0.0
    already_there: bool = False


def read_outcome(path: Path, peer: Peer, file: FileId) -> Outcome:
    """Read the outcome of a queued file; one that is damaged ends the transfer as refused."""
    try:
        sent = SentOutcome.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        sent = SentOutcome(status=Status.REFUSED, code="storage", message=f"{path} cannot be read: {error}")
    return Outcome(peer, file, **dict(sent))


class QueueDelivery:
    """Sends what is queued for one peer while it is connected. Belongs to the actor of the connection.

    Args:
        spool: of this host.
        queue: of the peer.
        run: runs a job that may block.
        post: runs a job in the actor's turn, from any thread.
        on_sent: called after each delivery.
    """

    def __init__(
        self,
        spool: Spool,
        queue: PeerQueue,
        *,
        run: Callable[[Job], None],
        post: Callable[[Job], None],
        on_sent: Callable[[], None],
    ) -> None:
        self._spool = spool
        self._queue = queue
        self._transfers = PeerTransfers(Peer(queue.peer), run=run, post=post, on_change=self._report)
        self._by_entry: dict[Path, Transfer] = {}
        self._post = post
        self._on_sent = on_sent
        self._reported = ""
        self._log = structlog.get_logger(peer=queue.peer)
        self._sending = False
        self._lock = QueueLock(self._queue)
        self._lock.acquire(lambda: post(self._begin))

    @property
    def deadline(self) -> float | None:
        """When `advance` must be called."""
        return self._transfers.deadline

    def advance(self, connection: StreamConnection) -> None:
        """Offer what is ready."""
        self._transfers.check_time("")
        self._transfers.offer_ready(connection)

    def offer_ended(self, end: OfferEnded) -> None:
        """The peer has stored or refused an offered file."""
        self._transfers.offer_ended(end)

    def scan(self) -> None:
        """Send what is queued; needed where single changes of the queue may have been missed."""
        for entry in {*self._queue.entries(), *self._by_entry}:
            self.entry_changed(entry)

    def entry_changed(self, entry: Path) -> None:
        """Send a file that was queued; stop sending one that was removed."""
        if not self._sending:
            return
        known = self._by_entry.get(entry)
        if known is None:
            self._add(entry)
        elif not known.queued:
            self._transfers.cancel(known)

    def close(self, reason: Refusal | None) -> None:
        """The connection has ended; what was not delivered stays queued."""
        self._sending = False
        self._transfers.connection_closed(reason)
        self._transfers.cancel_all("the connection ended")
        self._lock.release()

    def _begin(self) -> None:
        self._sending = True
        self.scan()

    def _add(self, entry: Path) -> None:
        try:
            file = read_entry(entry)
        except BadInput as error:
            self._log.warning("queued_file_not_understood", problem=str(error))
            return
        if file is None:
            return

        def cancel(transfer: Transfer, *, unless_offered: bool = False) -> None:
            self._post(lambda: self._transfers.cancel(transfer, unless_offered=unless_offered))

        transfer = Transfer(
            cancel,
            file.id,
            file.source,
            file.meta,
            file.digest,
            None,
            lambda outcome: self._ended(entry, outcome),
            entry,
        )
        self._by_entry[entry] = transfer
        self._transfers.add(transfer)

    def _ended(self, entry: Path, outcome: Outcome) -> None:
        self._by_entry.pop(entry, None)
        if outcome.status is Status.CANCELLED:
            return
        if outcome.delivered:
            self._on_sent()
        sent = SentOutcome(
            status=outcome.status,
            code=outcome.code,
            message=outcome.message,
            bytes_sent=outcome.bytes_sent,
            seconds=outcome.seconds,
            already_there=outcome.already_there,
        )
        try:
            record_sent(self._spool.root, entry, sent)
        except (
            OSError
        ) as error:  # it stays queued: the daemon resumes its tasks once the disk works, or it is sent again
            self._log.warning("outcome_not_recorded", problem=str(error))

    def _report(self) -> None:
        refused = self._transfers.refused
        code = refused.refusal_code if refused else ""
        if code != self._reported:
            self._reported = code
            if refused is not None:
                self._log.warning("peer_refuses", problem=refused.trouble)
