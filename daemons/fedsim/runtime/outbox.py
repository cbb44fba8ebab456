"""The transfers of a daemon: sends files on the sender's threads and reports their outcomes in the daemon's loop.

Sending can be requested repeatedly (a node that forgot, a server that restarted): a transfer that is under way is not
queued twice, and a file that was delivered before costs one question.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Self

from fedsim.spool.files import FileId, Kind
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Outcome, Sender, Status, Transfer
from fedsim.wire.tls import Credentials


class Outbox:
    """The transfers of one daemon. `fileno` becomes readable when `ended` or `trouble` have something new."""

    _sender: Sender

    def __init__(self, eventfd: int) -> None:
        self._eventfd = eventfd
        self._troubles: dict[Peer, str] = {}
        self._underway: dict[tuple[Peer, FileId], tuple[object, Transfer]] = {}
        self._ended: deque[tuple[object, Outcome]] = deque()
        self._newer: dict[tuple[Peer, FileId], bytes] = {}

    @classmethod
    def open(cls, identity: Identity, credentials: Credentials | None) -> Self:
        """Start the sender's threads; `close` ends them."""
        outbox = cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        outbox._sender = Sender(identity, credentials=credentials, on_trouble=outbox._in_trouble)
        return outbox

    def fileno(self) -> int:
        """For the daemon's selector."""
        return self._eventfd

    def send(
        self,
        peer: Peer,
        file: FileId,
        source: Path | bytes,
        *,
        meta: dict[str, Any] | None = None,
        digest: str | None = None,
        give_up_after: float | None = None,
    ) -> None:
        """Send a file until it is delivered. Does nothing if it is under way already."""
        key = (peer, file)
        if key in self._underway:
            return
        token = object()

        def on_done(outcome: Outcome) -> None:  # in a thread of the sender
            self._ended.append((token, outcome))
            os.eventfd_write(self._eventfd, 1)

        transfer = self._sender.send(
            peer, file, source, meta=meta, digest=digest, give_up_after=give_up_after, on_done=on_done
        )
        self._underway[key] = (token, transfer)

    def send_newest(self, peer: Peer, file: FileId, content: bytes) -> None:
        """Send a file of which only the newest content counts.

        A transfer that is under way is replaced, or awaited if the peer is receiving it: it could not take both.
        """
        if (peer, file) in self._underway:
            self._newer[peer, file] = content
            self._underway[peer, file][1].give_way()
        else:
            self.send(peer, file, content)

    def ended(self) -> list[Outcome]:
        """The outcomes of the transfers that ended since the last call, except for cancelled ones."""
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return []
        outcomes = []
        while self._ended:
            token, outcome = self._ended.popleft()
            key = (outcome.peer, outcome.file_id)
            if key in self._underway and self._underway[key][0] is token:
                del self._underway[key]
                if outcome.status is not Status.CANCELLED:
                    outcomes.append(outcome)
                if key in self._newer:
                    self.send(*key, self._newer.pop(key))
        return outcomes

    def reload(self, credentials: Credentials | None, peers: Collection[Peer]) -> None:
        """See `Sender.reload`; transfers to other peers are cancelled.

        Except stops: a node that was removed from the configuration must still learn that its task is over.
        """
        for (peer, file), (_, transfer) in list(self._underway.items()):
            if peer not in peers and file.kind is not Kind.STOP:
                del self._underway[peer, file]
                self._newer.pop((peer, file), None)
                transfer.cancel()
        self._sender.reload(credentials, peers)

    def trouble(self, peer: Peer) -> str:
        """Why files do not reach the peer at present, for people; empty if they do."""
        return self._troubles.get(peer, "")

    def _in_trouble(self, peer: Peer, trouble: str) -> None:  # in a thread of the sender
        self._troubles[peer] = trouble
        os.eventfd_write(self._eventfd, 1)

    def redirect(self, old: Peer, new: Peer) -> None:
        """Send what is under way to a peer to its new address instead."""
        for (peer, file), (_, transfer) in list(self._underway.items()):
            if peer == old:
                del self._underway[peer, file]
                transfer.cancel()
                remaining = None if transfer.give_up_at is None else max(0.0, transfer.give_up_at - time.monotonic())
                source = self._newer.pop((peer, file), transfer.what)
                self.send(new, file, source, meta=transfer.meta, digest=transfer.digest, give_up_after=remaining)

    def check(self) -> None:
        """Raise `SenderFailedError` if nothing can be sent any more; called at each turn of the loop."""
        self._sender.check()

    def cancel(self, unwanted: Callable[[FileId], bool]) -> None:
        """Cancel the transfers of the files that `unwanted` selects."""
        for (peer, file), (_, transfer) in list(self._underway.items()):
            if unwanted(file):
                del self._underway[peer, file]
                self._newer.pop((peer, file), None)
                transfer.cancel()

    def close(self) -> None:
        """Stop the sender; all transfers end."""
        self._sender.close()
        os.close(self._eventfd)
