"""The connections whose other side has not identified itself yet: strangers, or peers in their handshake."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from fedsim.config.fields import network_of

C = TypeVar("C")


class PendingConnections(Generic[C]):
    """At most `limit` of them: a new one replaces the oldest one of the network that has the most.

    So a flood replaces its own connections, and a peer, whose handshake takes milliseconds, is hardly ever replaced.
    Not safe for use by several threads at once.
    """

    def __init__(self) -> None:
        self._networks: OrderedDict[str, OrderedDict[C, None]] = OrderedDict()
        self._network_of: dict[C, str] = {}

    def __len__(self) -> int:
        """The number of connections."""
        return len(self._network_of)

    def __contains__(self, connection: C) -> bool:
        """Whether this connection is one of them."""
        return connection in self._network_of

    def add(self, connection: C, address: str, limit: int) -> C | None:
        """Add a connection from an IP address; returns the one that it replaces, which is to be closed."""
        replaced = None
        if len(self) >= limit:
            largest = max(self._networks.values(), key=len)
            replaced = next(iter(largest))
            self.discard(replaced)
        network = network_of(address)
        self._networks.setdefault(network, OrderedDict())[connection] = None
        self._network_of[connection] = network
        return replaced

    def discard(self, connection: C) -> None:
        """Remove a connection that has identified itself or ended, if it is one of them."""
        network = self._network_of.pop(connection, None)
        if network is not None:
            connections = self._networks[network]
            del connections[connection]
            if not connections:
                del self._networks[network]

    def pop(self, *, newest: bool = False) -> C | None:
        """Remove and return one of each network in turn, its oldest or its newest; None if there is none."""
        if not self._networks:
            return None
        network = next(iter(self._networks))
        connections = self._networks[network]
        connection = next(reversed(connections)) if newest else next(iter(connections))
        self._networks.move_to_end(network)
        self.discard(connection)
        return connection
