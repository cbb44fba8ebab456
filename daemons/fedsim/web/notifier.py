"""Hints to the server that a task waits or should stop. A lost hint costs seconds, never a task: the row counts."""

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

# Long enough for a receiver that restarts; by then the server has seen the row itself.
GIVE_UP_SECONDS = 30.0
# A process that is replaced waits so long for what it has just begun to send.
CLOSE_SECONDS = 2.0


class Signal(Protocol):
    """Tells the server's receiver; neither method blocks or fails."""

    def submitted(self, task: Task) -> None:
        """A new task waits."""

    def stop(self, task: Task, reason: str = "") -> None:
        """Somebody wants the task to stop."""

    def close(self) -> None:
        """Let go of connections; what was not sent is lost."""


class WireSignal:
    """Sends `initparam` and `stop` files over the wire. Has threads, so it is made in the process that uses it."""

    def __init__(self, config: WebConfig, credentials: Credentials | None) -> None:
        self._sender = Sender(Identity(config.name, Role.WEB), credentials=credentials)
        self._server = Peer(config.server_name, config.server.address, config.server.port)
        self._underway = 0
        self._changed = threading.Condition()

    def submitted(self, task: Task) -> None:
        """A new task waits."""
        self._send(Kind.INITPARAM, task, Submission(task=task.uid, settings=task.settings))

    def stop(self, task: Task, reason: str = "") -> None:
        """Somebody wants the task to stop."""
        self._send(Kind.STOP, task, Stop(task=task.uid, reason=reason))

    def close(self) -> None:
        """Let go of connections, when what is on its way has arrived or after a moment; the rest is lost."""
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
                log.warning("signal_lost", problem=outcome.message, server=str(self._server))
            self._count(-1)

        self._count(+1)
        file_id, body = FileId(kind=kind, task=task.uid), message.model_dump_json().encode()
        try:
            self._sender.send(self._server, file_id, body, give_up_after=GIVE_UP_SECONDS, on_done=on_done)
        except FedsimError as error:
            self._count(-1)
            log.warning("signal_lost", problem=str(error), server=str(self._server))
