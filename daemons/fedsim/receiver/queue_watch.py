"""Notices what the daemon of this host queues for peers that listen on no port."""

from __future__ import annotations

import select
from collections.abc import Mapping

import structlog

from fedsim.errors import WatchLimit
from fedsim.receiver.incoming_connection import IncomingConnection
from fedsim.spool.layout import Spool
from fedsim.spool.watch import Watch


class QueueWatch:
    """An actor that passes each change of a queue to the connection over which that peer is `serving`."""

    deadline: float | None = None

    def __init__(self, spool: Spool, serving: Mapping[str, IncomingConnection]) -> None:
        self._watch = Watch(spool.outgoing, written=True)
        self._serving = serving
        self._log = structlog.get_logger()

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return self._watch.fileno(), select.EPOLLIN

    def handle(self, _: int) -> bool:
        """See Actor."""
        try:
            changes = self._watch.drain()
        except WatchLimit as error:
            self._log.error("queue_not_watched", problem=str(error))
            return False
        for folder in changes.folders:
            if (connection := self._serving.get(folder.name)) is not None:
                connection.scan_queue()
        for entry in changes.files:
            if (connection := self._serving.get(entry.parent.name)) is not None:
                connection.entry_changed(entry)
        return False

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()
