"""Notifies the server of new tasks and stop requests. A lost notification only causes a delay: the database counts."""

from __future__ import annotations

import threading
from typing import Protocol

from fedsim.config import WebConfig
from fedsim.errors import FedsimError
from fedsim.log import get_logger
from fedsim.messages import Message, Stop, Submission
from fedsim.spool.files import FileId, Kind, Role
from fedsim.store.records import Task
from fedsim.wire import Identity, Outcome, Peer, Sender
from fedsim.wire.tls import Credentials

# Long enough for a restart of the receiver; after that the server has polled the database anyway.
GIVE_UP_SECONDS = 30.0
# How long a process that is being replaced waits for its transfers.
CLOSE_SECONDS = 2.0


class Notifier(Protocol):
    """Notifies the server's receiver. The notifying methods neither block nor fail."""

    def submitted(self, task: Task) -> None:
        """Notify the server of a new task."""

    def stop(self, task: Task, reason: str = "") -> None:
        """Notify the server that the task is to be stopped."""

    def close(self) -> None:
        """Close connections; notifications that were not sent are lost."""


class WireNotifier:
    """Sends `initparam` and `stop` files to the receiver. It has threads, so it must not be created before a fork."""

    def __init__(self, config: WebConfig, credentials: Credentials | None) -> None:
        self._sender = Sender(Identity(config.name, Role.WEB), credentials=credentials).open()
        self._server = Peer(config.server_name, config.server.address, config.server.port)
        self._underway = 0
        self._changed = threading.Condition()

    def submitted(self, task: Task) -> None:
        """Notify the server of a new task."""
        self._send(Kind.INITPARAM, task, Submission(task=task.uid, settings=task.settings))

    def stop(self, task: Task, reason: str = "") -> None:
        """Notify the server that the task is to be stopped."""
        self._send(Kind.STOP, task, Stop(task=task.uid, reason=reason))

    def close(self) -> None:
        """Wait briefly for transfers in progress, then close connections; other notifications are lost."""
        with self._changed:
            self._changed.wait_for(lambda: not self._underway, CLOSE_SECONDS)
        self._sender.close()

    def _count(self, change: int) -> None:
        with self._changed:
            self._underway += change
            self._changed.notify_all()

    def _send(self, kind: Kind, task: Task, message: Message) -> None:
        log = get_logger(task=task.number, kind=kind.value)

        def on_done(outcome: Outcome) -> None:
            if not outcome.delivered:
                log.warning("notification_lost", problem=outcome.message, server=str(self._server))
            self._count(-1)

        self._count(+1)
        file_id, body = FileId(kind=kind, task=task.uid), message.model_dump_json().encode()
        try:
            self._sender.send(self._server, file_id, body, give_up_after=GIVE_UP_SECONDS, on_done=on_done)
        except FedsimError as error:
            self._count(-1)
            log.warning("notification_lost", problem=str(error), server=str(self._server))
