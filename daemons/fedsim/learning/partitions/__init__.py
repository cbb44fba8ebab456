"""Partitions: how a data set is divided among the clients of a task. One class in one file each.

Each node computes the same partition from the same labels and seed, and uses only the clients that it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal

import numpy as np
from blake3 import blake3

from fedsim.errors import BadInput
from fedsim.learning.examples import Examples, FloatArray, IntArray
from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings

FromCounts = Literal["labels", "sizes", ""]


@dataclass(frozen=True)
class Partition:
    """Which examples belong to which client: client k holds `order[offsets[k]:offsets[k + 1]]`.

    Attributes:
        order: int64 [m], indices of examples, m <= n.
        offsets: int64 [num_clients + 1].
    """

    order: IntArray
    offsets: IntArray

    @property
    def num_clients(self) -> int:
        """The population."""
        return len(self.offsets) - 1

    def row(self, client: int) -> int:
        """Where a client of the task is among those that are divided here."""
        return client

    def num_examples(self, client: int) -> int:
        """How many examples a client holds."""
        row = self.row(client)
        return int(self.offsets[row + 1] - self.offsets[row])

    def indices(self, client: int) -> IntArray:
        """A client's examples, int64 [k]: a view, not a copy."""
        row = self.row(client)
        return self.order[self.offsets[row] : self.offsets[row + 1]]

    def change(self, client: int, features: FloatArray) -> FloatArray:  # noqa: ARG002
        """A client's features, float32 [k, *shape], scaled, as it trains on them; a copy that may be written to."""
        return features

    def change_held_out(self, client: int, features: FloatArray) -> FloatArray:
        """The same for the examples on which the client's own model is tested."""
        return self.change(client, features)

    def runs(self, first_client: int, num_clients: int) -> tuple[tuple[int, int], ...]:
        """The sizes of consecutive clients as runs of (how many clients, examples of each), as in `TaskReport`."""
        sizes = np.diff(self.offsets[first_client : first_client + num_clients + 1]).tolist()
        return tuple((len(list(run)), size) for size, run in groupby(sizes))

    @property
    def digest(self) -> str:
        """Of the sizes of all clients, see `sizes_digest`; empty where a node knows only its own."""
        return sizes_digest(np.diff(self.offsets).tolist())


@dataclass(frozen=True)
class OwnClients(Partition):
    """The clients of one node alone, numbered from `first_client` on."""

    first_client: int = 0

    def row(self, client: int) -> int:
        """Counted from the node's first client."""
        return client - self.first_client

    def runs(self, first_client: int, num_clients: int) -> tuple[tuple[int, int], ...]:
        """See `Partition`."""
        return super().runs(first_client - self.first_client, num_clients)

    @property
    def digest(self) -> str:
        """Empty: a node knows only its own clients."""
        return ""


def partition_of_owners(owner: IntArray, num_clients: int) -> Partition:
    """The partition in which example i belongs to client `owner[i]`, int64 [n]; `num_clients` stands for no client."""
    sizes = np.bincount(owner, minlength=num_clients)[:num_clients]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Partition(np.argsort(owner, kind="stable")[: offsets[-1]], offsets)


def sizes_digest(sizes: Sequence[int]) -> str:
    """blake3 of the sizes of all clients: nodes with the same data report the same one."""
    return blake3(",".join(map(str, sizes)).encode()).hexdigest()


class Partitioner(Plugin):
    """The base of all partitions.

    Attributes:
        per_node: each node's own data is one client; the labels of other nodes are never combined with it.
        changes_features: its clients train on other features than those of the data set (`Partition.change`). Guarded
            data is divided in another way, which does not know of it.
        natural: the data itself names its clients (`Examples.clients`), and nodes with other data have other clients.
        from_counts: what follows from how many examples have each label, whatever their order: how many of each label
            a client holds ("labels"), only how many examples it holds ("sizes"), or neither. Where no more is known,
            pictures show this.
    """

    per_node: ClassVar[bool] = False
    changes_features: ClassVar[bool] = False
    natural: ClassVar[bool] = False
    from_counts: ClassVar[FromCounts] = ""

    def groups(self, examples: Examples) -> IntArray:
        """What `divide` divides by, int64 [n]: the labels of the examples; raises `BadInput` if they have none."""
        return examples.strata

    def most_clients(self, num_examples: int, min_size: int) -> int:
        """The largest number of clients with at least `min_size` examples each that `num_examples` allow."""
        return num_examples // min_size

    def size(self, num_examples: int, num_clients: int) -> int | None:  # noqa: ARG002
        """The size of every client where it follows from these numbers alone; None where it depends on the labels."""
        return None

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:
        """Divide the examples; memory is O(n + num_clients).

        Args:
            labels: int64 [n], the training labels, or what else `groups` gives.
            num_clients: at most `most_clients(n, min_size)`.
            min_size: the least number of examples of a client.
            seed: the task's; draw from `fedsim.learning.randomness.generator(seed, "partition <name>")`.

        Raises:
            BadInput: a client would hold too few examples; the message says which setting to change.
        """
        raise NotImplementedError


def make_partitioner(settings: TaskSettings) -> Partitioner:
    """The partition plug-in that the settings name; raises `BadInput` if it cannot be made."""
    partitioner: Partitioner = settings.plugin("partition")
    return partitioner


def most_clients(settings: TaskSettings, num_examples: int) -> int:
    """The largest number of clients that `num_examples` training examples can be divided among."""
    return make_partitioner(settings).most_clients(num_examples, settings.min_partition_size)


def too_many_clients(settings: TaskSettings, num_examples: int, most: int) -> str:
    """The message for a population of more than `most` clients."""
    return (
        f"{settings.num_clients} clients are too many for {num_examples} training examples: with the partition "
        f"{settings.partition} and a least size of {settings.min_partition_size} at most {most} are possible"
    )


def make_partition(settings: TaskSettings, labels: IntArray, partitioner: Partitioner | None = None) -> Partition:
    """Divide a data set according to the task's settings.

    Args:
        settings: `partition` with its options, `num_clients`, `min_partition_size` and the partition's seed count.
        labels: int64 [n], the training labels.
        partitioner: instead of the one that the settings name.

    Raises:
        BadInput: there are more clients than the examples allow, or a client would hold too few.
    """
    partitioner = partitioner or make_partitioner(settings)
    clients, least = settings.num_clients, settings.min_partition_size
    if not partitioner.per_node and clients > (most := partitioner.most_clients(len(labels), least)):
        raise BadInput(f"num_clients: {too_many_clients(settings, len(labels), most)}")
    return partitioner.divide(labels, clients, least, settings.seed_of_partition)


def partition_of(
    settings: TaskSettings,
    train: Examples,
    partitioner: Partitioner | None = None,
    own: tuple[int, int] | None = None,
) -> Partition:
    """Divide training examples according to the task's settings.

    Args:
        settings: see `make_partition`.
        train: the examples.
        partitioner: instead of the one that the settings name.
        own: the first client of this node and how many it has, if they are formed of this node's data alone.

    Raises:
        BadInput: as `make_partition`, or the examples lack what the partition divides by.
    """
    partitioner = partitioner or make_partitioner(settings)
    groups = partitioner.groups(train)
    if own is None:
        return make_partition(settings, groups, partitioner)
    first, count = own
    here = make_partition(settings.model_copy(update={"num_clients": count}), groups, partitioner)
    return OwnClients(here.order, here.offsets, first)
