"""What each client of a node holds out, on which its own model is tested."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedsim.learning.examples import DataSet, Examples, IntArray
from fedsim.learning.partitions import Partition, partition_of_owners


@dataclass(frozen=True)
class ClientsHeldOut:
    """A node's held-out examples, client by client.

    Attributes:
        examples: of the node.
        partition: of the training examples among the clients.
        dealt: the held-out examples of the same clients, in the same rows (`deal_held_out`).
    """

    examples: Examples
    partition: Partition
    dealt: Partition

    @classmethod
    def of(cls, dataset: DataSet, partition: Partition, block_size: int = 1) -> ClientsHeldOut | None:
        """Deal a node's held-out or test examples among the clients of its training examples; None without any.

        Those that are held out of guarded data are whole blocks of `block_size` examples; see `deal_held_out`.
        """
        if (examples := held_out_of(dataset)) is None:
            return None
        if (owner := _owner_by_name(dataset.train, examples, partition)) is not None:
            return cls(examples, partition, partition_of_owners(owner, partition.num_clients))
        strata = examples.strata
        if dataset.held_out is not None:  # a block counts as one label, that of its first example
            strata = np.repeat(strata[::block_size], block_size)
        return cls(examples, partition, deal_held_out(partition, dataset.train.strata, strata, block_size))

    def of_client(self, client: int) -> Examples:
        """A client's held-out examples, changed as its partition changes features; there can be none."""
        row = self.partition.row(client)
        indices = self.dealt.indices(row)
        features = self.partition.change_held_out(client, self.examples.take(indices))
        return replace(self.examples, features=features, labels=self.examples.labels[indices], scale=1.0)

    def num_examples(self, first_client: int, num_clients: int) -> int:
        """How many examples consecutive clients hold out together."""
        row = self.partition.row(first_client)
        return int(self.dealt.offsets[row + num_clients] - self.dealt.offsets[row])


def _owner_by_name(train: Examples, held_out: Examples, partition: Partition) -> IntArray | None:
    """The row of each held-out example, int64 [m], where each client is one that the data names; None elsewhere.

    An example of a client that is not here has the number of rows.
    """
    if train.clients is None or held_out.clients is None:
        return None
    rows = np.repeat(np.arange(partition.num_clients), np.diff(partition.offsets))
    pairs = np.unique(np.stack([rows, train.clients[partition.order]]), axis=1)
    if len(np.unique(pairs[0])) < pairs.shape[1] or len(np.unique(pairs[1])) < pairs.shape[1]:
        return None
    highest = max(int(pairs[1].max(initial=0)), int(held_out.clients.max(initial=0)))
    row_of = np.full(highest + 1, partition.num_clients, np.int64)
    row_of[pairs[1]] = pairs[0]
    owner: IntArray = row_of[held_out.clients]
    return owner


def held_out_of(dataset: DataSet) -> Examples | None:
    """The examples on which a node tests models: those that it holds out, else its test set."""
    return dataset.test if dataset.held_out is None else dataset.held_out


def deal_held_out(partition: Partition, train: IntArray, held_out: IntArray, unit: int = 1) -> Partition:
    """Deal held-out examples among clients so that each has labels in the proportions of its training examples.

    Of each label a client gets the share that it holds of the label's training examples, by largest remainders. What
    rounding took from a client in one label counts for it in the next, so that its number of examples is within one
    unit of its share. A label that no client holds is dealt to none.

    Args:
        partition: of the training examples.
        train: int64 [n], their labels (`Examples.strata`).
        held_out: int64 [m], the labels of what is dealt.
        unit: of guarded data the size of a block, which is never divided: examples of a label are dealt so many at a
            time, in their order; what is left over goes with the last of them.

    Returns:
        The rows are those of `partition`.
    """
    num_rows = partition.num_clients
    owner = np.full(len(held_out), num_rows, np.int64)
    rows, labels = np.repeat(np.arange(num_rows), np.diff(partition.offsets)), train[partition.order]
    by_label = np.argsort(labels, kind="stable")
    rows, labels = rows[by_label], labels[by_label]
    credit = np.zeros(num_rows)
    for label in np.unique(held_out).tolist():
        examples = np.flatnonzero(held_out == label)
        first, last = np.searchsorted(labels, [label, label + 1])
        holders, counts = np.unique(rows[first:last], return_counts=True)
        if not len(holders):
            continue
        num_units = max(1, len(examples) // unit)
        quotas = num_units * counts / counts.sum()
        given = np.floor(quotas).astype(np.int64)
        lacking = quotas - given
        left = num_units - int(given.sum())
        favoured = np.argsort(-(credit[holders] + lacking), kind="stable")[:left]
        given[favoured] += 1
        lacking[favoured] -= 1
        credit[holders] += lacking
        of_unit = np.repeat(holders, given)
        owner[examples] = of_unit[np.minimum(np.arange(len(examples)) // unit, num_units - 1)]
    return partition_of_owners(owner, num_rows)
