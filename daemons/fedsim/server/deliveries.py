"""What nodes still have to receive after a task has ended: the final model, or a stop.

final/<uid>/model.npy        the final model: a hard link to the last round's file
final/<uid>/delivery.json    the nodes that do not have it yet; a folder without it is incomplete
nodes.json    every node that is, or was lately, configured: its address, since when it is not, its undelivered stops

A final model is stored before the task's row says `completed`: a restart in between repeats it. A node that missed a
stop reports at its next `hello` that it still holds the task, and is sent the stop again. A node that was removed from
server.yml is not listened to, so its stops are stored until they are delivered, for an hour at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedsim.errors import BadInput
from fedsim.log import get_logger
from fedsim.messages import MAX_TEXT, Broadcast, Count, Message, Name, Seconds, Stop, Text, Uid, read_message
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.writer import Writer
from fedsim.server.nodes import Nodes
from fedsim.spool.durable import make_folder, remove_tree, write_bytes
from fedsim.spool.files import FileId, Kind
from fedsim.wire.peer import Peer
from fedsim.wire.sender import Outcome, Status

STOP_DELIVERY_SECONDS = 3600.0


class KnownNode(Message):
    """The address of a node's receiver; `gone_since` and `stops` (task -> reason) if it was removed from server.yml."""

    address: str  # empty: it listens on no port
    port: Annotated[int, Field(ge=0, le=65535)]
    gone_since: Seconds | None = None
    stops: Annotated[dict[Uid, Text], Field(default_factory=dict)]


class _Known(Message):
    nodes: dict[Name, KnownNode]


class StopDeliveries:
    """The stops that are not delivered yet."""

    def __init__(self, path: Path, outbox: Outbox, writer: Writer, nodes: Nodes) -> None:
        """`path` is that of nodes.json; `open` reads it."""
        self._path = path
        self._outbox = outbox
        self._writer = writer
        self._nodes = nodes
        self._log = get_logger()
        self._known: dict[str, KnownNode] = {}
        self._stored = b""  # used in the writer's thread alone

    def open(self) -> None:
        """Read which nodes were configured when the server stopped."""
        self._known = self._read()
        self.reload()

    def reload(self) -> None:
        """Durably note which nodes were removed from server.yml, or added again."""
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
        self._writer.submit(self._storing(known))

    def resume(self) -> None:
        """After a restart or a suspension: store what may have been lost, and send the removed nodes their stops."""
        self._writer.submit(self._storing(self._known))
        for name, node in self._known.items():
            for uid, reason in node.stops.items():
                self._send(Peer(name, node.address, node.port), uid, reason)

    def promise(self, names: Iterable[str], uid: str, reason: str) -> Callable[[], None]:
        """Note the stops of those nodes that were removed from server.yml.

        Returns what stores them, to be called in the writer's thread before the task's row is changed.
        """
        known = dict(self._known)
        for name in names:
            if name in known and name not in self._nodes.addresses:
                known[name] = known[name].model_copy(update={"stops": {**known[name].stops, uid: reason[:MAX_TEXT]}})
        return self._storing(known)

    def send(self, names: Iterable[str], uid: str, reason: str) -> None:
        """Notify nodes that a task is over."""
        names = tuple(names)
        self._writer.submit(self.promise(names, uid, reason))
        for name in names:
            if name in self._known:
                self._send(Peer(name, self._known[name].address, self._known[name].port), uid, reason[:MAX_TEXT])
            else:
                self._log.warning("node_not_notified", node=name, uid=uid, problem="its address is no longer known")

    def under_way(self, name: str) -> int:
        """How many stops are on their way to a node."""
        return self._outbox.under_way(name, Kind.STOP)

    def transfer_ended(self, outcome: Outcome) -> None:
        """A stop was delivered, or abandoned."""
        name, uid = outcome.peer.name, outcome.file_id.task or ""
        if name not in self._known or uid not in self._known[name].stops:
            return
        if outcome.delivered:
            self._log.info("removed_node_notified", node=name, uid=uid)
        else:
            self._log.warning("node_not_notified", node=name, uid=uid, problem=outcome.message)
        node = self._known[name]
        undelivered = {other: reason for other, reason in node.stops.items() if other != uid}
        self._writer.submit(self._storing({**self._known, name: node.model_copy(update={"stops": undelivered})}))

    def _send(self, peer: Peer, uid: str, reason: str) -> None:
        body = Stop(task=uid, reason=reason).model_dump_json().encode()
        self._outbox.send(peer, FileId(kind=Kind.STOP, task=uid), body, give_up_after=STOP_DELIVERY_SECONDS)

    def _storing(self, known: dict[str, KnownNode]) -> Callable[[], None]:
        """What stores `known` if that is new: writes are carried out in the order in which this is called."""
        self._known = known
        content = _Known(nodes=known).model_dump_json(indent=1).encode()

        def store() -> None:
            if content != self._stored:
                write_bytes(self._path, content)
                self._stored = content

        return store

    def _read(self) -> dict[str, KnownNode]:
        try:
            return read_message(_Known, self._path.read_bytes(), str(self._path)).nodes
        except FileNotFoundError:
            return {}
        except BadInput as error:
            self._log.warning("nodes_not_understood", problem=str(error))
            return {}


