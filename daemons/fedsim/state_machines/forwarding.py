"""Decides whether a global model goes to each node directly or from node to node, from what earlier ones took.

A server whose uplink is the bottleneck sends n models in the time of n transfers, however many are under way at once; a
chain of nodes that pass the bytes on as they arrive takes about the time of one. Where nodes' own links are the
bottleneck a chain gains nothing. Which it is, is measured: the first model goes directly, the next along the chain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

MIN_BYTES: Final = 4 << 20
"""A smaller model goes directly: it takes no longer than the hops of a chain."""
MIN_NODES: Final = 3
"""A shorter chain gains too little."""
TRY_AGAIN: Final = 32
"""After this number of direct models a chain is tried again, and nodes that were left behind belong to it again."""
MARGIN: Final = 1.1
"""A chain must be predicted to be this much quicker."""
SPARE_SECONDS: Final = 2.0


@dataclass(frozen=True)
class ForwardingNode:
    """What a node's owner allows: whether it accepts models from another node, and whether it passes them on."""

    name: str
    accept: bool
    pass_on: bool


def chain_of(nodes: Sequence[ForwardingNode]) -> tuple[str, ...]:
    """The longest chain in which each node passes on to one that accepts, in the given order as far as possible."""
    first = next((node.name for node in nodes if node.pass_on and not node.accept), None)
    last = next((node.name for node in nodes if node.accept and not node.pass_on), None)
    middle = [node.name for node in nodes if node.accept and node.pass_on]
    chain = [name for name in (first, *middle, last) if name is not None]
    return tuple(chain) if len(chain) > 1 else ()


class UplinkMeter:
    """The measured rates in bytes per second, and what follows from them.

    Attributes:
        together: the sum of the rates of transfers that were under way at once, directly to all nodes; None: unknown.
        chained: the rate at which a chain brought a model to its last node; None: unknown.
    """

    def __init__(self) -> None:
        self.together: float | None = None
        self.chained: float | None = None
        self._direct = 0
        self._left_behind: dict[str, int] = {}

    def choose(self, size: int, nodes: Sequence[ForwardingNode]) -> tuple[str, ...]:
        """The chain for a model of this many bytes to all of these nodes; empty: to each of them directly."""
        for name in list(self._left_behind):
            self._left_behind[name] -= 1
            if not self._left_behind[name]:
                del self._left_behind[name]
        chain = chain_of([node for node in nodes if node.name not in self._left_behind])
        if self._prefers(size, len(nodes), chain):
            self._direct = 0
            return chain
        self._direct += 1
        return ()

    def _prefers(self, size: int, nodes: int, chain: Sequence[str]) -> bool:
        if self.together is None or size < MIN_BYTES or len(chain) < MIN_NODES:
            return False
        if self.chained is None or self._direct >= TRY_AGAIN:
            return True
        from_server = nodes - len(chain) + 1
        return is_quicker(self.together, self.chained, nodes, from_server)

    def wait_seconds(self, size: int, nodes: int) -> float:
        """How long a node waits for another one: as long as it would take the server to send to all directly."""
        return SPARE_SECONDS + (0.0 if self.together is None else nodes * size / self.together)

    def direct_ended(self, transfers: Iterable[tuple[int, float]]) -> None:
        """A model went to all nodes directly: the bytes and seconds of each transfer, all begun at once."""
        sent = [(count, seconds) for count, seconds in transfers if seconds > 0]
        if len(sent) >= MIN_NODES and all(count >= MIN_BYTES for count, _ in sent):
            self.together = sum(count / seconds for count, seconds in sent)

    def chain_ended(self, size: int, seconds: float, left_behind: Collection[str]) -> None:
        """A chain of nodes has a model, its last one after this time; those `left_behind` got it from the server."""
        self._left_behind.update(dict.fromkeys(left_behind, TRY_AGAIN))
        if not left_behind and seconds > 0:
            self.chained = size / seconds


def is_quicker(together: float, chained: float, nodes: int, from_server: int) -> bool:
    """Whether a chain brings a model to the last of n nodes sooner than n transfers from the server at once.

    Args:
        together: what the server sends to all nodes at once, bytes per second in all.
        chained: at which a chain brings a model to its last node, bytes per second.
        nodes: that receive the model.
        from_server: those that the server still sends it to: the first of the chain, and all that are not in it.
    """
    return nodes / together > MARGIN * max(1 / chained, from_server / together)
