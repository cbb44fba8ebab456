"""Final models for the nodes that were away when their task ended: kept until each has its own.

final/<uid>/model.npy        the finished model: another name of the last round's file
final/<uid>/delivery.json    to whom it still goes; only with it the folder counts

Both are written before the task's row says `completed`: a restart in between does it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from fedsim.errors import BadInput
from fedsim.log import get_logger
from fedsim.messages import Broadcast, Count, Message, Name, Uid, read_message
from fedsim.server.nodes import Nodes
from fedsim.server.stops import Stops
from fedsim.spool.durable import make_folder, remove_tree, write_bytes
from fedsim.spool.files import FileId, Kind
from fedsim.wire.outbox import Outbox
from fedsim.wire.sender import Outcome, Status


class Delivery(Message):
    """Whom a finished task's model still goes to; `round` is the last one, `digest` that of the file."""

    task: Uid
    number: Count
    round: Count
    digest: str
    nodes: tuple[Name, ...]


class FinalModels:
    """The final models that are still on their way."""

    def __init__(self, root: Path, outbox: Outbox, nodes: Nodes, stops: Stops) -> None:
        """`root` is their folder."""
        self._root = root
        self._outbox = outbox
        self._nodes = nodes
        self._stops = stops
        self._owed: dict[str, Delivery] = {}

    def keep(self, delivery: Delivery, model: Path) -> None:
        """Durably keep the model for the nodes; safe to repeat."""
        folder = self._root / delivery.task
        make_folder(folder)
        place = folder / "model.npy"
        place.unlink(missing_ok=True)
        os.link(model, place)
        write_bytes(folder / "delivery.json", delivery.model_dump_json().encode())

    def send(self, uid: str) -> None:
        """Send a kept model to those who have not got it; a folder that a crash left half-made goes."""
        delivery = self._read(uid)
        if delivery is None:
            self.forget(uid)
            return
        self._owed[uid] = delivery
        for node in delivery.nodes:
            if node not in self._nodes.addresses:
                self._stops.tell([node], uid, "server.yml does not name this node any more")
                self._settle(uid, node)
                continue
            self._outbox.send(
                self._nodes.addresses[node],
                FileId(kind=Kind.GLOBALPARAM, task=uid, round=delivery.round + 1),
                self._root / uid / "model.npy",
                meta=Broadcast(used_through=delivery.round, final=True).model_dump(mode="json"),
                digest=delivery.digest,
            )

    def take_up(self, finished: Callable[[str], bool | None]) -> None:
        """After a restart: go on sending. `finished` says of a task's uid whether it is over, None if it is unknown."""
        for folder in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            over = finished(folder.name)
            if over is None:
                self.forget(folder.name)
            elif over:  # what is not over yet ends again, and is kept anew then
                self.send(folder.name)

    def owes(self, node: str, uid: str) -> bool:
        """Whether the final model is still on its way to the node."""
        return uid in self._owed and node in self._owed[uid].nodes

    def sent(self, outcome: Outcome) -> None:
        """A transfer has ended."""
        uid, node = outcome.file_id.task or "", outcome.peer.name
        if outcome.status in {Status.DELIVERED, Status.REFUSED} and self.owes(node, uid):
            number = self._owed[uid].number
            get_logger(task=number).info("final_model_sent", node=node, outcome=outcome.status, problem=outcome.message)
            self._settle(uid, node)

    def reported(self, node: str, uids: Collection[str]) -> None:
        """A node holds these tasks: what it has ended, or lost, it needs no final model of."""
        for uid in [uid for uid in self._owed if self.owes(node, uid) and uid not in uids]:
            self._settle(uid, node)

    def forget(self, uid: str) -> None:
        """The task was deleted, or nobody waits for its model any more."""
        self._owed.pop(uid, None)
        self._outbox.cancel(lambda file: file.task == uid and file.kind is Kind.GLOBALPARAM)
        remove_tree(self._root / uid)

    def _settle(self, uid: str, node: str) -> None:
        delivery = self._owed[uid]
        left = tuple(other for other in delivery.nodes if other != node)
        if not left:
            self.forget(uid)
            return
        self._owed[uid] = delivery.model_copy(update={"nodes": left})
        write_bytes(self._root / uid / "delivery.json", self._owed[uid].model_dump_json().encode())

    def _read(self, uid: str) -> Delivery | None:
        try:
            return read_message(Delivery, (self._root / uid / "delivery.json").read_bytes(), "delivery.json")
        except (FileNotFoundError, BadInput):
            return None