class Delivery(Message):
    """The nodes that still have to receive a task's final model; `round` made it, `digest` is that of the file."""

    task: Uid
    number: Count
    round: Count
    digest: str
    nodes: tuple[Name, ...]


class FinalDeliveries:
    """The final models that are not delivered yet."""

    def __init__(self, root: Path, outbox: Outbox, writer: Writer, nodes: Nodes, stops: StopDeliveries) -> None:
        """`root` is their folder."""
        self._root = root
        self._outbox = outbox
        self._writer = writer
        self._nodes = nodes
        self._stops = stops
        self._pending: dict[str, Delivery] = {}

    def keep(self, delivery: Delivery, model: Path) -> None:
        """Durably store the model for the nodes, in the writer's thread; safe to repeat."""
        folder = self._root / delivery.task
        make_folder(folder)
        path = folder / "model.npy"
        path.unlink(missing_ok=True)
        os.link(model, path)
        self._write(delivery)

    def send(self, uid: str) -> None:
        """Send a stored model to the nodes that do not have it; an incomplete folder is removed."""
        delivery = self._read(uid)
        if delivery is None:
            self.drop(uid)
            return
        self._pending[uid] = delivery
        for node in delivery.nodes:
            if node not in self._nodes.addresses:
                self._stops.send([node], uid, "this node is no longer listed in server.yml")
                self._mark_delivered(uid, node)
                continue
            self._outbox.send(
                self._nodes.addresses[node],
                FileId.model_of(uid, delivery.round),
                self._root / uid / "model.npy",
                meta=Broadcast.of_final_model(delivery.round).model_dump(mode="json"),
                digest=delivery.digest,
            )

    def resume(self, finished: Callable[[str], bool | None]) -> None:
        """After a restart: send again. `finished` returns whether the task of a uid is over, None if it is unknown."""
        for folder in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            over = finished(folder.name)
            if over is None:
                self.drop(folder.name)
            elif over:  # a task that is not over ends again, and its model is stored again then
                self.send(folder.name)

    def is_pending(self, node: str, uid: str) -> bool:
        """Whether the final model still has to be delivered to the node."""
        return uid in self._pending and node in self._pending[uid].nodes

    def transfer_ended(self, outcome: Outcome) -> None:
        """A transfer has ended."""
        uid, node = outcome.file_id.task or "", outcome.peer.name
        if outcome.status in {Status.DELIVERED, Status.REFUSED} and self.is_pending(node, uid):
            number = self._pending[uid].number
            get_logger(task=number).info("final_model_sent", node=node, outcome=outcome.status, problem=outcome.message)
            self._mark_delivered(uid, node)

    def reported(self, node: str, uids: Collection[str]) -> None:
        """A node holds these tasks: it needs no final model of those that it has ended or lost."""
        for uid in [uid for uid in self._pending if self.is_pending(node, uid) and uid not in uids]:
            self._mark_delivered(uid, node)

    def drop(self, uid: str) -> None:
        """Remove a final model: every node has it, or the task was deleted."""
        self._pending.pop(uid, None)
        self._outbox.cancel(lambda file: file.task == uid and file.kind is Kind.GLOBALPARAM)
        self._writer.submit(partial(remove_tree, self._root / uid))

    def _mark_delivered(self, uid: str, node: str) -> None:
        delivery = self._pending[uid]
        remaining = tuple(other for other in delivery.nodes if other != node)
        if not remaining:
            self.drop(uid)
            return
        delivery = self._pending[uid] = delivery.model_copy(update={"nodes": remaining})
        self._writer.submit(partial(self._write, delivery))

    def _write(self, delivery: Delivery) -> None:
        write_bytes(self._root / delivery.task / "delivery.json", delivery.model_dump_json().encode())

    def _read(self, uid: str) -> Delivery | None:
        try:
            return read_message(Delivery, (self._root / uid / "delivery.json").read_bytes(), "delivery.json")
        except (FileNotFoundError, BadInput):
            return None
