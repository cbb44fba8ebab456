"""The transfers of a daemon: queued for the peers, and their outcomes reported in the daemon's loop.

The sender's threads send to peers that listen, over connections that this daemon opens. What is for other peers is
queued for the host's receiver, which sends it over the connections that they open; see `spool.peer_queue`.

Sending can be requested repeatedly (a node that forgot, a server that restarted): a transfer that is under way is not
queued twice, and a file that was delivered before costs one question.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedsim.spool.durable import remove_file
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import Spool
from fedsim.spool.peer_queue import PeerQueue, QueuedFile, empty_queues, sent_entries
from fedsim.spool.watch import Changes, Watch
from fedsim.wire.client.queue_delivery import read_outcome
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Outcome, Sender, Status, Transfer, check_sendable
from fedsim.wire.tls import Credentials
from fedsim.wire.transport.receiving import Inbox

_Key = tuple[Peer, FileId]


@dataclass(eq=False)
class _Underway:
    """A transfer of this process (`transfer`), or of the receiver (`entry` in the peer's queue)."""

    source: Path | bytes
    meta: dict[str, Any] | None
    digest: str | None
    give_up_at: float | None
    transfer: Transfer | None = None
    entry: Path | None = None


class Outbox:
    """The transfers of one daemon. `fileno` becomes readable when `ended` or `trouble` have something new."""

    sent_elsewhere: Watch
    """Becomes readable when another process has sent a file: then `ended` has something new as well."""
    _sender: Sender

    def __init__(self, spool: Spool, eventfd: int) -> None:
        self._spool = spool
        self._eventfd = eventfd
        self._troubles: dict[Peer, str] = {}
        self._underway: dict[_Key, _Underway] = {}
        self._by_entry: dict[str, _Key] = {}
        self._expiring: dict[_Key, float] = {}
        self._ended: deque[tuple[_Underway, Outcome]] = deque()
        self._newer: dict[_Key, bytes] = {}

    @classmethod
    def open(
        cls, identity: Identity, credentials: Credentials | None, spool: Spool, inbox: Inbox | None = None
    ) -> Self:
        """Start the sender's threads; `close` ends them. An `inbox` accepts what peers offer on its connections."""
        outbox = cls(spool, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        outbox.sent_elsewhere = Watch(spool.sent)
        empty_queues(spool.root)
        outbox._sender = Sender(identity, credentials=credentials, inbox=inbox, on_trouble=outbox._in_trouble).open()
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
        check_sendable(file, meta or {}, digest)
        give_up_at = None if give_up_after is None else time.monotonic() + give_up_after
        underway = _Underway(source, meta, digest, give_up_at)
        if not peer.listens:
            underway.entry = self._queue(peer, file, underway)
            self._by_entry[underway.entry.name] = key
            self._underway[key] = underway
            if give_up_at is not None:
                self._expiring[key] = give_up_at
            return

        def on_done(outcome: Outcome) -> None:  # in a thread of the sender
            self._end(underway, outcome)

        self._underway[key] = underway
        underway.transfer = self._sender.send(
            peer, file, source, meta=meta, digest=digest, give_up_after=give_up_after, on_done=on_done
        )

    def _queue(self, peer: Peer, file: FileId, underway: _Underway) -> Path:
        source = underway.source
        where = {"path": source} if isinstance(source, Path) else {"content": source.decode()}
        queued = QueuedFile(id=file, meta=underway.meta or {}, digest=underway.digest, **where)
        return PeerQueue(self._spool.root, peer.name).put(queued)

    def send_newest(self, peer: Peer, file: FileId, content: bytes) -> None:
        """Send a file of which only the newest content counts.

        A transfer that is under way is replaced, or awaited if the peer is receiving it: it could not accept both.
        """
        underway = self._underway.get((peer, file))
        if underway is not None and underway.transfer is not None:
            self._newer[peer, file] = content
            underway.transfer.give_way()
        else:
            if underway is not None:
                self._cancel((peer, file))
            self.send(peer, file, content)

    def ended(self) -> list[Outcome]:
        """The outcomes of the transfers that ended since the last call, except for cancelled ones."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        if self.sent_elsewhere.drain() != Changes():
            self._read_sent()
        outcomes = []
        while self._ended:
            underway, outcome = self._ended.popleft()
            key = (outcome.peer, outcome.file_id)
            if self._underway.get(key) is underway:
                newer = self._newer.pop(key, None)
                self._forget(key)
                if outcome.status is not Status.CANCELLED:
                    outcomes.append(outcome)
                if newer is not None:
                    self.send(*key, newer)
        return outcomes

    def _read_sent(self) -> None:
        for path in sent_entries(self._spool.root):
            key = self._by_entry.get(path.name)
            if key is not None:
                self._ended.append((self._underway[key], read_outcome(path, *key)))
            remove_file(path)

    def reload(self, credentials: Credentials | None, peers: Collection[Peer]) -> None:
        """See `Sender.reload`; transfers to other peers are cancelled.

        Except stops: a node that was removed from the configuration must still learn that its task is over.
        """
        for peer, file in list(self._underway):
            if peer not in peers and file.kind is not Kind.STOP:
                self._cancel((peer, file))
        self._sender.reload(credentials, peers)

    def under_way(self, name: str, kind: Kind) -> int:
        """How many files of a kind are being sent to the peer of this name, or wait for that."""
        return sum(peer.name == name and file.kind is kind for peer, file in self._underway)

    def trouble(self, peer: Peer) -> str:
        """Why files do not reach the peer at present, for people; empty if they do."""
        return self._troubles.get(peer, "")

    def _in_trouble(self, peer: Peer, trouble: str) -> None:  # in a thread of the sender
        self._troubles[peer] = trouble
        os.eventfd_write(self._eventfd, 1)

    def redirect(self, old: Peer, new: Peer) -> None:
        """Send what is under way to a peer to its new address instead."""
        for peer, file in list(self._underway):
            if peer == old:
                newer = self._newer.get((peer, file))
                underway = self._cancel((peer, file))
                remaining = None if underway.give_up_at is None else max(0.0, underway.give_up_at - time.monotonic())
                source = underway.source if newer is None else newer
                self.send(new, file, source, meta=underway.meta, digest=underway.digest, give_up_after=remaining)

    def check(self) -> None:
        """Give up what only the receiver could have sent in time; raise `SenderFailedError` if nothing can be sent.

        Called at each turn of the loop.
        """
        now = time.monotonic()
        for (peer, file), give_up_at in list(self._expiring.items()):
            if now >= give_up_at:
                message = f"{peer} did not open a connection in time"
                self._end(self._underway[peer, file], Outcome(peer, file, Status.GAVE_UP, "gave_up", message))
                del self._expiring[peer, file]
        self._sender.check()

    def cancel(self, unwanted: Callable[[FileId], bool]) -> None:
        """Cancel the transfers of the files that `unwanted` selects."""
        for peer, file in list(self._underway):
            if unwanted(file):
                self._cancel((peer, file))

    def _end(self, underway: _Underway, outcome: Outcome) -> None:
        self._ended.append((underway, outcome))
        os.eventfd_write(self._eventfd, 1)

    def _cancel(self, key: _Key) -> _Underway:
        """Stop sending, in this process or in the receiver."""
        underway = self._forget(key)
        if underway.transfer is not None:
            underway.transfer.cancel()
        return underway

    def _forget(self, key: _Key) -> _Underway:
        underway = self._underway.pop(key)
        self._newer.pop(key, None)
        self._expiring.pop(key, None)
        if underway.entry is not None:
            self._by_entry.pop(underway.entry.name, None)
            with suppress(OSError):  # on a disk that fails; an entry that stays is at worst sent needlessly
                remove_file(underway.entry)
        return underway

    def close(self) -> None:
        """Stop the sender; all transfers end."""
        self._sender.close()
        self.sent_elsewhere.close()
        os.close(self._eventfd)
