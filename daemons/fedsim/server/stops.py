"""Telling nodes that a task is over, also those that server.yml does not name any more.

A node that missed a stop says at its next `hello` that it still holds the task, and is told again. One that was taken
out of server.yml is not listened to, so its stops are kept in a file until they are delivered, for an hour at most:

nodes.json    every node that is, or was lately, configured: its address, since when it is not, what it must be told
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedsim.errors import BadInput
from fedsim.log import get_logger
from fedsim.messages import MAX_TEXT, Message, Name, Seconds, Stop, Text, Uid, read_message
from fedsim.server.nodes import Nodes
from fedsim.spool.durable import write_bytes
from fedsim.spool.files import FileId, Kind
from fedsim.wire.outbox import Outbox
from fedsim.wire.peer import Peer
from fedsim.wire.sender import Outcome

STOP_DELIVERY_SECONDS = 3600.0


class KnownNode(Message):
    """Where a node's receiver is; `gone_since` and `stops` (task -> reason) of one that was taken out."""

    address: str
    port: Annotated[int, Field(ge=0, le=65535)]
    gone_since: Seconds | None = None
    stops: Annotated[dict[Uid, Text], Field(default_factory=dict)]


class _Known(Message):
    nodes: dict[Name, KnownNode]


class Stops:
    """The stops that are on their way."""

    def __init__(self, path: Path, outbox: Outbox, nodes: Nodes) -> None:
        """`path` is that of nodes.json."""
        self._path = path
        self._outbox = outbox
        self._nodes = nodes
        self._log = get_logger()
        self._known = self._read()
        self.reload()

    def reload(self) -> None:
        """See who was taken out of server.yml, or is named again; durably."""
        now = time.time()
        configured = self._nodes.addresses
        known = {name: KnownNode(address=peer.host, port=peer.port, stops={}) for name, peer in configured.items()}
        for name, node in self._known.items():
            if name in known:
                continue
            if node.gone_since is None:
                self._log.info("node_removed", node=name)
            since = now if node.gone_since is None else node.gone_since
            if now < since + STOP_DELIVERY_SECONDS:
                known[name] = node.model_copy(update={"gone_since": since})
        self._keep(known)

    def take_up(self) -> None:
        """After a restart: go on telling those who were taken out."""
        for name, node in self._known.items():
            for uid, reason in node.stops.items():
                self._send(Peer(name, node.address, node.port), uid, reason)

    def promise(self, names: Iterable[str], uid: str, reason: str) -> None:
        """Durably note what those of the nodes that were taken out must be told, before the task's row says it."""
        known = dict(self._known)
        for name in names:
            if name in known and name not in self._nodes.addresses:
                known[name] = known[name].model_copy(update={"stops": {**known[name].stops, uid: reason[:MAX_TEXT]}})
        self._keep(known)

    def tell(self, names: Iterable[str], uid: str, reason: str) -> None:
        """Tell nodes that a task is over."""
        names = tuple(names)
        self.promise(names, uid, reason)
        for name in names:
            if name in self._known:
                self._send(Peer(name, self._known[name].address, self._known[name].port), uid, reason[:MAX_TEXT])
            else:
                self._log.warning("node_not_told", node=name, uid=uid, problem="its address is not known any more")

    def sent(self, outcome: Outcome) -> None:
        """A stop was delivered, or given up."""
        name, uid = outcome.peer.name, outcome.file_id.task or ""
        if name not in self._known or uid not in self._known[name].stops:
            return
        if outcome.delivered:
            self._log.info("removed_node_told", node=name, uid=uid)
        else:
            self._log.warning("node_not_told", node=name, uid=uid, problem=outcome.message)
        node = self._known[name]
        left = {other: reason for other, reason in node.stops.items() if other != uid}
        self._keep({**self._known, name: node.model_copy(update={"stops": left})})

    def _send(self, peer: Peer, uid: str, reason: str) -> None:
        body = Stop(task=uid, reason=reason).model_dump_json().encode()
        self._outbox.send(peer, FileId(kind=Kind.STOP, task=uid), body, give_up_after=STOP_DELIVERY_SECONDS)

    def _keep(self, known: dict[str, KnownNode]) -> None:
        if known != self._known:
            self._known = known
            write_bytes(self._path, _Known(nodes=known).model_dump_json(indent=1).encode())

    def _read(self) -> dict[str, KnownNode]:
        try:
            return read_message(_Known, self._path.read_bytes(), str(self._path)).nodes
        except FileNotFoundError:
            return {}
        except BadInput as error:
            self._log.warning("nodes_not_understood", problem=str(error))
            return {}
