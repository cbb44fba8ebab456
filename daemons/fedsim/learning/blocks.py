"""The clients of a guarded data set: unions of whole blocks, which a node forms from its own examples alone."""

from __future__ import annotations

import numpy as np

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import Partition, make_partitioner
from fedsim.messages import rounded
from fedsim.settings import TaskSettings


def blocks_in_batch(settings: TaskSettings, size: int) -> int:
    """How many blocks of `size` examples one step uses: those that fit into the batch size, at least one."""
    return max(1, settings.local_batch_size // size)


def blocks_of_client(settings: TaskSettings, size: int, min_examples: int) -> int:
    """The least number of blocks of a client: enough examples, and more than one step uses.

    A client that makes one step with all of its examples would answer with the exact sum of their gradients.
    """
    examples = max(settings.min_partition_size, min_examples)
    return max(-(-examples // size), blocks_in_batch(settings, size) + 1)


def most_clients_of_blocks(settings: TaskSettings, num_blocks: int, size: int, min_examples: int) -> int:
    """The largest number of clients that a node can form from its blocks; 0 or 1 with `local`."""
    partitioner, least = make_partitioner(settings), blocks_of_client(settings, size, min_examples)
    return int(num_blocks >= least) if partitioner.per_node else partitioner.most_clients(num_blocks, least)


class BlockPartition(Partition):
    """The clients of one node from `first_client` on, each with the examples of its blocks."""

    def __init__(self, blocks: Partition, size: int, first_client: int) -> None:
        order = (blocks.order[:, None] * size + np.arange(size)).reshape(-1)
        super().__init__(order, blocks.offsets * size)
        object.__setattr__(self, "_first", first_client)

    def num_examples(self, client: int) -> int:
        """How many examples a client holds."""
        return super().num_examples(client - self._first)

    def indices(self, client: int) -> IntArray:
        """A client's examples, int64 [k]."""
        return super().indices(client - self._first)

    def runs(self, first_client: int, num_clients: int) -> tuple[tuple[int, int], ...]:
        """See `Partition`."""
        return super().runs(first_client - self._first, num_clients)

    @property
    def digest(self) -> str:
        """Empty: a node knows only its own clients."""
        return ""

    _first: int


def divide_blocks(
    settings: TaskSettings, labels: IntArray, size: int, clients: tuple[int, int], min_examples: int
) -> BlockPartition:
    """Divide a node's blocks among its clients, by the task's partition.

    Args:
        settings: the task's.
        labels: int64 [num_blocks], the label of each block.
        size: examples of each block.
        clients: the first client of the node and how many there are.
        min_examples: behind an update, by the institution's rules.

    Raises:
        BadInput: the blocks do not suffice.
    """
    partitioner, least = make_partitioner(settings), blocks_of_client(settings, size, min_examples)
    if partitioner.changes_features:
        raise BadInput(f"the partition {settings.partition} changes features, and this data is guarded")
    first, count = clients
    most = most_clients_of_blocks(settings, len(labels), size, min_examples)
    if count > most:
        raise BadInput(
            f"{count} clients of at least {least} whole blocks are too many for about {rounded(len(labels))} "
            f"blocks of {size} examples: at most {most} are possible"
        )
    try:
        divided = partitioner.divide(labels, count, least, settings.seed_of_partition)
    except BadInput as error:
        raise BadInput(f"of blocks of {size} examples: {error}") from error
    return BlockPartition(divided, size, first)
