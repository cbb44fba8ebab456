"""Checks of partitions."""

from __future__ import annotations

import numpy as np

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import Partition, Partitioner
from fedsim.testing.conformance.candidate import Candidate, require, require_reproducible_task

EXAMPLES = 2000
CLIENTS = 10
MIN_SIZE = 5


def _labels() -> IntArray:
    labels = np.random.default_rng(5).integers(10, size=EXAMPLES)
    labels.flags.writeable = False
    return labels


def _divide(candidate: Candidate, seed: int = 3) -> Partition:
    partitioner: Partitioner = candidate.make()
    return partitioner.divide(_labels(), 1 if partitioner.per_node else CLIENTS, MIN_SIZE, seed)


def divides_among_all_clients(candidate: Candidate) -> None:
    """The partition has as many clients as were asked for; a partition with `per_node` has one."""
    partition = _divide(candidate)
    wanted = 1 if candidate.plugin.per_node else CLIENTS
    require(partition.num_clients == wanted, f"{partition.num_clients} clients instead of {wanted}")
    offsets = partition.offsets
    require(offsets[0] == 0 and bool((np.diff(offsets) >= 0).all()), f"the offsets {offsets.tolist()} do not ascend")
    require(offsets[-1] <= len(partition.order), f"the last offset {offsets[-1]} is after the last example")


def gives_each_example_once(candidate: Candidate) -> None:
    """An example belongs to at most one client, and is one that exists."""
    partition = _divide(candidate)
    held = np.concatenate([partition.indices(client) for client in range(partition.num_clients)])
    require(bool(((held >= 0) & (held < EXAMPLES)).all()), f"there are indices that are not in 0 … {EXAMPLES - 1}")
    require(len(np.unique(held)) == len(held), "an example belongs to two clients")


def respects_the_least_size(candidate: Candidate) -> None:
    """Every client has at least `min_size` examples, or `BadInput` is raised."""
    partitioner: Partitioner = candidate.make()
    most = partitioner.most_clients(EXAMPLES, MIN_SIZE)
    for clients in (1,) if partitioner.per_node else (1, CLIENTS, most):
        try:
            partition = partitioner.divide(_labels(), clients, MIN_SIZE, 3)
        except BadInput:
            continue
        least = min(partition.num_examples(client) for client in range(partition.num_clients))
        require(least >= MIN_SIZE, f"of {clients} clients one has {least} examples, {MIN_SIZE} were asked for")


def divides_deterministically(candidate: Candidate) -> None:
    """The same labels and seed give the same partition: each node computes it for itself."""
    one, two = _divide(candidate), _divide(candidate)
    same = np.array_equal(one.order, two.order) and np.array_equal(one.offsets, two.offsets)
    require(same, "the same labels and seed gave two different partitions")


def another_seed_divides_differently(candidate: Candidate) -> None:
    """Another seed gives another partition; not with `per_node`."""
    if candidate.plugin.per_node:
        return
    one, two = _divide(candidate, 3), _divide(candidate, 4)
    same = np.array_equal(one.order, two.order) and np.array_equal(one.offsets, two.offsets)
    require(not same, "two seeds gave the same partition; skip this check if nothing is drawn at random")


def follows_from_counts_as_it_says(candidate: Candidate) -> None:
    """With `from_counts`, sorted labels give each client as much as the same labels in another order."""
    if not candidate.plugin.from_counts:
        return
    partitioner: Partitioner = candidate.make()
    clients = 1 if partitioner.per_node else CLIENTS
    one, other = (
        np.array([np.bincount(labels[divided.indices(client)], minlength=10) for client in range(clients)])
        for labels in (_labels(), np.sort(_labels()))
        for divided in (partitioner.divide(labels, clients, MIN_SIZE, 3),)
    )
    same = one == other if partitioner.from_counts == "labels" else one.sum(axis=1) == other.sum(axis=1)
    message = f"from_counts is {partitioner.from_counts!r}, and these depend on the order of the examples"
    require(bool(same.all()), message)


def tasks_train_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    clients = 1 if candidate.plugin.per_node else 6
    require_reproducible_task(candidate, plugins.PARTITIONS, "partition", num_clients=clients)


CHECKS = (
    divides_among_all_clients,
    gives_each_example_once,
    respects_the_least_size,
    divides_deterministically,
    another_seed_divides_differently,
    follows_from_counts_as_it_says,
    tasks_train_reproducibly,
)
