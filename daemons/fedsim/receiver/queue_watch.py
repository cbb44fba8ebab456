"""Notices what the daemon of this host queues for peers that listen on no port."""

from __future__ import annotations

import select
from collections.abc import Mapping

import structlog

from fedsim.errors import WatchLimit
from fedsim.receiver.incoming_connection import IncomingConnection
from fedsim.spool.peer_queue import PeerQueue
from fedsim.spool.watch import Watch


class QueueWatch:
    """An actor that passes each change of a watched queue to the connection over which that peer is `serving`."""

    deadline: float | None = None

    def __init__(self, serving: Mapping[str, IncomingConnection]) -> None:
        self._watch = Watch(written=True)
        self._serving = serving
        self._log = structlog.get_logger()

    def add(self, queue: PeerQueue) -> None:
        """Watch the queue of one more peer, for good; from any thread."""
        queue.create()
        try:
            self._watch.add(queue.folder)
        except WatchLimit as error:
            self._log.error("queue_not_watched", problem=str(error))

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return self._watch.fileno(), select.EPOLLIN

    def handle(self, _: int) -> bool:
        """See Actor."""
        changes = self._watch.drain()
        for folder in changes.folders:  # events were lost
            if (connection := self._serving.get(folder.name)) is not None:
                connection.scan_queue()
        for entry in changes.files:
            if (connection := self._serving.get(entry.parent.name)) is not None:
                connection.entry_changed(entry)
        return False

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()
