"""The partition in which each client holds a given number of labels."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import Partition, Partitioner, partition_of_owners
from fedsim.learning.randomness import generator
from fedsim.plugins import PluginOptions, gettext_noop


class LabelsPerClient(Partitioner):
    """Each client holds k labels, and a label's examples are divided evenly among the clients that hold it.

    Quantity-based label imbalance, #C = k, of Li et al. 2022 ("Federated learning on non-IID data silos", section 4.1):
    client i holds label i modulo the number of labels, and others drawn at random.
    """

    title = gettext_noop("labels_per_client – k labels at each client")
    from_counts = "labels"

    class Options(PluginOptions):
        """The number of labels."""

        labels: Annotated[int, Field(ge=1, le=10_000)] = Field(
            2, title=gettext_noop("Labels k"), description=gettext_noop("How many labels each client holds.")
        )

    options: Options

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:
        """Labels that no client holds, where there are fewer clients than labels, belong to none."""
        rng = generator(seed, "partition labels_per_client")
        present, index = np.unique(labels, return_inverse=True)
        count = len(present)
        if self.options.labels > count:
            raise BadInput(
                f"partition_options.labels: {self.options.labels} labels for each client are asked for, and the data "
                f"set has {count}: choose at most {count}"
            )
        holders: list[list[int]] = [[] for _ in present]
        for client in range(num_clients):
            own = client % count
            others = rng.permutation(np.delete(np.arange(count), own))[: self.options.labels - 1]
            for label in (own, *others.tolist()):
                holders[label].append(client)
        owner = np.full(len(labels), num_clients, np.int64)
        for label, clients in enumerate(holders):
            members = rng.permutation(np.flatnonzero(index == label))
            for client, part in zip(clients, np.array_split(members, max(1, len(clients))), strict=False):
                owner[part] = client
        partition = partition_of_owners(owner, num_clients)
        least = int(np.diff(partition.offsets).min())
        if least < min_size:
            raise BadInput(
                f"min_partition_size: with {self.options.labels} labels for each client the smallest of {num_clients} "
                f"clients holds {least} of {len(labels)} training examples, {min_size} are asked for; choose more "
                "labels for each client, fewer clients or a smaller min_partition_size"
            )
        return partition
