"""The clients of a guarded data set: unions of whole blocks, which a node forms from its own examples alone."""

from __future__ import annotations

import numpy as np

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import OwnClients, make_partitioner
from fedsim.settings import TaskSettings
from fedsim.text import rounded


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


def divide_blocks(
    settings: TaskSettings, labels: IntArray, size: int, clients: tuple[int, int], min_examples: int
) -> OwnClients:
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
    if partitioner.natural:
        raise BadInput(f"the partition {settings.partition} divides by client, and this data is guarded in blocks")
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
    order = (divided.order[:, None] * size + np.arange(size)).reshape(-1)
    return OwnClients(order, divided.offsets * size, first)
