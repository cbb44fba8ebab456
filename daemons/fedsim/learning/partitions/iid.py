"""The partition in which all clients are alike."""

from __future__ import annotations

from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import Partition
from fedsim.learning.partitions.shards import Shards, deal_shards
from fedsim.learning.randomness import generator
from fedsim.plugins import gettext_noop


class Iid(Shards):
    """Shuffled, then cut into equal parts: independent and identically distributed clients."""

    title = gettext_noop("iid – shuffled, every client alike")
    from_counts = "sizes"

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:  # noqa: ARG002
        """Examples that do not fill a shard belong to no client."""
        return deal_shards(generator(seed, "partition iid").permutation(len(labels)), num_clients, seed)
