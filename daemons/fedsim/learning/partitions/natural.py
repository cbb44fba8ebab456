"""The partition whose clients the data itself names."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.examples import Examples, IntArray
from fedsim.learning.partitions import Partition, Partitioner, partition_of_owners
from fedsim.learning.randomness import generator
from fedsim.plugins import PluginOptions, gettext_noop


class Natural(Partitioner):
    """The clients that the data names, such as speakers or hospitals: by a column, an array, or a file of each client.

    `num_clients` of those with at least the least size take part, numbered in the order of their names. Nodes with
    other data have other clients; those with the same data divide its clients among them.
    """

    title = gettext_noop("natural – the clients that the data names, such as speakers")
    natural = True

    class Options(PluginOptions):
        """Which clients take part."""

        selection: Literal["largest", "random"] = Field(
            "largest",
            title=gettext_noop("Selection"),
            description=gettext_noop(
                "Which clients take part if the data names more: the largest, or ones drawn at random."
            ),
        )

    options: Options

    def groups(self, examples: Examples) -> IntArray:
        """To which client each example belongs."""
        if examples.clients is None:
            raise BadInput(
                "partition natural: the data set does not say to which client an example belongs: choose another "
                "partition, or name the column or the array in client.yml"
            )
        return examples.clients

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:
        """`labels` are the clients of the examples, as `groups` gives them."""
        sizes = np.bincount(labels)
        eligible = np.flatnonzero(sizes >= max(min_size, 1))
        if len(eligible) < num_clients:
            raise BadInput(
                f"num_clients: {num_clients} clients are asked for, and the data names {len(eligible)} with at least "
                f"{min_size} examples: choose fewer clients or a smaller min_partition_size"
            )
        if self.options.selection == "random":
            eligible = generator(seed, "partition natural").permutation(eligible)
        else:
            eligible = eligible[np.argsort(-sizes[eligible], kind="stable")]
        owner = np.full(len(sizes), num_clients, np.int64)
        owner[np.sort(eligible[:num_clients])] = np.arange(num_clients)
        return partition_of_owners(owner[labels], num_clients)


def sizes_in_steps(clients: IntArray) -> tuple[int, ...]:
    """How many of the clients have at least 1, 2, 4, 8 … examples: what a node announces of them."""
    sizes = np.bincount(clients)
    steps = 2 ** np.arange(int(sizes.max(initial=0)).bit_length())
    return tuple(int((sizes >= step).sum()) for step in steps)


def clients_of_size(steps: tuple[int, ...], least: int) -> int:
    """From `sizes_in_steps`, how many clients may have at least `least` examples: those of the power of two below."""
    step = max(least, 1).bit_length() - 1
    return steps[step] if step < len(steps) else 0
