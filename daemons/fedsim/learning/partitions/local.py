"""The partition in which each node's own data is one client."""

from __future__ import annotations

import numpy as np

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import Partition, Partitioner
from fedsim.plugins import gettext_noop


class Local(Partitioner):
    """Each node's own file is one client: real institutions, one client each."""

    title = gettext_noop("local – each node's own file is one client")
    per_node = True
    from_counts = "labels"

    def size(self, num_examples: int, num_clients: int) -> int:  # noqa: ARG002
        """All that the node has."""
        return num_examples

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:  # noqa: ARG002
        """All examples for the one client."""
        if len(labels) < min_size:
            raise BadInput(
                f"min_partition_size: {min_size} are asked for, but only {len(labels)} examples "
                "are here; choose a smaller least size"
            )
        return LocalPartition(len(labels))


class LocalPartition(Partition):
    """One client with all examples, whatever that client's number in the task."""

    def __init__(self, num_examples: int) -> None:
        super().__init__(np.arange(num_examples, dtype=np.int64), np.array([0, num_examples], np.int64))

    @property
    def digest(self) -> str:
        """A node knows only its own client."""
        return ""

    def row(self, client: int) -> int:  # noqa: ARG002 - each client that is asked for is this node's one
        """The only one."""
        return 0

    def runs(self, first_client: int, num_clients: int) -> tuple[tuple[int, int], ...]:
        """One client with everything."""
        if num_clients != 1:
            raise BadInput(
                f"partition local gives a node one client, its own data; it got {num_clients} "
                f"(from client {first_client}): set num_clients to the number of nodes"
            )
        return ((1, len(self.order)),)
