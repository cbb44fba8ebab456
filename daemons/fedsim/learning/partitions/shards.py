"""The partition of McMahan et al. 2017: shards of the examples sorted by label."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import FromCounts, Partition, Partitioner
from fedsim.learning.randomness import generator
from fedsim.plugins import gettext_noop

SHARDS_PER_CLIENT = 2


class Shards(Partitioner):
    """Sorted by label and cut into equal shards, two of them for each client (McMahan et al. 2017, section 3)."""

    title = gettext_noop("shards – sorted by label, two shards each: few labels per client")
    from_counts: ClassVar[FromCounts] = "labels"

    def most_clients(self, num_examples: int, min_size: int) -> int:
        """Shards are of equal size, and each client takes two."""
        shard = -(-min_size // SHARDS_PER_CLIENT)
        return num_examples // shard // SHARDS_PER_CLIENT

    def size(self, num_examples: int, num_clients: int) -> int:
        """Two shards; what does not fill one belongs to no client."""
        return SHARDS_PER_CLIENT * (num_examples // (SHARDS_PER_CLIENT * num_clients))

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:  # noqa: ARG002
        """Examples that do not fill a shard belong to no client."""
        return deal_shards(np.argsort(labels, kind="stable"), num_clients, seed)


def deal_shards(order: IntArray, num_clients: int, seed: int) -> Partition:
    """Cut the ordered examples (int64 [n]) into 2·K equal shards and assign two random shards to each of K clients."""
    num_shards = SHARDS_PER_CLIENT * num_clients
    size = len(order) // num_shards
    dealt = generator(seed, "partition shards").permutation(num_shards)
    shards = order[: num_shards * size].reshape(num_shards, size)[dealt]
    offsets = np.arange(num_clients + 1, dtype=np.int64) * (SHARDS_PER_CLIENT * size)
    return Partition(shards.reshape(-1), offsets)
