"""Sends global models to nodes: to each of them directly, or along a chain of nodes that pass them on.

What a task sends within one turn of the loop is decided together, in the next turn. Each node is sent its own offer
with its own metadata either way; in a chain the offer says from which node the bytes come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.forwarding import Forwarding, Successor
from fedsim.forwarding_offer import ForwardingOffer
from fedsim.log import get_logger
from fedsim.messages import Hello
from fedsim.runtime.event_loop import EventLoop
from fedsim.runtime.outbox import Outbox
from fedsim.server.nodes import Nodes
from fedsim.spool.files import FileId
from fedsim.state_machines.forwarding import ForwardingNode, UplinkMeter
from fedsim.wire.sender import Outcome, Peer


@dataclass(frozen=True)
class _Waiting:
    peer: Peer
    file: FileId
    path: Path
    meta: dict[str, Any]
    digest: str


@dataclass
class _UnderWay:
    """One model on its way to several nodes; `chain` is empty if it goes to each of them directly."""

    size: int
    chain: tuple[str, ...]
    missing: set[str]
    ended: list[Outcome] = field(default_factory=list)


class Broadcasts:
    """Owned by the daemon's loop.

    Args:
        outbox: sends.
        nodes: their addresses and announcements.
        loop: of the daemon.
        enabled: whether server.yml allows chains at present.
    """

    def __init__(self, outbox: Outbox, nodes: Nodes, loop: EventLoop, enabled: Callable[[], bool]) -> None:
        self.meter = UplinkMeter()
        self._outbox = outbox
        self._nodes = nodes
        self._enabled = enabled
        self._waiting: list[_Waiting] = []
        self._under_way: dict[FileId, _UnderWay] = {}
        self._next_turn = loop.timer(self._send_waiting)
        self._log = get_logger()

    def send(self, node: str, file: FileId, path: Path, *, meta: dict[str, Any], digest: str) -> None:
        """Send a node a global model; see `Outbox.send`."""
        peer = self._nodes.addresses[node]
        if not self._enabled():
            self._outbox.send(peer, file, path, meta=meta, digest=digest)
            return
        self._waiting.append(_Waiting(peer, file, path, meta, digest))
        self._next_turn.start()

    def cancel(self, unwanted: Callable[[FileId], bool]) -> None:
        """Stop sending the models that `unwanted` selects."""
        self._waiting = [one for one in self._waiting if not unwanted(one.file)]
        for file in [file for file in self._under_way if unwanted(file)]:
            del self._under_way[file]
        self._outbox.cancel(unwanted)

    def transfer_ended(self, outcome: Outcome) -> None:
        """Note what a transfer took."""
        under_way = self._under_way.get(outcome.file_id)
        if under_way is None or outcome.peer.name not in under_way.missing:
            return
        under_way.missing.remove(outcome.peer.name)
        under_way.ended.append(outcome)
        if not under_way.missing:
            del self._under_way[outcome.file_id]
            self._measure(outcome.file_id, under_way)

    def _measure(self, file: FileId, done: _UnderWay) -> None:
        if not all(outcome.delivered for outcome in done.ended):
            return
        if not done.chain:
            self.meter.direct_ended((outcome.bytes_sent, outcome.seconds) for outcome in done.ended)
            return
        along = [outcome for outcome in done.ended if outcome.peer.name in done.chain]
        behind = sorted(one.peer.name for one in along if one.peer.name != done.chain[0] and not one.already_there)
        seconds = max(outcome.seconds for outcome in along)
        self.meter.chain_ended(done.size, seconds, behind)
        fields = {"task_uid": file.task, "round": file.round, "nodes": len(done.chain), "seconds": round(seconds, 3)}
        if behind:
            problem = f"{', '.join(behind)} got it, or the rest of it, from the server: see the journals of these nodes"
            self._log.warning("model_not_forwarded", **fields, problem=problem)
        else:
            self._log.info("model_forwarded", **fields)

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        models: dict[tuple[FileId, str], dict[str, _Waiting]] = {}
        for one in waiting:
            models.setdefault((one.file, one.digest), {})[one.peer.name] = one
        for (file, _), group in models.items():
            self._send_together(file, list(group.values()))

    def _send_together(self, file: FileId, group: list[_Waiting]) -> None:
        hellos = self._nodes.online()
        try:
            size = group[0].path.stat().st_size
        except FileNotFoundError:  # its task has ended; sending reports that
            size = 0
        allowed = [_allowed(one.peer, hellos, reached=not self._outbox.trouble(one.peer)) for one in group]
        chain = self.meter.choose(size, allowed)
        ways = self._ways(chain, {one.peer.name: one.peer for one in group}, hellos, size, len(group))
        self._under_way[file] = _UnderWay(size, chain, {one.peer.name for one in group})
        # The last of the chain first: a node knows of its predecessor before that one connects.
        order = {name: number for number, name in enumerate(chain)}
        for one in sorted(group, key=lambda each: -order.get(each.peer.name, -1)):
            way = ways.get(one.peer.name)
            added = {} if way is None else {"forwarding": way.model_dump(mode="json", exclude_none=True)}
            self._outbox.send(one.peer, file, one.path, meta={**one.meta, **added}, digest=one.digest)

    def _ways(
        self, chain: tuple[str, ...], peers: dict[str, Peer], hellos: dict[str, Hello], size: int, nodes: int
    ) -> dict[str, Forwarding]:
        """For each node of the chain from where its bytes come and where they go: of others it learns nothing."""
        seconds = self.meter.wait_seconds(size, nodes)
        ways = {}
        for number, name in enumerate(chain):
            after = chain[number + 1] if number + 1 < len(chain) else None
            ways[name] = Forwarding(
                predecessor=chain[number - 1] if number else None,
                successor=None if after is None else _successor(peers[after], hellos[after].forwarding),
                seconds=seconds,
            )
        return ways


def _allowed(peer: Peer, hellos: dict[str, Hello], *, reached: bool) -> ForwardingNode:
    """What a node's owner allows, as announced; nothing of one that cannot be reached, or listens on no port."""
    hello = hellos.get(peer.name)
    offer = ForwardingOffer() if hello is None or not (reached and peer.listens) else hello.forwarding
    return ForwardingNode(peer.name, accept=offer.accept and bool(offer.port or peer.port), pass_on=offer.pass_on)


def _successor(peer: Peer, offer: ForwardingOffer) -> Successor:
    return Successor(node=peer.name, address=offer.address or peer.host, port=offer.port or peer.port)
