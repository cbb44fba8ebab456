"""What tests of forwarding share: nodes whose owners allow it, and offers of a server that has announced a chain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transfer_support import SERVER, TASK, Outcomes, global_id, node_config, receiving

from fedsim.forwarding import Forwarding, Successor
from fedsim.messages import Broadcast
from fedsim.receiver.service import Receiver
from fedsim.spool.allowlist import want
from fedsim.spool.files import Kind
from fedsim.spool.layout import Spool
from fedsim.wire import Peer, Sender

COUNT = 2_000_000
"""Parameters of the tests' model: 8 MB."""


def name_of(number: int) -> str:
    return f"node-{number + 1}"


def forwarding_node(
    folder: Path, number: int, *, accept: bool = True, pass_on: bool = True, **changes: Any
) -> AbstractContextManager[Receiver]:
    """The receiver of a node that waits for the global models of TASK."""
    name = name_of(number)

    def expect(spool: Spool) -> None:
        want(spool, TASK, {Kind.GLOBALPARAM: None}, accept_forwarded=accept, pass_on=pass_on)

    return receiving(node_config(folder / name, name=name, **changes), expect)


@contextmanager
def forwarding_nodes(folder: Path, count: int, **changes: Any) -> Iterator[list[Receiver]]:
    """Several of them."""
    with ExitStack() as stack:
        yield [stack.enter_context(forwarding_node(folder, number, **changes)) for number in range(count)]


def announcement(receiver: Receiver) -> threading.Event:
    """Is set when the server has announced a file there."""
    announced = threading.Event()
    wake = receiver.inbox.forwarded.wake

    def woken() -> None:
        announced.set()
        wake()

    receiver.inbox.forwarded.wake = woken
    return announced


def meta_for(number: int, ports: list[int], seconds: float = 30.0) -> dict[str, Any]:
    """What the server sends node `number` of a chain whose receivers listen on these ports."""
    last = number == len(ports) - 1
    successor = None if last else Successor(node=name_of(number + 1), address="127.0.0.1", port=ports[number + 1])
    way = Forwarding(predecessor=name_of(number - 1) if number else None, successor=successor, seconds=seconds)
    broadcast = Broadcast(used_through=number).model_dump(mode="json")
    return {**broadcast, "forwarding": way.model_dump(mode="json", exclude_none=True)}


class ChainOfOffers:
    """The server's offers of one model to a chain, last node first."""

    def __init__(self, sender: Sender, ports: list[int], source: Path, digest: str) -> None:
        self.outcomes = Outcomes()
        self._sender, self._ports, self._source, self._digest = sender, ports, source, digest

    def announce(
        self, *numbers: int, seconds: float = 30.0, ports: list[int] | None = None, round_number: int = 1
    ) -> None:
        """Offer the model to these nodes; `ports`: where the chain's nodes are said to be reached."""
        for number in numbers:
            peer = Peer(name_of(number), "127.0.0.1", self._ports[number])
            meta = meta_for(number, ports or self._ports, seconds)
            file = global_id(round_number)
            self._sender.send(peer, file, self._source, meta=meta, digest=self._digest, on_done=self.outcomes)

    def by_node(self, count: int) -> dict[str, Any]:
        """The outcomes, once there are so many."""
        return {outcome.peer.name: outcome for outcome in self.outcomes.wait(count)}


@contextmanager
def server_sender() -> Iterator[Sender]:
    with Sender(SERVER) as sender:
        yield sender
