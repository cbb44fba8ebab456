"""What a daemon has on its way: sends files through the sender's threads, hears of their end in its own loop.

Sending is asked for again and again (a node that forgot, a server that restarted): what is already on its way is not
queued twice, and what arrived before costs one question.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from fedsim.spool.files import FileId, Kind
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Outcome, Sender, Status, Transfer
from fedsim.wire.tls import Credentials


class Outbox:
    """The transfers of one daemon. `fileno` becomes readable when `ended` or `trouble` have something new to tell."""

    def __init__(self, identity: Identity, credentials: Credentials | None) -> None:
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sender = Sender(identity, credentials=credentials, on_trouble=self._in_trouble)
        self._troubles: dict[Peer, str] = {}
        self._underway: dict[tuple[Peer, FileId], tuple[object, Transfer]] = {}
        self._ended: deque[tuple[object, Outcome]] = deque()
        self._newer: dict[tuple[Peer, FileId], bytes] = {}

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
        """Send a file until it has arrived. If it is on its way already, nothing happens."""
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

        One that is on its way gives way, or is waited for if the peer has it in hand already: it could not take both.
        """
        if (peer, file) in self._underway:
            self._newer[peer, file] = content
            self._underway[peer, file][1].give_way()
        else:
            self.send(peer, file, content)

    def ended(self) -> list[Outcome]:
        """How transfers ended since the last call; those that were cancelled are not told."""
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
        """See `Sender.reload`; what is on its way to others is given up.

        But for a stop: whoever was taken out of the configuration must still hear that its task is over.
        """
        for (peer, file), (_, transfer) in list(self._underway.items()):
            if peer not in peers and file.kind is not Kind.STOP:
                del self._underway[peer, file]
                self._newer.pop((peer, file), None)
                transfer.cancel()
        self._sender.reload(credentials, peers)

    def trouble(self, peer: Peer) -> str:
        """What keeps files from the peer now, in words for people; empty if nothing does."""
        return self._troubles.get(peer, "")

    def _in_trouble(self, peer: Peer, trouble: str) -> None:  # in a thread of the sender
        self._troubles[peer] = trouble
        os.eventfd_write(self._eventfd, 1)

    def redirect(self, old: Peer, new: Peer) -> None:
        """A peer has another address now: what is on its way to the old one goes there instead."""
        for (peer, file), (_, transfer) in list(self._underway.items()):
            if peer == old:
                del self._underway[peer, file]
                transfer.cancel()
                left = None if transfer.give_up_at is None else max(0.0, transfer.give_up_at - time.monotonic())
                what = self._newer.pop((peer, file), transfer.what)
                self.send(new, file, what, meta=transfer.meta, digest=transfer.digest, give_up_after=left)

    def check(self) -> None:
        """Raises `SenderFailedError` if nothing can be sent any more; a daemon's loop asks at each turn."""
        self._sender.check()

    def cancel(self, unwanted: Callable[[FileId], bool]) -> None:
        """Give up the transfers of files for which `unwanted` holds."""
        for (peer, file), (_, transfer) in list(self._underway.items()):
            if unwanted(file):
                del self._underway[peer, file]
                self._newer.pop((peer, file), None)
                transfer.cancel()

    def close(self) -> None:
        """End the sender and everything that is on its way."""
        self._sender.close()
        os.close(self._eventfd)
